"""Train on Usiigaci: cells in phase contrast.

Without further flags this is the recipe of the model that comes with the package.

    python experiments/phase/train.py
"""

import sys

from vimunet.cli.experiment import train

if __name__ == "__main__":
    sys.exit(train("phase"))
