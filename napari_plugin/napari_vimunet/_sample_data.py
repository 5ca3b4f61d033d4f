"""The small real images that come with vimunet, with the labels that people drew (hidden)."""

from typing import Any

import numpy as np

from vimunet.datasets import SAMPLES
from vimunet.io.formats import read_image, read_labels

Layers = list[tuple[Any, dict[str, Any], str]]


def nuclei() -> Layers:
    """Nuclei in fluorescence, 256 x 256, from the 2018 Data Science Bowl."""
    return _sample("nuclei", ["c04fa1a74a98"], {})


def phase() -> Layers:
    """Cells in phase contrast, 511 x 512, from Usiigaci."""
    return _sample("phase", ["set45"], {})


def neurites() -> Layers:
    """Three sections of the fly's brain in electron microscopy, 250 x 250, 10 nm per pixel."""
    place = {"scale": (160, 10, 10), "units": "nm"}
    return _sample("neurites", ["z212", "z228", "z244"], place)


def _sample(kind: str, names: list[str], place: dict[str, Any]) -> Layers:
    folder = SAMPLES / kind / "test"
    images = [read_image(folder / "images" / f"{name}.png") for name in names]
    labels = [read_labels(folder / "labels" / f"{name}.tif") for name in names]
    image = images[0] if len(images) == 1 else np.stack(images)
    truth = labels[0] if len(labels) == 1 else np.stack(labels)
    return [
        (image, {"name": kind, **place}, "image"),
        (truth, {"name": f"{kind} drawn by hand", "visible": False, **place}, "labels"),
    ]
