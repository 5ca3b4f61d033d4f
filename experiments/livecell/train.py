"""Train on LIVECell: cells in phase-contrast images.

Without further flags this is the ViM-UNet paper's recipe.

    python experiments/livecell/train.py --model vim_s
"""

import sys

from vimunet.cli.experiment import train

if __name__ == "__main__":
    sys.exit(train("livecell"))
