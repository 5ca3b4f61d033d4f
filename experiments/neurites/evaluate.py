"""Score a model on the FIB-25 sample: neurites in isotropic electron microscopy.

mSA with the published, default and tuned thresholds, and the ceiling; of the test images also
without the specks of their labels.

    python experiments/neurites/evaluate.py
"""

import sys

from vimunet.cli.experiment import evaluate

if __name__ == "__main__":
    sys.exit(evaluate("neurites"))
