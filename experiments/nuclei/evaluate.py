"""Score a model for nuclei: tuned on the validation images, reported on the test images.

python experiments/nuclei/evaluate.py --model RUN/best.safetensors --data DIR --output DIR
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import report
import splits


def kind_of(image: np.ndarray) -> str:
    """Tell fluorescence, which has a dark background, from transmitted light."""
    return "fluorescence" if np.median(image) < 128 else "transmitted light"


if __name__ == "__main__":
    score = partial(report.score_model, kind_of=kind_of)
    report.main("Score a model for nuclei.", splits.nuclei, None, score)
