"""Any folder of images, with or without a folder of labels of the same names.

Reads TIFF, PNG, JPEG, BMP, HDF5, Zarr, N5 (with z5py) and NumPy files; of OME-Zarr the finest
level. How axes are told apart:

- Axes of length 1 are dropped while more than two are left.
- With labels, the labels decide: the one axis that the image has more than the labels is the
  channel axis. If several fit, the axis the file declares as channels comes first, then the last
  axis, then the first. (z, y, x) labels make one sample per slice z.
- Without labels, only what the file declares counts: colour images, TIFF and OME-Zarr files with a
  channel axis come back with channels last, everything else as it is stored. `read_slices` also
  tells stacks from channels, by their lengths where the file says nothing.
- The images of a TIFF file that have one shape are a stack; of different ones the first is read.
- An alpha channel is dropped if the file declares it (PNG, TIFF with extra samples). Grey images
  stored as RGB stay RGB; `crops.to_channels` makes grey of them where a model wants it.
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import h5py
import imagecodecs
import numpy as np
import tifffile
import zarr
from PIL import Image
from tifffile import TiffPage

from vimunet.data import Sample
from vimunet.messages import some_lines
from vimunet.volumes import is_ome_zarr, read_ome_zarr

_TIFF = (".tif", ".tiff")
_PICTURE = (".png", ".jpg", ".jpeg", ".bmp")
_HDF5 = (".h5", ".hdf", ".hdf5")
_CONTAINER = (*_HDF5, ".zarr", ".n5")
IMAGE_SUFFIXES = (*_TIFF, *_PICTURE, *_CONTAINER, ".npy")
LABEL_SUFFIXES = (*_TIFF, ".png", ".bmp", *_CONTAINER, ".npy")
_UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    EOFError,
    struct.error,
    tifffile.TiffFileError,
)
_MASK_HINT = (
    "A mask has one object only: give each object its own number first, "
    "e.g. with `skimage.measure.label(mask)`."
)


_NO_CHANNELS = "`channel` is for images with channels, {} has none. Leave it out."


def read_image(path: str | Path, key: str | None = None) -> np.ndarray:
    """Read one image.

    Args:
        path: File (or Zarr folder) to read.
        key: Data set inside an HDF5, Zarr or N5 file; needed if there is more than one.

    Returns:
        (y, x), (y, x, c) or, for a stack, (z, y, x) or (z, y, x, c) in the dtype of the file;
        channels last only where the file declares channels, see the module's docstring.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If the format is unknown, or `key` is missing or wrong; the message lists
            what exists.
    """
    with _open(Path(path), key) as stored:
        image = stored.read()
    if stored.channel_axis is not None:
        image = np.moveaxis(image, stored.channel_axis, -1)
    return image


def read_slices(
    path: str | Path,
    key: str | None = None,
    *,
    in_channels: int | None = 1,
    channel: int | None = None,
) -> tuple[np.ndarray, str]:
    """Read an image file as what a network segments: one image, or a stack of them.

    Where the file declares no axes, a last axis of at most 4, or of `in_channels`, holds colours;
    a first axis of `in_channels` holds channels if that is more than one; the others are a stack.

    Args:
        path: File (or Zarr folder) to read.
        key: Data set inside an HDF5, Zarr or N5 file; needed if there is more than one.
        in_channels: Channels that the network takes; None: any.
        channel: Which channel or colour to read; None: all.

    Returns:
        (..., y, x) or (..., y, x, c) pixels, and the names of the axes before y, a letter each:
        "" for one image, "z" for a stack, "tz" for a series of them.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If the format is unknown, `key` is missing or wrong, there is no such channel,
            or none is chosen and the file declares another number than the network takes.
    """
    with _open(Path(path), key) as stored:
        pixels, axes = stored.read(), stored.kept_axes
    if not axes or "q" in axes:  # q: an axis of a TIFF file of which nothing is known
        axes = _guessed_axes(pixels.shape, in_channels)
    letter = next((letter for letter in "sc" if letter in axes), None)
    if letter is not None:
        pixels = np.moveaxis(pixels, axes.index(letter), -1)
        _check_channel(Path(path), pixels.shape[-1], letter == "c", in_channels, channel)
        if channel is not None:
            pixels = pixels[..., channel]
    elif channel is not None:
        raise ValueError(_NO_CHANNELS.format(path))
    return pixels, "".join(axis for axis in axes if axis not in ("y", "x", letter))


def _check_channel(
    path: Path, count: int, declared: bool, in_channels: int | None, channel: int | None
) -> None:
    """Refuse a channel that is not there, and to mix declared channels that a network lacks."""
    if channel is not None and not 0 <= channel < count:
        raise ValueError(f"`channel` must be from 0 to {count - 1} for {path}, got {channel}.")
    if declared and channel is None and in_channels not in (None, count):
        raise ValueError(
            f"`channel` must be chosen, from 0 to {count - 1}: the model takes {in_channels}, "
            f"{path} has {count}."
        )


def _guessed_axes(shape: tuple[int, ...], in_channels: int | None) -> str:
    """Name the axes of an image that does not name them itself; see `read_slices`."""
    if not 2 <= len(shape) <= 4:
        raise ValueError(f"Image must have 2 to 4 axes, got shape {shape}.")
    several = in_channels if in_channels != 1 else None
    colours = len(shape) > 2 and (shape[-1] <= 4 or shape[-1] == several)
    if len(shape) == 3 and not colours and shape[0] == several:
        return "cyx"
    return ("tzyxs" if colours else "tzyx")[-len(shape) :]


def read_labels(path: str | Path, key: str | None = None, *, masks: bool = False) -> np.ndarray:
    """Read one label image.

    Args:
        path: File (or Zarr folder) to read.
        key: Data set inside an HDF5, Zarr or N5 file; needed if there is more than one.
        masks: For labels that are classes: take masks too. True, and 255 or 65535 where there is
            nothing else but 0, becomes class 1.

    Returns:
        (y, x) or (z, y, x) labels in the integer dtype of the file, 0 = background. A PNG with a
        palette gives its indices.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If the file holds no labels (floats, colours, a mask, negative numbers), the
            format is unknown, or `key` is missing or wrong.
    """
    path = Path(path)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise ValueError(f"Labels must not be JPEG, which changes numbers, got {path}.")
    with _open(path, key, indices=True) as stored:
        problem = _label_problem(stored, masks)
        if problem is not None:
            raise ValueError(f"Labels in {path} must be whole numbers, got {problem}")
        return _checked(stored.read(), path, masks)


def list_images(folder: str | Path) -> list[Path]:
    """List the image files in a folder, in natural order (cell2 before cell10).

    Hidden files, subfolders (except Zarr and N5) and other file types are left out.

    Raises:
        FileNotFoundError: If the folder does not exist or has no image in it.
    """
    return _list(Path(folder), IMAGE_SUFFIXES)


def other_files(folder: str | Path) -> list[str]:
    """Name the files in a folder that `list_images` leaves out, hidden ones aside."""
    return sorted(
        file.name
        for file in Path(folder).iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and file.suffix.lower() not in IMAGE_SUFFIXES
    )


def find_pairs(
    images: str | Path,
    labels: str | Path,
    *,
    image_key: str | None = None,
    label_key: str | None = None,
    masks: bool = False,
    in_channels: int | None = None,
    channel: int | None = None,
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

    Returns:
        One sample per image in natural order; one per slice, called `name_z000`, for stacks.

    Raises:
        FileNotFoundError: If a folder is missing or holds no readable file type.
        ValueError: If names do not pair, a name occurs twice, shapes differ, labels are not whole
            numbers, there is no such channel, or none is chosen and a file declares another number
            than the network takes. The message lists all files concerned.
    """
    images, labels = Path(images), Path(labels)
    keys_differ = image_key is not None and label_key is not None and image_key != label_key
    image_files = by_name(_list(images, IMAGE_SUFFIXES))
    label_files = by_name(_list(labels, LABEL_SUFFIXES))
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

    reading = _Reading(image_key, label_key, masks, channel)
    samples: list[Sample] = []
    problems: list[str] = []
    for name, image_file in image_files.items():
        try:
            samples += _pair(name, image_file, label_files[name], reading, in_channels)
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
    channel: int | None


