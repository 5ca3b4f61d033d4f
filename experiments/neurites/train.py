"""Train on the FIB-25 sample: neurites in isotropic electron microscopy.

Without further flags this is the recipe of the model that comes with the package.

    python experiments/neurites/train.py
"""

import sys

from vimunet.cli.experiment import train

if __name__ == "__main__":
    sys.exit(train("neurites"))
