"""Scores of objects: how well predicted ones agree with annotated ones, in images and volumes.

Which objects meet is found in `matching.py`; what is split and merged, in `partitions.py`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vimunet.protocol import Protocol, checked_protocol
from vimunet.scores.matching import Overlap, ratio
from vimunet.scores.partitions import adapted_rand_error, variation_of_information
from vimunet.scores.statistics import confidence_interval, mean_defined

_COUNTS = ("TP", "FP", "FN")


def evaluate_objects(
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
        prediction: ([z,] y, x), or any other shape, integer ids, 0 = background.
        labels: Same shape, integer ids, 0 = background.
        threshold: IoU in (0, 1] for the counts and what follows from them.
        protocol: "published" gives the published numbers to the last digit: empty on empty is 0,
            and an IoU of exactly 0.6, 0.65, ... 0.95 misses its own threshold, because those of
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
        >>> scores = evaluate_objects(prediction, labels)
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
    """Compute the scores of `evaluate_objects` from the table of one image."""
    protocol = checked_protocol(protocol)
    accuracies = _segmentation_accuracies(overlap, protocol)
    matched = overlap.matches(threshold, *_rules(protocol)[1:])[2]
    true_positives = matched.size
    false_positives = overlap.num_predicted - true_positives
    false_negatives = overlap.num_labelled - true_positives
    objects = overlap.num_predicted + overlap.num_labelled
    nothing = 1.0 if objects == 0 and protocol == "fair" else 0.0
    f1 = ratio(2 * true_positives, objects, nothing)
    sq = ratio(float(matched.sum()), true_positives, nothing)
    split, merge = variation_of_information(overlap)
    error, rand_precision, rand_recall = adapted_rand_error(overlap)
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
    """Compute mSA alone; see `evaluate_objects`, of which this is one number.

    Args:
        prediction: ([z,] y, x), or any other shape, integer ids, 0 = background.
        labels: Same shape, integer ids, 0 = background.
        protocol: "fair" or "published".
        labelled_pixels_only: Score only where `labels` is not 0.

    Returns:
        Mean over the IoU thresholds 0.5, 0.55, ... 0.95 of TP / (TP + FP + FN), in [0, 1].

    Raises:
        TypeError: If one of the images is not of an integer type.
        ValueError: If the shapes differ, an id is negative, or `protocol` is unknown.
    """
    overlap = Overlap.between(prediction, labels, labelled_pixels_only)
    return float(np.mean(_segmentation_accuracies(overlap, checked_protocol(protocol))))


def summarize(images: list[dict[str, Any]], counts: Sequence[str] = _COUNTS) -> dict[str, Any]:
    """Average the scores of images.

    Args:
        images: One dictionary per image, at least one: its `name` and the scores of
            `evaluate_objects`.
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


def _rules(protocol: Protocol) -> tuple[np.ndarray, float]:
    """IoU thresholds of mSA, and how far below them an IoU still counts."""
    if protocol == "fair":
        return np.arange(50, 100, 5) / 100, 1e-12
    return np.arange(0.5, 1.0, 0.05), 0.0


def _segmentation_accuracies(overlap: Overlap, protocol: Protocol) -> list[float]:
    thresholds, tolerance = _rules(protocol)
    objects = overlap.num_predicted + overlap.num_labelled
    if objects == 0:
        return [1.0 if protocol == "fair" else 0.0] * len(thresholds)
    matched = [overlap.matches(threshold, tolerance)[0].size for threshold in thresholds]
    return [pairs / (objects - pairs) for pairs in matched]


def evaluate_stack(prediction: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Score each slice of a stack by itself, and put the scores together.

    Args:
        prediction: (s, y, x) integer ids, 0 = background, or (y, x).
        labels: Same shape.

    Returns:
        The scores of `evaluate_objects`: counts are sums over the slices and all else is the mean.

    Raises:
        TypeError: If one of them does not hold integers.
        ValueError: If the shapes differ or a label is negative.
    """
    if labels.ndim != 3 or labels.shape != prediction.shape:
        return evaluate_objects(prediction, labels)
    slices = [evaluate_objects(*pair) for pair in zip(prediction, labels, strict=True)]
    summary = summarize([{"name": str(z), **scores} for z, scores in enumerate(slices)])
    together = {**summary["mean"], **summary["total"], "threshold": slices[0]["threshold"]}
    return {name: together[name] for name in slices[0]}
