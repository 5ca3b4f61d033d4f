"""Which sections the CREMI experiment trains, validates and tests on."""

from pathlib import Path
from typing import Literal

from vimunet.data import Sample
from vimunet.data.cremi import cremi_samples
from vimunet.data.folder import find_pairs

Split = Literal["train", "val", "test"]
LICENCES = (
    "trained on CREMI; see https://cremi.org for its terms",
    "trained on larval ssTEM (Gerhard et al. 2013), CC BY-NC-SA 3.0: for non-commercial use",
)


def official(root: Path, split: Split) -> list[Sample]:
    """Read the paper's split of each volume: sections 0-74 "train", 75-99 "val", 100-124 "test"."""
    return cremi_samples(root, split)


def stand_in(root: Path, split: Split) -> list[Sample]:
    """Read a small stand-in: larval ssTEM sections to learn from, another specimen to test.

    Args:
        root: Folder with `vnc_sstem` (sections 00-16) and `isbi2012` (30 sections), each with
            `images` and `labels/instances`.
        split: "train" (VNC sections 0-12), "val" (14 and 15; 13 and 16 stay unused, neighbours
            are nearly the same) or "test" (all of ISBI 2012).
    """
    if split == "test":
        return find_pairs(root / "isbi2012" / "images", root / "isbi2012" / "labels" / "instances")
    sections = range(13) if split == "train" else (14, 15)
    samples = find_pairs(root / "vnc_sstem" / "images", root / "vnc_sstem" / "labels" / "instances")
    return [sample for sample in samples if int(sample.name) in sections]
