"""Which images the phase experiment trains, validates and tests on."""

from pathlib import Path
from typing import Literal

from vimunet.data import Sample
from vimunet.data.folder import find_pairs

Split = Literal["train", "val", "test"]
LICENCE = "trained on Usiigaci (Tsai et al. 2019), MIT"

_VALIDATION = ("set10", "set18", "set36", "set44")  # two of each kind of cells


def phase(root: Path, split: Split) -> list[Sample]:
    """Read Usiigaci: T98G and NIH-3T3 cells in phase contrast.

    Args:
        root: Folder with `images` and `labels`, each with `train` and `val`.
        split: "train" (30 images of the folder `train`), "val" (its 4 others) or "test" (the 6
            images of the folder `val`).
    """
    part = "val" if split == "test" else "train"
    samples = find_pairs(root / "images" / part, root / "labels" / part)
    if split == "test":
        return samples
    return [sample for sample in samples if (sample.name in _VALIDATION) == (split == "val")]
