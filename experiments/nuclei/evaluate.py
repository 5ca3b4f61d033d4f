"""Score a model on the 2018 Data Science Bowl: nuclei.

mSA with the published, default and tuned thresholds, and the ceiling; also for each kind of image.

    python experiments/nuclei/evaluate.py
"""

import sys

from vimunet.cli.experiment import evaluate

if __name__ == "__main__":
    sys.exit(evaluate("nuclei"))
