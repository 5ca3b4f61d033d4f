"""Scores of label images: how well predicted objects agree with annotated ones.

`evaluate` scores one image, `evaluate_folders` two folders of files, `tune_thresholds` picks the
decoding thresholds of a representation on validation images. Which objects meet is found in
`vimunet.matching`; several methods are set against each other in `vimunet.comparison`.
Scores of classes (Dice, Hausdorff distance) are in `vimunet.semantic_evaluation`.
"""

import csv
import io
import itertools
import json
import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vimunet.data.folder import by_name, list_images, read_labels
from vimunet.files import replacing
from vimunet.matching import Overlap, ratio
from vimunet.messages import some_of

Protocol = Literal["fair", "paper"]

_log = logging.getLogger(__name__)

_COUNTS = ("TP", "FP", "FN")
_MOST_DRAWN = 1_000_000  # numbers of images in memory


def evaluate(
    prediction: np.ndarray,
    labels: np.ndarray,
    *,
    threshold: float = 0.5,
    protocol: Protocol = "fair",
    labelled_pixels_only: bool = False,
) -> dict[str, float]:
    """Score the predicted objects of one image.

    Two objects match if IoU = shared pixels / pixels of either >= a threshold. With TP matched
    pairs, FP predicted objects and FN objects of the labels without a partner, the segmentation
    accuracy is SA = TP / (TP + FP + FN).

    | key | meaning |
    | --- | --- |
    | mSA | mean of SA at IoU 0.5, 0.55, ... 0.95 |
    | SA50, SA75 | SA at IoU 0.5 and 0.75 |
    | threshold, TP, FP, FN | the IoU threshold of these and the next three lines; the counts |
    | precision, recall, F1 | TP / (TP + FP), TP / (TP + FN), 2 TP / (2 TP + FP + FN) |
    | SQ | segmentation quality, the mean IoU of the matched pairs; 0 if there are none |
    | RQ, PQ | recognition quality, the same as F1; panoptic quality, SQ * RQ |
    | VI_split, VI_merge | variation of information, bits, 0 is best; on labelled pixels |
    | ARE, rand_precision, rand_recall | adapted Rand error, 0 is best; on labelled pixels |

    Empty images: an image without objects of which nothing is predicted is right, and each of
    mSA, SA, precision, recall, F1, SQ, RQ and PQ is 1. If only one of the two is empty they are
    all 0. VI and ARE count labelled pixels only, so without objects in `labels` they are nan.

    Args:
        prediction: (y, x), or any other shape, integer ids, 0 = background.
        labels: Same shape, integer ids, 0 = background.
        threshold: IoU in (0, 1] for the counts and what follows from them.
        protocol: "paper" gives the published numbers to the last digit: empty on empty is 0, and
            an IoU of exactly 0.6, 0.65, ... 0.95 misses its own threshold, because those of
            `np.arange(0.5, 1, 0.05)` are a rounding error too large. "fair" has neither fault.
        labelled_pixels_only: Score only where `labels` is not 0, as if the prediction were 0
            elsewhere. For predictions that fill the image, scored against labels that leave the
            boundaries unlabelled. Where no pixel is labelled, anything is right.

    Returns:
        The scores by name.

    Raises:
        TypeError: If one of the images is not of an integer type.
        ValueError: If the shapes differ, an id is negative, or an option is out of range.

    Source:
        mSA: Caicedo et al. 2019, doi 10.1038/s41592-019-0612-7, as in
        `elf.evaluation.mean_segmentation_accuracy`, which ViM-UNet is published with.
        PQ: Kirillov et al. 2019, https://arxiv.org/abs/1801.00868; there IoU > 0.5, here >=.

    Examples:
        One of two objects is found in 3 of its 4 pixels:

        >>> labels = np.array([[1, 1, 0, 2], [1, 1, 0, 2]])
        >>> prediction = np.array([[5, 5, 0, 0], [5, 0, 0, 0]])
        >>> scores = evaluate(prediction, labels)
        >>> scores["TP"], scores["FN"], scores["SA50"], scores["SQ"], scores["mSA"]
        (1, 1, 0.5, 0.75, 0.3)
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"`threshold` must be in (0, 1], got {threshold}.")
    overlap = Overlap.between(prediction, labels, labelled_pixels_only)
    return scores_of(overlap, threshold, protocol)


def scores_of(
    overlap: Overlap, threshold: float = 0.5, protocol: Protocol = "fair"
) -> dict[str, float]:
    """Compute the scores of `evaluate` from the table of one image."""
    accuracies = _segmentation_accuracies(overlap, protocol)
    matched = overlap.matches(threshold, *_rules(protocol)[1:])[2]
    true_positives = matched.size
    false_positives = overlap.num_predicted - true_positives
    false_negatives = overlap.num_labelled - true_positives
    objects = overlap.num_predicted + overlap.num_labelled
    nothing = 1.0 if objects == 0 and protocol == "fair" else 0.0
    f1 = ratio(2 * true_positives, objects, nothing)
    sq = ratio(float(matched.sum()), true_positives, nothing)
    split, merge = overlap.variation_of_information()
    error, rand_precision, rand_recall = overlap.adapted_rand_error()
    return {
        "mSA": float(np.mean(accuracies)),
        "SA50": accuracies[0],
        "SA75": accuracies[5],
        "threshold": threshold,
        "TP": true_positives,
        "FP": false_positives,
        "FN": false_negatives,
        "precision": ratio(true_positives, overlap.num_predicted, nothing),
        "recall": ratio(true_positives, overlap.num_labelled, nothing),
        "F1": f1,
        "PQ": sq * f1,
        "SQ": sq,
        "RQ": f1,
        "VI_split": split,
        "VI_merge": merge,
        "ARE": error,
        "rand_precision": rand_precision,
        "rand_recall": rand_recall,
    }


def mean_segmentation_accuracy(
    prediction: np.ndarray,
    labels: np.ndarray,
    *,
    protocol: Protocol = "fair",
    labelled_pixels_only: bool = False,
) -> float:
    """Compute mSA alone; see `evaluate`, of which this is one number.

    Args:
        prediction: (y, x), or any other shape, integer ids, 0 = background.
        labels: Same shape, integer ids, 0 = background.
        protocol: "fair" or "paper".
        labelled_pixels_only: Score only where `labels` is not 0.

    Returns:
        Mean over the IoU thresholds 0.5, 0.55, ... 0.95 of TP / (TP + FP + FN), in [0, 1].

    Raises:
        TypeError: If one of the images is not of an integer type.
        ValueError: If the shapes differ, an id is negative, or `protocol` is unknown.
    """
    overlap = Overlap.between(prediction, labels, labelled_pixels_only)
    return float(np.mean(_segmentation_accuracies(overlap, protocol)))


def evaluate_folders(
    predictions: str | Path,
    labels: str | Path,
    *,
    threshold: float = 0.5,
    protocol: Protocol = "fair",
    labelled_pixels_only: bool = False,
) -> dict[str, Any]:
    """Score all label images of a folder against those of the same name in another.

    Files are paired by name without extension, one pair is in memory at a time. An image of
    `labels` without a prediction is scored as an empty prediction, with a warning.

    Args:
        predictions: Folder of predicted label images.
        labels: Folder of annotated label images.
        threshold: As in `evaluate`.
        protocol: As in `evaluate`.
        labelled_pixels_only: As in `evaluate`.

    Returns:
        `images`, `mean`, `total` and `confidence` of `summarize`; `missing` and `extra`, the
        names without a prediction and without labels; `settings`, the three options. For
        `write_json` and `write_csv`.

    Raises:
        FileNotFoundError: If a folder does not exist or holds no images.
        ValueError: If two files of a folder differ only in their extension, the folders have no
            name in common, or the shapes of a pair differ. The message names the file.
    """
    pairs, missing, extra = pair_by_name(predictions, labels)
    settings: dict[str, Any] = {
        "threshold": threshold,
        "protocol": protocol,
        "labelled_pixels_only": labelled_pixels_only,
    }
    images = []
    for name, found, file in pairs:
        reference = read_labels(file)
        prediction = np.zeros_like(reference) if found is None else read_labels(found)
        try:
            scores = evaluate(prediction, reference, **settings)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{found or file}: {error}") from error
        images.append({"name": name, **scores})
    return {**summarize(images), "missing": missing, "extra": extra, "settings": settings}


def summarize(images: list[dict[str, Any]], counts: Sequence[str] = _COUNTS) -> dict[str, Any]:
    """Average the scores of images.

    Args:
        images: One dictionary per image, at least one: its `name` and the scores of `evaluate`.
        counts: Those that are counts, which are summed up.

    Returns:
        `images` as given; `mean`, unweighted over images, nan left out; `total`, the counts over
        all images; `confidence`, the central 95 % of the mean, see `confidence_interval`.
    """
    keys = [key for key in images[0] if key not in ("name", "threshold", *counts)]
    values = {key: np.array([scores[key] for scores in images], dtype=float) for key in keys}
    return {
        "images": images,
        "mean": {key: mean_defined(values[key]) for key in keys},
        "total": {key: sum(scores[key] for scores in images) for key in counts},
        "confidence": {key: confidence_interval(values[key]) for key in keys},
    }


def confidence_interval(scores: Iterable[float], samples: int = 2000) -> list[float]:
    """Estimate how uncertain the mean over images is.

    Args:
        scores: One per image; nan is left out.
        samples: Number of bootstrap samples: images drawn with replacement, always the same
            draws for the same number of images.

    Returns:
        Low and high end of the central 95 % of the means; nan if there is no score. With one
        image both are its score, which says nothing.
    """
    values = np.asarray(list(scores), dtype=float)
    values = values[~np.isnan(values)]
    if not values.size:
        return [float("nan"), float("nan")]
    means = [values[chosen].mean(axis=1) for chosen in resamples(values.size, samples)]
    return central_part(np.concatenate(means))


def resamples(count: int, samples: int = 2000) -> Iterator[np.ndarray]:
    """Draw images with replacement, always the same draws for the same number of images.

    Args:
        count: Number of images.
        samples: Number of draws.

    Yields:
        (k, count) which images k bootstrap samples have, until there were `samples` of them.
    """
    rng = np.random.default_rng(0)
    at_a_time = max(1, _MOST_DRAWN // count)
    for start in range(0, samples, at_a_time):
        yield rng.integers(count, size=(min(at_a_time, samples - start), count))


def central_part(draws: Iterable[float]) -> list[float]:
    """Return low and high end of the central 95 %; nan is left out, and returned if all are."""
    values = np.array(list(draws), dtype=float)
    values = values[~np.isnan(values)]
    if not values.size:
        return [float("nan"), float("nan")]
    return np.percentile(values, [2.5, 97.5]).tolist()


def write_json(path: str | Path, result: dict[str, Any]) -> None:
    """Write the result of `evaluate_folders` as JSON, nan as null, all of it or nothing."""
    _write(path, json.dumps(_without_nan(result), indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, result: dict[str, Any]) -> None:
    """Write the result of `evaluate_folders` as a table, all of it or nothing.

    One row per image, then the rows `mean`, `low` and `high` (of the confidence interval); for
    classes also `micro`, `micro low` and `micro high`. Scores that are not defined are left empty.
    """
    summary = [{"name": "mean", **result["mean"]}]
    summary += _ends(result["confidence"])
    if "micro" in result:
        summary += [{"name": "micro", **result["micro"]}]
        summary += _ends(result["micro_confidence"], "micro ")
    write_rows(path, result["images"] + summary)


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, nan and None as nothing, all of it or nothing; the first has all keys."""
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(_without_nan(row) for row in rows)
    _write(path, text.getvalue())


