"""Write images and labels as a data set of nnU-Net."""

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from vimunet.bridges.nnunet.classes import (
    CLASSES,
    Kind,
    check_choices,
    to_classes,
)
from vimunet.io.atomic import replacing
from vimunet.io.formats import read_slices
from vimunet.io.names import list_images, stem
from vimunet.io.pairs import Sample, find_pairs
from vimunet.messages import some_of
from vimunet.protocol import Protocol

_OWN = {"dataset.json", "splits_final.json", "imagesTr", "labelsTr", "imagesTs"}
_FOLDS = 5


@dataclass(frozen=True)
class WrittenDataset:
    """What `write_dataset` has written.

    Attributes:
        folder: The data set, `DatasetXXX_Name`.
        train: Names of the training images, as in the split.
        val: Names of the validation images; empty if nnU-Net is to choose them.
        test: Names of the test images.
        split: The file that nnU-Net reads the split from, if it is already there.
    """

    folder: Path
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    split: Path | None


def write_dataset(
    images: str | Path,
    labels: str | Path,
    output: str | Path,
    *,
    dataset_id: int,
    name: str,
    val_images: str | Path | None = None,
    val_labels: str | Path | None = None,
    test_images: str | Path | None = None,
    representation: Kind = "boundaries",
    protocol: Protocol = "fair",
    channel_names: Sequence[str] | None = None,
    preprocessed: str | Path | None = None,
    overwrite: bool = False,
) -> WrittenDataset:
    """Write images and labels as a data set of nnU-Net, completely or not at all.

    The folder `DatasetXXX_Name` gets `dataset.json`, `labelsTr` with the classes of `to_classes`,
    `imagesTr` and, with test images, `imagesTs`. Images keep their numbers; those of three
    channels are stored as one colour file, others as one file per channel. Slices of a stack are
    images of their own.

    With validation images there is also `splits_final.json`, the same split for each of the five
    folds. nnU-Net does not read it there but in `DatasetXXX_Name` of its folder
    `nnUNet_preprocessed`: it is written there too if that folder is given or set in the
    environment.

    Args:
        images: Folder of training images, see `vimunet.data.folder`.
        labels: Folder of their labels.
        output: nnU-Net's folder `nnUNet_raw`.
        dataset_id: Number of the data set, 1 to 999.
        name: Name of the data set: letters, digits, - and _.
        val_images: Folder of validation images; None lets nnU-Net split the training images.
        val_labels: Folder of their labels.
        test_images: Folder of images to predict.
        representation: "boundaries" for cells on a background, "boundary" for images that objects
            fill.
        protocol: "fair" or "published", see `to_classes`.
        channel_names: Name of each channel. nnU-Net normalises by it, "rgb_to_0_1" for example;
            names that it does not know mean zero mean and unit spread per image.
        preprocessed: nnU-Net's folder `nnUNet_preprocessed`; None for that of the environment.
        overwrite: Replace a data set of the same number and name.

    Returns:
        Where the data set is, and the names of its images.

    Raises:
        FileNotFoundError: If a folder is missing or holds no images.
        FileExistsError: If the data set, its number or its split exists.
        ValueError: If an argument is out of its range, a name occurs twice, or images differ in
            their number of channels.
    """
    protocol = check_choices(representation, protocol)
    if not isinstance(dataset_id, int) or not 1 <= dataset_id <= 999:
        raise ValueError(f"`dataset_id` must be a whole number from 1 to 999, got {dataset_id!r}.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"`name` must consist of letters, digits, - and _, got {name!r}.")
    if (val_images is None) != (val_labels is None):
        raise ValueError("`val_images` and `val_labels` must be given together.")
    folder = Path(output) / f"Dataset{dataset_id:03d}_{name}"
    split = _split_file(folder.name, preprocessed)
    _check_free(folder, split, overwrite)

    train = find_pairs(images, labels)
    val = [] if val_images is None or val_labels is None else find_pairs(val_images, val_labels)
    names = [sample.name for sample in (*train, *val)]
    doubles = sorted(case for case, count in Counter(names).items() if count > 1)
    if doubles:
        raise ValueError(
            f"Images for training and validation must have different names, got "
            f"{some_of(map(repr, doubles))} in both."
        )

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (partial / "imagesTr").mkdir()
        (partial / "labelsTr").mkdir()
        channels = _write_training(partial, (*train, *val), representation, protocol)
        test: list[str] = []
        if test_images is not None:
            (partial / "imagesTs").mkdir()
            test = _write_test(partial / "imagesTs", Path(test_images), channels)
        description = _describe(channels, channel_names, representation, protocol, len(names))
        _write_json(partial / "dataset.json", description)
        folds = [{"train": names[: len(train)], "val": names[len(train) :]}] * _FOLDS
        if val:
            _write_json(partial / "splits_final.json", folds)
        partial.chmod(0o755)  # mkdtemp lets only the owner in
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if split is not None and val:
        _write_json(split, folds)
    elif split is not None:
        split.unlink(missing_ok=True)  # of the data set that was replaced
    return WrittenDataset(
        folder,
        train=tuple(names[: len(train)]),
        val=tuple(names[len(train) :]),
        test=tuple(test),
        split=split if val else None,
    )


def _split_file(dataset: str, preprocessed: str | Path | None) -> Path | None:
    root = preprocessed or os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 nnU-Net's name
    return Path(root) / dataset / "splits_final.json" if root else None


def _check_free(folder: Path, split: Path | None, overwrite: bool) -> None:
    """Raise if writing would destroy something, or confuse nnU-Net."""
    number = folder.name.partition("_")[0]
    for other in folder.parent.glob(f"{number}_*"):
        if other != folder:
            raise FileExistsError(
                f"The number of a data set must be free, but {other} has it. Choose another."
            )
    if folder.exists():
        foreign = sorted({item.name for item in folder.iterdir()} - _OWN)
        if foreign:
            raise FileExistsError(
                f"{folder} holds files that this does not write, such as {foreign[0]}, and is "
                "left alone. Choose another name."
            )
    for existing in (folder, split):
        if not overwrite and existing is not None and existing.exists():
            raise FileExistsError(
                f"{existing} exists. Choose another number, or replace it with --overwrite "
                "(`overwrite=True`)."
            )


def _write_training(
    folder: Path, samples: Iterable[Sample], representation: Kind, protocol: Protocol
) -> int:
    """Write all images and classes; return the number of channels, the same for all."""
    first: tuple[str, int] | None = None
    for sample in samples:
        image, labels = sample.read()
        channels = 1 if image.ndim == 2 else image.shape[2]
        first = first or (sample.name, channels)
        if channels != first[1]:
            raise ValueError(
                f"All images must have the same number of channels, got {first[1]} in "
                f"{first[0]!r} and {channels} in {sample.name!r}. Make all of them grey or all "
                "of them colour."
            )
        _write_image(folder / "imagesTr", sample.name, image)
        assert labels is not None  # these samples are pairs
        classes = to_classes(labels, representation, protocol)
        tifffile.imwrite(folder / "labelsTr" / f"{sample.name}.tif", classes, compression="zlib")
    assert first is not None
    return first[1]


def _write_test(folder: Path, images: Path, channels: int) -> list[str]:
    """Write the images to predict, slice by slice if they are stacks; return their names."""
    names: list[str] = []
    for file in list_images(images):
        pixels, stack = read_slices(file, in_channels=channels)
        parts = pixels.reshape(-1, *pixels.shape[len(stack) :])
        names_of_parts = [f"{stem(file)}_z{z:03d}" for z in range(len(parts))]
        slices = dict(zip(names_of_parts if stack else [stem(file)], parts, strict=True))
        for name, part in slices.items():
            if (1 if part.ndim == 2 else part.shape[2]) != channels:
                raise ValueError(
                    f"Test images must have the {channels} channel{'s' * (channels > 1)} of the "
                    f"training images, got shape {pixels.shape} in {file}."
                )
            if name in names:
                raise ValueError(f"Names in {images} must be unique, got {name!r} twice.")
            _write_image(folder, name, part)
            names.append(name)
    return names


def _write_image(folder: Path, name: str, image: NDArray) -> None:
    """Write one file, (y, x) or (y, x, 3), or one file per channel."""
    if image.dtype == bool:
        image = image.astype(np.uint8)
    if image.dtype not in (np.uint8, np.uint16):
        image = image.astype(np.float32)
    if not np.isfinite(image).all():
        raise ValueError(
            f"Image {name!r} contains NaN or infinity. Replace missing pixels before converting."
        )
    files = [image] if image.ndim == 2 or image.shape[2] == 3 else list(np.moveaxis(image, 2, 0))
    for channel, pixels in enumerate(files):
        tifffile.imwrite(
            folder / f"{name}_{channel:04d}.tif",
            pixels,
            photometric="minisblack" if pixels.ndim == 2 else "rgb",
            compression="zlib",
        )


def _describe(
    channels: int,
    channel_names: Sequence[str] | None,
    representation: Kind,
    protocol: Protocol,
    count: int,
) -> dict[str, Any]:
    if channel_names is None:
        grey = ["image"] if channels == 1 else [f"channel {i}" for i in range(channels)]
        channel_names = ["red", "green", "blue"] if channels == 3 else grey
    if len(channel_names) != channels or isinstance(channel_names, str):
        raise ValueError(
            f"`channel_names` must name {channels} channel{'s' * (channels > 1)}, "
            f"got {channel_names!r}."
        )
    return {
        "channel_names": {str(i): channel for i, channel in enumerate(channel_names)},
        "labels": {label: i for i, label in enumerate(CLASSES[representation])},
        "numTraining": count,
        "file_ending": ".tif",
        "description": f"Converted by vimunet: {representation}, protocol {protocol}.",
    }


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