def _pair(
    name: str, image_file: Path, label_file: Path, reading: _Reading, in_channels: int | None
) -> list[Sample]:
    """Check the headers of one pair and return its samples, one per slice."""
    with _open(label_file, reading.label_key, indices=True) as stored:
        problem = _label_problem(stored, reading.masks)
        shape = stored.shape
    if problem is not None:
        raise ValueError(f"{label_file}: labels must be whole numbers, got {problem}")
    with _open(image_file, reading.image_key) as stored:
        if stored.dtype.kind not in "buif":
            raise ValueError(f"{image_file}: an image must hold numbers, got {stored.dtype}.")
        axis = _channel_axis(stored, shape)
        if axis is None and stored.shape != shape:
            raise ValueError(
                f"{image_file}: shape {stored.shape} does not fit the labels "
                f"{shape} of {label_file}."
            )
        if axis is not None:
            declared = stored.kept_axes[axis : axis + 1] == "c"
            _check_channel(image_file, stored.shape[axis], declared, in_channels, reading.channel)
        elif reading.channel is not None:
            raise ValueError(_NO_CHANNELS.format(image_file))
    read = partial(_read_pair, image_file, label_file, reading, axis)
    if len(shape) == 2:
        return [Sample(name, partial(read, None))]
    return [Sample(f"{name}_z{z:03d}", partial(read, z)) for z in range(shape[0])]


