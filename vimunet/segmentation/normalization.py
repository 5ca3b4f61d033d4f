"""How images are prepared for a network, written once: for training and for prediction.

An image becomes (c, [z,] y, x) float32 of which a number is subtracted and by which it is divided;
`NORMALIZATIONS` says which numbers. Training does it with each crop, prediction with an image as a
whole, which it reads piece by piece (`NormalizedImage`).
"""

from collections.abc import Iterable
from copy import copy
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from vimunet.axes import Box, PerAxis, SpatialAxes, boxes, per_axis, whole

NORMALIZATIONS = ("image", "channel", "range")
"""Kinds of normalisation.

"image": zero mean and unit spread over all channels together, as the paper does; "channel": the
same for each channel by itself, as nnU-Net does; "range": the least value becomes 0, the largest
255, as VM-UNet does.
"""

_READ_SIZE = {"yx": (1024, 1024), "zyx": (64, 256, 256)}
"""Size in pixels of the blocks in which the numbers of an image are computed."""

_MOST_CHANNELS = 8
"""More are slices or rows, in all likelihood."""


def to_channels(image: np.ndarray, in_channels: int, axes: SpatialAxes = "yx") -> np.ndarray:
    """Give an image the number of channels that a network takes.

    The same number stays as it is; one grey channel is repeated; three channels (RGB) become one
    by their mean. Anything else is an error: nothing is dropped or invented silently.

    Args:
        image: ([z,] y, x) or ([z,] y, x, c) image of any integer or float dtype.
        in_channels: Number of channels wanted.
        axes: Of the image, its channels aside.

    Returns:
        (in_channels, [z,] y, x) float32 image with the values of `image`, not normalised.

    Raises:
        ValueError: If the image has other axes, or its channels cannot become `in_channels`.

    Examples:
        >>> to_channels(np.full((2, 5), 7, np.uint8), 3).shape
        (3, 2, 5)
        >>> to_channels(np.array([[[0, 30, 90]]]), 1)
        array([[[40.]]], dtype=float32)
    """
    check_channels(image.shape, in_channels, axes)
    planes = image[None] if image.ndim == len(axes) else np.moveaxis(image, -1, 0)
    planes = planes.astype(np.float32)
    if len(planes) == in_channels:
        return planes
    if len(planes) == 1:
        return np.repeat(planes, in_channels, axis=0)
    return planes.mean(axis=0, keepdims=True)


def check_channels(shape: tuple[int, ...], in_channels: int, axes: SpatialAxes = "yx") -> None:
    """Refuse an image of which `to_channels` cannot make the channels that a network takes.

    Args:
        shape: ([z,] y, x) or ([z,] y, x, c) of the image.
        in_channels: Number of channels wanted.
        axes: Of the image, its channels aside.

    Raises:
        ValueError: If its axes or channels do not fit.
    """
    if len(shape) not in (len(axes), len(axes) + 1):
        letters = ", ".join(axes)
        raise ValueError(f"`image` must have axes ({letters}) or ({letters}, c), got {shape}.")
    channels = 1 if len(shape) == len(axes) else shape[-1]
    if channels not in (1, in_channels) and (channels, in_channels) != (3, 1):
        wanted = "one channel (or three, for RGB to grey)"
        if in_channels != 1:
            wanted = f"{in_channels} channels (or one)"
        if channels > _MOST_CHANNELS:
            step = (
                "The last axis must hold channels: take a stack slice by slice, and move channels "
                "that come first to the end, with numpy.moveaxis(image, 0, -1)."
            )
        else:
            step = (
                "Choose a channel, image[..., 0] for example, or leave out alpha: image[..., :3]."
            )
        raise ValueError(f"`image` must have {wanted}, got shape {shape}. {step}")


