"""Which images the ISIC experiment trains, validates and tests on."""

import hashlib
from pathlib import Path
from typing import Literal

from vimunet.data import Sample
from vimunet.data.isic import isic_samples, lesion_samples, prepared_samples

Split = Literal["train", "val", "test"]
LICENCES = (
    "trained on ISIC images, CC BY-NC 4.0: for non-commercial use",
    "trained on ISIC 2018 images, CC BY-NC 4.0: for non-commercial use",
)
TRAIN_FRACTION = 0.7  # of VM-UNet: 1500 of 2150 images (2017), 1886 of 2694 (2018)
VAL_FRACTION = 0.1  # of the training images


def official(root: Path, split: Split) -> list[Sample]:
    """Read the original data, split 7 : 3 as for VM-UNet, and a part kept back to choose with.

    Which images were in the published split is known only to those who have it as files. Here the
    names decide. VM-UNet has no third part: its best model is the one with the lowest loss on the
    images that it reports.

    Args:
        root: Folder with VM-UNet's `train` and `val` (`images` and `masks` in each), or with the
            unpacked training and validation archives of ISIC 2017 or 2018.
        split: "train", "val" (a tenth of the training images) or "test" (VM-UNet's `val`, or three
            tenths of all images).
    """
    if (root / "train" / "images").is_dir():
        if split == "test":
            return prepared_samples(root, "val")
        learnt = prepared_samples(root, "train")
    else:
        year: Literal[2017, 2018] = 2017 if (root / "ISIC-2017_Training_Data").is_dir() else 2018
        images = isic_samples(root, "training", year) + isic_samples(root, "validation", year)
        learnt, reported = part(images, TRAIN_FRACTION)
        if split == "test":
            return reported
    return part(learnt, 1 - VAL_FRACTION)[split == "val"]


def stand_in(root: Path, split: Split) -> list[Sample]:
    """Read a small stand-in: 750 images of ISIC 2018, 256 x 256 pixels.

    Args:
        root: Folder with `isic2018_256` (images and labels, each with `train` and `val`).
        split: "train" (540 of its 600 training images), "val" (the other 60) or "test" (its 150
            validation images).
    """
    folder = root / "isic2018_256"
    place = "val" if split == "test" else "train"
    samples = lesion_samples(folder / "images" / place, folder / "labels" / place)
    return samples if split == "test" else part(samples, 1 - VAL_FRACTION)[split == "val"]


def part(samples: list[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """Part samples by their names alone, so that the parts stay the same; order is kept."""
    shuffled = sorted(samples, key=lambda s: hashlib.sha256(s.name.encode()).hexdigest())
    first = {sample.name for sample in shuffled[: round(fraction * len(samples))]}
    return (
        [sample for sample in samples if sample.name in first],
        [sample for sample in samples if sample.name not in first],
    )
