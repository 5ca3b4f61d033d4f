"""Corrected images on disk, to train on: a folder of plain TIFF files.

    images/NAME.tif     the images
    labels/NAME.tif     their labels, 0 background
    old/NAME_v1.tif     labels that were corrected once more since, v1 the oldest

So the folder is also what `vimunet train` and other tools take. Every file is written completely or
not at all, and none is overwritten: labels that change are kept in `old`, and another image of
the same name gets a number. Nothing here knows napari, Qt or torch.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import ArrayLike, NDArray

from vimunet.io.atomic import replacing
from vimunet.io.formats import read_image, read_labels
from vimunet.io.label_files import tiff_resolution
from vimunet.io.names import natural_key
from vimunet.io.pairs import Sample


class TrainingSet:
    """A folder of images with labels.

    Args:
        folder: Where it is, or will be once something is added.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __len__(self) -> int:
        return len(self.names())

    def names(self) -> list[str]:
        """List the images that have labels, in natural order."""
        images, labels = (
            {path.stem for path in (self.folder / kind).glob("*.tif")}
            for kind in ("images", "labels")
        )
        return sorted(images & labels, key=natural_key)

    def samples(self) -> list[Sample]:
        """List the same as samples, to train on."""
        return [
            Sample(name, partial(_read, self._path("images", name), self._path("labels", name)))
            for name in self.names()
        ]

    def add(
        self,
        name: str,
        image: ArrayLike,
        labels: ArrayLike,
        pixel_size: Sequence[float] | None = None,
    ) -> str:
        """Add an image with its labels, or newer labels of an image that is there.

        Args:
            name: How to call it. Signs that may not be in the name of a file become "_".
            image: (y, x) or (y, x, c) of any integer or float dtype.
            labels: (y, x) integer labels, 0 background.
            pixel_size: Height and width of a pixel in µm, for programs that read it.

        Returns:
            The name under which it is stored: another image of the same name is not replaced,
            and `name` then ends in _2, _3, ...

        Raises:
            ValueError: If the image contains NaN or infinity, the shapes do not agree, a label
                is negative or there is nothing to train on.
            TypeError: If the labels are not integers.
        """
        image, labels = _checked(np.asarray(image), np.asarray(labels))
        name = re.sub(r"[^\w-]+", "_", name).strip("_") or "image"
        stored, number = name, 1
        while not self._is_free_for(stored, image):
            number += 1
            stored = f"{name}_{number}"
        image_path, label_path = (self._path(kind, stored) for kind in ("images", "labels"))
        if label_path.exists():
            before = read_labels(label_path)
            if np.array_equal(before, labels):
                return stored
            self._keep_old(stored)
        if not image_path.exists():
            _write(image_path, image, pixel_size)
        _write(label_path, labels, pixel_size)
        return stored

    def remove(self, name: str) -> None:
        """Delete an image and its labels; older labels stay in `old`.

        Raises:
            FileNotFoundError: If there is no such image.
        """
        if name not in self.names():
            raise FileNotFoundError(
                f"No image {name!r} in {self.folder}. It has: {', '.join(self.names()) or 'none'}."
            )
        for kind in ("labels", "images"):
            self._path(kind, name).unlink()

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name}.tif"

    def _is_free_for(self, name: str, image: NDArray) -> bool:
        """Tell whether the name is not taken, or taken by this very image."""
        path = self._path("images", name)
        return not path.exists() or np.array_equal(read_image(path), image)

    def _keep_old(self, name: str) -> None:
        number = 1
        while self._path("old", f"{name}_v{number}").exists():
            number += 1
        kept = self._path("old", f"{name}_v{number}")
        with replacing(kept) as temporary:
            temporary.write_bytes(self._path("labels", name).read_bytes())


def _checked(image: NDArray, labels: NDArray) -> tuple[NDArray, NDArray]:
    """Return image and labels as they are stored."""
    if labels.dtype.kind not in "iu":
        raise TypeError(f"`labels` must be integers, got {labels.dtype}.")
    if labels.ndim != 2 or image.ndim not in (2, 3) or image.shape[:2] != labels.shape:
        raise ValueError(
            f"`image` must have shape (y, x) or (y, x, c) and `labels` the same y, x, got "
            f"{image.shape} and {labels.shape}. Add stacks slice by slice."
        )
    if image.size == 0:
        raise ValueError(f"`image` must have at least one pixel, got shape {image.shape}.")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if labels.min() < 0:
        raise ValueError(f"`labels` must not be negative, got {labels.min()}.")
    if labels.max() > np.iinfo(np.uint32).max:
        raise ValueError(f"`labels` must be below 2**32, got {labels.max()}. Renumber them.")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError("`image` contains NaN or infinity. Replace missing pixels first.")
    small = np.uint16 if labels.max() <= np.iinfo(np.uint16).max else np.uint32
    return image, labels.astype(small)


def _write(path: Path, pixels: NDArray, pixel_size: Sequence[float] | None) -> None:
    """Write a compressed TIFF; channels come last, three of 8 or 16 bit are colours."""
    colours = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype in (np.uint8, np.uint16)
    options: dict[str, Any] = {} if pixel_size is None else tiff_resolution(pixel_size)
    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary,
            pixels,
            photometric="rgb" if colours else "minisblack",
            planarconfig="contig" if pixels.ndim == 3 else None,
            metadata=None,
            compression="zlib",
            **options,
        )


def _read(image_path: Path, label_path: Path) -> tuple[NDArray, NDArray]:
    return read_image(image_path), read_labels(label_path)
