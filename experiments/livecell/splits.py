"""Which images the LIVECell experiment trains, validates and tests on."""

from pathlib import Path
from typing import Literal

from vimunet.data import Sample
from vimunet.data.folder import find_pairs
from vimunet.data.livecell import livecell_samples

Split = Literal["train", "val", "test"]
LICENCES = (
    "trained on LIVECell, CC BY-NC 4.0: for non-commercial use",
    "trained on Usiigaci (MIT) and LIVECell (CC BY-NC 4.0): for non-commercial use",
)


def official(root: Path, split: Split) -> list[Sample]:
    """Read the official split: "train", "val" or "test"."""
    return livecell_samples(root, split, progress=True)


def stand_in(root: Path, split: Split) -> list[Sample]:
    """Read a small stand-in: Usiigaci to learn from and to choose with, LIVECell images to test.

    Args:
        root: Folder with `usiigaci` (images and labels, each with `train` and `val`) and
            `livecell_sample` (original LIVECell layout; 5 annotated val and 8 test images).
        split: "train" (34 Usiigaci images and the 5 LIVECell val images), "val" (6 Usiigaci
            images) or "test" (8 LIVECell test images).
    """
    if split == "test":
        return livecell_samples(root / "livecell_sample", "test")
    usiigaci = root / "usiigaci"
    samples = find_pairs(usiigaci / "images" / split, usiigaci / "labels" / split)
    if split == "train":
        samples += livecell_samples(root / "livecell_sample", "val")
    return samples
