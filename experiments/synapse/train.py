"""Train on Synapse: eight abdominal organs in slices of CT.

Without further flags this is VM-UNet's recipe.

    python experiments/synapse/train.py --model vim_t
"""

import sys

from vimunet.cli.experiment import train

if __name__ == "__main__":
    sys.exit(train("synapse"))