class Statistics:
    """What a normalisation subtracts, and what it divides by.

    Attributes:
        offset: A number, or (c, 1, ...) one for each channel.
        spread: The same.
    """

    def __init__(self, offset: Any = 0.0, spread: Any = 1.0):
        self.offset, self.spread = offset, spread

    @classmethod
    def of(cls, pieces: Iterable[np.ndarray], kind: str) -> "Statistics":
        """Compute them from the pieces of an image, so that it need not be in memory.

        Sums are taken relative to the first pixel: exact for a constant image, and no cancellation
        for an image with a large offset.

        Args:
            pieces: (c, [z,] y, x) each.
            kind: One of `NORMALIZATIONS`.

        Raises:
            ValueError: If a pixel is NaN or infinite.
        """
        apart = kind == "channel"
        origin: Any = None
        total: Any = 0.0
        squares: Any = 0.0
        low, high, count = np.inf, -np.inf, 0
        for piece in pieces:
            axes = tuple(range(1, piece.ndim)) if apart else None
            exact = piece.astype(np.float64)
            if origin is None:
                first = exact[(slice(None), *[slice(0, 1)] * (piece.ndim - 1))]
                origin = first if apart else first.flat[0]
                total = squares = np.zeros_like(origin)
            shifted = exact - origin
            total = total + shifted.sum(axis=axes, keepdims=apart)
            squares = squares + np.square(shifted).sum(axis=axes, keepdims=apart)
            low, high = min(low, shifted.min()), max(high, shifted.max())
            count += shifted[0].size if apart else shifted.size
        if not np.isfinite(total).all():
            raise ValueError(
                "Image contains NaN or infinity. Replace missing pixels before segmenting, with "
                "numpy.nan_to_num for example."
            )
        if kind == "range":
            return cls(origin + low, (high - low) / 255)
        mean = total / count
        return cls(origin + mean, np.maximum(squares / count - mean**2, 0.0) ** 0.5)

    def apply(self, channels: np.ndarray) -> np.ndarray:
        """Normalise (c, [z,] y, x) pixels: (x - offset) / (spread + 1e-7), float32."""
        shifted = channels.astype(np.float64) - self.offset
        return (shifted / (self.spread + 1e-7)).astype(np.float32)


def check_normalization(kind: str) -> None:
    """Refuse an unknown kind of normalisation."""
    if kind not in NORMALIZATIONS:
        raise ValueError(f"Unknown normalization {kind!r}. Known: {', '.join(NORMALIZATIONS)}.")


def normalize_channels(channels: np.ndarray, kind: str = "image") -> np.ndarray:
    """Normalise (c, [z,] y, x) pixels that are in memory; float32 of the same shape."""
    return Statistics.of([channels], kind).apply(channels)


def normalize(
    image: Any, in_channels: int | None = None, kind: str = "image", axes: SpatialAxes = "yx"
) -> np.ndarray:
    """Prepare an image as a network sees it.

    Args:
        image: ([z,] y, x) or ([z,] y, x, c) array of any integer, boolean or float type.
        in_channels: Number of channels wanted; None keeps those of the image.
        kind: One of `NORMALIZATIONS`.
        axes: Of the image, its channels aside.

    Returns:
        (c, [z,] y, x) float32. A constant image becomes zeros.

    Raises:
        ValueError: If the image is empty, contains NaN or infinity, or has the wrong shape.
        TypeError: If the pixels are not real numbers.

    Source:
        Archit & Pape 2024, https://arxiv.org/abs/2404.07705, standardise with
        (x - mean) / (std + 1e-7), as done here.
    """
    pixels = NormalizedImage(image, in_channels, kind, axes)
    return pixels.read(whole(pixels.shape))


