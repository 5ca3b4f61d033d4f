"""Score a model on ISIC: Dice, IoU and more, with default and tuned threshold, and as published.

python experiments/isic/evaluate.py --model runs/NAME/best.safetensors --data DIR --output DIR
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import semantic_report
import splits

if __name__ == "__main__":
    semantic_report.main("Score a model on ISIC.", splits.official, splits.stand_in)
