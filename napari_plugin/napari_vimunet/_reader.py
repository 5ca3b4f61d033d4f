"""Labels that vimunet saved, back in the viewer with their scale and units."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from napari_vimunet.label_files import read_label_tiff

Layers = list[tuple[Any, dict[str, Any], str]]


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], Layers] | None:
    """Give the function that reads a file, or None for files of other programs."""
    if isinstance(path, list):
        return None
    try:
        read_label_tiff(path)
    except (ValueError, OSError):
        return None
    return read_labels


def read_labels(path: str | list[str]) -> Layers:
    """Read a label TIFF of vimunet."""
    assert isinstance(path, str)
    labels, place = read_label_tiff(path)
    attributes = {
        "name": Path(path).stem.removesuffix("_labels"),
        "scale": place.scale,
        "translate": place.translate,
        "units": place.units,
        "axis_labels": place.axes,
    }
    return [(labels, attributes, "labels")]
