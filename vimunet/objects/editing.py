"""Corrections by hand: split, cut, merge, delete, redraw, add.

Each function looks at labels and returns an `Edit`: the pixels that change and their new values.
Nothing is changed in place, so that a viewer can apply the edit by its own means and undo it.
Work is done in the bounding box of the objects concerned. Nothing here knows napari or Qt.

A wish that concerns nothing (a click on the background, a stroke over one object only) gives an
empty edit; a wish that cannot be fulfilled raises a ValueError that says what to do instead.
Axis letters: y rows, x columns. Points are (y, x) in pixels, pixel centres at whole numbers; they
may lie outside the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.draw import line as draw_line
from skimage.draw import polygon as draw_polygon
from skimage.morphology import local_minima, reconstruction

from vimunet.representations.watershed import (
    connected_components,
    depth_inside,
    seeded_watershed,
    smooth,
)

_REACH = 5.0
"""So far beside an object a point may lie and still mean it, in pixels."""

_RIDGE = 0.05
"""Least height of a ridge in a landscape of values in [0, 1] that separates two points."""

_NECK = 1.0
"""Least difference between half the width of a neck and of the parts beside it, in pixels."""

_SMALLEST_PART = 5
"""Pieces that a stroke cuts off stay with the object if they have fewer pixels."""

_LEAST_FOREGROUND = 0.1
"""A network that sees less than this at a click sees nothing there."""

_FAINT = 0.02
_MARKER_RADIUS = 2.0
_WIDEST_SEAM = 2.0
_FIRST_RADIUS = 15.0

Box = tuple[slice, slice]


@dataclass(frozen=True)
class Edit:
    """Pixels that change.

    Attributes:
        indices: Rows and columns of the pixels, two integer arrays of n.
        values: (n,) new labels, in the dtype of the labels.
        label: The object that the user will want to look at now: the new one if there is one.
    """

    indices: tuple[NDArray[np.intp], NDArray[np.intp]]
    values: NDArray[Any]
    label: int | None = None

    def __len__(self) -> int:
        return len(self.values)

    def apply(self, labels: NDArray) -> NDArray:
        """Return a changed copy of the labels."""
        changed = labels.copy()
        changed[self.indices] = self.values
        return changed


def split(
    labels: ArrayLike,
    position: Sequence[float],
    line: ArrayLike,
    landscape: ArrayLike | None = None,
    stack: NDArray | None = None,
) -> Edit:
    """Split an object in two, one part around each end of a line.

    The border between the parts is the ridge of `landscape` that separates the ends; without
    one, the narrowest place of the object between them; without a neck, the straight line halfway
    between the ends.

    Args:
        labels: (y, x) integer labels, 0 background.
        position: (2,) a point in the object.
        line: (n, 2) points, n >= 2. The first and the last one mark the two parts; they lie in
            the object or up to 5 pixels beside it.
        landscape: (y, x) map in [0, 1] that is low inside objects and high between them, see
            `Representation.landscape`.
        stack: (..., y, x) all slices, where `labels` is one of them: the new object gets a number
            that is free in all, see `unused_labels`.

    Returns:
        The part around the first end keeps its number, the other part gets a new one. Empty if
        there is no object at `position`.

    Raises:
        ValueError: If an end is too far from the object, or both mean the same pixel.
    """
    labels = _checked(labels)
    points = _checked_points("line", line, 2)
    old = _label_at(labels, position)
    if not old:
        return _nothing(labels)
    box = _box(labels == old)
    mask = labels[box] == old
    corner = np.array([part.start for part in box])
    ends = [_nearest_inside(mask, point - corner, point, old) for point in (points[0], points[-1])]
    if ends[0] == ends[1]:
        raise ValueError(
            f"`line` must have its ends in different pixels of object {old}, got "
            f"{_shown(points[0])} and {_shown(points[-1])}. Draw it longer."
        )
    landscapes = [(smooth(-_depth(mask), 1.0), _NECK)]
    if landscape is not None:
        cropped = np.asarray(_checked_map("landscape", landscape, labels)[box], np.float32)
        landscapes.insert(0, (smooth(cropped, 1.0), _RIDGE))
    parts = None
    for heights, ridge in landscapes:
        parts = parts if parts is not None else _split_at_ridge(heights, mask, ends, ridge)
    if parts is None:
        parts = _split_halfway(mask, ends)
    (new,) = unused_labels(labels if stack is None else stack, 1)
    return _edit(labels, box, parts == 2, new, new)


def cut(labels: ArrayLike, line: ArrayLike, stack: NDArray | None = None) -> Edit:
    """Cut objects along a line.

    Only objects that the line crosses from side to side are cut. No pixel is lost: those under
    the line go to the part beside them.

    Args:
        labels: (y, x) integer labels, 0 background.
        line: (n, 2) points of the line, n >= 2.
        stack: (..., y, x) all slices, as for `split`.

    Returns:
        The largest part of each object keeps its number, the others get new ones. Pieces of fewer
        than 5 pixels are not cut off. Empty if the line crosses no object.
    """
    labels = _checked(labels)
    rows, columns = _stroke(line, labels.shape)
    under = labels[rows, columns]
    cut_off: list[tuple[Box, NDArray[np.bool_]]] = []
    for old in _in_order(under):
        box = _box(labels == old)
        mask = labels[box] == old
        blade = np.zeros(mask.shape, bool)
        here = under == old
        blade[rows[here] - box[0].start, columns[here] - box[1].start] = True
        cut_off += [(box, part) for part in _cut_off(mask, blade)]
    new = unused_labels(labels if stack is None else stack, len(cut_off))
    edits = [_edit(labels, box, part, i, i) for (box, part), i in zip(cut_off, new, strict=True)]
    return _joined(labels, edits)


def merge(labels: ArrayLike, line: ArrayLike) -> Edit:
    """Merge all objects under a stroke into the first one.

    A seam of background between them, up to 4 pixels wide, becomes part of the object.

    Args:
        labels: (y, x) integer labels, 0 background.
        line: (n, 2) points of the stroke, n >= 1.

    Returns:
        The other objects get the number of the one that the stroke met first. Empty if it met
        fewer than two.
    """
    labels = _checked(labels)
    met = _in_order(labels[_stroke(line, labels.shape, 1)])
    if len(met) < 2:
        return _nothing(labels)
    merged = np.zeros(labels.shape, bool)
    beside = np.zeros(labels.shape, np.uint8)
    for label in met:
        box = _grown(_box(labels == label), int(_WIDEST_SEAM), labels.shape)
        mask = labels[box] == label
        merged[box] |= mask & (label != met[0])
        beside[box] += (ndimage.distance_transform_edt(~mask) <= _WIDEST_SEAM).astype(np.uint8)
    merged |= (beside > 1) & (labels == 0)
    return _edit(labels, _box(merged), merged[_box(merged)], met[0], met[0])


def delete(labels: ArrayLike, position: Sequence[float]) -> Edit:
    """Delete the object under a point.

    Args:
        labels: (y, x) integer labels, 0 background.
        position: (2,) the point.

    Returns:
        Its pixels become background. Empty if there is no object at `position`.
    """
    labels = _checked(labels)
    old = _label_at(labels, position)
    if not old:
        return _nothing(labels)
    box = _box(labels == old)
    return _edit(labels, box, labels[box] == old, 0, None)


def redraw(labels: ArrayLike, label: int, outline: ArrayLike) -> Edit:
    """Give an object the shape of a polygon, as far as no other object is there.

    Args:
        labels: (y, x) integer labels, 0 background.
        label: Number of the object; with a number that is not in use, it is a new object.
        outline: (n, 2) corners of the polygon, n >= 3. Pixels are inside if their centre is.

    Returns:
        What the object had outside of the polygon becomes background.

    Raises:
        ValueError: If `label` is the background, or the polygon covers no pixel that is free.
    """
    labels = _checked(labels)
    if label == 0:
        raise ValueError("`label` must be an object, got 0, the background. Pick an object first.")
    _check_room(labels, label)
    corners = _checked_points("outline", outline, 3)
    rows, columns = draw_polygon(corners[:, 0], corners[:, 1], labels.shape)
    there = labels[rows, columns]
    free = (there == 0) | (there == label)
    if not free.any():
        raise ValueError(
            f"`outline` must cover pixels that no other object has, got {len(rows)} pixels, none "
            "of them free. Draw it larger, or delete the other object first."
        )
    rows, columns = rows[free], columns[free]
    touched = labels == label
    touched[rows, columns] = True
    box = _box(touched)
    shape = np.zeros(touched[box].shape, bool)
    shape[rows - box[0].start, columns - box[1].start] = True
    lost = (labels[box] == label) & ~shape
    gained = shape & (labels[box] == 0)
    return _joined(
        labels, [_edit(labels, box, lost, 0, None), _edit(labels, box, gained, label, None)], label
    )


def add(
    labels: ArrayLike,
    position: Sequence[float],
    landscape: ArrayLike | None = None,
    foreground: ArrayLike | None = None,
    radius: float | None = None,
    stack: NDArray | None = None,
) -> Edit:
    """Add an object where the user clicked.

    The click floods `landscape` in competition with the objects that exist and with everything
    farther away than `radius`; it ends where there is less than half of the foreground that the
    network saw at the click. Where the maps show nothing the object is a disc of half the radius.

    Args:
        labels: (y, x) integer labels, 0 background.
        position: (2,) the click.
        landscape: (y, x) map in [0, 1] that is low inside objects and high between them, see
            `Representation.landscape`.
        foreground: (y, x) map in [0, 1].
        radius: Largest distance of a pixel from the click. None: twice that of the typical
            object, see `typical_radius`.
        stack: (..., y, x) all slices, where `labels` is one of them: the new object gets a number
            that is free in all, see `unused_labels`.

    Returns:
        The new object; others stay as they are. Empty if there is an object at `position`
        already, or `position` is outside of the image.

    Raises:
        ValueError: If the radius is not positive.
    """
    labels = _checked(labels)
    maps = [
        None if given is None else _checked_map(name, given, labels)
        for name, given in (("landscape", landscape), ("foreground", foreground))
    ]
    if radius is None:
        radius = 2 * typical_radius(labels)
    if not radius > 0:
        raise ValueError(f"`radius` must be positive, got {radius}.")
    if _label_at(labels, position) != 0:
        return _nothing(labels)
    center = np.rint(np.asarray(position, float)).astype(int)
    click = slice(center[0], center[0] + 1), slice(center[1], center[1] + 1)
    box = _grown(click, int(np.ceil(radius)) + 1, labels.shape)
    rows, columns = np.ogrid[box]
    away = np.hypot(rows - center[0], columns - center[1])
    free = labels[box] == 0
    start = free & (away <= _MARKER_RADIUS)
    allowed = free & (away <= radius)
    heights, inside = (None if given is None else np.asarray(given[box]) for given in maps)
    seen = 0.0 if inside is None else float(inside[start].mean())
    if inside is not None and seen > _LEAST_FOREGROUND:
        allowed &= inside > seen / 2
    if heights is not None or seen <= _LEAST_FOREGROUND:
        if heights is None:
            heights = np.zeros(free.shape)
        # On a flat landscape water meets halfway, in a diamond: the faint ridge makes it a disc.
        ridge = _FAINT * np.maximum(1 - np.abs(2 * away / radius - 1), 0)
        markers = np.where(free, np.where(away <= radius, 0, 2), 3)
        markers[start] = 1
        flooded = seeded_watershed(heights + ridge, markers, np.ones(free.shape, bool))
        allowed &= flooded == 1
    pieces = connected_components(allowed | start, connectivity=1)
    clicked = pieces[center[0] - box[0].start, center[1] - box[1].start]
    shape = ndimage.binary_fill_holes(pieces == clicked) & free
    (new,) = unused_labels(labels if stack is None else stack, 1)
    return _edit(labels, box, shape, new, new)


def border_objects(labels: ArrayLike) -> NDArray[Any]:
    """List the objects that touch the border of the image.

    Args:
        labels: (y, x) integer labels, 0 background.

    Returns:
        (n,) their numbers, in ascending order.
    """
    labels = _checked(labels)
    sides = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    found = np.unique(sides)
    return found[found != 0]


def delete_at_border(labels: ArrayLike) -> Edit:
    """Delete the objects that touch the border of the image.

    Args:
        labels: (y, x) integer labels, 0 background.

    Returns:
        Their pixels become background.
    """
    labels = _checked(labels)
    whole = (slice(0, labels.shape[0]), slice(0, labels.shape[1]))
    return _edit(labels, whole, np.isin(labels, border_objects(labels)), 0, None)


def object_inside(labels: ArrayLike, outline: ArrayLike) -> int | None:
    """Find the object that a drawn outline means: the one with most pixels inside.

    Half of the object must be inside of the outline, or half of the outline inside of the object:
    a neighbour that the outline only touches is not meant.

    Args:
        labels: (y, x) integer labels, 0 background.
        outline: (n, 2) corners of the polygon, n >= 3.

    Returns:
        Its number, None if no object is meant.
    """
    labels = _checked(labels)
    corners = _checked_points("outline", outline, 3)
    rows, columns = draw_polygon(corners[:, 0], corners[:, 1], labels.shape)
    ids, areas = np.unique(labels[rows, columns], return_counts=True)
    for i in np.argsort(-areas, kind="stable"):
        if ids[i] and 2 * areas[i] >= min(len(rows), np.count_nonzero(labels == ids[i])):
            return int(ids[i])
    return None


def typical_radius(labels: ArrayLike) -> float:
    """Give the radius of the disc that has the median area of the objects, 15 without objects.

    Args:
        labels: (y, x) integer labels, 0 background.
    """
    ids, areas = np.unique(_checked(labels), return_counts=True)
    areas = areas[ids != 0]
    return float(np.sqrt(np.median(areas) / np.pi)) if areas.size else _FIRST_RADIUS


def unused_labels(labels: NDArray, count: int) -> list[int]:
    """Choose numbers for new objects: those after the largest or, beyond the dtype, free ones.

    Args:
        labels: (...) integer labels.
        count: How many numbers.

    Raises:
        ValueError: If the dtype has too few numbers left.
    """
    largest = int(np.iinfo(labels.dtype).max)
    start = max(int(labels.max(initial=0)), 0) + 1
    if start + count - 1 <= largest:
        return list(range(start, start + count))
    used = np.unique(labels)
    free = np.setdiff1d(np.arange(1, min(used.size + count, largest) + 1), used)[:count]
    if free.size < count:
        raise ValueError(
            f"`labels` must have room for {count} more objects, but {labels.dtype} ends at "
            f"{largest}. Convert the layer to a larger type first."
        )
    return free.tolist()


def _checked(labels: ArrayLike) -> NDArray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"`labels` must be integers, got {labels.dtype}.")
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(f"`labels` must be one slice of shape (y, x), got {labels.shape}.")
    return labels


def _checked_map(name: str, given: ArrayLike, labels: NDArray) -> NDArray:
    given = np.asarray(given)
    if given.shape != labels.shape:
        raise ValueError(
            f"`{name}` must have the shape of `labels` {labels.shape}, got {given.shape}."
        )
    return given


def _checked_points(name: str, points: ArrayLike, least: int) -> NDArray[np.float64]:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < least:
        raise ValueError(f"`{name}` must have shape (n, 2) with n >= {least}, got {points.shape}.")
    return points


def _check_room(labels: NDArray, label: int) -> None:
    limits = np.iinfo(labels.dtype)
    if not limits.min <= label <= limits.max:
        raise ValueError(
            f"`label` must fit into {labels.dtype}, at most {limits.max}, got {label}. Convert "
            "the layer to a larger type first."
        )


def _shown(point: NDArray) -> str:
    return f"({point[0]:.0f}, {point[1]:.0f})"


def _label_at(labels: NDArray, position: Sequence[float]) -> int | None:
    """Return the label of the pixel nearest to a point, None outside of the image."""
    row, column = (int(np.rint(value)) for value in position)
    if not (0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]):
        return None
    return int(labels[row, column])


def _box(mask: NDArray[np.bool_]) -> Box:
    """Return the smallest box around the pixels of a mask that has some."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _grown(box: Box, margin: int, shape: tuple[int, ...]) -> Box:
    """Enlarge a box on all sides, as far as the image reaches."""
    rows, columns = (
        slice(max(part.start - margin, 0), min(part.stop + margin, length))
        for part, length in zip(box, shape, strict=True)
    )
    return rows, columns