def _read_pair(
    image_file: Path,
    label_file: Path,
    reading: _Reading,
    channel_axis: int | None,
    z: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    with _open(image_file, reading.image_key) as stored:
        z_axis = 1 if channel_axis == 0 else 0
        image = stored.read(z, z_axis)
    if channel_axis is not None:
        image = np.moveaxis(image, channel_axis - (z is not None and channel_axis > z_axis), -1)
        if reading.channel is not None:
            image = image[..., reading.channel]
    with _open(label_file, reading.label_key, indices=True) as stored:
        return image, _checked(stored.read(z), label_file, reading.masks)


@dataclass(frozen=True)
class _Stored:
    """An open file, described before its pixels are read; axes of length 1 are left out."""

    array: Any  # has shape, dtype and slicing: an HDF5 or Zarr data set, a memory map, a file
    axes: str = ""  # of `array` if the file declares them: y, x, s colours, c channels, t, z, ...
    alpha: bool = False  # if the file declares that the last colour is alpha

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = self._sizes()
        return tuple(sizes[axis] for axis in _kept(sizes))

    @property
    def kept_axes(self) -> str:
        return "".join(self.axes[axis] for axis in _kept(self._sizes())) if self.axes else ""

    @property
    def channel_axis(self) -> int | None:
        axes = self.kept_axes
        return next((axes.index(letter) for letter in "sc" if letter in axes), None)

    def read(self, index: int | None = None, axis: int = 0) -> np.ndarray:
        """Read everything, or the slice `index` along the kept axis `axis`."""
        sizes = self._sizes()
        kept = _kept(sizes)
        slices = [slice(size) if place in kept else 0 for place, size in enumerate(sizes)]
        if index is not None:
            slices[kept[axis]] = index
        array = self.array[tuple(slices)]
        array = np.array(array) if isinstance(array, np.memmap) else np.asarray(array)
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _sizes(self) -> list[int]:
        sizes = list(self.array.shape)
        if self.alpha:
            sizes[self.axes.index("s")] -= 1
        return sizes


def _kept(shape: Sequence[int]) -> list[int]:
    """Axes that remain after those of length 1 are dropped, front first, down to two."""
    kept = list(range(len(shape)))
    for axis in range(len(shape)):
        if shape[axis] == 1 and len(kept) > 2:
            kept.remove(axis)
    return kept


def _channel_axis(stored: _Stored, labels_shape: tuple[int, ...]) -> int | None:
    """Return the axis that the image has more than the labels, None if there is none."""
    shape = stored.shape
    if len(shape) != len(labels_shape) + 1:
        return None
    last, middle = len(shape) - 1, range(1, len(shape) - 1)
    declared = () if stored.channel_axis is None else (stored.channel_axis,)
    for axis in (*declared, last, 0, *middle):
        if shape[:axis] + shape[axis + 1 :] == labels_shape:
            return axis
    return None


def _label_problem(stored: _Stored, masks: bool) -> str | None:
    """Say what the header of a label file tells against it, None if nothing does."""
    if stored.dtype.kind == "b" and not masks:
        return f"a mask of true and false. {_MASK_HINT}"
    if stored.dtype.kind not in "bui":
        return f"{stored.dtype}. Save labels as 16 or 32 bit integers."
    if len(stored.shape) in (3, 4) and stored.shape[-1] in (3, 4):
        return (
            f"colours of shape {stored.shape}. Colours do not tell which object is which number: "
            "save the label image itself, one channel, not its coloured view."
        )
    if len(stored.shape) not in (2, 3):
        return f"shape {stored.shape}. Labels have axes (y, x), or (z, y, x) for a stack."
    return None


def _checked(labels: np.ndarray, path: Path, masks: bool) -> np.ndarray:
    """Return the labels if their values can be labels; a mask as 0 and 1."""
    if labels.dtype == bool:
        return labels.astype(np.uint8)
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


@contextmanager
def _open(path: Path, key: str | None, *, indices: bool = False) -> Iterator[_Stored]:
    """Open a file of any known format; `indices` keeps palette indices instead of colours."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        known = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(f"Unknown file type '{path.suffix}' of {path}. Known: {known}.")
    if not path.exists():
        raise FileNotFoundError(f"No such file: {path}.")
    if key is not None and suffix not in _CONTAINER:
        raise ValueError(
            f"`key` is for HDF5, Zarr and N5 files, got {key!r} with {path}. Leave it out."
        )
    try:
        if suffix in _TIFF:
            with tifffile.TiffFile(path) as file:
                yield _open_tiff(file, path)
        elif suffix in _PICTURE:
            yield _open_picture(path, indices)
        elif suffix in _HDF5:
            with h5py.File(path, "r") as file:
                yield _Stored(_select(path, key, _hdf5_arrays(file)))
        elif suffix == ".zarr" and key is None and is_ome_zarr(path):
            volume = read_ome_zarr(path)
            yield _Stored(volume.levels[0], "".join(volume.axes))
        elif suffix == ".zarr":
            root = zarr.open(str(path), mode="r")
            if isinstance(root, zarr.Array):
                yield _Stored(root)
            else:
                members = root.members(max_depth=None)
                arrays = {name: item for name, item in members if isinstance(item, zarr.Array)}
                yield _Stored(_select(path, key, arrays))
        elif suffix == ".n5":
            with closing(_open_n5(path)) as file:
                yield _Stored(_select(path, key, _n5_arrays(file)))
        else:
            array = np.load(path, mmap_mode="r")
            yield _Stored(array)
    except _UNREADABLE as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"Cannot read {path} ({error}).") from error


class _TiffStack:
    """Images of one shape in a TIFF file as something of which only the pages needed are read."""

    def __init__(self, file: tifffile.TiffFile, series: list[tifffile.TiffPageSeries]):
        self.file, self.series, self.dtype = file, series, series[0].dtype
        self.shape = (*([len(series)] if len(series) > 1 else []), *series[0].shape)

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        if len(self.series) == 1:
            return self._read(self.series[0], index)
        first, rest = index[0], index[1:]
        if isinstance(first, int):
            return self._read(self.series[first], rest)
        return np.stack([self._read(series, rest) for series in self.series[first]])

    def _read(self, series: tifffile.TiffPageSeries, index: tuple[int | slice, ...]) -> np.ndarray:
        if series.dataoffset is not None:  # in one piece, not compressed
            dtype = series.dtype.newbyteorder(self.file.byteorder)
            mapped = np.memmap(
                self.file.filehandle.path, dtype, "r", series.dataoffset, series.shape
            )
            return mapped[index]
        page_shape = series.keyframe.shape
        count = len(series.shape) - len(page_shape)
        leading = series.shape[:count]
        if series.shape[count:] != page_shape or math.prod(leading) != len(series):
            return series.asarray()[index]
        numbers = np.arange(len(series)).reshape(leading)[index[:count]]
        if numbers.size == len(series):
            return series.asarray()[index]
        pages = np.stack([cast(TiffPage, series[int(n)]).asarray() for n in numbers.flat])
        inside = (slice(None),) * numbers.ndim + index[count:]
        return pages.reshape(*numbers.shape, *page_shape)[inside]


def _open_tiff(file: tifffile.TiffFile, path: Path) -> _Stored:
    if not file.series:
        raise ValueError(f"{path}: the TIFF file has no image in it.")
    first, *others = file.series
    alike = all(
        (s.shape, s.dtype, s.axes) == (first.shape, first.dtype, first.axes) for s in others
    )
    stack = _TiffStack(file, file.series if alike else [first])
    axes = "".join(axis[:1] for axis in first.axes).lower()  # a list where a writer gave one
    if first.kind == "shaped" and not axes.endswith("s"):
        axes = axes.replace("s", "z")  # tifffile writes stacks of 3 or 4 slices so
    if len(stack.series) > 1:
        axes = f"i{axes}"
    extra = first.keyframe.extrasamples  # 1 and 2: alpha; 0: just another channel
    return _Stored(stack, axes, axes.endswith("s") and bool(extra) and extra[-1] in (1, 2))


class _Picture:
    """A PNG, JPEG or BMP file that is decoded when it is sliced."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, convert: str | None):
        self.path, self.shape, self.dtype, self.convert = path, shape, dtype, convert

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        if self.dtype == np.uint16:  # Pillow reads colours with 8 bit only
            return imagecodecs.png_decode(self.path.read_bytes())[index]
        with Image.open(self.path) as picture:
            return np.array(picture.convert(self.convert) if self.convert else picture)[index]


def _open_picture(path: Path, indices: bool) -> _Stored:
    with Image.open(path) as picture:
        mode, (width, height) = picture.mode, picture.size
        transparent = "transparency" in picture.info
    with path.open("rb") as file:
        header = file.read(26)
    dtype, convert = np.dtype({"1": "bool", "F": "float32"}.get(mode, "uint8")), None
    if path.suffix.lower() == ".png" and header[24] == 16:  # bits, then the kind of colour
        mode = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}[header[25]]
        dtype = np.dtype("uint16")
    elif mode == "P" and not indices:
        convert = mode = "RGBA" if transparent else "RGB"
    elif mode in ("CMYK", "YCbCr", "PA"):
        convert = mode = "RGB"
    channels = {"LA": 2, "RGB": 3, "RGBA": 4}.get(mode, 1)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return _Stored(
        _Picture(path, shape, dtype, convert),
        axes="yx" if channels == 1 else "yxs",
        alpha=mode in ("LA", "RGBA"),
    )


