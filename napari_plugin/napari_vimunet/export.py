"""Write labels as outlines for ImageJ.

`outlines_of` walks around the pixels of each object; `write_rois` stores these outlines in
one file for ImageJ's ROI manager. Nothing here knows napari, Qt or torch.
"""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from vimunet.files import replacing

# Steps along the sides of pixels as (dy, dx): right, down, left, up. The object is at their right.
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def outlines_of(labels: ArrayLike) -> list[tuple[int, NDArray[np.int32]]]:
    """Find the outer outline of each piece of each object.

    Pixels that only meet at a corner belong to different pieces. Holes are not told; what is open
    at a corner is no hole.

    Args:
        labels: (y, x) integer labels, 0 background.

    Returns:
        Label and (n, 2) corners (y, x) of each outline, in whole pixels, where pixel (i, j) covers
        the square from (i, j) to (i + 1, j + 1); by label, then from top to bottom.

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If the shape is not (y, x) or a label is negative.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"`labels` must be integers, got {labels.dtype}.")
    if labels.ndim != 2:
        raise ValueError(f"`labels` must have shape (y, x), got {labels.shape}.")
    if labels.size and labels.min() < 0:
        raise ValueError(f"`labels` must not be negative, got {labels.min()}.")
    ids, compact = np.unique(labels, return_inverse=True)
    compact = compact.reshape(labels.shape) + int(ids.size and ids[0] != 0)
    ids = ids[ids != 0]
    found = []
    for number, box in enumerate(ndimage.find_objects(compact)):
        assert box is not None  # the numbers have no gaps
        pieces, _ = ndimage.label(compact[box] == number + 1)
        for piece, inner in enumerate(ndimage.find_objects(pieces), start=1):
            corner = np.array([box[axis].start + inner[axis].start for axis in (0, 1)])
            outline = _walk_around(pieces[inner] == piece) + corner
            found.append((int(ids[number]), outline.astype(np.int32)))
    return found


def write_rois(path: str | Path, labels: ArrayLike) -> int:
    """Write the outlines of all objects for ImageJ's ROI manager, all of them or nothing.

    An object in several pieces becomes several regions, and its holes are filled: an outline of
    ImageJ has neither.

    Args:
        path: File to write, ending in `.zip`. An existing file is replaced.
        labels: (y, x) integer labels, 0 background, or (z, y, x): outlines of each slice, with
            their position in the stack.

    Returns:
        How many outlines were written. They are called by label, pieces 17, 17-2, ..., with z in
        front in stacks.

    Raises:
        ImportError: If roifile is not installed.
        TypeError: If the labels are not integers.
        ValueError: If the name does not end in `.zip`, the shape is wrong, there is no object or
            a label is negative.
    """
    try:
        from roifile import ROI_TYPE, ImagejRoi, roiwrite
    except ImportError as error:
        raise ImportError("Outlines for ImageJ need one more package: pip install roifile") from (
            error
        )
    path, labels = Path(path), np.asarray(labels)
    if path.suffix.lower() != ".zip":
        raise ValueError(f"`path` must end in .zip, got {path}.")
    if labels.ndim not in (2, 3):
        raise ValueError(f"`labels` must have shape (y, x) or (z, y, x), got {labels.shape}.")
    rois = []
    for z, one in enumerate(labels if labels.ndim == 3 else labels[None]):
        pieces: dict[int, int] = {}
        for label, outline in outlines_of(one):
            pieces[label] = pieces.get(label, 0) + 1
            name = f"{label}-{pieces[label]}" if pieces[label] > 1 else str(label)
            stacked = labels.ndim == 3
            roi = ImagejRoi.frompoints(
                outline[:, ::-1],
                name=f"z{z + 1:04d}-{name}" if stacked else name,
                position=z if stacked else None,
            )
            roi.roitype = ROI_TYPE.TRACED
            rois.append(roi)
    if not rois:
        raise ValueError("`labels` must have at least one object, got none.")
    with replacing(path) as temporary:
        roiwrite(temporary, rois, mode="w")
    return len(rois)


def _walk_around(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the corners of the outline of one piece, clockwise from its first pixel."""
    padded = np.pad(mask, 1).tolist()
    column = int(np.flatnonzero(mask[0])[0])
    start = row, column = 0, column
    heading = 0
    corners = []
    while True:
        # Ahead of the corner (row, column): the pixels to the right and to the left of the way.
        dy, dx = _STEPS[heading]
        right = padded[row + 1 + (dy + dx - 1) // 2][column + 1 + (dx - dy - 1) // 2]
        left = padded[row + 1 + (dy - dx - 1) // 2][column + 1 + (dx + dy - 1) // 2]
        if right and not left:
            row, column = row + dy, column + dx
            if (row, column) == start and heading == 3:
                break
        else:
            corners.append((row, column))
            heading = (heading + (1 if not right else 3)) % 4
    return np.array([start, *corners])
