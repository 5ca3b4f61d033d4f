"""The two-dimensional planes of an image with more axes, read only when they are needed.

The image may be a single one, a stack, a time series, or several of these at once; an axis may hold
channels. Its last two axes are y and x, colours may follow. Each combination of the other axes, the
channels left out, is one plane. Labels have the axes of the image; along a channel axis they have
length 1.
"""

from collections.abc import Callable, Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimunet.axes import Box, boxes, whole
from vimunet.io.image import Index, LazyImage, View, check_channel

_READ_SIZE = (1024, 1024)
"""Size in pixels of the blocks in which missing pixels are looked for."""

_COLOURS = slice(0, 3)
"""Red, green and blue; opacity is not read."""


class Planes:
    """The planes of one image.

    Args:
        data: (..., y, x), or (..., y, x, c) with `rgb`: an array, or anything indexed like one.
        rgb: Whether the last axis holds colours: red, green and blue, and maybe opacity, which is
            not read.
        channel_axis: Axis that holds channels, or None.
        channel: Which channel to take; None gives all of them to the network together.
        spacing: Size (y, x) of a pixel in µm; None if it is not known.

    Attributes:
        channels: Length of the channel axis, 1 without.
        leading: Lengths of the axes before y and x; 1 along a channel axis.
        shape: (y, x) in pixels.

    Raises:
        ValueError: If there are no two axes, no pixels, or no such channel.
    """

    def __init__(
        self,
        data: Any,
        rgb: bool = False,
        channel_axis: int | None = None,
        channel: int | None = None,
        spacing: tuple[float, float] | None = None,
    ):
        shape = tuple(data.shape[:-1] if rgb else data.shape)
        if len(shape) < 2 or 0 in shape:
            raise ValueError(
                f"Image must have at least one pixel and the axes (y, x), got shape {shape}."
            )
        self.data, self.spacing = data, spacing
        self.channel_axis, self.channel, self.channels = channel_axis, channel, 1
        lengths, letters = list(shape[:-2]), list(ascii_uppercase[: len(shape) - 2])
        self._kept = "yxs" if rgb else "yx"
        if channel_axis is not None:
            if rgb or not 0 <= channel_axis < len(lengths):
                raise ValueError(
                    f"`channel_axis` must be one of the {len(lengths)} axes before y and x of an "
                    f"image without colours, got {channel_axis}."
                )
            self.channels = shape[channel_axis]
            check_channel("`image`", self.channels, True, channel, None)
            lengths[channel_axis], letters[channel_axis] = 1, "c"
            self._kept += "c" if channel is None else ""
        self._letters = "".join(letters)
        self._image = LazyImage(data, f"{self._letters}yx{'s' if rgb else ''}")
        self.leading: Index = tuple(lengths)
        self.shape: tuple[int, int] = (shape[-2], shape[-1])

    @property
    def labels_shape(self) -> tuple[int, ...]:
        """Shape of the labels of all planes."""
        return (*self.leading, *self.shape)

    def is_like(self, other: "Planes") -> bool:
        """Tell whether the same pixels of the same image are read."""
        return self.data is other.data and (self.channel_axis, self.channel, self.spacing) == (
            other.channel_axis,
            other.channel,
            other.spacing,
        )

    def indices(self) -> list[Index]:
        """List all planes, in the order in which they are stored."""
        return list(np.ndindex(*self.leading))

    def at(self, position: Sequence[float]) -> Index:
        """Find the plane nearest to a position, given along the axes before y and x."""
        return nearest_plane(position, self.leading)

    def plane(self, index: Index, box: Box | None = None) -> "Plane":
        """Give one plane, or the part of it inside `box`."""
        place = dict(zip(self._letters, index, strict=True)) | {"c": self.channel or 0}
        view = self._image.view(self._kept, place)
        channels = whole(view.shape[2:]) if "s" not in self._kept else (_COLOURS,)
        return Plane(view, (*(box or whole(self.shape)), *channels), self.spacing)


class Plane:
    """One plane, (y, x) or (y, x, c), read piece by piece: what `vimunet.predict` takes.

    Missing pixels (NaN or infinite) stay as they are until `fill_missing` is called.

    Args:
        view: What the plane is a part of.
        box: Which part.
        spacing: Size (y, x) of a pixel in µm; None if it is not known.

    Attributes:
        shape: (y, x) or (y, x, c).
        dtype: Of the pixels.
        before_read: Called before each piece is read; may raise to end the reading.
    """

    def __init__(self, view: View, box: Box, spacing: tuple[float, float] | None = None):
        self._view, self._box, self.spacing = view, box, spacing
        self._fill: float | None = None
        self.before_read: Callable[[], None] | None = None
        self.shape = tuple(part.stop - part.start for part in box)
        self.dtype = view.dtype

    def __getitem__(self, box: Box) -> NDArray[Any]:
        """Read the (y, x) slices `box`, relative to this plane."""
        if self.before_read is not None:
            self.before_read()
        stored = [
            slice(outer.start + part.start, outer.start + part.stop)
            for outer, part in zip(self._box, box, strict=False)
        ]
        pixels = self._view[(*stored, *self._box[len(stored) :])]
        if self._fill is None:
            return pixels
        return np.where(np.isfinite(pixels), pixels, np.asarray(self._fill, pixels.dtype))

    def read(self) -> NDArray[Any]:
        """Read all of it."""
        return self[whole(self.shape[:2])]

    def fill_missing(self) -> NDArray[np.bool_] | None:
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
        for box in boxes(self.shape[:2], _READ_SIZE):
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


def nearest_plane(position: Sequence[float], lengths: Sequence[int]) -> Index:
    """Find the plane nearest to a position.

    Args:
        position: Along the axes before y and x, in pixels.
        lengths: Of these axes, see `Planes.leading`.

    Examples:
        >>> nearest_plane((2.6, 1.0), (4, 1)), nearest_plane((-7.0, 5.0), (4, 1))
        ((3, 0), (0, 0))
    """
    return tuple(
        int(np.clip(round(place), 0, length - 1)) if length > 1 else 0
        for place, length in zip(position, lengths, strict=True)
    )
