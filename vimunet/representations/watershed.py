"""From maps to labels: markers, seeded watershed, small-object filter; numpy in, numpy out.

Nothing here knows what a map means; the representations do. No function changes its input. All work
in two and three dimensions. `spacing` is the size of a voxel along each axis, `([z,] y, x)`; only
its proportions count: lengths are in pixels along x.
"""

import numpy as np
from bioimage_cpp import distance as _distance
from bioimage_cpp import filters as _filters
from bioimage_cpp import segmentation as _segmentation
from numpy.typing import NDArray
from skimage.segmentation import watershed as _watershed

from vimunet.axes import PerAxis, relative_spacing


def connected_components(image: NDArray, connectivity: int | None = None) -> NDArray[np.int32]:
    """Number the connected pieces of equal value.

    Args:
        image: ([z,] y, x) bool or integer array; 0 is background.
        connectivity: 1 joins direct neighbours, None also those across edges and corners.

    Returns:
        ([z,] y, x) labels: 0 background, 1..n in the order of each piece's first pixel.

    Examples:
        >>> connected_components(np.array([[7, 7, 0, 7], [0, 0, 9, 0]]))
        array([[1, 1, 0, 2],
               [0, 0, 3, 0]], dtype=int32)
    """
    if image.dtype.kind in "iu" and image.dtype.itemsize < 4:
        image = image.astype(np.int32)
    pieces = _segmentation.label(np.ascontiguousarray(image), connectivity=connectivity)
    return pieces.astype(np.int32)


def depth_inside(
    mask: NDArray[np.bool_], spacing: PerAxis[float] | None = None
) -> NDArray[np.float32]:
    """Measure how far each pixel of a mask is from the nearest pixel outside.

    Args:
        mask: ([z,] y, x) bool. What lies beyond the image counts neither as inside nor as outside.
        spacing: See the module; None for cubes.

    Returns:
        ([z,] y, x) Euclidean distance between pixel centres, 0 outside the mask, infinite if there
        is no outside. Unit: pixels along x.
    """
    if mask.all():
        return np.full(mask.shape, np.inf, np.float32)
    sampling = relative_spacing(spacing, mask.ndim)
    return _distance.distance_transform(
        np.ascontiguousarray(mask), sampling=None if set(sampling) == {1.0} else sampling
    )


def largest_per_label(labels: NDArray, values: NDArray, count: int) -> NDArray[np.float32]:
    """Find the largest value in each object.

    Args:
        labels: (...) integer labels in 0..count.
        values: (...) values >= 0.
        count: Largest label n.

    Returns:
        (n + 1,) largest value of each label, the background first; 0 for labels without pixels.
    """
    largest = np.zeros(count + 1, np.float32)
    np.maximum.at(largest, labels.ravel(), values.ravel())
    return largest


def smooth(
    image: NDArray[np.float32], sigma: float, spacing: PerAxis[float] | None = None
) -> NDArray[np.float32]:
    """Blur by a Gaussian, cut off at three standard deviations, with a mirrored image border.

    Args:
        image: ([z,] y, x) float32.
        sigma: Standard deviation, 0 for none. Unit: pixels along x.
        spacing: See the module; None for cubes.

    Returns:
        ([z,] y, x) blurred image; the same as `scipy.ndimage.gaussian_filter(mode="mirror",
        truncate=3)`, many times faster.
    """
    if sigma == 0:
        return image
    sigmas = tuple(sigma / size for size in relative_spacing(spacing, image.ndim))
    return _filters.gaussian_smoothing(np.ascontiguousarray(image), sigmas)


def find_markers(
    mask: NDArray[np.bool_], min_radius: float = 0, spacing: PerAxis[float] | None = None
) -> NDArray[np.int32]:
    """Number the pieces of a mask that are wide enough to be the core of an object.

    A network leaves thin slits in the boundaries that it is unsure of. Each would start an object
    of its own, but none of them is wide.

    Args:
        mask: ([z,] y, x) bool.
        min_radius: A piece stays if one of its pixels is at least this far from all pixels
            outside. 0 keeps all pieces. Unit: pixels along x.
        spacing: See the module; None for cubes.

    Returns:
        ([z,] y, x) labels: 0 background, 1..n the pieces, joined also across the corners of pixels
        and the edges of voxels. Not across the corners of voxels: there a boundary of two voxels,
        one on each side of a face, has holes.
    """
    markers = connected_components(mask, connectivity=2)
    if min_radius <= min(relative_spacing(spacing, mask.ndim)):
        return markers  # every pixel is as far from its neighbours
    radius = largest_per_label(markers, depth_inside(mask, spacing), int(markers.max()))
    return _keep(markers, radius >= min_radius)


