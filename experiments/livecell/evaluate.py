"""Score a model on LIVECell: mSA with the paper's, default and tuned thresholds, and the ceiling.

python experiments/livecell/evaluate.py --model runs/NAME/best.safetensors --data DIR --output DIR
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import report
import splits

if __name__ == "__main__":
    report.main("Score a model on LIVECell.", splits.official, splits.stand_in)
