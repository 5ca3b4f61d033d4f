"""Arrays whose axes have names, read where they are indexed; no file format, no network.

Letters of axes: t time, c channels, s colours, z sections, y rows, x columns. Any order will do:
what is read comes in the order that is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vimunet.axes import Box, SpatialAxes
from vimunet.units import MICROMETRES

Index = tuple[int, ...]
"""Position of a piece along the axes of an image that are not those of a network."""

CHANNEL_AXES = "cs"

COLOURS = (3, 4)
"""How many of them an image has."""

_FAR_SHORTER = 4
"""An axis is far shorter than another if it has less than this part of its length."""


@dataclass(frozen=True)
class LazyImage:
    """An image of any number of axes, of which nothing is read yet.

    Attributes:
        array: Has shape, dtype and slicing: NumPy, Dask, Zarr, HDF5, ...
        axes: One letter for each axis; "" if nobody knows.
        pixel: Length of a pixel and its unit, in the words of NGFF, along the axes of which they
            are known.
        channel_names: Of the axis c, where they are known.
        name: What messages call it, the path of a file for example.
    """

    array: Any
    axes: str = ""
    pixel: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()
    name: str = "`image`"

    def __post_init__(self) -> None:
        if self.axes and (len(self.axes) != self.ndim or len(set(self.axes)) != self.ndim):
            raise ValueError(
                f"`axes` must have one letter for each of the {self.ndim} axes of {self.name} "
                f"{self.shape}, got {self.axes!r}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(int(length) for length in self.array.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels, in the byte order of this machine."""
        return np.dtype(self.array.dtype).newbyteorder("=")

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each axis, by its letter."""
        return dict(zip(self.axes, self.shape, strict=True)) if self.axes else {}

    @property
    def channel_axis(self) -> str | None:
        """Letter of the axis of channels or colours, if there is one."""
        return next((letter for letter in CHANNEL_AXES if letter in self.axes), None)

    def spacing(self, axes: str) -> tuple[float, ...] | None:
        """Give the size of a voxel in µm along some axes; None unless all are known."""
        known = [self.pixel.get(axis) for axis in axes]
        if any(size is None or size[1] not in MICROMETRES for size in known):
            return None
        return tuple(size[0] * MICROMETRES[size[1]] for size in known if size is not None)

    def with_axes(self, axes: str) -> "LazyImage":
        """Name the axes."""
        return replace(self, axes=axes)

    def view(self, order: str, place: Mapping[str, int] | None = None) -> "View":
        """Look at a part of it.

        Args:
            order: The axes that are kept, in the order that is wanted.
            place: Where the others are looked at; 0 if nothing is said.
        """
        return View(self, order, dict.fromkeys(self.axes, 0) | dict(place or {}))

    def read(self, order: str | None = None) -> np.ndarray:
        """Read all of it, with its axes in a certain order."""
        if order is not None:
            return self.view(order).read()
        pixels = np.asarray(self.array[tuple(slice(length) for length in self.shape)])
        return pixels.astype(self.dtype, copy=False)


class View:
    """A part of a `LazyImage` with its axes in a certain order; an array that is read when sliced.

    Attributes:
        shape: Length of each axis that is kept.
        dtype: Of the pixels.
    """

    def __init__(self, image: LazyImage, order: str, place: Mapping[str, int]):
        self._image, self._order, self._place = image, order, place
        sizes = image.sizes
        self.shape = tuple(sizes[axis] for axis in order)
        self.dtype = image.dtype

    def __getitem__(self, box: Box) -> np.ndarray:
        """Read slices, or single places, of the first axes, and all of the others."""
        ranges: dict[str, int | slice] = dict(self._place)
        sizes = dict(zip(self._order, self.shape, strict=True))
        ranges |= {axis: slice(0, length) for axis, length in sizes.items()}
        ranges |= dict(zip(self._order, box, strict=False))
        image = self._image
        pixels = np.asarray(image.array[tuple(ranges[axis] for axis in image.axes)])
        stored = [axis for axis in image.axes if isinstance(ranges[axis], slice)]
        ordered = pixels.transpose([stored.index(axis) for axis in self._order if axis in stored])
        return ordered.astype(self.dtype, copy=False)

    def read(self) -> np.ndarray:
        """Read all of it."""
        return self[tuple(slice(0, length) for length in self.shape)]


class Pieces:
    """The images, or volumes, that a network takes out of an array with more axes.

    Axes of one pixel do not count.

    Args:
        image: With named axes.
        spatial: Axes of the network.
        in_channels: Channels that the network takes; None: any.
        channel: Which channel or colour to take; None: all.

    Attributes:
        image: The array.
        spatial: Axes of each piece, its channels aside.
        leading: The other axes, time first.
        lengths: Their lengths.
        shape: Size of each piece.
        spacing: Size of a voxel in µm along `spatial`, None if it is not known.

    Raises:
        ValueError: If an axis of the network is missing, one is not known, there is no such
            channel, or none is chosen and the image has another number than the network takes.
    """

    def __init__(
        self,
        image: LazyImage,
        spatial: SpatialAxes,
        in_channels: int | None = None,
        channel: int | None = None,
    ):
        sizes = image.sizes
        longer = {axis for axis, length in sizes.items() if length > 1}
        if not set(spatial) <= set(sizes) or longer - set("tcszyx") or {"c", "s"} <= longer:
            raise ValueError(
                f"{image.name} must have the axes {', '.join(spatial)} and any of t, z and c, got "
                f"{', '.join(image.axes) or 'none that is named'}."
            )
        self.image, self.spatial = image, spatial
        self.leading = "".join(axis for axis in "tz" if axis in longer - set(spatial))
        self.lengths = tuple(sizes[axis] for axis in self.leading)
        self.shape = tuple(sizes[axis] for axis in spatial)
        self.spacing = image.spacing(spatial)
        self._kept, self._chosen = "", {}
        letter = next((axis for axis in CHANNEL_AXES if axis in longer), None)
        if letter is None:
            if channel is not None and (channel != 0 or image.channel_axis is None):
                raise ValueError(no_channels(image.name))
        elif channel is None:
            check_channel(image.name, sizes[letter], letter == "c", channel, in_channels)
            self._kept = letter
        else:
            check_channel(image.name, sizes[letter], letter == "c", channel, in_channels)
            self._chosen = {letter: channel}

    def indices(self) -> Iterator[Index]:
        """Give the place of each piece along `leading`, in order."""
        return iter(np.ndindex(*self.lengths))

    def piece(self, index: Index) -> View:
        """Give one piece: `spatial` axes, and channels last."""
        place = dict(zip(self.leading, index, strict=True)) | self._chosen
        return self.image.view(f"{self.spatial}{self._kept}", place)

    def whole(self) -> View:
        """Give all pieces together: `leading` axes, `spatial` axes, and channels last."""
        return self.image.view(f"{self.leading}{self.spatial}{self._kept}", self._chosen)

    def where(self, index: Index) -> str:
        """Say where a piece is, for messages."""
        return ", ".join(f"{a} = {i}" for a, i in zip(self.leading, index, strict=True))


def no_channels(name: str) -> str:
    """Say that there is no channel to choose."""
    return f"`channel` is for images with channels, {name} has none. Leave it out."


def check_channel(
    name: str, count: int, declared: bool, channel: int | None, in_channels: int | None
) -> None:
    """Refuse a channel that is not there, and to mix declared channels that a network lacks."""
    if channel is not None and not 0 <= channel < count:
        raise ValueError(f"`channel` must be from 0 to {count - 1} for {name}, got {channel}.")
    if declared and channel is None and in_channels not in (None, count):
        raise ValueError(
            f"`channel` must be chosen, from 0 to {count - 1}: the model takes {in_channels}, "
            f"{name} has {count}."
        )


class WithoutAlpha:
    """Colours whose last one, their opacity, is left out."""

    def __init__(self, array: Any, shape: tuple[int, ...]):
        self._array, self.shape, self.dtype = array, shape, array.dtype

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        return np.asarray(self._array[index])


def guess_axes(
    shape: Sequence[int],
    in_channels: int | None = 1,
    channel: int | None = None,
    spatial: str = "yx",
    name: str = "Image",
) -> str:
    """Name the axes of an image that does not name them itself.

    A last axis of 3 or 4 (or 2, or as long as the network has channels) holds colours; a first axis
    as long as the network has channels holds those, if that is more than one. If a channel is
    chosen, an axis far shorter than the others holds channels. The others are x, y, z, t.

    Args:
        shape: Of the image.
        in_channels: Channels that the network takes; None: any.
        channel: Which channel is chosen.
        spatial: Axes of the network.
        name: Of the image, for messages.

    Raises:
        ValueError: If the last axis is far shorter than those before it, so that rows could be
            taken for slices; or there are fewer axes than the network has, or more than four.
    """
    if not len(spatial) <= len(shape) <= 5:
        raise ValueError(
            f"{name} must have {len(spatial)} to 5 axes, got shape {tuple(shape)}. Name them: "
            "`axes` (--axes), for example zyx."
        )
    several = in_channels if in_channels != 1 else None
    longer = len(shape) > len(spatial)
    if longer and (shape[-1] <= max(COLOURS) or shape[-1] == several):
        return _last("tzyx", len(shape) - 1) + "s"
    if longer and len(shape) == len(spatial) + 1 and shape[0] == several:
        return f"c{spatial}"
    short = [
        axis
        for axis in range(len(shape))
        if longer and _FAR_SHORTER * shape[axis] < min(n for i, n in enumerate(shape) if i != axis)
    ]
    if channel is not None and len(short) == 1 and short[0] in (0, len(shape) - 1):
        letters = _last("tzyx", len(shape) - 1)
        return f"c{letters}" if short[0] == 0 else f"{letters}c"
    if longer and len(shape) - 1 in short:
        slices, channels = _last("tzyx", len(shape)), _last("tzyx", len(shape) - 1) + "c"
        raise ValueError(
            f"{name} of shape {tuple(shape)} does not name its axes, and its last one is far "
            f"shorter than the others: it may hold channels ({channels}) or be x ({slices}). Say "
            f"which: `axes` (--axes {channels}), or choose a `channel` (--channel 0)."
        )
    return _last("tzyx", len(shape))


def _last(letters: str, count: int) -> str:
    if count > len(letters):
        raise ValueError(
            f"An image without named axes must have at most {len(letters)} besides its channels, "
            f"got {count}. Name them: `axes` (--axes)."
        )
    return letters[len(letters) - count :]


def with_named_axes(
    image: LazyImage,
    in_channels: int | None = 1,
    channel: int | None = None,
    spatial: str = "yx",
    axes: str | None = None,
) -> LazyImage:
    """Give the axes of an image their names: those given, those declared, or guessed ones.

    Axes of length 1 do not count where they have no name.
    """
    if axes is not None:
        return image.with_axes(axes)
    if image.axes:
        return image
    image = squeezed(image, len(spatial))
    return image.with_axes(guess_axes(image.shape, in_channels, channel, spatial, image.name))


def squeezed(image: LazyImage, least: int = 2) -> LazyImage:
    """Leave out axes of length 1 without a name, front first, down to `least` axes."""
    dropped = [axis for axis, length in enumerate(image.shape) if length == 1]
    dropped = dropped[: max(0, image.ndim - least)]
    if not dropped or image.axes:
        return image
    array = _Squeezed(image.array, dropped)
    return LazyImage(array, "", image.pixel, image.channel_names, image.name)


class _Squeezed:
    """An array without some of its axes of length 1."""

    def __init__(self, array: Any, dropped: Sequence[int]):
        self._array, self._dropped = array, dropped
        kept = [axis for axis in range(len(array.shape)) if axis not in dropped]
        self.shape, self.dtype = tuple(array.shape[axis] for axis in kept), array.dtype

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        parts = iter(index)
        count = len(self.shape) + len(self._dropped)
        full = tuple(0 if axis in self._dropped else next(parts) for axis in range(count))
        return np.asarray(self._array[full])
