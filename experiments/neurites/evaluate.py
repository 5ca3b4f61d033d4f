"""Score a model for neurites: tuned on the validation images, reported on the test images.

python experiments/neurites/evaluate.py --model RUN/best.safetensors --data DIR --output DIR
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import report
import splits

if __name__ == "__main__":
    report.main("Score a model for neurites.", splits.neurites, None)