def _stroke(
    line: ArrayLike, shape: tuple[int, ...], least: int = 2
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """List the pixels under a line in the order in which it was drawn, some of them twice."""
    points = np.rint(_checked_points("line", line, least)).astype(int)
    if len(points) == 1:
        points = points.repeat(2, axis=0)
    pieces = [draw_line(*a, *b) for a, b in zip(points[:-1], points[1:], strict=True)]
    rows, columns = (np.concatenate(axis) for axis in zip(*pieces, strict=True))
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    return rows[inside], columns[inside]


def _in_order(labels: NDArray) -> list[int]:
    """List the objects among labels in the order of their first appearance."""
    ids, first = np.unique(labels, return_index=True)
    return [int(i) for i in ids[np.argsort(first)] if i != 0]


def _nothing(labels: NDArray) -> Edit:
    none = np.empty(0, np.intp)
    return Edit((none, none), np.empty(0, labels.dtype))


def _edit(
    labels: NDArray, box: Box, mask: NDArray[np.bool_], value: int, label: int | None
) -> Edit:
    """Set the pixels of a mask in a box to one value."""
    _check_room(labels, value)
    rows, columns = np.nonzero(mask)
    indices = (rows + box[0].start, columns + box[1].start)
    return Edit(indices, np.full(len(rows), value, labels.dtype), label)


def _joined(labels: NDArray, edits: Sequence[Edit], label: int | None = None) -> Edit:
    if not edits:
        return _nothing(labels)
    rows, columns = (np.concatenate([edit.indices[axis] for edit in edits]) for axis in (0, 1))
    values = np.concatenate([edit.values for edit in edits])
    return Edit((rows, columns), values, edits[0].label if label is None else label)


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Measure how deep inside an object its pixels are; beyond the box is outside."""
    return depth_inside(np.pad(mask, 1))[1:-1, 1:-1]


def _nearest_inside(
    mask: NDArray[np.bool_], point: NDArray, shown: NDArray, label: int
) -> tuple[int, int]:
    """Return the pixel of a mask that is nearest to a point."""
    pixels = np.argwhere(mask)
    away = np.hypot(*(pixels - point).T)
    nearest = int(np.argmin(away))
    if away[nearest] > _REACH:
        raise ValueError(
            f"`line` must have both ends in object {label}, got {_shown(shown)}, "
            f"{away[nearest]:.0f} pixels beside it. Put one end into each part."
        )
    return int(pixels[nearest, 0]), int(pixels[nearest, 1])


def _cut_off(mask: NDArray[np.bool_], blade: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """List the parts that a line cuts off from the pieces of a mask; the largest are not listed."""
    cut_off = []
    whole = connected_components(mask, connectivity=1)
    parts = connected_components(mask & ~blade, connectivity=1)
    flat = np.zeros(mask.shape, np.float32)
    for piece in np.unique(whole[blade]):
        inside = whole == piece
        numbers, areas = np.unique(parts[inside & ~blade], return_counts=True)
        numbers = numbers[areas >= _SMALLEST_PART]
        if len(numbers) < 2:
            continue
        markers = np.where(inside & np.isin(parts, numbers), parts, 0)
        filled = seeded_watershed(flat, markers, inside)
        sizes = np.bincount(filled.ravel())[numbers]
        cut_off += [filled == number for number in np.delete(numbers, np.argmax(sizes))]
    return cut_off


def _split_at_ridge(
    heights: NDArray[np.float32],
    mask: NDArray[np.bool_],
    ends: Sequence[tuple[int, int]],
    least: float,
) -> NDArray[np.int32] | None:
    """Split a mask into 1 and 2 along the ridge between two pixels, None if there is none.

    Basins that are less than `least` deep do not count: they are filled first.
    """
    walled = np.where(mask, heights, heights.max() + 2 * least).astype(np.float64)
    filled = reconstruction(walled + least, walled, method="erosion")
    minima = connected_components(local_minima(filled, connectivity=1) & mask, connectivity=1)
    basins = seeded_watershed(filled, minima, mask)
    first, second = (basins[end] for end in ends)
    if first == second:
        return None
    markers = np.where(basins == first, 1, np.where(basins == second, 2, 0))
    return seeded_watershed(filled, markers, mask)


def _split_halfway(mask: NDArray[np.bool_], ends: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """Split a mask into 1 and 2 along the line halfway between two pixels."""
    rows, columns = np.indices(mask.shape)
    first, second = (np.hypot(rows - y, columns - x) for y, x in ends)
    sides = np.where(mask, np.where(first <= second, 1, 2), 0)
    pieces = connected_components(sides, connectivity=1)
    markers = np.zeros(mask.shape, np.int32)
    for number, end in enumerate(ends, start=1):
        markers[pieces == pieces[end]] = number
    return seeded_watershed(np.zeros(mask.shape, np.float32), markers, mask)
