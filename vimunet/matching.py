"""Which objects of two label images meet, and in how many pixels: one sparse table, `Overlap`.

All scores of objects are read from it. Nothing here knows files or images.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


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
        predicted, labelled = renumbered(prediction[starts]), renumbered(labels[starts])
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

    def matches(
        self, threshold: float, tolerance: float = 1e-12
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
            Number of the predicted object, number of the object in the labels and IoU, each
            (TP,), of the matched pairs.
        """
        rows, columns, iou = self._pairs
        close = iou >= threshold - tolerance
        rows, columns, iou = rows[close], columns[close], iou[close]
        if np.unique(rows).size == rows.size and np.unique(columns).size == columns.size:
            return rows, columns, iou
        # Conflicts are small islands: solve each on its own instead of the whole table.
        nodes = self.num_predicted + 1
        edges = (np.ones(rows.size), (rows, nodes + columns))
        size = nodes + self.num_labelled + 1
        _, island = connected_components(coo_array(edges, shape=(size, size)), directed=False)
        island = island[rows]
        order = np.argsort(island, kind="stable")
        borders = np.flatnonzero(np.diff(island[order])) + 1
        best = np.concatenate(
            [i[_best_pairs(rows[i], columns[i], iou[i])] for i in np.split(order, borders)]
        )
        return rows[best], columns[best], iou[best]

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
            1 - ratio(2 * both, in_prediction + in_labels, float("nan")),
            ratio(both, in_prediction, float("nan")),
            ratio(both, in_labels, float("nan")),
        )

    def _counted(self, ignore_background: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keep = self.labelled > 0 if ignore_background else np.ones(self.pixels.size, bool)
        return self.predicted[keep], self.labelled[keep], self.pixels[keep]


def renumbered(ids: np.ndarray) -> np.ndarray:
    """Number objects without gaps.

    Args:
        ids: Of any shape, integer ids, 0 = background.

    Returns:
        The same shape, int64: 0 stays 0, the others become 1..n in their order.
    """
    known, numbers = np.unique(ids, return_inverse=True)
    return numbers.reshape(ids.shape).astype(np.int64) + int(known.size > 0 and known[0] != 0)


def ratio(part: float, whole: float, otherwise: float) -> float:
    """Divide; `otherwise` if `whole` is 0."""
    return part / whole if whole else otherwise


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


def _best_pairs(rows: np.ndarray, columns: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Indices of the matched pairs: as many as possible, then with the highest sum of IoU."""
    if iou.size == 1:
        return np.zeros(1, np.int64)
    rows = np.unique(rows, return_inverse=True)[1]
    columns = np.unique(columns, return_inverse=True)[1]
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    table[rows, columns] = iou
    pair = np.full(table.shape, -1)
    pair[rows, columns] = np.arange(iou.size)
    # All IoU together weigh less than one more pair.
    gain = (table > 0) + table / (2 * min(table.shape))
    chosen = pair[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen >= 0]
