"""The thresholds of a model, chosen on images with labels: the verb, and the search under it."""

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from vimunet.axes import PerAxis
from vimunet.io.pairs import Sample
from vimunet.representations import Representation
from vimunet.scores import SCORES
from vimunet.scores.statistics import mean_defined
from vimunet.segmentation.model_file import TrainedModel
from vimunet.segmentation.predict import predict

_NO_MATTER = ("device", "batch_size")
"""Options of `predict` to which the thresholds do not belong."""


@dataclass(frozen=True)
class Tuned:
    """Result of `tune`.

    Attributes:
        model: The model with the best thresholds; its `info` tells how they were chosen.
        score: Name of the score that decided.
        before: Its mean over the images with the thresholds that the model came with.
        after: The same with the best.
        table: One row per combination tried, the first one as the model came: the fields and the
            score.
    """

    model: TrainedModel
    score: str
    before: float
    after: float
    table: list[dict[str, float]]


def tune(
    model: TrainedModel,
    samples: Sequence[Sample],
    *,
    labelled_pixels_only: bool | None = None,
    spacing: PerAxis[float] | None = None,
    progress: bool = False,
    **options: Any,
) -> Tuned:
    """Choose how the maps of a model are read, by its score on images with labels.

    Args:
        model: Stays as it is.
        samples: Images with labels, one or more.
        labelled_pixels_only: Score only where labels are not 0. None: if the model says that every
            pixel belongs to an object.
        spacing: Size of a voxel along each axis, for samples that do not tell it.
        progress: Show a bar on the screen.
        **options: Keywords of `predict`.

    Raises:
        ValueError: If there are no samples, or one has no labels.
    """
    representation = model.representation
    if representation.labels_are_classes and labelled_pixels_only:
        raise ValueError("`labelled_pixels_only` must be left out for classes.")
    if labelled_pixels_only is None:
        labelled_pixels_only = not representation.has_background
    maps, labels, spacings = [], [], []
    for sample in tqdm(samples, unit="image", disable=None if progress else True):
        image, annotated = sample.read()
        if annotated is None:
            raise ValueError(f"{sample.name}: tuning needs labels, this sample has none.")
        maps.append(predict(image, model, **options))
        labels.append(annotated)
        spacings.append(spacing if sample.spacing is None else sample.spacing)
    tuned, after, table = tune_thresholds(
        representation, maps, labels, labelled_pixels_only=labelled_pixels_only, spacings=spacings
    )
    score = representation.score
    note = {
        "images": [sample.name for sample in samples],
        f"{score}_before": table[0][score],
        score: after,
        "labelled_pixels_only": labelled_pixels_only,
        "prediction": {name: options[name] for name in options if name not in _NO_MATTER},
    }
    found = replace(model, representation=tuned, info={**model.info, "tuned": note})
    return Tuned(found, score, table[0][score], after, table)


def tune_thresholds(
    representation: Representation,
    maps: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    *,
    labelled_pixels_only: bool = False,
    spacings: Sequence[PerAxis[float] | None] | None = None,
) -> tuple[Any, float, list[dict[str, float]]]:
    """Choose the decoding thresholds that score best on validation images.

    Tries every combination of the present thresholds and those of `threshold_grid()`. Between
    equal scores the one that changes fewer thresholds wins, then the earlier one in the grid.

    Args:
        representation: What the maps mean.
        maps: One (m, [z,] y, x) per image, as `predict` returns them.
        labels: One ([z,] y, x) per image, integer, 0 = background.
        labelled_pixels_only: As in `evaluate_objects`.
        spacings: Size of a voxel of each image.

    Returns:
        The representation with the best thresholds, its mean score over the images, and one row
        per combination tried, the present one first: the thresholds and their score.

    Raises:
        ValueError: If there are no images, or not as many maps as labels.
    """
    measure = SCORES[representation.score].measure

    def score(prediction: np.ndarray, reference: np.ndarray) -> float:
        return measure(prediction, reference, labelled_pixels_only)[0]

    return search_thresholds(
        representation, maps, labels, representation.score, score, spacings=spacings
    )


def search_thresholds(
    representation: Representation,
    maps: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    measure: str,
    score: Callable[[np.ndarray, np.ndarray], float],
    *,
    spacings: Sequence[PerAxis[float] | None] | None = None,
) -> tuple[Any, float, list[dict[str, float]]]:
    """Choose thresholds as `tune_thresholds` does, by any score.

    Args:
        representation: As in `tune_thresholds`.
        maps: As in `tune_thresholds`.
        labels: As in `tune_thresholds`.
        measure: Name of the score in the table.
        score: Gives a number, the more the better, for a prediction and its labels; nan leaves the
            image out.
        spacings: As in `tune_thresholds`.

    Returns:
        As `tune_thresholds`, with the mean of `score`.

    Raises:
        ValueError: If there are no images, or not as many maps as labels.
    """
    if not maps or len(maps) != len(labels):
        raise ValueError(
            f"`maps` and `labels` must hold the same number of images, at least one, "
            f"got {len(maps)} and {len(labels)}."
        )
    spacings = [None] * len(maps) if spacings is None else spacings
    grid = representation.threshold_grid()
    present = tuple(getattr(representation, field) for field in grid)
    choices = [
        dict.fromkeys([now, *values]) for now, values in zip(present, grid.values(), strict=True)
    ]
    combinations = sorted(
        itertools.product(*choices), key=lambda values: sum(map(operator.ne, values, present))
    )
    best, best_score, table = representation, -1.0, []
    for values in combinations:
        thresholds = dict(zip(grid, values, strict=True))
        candidate = representation.tuned(**thresholds)
        scores = [
            score(candidate.decode(of_image, spacing), reference)
            for of_image, reference, spacing in zip(maps, labels, spacings, strict=True)
        ]
        mean = mean_defined(np.array(scores))
        table.append({**thresholds, measure: mean})
        if mean > best_score:
            best, best_score = candidate, mean
    return best, best_score, table
