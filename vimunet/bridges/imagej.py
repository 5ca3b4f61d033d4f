"""Regions of ImageJ and Fiji: labels from their ROI files, and ROI files from labels.

`read_rois` fills the regions in a zip file of the ROI manager; `outlines_of` walks around the
pixels of each object, and `write_rois` stores these outlines in one such file. Where no object has
a hole, `read_rois` gives back what `write_rois` took.

Source:
    The format as roifile reads it, and ImageJ's rules of what lies inside: pixel (i, j) covers the
    square from (i, j) to (i + 1, j + 1) and belongs to a region if its centre does. A centre on
    the outline itself belongs to it if the region is at its left or below it, as in ImageJ's
    PolygonFiller. Deviations: a spline is read as the polygon through its points, and so are
    fitted ellipses and rotated rectangles, of which ImageJ stores the polygon too.
"""

import math
import re
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from vimunet.io.atomic import replacing
from vimunet.messages import some_of

MAX_ROI_BYTES = 2**24
MAX_FILE_BYTES = 2**28

# Steps along the sides of pixels as (dy, dx): right, down, left, up. The object is at their right.
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))

# Operations in the path of a composite region, and how many numbers follow each.
_MOVE, _CLOSE = 0, 4
_OPERANDS = {_MOVE: 2, 1: 2, 2: 4, 3: 6, _CLOSE: 0}
_CURVE_STEPS = 32
_MOST_CROSSINGS = 2**20
# The names that `write_rois` gives: the slice in a stack, the label, the number of the piece.
_OWN_NAME = re.compile(r"(z\d{1,9}-)?([1-9]\d{0,9})(?:-([1-9]\d{0,8}))?", re.ASCII)


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
    roifile = _roifile()
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
            roi = roifile.ImagejRoi.frompoints(
                outline[:, ::-1],
                name=f"z{z + 1:04d}-{name}" if stacked else name,
                position=z if stacked else None,
            )
            roi.roitype = roifile.ROI_TYPE.TRACED
            rois.append(roi)
    if not rois:
        raise ValueError("`labels` must have at least one object, got none.")
    with replacing(path) as temporary:
        roifile.roiwrite(temporary, rois, mode="w")
    return len(rois)


def read_rois(path: str | Path, shape: tuple[int, ...]) -> NDArray[np.integer]:
    """Read the regions of ImageJ's ROI manager as labels.

    Polygons, freehand and traced outlines, rectangles, ovals and composite regions are filled,
    whole or subpixel; what lies outside of the image is cut off. Where regions overlap, the later
    one in the file is on top. Warns of objects that are lost by that, of regions without any
    pixel, and of points, lines, texts and pictures, which are left out.

    Args:
        path: A zip file of regions, or one region (`.roi`).
        shape: (y, x) of the image, or (z, y, x) of a stack.

    Returns:
        (y, x) or (z, y, x) labels, int32, or int64 if a label needs it. If the names of all regions
        are those that `write_rois` gives, they tell the labels; else the regions are numbered from
        1 as they follow each other in the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If roifile is not installed.
        ValueError: If the file is damaged, too large, or has something else in it, or if the slices
            of its regions do not fit `shape`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such file: {path}.")
    if len(shape) not in (2, 3):
        raise ValueError(f"`shape` must be (y, x) or (z, y, x), got {shape}.")
    entries = list(_entries(path))
    names = [name for name, _ in entries]
    numbers = _numbers(names)
    labels = np.zeros(shape, np.int32 if max(numbers, default=0) < 2**31 else np.int64)
    slices: dict[str, int] = {}
    problems: dict[str, list[str]] = defaultdict(list)
    drawn: dict[int, str] = {}
    for (name, data), number in zip(entries, numbers, strict=True):
        roi = _decode(path, name, data)
        region = _region(path, name, roi, shape[-2:])
        if region is None:
            problems[f"are left out, because they have no area ({roi.roitype.name})"].append(name)
            continue
        slices[name] = z = int(roi.position or roi.z_position or roi.t_position)
        if len(shape) == 3 and not 1 <= z <= shape[0]:
            raise ValueError(
                f"Region {name!r} of {path} must lie in one of {shape[0]} slices, got slice {z}."
            )
        box, mask = region
        if not mask.any():
            problems[f"have no pixel in an image of shape {tuple(shape[-2:])}"].append(name)
            continue
        plane = labels[z - 1] if len(shape) == 3 else labels
        plane[box][mask] = number
        drawn.setdefault(number, name)
    if len(shape) == 2 and len(set(slices.values()) - {0}) > 1:
        found = ", ".join(str(z) for z in sorted(set(slices.values()) - {0}))
        raise ValueError(
            f"The regions in {path} must lie in one slice to fit `shape` {tuple(shape)}, got "
            f"slices {found}. Use a file for each image, or the shape of the whole stack."
        )
    for number in np.setdiff1d(list(drawn), labels).tolist():
        problems["are lost, because later regions cover them"].append(drawn[number])
    for problem, concerned in problems.items():
        warnings.warn(
            f"{len(concerned)} of {len(entries)} regions in {path} {problem}: "
            f"{some_of(map(repr, concerned))}.",
            stacklevel=2,
        )
    return labels


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


def _roifile() -> Any:
    try:
        import roifile
    except ImportError as error:
        raise ImportError(
            "Regions of ImageJ need roifile. Install it with `pip install 'vimunet[benchmark]'`, "
            "or `pip install roifile`."
        ) from error
    return roifile


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Return name and content of each region in a file, none of them larger than allowed."""
    if path.suffix.lower() != ".zip":
        if path.stat().st_size > MAX_ROI_BYTES:
            raise ValueError(f"A region must not have more than {MAX_ROI_BYTES} bytes, got {path}.")
        yield path.stem, path.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            files = [info for info in archive.infolist() if not info.is_dir()]
            regions = [
                info
                for info in files
                if info.filename.lower().endswith(".roi")
                and not info.filename.rpartition("/")[2].startswith(".")
            ]
            if files and not regions:
                raise ValueError(
                    f"{path} must be a zip file of regions (.roi), got {files[0].filename!r}."
                )
            total = sum(info.file_size for info in regions)
            if total > MAX_FILE_BYTES:
                raise zipfile.BadZipFile(f"{total} bytes of regions, more than {MAX_FILE_BYTES}")
            for info in regions:
                if info.file_size > MAX_ROI_BYTES:
                    raise zipfile.BadZipFile(
                        f"region {info.filename!r} of {info.file_size} bytes, "
                        f"more than {MAX_ROI_BYTES}"
                    )
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise zipfile.BadZipFile(f"region {info.filename!r} in an unusual compression")
                yield info.filename.rpartition("/")[2][:-4], archive.read(info)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        OSError,
        RuntimeError,
    ) as error:
        raise ValueError(
            f"{path} must be an undamaged zip file of regions, got: {error}."
        ) from error


