"""Train on ISIC: skin lesions in dermoscopic images.

Without further flags this is VM-UNet's recipe.

    python experiments/isic/train.py --model vim_t
"""

import sys

from vimunet.cli.experiment import train

if __name__ == "__main__":
    sys.exit(train("isic"))
