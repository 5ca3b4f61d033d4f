"""ISIC: skin lesions in dermoscopic images, each with a mask of the lesion.

Reads the folders of the ISIC challenges of 2017 and 2018 as they are unpacked, and the layout into
which VM-UNet's authors bring them. Images have any size; image and mask are resized when they are
read. Splits are the business of `splits.py`.

Source:
    Codella et al. 2018 and 2019, https://arxiv.org/abs/1710.05006 and
    https://arxiv.org/abs/1902.03368. Licence CC BY-NC 4.0 (2018). Recipe: Ruan & Xiang 2024,
    "VM-UNet", https://arxiv.org/abs/2402.02491.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vimunet.io.names import natural_key, unpaired
from vimunet.io.pairs import Sample

_IMAGES = (".jpg", ".jpeg", ".png")
_MASK = "_segmentation"
_NOT_IMAGES = ("_superpixels", _MASK)  # in the image folders of 2017
_PARTS = {
    2017: ("ISIC-2017_{part}_Data", "ISIC-2017_{part}_Part1_GroundTruth", "Test_v2"),
    2018: ("ISIC2018_Task1-2_{part}_Input", "ISIC2018_Task1_{part}_GroundTruth", "Test"),
}


def isic_samples(
    root: str | Path,
    part: Literal["training", "validation", "test"],
    year: Literal[2017, 2018] = 2018,
    *,
    size: int = 256,
) -> list[Sample]:
    """List the images of one part of a challenge, in its original folders.

    Args:
        root: Folder in which the archives were unpacked, e.g. with
            `ISIC2018_Task1-2_Training_Input` and `ISIC2018_Task1_Training_GroundTruth`.
        part: "training" (2000 images in 2017, 2594 in 2018), "validation" (150, 100) or "test"
            (600, 1000).
        year: Of the challenge.
        size: See `lesion_samples`.

    Returns:
        See `lesion_samples`.

    Raises:
        FileNotFoundError: If a folder is missing or holds no images.
        ValueError: If part or year are unknown, or images and masks do not pair.
    """
    if year not in _PARTS:
        raise ValueError(f"Unknown year {year}. Known: {', '.join(map(str, _PARTS))}.")
    if part not in ("training", "validation", "test"):
        raise ValueError(f"Unknown part {part!r}. Known: training, validation, test.")
    images, masks, test = _PARTS[year]
    name = test if part == "test" else part.capitalize()
    folders = [Path(root) / folder.format(part=name) for folder in (images, masks)]
    return lesion_samples(*folders, size=size)


def prepared_samples(
    root: str | Path, split: Literal["train", "val"], *, size: int = 256
) -> list[Sample]:
    """List the images of one split as VM-UNet's authors prepare them.

    Args:
        root: Folder with `train/images`, `train/masks`, `val/images` and `val/masks`. Their code
            pairs images and masks by their place in the sorted folders; here the names decide.
        split: "train" or "val" (which is what their numbers are reported on).
        size: See `lesion_samples`.

    Returns:
        See `lesion_samples`.

    Raises:
        FileNotFoundError: If a folder is missing or holds no images.
        ValueError: If the split is unknown, or images and masks do not pair.
    """
    if split not in ("train", "val"):
        raise ValueError(f"Unknown split {split!r}. Known: train, val.")
    folder = Path(root) / split
    return lesion_samples(folder / "images", folder / "masks", size=size)


def lesion_samples(images: str | Path, masks: str | Path, *, size: int = 256) -> list[Sample]:
    """Pair each image of a folder with its mask in another.

    `NAME.jpg` or `NAME.png` goes with `NAME_segmentation.png` or `NAME.png`; superpixel images
    are left out.

    Args:
        images: Folder of colour images of any size.
        masks: Folder of masks, 0 and 255.
        size: Side of the square to which both are resized: images bilinearly (averaging where
            they shrink), masks to the nearest pixel. The ratio of the sides is not kept.
            Unit: pixels.

    Returns:
        Samples in natural order of their names: images (size, size, 3) uint8, labels (size, size)
        uint8, 1 in the lesion and 0 elsewhere.

    Raises:
        FileNotFoundError: If a folder is missing or holds no images.
        ValueError: If an image has no mask or a mask no image (the message lists them), or `size`
            is not positive.
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}.")
    image_files = _by_name(Path(images), _NOT_IMAGES, "")
    mask_files = _by_name(Path(masks), (), _MASK)
    if image_files.keys() != mask_files.keys():
        raise ValueError(
            "Every image must have a mask of the same name."
            + unpaired(f"Images without mask in {masks}", image_files, mask_files)
            + unpaired(f"Masks without image in {images}", mask_files, image_files)
        )
    return [
        Sample(name, partial(_read, image_files[name], mask_files[name], size))
        for name in image_files
    ]


def _by_name(folder: Path, left_out: tuple[str, ...], ending: str) -> dict[str, Path]:
    """Find the images in a folder by their name without extension and `ending`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"No such folder: {folder}. Unpack the archive of the challenge.")
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in _IMAGES
        and not file.name.startswith(".")
        and not file.stem.lower().endswith(left_out)
    ]
    if not files:
        raise FileNotFoundError(f"No files of type {', '.join(_IMAGES)} in {folder}.")
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: natural_key(file.name)):
        name = file.stem
        if ending and name.lower().endswith(ending):
            name = name[: -len(ending)]
        if name in found:
            raise ValueError(
                f"{folder} must have one file for {name}, got {found[name].name} and {file.name}."
            )
        found[name] = file
    return found


def _read(image_file: Path, mask_file: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    with Image.open(image_file) as image, Image.open(mask_file) as mask:
        if image.size != mask.size:
            raise ValueError(
                f"{image_file} and {mask_file} must have the same size, got {image.size} and "
                f"{mask.size} (columns, rows)."
            )
        pixels = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        inside = mask.convert("L").resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(pixels), (np.asarray(inside) > 127).astype(np.uint8)
