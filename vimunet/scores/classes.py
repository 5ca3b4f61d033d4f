"""Scores of classes: how well the class of each pixel agrees with the annotated one.

Everything but the Hausdorff distance is read from the confusion matrix. In images and volumes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from vimunet.axes import PerAxis
from vimunet.protocol import Protocol, checked_protocol
from vimunet.scores.statistics import central_part, confidence_interval, mean_defined, resamples

_OF_A_CLASS = ("TP", "FP", "FN")


def evaluate_semantic(
    prediction: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int = 2,
    spacing: PerAxis[float] = 1.0,
    protocol: Protocol = "fair",
) -> dict[str, float]:
    """Score the classes of one image or volume.

    For a class, TP pixels have it in both, FP only in the prediction, FN only in the labels, TN in
    neither. "Present" is a class with pixels in the prediction or the labels.

    | key | meaning |
    | --- | --- |
    | Dice, IoU | 2 TP / (2 TP + FP + FN), TP / (TP + FP + FN) |
    | mIoU | IoU with background as one more class |
    | sensitivity, specificity | TP / (TP + FN), TN / (TN + FP) |
    | accuracy | pixels of the right class / all pixels |
    | HD95 | 95th percentile of the distance of the outlines, see `hausdorff_distance` |
    | missed, invented | how many classes only the labels, only the prediction have |
    | TP, FP, FN, TN | pixels; with more than two classes TP_0, FP_0, FN_0, TP_1, ... |
    | Dice_1, IoU_1, HD95_1, ... | of each class; only with more than two classes |

    All but mIoU leave out background. Dice, IoU, mIoU and HD95 are means over the present classes.

    A missed or an invented structure is as wrong as can be: its Dice and IoU are 0, its HD95 is
    the diagonal of the image. An image without any structure of which none is predicted is right:
    Dice and IoU are 1, HD95 is 0. What is undefined otherwise is nan: sensitivity without
    labelled pixels, specificity without unlabelled ones, the scores of a class that is absent.

    Args:
        prediction: (y, x), or any other shape, class of each pixel: integer or mask.
        labels: Same shape, the annotated classes.
        num_classes: Number of classes, background (class 0) included.
        spacing: Distance of neighbouring pixels along each axis, or along all; in the unit in
            which HD95 is wanted.
        protocol: "published" gives the numbers that VM-UNet is published with: mIoU is the IoU of
            the foreground; ratios without denominator are 0; a class that is only predicted has
            Dice 1 and HD95 0, one that is not predicted has Dice 0 and HD95 0, be it in the labels
            or not, so that a missed organ gets the best possible distance; every class counts in
            the means; HD95 takes both directions together, in pixels. "fair" has none of that.

    Returns:
        The scores by name.

    Raises:
        TypeError: If one of the images is neither of an integer type nor a mask.
        ValueError: If the shapes differ, a value is no class, or an option is out of range.

    Source:
        Maier-Hein et al. 2024, "Metrics reloaded", doi 10.1038/s41592-023-02151-z. "published":
        Ruan & Xiang 2024, https://arxiv.org/abs/2402.02491, and its published code.

    Examples:
        Two of three pixels are found, and one too many:

        >>> scores = evaluate_semantic([[1, 1, 0, 1]], [[1, 1, 1, 0]])
        >>> scores["TP"], scores["FP"], scores["FN"], scores["IoU"], scores["accuracy"]
        (2, 1, 1, 0.5, 0.5)
    """
    protocol = check_options(num_classes, protocol)
    prediction, labels = _checked_pair(prediction, labels, num_classes)
    sizes = _spacing(spacing, labels.ndim)
    if protocol == "published" and (sizes != 1).any():
        raise ValueError(f'`spacing` must be 1 with protocol "published", got {spacing}.')
    counts = _Counts.of(prediction, labels, num_classes)
    hd95 = np.full(num_classes, np.nan)
    for i in range(1, num_classes):
        found, annotated = prediction == i, labels == i
        if protocol == "published":
            both = found.any() and annotated.any()
            hd95[i] = _distance(found, annotated, sizes, 95, pooled=True) if both else 0.0
        elif counts.present[i]:
            hd95[i] = hausdorff_distance(found, annotated, spacing=sizes.tolist())

    scores: dict[str, float] = counts.scores(protocol)
    dice, iou = counts.overlaps(protocol)
    if protocol == "published":
        dice[counts.invented] = 1.0
        scores["Dice"] = float(dice[1:].mean())
    scores["HD95"] = mean_defined(hd95[1:]) if counts.present[1:].any() else 0.0
    scores["missed"] = int(counts.missed[1:].sum())
    scores["invented"] = int(counts.invented[1:].sum())
    scores |= counts.named()
    for i in range(1, num_classes) if num_classes > 2 else ():
        each = {"Dice": dice[i], "IoU": iou[i], "HD95": hd95[i]}
        scores |= {f"{name}_{i}": float(value) for name, value in each.items()}
    return scores


def dice_and_iou(
    prediction: np.ndarray, labels: np.ndarray, num_classes: int = 2
) -> tuple[float, float]:
    """Compute Dice and IoU alone; see `evaluate_semantic`, of which these are two numbers.

    Args:
        prediction: (y, x), or any other shape, class of each pixel: integer or mask.
        labels: Same shape, the annotated classes.
        num_classes: Number of classes, background included.

    Returns:
        Both as means over the present classes but background, in [0, 1].

    Raises:
        TypeError: If one of the images is neither of an integer type nor a mask.
        ValueError: If the shapes differ or a value is no class.
    """
    scores = _Counts.of(*_checked_pair(prediction, labels, num_classes), num_classes).scores("fair")
    return scores["Dice"], scores["IoU"]


def hausdorff_distance(
    prediction: np.ndarray,
    labels: np.ndarray,
    *,
    spacing: PerAxis[float] = 1.0,
    percentile: float = 95,
    pooled: bool = False,
) -> float:
    """Measure how far the outlines of two masks are apart where they agree worst.

    The outline of a mask are its pixels with one of the direct neighbours outside of it or of the
    image. From each pixel of either outline the distance to the nearest pixel of the other is
    taken, then a percentile of these distances instead of the largest, so that a few stray pixels
    do not decide.

    Args:
        prediction: (y, x), or any other shape, mask: true or not 0 inside.
        labels: Same shape.
        spacing: Distance of neighbouring pixels along each axis, or along all.
        percentile: In [0, 100]; 100 is the Hausdorff distance itself.
        pooled: Take the percentile of the distances in both directions together, as medpy does,
            instead of the larger of the two percentiles, as MONAI does.

    Returns:
        The distance, in the unit of `spacing`. Diagonal of the image (between the centres of its
        outermost pixels, but at least one pixel) if just one of the masks is empty; 0 if both are.

    Raises:
        ValueError: If the shapes differ, there are no pixels, or an option is out of range.

    Examples:
        >>> square = np.zeros((9, 9), bool)
        >>> square[2:5, 2:5] = True
        >>> hausdorff_distance(np.roll(square, 2, axis=1), square, spacing=(1, 0.5))
        1.0
    """
    prediction, labels = np.asarray(prediction) != 0, np.asarray(labels) != 0
    if prediction.shape != labels.shape or not labels.size:
        raise ValueError(
            f"`prediction` and `labels` must have the same shape with at least one pixel, got "
            f"{prediction.shape} and {labels.shape}."
        )
    if not 0 <= percentile <= 100:
        raise ValueError(f"`percentile` must lie in [0, 100], got {percentile}.")
    sizes = _spacing(spacing, labels.ndim)
    if not prediction.any() and not labels.any():
        return 0.0
    if not prediction.any() or not labels.any():
        steps = np.maximum(np.array(labels.shape) - 1, 0)
        return float(max(np.sqrt(np.square(steps * sizes).sum()), sizes.min()))
    return _distance(prediction, labels, sizes, percentile, pooled)


def summarize_semantic(
    images: list[dict[str, Any]], *, protocol: Protocol = "fair"
) -> dict[str, Any]:
    """Average the scores of images, and compute those of all their pixels together.

    Args:
        images: One dictionary per image, at least one: its `name` and the scores of
            `evaluate_semantic`.
        protocol: The one they were scored with.

    Returns:
        `images` as given; `mean`, unweighted over images, nan left out (macro); `confidence`, the
        central 95 % of the mean, see `confidence_interval`; `micro`, the scores of all pixels of
        all images as if they were one image, and `micro_confidence`, the same for these (without
        HD95, which needs more than counts of pixels);
        `total`, the counts over all images.
    """
    protocol = checked_protocol(protocol)
    counts = [_Counts.read(scores) for scores in images]
    table = np.array([[each.TP, each.FP, each.FN] for each in counts])
    totals = ("missed", "invented", *counts[0].named())
    keys = [key for key in images[0] if key not in ("name", *totals)]
    values = {key: np.array([scores[key] for scores in images], dtype=float) for key in keys}
    samples = (chosen for block in resamples(len(images)) for chosen in block)
    draws = [_Counts(*table[i].sum(axis=0)).scores(protocol) for i in samples]
    return {
        "images": images,
        "mean": {key: mean_defined(values[key]) for key in keys},
        "confidence": {key: confidence_interval(values[key]) for key in keys},
        "micro": _Counts(*table.sum(axis=0)).scores(protocol),
        "micro_confidence": {key: central_part([draw[key] for draw in draws]) for key in draws[0]},
        "total": {key: sum(scores[key] for scores in images) for key in totals},
    }


@dataclass(frozen=True)
class _Counts:
    """Pixels of each class, background first: (n,) each."""

    TP: NDArray[np.int64]
    FP: NDArray[np.int64]
    FN: NDArray[np.int64]

    @classmethod
    def of(cls, prediction: NDArray, labels: NDArray, num_classes: int) -> "_Counts":
        pairs = labels.ravel().astype(np.int64) * num_classes + prediction.ravel()
        confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
        right = np.diag(confusion)
        return cls(right, confusion.sum(axis=0) - right, confusion.sum(axis=1) - right)

    @classmethod
    def read(cls, scores: dict[str, Any]) -> "_Counts":
        """Undo `named`."""
        if "TN" in scores:
            tp, fp, fn, tn = (scores[name] for name in ("TP", "FP", "FN", "TN"))
            return cls(np.array([tn, tp]), np.array([fn, fp]), np.array([fp, fn]))
        number = sum(key.startswith("TP_") for key in scores)
        return cls(
            *(np.array([scores[f"{name}_{i}"] for i in range(number)]) for name in _OF_A_CLASS)
        )

    def named(self) -> dict[str, int]:
        """Give each count its name in a table."""
        if len(self.TP) == 2:
            each = {"TP": self.TP[1], "FP": self.FP[1], "FN": self.FN[1], "TN": self.TP[0]}
        else:
            each = {
                f"{name}_{i}": getattr(self, name)[i]
                for i in range(len(self.TP))
                for name in _OF_A_CLASS
            }
        return {name: int(count) for name, count in each.items()}

    @property
    def missed(self) -> NDArray[np.bool_]:
        return (self.TP + self.FP == 0) & (self.FN > 0)

    @property
    def invented(self) -> NDArray[np.bool_]:
        return (self.TP + self.FN == 0) & (self.FP > 0)

    @property
    def present(self) -> NDArray[np.bool_]:
        return self.TP + self.FP + self.FN > 0

    def overlaps(self, protocol: Protocol) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Dice and IoU of each class."""
        wrong = self.FP + self.FN
        return (
            _ratio(2 * self.TP, 2 * self.TP + wrong, protocol),
            _ratio(self.TP, self.TP + wrong, protocol),
        )

    def scores(self, protocol: Protocol) -> dict[str, float]:
        """Compute what needs only these counts."""
        pixels = self.TP.sum() + self.FN.sum()
        dice, iou = self.overlaps(protocol)
        negatives = pixels - self.TP - self.FN
        sensitivity = _ratio(self.TP, self.TP + self.FN, protocol)
        specificity = _ratio(negatives - self.FP, negatives, protocol)
        right_without = 1.0 if protocol == "fair" and not self.present[1:].any() else float("nan")
        mean_iou = mean_defined(iou[1:], right_without)
        return {
            "Dice": mean_defined(dice[1:], right_without),
            "IoU": mean_iou,
            "mIoU": mean_iou if protocol == "published" else mean_defined(iou),
            "accuracy": float(self.TP.sum() / pixels),
            "sensitivity": mean_defined(sensitivity[1:]),
            "specificity": mean_defined(specificity[1:]),
        }


