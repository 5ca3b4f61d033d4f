"""What became of each object of an image: found, inexact, split, merged, missed or false."""

import numpy as np
from numpy.typing import NDArray

from vimunet.labels import renumbered
from vimunet.scores.matching import Overlap

LABELLED_OUTCOMES = ("background", "found", "inexact", "split", "merged", "missed")
PREDICTED_OUTCOMES = ("background", "correct", "inexact", "piece", "merger", "false")
_FOUND, _INEXACT, _SPLIT, _MERGED, _MISSED = range(1, 6)
_PIECE, _MERGER, _FALSE = 3, 4, 5


def outcomes(
    overlap: Overlap, threshold: float = 0.5
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Tell what became of each object.

    | object of the labels | |
    | --- | --- |
    | found | matched, IoU >= threshold |
    | merged | lies mostly in a predicted object that holds most of at least two objects |
    | split | at least two predicted objects lie mostly in it and cover most of it together |
    | inexact | meets a predicted object with most of one of the two, but is not matched |
    | missed | none of these |

    | predicted object | |
    | --- | --- |
    | correct | matched |
    | merger | holds most of at least two objects |
    | piece | lies mostly in an object that is split, or found by another predicted object |
    | inexact | meets an object with most of one of the two |
    | false | none of these |

    "Most" is more than half of the pixels; the first row that applies counts.

    Args:
        overlap: Of one image.
        threshold: IoU of a match, in (0, 1].

    Returns:
        (n + 1,) indices into `LABELLED_OUTCOMES` for objects 0..n of the labels, and (m + 1,) into
        `PREDICTED_OUTCOMES` for the predicted ones. Number 0 is background.
    """
    rows, columns, pixels = (
        values[(overlap.predicted > 0) & (overlap.labelled > 0)]
        for values in (overlap.predicted, overlap.labelled, overlap.pixels)
    )
    count_predicted, count_labelled = overlap.num_predicted + 1, overlap.num_labelled + 1
    predicted_area = np.bincount(overlap.predicted, overlap.pixels, count_predicted)
    labelled_area = np.bincount(overlap.labelled, overlap.pixels, count_labelled)
    labelled_inside = 2 * pixels > labelled_area[columns]
    predicted_inside = 2 * pixels > predicted_area[rows]
    found_by, found, _ = overlap.matches(threshold)

    merges = np.bincount(rows[labelled_inside], minlength=count_predicted) >= 2
    pieces = np.bincount(columns[predicted_inside], minlength=count_labelled)
    covered = np.bincount(columns[predicted_inside], pixels[predicted_inside], count_labelled)
    splits = (pieces >= 2) & (2 * covered > labelled_area)

    labelled = np.full(count_labelled, _MISSED, np.uint8)
    labelled[columns[labelled_inside | predicted_inside]] = _INEXACT
    labelled[splits] = _SPLIT
    labelled[columns[labelled_inside & merges[rows]]] = _MERGED
    labelled[found] = _FOUND
    labelled[0] = 0

    predicted = np.full(count_predicted, _FALSE, np.uint8)
    predicted[rows[labelled_inside | predicted_inside]] = _INEXACT
    in_pieces = (labelled == _SPLIT) | (labelled == _FOUND)
    predicted[rows[predicted_inside & in_pieces[columns]]] = _PIECE
    predicted[merges] = _MERGER
    predicted[found_by] = _FOUND
    predicted[0] = 0
    return labelled, predicted


def explain(
    prediction: np.ndarray,
    labels: np.ndarray,
    threshold: float = 0.5,
    *,
    labelled_pixels_only: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Paint what became of each object, see `outcomes`.

    Args:
        prediction: (y, x), or any other shape, integer ids, 0 = background.
        labels: Same shape, integer ids, 0 = background.
        threshold: IoU of a match, in (0, 1].
        labelled_pixels_only: As in `vimunet.evaluate`; the other pixels are background here.

    Returns:
        Two images of the same shape: for each pixel the outcome of its object in the labels, an
        index into `LABELLED_OUTCOMES`, and that of its predicted object, into `PREDICTED_OUTCOMES`.

    Raises:
        TypeError: If one of the images is not of an integer type.
        ValueError: If the shapes differ or an id is negative.

    Examples:
        One predicted object over two, and one where nothing is:

        >>> labelled, predicted = explain(np.array([[7, 7, 7, 0, 9]]), np.array([[1, 1, 2, 0, 0]]))
        >>> [LABELLED_OUTCOMES[outcome] for outcome in labelled[0]]
        ['found', 'found', 'merged', 'background', 'background']
        >>> [PREDICTED_OUTCOMES[outcome] for outcome in predicted[0]]
        ['correct', 'correct', 'correct', 'background', 'false']
    """
    overlap = Overlap.between(prediction, labels, labelled_pixels_only)
    prediction, labels = np.asarray(prediction), np.asarray(labels)
    if labelled_pixels_only:
        prediction = np.where(labels > 0, prediction, 0)
    labelled, predicted = outcomes(overlap, threshold)
    return (
        labelled[renumbered(labels)],
        predicted[renumbered(prediction)],
    )
