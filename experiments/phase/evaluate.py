"""Score a model for phase contrast: tuned on the validation images, reported on the test images.

python experiments/phase/evaluate.py --model RUN/best.safetensors --data DIR --output DIR
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import report
import splits

if __name__ == "__main__":
    report.main("Score a model for cells in phase contrast.", splits.phase, None)
