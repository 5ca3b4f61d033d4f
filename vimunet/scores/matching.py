"""Which objects of two label images meet, and in how many pixels: one sparse table, `Overlap`.

All scores of objects are read from it. Nothing here knows files or images.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vimunet.labels import checked_labels, renumbered


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
        prediction = checked_labels("prediction", prediction)
        labels = checked_labels("labels", labels)
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


def ratio(part: float, whole: float, otherwise: float) -> float:
    """Divide; `otherwise` if `whole` is 0."""
    return part / whole if whole else otherwise


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
