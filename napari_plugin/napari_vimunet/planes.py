"""The two-dimensional planes of an image layer, read only when they are needed; no Qt, no napari.

A layer may be a single image, a stack, a time series, or several of these at once; an axis may
hold channels. Its last two axes are y and x. Each combination of the other axes, the channels left
out, is one plane. Labels have the axes of the image; along a channel axis they have length 1.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

Index = tuple[int, ...]
"""Position of a plane along the axes before y and x; 0 along a channel axis."""

Box = tuple[slice, slice]

_READ_SIZE = 1024
"""Side in pixels of the blocks in which missing pixels are looked for."""


class Planes:
    """The planes of one image layer.

    Args:
        data: (..., y, x), or (..., y, x, c) with `rgb`: an array, or anything indexed like one.
        rgb: Whether the last axis holds colours: red, green and blue, and maybe opacity, which is
            not read.
        channel_axis: Axis that holds channels, or None.
        channel: Which channel to take; "all" gives them to the network together.

    Raises:
        ValueError: If there are no two axes, no pixels, or no such channel.
    """

    def __init__(
        self,
        data: Any,
        rgb: bool = False,
        channel_axis: int | None = None,
        channel: int | Literal["all"] = "all",
    ):
        shape = tuple(data.shape[:-1] if rgb else data.shape)
        if len(shape) < 2 or 0 in shape:
            raise ValueError(
                f"Image must have at least one pixel and the axes (y, x), got shape {shape}."
            )
        if channel_axis is not None:
            if rgb or not 0 <= channel_axis < len(shape) - 2:
                raise ValueError(
                    f"`channel_axis` must be one of the {len(shape) - 2} axes before y and x of an "
                    f"image without colours, got {channel_axis}."
                )
            if channel != "all" and not 0 <= channel < shape[channel_axis]:
                raise ValueError(
                    f"`channel` must be below {shape[channel_axis]}, the number of channels, "
                    f"got {channel}."
                )
        self.data = data
        self.rgb = rgb
        self.channel_axis = channel_axis
        self.channel = channel
        self.channels = 1 if channel_axis is None else shape[channel_axis]
        self.leading: Index = tuple(
            1 if axis == channel_axis else length for axis, length in enumerate(shape[:-2])
        )
        self.shape: tuple[int, int] = (shape[-2], shape[-1])

    @property
    def labels_shape(self) -> tuple[int, ...]:
        """Shape of the labels of all planes."""
        return (*self.leading, *self.shape)

    def indices(self) -> list[Index]:
        """List all planes, in the order in which they are stored."""
        return [tuple(map(int, index)) for index in np.ndindex(*self.leading)]

    def at(self, position: tuple[float, ...]) -> Index:
        """Find the plane nearest to a position, given along the axes before y and x."""
        return tuple(
            int(np.clip(round(place), 0, length - 1)) if length > 1 else 0
            for place, length in zip(position, self.leading, strict=True)
        )

    def plane(self, index: Index, box: Box | None = None) -> "Plane":
        """Give one plane, or the part of it inside `box`."""
        return Plane(self, index, box or (slice(0, self.shape[0]), slice(0, self.shape[1])))


class Plane:
    """One plane, (y, x) or (y, x, c), read piece by piece: what `vimunet.predict` takes.

    Missing pixels (NaN or infinite) stay as they are until `fill_missing` is called.

    Attributes:
        shape: (y, x) or (y, x, c).
        dtype: Of the pixels.
        before_read: Called before each piece is read; may raise to end the reading.
    """

    def __init__(self, planes: Planes, index: Index, box: Box):
        self._planes = planes
        self._index = index
        self._box = box
        self._fill: float | None = None
        self.before_read: Callable[[], None] | None = None
        rows, columns = box
        size: tuple[int, ...] = (rows.stop - rows.start, columns.stop - columns.start)
        if planes.rgb:
            size += (3,)
        elif planes.channel_axis is not None and planes.channel == "all":
            size += (planes.channels,)
        self.shape: tuple[int, ...] = size
        self.dtype = np.dtype(planes.data.dtype)

    def __getitem__(self, box: Any) -> np.ndarray:
        """Read the (y, x) slices `box`, relative to this plane."""
        if self.before_read is not None:
            self.before_read()
        rows, columns = (
            slice(whole.start + part.start, whole.start + part.stop)
            for whole, part in zip(self._box, box, strict=True)
        )
        planes = self._planes
        place: list[int | slice] = list(self._index)
        colours = (slice(3),) if planes.rgb else ()
        together = planes.channel_axis is not None and planes.channel == "all"
        if planes.channel_axis is not None:
            place[planes.channel_axis] = slice(None) if together else int(planes.channel)
        pixels = np.asarray(planes.data[(*place, rows, columns, *colours)])
        if together:
            pixels = np.moveaxis(pixels, 0, -1)
        if self._fill is None:
            return pixels
        return np.where(np.isfinite(pixels), pixels, np.asarray(self._fill, pixels.dtype))

    def fill_missing(self) -> np.ndarray | None:
        """Find pixels that are NaN or infinite, and read them as the mean of all others from now.

        Returns:
            (y, x) bool, true where a pixel is missing in any channel; None if none is.

        Raises:
            ValueError: If all pixels are missing.
        """
        if self.dtype.kind != "f":
            return None
        missing = np.zeros(self.shape[:2], bool)
        total, count = 0.0, 0
        for box in _blocks(self.shape[:2]):
            pixels = self[box]
            finite = np.isfinite(pixels)
            total += float(pixels.sum(where=finite, dtype=np.float64))
            count += int(finite.sum())
            missing[box] = ~finite if finite.ndim == 2 else ~finite.all(axis=-1)
        if not missing.any():
            return None
        if count == 0:
            raise ValueError("Image must have finite pixels, got only NaN or infinite ones.")
        self._fill = total / count
        return missing


def _blocks(shape: tuple[int, ...]) -> Iterator[Box]:
    for y in range(0, shape[0], _READ_SIZE):
        for x in range(0, shape[1], _READ_SIZE):
            yield (
                slice(y, min(y + _READ_SIZE, shape[0])),
                slice(x, min(x + _READ_SIZE, shape[1])),
            )
