"""Image files of any kind, opened as arrays whose axes have names; read when they are indexed.

TIFF, PNG, JPEG, BMP, HDF5, Zarr, N5 (with z5py) and NumPy files; of OME-Zarr the finest level. What
a file declares is obeyed: the letters of its axes (TIFF, OME, ImageJ, `dimension_names` of Zarr) in
any order, the length of a pixel in the unit of each axis, its palette, that white is 0, that its
planes are colours. Where it declares nothing, lengths decide (`vimunet.io.image.guess_axes`), or
the labels that belong to it (`vimunet.io.pairs`). An alpha channel is dropped if the file declares
it.

A format is a function in a file of its own, and a line in `READERS`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vimunet.io.containers import open_hdf5, open_n5, open_numpy, open_zarr
from vimunet.io.image import CHANNEL_AXES, COLOURS, LazyImage, Pieces, squeezed, with_named_axes
from vimunet.io.pictures import open_picture
from vimunet.io.tiff import open_tiff

Reader = Callable[[Path, str | None, bool, ExitStack], LazyImage]
"""Takes the path, the key of a data set, whether indices of a palette are wanted, and a stack that
closes what is opened; gives the image. Whatever it raises names the file afterwards."""

READERS: dict[str, Reader] = {
    ".tif": open_tiff,
    ".tiff": open_tiff,
    ".png": open_picture,
    ".jpg": open_picture,
    ".jpeg": open_picture,
    ".bmp": open_picture,
    ".h5": open_hdf5,
    ".hdf": open_hdf5,
    ".hdf5": open_hdf5,
    ".zarr": open_zarr,
    ".n5": open_n5,
    ".npy": open_numpy,
}
"""By the end of a file name, in small letters."""

IMAGE_SUFFIXES = tuple(READERS)
LABEL_SUFFIXES = tuple(suffix for suffix in READERS if suffix not in (".jpg", ".jpeg"))
FOLDERS = (".zarr", ".n5")
"""Formats of which a folder is one image."""

_WITH_KEYS = (open_hdf5, open_zarr, open_n5)

_MASK_HINT = (
    "A mask has one object only: give each object its own number first, "
    "e.g. with `skimage.measure.label(mask)`."
)

_MOST_EXACT = 2.0**53
"""Beyond it floating point cannot tell whole numbers apart."""


@contextmanager
def open_image(
    path: str | Path, key: str | None = None, *, indices: bool = False
) -> Iterator[LazyImage]:
    """Open an image file; nothing but its header is read.

    Args:
        path: File (or Zarr folder) to read.
        key: Data set inside an HDF5, Zarr or N5 file; needed if there is more than one.
        indices: Give what the numbers of a file are, not how they look: of a palette the indices.
            For labels.

    Yields:
        The image; it can be read until the block ends. Its axes are "" if the file declares none.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If the format is unknown or the file damaged, or `key` is missing or wrong; the
            message lists what exists. Later, if its pixels cannot be read.
        ImportError: If a package is missing that reads this format.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise ValueError(f"Unknown file type '{path.suffix}' of {path}. Known: {known}.")
    if not path.exists():
        raise FileNotFoundError(f"No such file: {path}.")
    if key is not None and READERS[suffix] not in _WITH_KEYS:
        raise ValueError(
            f"`key` is for HDF5, Zarr and N5 files, got {key!r} with {path}. Leave it out."
        )
    with ExitStack() as files:
        try:
            image = READERS[suffix](path, key, indices, files)
            if image.ndim < 2:
                raise ValueError(f"An image must have at least 2 axes, got shape {image.shape}.")
        except ImportError:
            raise
        except Exception as error:  # whatever a reader throws at a damaged file
            raise _unreadable(path, error) from error
        yield replace(image, array=_Guarded(image.array, path))


class _Guarded:
    """An array of a file whose errors name the file."""

    def __init__(self, array: Any, path: Path):
        self._array, self._path = array, path
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        try:
            pixels = self._array[index]
            return np.array(pixels) if isinstance(pixels, np.memmap) else np.asarray(pixels)
        except Exception as error:  # whatever a reader throws at a damaged file
            raise _unreadable(self._path, error) from error


def _unreadable(path: Path, error: Exception) -> Exception:
    if isinstance(error, MemoryError):
        return MemoryError(f"{path} needs more memory than there is.")
    of_the_system = isinstance(error, OSError) and error.errno is not None
    if of_the_system or (isinstance(error, ValueError) and str(path) in str(error)):
        return error
    reason = str(error) or type(error).__name__
    return ValueError(f"Cannot read {path} ({reason}).")


def read_image(path: str | Path, key: str | None = None) -> np.ndarray:
    """Read one image.

    Args:
        path: File (or Zarr folder) to read.
        key: Data set inside an HDF5, Zarr or N5 file; needed if there is more than one.

    Returns:
        (y, x), (y, x, c) or, for a stack, (z, y, x) or (z, y, x, c) in the dtype of the file; axes
        of length 1 are left out. Channels come last where the file declares them; an image without
        named axes is as it is stored.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If the format is unknown, or `key` is missing or wrong; the message lists
            what exists.
    """
    with open_image(path, key) as image:
        if not image.axes:
            return squeezed(image).read()
        order = [axis for axis in "tzyx" if axis in image.axes]
        others = [axis for axis in image.axes if axis not in "tczsyx"]
        channel = [axis for axis in CHANNEL_AXES if axis in image.axes]
        sizes = image.sizes
        kept = [a for a in (*others, *order, *channel) if sizes[a] > 1 or a in "yx"]
        return image.read("".join(kept))


