"""Score a model on LIVECell: cells in phase-contrast images.

mSA with the published, default and tuned thresholds, and the ceiling.

    python experiments/livecell/evaluate.py --model vim_s
"""

import sys

from vimunet.cli.experiment import evaluate

if __name__ == "__main__":
    sys.exit(evaluate("livecell"))
