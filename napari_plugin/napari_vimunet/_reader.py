"""Labels that vimunet saved, back in the viewer with their scale and units."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vimunet.io.label_files import read_label_tiff
from vimunet.io.ome_zarr import read_ome_zarr

Layers = list[tuple[Any, dict[str, Any], str]]

LAZY_BYTES = 1 << 30
"""Larger OME-Zarr labels stay on disk, and cannot be corrected."""


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], Layers] | None:
    """Give the function that reads a file, or None for files of other programs."""
    if isinstance(path, list):
        return None
    read = _read_zarr if Path(path).is_dir() else _read_tiff
    try:
        layers = read(Path(path))
    except (ValueError, OSError):
        return None
    return None if layers is None else lambda _: layers


def _read_tiff(path: Path) -> Layers:
    labels, place = read_label_tiff(path)
    attributes = {
        "name": path.stem.removesuffix("_labels"),
        "scale": place.scale,
        "translate": place.translate,
        "units": place.units,
        "axis_labels": place.axes,
    }
    return [(labels, attributes, "labels")]


def _read_zarr(path: Path) -> Layers | None:
    volume = read_ome_zarr(path)
    if not volume.is_labels:
        return None
    stored = volume.levels[0]
    attributes = {
        "name": path.name.split(".")[0].removesuffix("_labels"),
        "scale": volume.scale,
        "translate": volume.translate,
        "units": [unit or "pixel" for unit in volume.units],
        "axis_labels": volume.axes,
    }
    return [(np.asarray(stored) if stored.nbytes < LAZY_BYTES else stored, attributes, "labels")]
