"""Score a model on Synapse: eight abdominal organs in slices of CT.

Dice, HD95 and more of whole volumes: as published, with the default and the tuned reading, and the
ceiling.

    python experiments/synapse/evaluate.py --model vim_t
"""

import sys

from vimunet.cli.experiment import evaluate

if __name__ == "__main__":
    sys.exit(evaluate("synapse"))
