"""How well predicted labels agree with annotated ones.

`SCORES` is what a representation names as its score: what a training is judged by, and what
thresholds are tuned for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vimunet.scores.classes import dice_and_iou
from vimunet.scores.objects import mean_segmentation_accuracy


@dataclass(frozen=True)
class Score:
    """A way to score one image.

    Attributes:
        names: What is measured; the first decides.
        measure: Gives a number for each name, the more the better, from prediction, labels, and
            whether only labelled pixels are judged.
    """

    names: tuple[str, ...]
    measure: Callable[[np.ndarray, np.ndarray, bool], tuple[float, ...]]


def _of_objects(
    prediction: np.ndarray, labels: np.ndarray, labelled_pixels_only: bool
) -> tuple[float, ...]:
    score = mean_segmentation_accuracy(
        prediction, labels, labelled_pixels_only=labelled_pixels_only
    )
    return (score,)


def _of_classes(
    prediction: np.ndarray, labels: np.ndarray, labelled_pixels_only: bool
) -> tuple[float, ...]:
    highest = max(int(prediction.max(initial=0)), int(labels.max(initial=0)))
    return dice_and_iou(prediction, labels, max(highest + 1, 2))


SCORES = {"mSA": Score(("mSA",), _of_objects), "Dice": Score(("Dice", "IoU"), _of_classes)}
"""By the name of the number that decides."""