def read_slices(
    path: str | Path,
    key: str | None = None,
    *,
    in_channels: int | None = 1,
    channel: int | None = None,
    axes: str | None = None,
) -> tuple[np.ndarray, str]:
    """Read an image file as what a network of images segments: one image, or a stack of them.

    Where the file declares no axes, `guess_axes` does.

    Args:
        path: File (or Zarr folder) to read.
        key: Data set inside an HDF5, Zarr or N5 file; needed if there is more than one.
        in_channels: Channels that the network takes; None: any.
        channel: Which channel or colour to read; None: all.
        axes: A letter for each axis of the file, where it does not say it itself.

    Returns:
        (..., y, x) or (..., y, x, c) pixels, and the names of the axes before y, a letter each:
        "" for one image, "z" for a stack, "tz" for a series of them.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If the format is unknown, `key` is missing or wrong, there is no such channel,
            or none is chosen and the file declares another number than the network takes.
    """
    with open_image(path, key) as opened:
        image = with_named_axes(opened, in_channels, channel, axes=axes)
        pieces = Pieces(image, "yx", in_channels, channel)
        return pieces.whole().read(), pieces.leading


@contextmanager
def open_labels(
    path: str | Path, key: str | None = None, *, masks: bool = False
) -> Iterator[LazyImage]:
    """Open a label file; nothing but its header is read.

    Args:
        path: File (or Zarr folder) to read.
        key: Data set inside an HDF5, Zarr or N5 file; needed if there is more than one.
        masks: For labels that are classes: take masks too.

    Yields:
        The labels, with their axes named in the order t, z, y, x as far as there are these.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If the header says that there are no labels in it (colours, a mask), the format
            is unknown, or `key` is missing or wrong.
    """
    path = Path(path)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise ValueError(f"Labels must not be JPEG, which changes numbers, got {path}.")
    with open_image(path, key, indices=True) as opened:
        image = squeezed(opened)
        if opened.axes:
            sizes = opened.sizes
            kept = "".join(a for a in opened.axes if sizes[a] > 1 or a in "yx")
            image = LazyImage(opened.view(kept), kept, opened.pixel, (), opened.name)
        problem = _label_problem(image, masks)
        if problem is not None:
            raise ValueError(f"Labels in {path} must be whole numbers, got {problem}")
        if not image.axes:
            image = image.with_axes("tzyx"[-image.ndim :])
        yield image


def read_labels(path: str | Path, key: str | None = None, *, masks: bool = False) -> np.ndarray:
    """Read one label image.

    Args:
        path: File (or Zarr folder) to read.
        key: Data set inside an HDF5, Zarr or N5 file; needed if there is more than one.
        masks: For labels that are classes: take masks too. True, and 255 or 65535 where there is
            nothing else but 0, becomes class 1.

    Returns:
        (y, x), (z, y, x) or (t, z, y, x) labels in the integer dtype of the file, 0 = background;
        whole numbers in floating point become integers. A PNG with a palette gives its indices.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If the file holds no labels (fractions, colours, a mask, negative numbers), the
            format is unknown, or `key` is missing or wrong.
    """
    with open_labels(path, key, masks=masks) as image:
        order = "".join(axis for axis in "tzyx" if axis in image.axes)
        return checked_label_values(image.read(order), path, masks)


def _label_problem(image: LazyImage, masks: bool) -> str | None:
    """Say what the header of a label file tells against it, None if nothing does."""
    shape = image.shape
    if image.dtype.kind == "b" and not masks:
        return f"a mask of true and false. {_MASK_HINT}"
    if image.dtype.kind not in "buif":
        return f"{image.dtype}. Save labels as 16 or 32 bit integers."
    named = set(image.axes) - set("tzyx")
    colours = not image.axes and len(shape) in (3, 4) and shape[-1] in COLOURS
    if named & set(CHANNEL_AXES) or colours:
        return (
            f"colours of shape {shape}. Colours do not tell which object is which number: "
            "save the label image itself, one channel, not its coloured view."
        )
    if named or not 2 <= len(shape) <= 4:
        return (
            f"shape {shape}. Labels have axes (y, x), or z, t or both in front, got "
            f"{', '.join(image.axes) or len(shape)}."
        )
    return None


def checked_label_values(labels: np.ndarray, path: str | Path, masks: bool) -> np.ndarray:
    """Return labels if their values can be labels; a mask as 0 and 1, whole floats as integers."""
    if labels.dtype == bool:
        return labels.astype(np.uint8)
    if labels.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = (np.abs(labels) <= _MOST_EXACT) & (labels == np.floor(labels))
        if not whole.all():
            raise ValueError(
                f"Labels in {path} must be whole numbers, got {labels.dtype} from {labels.min():g} "
                f"to {labels.max():g} with others among them. Save the label image as 16 or 32 "
                "bit integers, not a map."
            )
        labels = labels.astype(np.int64)
    if labels.size and labels.dtype.kind == "i" and labels.min() < 0:
        raise ValueError(
            f"Labels in {path} must not be negative, got {labels.min()}. "
            "Set pixels without an object to 0."
        )
    if labels.size and (most := labels.max()) in (255, 65535):
        between = (labels > 0) & (labels < most)
        if not between.any() and masks:
            return labels // most
        if not between.any():
            raise ValueError(
                f"Labels in {path} must number the objects, got only 0 and {most}. {_MASK_HINT}"
            )
    return labels
