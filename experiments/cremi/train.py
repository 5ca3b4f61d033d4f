"""Train on CREMI: neurites in sections of the adult fly brain (electron microscopy).

Without further flags this is the ViM-UNet paper's recipe.

    python experiments/cremi/train.py --model vim_t
"""

import sys

from vimunet.cli.experiment import train

if __name__ == "__main__":
    sys.exit(train("cremi"))
