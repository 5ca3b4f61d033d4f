"""Score a model for nuclei: tuned on the validation images, reported on the test images.

python experiments/nuclei/evaluate.py --model RUN/best.safetensors --data DIR --output DIR
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import report
import splits

if __name__ == "__main__":
    score = partial(report.score_model, kind_of=splits.kind_of)
    report.main("Score a model for nuclei.", splits.nuclei, None, score)
