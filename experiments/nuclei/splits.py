"""Which images the nuclei experiment trains, validates and tests on."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np

from vimunet.data import Sample
from vimunet.data.folder import find_pairs

Split = Literal["train", "val", "test"]
LICENCE = "trained on images of the 2018 Data Science Bowl (BBBC038, with fixes), CC0 1.0"


def nuclei(root: Path, split: Split) -> list[Sample]:
    """Read the 2018 Data Science Bowl: nuclei in fluorescence, histology and bright field.

    One image in ten, by a hash of its name, is for the test and one in ten for validation. Some
    images are neighbouring fields of one plate, and so are those of different splits.

    Args:
        root: Folder with `images` (PNG) and `labels` (TIFF), one of each per name.
        split: "train", "val" or "test".
    """
    parts: dict[int, Split] = {0: "test", 1: "val"}
    return [
        sample
        for sample in find_pairs(root / "images", root / "labels")
        if parts.get(_tenth(sample.name), "train") == split
    ]


def kind_of(image: np.ndarray) -> str:
    """Tell fluorescence, which has a dark background, from transmitted light."""
    return "fluorescence" if np.median(image) < 128 else "transmitted light"


def _tenth(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
