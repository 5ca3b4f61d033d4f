"""Spatial axes: how many there are, numbers for each of them, pieces, flips and turns.

Images have the axes "yx", volumes "zyx"; what has one number per axis has them in this order. Where
a function takes one number or one per axis, the one number holds for each axis. Lengths are in
pixels along x: `relative_spacing` says how many of them a step along another axis is. Nothing here
knows files, networks or what an array holds.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

SpatialAxes = Literal["yx", "zyx"]

SPATIAL_AXES: tuple[SpatialAxes, ...] = ("yx", "zyx")
"""Of an image and of a volume."""

Box = tuple[slice, ...]
"""A part of an array: start and stop along each axis."""

Number = TypeVar("Number", int, float)
PerAxis: TypeAlias = Number | Sequence[Number]
"""One number for each axis, or one for all of them."""


def spatial_axes(ndim: int) -> SpatialAxes:
    """Name the axes of an array without channels.

    Raises:
        ValueError: If it has neither two nor three.
    """
    for axes in SPATIAL_AXES:
        if len(axes) == ndim:
            return axes
    raise ValueError(f"Arrays must have the axes (y, x) or (z, y, x), got {ndim} axes.")


def per_axis(name: str, value: PerAxis[Number], ndim: int) -> tuple[Number, ...]:
    """Give one number for each axis.

    Args:
        name: Of the argument, for the message.
        value: One number, or one for each axis.
        ndim: How many axes there are.

    Raises:
        ValueError: If there is another number of numbers.

    Examples:
        >>> per_axis("crop_size", 256, 2), per_axis("crop_size", (32, 192, 192), 3)
        ((256, 256), (32, 192, 192))
    """
    if np.ndim(value) == 0:
        return (value,) * ndim  # type: ignore[return-value]
    numbers = tuple(value)  # type: ignore[arg-type]
    if len(numbers) != ndim:
        raise ValueError(
            f"`{name}` must be one number or one for each axis of {spatial_axes(ndim)}, got "
            f"{numbers}."
        )
    return numbers


def shown(numbers: Sequence[float]) -> str:
    """Write numbers per axis for people: one if all are equal.

    Examples:
        >>> shown((16, 16)), shown((4, 16, 16))
        ('16', '(4, 16, 16)')
    """
    return str(numbers[0]) if len(set(numbers)) == 1 else str(tuple(numbers))


def round_up(length: int, multiple: int) -> int:
    """Return the next multiple that is not smaller."""
    return -(-length // multiple) * multiple


def relative_spacing(spacing: PerAxis[float] | None, ndim: int) -> tuple[float, ...]:
    """Give the size of a voxel along each axis in pixels along x.

    Args:
        spacing: Size along each axis, in any unit of length; None if it is not known, and then
            voxels are taken for cubes.
        ndim: How many axes there are.

    Raises:
        ValueError: If a size is not positive, or there is another number of sizes.

    Examples:
        >>> relative_spacing((0.04, 0.01, 0.01), 3), relative_spacing(None, 2)
        ((4.0, 1.0, 1.0), (1.0, 1.0))
    """
    sizes = per_axis("spacing", 1.0 if spacing is None else spacing, ndim)
    if not all(0 < size < math.inf for size in sizes):
        raise ValueError(f"`spacing` must be positive, got {spacing}.")
    return tuple(round(float(size / sizes[-1]), 6) for size in sizes)


def boxes(shape: Sequence[int], size: Sequence[int]) -> Iterator[Box]:
    """Cut an array into boxes of at most `size`, one after the other.

    Examples:
        >>> [box[0] for box in boxes((5,), (2,))]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    along = [
        [slice(start, min(start + side, length)) for start in range(0, length, side)]
        for length, side in zip(shape, size, strict=True)
    ]
    return itertools.product(*along)


def whole(shape: Sequence[int]) -> Box:
    """Return the box of a whole array."""
    return tuple(slice(0, length) for length in shape)


def inside(inner: Box, outer: Box) -> Box:
    """Say where a box lies in a larger one that contains it.

    Examples:
        >>> inside((slice(7, 9),), (slice(5, 20),))
        (slice(2, 4, None),)
    """
    return tuple(
        slice(small.start - large.start, small.stop - large.start)
        for small, large in zip(inner, outer, strict=True)
    )


@dataclass(frozen=True)
class Turn:
    """A flip, a quarter turn, or both: a way to lay an image on its own grid.

    Attributes:
        order: Axis i of the result is axis `order[i]` of what is turned ...
        flipped: ... and runs backwards if `flipped[i]`.
    """

    order: tuple[int, ...]
    flipped: tuple[bool, ...]

    def __call__(self, array: Any) -> Any:
        """Turn the last axes of a NumPy array or a torch tensor; those before stay."""
        leading = array.ndim - len(self.order)
        order = [*range(leading), *(leading + axis for axis in self.order)]
        flips = [leading + axis for axis, flip in enumerate(self.flipped) if flip]
        if order != sorted(order):
            array = (
                array.transpose(order) if isinstance(array, np.ndarray) else array.permute(order)
            )
        if not flips:
            return array  # as it came, not a copy
        return np.flip(array, tuple(flips)) if isinstance(array, np.ndarray) else array.flip(flips)

    @property
    def inverse(self) -> "Turn":
        """What undoes it."""
        order = tuple(int(axis) for axis in np.argsort(self.order))
        return Turn(order, tuple(self.flipped[axis] for axis in order))


def turns(axes: SpatialAxes) -> list[Turn]:
    """List the ways to lay an image on its grid that keep z apart from y and x.

    Sections of a volume are often thicker than pixels are wide: z is mirrored, never swapped.

    Args:
        axes: Of the image.

    Returns:
        8 for "yx", 16 for "zyx"; the first changes nothing, and each pair (first and second,
        third and fourth, ...) balances itself.
    """
    quarters = [
        Turn(order, flipped)
        for order, flipped in (
            ((0, 1), (False, False)),
            ((0, 1), (True, True)),
            ((1, 0), (True, False)),
            ((1, 0), (False, True)),
            ((0, 1), (False, True)),
            ((0, 1), (True, False)),
            ((1, 0), (False, False)),
            ((1, 0), (True, True)),
        )
    ]
    if axes == "yx":
        return quarters
    found = []
    for first, second in zip(quarters[::2], quarters[1::2], strict=True):
        for upside_down, turn in ((False, first), (True, second), (False, second), (True, first)):
            order = (0, *(axis + 1 for axis in turn.order))
            found.append(Turn(order, (upside_down, *turn.flipped)))
    return found
