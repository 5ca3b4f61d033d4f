r"""Turn nnU-Net's predictions into objects with thresholds chosen on validation images.

The counterpart of `vimunet tune` for nnU-Net: both choose among the same values, so that neither
has better thresholds than the other.

    python experiments/benchmark/nnunet_tune.py TEST_PREDICTIONS --val-predictions DIR \
        --val-labels DIR --output FOLDER
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from tqdm import tqdm

from vimunet.bridges.nnunet import find_predictions, read_prediction
from vimunet.bridges.predictions import open_predictions
from vimunet.io.atomic import replacing
from vimunet.representations.boundaries import Boundaries
from vimunet.scores.objects import mean_segmentation_accuracy


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("predictions", type=Path, help="nnU-Net's predictions of the test images")
    flags.add_argument("--val-predictions", type=Path, required=True, help="of validation images")
    flags.add_argument("--val-labels", type=Path, required=True, help="annotated objects of these")
    flags.add_argument("--output", type=Path, required=True, help="folder for label images")
    flags.add_argument("--neurites", action="store_true", help="there is no background")
    options = flags.parse_args()
    chosen = choose(options.val_predictions, options.val_labels, Boundaries(not options.neurites))
    print(chosen)
    for name, file in find_predictions(options.predictions).items():
        with replacing(options.output / f"{name}.tif") as temporary:
            labels = read_prediction(file, representation=chosen)
            tifffile.imwrite(temporary, labels, compression="zlib")


def choose(predictions: Path, labels: Path, representation: Boundaries) -> Boundaries:
    """Return the representation with the thresholds that score best, and print its mSA."""
    truth = open_predictions(labels)
    grid = representation.threshold_grid()
    scores = {}
    for values in tqdm(list(itertools.product(*grid.values()))):
        candidate = replace(representation, **dict(zip(grid, values, strict=True)))
        scores[candidate] = np.mean(
            [
                mean_segmentation_accuracy(
                    found := read_prediction(file, representation=candidate),
                    truth.read(name, found.shape),
                    labelled_pixels_only=not representation.has_background,
                )
                for name, file in find_predictions(predictions).items()
            ]
        )
    best = max(scores, key=lambda candidate: scores[candidate])
    print(f"mSA of the validation images {scores[best]:.4f}")
    return best


if __name__ == "__main__":
    main()