def tune_thresholds(
    representation: Any,
    maps: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    *,
    labelled_pixels_only: bool = False,
) -> tuple[Any, float, list[dict[str, float]]]:
    """Choose the decoding thresholds that score best on validation images.

    Tries every combination of the present thresholds and those of `threshold_grid()`. Between
    equal scores the one that changes fewer thresholds wins, then the earlier one in the grid.

    Args:
        representation: A representation from `vimunet.representation`.
        maps: One (m, y, x) per image, in [0, 1], as `predict` returns them.
        labels: One (y, x) per image, integer ids, 0 = background.
        labelled_pixels_only: As in `evaluate`.

    Returns:
        The representation with the best thresholds, its mean mSA over the images, and one row
        per combination tried, the present one first: the thresholds and their `mSA`.

    Raises:
        ValueError: If there are no images, or not as many maps as labels.
    """
    score = partial(mean_segmentation_accuracy, labelled_pixels_only=labelled_pixels_only)
    return search_thresholds(representation, maps, labels, "mSA", score)


def search_thresholds(
    representation: Any,
    maps: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    measure: str,
    score: Callable[[np.ndarray, np.ndarray], float],
) -> tuple[Any, float, list[dict[str, float]]]:
    """Choose thresholds as `tune_thresholds` does, by any score.

    Args:
        representation: As in `tune_thresholds`.
        maps: As in `tune_thresholds`.
        labels: As in `tune_thresholds`.
        measure: Name of the score in the table.
        score: Gives a number, the more the better, for a (y, x) prediction and its labels; nan
            leaves the image out.

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
        candidate = replace(representation, **thresholds)
        scores = [
            score(candidate.decode(of_image), reference)
            for of_image, reference in zip(maps, labels, strict=True)
        ]
        mean = mean_defined(np.array(scores))
        table.append({**thresholds, measure: mean})
        if mean > best_score:
            best, best_score = candidate, mean
    return best, best_score, table


def _rules(protocol: Protocol) -> tuple[np.ndarray, float]:
    """IoU thresholds of mSA, and how far below them an IoU still counts."""
    rules = {
        "fair": (np.arange(50, 100, 5) / 100, 1e-12),
        "paper": (np.arange(0.5, 1.0, 0.05), 0.0),
    }
    if protocol not in rules:
        raise ValueError(f"Unknown protocol {protocol!r}. Known: {', '.join(rules)}.")
    return rules[protocol]


def _segmentation_accuracies(overlap: Overlap, protocol: Protocol) -> list[float]:
    thresholds, tolerance = _rules(protocol)
    objects = overlap.num_predicted + overlap.num_labelled
    if objects == 0:
        return [1.0 if protocol == "fair" else 0.0] * len(thresholds)
    matched = [overlap.matches(threshold, tolerance)[0].size for threshold in thresholds]
    return [pairs / (objects - pairs) for pairs in matched]


def mean_defined(values: np.ndarray, otherwise: float = float("nan")) -> float:
    """Average what is not nan; `otherwise` if all is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else otherwise