def _ratio(part: NDArray, whole: NDArray, protocol: Protocol) -> NDArray[np.float64]:
    without = 0.0 if protocol == "published" else np.nan
    return np.where(whole > 0, part / np.maximum(whole, 1), without)


def _distance(
    prediction: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    spacing: NDArray[np.float64],
    percentile: float,
    pooled: bool,
) -> float:
    """Hausdorff distance of two masks that are not empty."""
    box = tuple(
        slice(int(places.min()), int(places.max()) + 1)
        for places in np.nonzero(prediction | labels)
    )
    outlines = [mask[box] & ~binary_erosion(mask[box]) for mask in (prediction, labels)]
    distances = [
        distance_transform_edt(~other, sampling=spacing)[own]
        for own, other in (outlines, outlines[::-1])
    ]
    if pooled:
        return float(np.percentile(np.concatenate(distances), percentile))
    return float(max(np.percentile(each, percentile) for each in distances))


def _spacing(spacing: PerAxis[float], axes: int) -> NDArray[np.float64]:
    sizes = np.asarray(spacing, dtype=float)
    if sizes.shape not in ((), (axes,)) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"`spacing` must be one or {axes} numbers > 0, got {spacing}.")
    return np.broadcast_to(sizes, axes)


def check_options(num_classes: int, protocol: Protocol) -> Protocol:
    """Refuse a number of classes or a protocol that there is not; give the protocol."""
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be at least 2, got {num_classes}.")
    return checked_protocol(protocol)


def _checked_pair(
    prediction: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[NDArray, NDArray]:
    prediction, labels = np.asarray(prediction), np.asarray(labels)
    if prediction.shape != labels.shape or not labels.size:
        raise ValueError(
            "`prediction` and `labels` must have the same shape with at least one pixel, got "
            f"{prediction.shape} and {labels.shape}."
        )
    for name, image in (("prediction", prediction), ("labels", labels)):
        if image.dtype.kind not in "bui":
            raise TypeError(f"`{name}` must be of an integer type or a mask, got {image.dtype}.")
        if image.min() < 0 or image.max() >= num_classes:
            raise ValueError(
                f"`{name}` must be classes in 0 ... {num_classes - 1}, got {image.min()} to "
                f"{image.max()}. Is `num_classes` right?"
            )
    return prediction, labels
