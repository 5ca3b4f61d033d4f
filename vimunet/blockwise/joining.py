"""Blocks become one image of labels: what a border cuts becomes one again, and so do sections.

A part is what is kept of a block that is done: `labels` inside it, numbered without gaps; `sizes`
of its objects in voxels; `first_A` and `after_A`, its first layer along each axis A and the layer
after it, which the next block sees as its first one. Nothing here predicts.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from vimunet.axes import Box
from vimunet.segmentation.stitching import joined_numbers, partners

BORDER_THRESHOLD = 0.5
"""Least IoU of an object in the two blocks that it lies in, on the first layer of the later one."""

Read = Callable[[int, str], np.ndarray]
"""Gives one array of a part, by the number of the block."""


class Block(NamedTuple):
    """A part of one section, or of one volume.

    Attributes:
        section: Its place along the axes that are not those of the network.
        grid: Its place among the blocks of the section, per axis.
        inner: The voxels whose labels it decides.
        window: These and the margin, as far as the section goes.
    """

    section: tuple[int, ...]
    grid: tuple[int, ...]
    inner: Box
    window: Box


def part_of(labels: np.ndarray, block: Block, axes: str) -> dict[str, np.ndarray]:
    """Pick what is kept of the labels of a block.

    Args:
        labels: ([z,] y, x) labels of its window.
        block: The block.
        axes: Letters of the axes.
    """
    inner = tuple(
        slice(kept.start - seen.start, kept.stop - seen.start)
        for kept, seen in zip(block.inner, block.window, strict=True)
    )
    ids = np.unique(labels[inner])
    table = np.zeros(labels.max() + 1, np.uint32)
    table[ids] = np.arange(len(ids)) + (ids[0] > 0)
    labels = table[labels]
    kept = labels[inner]
    part = {"labels": kept, "sizes": np.bincount(kept.ravel())}
    for axis, letter in enumerate(axes):
        stop = inner[axis].stop
        after = tuple(slice(stop, stop + 1) if i == axis else p for i, p in enumerate(inner))
        part[f"first_{letter}"] = kept.take([0], axis)
        part[f"after_{letter}"] = labels[after]
    return part


def final_numbers(
    blocks: Sequence[Block],
    axes: str,
    read: Read,
    smallest: float,
    stitch_threshold: float | None,
) -> list[np.ndarray]:
    """Give, for each block, the final number of each of its labels.

    Args:
        blocks: All of them, section by section.
        axes: Letters of the axes of a block.
        read: Reads a part.
        smallest: Objects with fewer voxels are dropped, now that it is known what is whole.
        stitch_threshold: Least IoU of objects that go on in the next section; None: none does.
    """
    sizes = [read(number, "sizes") for number in range(len(blocks))]
    pairs = _border_pairs(blocks, axes, read)
    numbers = joined_numbers([len(size) - 1 for size in sizes], pairs)
    count = max(int(table.max()) for table in numbers)
    total = np.zeros(count + 1)
    for table, size in zip(numbers, sizes, strict=True):
        total += np.bincount(table, weights=size, minlength=count + 1)
    large = total >= smallest
    large[0] = False
    renumbered = np.cumsum(large) * large
    numbers = [renumbered[table] for table in numbers]
    if stitch_threshold is None:
        return numbers
    section_pairs = _section_pairs(blocks, numbers, read, stitch_threshold)
    (final,) = joined_numbers([int(large.sum())], ((0, 0, pair) for pair in section_pairs))
    return [final[table] for table in numbers]


def _border_pairs(
    blocks: Sequence[Block], axes: str, read: Read
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Pair the labels of neighbouring blocks on the first layer of the later one."""
    places = {(block.section, block.grid): i for i, block in enumerate(blocks)}
    for (section, grid), number in places.items():
        for axis, letter in enumerate(axes):
            after = tuple(place + (i == axis) for i, place in enumerate(grid))
            other = places.get((section, after))
            if other is not None:
                seen, layer = read(number, f"after_{letter}"), read(other, f"first_{letter}")
                yield number, other, partners([(seen, layer)], BORDER_THRESHOLD)


def _section_pairs(
    blocks: Sequence[Block], numbers: list[np.ndarray], read: Read, threshold: float
) -> Iterator[np.ndarray]:
    """Pair the objects of neighbouring sections, over all blocks together."""
    numbered = groupby(range(len(blocks)), lambda number: blocks[number].section)
    sections = {section: list(group) for section, group in numbered}
    for (*others, place), here in sections.items():
        below = sections.get((*others, place + 1), [])
        faces = (
            (numbers[one][read(one, "labels")], numbers[other][read(other, "labels")])
            for one, other in zip(here, below, strict=False)
        )
        yield partners(faces, threshold)


class Joined:
    """The labels of all blocks with their final numbers, an array that is read block by block.

    Args:
        shape: Of all of it.
        block_size: Size of a block along the last axes.
        blocks: All of them.
        numbers: Final numbers, see `final_numbers`.
        read: Reads a part.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        block_size: tuple[int, ...],
        blocks: Sequence[Block],
        numbers: list[np.ndarray],
        read: Read,
    ):
        self.shape, self.dtype = shape, np.dtype(np.uint32)
        self._places = {(*block.section, *block.grid): i for i, block in enumerate(blocks)}
        self._block_size, self._numbers, self._read = block_size, numbers, read

    def __getitem__(self, box: Box) -> np.ndarray:
        """Read one block."""
        starts = [part.start for part in box]
        section = starts[: len(box) - len(self._block_size)]
        grid = [
            start // side
            for start, side in zip(starts[len(section) :], self._block_size, strict=True)
        ]
        number = self._places[*section, *grid]
        labels = self._numbers[number][self._read(number, "labels")]
        return labels.reshape([1] * len(section) + list(labels.shape))