def _numbers(names: Sequence[str]) -> list[int]:
    """Return the label of each region.

    Names such as ImageJ's own, 0123-0456 or 1234-1567 for the middle of a region, must not pass for
    labels: piece 2 of a label comes after piece 1, which is named by the label alone.
    """
    numbers = []
    last: dict[tuple[str, str], int] = {}
    for name in names:
        match = _OWN_NAME.fullmatch(name)
        if match is None:
            return list(range(1, len(names) + 1))
        place, label, piece = match.groups()
        if piece == "1" or last.get((place, label), 0) != int(piece or 1) - 1:
            return list(range(1, len(names) + 1))
        last[place, label] = int(piece or 1)
        numbers.append(int(label))
    return numbers


def _decode(path: Path, name: str, data: bytes) -> Any:
    try:
        return _roifile().ImagejRoi.frombytes(data)
    except ImportError:
        raise
    except Exception as error:  # roifile checks little of what it reads
        raise ValueError(f"Region {name!r} of {path} cannot be read ({error}).") from error


def _region(
    path: Path, name: str, roi: Any, shape: Sequence[int]
) -> tuple[tuple[slice, slice], NDArray[np.bool_]] | None:
    """Return a box within the image and the pixels of the region in it, None without an area."""
    types, subtypes = _roifile().ROI_TYPE, _roifile().ROI_SUBTYPE
    if roi.subtype in (subtypes.TEXT, subtypes.IMAGE):
        return None
    if roi.roitype in (types.RECT, types.OVAL) and not roi.composite:
        left, top = roi.left, roi.top
        width, height = roi.right - roi.left, roi.bottom - roi.top
        if roi.subpixelrect:
            left, top, width, height = roi.xd, roi.yd, roi.widthd, roi.heightd
        arc = roi.rounded_rect_arc_size
        radii = (height / 2, width / 2) if roi.roitype == types.OVAL else (arc / 2, arc / 2)
        radii = radii if width and height else (0, 0)
        rectangle = np.array([top, left, height, width], float)
        if not np.isfinite(rectangle).all() or width < 0 or height < 0:
            raise ValueError(
                f"Region {name!r} of {path} must have a height and a width of at least 0, got "
                f"{height:g} and {width:g}."
            )
        if not all(radii):
            corners = np.array([(0, 0), (0, width), (height, width), (height, 0)])
            return _fill([corners + rectangle[:2]], shape)
        return _fill_rounded(rectangle, radii, shape)
    if roi.composite and roi.roitype == types.RECT:
        try:
            pieces = _pieces_of(roi.multi_coordinates.tolist())
        except ValueError as error:
            raise ValueError(f"Region {name!r} of {path} {error}.") from error
    elif roi.roitype in (types.POLYGON, types.FREEHAND, types.TRACED):
        pieces = [np.asarray(roi.coordinates(), float)]
    else:
        return None
    if not all(np.isfinite(piece).all() for piece in pieces):
        raise ValueError(f"Coordinates of region {name!r} of {path} must be finite numbers.")
    return _fill([piece[:, ::-1] for piece in pieces], shape)


