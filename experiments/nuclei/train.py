"""Train on the 2018 Data Science Bowl: nuclei.

Without further flags this is the recipe of the model that comes with the package.

    python experiments/nuclei/train.py
"""

import sys

from vimunet.cli.experiment import train

if __name__ == "__main__":
    sys.exit(train("nuclei"))
