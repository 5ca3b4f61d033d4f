"""Score a model on CREMI: neurites in sections of the adult fly brain (electron microscopy).

mSA with the published, default and tuned thresholds, and the ceiling.

    python experiments/cremi/evaluate.py --model vim_t
"""

import sys

from vimunet.cli.experiment import evaluate

if __name__ == "__main__":
    sys.exit(evaluate("cremi"))