def _ends(confidence: dict[str, list[float]], prefix: str = "") -> list[dict[str, Any]]:
    """Turn intervals into two rows of a table."""
    return [
        {"name": f"{prefix}{title}", **{key: ends[i] for key, ends in confidence.items()}}
        for i, title in enumerate(("low", "high"))
    ]


def pair_by_name(
    predictions: str | Path, labels: str | Path
) -> tuple[list[tuple[str, Path | None, Path]], list[str], list[str]]:
    """Pair the images of two folders by name without extension.

    Args:
        predictions: Folder of predicted images.
        labels: Folder of annotated images.

    Returns:
        Name, prediction (None if there is none) and labels of each file of `labels`; the names
        without a prediction, and those without labels. A warning tells both.

    Raises:
        FileNotFoundError: If a folder does not exist or holds no images.
        ValueError: If two files of a folder differ only in their extension, or the two folders
            have no name in common.
    """
    predicted_files = by_name(list_images(predictions))
    labelled_files = by_name(list_images(labels))
    check_names(predictions, predicted_files, labels, labelled_files)
    missing = sorted(labelled_files.keys() - predicted_files.keys())
    extra = sorted(predicted_files.keys() - labelled_files.keys())
    if missing:
        _log.warning("No prediction, scored as empty: %s", ", ".join(missing))
    if extra:
        _log.warning("Prediction without labels, not scored: %s", ", ".join(extra))
    pairs = [(name, predicted_files.get(name), file) for name, file in labelled_files.items()]
    return pairs, missing, extra


def check_names(
    predictions: str | Path, predicted: Iterable[str], labels: str | Path, labelled: Iterable[str]
) -> None:
    """Refuse a folder of predictions if none has the name of a label image."""
    if not set(predicted) & set(labelled):
        raise ValueError(
            f"{predictions} must hold predictions for the images of {labels}, got "
            f"{some_of(predicted)} and there {some_of(labelled)}. "
            "Names must be equal, without the extension."
        )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _write(path: str | Path, text: str) -> None:
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")
