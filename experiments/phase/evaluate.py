"""Score a model on Usiigaci: cells in phase contrast.

mSA with the published, default and tuned thresholds, and the ceiling.

    python experiments/phase/evaluate.py
"""

import sys

from vimunet.cli.experiment import evaluate

if __name__ == "__main__":
    sys.exit(evaluate("phase"))