class NormalizedImage:
    """An image that is normalised as a whole and read in pieces.

    Args:
        image: ([z,] y, x) or ([z,] y, x, c) array, or anything indexed like one; see `predict`.
        in_channels: Number of channels wanted; None keeps those of the image.
        normalization: One of `NORMALIZATIONS`, or None to leave the numbers as they are.
        axes: Of the image, its channels aside.

    Attributes:
        shape: ([z,] y, x) in pixels.

    Raises:
        ValueError: If the image is empty, contains NaN or infinity, or has the wrong shape.
        TypeError: If the pixels are not real numbers.
    """

    def __init__(
        self,
        image: Any,
        in_channels: int | None,
        normalization: str | None,
        axes: SpatialAxes = "yx",
    ):
        if not hasattr(image, "shape") or not hasattr(image, "dtype"):
            image = np.asarray(image)
        if len(image.shape) not in (len(axes), len(axes) + 1) or 0 in image.shape:
            letters = ", ".join(axes)
            step = (
                "Take a stack to `segment`, and name its `axes`."
                if axes == "yx"
                else "This model takes volumes."
            )
            raise ValueError(
                f"Image must have shape ({letters}) or ({letters}, c) and at least one pixel, got "
                f"{tuple(image.shape)}. {step}"
            )
        if np.dtype(image.dtype).kind not in "buif":
            raise TypeError(f"Image must hold real numbers, got dtype {image.dtype}.")
        if in_channels is None:
            in_channels = 1 if len(image.shape) == len(axes) else image.shape[-1]
        check_channels(tuple(image.shape), in_channels, axes)
        self._image, self._axes, self._in_channels = image, axes, in_channels
        self.shape: tuple[int, ...] = tuple(int(length) for length in image.shape[: len(axes)])
        self._origin = (0,) * len(axes)
        self._statistics = Statistics()
        if normalization is not None:
            blocks = boxes(self.shape, _READ_SIZE[axes])
            self._statistics = Statistics.of(map(self._channels, blocks), normalization)

    def _channels(self, box: Box) -> np.ndarray:
        return to_channels(np.asarray(self._image[box]), self._in_channels, self._axes)

    def read(self, box: Box) -> np.ndarray:
        """(c, [z,] y, x) float32, normalised; past its end, the image is reflected."""
        stored, places = [], []
        for part, length, origin in zip(box, self.shape, self._origin, strict=True):
            index = _reflect(np.arange(part.start, part.stop), length)
            first, last = int(index.min()), int(index.max())
            stored.append(slice(origin + first, origin + last + 1))
            places.append(index - first)
        pixels = self._statistics.apply(self._channels(tuple(stored)))
        if pixels.shape[1:] == tuple(map(len, places)):
            return pixels
        picked: Any = (slice(None), *np.ix_(*places))
        return pixels[picked]

    def part(self, region: Box) -> "NormalizedImage":
        """Take a region for the image, with the statistics of the whole."""
        for piece, length in zip(region, self.shape, strict=True):
            if None in (piece.start, piece.stop) or not 0 <= piece.start < piece.stop <= length:
                raise ValueError(
                    f"`region` must lie in the image of {self.shape} pixels, got {region}. Give "
                    "start and stop of each axis."
                )
        part = copy(self)
        part._origin = tuple(o + r.start for o, r in zip(self._origin, region, strict=True))
        part.shape = tuple(piece.stop - piece.start for piece in region)
        return part

    def magnified(self, factor: PerAxis[float]) -> "NormalizedImage":
        """Read everything and give it another size, of at least one pixel."""
        factors = per_axis("scale", factor, len(self.shape))
        size = [max(1, round(n * f)) for n, f in zip(self.shape, factors, strict=True)]
        planes = resize(self.read(whole(self.shape)), size)
        return NormalizedImage(np.moveaxis(planes, 0, -1), self._in_channels, None, self._axes)


def _reflect(index: np.ndarray, length: int) -> np.ndarray:
    """Map positions past the end of an axis back into it, to and fro if need be.

    Examples:
        >>> _reflect(np.arange(7), 3)
        array([0, 1, 2, 1, 0, 1, 2])
        >>> _reflect(np.arange(4), 1)
        array([0, 0, 0, 0])
    """
    period = max(2 * (length - 1), 1)
    index = index % period
    return np.minimum(index, period - index) if length > 1 else np.zeros_like(index)


def resize(planes: np.ndarray, size: Iterable[int]) -> np.ndarray:
    """Interpolate (c, [z,] y, x) float32 linearly; where it shrinks, over all pixels merged."""
    *depth, height, width = size
    batch = torch.from_numpy(planes)
    if not depth:
        batch = batch[None]
    batch = functional.interpolate(batch, (height, width), mode="bilinear", antialias=True)
    if not depth:
        return batch[0].numpy()
    along_z = batch.movedim(1, 2)  # torch interpolates with antialiasing along two axes only
    along_z = functional.interpolate(along_z, (depth[0], width), mode="bilinear", antialias=True)
    return along_z.movedim(2, 1).contiguous().numpy()