def _pieces_of(path: list[float]) -> list[NDArray[np.float64]]:
    """Return (n, 2) corners (x, y) of each closed part of a path; curves become short lines."""
    pieces: list[list[NDArray[np.float64]]] = []
    place = 0
    while place < len(path):
        operation = path[place]
        if operation not in _OPERANDS:
            raise ValueError(f"must have operations 0 to 4 in its path, got {operation:g}")
        count = _OPERANDS[int(operation)]
        numbers = path[place + 1 : place + 1 + count]
        if len(numbers) < count or (operation != _MOVE and not pieces):
            raise ValueError("must have a complete path")
        place += 1 + count
        if operation == _MOVE:
            pieces.append([np.array([numbers])])
        elif operation == _CLOSE:
            pieces.append([pieces[-1][0]])
        else:
            start = pieces[-1][-1][-1:]
            control = np.concatenate([start, np.reshape(numbers, (-1, 2))])
            pieces[-1].append(_curve(control) if count > 2 else control[1:])
    return [np.concatenate(piece) for piece in pieces]


def _curve(control: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points on the Bezier curve of control points, without the first of them."""
    degree = len(control) - 1
    way = np.arange(1, _CURVE_STEPS + 1)[:, None] / _CURVE_STEPS
    power = np.arange(degree + 1)
    times = np.array([math.comb(degree, k) for k in power])
    return (times * way**power * (1 - way) ** (degree - power)) @ control


def _fill(
    pieces: Sequence[NDArray[np.float64]], shape: Sequence[int]
) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Fill (n, 2) polygons (y, x); what lies in an even number of them is outside.

    A line that crosses a row of pixel centres changes what is inside from there on to the right.
    """
    starts = np.concatenate(pieces) if pieces else np.zeros((0, 2))
    ends = np.concatenate([np.roll(p, -1, axis=0) for p in pieces]) if pieces else starts
    if not len(starts):
        return (slice(0), slice(0)), np.zeros((0, 0), bool)
    top, left = np.clip(np.floor(starts.min(axis=0)), 0, shape).astype(int)
    bottom, right = np.clip(np.ceil(starts.max(axis=0)) + 1, (top, left), shape).astype(int)
    box = slice(top, bottom), slice(left, right)
    rows, columns = bottom - top, right - left
    # A row belongs to a line if its centre is at or below the upper end, above the lower end.
    first, last = (
        np.clip(np.ceil(pick(starts[:, 0], ends[:, 0]) - 0.5), top, bottom).astype(int)
        for pick in (np.minimum, np.maximum)
    )
    crossed = np.flatnonzero(last > first)
    starts, ends, first = starts[crossed], ends[crossed], first[crossed]
    sums = np.cumsum(last[crossed] - first)
    total = int(sums[-1]) if len(sums) else 0
    cuts = np.searchsorted(sums, np.arange(_MOST_CROSSINGS, total, _MOST_CROSSINGS))
    changes = np.zeros(rows * (columns + 1), bool)
    for part in np.split(np.arange(len(crossed)), cuts):
        if not len(part):
            continue
        before = sums[part[0] - 1] if part[0] else 0
        counts = np.diff(sums[part], prepend=before)
        line = np.repeat(part, counts)
        row = first[line] + np.arange(len(line)) - np.repeat(np.cumsum(counts) - counts, counts)
        (y0, x0), (y1, x1) = starts[line].T, ends[line].T
        x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        column = np.clip(np.floor(x + (0.5 + 1e-8)), left, right).astype(int)
        places = (row - top) * (columns + 1) + column - left
        changes ^= (np.bincount(places, minlength=len(changes)) % 2).astype(bool)
    changes = changes.reshape(rows, columns + 1)
    return box, np.logical_xor.accumulate(changes, axis=1)[:, :columns]


def _fill_rounded(
    rectangle: NDArray[np.float64], radii: tuple[float, float], shape: Sequence[int]
) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Fill a rectangle (top, left, height, width) with round corners; an oval has nothing else."""
    places, beyond = [], []
    for axis in (0, 1):
        start, size = rectangle[axis], rectangle[axis + 2]
        low = int(np.clip(np.floor(start), 0, shape[axis]))
        high = int(np.clip(np.ceil(start + size), low, shape[axis]))
        radius = min(radii[axis], size / 2)
        from_middle = np.abs(np.arange(low, high) + 0.5 - (start + size / 2))
        beyond.append(np.maximum(from_middle - (size / 2 - radius), 0) / radius)
        places.append(slice(low, high))
    return (places[0], places[1]), np.add.outer(beyond[0] ** 2, beyond[1] ** 2) <= 1
