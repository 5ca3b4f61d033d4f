"""Score a model for neurites: tuned on the validation images, reported on the test images.

The test is reported twice: with the labels as they are, and in `OUTPUT/tidy` without their specks.

python experiments/neurites/evaluate.py --model RUN/best.safetensors --data DIR --output DIR
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import report
import splits

from vimunet.data import Sample


def score(
    model_file: Path, val_samples: list[Sample], test_samples: list[Sample], output: Path
) -> dict[str, Any]:
    """Score as they are and tidied labels; see `report.score_model`."""
    tidied = [Sample(sample.name, partial(read_without_specks, sample)) for sample in test_samples]
    tidy = report.score_model(model_file, val_samples, tidied, output / "tidy")
    summary = report.score_model(model_file, val_samples, test_samples, output)
    return {**summary, "test_without_specks": tidy["test"]}


def read_without_specks(sample: Sample) -> Any:
    """Read a sample and tidy its labels."""
    image, labels = sample.read()
    assert labels is not None  # the splits only hold samples with labels
    return image, splits.without_specks(labels)


if __name__ == "__main__":
    report.main("Score a model for neurites.", splits.neurites, None, score)