def _hdf5_arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    arrays = {}

    def collect(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item

    file.visititems(collect)
    return arrays


def _open_n5(path: Path) -> Any:
    try:
        import z5py
    except ImportError as error:
        raise ImportError(
            f"Reading N5 files such as {path} needs z5py. Install it with "
            "`pip install 'vimunet[n5]'`, or convert the file to Zarr."
        ) from error
    return z5py.File(str(path), mode="r")


def _n5_arrays(group: Any, prefix: str = "") -> dict[str, Any]:
    arrays = {}
    for name, item in group.items():
        if hasattr(item, "shape"):
            arrays[prefix + name] = item
        else:
            arrays.update(_n5_arrays(item, f"{prefix}{name}/"))
    return arrays


def _select(path: Path, key: str | None, arrays: dict[str, Any]) -> Any:
    """Return the data set called `key`, or the only one."""
    if key is not None and key.strip("/") in arrays:
        return arrays[key.strip("/")]
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    known = ", ".join(f"{name} {tuple(item.shape)}" for name, item in sorted(arrays.items()))
    wrong = "a key is needed" if key is None else f"no data set {key!r}"
    raise ValueError(f"{path}: {wrong}. Data sets in this file: {known or 'none'}.")


def _list(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"No such folder: {folder}.")
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in suffixes
        and not file.name.startswith(".")
        and file.is_dir() == (file.suffix.lower() in (".zarr", ".n5"))
    ]
    if not files:
        raise FileNotFoundError(f"No files of type {', '.join(suffixes)} in {folder}.")
    return sorted(files, key=lambda file: natural_key(file.name))


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts cell2 before cell10.

    Examples:
        >>> sorted(["cell10", "cell2"], key=natural_key)
        ['cell2', 'cell10']
    """
    parts = re.split(r"(\d+)", name.lower())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def stem(path: str | Path) -> str:
    """Return the file name without its extension, the name that images and labels share.

    Examples:
        >>> stem("run.2/cell_01.ome.tif"), stem("iso.2780.png")
        ('cell_01', 'iso.2780')
    """
    name = Path(path).stem
    return name[:-4] if name.lower().endswith(".ome") else name


def by_name(files: list[Path]) -> dict[str, Path]:
    """Give files by the names that images and labels share; refuse names that occur twice."""
    names = Counter(stem(file) for file in files)
    doubles = [file.name for file in files if names[stem(file)] > 1]
    if doubles:
        raise ValueError(
            f"Names in {files[0].parent} must be unique without their extension, got:"
            + some_lines(doubles)
        )
    return {stem(file): file for file in files}


def unpaired(title: str, names: dict[str, Path], others: dict[str, Path]) -> str:
    """List the files whose names the others lack, below a title; nothing if there are none."""
    missing = [file.name for name, file in names.items() if name not in others]
    return f"\n{title}:{some_lines(missing)}" if missing else ""
