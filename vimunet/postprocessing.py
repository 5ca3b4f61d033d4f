"""From maps to labels: seeded watershed and the filters around it; numpy in, numpy out.

Nothing here knows what a map means; `representation.py` does. No function changes its input.
"""

import numpy as np
from bioimage_cpp import segmentation as _bic
from numpy.typing import NDArray
from skimage.segmentation import watershed as _flood


def connected_components(image: NDArray, connectivity: int = 2) -> NDArray[np.int32]:
    """Number the connected pieces of equal value.

    Args:
        image: (y, x) bool or integer array; 0 is background.
        connectivity: 1 joins the four direct neighbours, 2 the eight neighbours.

    Returns:
        (y, x) labels: 0 background, 1..n in the order of each piece's first pixel, row by row.
    """
    image = np.ascontiguousarray(image)
    if image.dtype.kind in "iu" and image.dtype.itemsize < 4:
        image = image.astype(np.int32)
    return _bic.label(image, connectivity=connectivity).astype(np.int32)


def remove_small(labels: NDArray, min_size: int = 0) -> NDArray[np.int32]:
    """Remove the objects with fewer than `min_size` pixels and close the gaps in the numbering.

    Args:
        labels: (y, x) integer labels >= 0, 0 background. Ids may have gaps.
        min_size: Smallest area that stays. Unit: pixels.

    Returns:
        (y, x) labels, new array: the remaining objects numbered 1..n in the order of their old ids.
        What is removed becomes background; no neighbour grows into it.

    Raises:
        ValueError: If a label is negative.
    """
    if labels.size and labels.min() < 0:
        raise ValueError(f"`labels` must not be negative, got {labels.min()}.")
    if labels.size and labels.max() > 4 * labels.size:  # huge ids: a table of them is too long
        labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape) + (
            labels.min() > 0
        )
    labels = labels.astype(np.intp, copy=False)
    areas = np.bincount(labels.ravel(), minlength=1)
    keep = (areas >= min_size) & (areas > 0)
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels]


def seeded_watershed(heights: NDArray, markers: NDArray, mask: NDArray) -> NDArray[np.int32]:
    """Flood a height map from markers, inside a mask.

    Pixels are taken in the order of their height and, at equal height, in the order in which the
    water reached them, so that on a plateau each marker gets the pixels nearest to it. Water
    moves to the four direct neighbours.

    Args:
        heights: (y, x) float map; low values are flooded first.
        markers: (y, x) integer starts of the objects, 0 elsewhere.
        mask: (y, x) bool; pixels outside stay 0.

    Returns:
        (y, x) labels with the ids of `markers`. Pixels of the mask that no marker reaches stay 0.

    Source:
        Flooding of scikit-image, which is exact on plateaus. bioimage-cpp's watershed is six times
        faster but takes pixels of equal height last-in-first-out, which gives nearly flat maps
        (saturated sigmoids, bfloat16, hard 0/1 maps) to the wrong object.
    """
    return _flood(heights, markers=markers, mask=mask).astype(np.int32, copy=False)
