"""From an OME-Zarr image to OME-Zarr labels that need not fit into memory, by one process or many.

Each section (y, x) is cut into blocks. A block is predicted and its labels are read with a margin
around it, without looking at any other; `RESULT.parts` beside the result remembers the labels of
each block and which are done, so that work can be interrupted, and shared by the jobs of a
cluster. At last the blocks are stitched: an object that a border cuts becomes one again, and, on
demand, so do the cross-sections of an object in neighbouring sections.
"""

import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import numpy as np
import zarr

from vimunet.files import replacing
from vimunet.prediction import Box, Pixels, predict
from vimunet.stitching import joined_numbers, partners
from vimunet.volumes import read_ome_zarr, write_ome_zarr_labels

if TYPE_CHECKING:
    from vimunet.checkpoint import TrainedModel

_BORDER_THRESHOLD = 0.5
"""Least IoU of an object in the two blocks that it lies in, on the first line of the later one."""


@dataclass(frozen=True)
class Block:
    """A part of one section.

    Attributes:
        section: Its place along t and z, as far as the image has these axes.
        grid: Its row and column among the blocks of the section.
        inner: The rows and columns whose labels it decides.
        window: These and the margin, as far as the section goes.
    """

    section: tuple[int, ...]
    grid: tuple[int, int]
    inner: Box
    window: Box

    @property
    def place(self) -> tuple[int | slice, ...]:
        """Where its labels are in the whole."""
        return (*self.section, *self.inner)


class _Section:
    """One (y, x) or (y, x, c) section of an OME-Zarr array, read where it is indexed."""

    def __init__(self, array: zarr.Array, axes: tuple[str, ...], place: dict[str, int]):
        self._array, self._axes, self._place = array, axes, place
        kept = [axis for axis in "yxc" if axis in axes and axis not in place]
        self.shape = tuple(array.shape[axes.index(axis)] for axis in kept)
        self.dtype = array.dtype

    def __getitem__(self, box: Box) -> np.ndarray:
        ranges = dict(zip("yx", box, strict=True))
        pixels = np.asarray(
            self._array[tuple(self._place.get(a, ranges.get(a, slice(None))) for a in self._axes)]
        )
        return np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels


