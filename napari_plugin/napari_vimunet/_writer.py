"""Labels to files: label TIFF, OME-Zarr, ROIs for ImageJ.

Existing files are replaced: the dialogs have asked.
"""

from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels

from vimunet.io.label_files import Place, write_label_tiff
from vimunet.io.ome_zarr import write_ome_zarr_labels

FILTERS = ("Label TIFF (*.tif)", "OME-Zarr (*.ome.zarr)", "ImageJ ROIs (*.zip)")
"""Kinds of files, as a dialog names them."""


def write_tiff(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write a label TIFF; what napari calls to save a layer."""
    write_label_tiff(path, data, _place(data, attributes))
    return [path]


def write_ome_zarr(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write an OME-Zarr; what napari calls to save a layer."""
    place = _place(data, attributes)
    dropped = tuple(axis for axis, length in enumerate(data.shape[:-2]) if length == 1)
    if dropped:
        data, place = np.asarray(data).squeeze(dropped), place.without(dropped)
    axes = "".join(place.axes)
    write_ome_zarr_labels(
        path,
        data,
        scale=place.scale,
        translate=place.translate,
        units=place.units,
        axes=axes if axes in ("yx", "zyx", "tyx", "tzyx") else None,
        overwrite=True,
    )
    return [path]


def write_imagej_rois(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write the outlines of the objects for ImageJ; what napari calls to save a layer."""
    from vimunet.bridges.imagej import write_rois  # not with this module: it brings torch

    labels = np.asarray(data)
    write_rois(path, labels.reshape(-1, *labels.shape[-2:]) if labels.ndim > 2 else labels)
    return [path]


def save_labels(path: str | Path, layer: Labels, kind: str = "") -> Path:
    """Write the labels of a layer.

    Args:
        path: File to write. Its ending decides, or else `kind` gives it one.
        layer: The Labels layer.
        kind: One of `FILTERS`.

    Returns:
        The file.
    """
    path = Path(path)
    endings = {
        ".tif": write_tiff,
        ".tiff": write_tiff,
        ".zarr": write_ome_zarr,
        ".zip": write_imagej_rois,
    }
    if path.suffix.lower() not in endings:
        ending = dict(zip(FILTERS, (".tif", ".ome.zarr", ".zip"), strict=True)).get(kind, ".tif")
        path = path.with_name(path.name + ending)
    attributes = {
        "scale": layer.scale,
        "translate": layer.translate,
        "units": layer.units,
        "axis_labels": layer.axis_labels,
    }
    endings[path.suffix.lower()](str(path), layer.data, attributes)
    return path


def _place(data: Any, attributes: dict[str, Any]) -> Place:
    return Place.of(
        data.ndim,
        attributes.get("scale"),
        attributes.get("translate"),
        attributes.get("units"),
        attributes.get("axis_labels"),
    )