def find_networks(markers: NDArray, max_elongation: float) -> NDArray[np.bool_]:
    """Tell which markers are spread out like the membranes between cells, not like a cell.

    The elongation of a marker is its area divided by that of the largest circle inside it: 1 for
    a disc, about 1.3 times length / width for a rod, hundreds for a network of thin lines.

    Args:
        markers: (y, x) labels: 0 background, 1..n.
        max_elongation: Largest elongation of a cell.

    Returns:
        (n + 1,) bool, the background first: elongation is larger than `max_elongation`.
    """
    count = int(markers.max())
    radius = largest_per_label(markers, depth_inside(markers > 0), count)
    area = np.bincount(markers.ravel(), minlength=count + 1)
    networks = area > max_elongation * np.pi * radius**2
    networks[0] = False
    return networks


def seeded_watershed(heights: NDArray, markers: NDArray, mask: NDArray) -> NDArray[np.int32]:
    """Flood a height map from markers, inside a mask.

    Pixels are taken in the order of their height and, at equal height, in the order in which the
    water reached them, so that on a plateau each marker gets the pixels nearest to it. Water
    moves to direct neighbours.

    Args:
        heights: ([z,] y, x) float map; low values are flooded first.
        markers: ([z,] y, x) integer starts of the objects, 0 elsewhere.
        mask: ([z,] y, x) bool; pixels outside stay 0.

    Returns:
        ([z,] y, x) labels with the ids of `markers`. Pixels of the mask that no water reaches stay
        0.

    Source:
        Flooding of scikit-image, which is exact on plateaus. bioimage-cpp's watershed, which
        torch-em uses, is several times faster but takes pixels of equal height last-in-first-out:
        on saturated or hard 0/1 maps one object then takes the boundary of all its neighbours.
    """
    markers = np.where(mask, markers, 0).astype(np.int32, copy=False)
    deep = _deep_pixels(markers)
    lowest = heights[deep]
    if lowest.size and np.count_nonzero(lowest == lowest.min()) > lowest.size / 2:
        # Hard 0/1 maps: quick anyway, and the order of ties stays that of scikit-image.
        return _watershed(heights, markers=markers, mask=mask).astype(np.int32, copy=False)
    flooded = _watershed(heights, markers=np.where(deep, 0, markers), mask=mask & ~deep)
    return np.where(deep, markers, flooded).astype(np.int32, copy=False)


def _deep_pixels(markers: NDArray) -> NDArray[np.bool_]:
    """Find marker pixels whose direct neighbours are all marked: they have no water to pass on.

    Without them the queue of a watershed is much shorter and its result the same.
    """
    marked = np.pad(markers != 0, 1)
    center = (slice(1, -1),) * markers.ndim
    deep = marked[center].copy()
    for axis in range(markers.ndim):
        for shifted in (slice(None, -2), slice(2, None)):
            deep &= marked[tuple(shifted if i == axis else c for i, c in enumerate(center))]
    return deep


def remove_small(labels: NDArray, min_size: float = 0) -> NDArray[np.int32]:
    """Remove objects with fewer than `min_size` pixels and close the gaps in the numbering.

    Args:
        labels: ([z,] y, x) integer labels >= 0, 0 background. Ids may have gaps.
        min_size: Fewest pixels of an object that stays.

    Returns:
        ([z,] y, x) labels, new array: the remaining objects, 1..n in the order of their old ids.
        What is removed becomes background; no neighbour grows into it.

    Raises:
        ValueError: If a label is negative.

    Examples:
        >>> remove_small(np.array([[9, 9, 0, 4, 7, 7]]), min_size=2)
        array([[2, 2, 0, 0, 1, 1]], dtype=int32)
    """
    if labels.size == 0:
        return labels.astype(np.int32)
    low, high = labels.min(), labels.max()
    if low < 0:
        raise ValueError(f"`labels` must not be negative, got {low}.")
    if high > 4 * labels.size:  # a table of all ids would be longer than the image
        labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape) + (low > 0)
    labels = labels.astype(np.intp, copy=False)
    return _keep(labels, np.bincount(labels.ravel()) >= max(min_size, 1))


def _keep(labels: NDArray, keep: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the objects with `keep[id]` 1..n and set the others to 0."""
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels]