class BlockwiseSegmentation:
    """The segmentation of one OME-Zarr image.

    Args:
        image: OME-Zarr file with the axes y, x and any of t, c, z.
        model: From `vimunet.load_model`.
        output: OME-Zarr file to write; `OUTPUT.parts` keeps what is done until then.
        level: Level of the pyramid to segment, 0 is the finest. The labels have its size.
        channel: Which channel to segment; None: all of them, if the network takes as many, or the
            only one.
        block_size: Side of a block in pixels.
        margin: Context of a block in pixels, larger than the objects are.
        options: Keywords of `vimunet.predict`.

    Attributes:
        blocks: All blocks, section by section.

    Raises:
        FileNotFoundError: If there is no such image.
        ValueError: If the image has no such level or channel or other axes, if the model finds
            classes, or if the parts that are there were made of another image, by another model
            or with other settings.
    """

    def __init__(
        self,
        image: str | Path,
        model: "TrainedModel",
        output: str | Path,
        *,
        level: int = 0,
        channel: int | None = None,
        block_size: int = 2048,
        margin: int = 128,
        **options: Any,
    ):
        if model.representation.labels_are_classes:
            raise ValueError("`model` must find objects, got one of classes.")
        self.output = Path(output)
        self._model, self._options = model, options
        self._volume = read_ome_zarr(image)
        if not 0 <= level < len(self._volume.levels):
            raise ValueError(
                f"`level` must be from 0 to {len(self._volume.levels) - 1}, got {level}."
            )
        self._array = self._volume.levels[level]
        axes = self._volume.axes
        self.axes = "".join(axis for axis in axes if axis != "c")
        if self.axes not in ("yx", "zyx", "tyx", "tzyx"):
            raise ValueError(f"{image} must have the axes y, x and any of t, c, z, got {axes}.")
        network: Any = model.network
        self._channel = _chosen_channel(
            dict(zip(axes, self._array.shape, strict=True)), channel, network.in_channels
        )
        self.shape = tuple(self._array.shape[axes.index(axis)] for axis in self.axes)
        self.blocks = list(_blocks(self.shape, block_size, margin))
        self._parts = self.output.with_name(f"{self.output.name}.parts")
        weights = 0
        for tensor in model.network.state_dict().values():
            weights = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), weights)
        self._settings = {
            "image": str(Path(image).resolve()),
            "shape": list(self.shape),
            "level": level,
            "channel": channel,
            "block_size": block_size,
            "margin": margin,
            "scale": options.get("scale", 1.0),
            "weights": weights,
            "normalization": model.normalization,
            "representation": [type(model.representation).__name__, asdict(model.representation)],
        }
        self._labels = self._open_parts(math.gcd(block_size, 512))

    def _open_parts(self, chunk: int) -> zarr.Array:
        """Open the labels of the blocks, or begin them; of several processes one begins."""
        settings = json.loads(json.dumps(self._settings))
        if not self._parts.exists():
            self._parts.parent.mkdir(parents=True, exist_ok=True)
            new = self._parts.with_name(f".{self._parts.name}.{uuid4().hex}")
            zarr.open_array(
                str(new / "labels"),
                mode="w",
                shape=self.shape,
                chunks=(*[1] * (len(self.shape) - 2), chunk, chunk),
                dtype=np.uint32,
            )
            (new / "settings.json").write_text(json.dumps(settings, indent=2))
            try:
                new.rename(self._parts)
            except OSError:
                shutil.rmtree(new)
                if not self._parts.exists():
                    raise
        file = self._parts / "settings.json"
        there = json.loads(file.read_text())
        if other := [name for name in settings if settings[name] != there.get(name)]:
            raise ValueError(
                f"{self._parts} must have been made with the same settings, but differs in "
                f"{', '.join(other)}. Use those of {file} again, or delete the folder."
            )
        return cast(zarr.Array, zarr.open_array(str(self._parts / "labels"), mode="r+"))

    def _done(self, number: int) -> Path:
        return self._parts / "done" / f"{number}.npz"

    def missing(self) -> list[int]:
        """Tell which blocks are not done, as indices of `blocks`."""
        return [i for i in range(len(self.blocks)) if not self._done(i).exists()]

    def run(
        self, numbers: list[int] | None = None, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Segment blocks.

        Args:
            numbers: Which ones, as indices of `blocks`; by default all that are missing.
            progress: Called as progress(done, total) after each.
        """
        numbers = self.missing() if numbers is None else numbers
        section: tuple[int, ...] | None = None
        for done, number in enumerate(numbers):
            block = self.blocks[number]
            if block.section != section:
                section, pixels = block.section, self._pixels(block.section)
            maps = predict(pixels, self._model, region=block.window, **self._options)
            labels = self._model.representation.decode(maps)
            inner = tuple(
                slice(kept.start - seen.start, kept.stop - seen.start)
                for kept, seen in zip(block.inner, block.window, strict=True)
            )
            numbered = np.zeros(labels.max() + 1, np.uint32)
            ids = np.unique(labels[inner])
            numbered[ids] = np.arange(len(ids)) + (ids[0] > 0)
            labels = numbered[labels]
            self._labels[block.place] = labels[inner]
            rows, columns = inner
            with replacing(self._done(number)) as temporary, temporary.open("wb") as file:
                np.savez_compressed(
                    file,
                    count=labels.max(),
                    y=labels[rows.stop : rows.stop + 1, columns],
                    x=labels[rows, columns.stop : columns.stop + 1],
                )
            if progress is not None:
                progress(done + 1, len(numbers))

    def _pixels(self, section: tuple[int, ...]) -> Pixels:
        place = dict(zip(self.axes, section, strict=False)) | self._channel
        network: Any = self._model.network
        return Pixels(
            _Section(self._array, self._volume.axes, place),
            network.in_channels,
            self._model.normalization,
        )

    def finish(self, stitch_threshold: float | None = None, overwrite: bool = False) -> int:
        """Stitch the blocks, write the labels and delete the parts.

        Args:
            stitch_threshold: Least IoU at which objects of neighbouring sections along z become
                one, in (0, 1]; None: objects of different sections are different.
            overwrite: Replace labels that are there.

        Returns:
            The number of objects.

        Raises:
            RuntimeError: If blocks are missing.
            FileExistsError: If there is something at `output` already, and it may not be replaced.
        """
        if missing := self.missing():
            raise RuntimeError(
                f"All {len(self.blocks)} blocks must be done, {len(missing)} are missing. Run them."
            )
        counts = [int(self._remembered(i, "count")) for i in range(len(self.blocks))]
        numbers = joined_numbers(counts, self._pairs(stitch_threshold))
        volume, size = self._volume, dict(zip(self._volume.axes, self._array.shape, strict=True))
        finest = dict(zip(volume.axes, volume.levels[0].shape, strict=True))
        shrunk = {axis: finest[axis] / size[axis] for axis in self.axes}
        kept = [volume.axes.index(axis) for axis in self.axes]
        write_ome_zarr_labels(
            self.output,
            _Joined(self._labels, self.blocks, numbers),
            scale=[volume.scale[i] * shrunk[volume.axes[i]] for i in kept],
            translate=[volume.translate[i] for i in kept],
            units=[volume.units[i] for i in kept],
            axes=self.axes,
            overwrite=overwrite,
        )
        shutil.rmtree(self._parts)
        return max((int(table.max()) for table in numbers), default=0)

    def _pairs(self, threshold: float | None) -> Iterator[tuple[int, int, np.ndarray]]:
        """Compare neighbouring blocks: along z all of them, else the first line of the later one.

        The earlier block saw that line in its margin.
        """
        numbers = {(*block.section, *block.grid): i for i, block in enumerate(self.blocks)}
        for place, number in numbers.items():
            for axis, letter in enumerate(self.axes):
                other = numbers.get(tuple(at + (i == axis) for i, at in enumerate(place)))
                if other is None or letter == "t":
                    continue
                labels = np.asarray(self._labels[self.blocks[other].place])
                if letter != "z":
                    line = labels[:1] if letter == "y" else labels[:, :1]
                    seen = self._remembered(number, letter)
                    yield number, other, partners(seen, line, _BORDER_THRESHOLD)
                elif threshold is not None:
                    seen = np.asarray(self._labels[self.blocks[number].place])
                    yield number, other, partners(seen, labels, threshold)

    def _remembered(self, number: int, name: str) -> np.ndarray:
        """Read what is known of a block: `count` of its objects; the lines after it, `y` or `x`."""
        with np.load(self._done(number)) as file:
            return cast(np.ndarray, file[name])


class _Joined:
    """The labels of all blocks with their final numbers, read where they are indexed."""

    def __init__(self, labels: zarr.Array, blocks: list[Block], numbers: list[np.ndarray]):
        self._labels, self._blocks, self._numbers = labels, blocks, numbers
        self.shape, self.dtype = labels.shape, np.dtype(np.uint32)

    @cached_property
    def _of_section(self) -> dict[tuple[int, ...], list[int]]:
        sections: dict[tuple[int, ...], list[int]] = {}
        for number, block in enumerate(self._blocks):
            sections.setdefault(block.section, []).append(number)
        return sections

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        found = np.asarray(self._labels[box])
        *before, rows, columns = box
        for index in np.ndindex(found.shape[:-2]):
            section = tuple(part.start + i for part, i in zip(before, index, strict=True))
            for number in self._of_section[section]:
                inner = self._blocks[number].inner
                place = tuple(
                    slice(max(kept.start - asked.start, 0), max(kept.stop - asked.start, 0))
                    for kept, asked in zip(inner, (rows, columns), strict=True)
                )
                part = found[(*index, *place)]
                part[...] = self._numbers[number][part]
        return found


def _chosen_channel(sizes: dict[str, int], channel: int | None, in_channels: int) -> dict[str, int]:
    """Tell which place along the axis c is segmented; nothing if it is all of them."""
    count = sizes.get("c", 1)
    if channel is not None and not 0 <= channel < count:
        raise ValueError(f"`channel` must be from 0 to {count - 1}, got {channel}.")
    if channel is None and count not in (1, in_channels):
        raise ValueError(
            f"`channel` must be chosen, from 0 to {count - 1}: the model takes {in_channels} "
            f"channels, the image has {count}."
        )
    if "c" not in sizes or (channel is None and count > 1):
        return {}
    return {"c": channel or 0}


def _blocks(shape: Sequence[int], block_size: int, margin: int) -> Iterator[Block]:
    """Cut (..., y, x) into blocks, section by section."""
    if min(block_size, margin) < 1:
        raise ValueError(
            f"`block_size` and `margin` must be at least 1, got {block_size} and {margin}."
        )
    axes = [
        [
            (
                slice(start, min(start + block_size, length)),
                slice(max(start - margin, 0), min(start + block_size + margin, length)),
            )
            for start in range(0, length, block_size)
        ]
        for length in shape[-2:]
    ]
    for section in np.ndindex(*shape[:-2]):
        for (row, (y, window_y)), (column, (x, window_x)) in product(*map(enumerate, axes)):
            yield Block(section, (row, column), (y, x), (window_y, window_x))
