"""Score a model on ISIC: skin lesions in dermoscopic images.

Dice, IoU and more: as published, with the default and the tuned threshold, and the ceiling.

    python experiments/isic/evaluate.py --model vim_t
"""

import sys

from vimunet.cli.experiment import evaluate

if __name__ == "__main__":
    sys.exit(evaluate("isic"))
