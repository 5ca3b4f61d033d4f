"""Images with their labels, wherever they come from: each is a `Sample`, read when it is needed.

Where the axes of an image are not named, its labels decide what they mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vimunet.axes import SpatialAxes
from vimunet.io.formats import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    checked_label_values,
    open_image,
    open_labels,
)
from vimunet.io.image import Index, LazyImage, check_channel, no_channels, squeezed
from vimunet.io.names import by_name, list_files, unpaired
from vimunet.messages import some_lines


@dataclass(frozen=True)
class Sample:
    """One image, or volume, with its labels.

    Attributes:
        name: How the sample is called in tables and messages.
        read: Function without arguments that returns image and labels: image ([z,] y, x) or
            ([z,] y, x, c) of any dtype, labels ([z,] y, x) integer with 0 = background, or None. It
            can be pickled, so that worker processes can read too.
        spacing: Size of a voxel in µm along each axis of the labels; None if it is not known.
        source: What it is a part of, a file for example: its parts look alike. None: itself.
    """

    name: str
    read: Callable[[], tuple[np.ndarray, np.ndarray | None]]
    spacing: tuple[float, ...] | None = None
    source: str | None = None


def find_pairs(
    images: str | Path,
    labels: str | Path,
    *,
    image_key: str | None = None,
    label_key: str | None = None,
    masks: bool = False,
    in_channels: int | None = None,
    channel: int | None = None,
    axes: SpatialAxes = "yx",
) -> list[Sample]:
    """Pair each image of one folder with the labels of the same name in another.

    The name is the file name without its extension, so `cell_01.ome.tif` goes with `cell_01.png`.
    All files are checked before the first is used: only the headers are read.

    Args:
        images: Folder of images.
        labels: Folder of label images.
        image_key: Data set of the images inside HDF5, Zarr or N5 files.
        label_key: The same for the labels. With both keys, both folders may be the same.
        masks: For labels that are classes: take masks too, see `read_labels`.
        in_channels: Channels that the network takes; None: any.
        channel: Which channel or colour of the images to read; None: all.
        axes: Of a sample: "yx" for images, and each slice of a stack is one; "zyx" for volumes.

    Returns:
        The samples in natural order of their names; those of stacks are called `name_z000` and so
        on, those of series `name_t000`.

    Raises:
        FileNotFoundError: If a folder is missing or holds no readable file type.
        ValueError: If names do not pair, a name occurs twice, shapes differ, labels are not whole
            numbers, there is no such channel, or none is chosen and a file declares another number
            than the network takes. The message lists all files concerned.

    Examples:
        >>> from vimunet.datasets import SAMPLES
        >>> folder = SAMPLES / "phase" / "test"
        >>> [sample.name for sample in find_pairs(folder / "images", folder / "labels")]
        ['set12', 'set45']
    """
    images, labels = Path(images), Path(labels)
    keys_differ = image_key is not None and label_key is not None and image_key != label_key
    image_files = by_name(list_files(images, IMAGE_SUFFIXES))
    label_files = by_name(list_files(labels, LABEL_SUFFIXES))
    if images.resolve() == labels.resolve() and not keys_differ:
        raise ValueError(
            f"`images` and `labels` must be two folders, got {images} for both. "
            "Put the label images into a folder of their own."
        )
    if image_files.keys() != label_files.keys():
        raise ValueError(
            "Every image must have labels of the same name (without extension)."
            + unpaired(f"Images without labels in {labels}", image_files, label_files)
            + unpaired(f"Labels without an image in {images}", label_files, image_files)
        )

    reading = _Reading(image_key, label_key, masks, in_channels, channel, axes)
    samples: list[Sample] = []
    problems: list[str] = []
    for name, image_file in image_files.items():
        try:
            samples += _pair(name, image_file, label_files[name], reading)
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(image_files)} pairs cannot be used:" + some_lines(problems)
        )
    return samples


@dataclass(frozen=True)
class _Reading:
    """How the files of a pair are read."""

    image_key: str | None
    label_key: str | None
    masks: bool
    in_channels: int | None
    channel: int | None
    axes: SpatialAxes


def _pair(name: str, image_file: Path, label_file: Path, reading: _Reading) -> list[Sample]:
    """Check the headers of one pair and return its samples."""
    with (
        open_labels(label_file, reading.label_key, masks=reading.masks) as labels,
        open_image(image_file, reading.image_key) as opened,
    ):
        if opened.dtype.kind not in "buif":
            raise ValueError(f"{image_file}: an image must hold numbers, got {opened.dtype}.")
        image, labels, letter = name_by_labels(opened, labels)
        if not set(reading.axes) <= set(labels.axes):
            raise ValueError(
                f"{label_file}: labels must have the axes {', '.join(reading.axes)}, got "
                f"{', '.join(labels.axes)}."
            )
        if letter is not None:
            count, declared = image.sizes[letter], letter == "c" and bool(opened.axes)
            check_channel(str(image_file), count, declared, reading.channel, reading.in_channels)
        elif reading.channel is not None:
            raise ValueError(no_channels(str(image_file)))
        leading = [axis for axis in "tz" if axis in labels.axes and axis not in reading.axes]
        lengths = [labels.sizes[axis] for axis in leading]
        spacing = image.spacing(reading.axes) or labels.spacing(reading.axes)
    return [
        Sample(
            "_".join([name, *(f"{a}{i:03d}" for a, i in zip(leading, index, strict=True))]),
            partial(_read_pair, image_file, label_file, reading, index),
            spacing,
            name,
        )
        for index in np.ndindex(*lengths)
    ]


def name_by_labels(image: LazyImage, labels: LazyImage) -> tuple[LazyImage, LazyImage, str | None]:
    """Name the axes of an image and of its labels by each other.

    Args:
        image: With or without named axes.
        labels: With axes out of t, z, y, x, maybe by their number only.

    Returns:
        Both with named axes, and the letter of the channel axis if there is one.

    Raises:
        ValueError: If their shapes do not fit each other.
    """
    longer = {axis: n for axis, n in image.sizes.items() if n > 1 or axis in "yx"}
    letter = next((axis for axis in "sc" if axis in longer), None)
    spatial = {axis: n for axis, n in longer.items() if axis != letter}
    if image.axes and spatial == labels.sizes:
        return image, labels, letter
    if image.axes and labels.shape == tuple(spatial.values()):
        return image, labels.with_axes("".join(spatial)), letter
    image = squeezed(LazyImage(image.array, "", image.pixel, image.channel_names, image.name))
    if image.shape == labels.shape:
        return image.with_axes(labels.axes), labels, None
    if image.ndim == labels.ndim + 1:
        last = image.ndim - 1
        for axis in (last, 0, *range(1, last)):
            if image.shape[:axis] + image.shape[axis + 1 :] == labels.shape:
                axes = f"{labels.axes[:axis]}c{labels.axes[axis:]}"
                return image.with_axes(axes), labels, "c"
    raise ValueError(
        f"{image.name}: shape {image.shape} does not fit the labels {labels.shape} of "
        f"{labels.name}."
    )


def _read_pair(
    image_file: Path, label_file: Path, reading: _Reading, index: Index
) -> tuple[np.ndarray, np.ndarray]:
    with (
        open_labels(label_file, reading.label_key, masks=reading.masks) as labels,
        open_image(image_file, reading.image_key) as opened,
    ):
        image, labels, letter = name_by_labels(opened, labels)
        leading = [axis for axis in "tz" if axis in labels.axes and axis not in reading.axes]
        place = dict(zip(leading, index, strict=True))
        order: Sequence[str] = reading.axes
        marks = labels.view(reading.axes, place).read()
        if letter is not None and reading.channel is None:
            order = f"{reading.axes}{letter}"
        elif letter is not None and reading.channel is not None:
            place[letter] = reading.channel
        pixels = image.view("".join(order), place).read()
    return pixels, checked_label_values(marks, label_file, reading.masks)
