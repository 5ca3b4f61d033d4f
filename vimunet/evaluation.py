"""Scores of label images: how well predicted objects agree with annotated ones.

Everything is read from one sparse table, `Overlap`: how many pixels each predicted object shares
with each annotated one. `evaluate` scores one image, `evaluate_folders` two folders of files,
`tune_thresholds` picks the decoding thresholds of a representation on validation images.
Scores of classes (Dice, Hausdorff distance) are in `vimunet.semantic_evaluation`.
"""

import csv
import io
import itertools
import json
import logging
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vimunet.data.folder import list_images, read_labels
from vimunet.files import replacing

Protocol = Literal["fair", "paper"]

_log = logging.getLogger(__name__)

_COUNTS = ("TP", "FP", "FN")


@dataclass(frozen=True)
class Overlap:
    """How many pixels each predicted object shares with each object of the labels.

    One entry per pair that meets in at least one pixel. Objects are renumbered 1..n in the order
    of their ids, 0 is background, so ids may be as large as their dtype allows.
    Built by `Overlap.between`. Time and memory grow linearly with the number of pixels; only
    the runs of equal labels along x are sorted.

    Attributes:
        predicted: (k,) number of the predicted object, 0 = background.
        labelled: (k,) number of the object in the labels, 0 = background.
        pixels: (k,) shared pixels, > 0.
    """

    predicted: np.ndarray
    labelled: np.ndarray
    pixels: np.ndarray

    @classmethod
    def between(
        cls, prediction: np.ndarray, labels: np.ndarray, labelled_pixels_only: bool = False
    ) -> "Overlap":
        """Count the shared pixels of all objects.

        Args:
            prediction: (y, x), or any other shape, integer ids, 0 = background.
            labels: Same shape, integer ids, 0 = background.
            labelled_pixels_only: Leave out the pixels where `labels` is 0, as if both images
                ended there. For reference labels that leave the boundaries unlabelled (EM).

        Returns:
            The table.

        Raises:
            TypeError: If one of them is not of an integer type.
            ValueError: If the shapes differ, there are no pixels, or an id is negative.
        """
        prediction = _checked("prediction", prediction)
        labels = _checked("labels", labels)
        if prediction.shape != labels.shape:
            raise ValueError(
                f"`prediction` must have the shape of `labels` {labels.shape}, "
                f"got {prediction.shape}."
            )
        prediction, labels = prediction.ravel(), labels.ravel()
        changes = (prediction[1:] != prediction[:-1]) | (labels[1:] != labels[:-1])
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        lengths = np.diff(starts, append=prediction.size)
        if labelled_pixels_only:
            inside = labels[starts] != 0
            starts, lengths = starts[inside], lengths[inside]
        predicted, labelled = _renumbered(prediction[starts]), _renumbered(labels[starts])
        width = labelled.max(initial=0) + 1
        pairs, where = np.unique(predicted * width + labelled, return_inverse=True)
        pixels = np.bincount(where, weights=lengths, minlength=pairs.size).astype(np.int64)
        return cls(pairs // width, pairs % width, pixels)

    @property
    def num_predicted(self) -> int:
        """Number of predicted objects."""
        return int(self.predicted.max(initial=0))

    @property
    def num_labelled(self) -> int:
        """Number of objects in the labels."""
        return int(self.labelled.max(initial=0))

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicted object, object of the labels and IoU of each pair of objects that meet."""
        predicted_sizes = np.bincount(self.predicted, weights=self.pixels)
        labelled_sizes = np.bincount(self.labelled, weights=self.pixels)
        objects = (self.predicted > 0) & (self.labelled > 0)
        rows, columns, shared = (
            values[objects] for values in (self.predicted, self.labelled, self.pixels)
        )
        iou = shared / (predicted_sizes[rows] + labelled_sizes[columns] - shared)
        return rows, columns, iou

    def matched_iou(self, threshold: float, tolerance: float = 1e-12) -> np.ndarray:
        """Match predicted objects with objects of the labels, one to one.

        Pairs with IoU >= threshold may match. Above 0.5 an object has at most one such partner.
        At 0.5 and below, as many pairs as possible are matched, and among the ways to do so the
        one with the highest sum of IoU is taken.

        Args:
            threshold: In (0, 1].
            tolerance: How far an IoU may lie below `threshold` and still count. The default is
                above the rounding error of the division and below the distance of unequal
                fractions, so an IoU of exactly 3/5 counts at 0.6 and one pixel less does not
                (as long as the union has fewer than 1e10 pixels).

        Returns:
            (TP,) IoU of each matched pair.
        """
        rows, columns, iou = self._pairs
        close = iou >= threshold - tolerance
        rows, columns, iou = rows[close], columns[close], iou[close]
        if np.unique(rows).size == rows.size and np.unique(columns).size == columns.size:
            return iou
        # Conflicts are small islands: solve each on its own instead of the whole table.
        nodes = self.num_predicted + 1
        edges = (np.ones(rows.size), (rows, nodes + columns))
        size = nodes + self.num_labelled + 1
        _, island = connected_components(coo_array(edges, shape=(size, size)), directed=False)
        island = island[rows]
        order = np.argsort(island, kind="stable")
        borders = np.flatnonzero(np.diff(island[order])) + 1
        return np.concatenate(
            [_best_pairs(rows[i], columns[i], iou[i]) for i in np.split(order, borders)]
        )

    def variation_of_information(self, ignore_background: bool = True) -> tuple[float, float]:
        """Measure splits and merges by conditional entropy, in bits per pixel.

            split = H(prediction | labels),    merge = H(labels | prediction)

        split is what remains unknown of the prediction where the label is known: 0 if no object
        was split; n equal pieces of every object give log2(n). merge is the same the other way.

        Args:
            ignore_background: Leave out the pixels where `labels` is 0. Background of the
                prediction is one more object in either case.

        Returns:
            split and merge; nan if no pixel is counted.

        Source:
            Meila 2007, doi 10.1016/j.jmva.2006.11.013. Equal to scikit-image's with
            `ignore_labels=(0,)` and to elf's with `ignore_gt=[0]`; with
            `ignore_background=False` to the defaults of both.
        """
        predicted, labelled, pixels = self._counted(ignore_background)
        if not pixels.size:
            return float("nan"), float("nan")
        share = pixels / pixels.sum()
        of_predicted = pixels / np.bincount(predicted, weights=pixels)[predicted]
        of_labelled = pixels / np.bincount(labelled, weights=pixels)[labelled]
        # max: an entropy of zero must not come out as -0.0 or as a rounding error below it
        return (
            max(0.0, float(-np.sum(share * np.log2(of_labelled)))),
            max(0.0, float(-np.sum(share * np.log2(of_predicted)))),
        )

    def adapted_rand_error(self, ignore_background: bool = True) -> tuple[float, float, float]:
        """Compare which pairs of pixels lie in the same object.

            precision = pairs together in both / pairs together in the prediction
            recall    = pairs together in both / pairs together in the labels
            error     = 1 - 2 * precision * recall / (precision + recall)

        Merging objects lowers the precision, splitting them lowers the recall.

        Args:
            ignore_background: Leave out the pixels where `labels` is 0. Background of the
                prediction is one more object in either case.

        Returns:
            error, precision and recall; nan where no pair is counted.

        Source:
            Arganda-Carreras et al. 2015, doi 10.3389/fnana.2015.00142. Pairs are of two
            different pixels, as in scikit-image, whose error is equal, but whose precision and
            recall are each other's (up to 0.26). elf also pairs each pixel with itself.
        """
        predicted, labelled, pixels = self._counted(ignore_background)
        both, in_prediction, in_labels = (
            float(np.sum(sizes * (sizes - 1.0)))
            for sizes in (
                pixels,
                np.bincount(predicted, weights=pixels),
                np.bincount(labelled, weights=pixels),
            )
        )
        return (
            1 - _ratio(2 * both, in_prediction + in_labels, float("nan")),
            _ratio(both, in_prediction, float("nan")),
            _ratio(both, in_labels, float("nan")),
        )

    def _counted(self, ignore_background: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keep = self.labelled > 0 if ignore_background else np.ones(self.pixels.size, bool)
        return self.predicted[keep], self.labelled[keep], self.pixels[keep]


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
    accuracies = _segmentation_accuracies(overlap, protocol)
    matched = overlap.matched_iou(threshold, *_rules(protocol)[1:])
    true_positives = matched.size
    false_positives = overlap.num_predicted - true_positives
    false_negatives = overlap.num_labelled - true_positives
    objects = overlap.num_predicted + overlap.num_labelled
    nothing = 1.0 if objects == 0 and protocol == "fair" else 0.0
    f1 = _ratio(2 * true_positives, objects, nothing)
    sq = _ratio(float(matched.sum()), true_positives, nothing)
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
        "precision": _ratio(true_positives, overlap.num_predicted, nothing),
        "recall": _ratio(true_positives, overlap.num_labelled, nothing),
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
        ValueError: If two files of a folder differ only in their extension, or the shapes of a
            pair differ. The message names the file.
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


def summarize(images: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the scores of images.

    Args:
        images: One dictionary per image, at least one: its `name` and the scores of `evaluate`.

    Returns:
        `images` as given; `mean`, unweighted over images, nan left out; `total`, the counts over
        all images; `confidence`, the central 95 % of the mean, see `confidence_interval`.
    """
    keys = [key for key in images[0] if key not in ("name", "threshold", *_COUNTS)]
    values = {key: np.array([scores[key] for scores in images], dtype=float) for key in keys}
    return {
        "images": images,
        "mean": {key: mean_defined(values[key]) for key in keys},
        "total": {key: sum(scores[key] for scores in images) for key in _COUNTS},
        "confidence": {key: confidence_interval(values[key]) for key in keys},
    }


def confidence_interval(scores: Iterable[float], samples: int = 2000) -> list[float]:
    """Estimate how far the mean over images would move with other images of the same kind.

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
    return central_part(values[chosen].mean() for chosen in resamples(values.size, samples))


def resamples(count: int, samples: int = 2000) -> Iterator[np.ndarray]:
    """Draw images with replacement, always the same draws for the same number of images.

    Args:
        count: Number of images.
        samples: Number of draws.

    Yields:
        (count,) which images a bootstrap sample has.
    """
    rng = np.random.default_rng(0)
    for _ in range(samples):
        yield rng.integers(count, size=count)


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
    rows = [_without_nan(row) for row in result["images"] + summary]
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
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
        score = mean_defined(
            np.array(
                [
                    mean_segmentation_accuracy(
                        candidate.decode(image_maps),
                        reference,
                        labelled_pixels_only=labelled_pixels_only,
                    )
                    for image_maps, reference in zip(maps, labels, strict=True)
                ]
            )
        )
        table.append({**thresholds, "mSA": score})
        if score > best_score:
            best, best_score = candidate, score
    return best, best_score, table


def _checked(name: str, image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype == bool:
        raise TypeError(
            f"`{name}` must hold one integer per object, got a mask (bool). "
            "Number its objects with `skimage.measure.label` first."
        )
    if image.dtype.kind not in "iu":
        raise TypeError(f"`{name}` must be of an integer type, got {image.dtype}.")
    if not image.size:
        raise ValueError(f"`{name}` must have at least one pixel, got shape {image.shape}.")
    if image.dtype.kind == "i" and (lowest := image.min()) < 0:
        raise ValueError(f"`{name}` must not be negative, got {lowest}.")
    return image


def _renumbered(ids: np.ndarray) -> np.ndarray:
    """(k,) ids -> (k,) int64, 0 stays 0, the others become 1..n in their order."""
    known, numbers = np.unique(ids, return_inverse=True)
    return numbers.astype(np.int64) + int(known.size > 0 and known[0] != 0)


def _best_pairs(rows: np.ndarray, columns: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """IoU of the matched pairs: as many as possible, then with the highest sum."""
    if iou.size == 1:
        return iou
    rows = np.unique(rows, return_inverse=True)[1]
    columns = np.unique(columns, return_inverse=True)[1]
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    table[rows, columns] = iou
    # All IoU together weigh less than one more pair.
    gain = (table > 0) + table / (2 * min(table.shape))
    chosen = table[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen > 0]


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
    matched = [overlap.matched_iou(threshold, tolerance).size for threshold in thresholds]
    return [pairs / (objects - pairs) for pairs in matched]


def _ratio(part: float, whole: float, otherwise: float) -> float:
    return part / whole if whole else otherwise


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
        ValueError: If two files of a folder differ only in their extension.
    """
    predicted_files, labelled_files = _by_name(predictions), _by_name(labels)
    missing = sorted(labelled_files.keys() - predicted_files.keys())
    extra = sorted(predicted_files.keys() - labelled_files.keys())
    if missing:
        _log.warning("No prediction, scored as empty: %s", ", ".join(missing))
    if extra:
        _log.warning("Prediction without labels, not scored: %s", ", ".join(extra))
    pairs = [(name, predicted_files.get(name), file) for name, file in labelled_files.items()]
    return pairs, missing, extra


def _by_name(folder: str | Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in list_images(folder):
        name = file.stem.removesuffix(".ome")
        if name in files:
            raise ValueError(
                f"File names must differ by more than the extension, got {files[name]} and {file}."
            )
        files[name] = file
    return files


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _write(path: str | Path, text: str) -> None:
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")
