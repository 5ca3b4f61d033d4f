"""Measure objects, score labels against others, write the table.

Nothing here knows napari, Qt or torch. Tables are plain columns of equal length, one row per
object, so that they can become a data frame, a CSV file or the features of a layer.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.measure import regionprops_table

from vimunet.evaluation import evaluate, summarize
from vimunet.files import replacing

_SHORT_UNITS = {
    "pixel": "px",
    "pixels": "px",
    "micrometer": "um",
    "micrometre": "um",
    "micron": "um",
    "µm": "um",
    "μm": "um",
    "nanometer": "nm",
    "nanometre": "nm",
    "millimeter": "mm",
    "millimetre": "mm",
}

_SHAPES = {
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
}
_INTENSITIES = ("mean", "std", "min", "max")


def measure(
    labels: ArrayLike,
    image: ArrayLike | None = None,
    scale: Sequence[float] | None = None,
    units: str = "pixel",
) -> dict[str, NDArray[Any]]:
    """Measure each object.

    | column | meaning |
    | --- | --- |
    | slice | number of the slice, for stacks only |
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

    With a scale the unit replaces `px` in the names of the columns, and the centre is there in
    both. Perimeter and circularity are only measured for square pixels.

    Args:
        labels: (y, x) integer labels, 0 background, or (z, y, x): each slice by itself.
        image: (y, x) or (y, x, c), with z in front for stacks. None: no intensities.
        scale: Height and width of a pixel, both > 0. None: 1, 1.
        units: Of the scale, "um" or "micrometer" for example. With "pixel" the scale is no length
            and not used: all is measured in pixels.

    Returns:
        Column name -> (n,) values, objects in the order of their slice and label.

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If shapes do not agree or the scale is not positive.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"`labels` must be integers, got {labels.dtype}.")
    if labels.ndim not in (2, 3):
        raise ValueError(f"`labels` must have shape (y, x) or (z, y, x), got {labels.shape}.")
    pixels = None if image is None else np.asarray(image)
    if pixels is not None and pixels.shape[: labels.ndim] != labels.shape:
        raise ValueError(
            f"`image` must begin with the shape of `labels` {labels.shape}, got {pixels.shape}."
        )
    if pixels is not None and pixels.ndim > labels.ndim + 1:
        raise ValueError(f"`image` must have at most one more axis, got shape {pixels.shape}.")
    spacing = (1.0, 1.0) if scale is None else tuple(float(length) for length in scale)
    if len(spacing) != 2 or not all(0 < length < math.inf for length in spacing):
        raise ValueError(f"`scale` must be two positive numbers, got {spacing}.")
    unit = _short(units) if scale is not None else "px"
    if unit == "px":
        spacing = (1.0, 1.0)
    if labels.ndim == 2:
        return _measure_slice(labels, pixels, spacing, unit)
    tables = [
        _measure_slice(one, None if pixels is None else pixels[z], spacing, unit)
        for z, one in enumerate(labels)
    ]
    if not tables:
        raise ValueError(f"`labels` must have at least one slice, got shape {labels.shape}.")
    numbers = [np.full(len(table["label"]), z) for z, table in enumerate(tables)]
    joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    return {"slice": np.concatenate(numbers), **joined}


def score(labels: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Score labels against others that are taken as true.

    Args:
        labels: (y, x) integer labels, 0 background, or (z, y, x): each slice by itself.
        truth: The same shape.

    Returns:
        mSA, SA50, TP, FP, FN and the other scores of `vimunet.evaluate`. For stacks the counts
        are sums over the slices and all else is the mean.

    Raises:
        TypeError: If one of them does not hold integers.
        ValueError: If the shapes differ or a label is negative.
    """
    labels, truth = np.asarray(labels), np.asarray(truth)
    if labels.ndim != 3 or labels.shape != truth.shape:
        return evaluate(labels, truth)
    slices = [evaluate(*pair) for pair in zip(labels, truth, strict=True)]
    summary = summarize([{"name": str(z), **scores} for z, scores in enumerate(slices)])
    together = {**summary["mean"], **summary["total"], "threshold": slices[0]["threshold"]}
    return {name: together[name] for name in slices[0]}


def write_csv(path: str | Path, table: Mapping[str, Iterable[Any]]) -> None:
    """Write a table, completely or not at all; an existing file is replaced.

    Args:
        path: File to write.
        table: Column name -> values.
    """
    with (
        replacing(Path(path)) as temporary,
        # With the mark at its start, spreadsheets read the file as UTF-8.
        temporary.open("w", encoding="utf-8-sig", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(table)
        for row in zip(*table.values(), strict=True):
            writer.writerow([_cell(value) for value in row])


def _measure_slice(
    labels: NDArray, image: NDArray | None, spacing: tuple[float, ...], unit: str
) -> dict[str, NDArray[Any]]:
    """Measure the objects of one (y, x) slice."""
    square = math.isclose(spacing[0], spacing[1])
    wanted = ["centroid", "bbox", *(key for key in _SHAPES if "-" not in key)]
    if not square:
        wanted.remove("perimeter")
    if image is not None:
        wanted += [f"intensity_{kind}" for kind in _INTENSITIES]
    found = regionprops_table(labels, image, properties=wanted, spacing=spacing)
    centre = {f"{axis}_px": found[f"centroid-{i}"] / spacing[i] for i, axis in enumerate("yx")}
    table = {name.format(unit=unit): found[key] for key, name in _SHAPES.items() if key in found}
    table |= centre
    round_ones = table["eccentricity"] == 0
    table["orientation_degrees"] = np.where(round_ones, np.nan, np.degrees(found["orientation"]))
    if square:
        perimeter = table[f"perimeter_{unit}"]
        with np.errstate(divide="ignore", invalid="ignore"):
            circularity = 4 * np.pi * table[f"area_{unit}2"] / perimeter**2
        table["circularity"] = np.where(perimeter > 0, circularity, np.nan)
    table["touches_border"] = (
        (found["bbox-0"] == 0)
        | (found["bbox-1"] == 0)
        | (found["bbox-2"] == labels.shape[0])
        | (found["bbox-3"] == labels.shape[1])
    )
    for kind in _INTENSITIES if image is not None else ():
        for key in found:
            if key.startswith(f"intensity_{kind}"):
                channel = key.removeprefix(f"intensity_{kind}").replace("-", "_c")
                table[f"{kind}_intensity{channel}"] = found[key]
    return table


def _short(units: str) -> str:
    """Give the unit as part of a column name."""
    units = str(units).strip()
    return _SHORT_UNITS.get(units.lower(), units or "px")


def _cell(value: Any) -> Any:
    """Give what stands in the file: seven digits, nothing for NaN."""
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else f"{value:.7g}"
    return value
