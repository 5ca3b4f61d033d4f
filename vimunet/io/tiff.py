"""TIFF files: stacks of which only the pages needed are read, and what they declare."""

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import tifffile
from tifffile import TiffPage

from vimunet.io.image import LazyImage, WithoutAlpha
from vimunet.units import Kind, is_no_unit, unit_name


def open_tiff(path: Path, key: str | None, indices: bool, files: ExitStack) -> LazyImage:
    """Open a TIFF file, see `vimunet.io.formats.READERS`.

    Of several images in it those of one shape are a stack; of different ones the first is read, and
    the rest is told. Of a set of files that name each other, each is read for itself.
    """
    file = files.enter_context(tifffile.TiffFile(path, _multifile=False))
    if not file.series:
        raise ValueError(f"{path}: the TIFF file has no image in it.")
    first, *others = file.series
    alike = all(
        (s.shape, s.dtype, s.axes) == (first.shape, first.dtype, first.axes) for s in others
    )
    stack: Any = _TiffStack(file, file.series if alike else [first])
    if others and not alike:
        warnings.warn(
            f"{path} holds {len(file.series)} images of different sizes. The first, "
            f"{tuple(first.shape)}, is read; left out: "
            f"{', '.join(str(tuple(s.shape)) for s in others[:5])}.",
            stacklevel=2,
        )
    axes = "".join(axis[:1] for axis in first.axes).lower()  # a list where a writer gave one
    page = first.keyframe
    planar = page.photometric == tifffile.PHOTOMETRIC.RGB and not axes.endswith("s")
    if first.kind == "shaped" and planar:  # as tifffile also writes a stack of 3 or 4 slices
        if indices:
            axes = axes.replace("s", "z")  # labels have no colours
        else:
            warnings.warn(
                f"{path} declares that its {dict(zip(axes, first.shape, strict=True)).get('s')} "
                "planes are colours, and is read so. If they are slices: `axes` (--axes zyx).",
                stacklevel=2,
            )
    if alike and others:
        axes = f"{next(letter for letter in 'zt' if letter not in axes)}{axes}"
    if (
        page.photometric == tifffile.PHOTOMETRIC.PALETTE
        and not indices
        and page.colormap is not None
    ):
        palette = np.asarray(page.colormap)
        if not (palette % 257).any():  # 8 bits, stored as 16
            palette = (palette // 257).astype(np.uint8)
        palette = np.ascontiguousarray(palette.T)
        stack = _Shown(stack, (*stack.shape, 3), palette.dtype, palette.__getitem__)
        axes += "s"
    elif page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not indices:
        stack = _inverted(stack, page)
    extra = page.extrasamples  # 1 and 2: alpha; 0: just another channel
    if axes.endswith("s") and extra and extra[-1] in (1, 2):
        shape = (*stack.shape[:-1], stack.shape[-1] - 1)
        stack = WithoutAlpha(stack, shape)
    unnamed = {axis for axis, n in zip(axes, stack.shape, strict=True) if axis in "qi" and n > 1}
    if unnamed or len(set(axes)) != len(axes):
        axes = ""
    return LazyImage(stack, axes, _tiff_pixel(file, path), _ome_channels(file), str(path))


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


class _Shown:
    """An array whose numbers are not what a viewer shows.

    Args:
        array: As it is stored.
        shape: As it is shown; one more axis, of colours, for a palette, one less for alpha.
        dtype: As it is shown.
        show: Turns stored numbers into shown ones.
    """

    def __init__(
        self,
        array: Any,
        shape: tuple[int, ...],
        dtype: Any,
        show: Callable[[np.ndarray], np.ndarray],
    ):
        self._array, self._show = array, show
        self.shape, self.dtype = shape, np.dtype(dtype)

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        stored, colour = index[: len(self._array.shape)], index[len(self._array.shape) :]
        return self._show(np.asarray(self._array[stored]))[(..., *colour)]


def _inverted(stack: Any, page: Any) -> Any:
    """Show white as bright: the file says that 0 is white."""
    if stack.dtype.kind == "b":
        return _Shown(stack, stack.shape, bool, np.logical_not)
    if stack.dtype.kind == "u":
        largest = stack.dtype.type(2**page.bitspersample - 1)
        return _Shown(stack, stack.shape, stack.dtype, lambda stored: largest - stored)
    return stack


def _tiff_pixel(file: tifffile.TiffFile, path: Path) -> dict[str, tuple[float, str]]:
    """Read the length of a pixel and its unit along each axis; a damaged description is told."""
    try:
        return _ome_pixel(file) if file.is_ome else _tag_pixel(file)
    except Exception as error:  # an extra, which never costs the image
        reason = str(error) or type(error).__name__
        warnings.warn(
            f"The description of {path} is damaged ({reason}): the size of a pixel is not known.",
            stacklevel=2,
        )
        return {}


def _ome_pixels(file: tifffile.TiffFile) -> Mapping[str, str]:
    root = ElementTree.fromstring(file.ome_metadata or "<OME/>")
    pixels = next((element for element in root.iter() if element.tag.endswith("Pixels")), None)
    return {} if pixels is None else pixels.attrib


def _ome_channels(file: tifffile.TiffFile) -> tuple[str, ...]:
    """Read the names of the channels of an OME-TIFF."""
    try:
        root = ElementTree.fromstring(file.ome_metadata or "<OME/>")
    except ElementTree.ParseError:
        return ()
    image = next((element for element in root.iter() if element.tag.endswith("Image")), root)
    names = [e.attrib.get("Name", "") for e in image.iter() if e.tag.endswith("Channel")]
    return tuple(names) if all(names) else ()


def _ome_pixel(file: tifffile.TiffFile) -> dict[str, tuple[float, str]]:
    found = _ome_pixels(file)
    declared = [(axis, f"PhysicalSize{axis.upper()}", "µm") for axis in "zyx"]
    return {
        axis: size
        for axis, name, unit in [*declared, ("t", "TimeIncrement", "s")]
        if (size := _size(found.get(name), found.get(f"{name}Unit", unit), axis))
    }


def _tag_pixel(file: tifffile.TiffFile) -> dict[str, tuple[float, str]]:
    tags, notes = file.pages.first.tags, file.imagej_metadata or {}
    unit = _text(notes.get("unit", ""))
    per_unit = 1.0
    if not unit and (tag := tags.get("ResolutionUnit")) is not None:
        if tag.value == tifffile.RESUNIT.CENTIMETER:
            unit, per_unit = "µm", 1e4
        elif tag.value == tifffile.RESUNIT.INCH and notes:
            unit, per_unit = "", 1.0  # ImageJ writes inches when it has no unit
    sizes = {"z": _size(notes.get("spacing"), _text(notes.get("zunit", unit)), "z")}
    sizes["t"] = _size(notes.get("finterval"), _text(notes.get("tunit", "s")), "t")
    for axis in "yx":
        if (tag := tags.get(f"{axis.upper()}Resolution")) is not None:
            pixels, lengths = tag.value
            of_axis = _text(notes.get(f"{axis}unit", unit))
            sizes[axis] = _size(per_unit * lengths / pixels if pixels else None, of_axis, axis)
    return {axis: size for axis, size in sizes.items() if size is not None}


def _text(unit: Any) -> str:
    return str(unit).replace("\\u00B5", "µ")


def _size(length: Any, unit: str, axis: str) -> tuple[float, str] | None:
    """Give a length and the name of its unit if both mean something."""
    if length is None or length == "":
        return None
    kind: Kind = "time" if axis == "t" else "space"
    name = unit_name(unit, kind)
    number = float(length)
    if name is None and not is_no_unit(unit):
        warnings.warn(
            f"The unit {unit!r} of a pixel along {axis} is not known, and not used.", stacklevel=2
        )
    return (number, name) if name is not None and 0 < number < math.inf else None
