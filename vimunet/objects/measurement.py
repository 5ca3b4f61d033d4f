"""Measure objects: size, position, shape, intensity, in images and in volumes.

Nothing here knows napari, Qt or torch. Tables are plain columns of equal length, one row per
object, so that they can become a data frame, a CSV file or the features of a layer.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.measure import marching_cubes, mesh_surface_area, regionprops_table
from skimage.segmentation import relabel_sequential
from tqdm import tqdm

from vimunet.axes import PerAxis, per_axis
from vimunet.io.formats import open_image, read_labels, read_slices
from vimunet.io.names import by_name, list_images
from vimunet.labels import checked_labels
from vimunet.messages import naming, some_of

Table = dict[str, NDArray[Any]]
"""Column name -> (n,) values."""

_SHAPES = {
    2: {
        "label": "label",
        "area": "area_{unit}2",
        "centroid-0": "y_{unit}",
        "centroid-1": "x_{unit}",
        "equivalent_diameter_area": "diameter_{unit}",
        "axis_major_length": "major_axis_{unit}",
        "axis_minor_length": "minor_axis_{unit}",
        "orientation": "orientation_degrees",
        "eccentricity": "eccentricity",
        "solidity": "solidity",
        "perimeter": "perimeter_{unit}",
    },
    3: {
        "label": "label",
        "area": "volume_{unit}3",
        "centroid-0": "z_{unit}",
        "centroid-1": "y_{unit}",
        "centroid-2": "x_{unit}",
        "equivalent_diameter_area": "diameter_{unit}",
        "axis_major_length": "major_axis_{unit}",
        "axis_minor_length": "minor_axis_{unit}",
    },
}
"""What scikit-image calls a measure, and we; by the number of axes."""

_INTENSITIES = ("mean", "std", "min", "max")


def measure(
    labels: ArrayLike | str | Path,
    image: ArrayLike | str | Path | None = None,
    *,
    spacing: PerAxis[float] | None = None,
    axes: str | None = None,
    channel: int | None = None,
) -> Table:
    """Measure each object of an array, a file, or a folder of files.

    | column | meaning |
    | --- | --- |
    | image | name of the file, for folders only |
    | t | time, for series only |
    | label | number of the object |
    | area_px2, diameter_px | area, and diameter of the disc of the same area |
    | y_px, x_px | centre of mass, from the centre of the first pixel |
    | major_axis_px, minor_axis_px | of the ellipse with the same second moments |
    | orientation_degrees | angle of the major axis from the y axis towards x, from -90 to 90 |
    | eccentricity | of that ellipse: 0 for a circle, towards 1 for a line |
    | solidity | area / area of the convex hull |
    | perimeter_px, circularity | length of the outline, 5 % too long for discs; |
    | | 4 pi area / perimeter^2, so that a disc has 0.9 |
    | touches_border | whether the object reaches the border of the image |
    | mean_intensity, std_, min_, max_ | of the pixels of the object; with several channels one |
    | | column for each, ending in _c0, _c1, ... |

    Objects of volumes have, instead of what is flat: volume_px3, z_px; diameter and axes of the
    ball and the ellipsoid; surface_px2, the area of a mesh around the voxels (7 to 17 % too large
    for balls of 12 to 3 voxels radius); sphericity, the surface of the ball of the same volume
    divided by that.

    With a spacing, `um` replaces `px` in the names of the columns, and the centre is there in
    both. Perimeter and circularity are only measured for square pixels.

    Args:
        labels: (y, x) integer labels, 0 background, (z, y, x) of a volume, with t in front of a
            series; or a label file, or a folder of them.
        image: Of the same shape, channels may follow; or a file or folder. None: no intensities.
        spacing: Size of a voxel in µm along each of ([z,] y, x). None: what files declare, and else
            all is measured in pixels.
        axes: A letter for each axis of labels; None: the last ones of "tzyx". "tyx" measures each
            slice of a stack by itself.
        channel: Which channel of image files; None: all.

    Returns:
        Column name -> (n,) values, objects in the order of their image, time and label.

    Raises:
        FileNotFoundError: If a file or folder does not exist.
        TypeError: If the labels are not integers.
        ValueError: If shapes do not agree or the spacing is not positive.

    Examples:
        >>> square = np.zeros((5, 5), int)
        >>> square[1:4, 1:4] = 7
        >>> table = measure(square, spacing=0.5)
        >>> table["label"], table["area_um2"], table["y_px"]
        (array([7]), array([2.25]), array([2.]))
    """
    if isinstance(labels, str | Path) and Path(labels).is_dir() and not _is_file(labels):
        assert image is None or isinstance(image, str | Path)
        return measure_folders(labels, image, spacing=spacing, channel=channel)[0]
    if isinstance(labels, str | Path):
        return _measure_file(Path(labels), image, spacing, axes, channel)
    objects = checked_objects(labels)
    if isinstance(image, str | Path):
        spatial = ("tzyx"[-objects.ndim :] if axes is None else axes).removeprefix("t")
        spacing = spacing_of(Path(image), spatial) if spacing is None else spacing
        image, _ = read_slices(image, in_channels=None, channel=channel)
    return _measure_array(objects, None if image is None else np.asarray(image), spacing, axes)


def _measure_array(
    labels: NDArray, pixels: NDArray | None, spacing: PerAxis[float] | None, axes: str | None
) -> Table:
    axes = "tzyx"[-labels.ndim :] if axes is None else axes
    if axes not in ("yx", "zyx", "tyx", "tzyx") or len(axes) != labels.ndim:
        raise ValueError(
            f"`labels` must have the axes (y, x), with z, t or both in front, got shape "
            f"{labels.shape}{'' if len(axes) == labels.ndim else f' and axes {axes!r}'}."
        )
    if pixels is not None and pixels.shape[: labels.ndim] != labels.shape:
        raise ValueError(
            f"`image` must begin with the shape of `labels` {labels.shape}, got {pixels.shape}."
        )
    if pixels is not None and pixels.ndim > labels.ndim + 1:
        raise ValueError(f"`image` must have at most one more axis, got shape {pixels.shape}.")
    ndim = len(axes.removeprefix("t"))
    sizes = per_axis("spacing", 1.0 if spacing is None else spacing, ndim)
    if not all(0 < size < math.inf for size in sizes):
        raise ValueError(f"`spacing` must be positive, got {spacing}.")
    unit = "px" if spacing is None else "um"
    if axes[0] != "t":
        return _measure_objects(labels, pixels, sizes, unit)
    tables = [
        _measure_objects(one, None if pixels is None else pixels[t], sizes, unit)
        for t, one in enumerate(labels)
    ]
    return joined({"t": np.full(len(table["label"]), t), **table} for t, table in enumerate(tables))


def joined(tables: Iterator[Table] | list[Table]) -> Table:
    """Put tables below each other; what one of them lacks is nan there."""
    found = list(tables)
    columns = dict.fromkeys(column for table in found for column in table)
    return {
        column: np.concatenate(
            [table.get(column, np.full(len(table["label"]), np.nan)) for table in found]
        )
        for column in columns
    }


def checked_objects(labels: ArrayLike) -> NDArray[Any]:
    """Return labels as an array of integers; nothing is said of their number of axes."""
    array = np.asarray(labels)
    return array if not array.size and array.dtype.kind in "iu" else checked_labels("labels", array)


def _is_file(path: str | Path) -> bool:
    return Path(path).suffix.lower() in (".zarr", ".n5")


def measure_folders(
    labels: str | Path,
    images: str | Path | None = None,
    *,
    spacing: PerAxis[float] | None = None,
    channel: int | None = None,
    progress: bool = False,
) -> tuple[Table, int]:
    """Measure the files of a folder, one after the other.

    Args:
        labels: Folder of label files.
        images: Folder of images of the same names.
        spacing: As for `measure`.
        channel: As for `measure`.
        progress: Show a bar on the screen.

    Returns:
        The table, and how many files it is of.
    """
    files = measured_files(labels, images, channel)
    tables = []
    for name, label_file, image_file in tqdm(
        files, unit="image", disable=None if progress else True
    ):
        table = _measure_file(label_file, image_file, spacing, None, channel)
        tables.append({"image": np.full(len(table["label"]), name), **table})
    return joined(tables), len(files)


def measured_files(
    labels: str | Path, images: str | Path | None, channel: int | None = None
) -> list[tuple[str, Path, Path | None]]:
    """Pair label files with images by name.

    Raises:
        FileNotFoundError: If a folder does not exist or has no image in it.
        ValueError: If a label file has no image, or a channel is chosen without images.
    """
    label_files = by_name(list_images(labels))
    if images is None:
        if channel is not None:
            raise ValueError("`channel` is for intensities: give images too, or leave it out.")
        return [(name, file, None) for name, file in label_files.items()]
    image_files = by_name(list_images(images))
    if missing := [name for name in label_files if name not in image_files]:
        raise ValueError(f"{images} must have an image for all labels, lacks {some_of(missing)}.")
    return [(name, file, image_files[name]) for name, file in label_files.items()]


def _measure_file(
    label_file: Path,
    image: ArrayLike | str | Path | None,
    spacing: PerAxis[float] | None,
    axes: str | None,
    channel: int | None,
) -> Table:
    labels = read_labels(label_file)
    if axes is None:
        with open_image(label_file, indices=True) as opened:
            declared = "".join(a for a in "tzyx" if opened.sizes.get(a, 0) > 1 or a in "yx")
        axes = declared if len(declared) == labels.ndim else "tzyx"[-labels.ndim :]
    pixels, files = None, [label_file]
    if isinstance(image, str | Path):
        pixels, _ = read_slices(image, in_channels=None, channel=channel)
        files.append(Path(image))
    elif image is not None:
        pixels = np.asarray(image)
    spatial = axes.removeprefix("t")
    with naming(label_file):
        if spacing is None:
            spacing = next(filter(None, (spacing_of(file, spatial) for file in files)), None)
        return _measure_array(labels, pixels, spacing, axes)


def spacing_of(path: Path, axes: str) -> tuple[float, ...] | None:
    """Read the size of a voxel in µm from a file; None if it does not declare it."""
    with open_image(path, indices=True) as image:
        return image.spacing(axes)


def _measure_objects(
    labels: NDArray, image: NDArray | None, spacing: tuple[float, ...], unit: str
) -> Table:
    """Measure the objects of one (y, x) image or (z, y, x) volume."""
    ndim, shapes = labels.ndim, _SHAPES[labels.ndim]
    dense = labels.astype(np.int64) if labels.dtype == np.uint64 else labels
    numbers = None
    if labels.size and labels.max() > 4 * labels.size:  # time and memory grow with the numbers
        dense, _, numbers = relabel_sequential(labels)
        dense = dense.astype(np.int64)
    square = ndim == 2 and math.isclose(spacing[0], spacing[1])
    wanted = ["centroid", "bbox", *(key for key in shapes if "-" not in key)]
    if not square and "perimeter" in wanted:
        wanted.remove("perimeter")
    if image is not None:
        wanted += [f"intensity_{kind}" for kind in _INTENSITIES]
    found = regionprops_table(dense, image, properties=wanted, spacing=spacing)
    if numbers is not None:
        found["label"] = numbers[found["label"]]
    table = {name.format(unit=unit): found[key] for key, name in shapes.items() if key in found}
    axes = "zyx"[-ndim:]
    table |= {f"{a}_px": found[f"centroid-{i}"] / spacing[i] for i, a in enumerate(axes)}
    if ndim == 2:
        round_ones = table["eccentricity"] == 0
        degrees = np.degrees(found["orientation"])
        table["orientation_degrees"] = np.where(round_ones, np.nan, degrees)
    boxes = [[found[f"bbox-{i + side * ndim}"] for i in range(ndim)] for side in (0, 1)]
    if square:
        perimeter = table[f"perimeter_{unit}"]
        with np.errstate(divide="ignore", invalid="ignore"):
            circularity = 4 * np.pi * table[f"area_{unit}2"] / perimeter**2
        table["circularity"] = np.where(perimeter > 0, circularity, np.nan)
    if ndim == 3:
        surface = np.array(
            [
                _surface(dense[tuple(map(slice, low, high))] == number, spacing)
                for number, low, high in zip(
                    _dense_numbers(found["label"], numbers),
                    np.transpose(boxes[0]),
                    np.transpose(boxes[1]),
                    strict=True,
                )
            ],
            float,
        )
        table[f"surface_{unit}2"] = surface
        ball = np.pi ** (1 / 3) * (6 * table[f"volume_{unit}3"]) ** (2 / 3)
        table["sphericity"] = ball / surface
    touches = np.zeros(len(table["label"]), bool)
    for low, high, length in zip(*boxes, labels.shape, strict=True):
        touches |= (low == 0) | (high == length)
    table["touches_border"] = touches
    for kind in _INTENSITIES if image is not None else ():
        for key in found:
            if key.startswith(f"intensity_{kind}"):
                column = key.removeprefix(f"intensity_{kind}").replace("-", "_c")
                table[f"{kind}_intensity{column}"] = found[key]
    return table


def _dense_numbers(labels: NDArray, numbers: Any) -> NDArray:
    """Give the numbers of objects in the array that was measured."""
    return labels if numbers is None else np.arange(1, len(labels) + 1)


def _surface(mask: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    """Measure the area of a mesh around a mask."""
    padded = np.pad(mask, 1).astype(np.float32)
    corners, faces, _, _ = marching_cubes(padded, 0.5, spacing=spacing)
    return float(mesh_surface_area(corners, faces))
