"""Large images in overlapping windows: where each lies, and what is kept of it."""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from vimunet.axes import Box, PerAxis, per_axis, round_up, shown

HALO = {2: 64, 3: 16}
"""Context of a tile on each side in pixels, unless told otherwise, by the number of axes."""

WHOLE_VOXELS = {2: 1024**2, 3: 128**3}
"""Images with at most so many pixels are predicted in one piece unless `tile_size` is given."""

WINDOW_SIZE = {2: 1024, 3: 128}
"""Larger images are cut into tiles that have this side with their halo, in pixels."""

_SMALLEST_DEFAULT_TILE = {2: 256, 3: 32}


class Tile(NamedTuple):
    """One piece of an image: what the network sees, and what is kept of it, per axis.

    `window` may reach past the end of the image; the part beyond is reflected.
    """

    window: Box
    inner: Box


def tile_slices(
    shape: Sequence[int],
    tile_size: PerAxis[int],
    halo: PerAxis[int] = 64,
    stride: PerAxis[int] = 1,
) -> list[Tile]:
    """Cut an image into tiles, each with a halo of context.

    All windows have one size, at most `tile_size` + 2 * `halo` per axis, and start at a multiple
    of `stride`. Windows stay inside the image (padded to a multiple of `stride`): where the
    image ends, the network meets its border just as it does in an image predicted whole.
    Everywhere else a kept pixel has at least `halo` pixels of context on each side. An axis
    that fits into one window is not cut at all.

    Args:
        shape: ([z,] y, x) of the image in pixels.
        tile_size: Size of the inner region in pixels, without the halo. Rounded down to a
            multiple of `stride`.
        halo: Context on each side in pixels. Rounded up to a multiple of `stride`.
        stride: The network accepts sizes that are multiples of it.

    Returns:
        The tiles, row by row. Their inner regions cover each pixel exactly once.

    Raises:
        ValueError: If the shape or the tile size is too small, or the halo is negative.

    Examples:
        >>> for window, inner in tile_slices((100, 20), tile_size=32, halo=8, stride=4):
        ...     print(window[0], inner[0])
        slice(0, 44, None) slice(0, 36, None)
        slice(28, 72, None) slice(36, 64, None)
        slice(56, 100, None) slice(64, 100, None)
    """
    ndim = len(shape)
    sizes, halos, strides = (
        per_axis(name, value, ndim)
        for name, value in (("tile_size", tile_size), ("halo", halo), ("stride", stride))
    )
    if min(shape) < 1:
        raise ValueError(f"Image must have at least one pixel, got shape {tuple(shape)}.")
    for size, step in zip(sizes, strides, strict=True):
        if size < step:
            raise ValueError(
                f"`tile_size` must be at least {step}, the stride of the network, got {size}."
            )
    if min(halos) < 0:
        raise ValueError(f"`halo` must not be negative, got {shown(halos)}.")
    axes = [_axis_tiles(*numbers) for numbers in zip(shape, sizes, halos, strides, strict=True)]
    return [
        Tile(tuple(window for window, _ in pieces), tuple(inner for _, inner in pieces))
        for pieces in product(*axes)
    ]


def _axis_tiles(length: int, tile_size: int, halo: int, stride: int) -> list[tuple[slice, slice]]:
    """Cut one axis: window and inner slice of each tile."""
    tile_size = tile_size // stride * stride
    halo = round_up(halo, stride)
    padded = round_up(length, stride)
    count = max(1, -(-(padded - 2 * halo) // tile_size))
    window = round_up(-(-(padded + (count - 1) * 2 * halo) // count), stride)
    starts = [min(i * (window - 2 * halo), padded - window) for i in range(count)]
    cuts = [0, *(start + halo for start in starts[1:]), length]
    return [
        (slice(start, start + window), slice(cuts[i], cuts[i + 1]))
        for i, start in enumerate(starts)
    ]


def choose_tile_size(
    shape: Sequence[int],
    tile_size: PerAxis[int] | None,
    halo: Sequence[int],
    stride: Sequence[int],
    largest: Sequence[int] | None,
) -> tuple[int, ...]:
    """Choose the size of a tile, so that no window is larger than the network takes.

    Args:
        shape: ([z,] y, x) of the image.
        tile_size: What was asked for; None leaves the choice: small images stay whole.
        halo: Context of a tile.
        stride: Of the network.
        largest: Size that the network takes at most; None for any.

    Raises:
        ValueError: If a window would be too large, or the halo leaves no room for a tile.
    """
    ndim = len(shape)
    padded = [round_up(length, step) for length, step in zip(shape, stride, strict=True)]
    context = [2 * round_up(side, step) for side, step in zip(halo, stride, strict=True)]
    if tile_size is None:
        whole = math.prod(padded) <= WHOLE_VOXELS[ndim]
        if whole and (
            largest is None or all(n <= most for n, most in zip(padded, largest, strict=True))
        ):
            return tuple(padded)
        if largest is None:
            window, least = WINDOW_SIZE[ndim], _SMALLEST_DEFAULT_TILE[ndim]
            return tuple(
                max(window - around, least, step)
                for around, step in zip(context, stride, strict=True)
            )
        sizes = tuple(
            min(WINDOW_SIZE[ndim], most) - around
            for most, around in zip(largest, context, strict=True)
        )
        if any(size < step for size, step in zip(sizes, stride, strict=True)):
            raise ValueError(
                f"`halo` must leave room for a tile: this network takes at most {shown(largest)} "
                f"pixels, got a halo of {shown(halo)}."
            )
        return sizes
    sizes = per_axis("tile_size", tile_size, ndim)
    if largest is not None:
        for size, step, around, length, most in zip(
            sizes, stride, context, padded, largest, strict=True
        ):
            if min(size // step * step + around, length) > most:
                raise ValueError(
                    f"`tile_size` + 2 * `halo` must be at most {shown(largest)} for this "
                    f"network, got {shown(sizes)} + 2 * {shown(halo)}. Leave `tile_size` out to "
                    "have it chosen."
                )
    return sizes
