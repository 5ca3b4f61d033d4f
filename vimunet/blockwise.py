"""From an OME-Zarr image to OME-Zarr labels that need not fit into memory, by one process or many.

Each section (y, x) is cut into blocks. A block is predicted and its labels are read with a margin
around it, without looking at any other; the folder `RESULT.parts` beside the result keeps one
file for each block that is done, so that work can be interrupted, and shared by the jobs of a
cluster. At last the blocks are stitched: an object that a border cuts becomes one again, and, on
demand, so do the cross-sections of an object in neighbouring sections.
"""

import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import numpy as np
import torch
import zarr
from zarr.storage import LocalStore

from vimunet.prediction import (
    Box,
    Pixels,
    check_scale,
    choose_precision,
    device_for,
    predict,
)
from vimunet.stitching import joined_numbers, partners
from vimunet.volumes import read_ome_zarr, write_ome_zarr_labels

if TYPE_CHECKING:
    from vimunet.checkpoint import TrainedModel

_BORDER_THRESHOLD = 0.5
"""Least IoU of an object in the two blocks that it lies in, on the first line of the later one."""

_MOST_PIXELS = 8192
"""Largest side of a block with its margin, in pixels of the image: it takes about 3 GB."""

_SETTINGS = "settings.json"

_THAT_MATTER = ("scale", "tile_size", "halo", "symmetries")
"""Keywords of `predict` on which the labels depend; so does `precision`, as the device has it."""


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


class _Section:
    """One (y, x) or (y, x, c) section of an OME-Zarr array, read where it is indexed."""

    def __init__(self, array: zarr.Array, axes: tuple[str, ...], place: dict[str, int]):
        self._array, self._axes, self._place = array, axes, place
        sizes = dict(zip(axes, array.shape, strict=True))
        self._kept = [axis for axis in axes if axis not in place]
        self.shape = tuple(sizes[axis] for axis in "yxc" if axis in self._kept)
        self.dtype = array.dtype

    def __getitem__(self, box: Box) -> np.ndarray:
        ranges = self._place | dict(zip("yx", box, strict=True))
        pixels = np.asarray(self._array[tuple(ranges.get(a, slice(None)) for a in self._axes)])
        return pixels.transpose([self._kept.index(axis) for axis in "yxc" if axis in self._kept])


class BlockwiseSegmentation:
    """The segmentation of one OME-Zarr image.

    Each section is standardised as a whole, as `predict` does it with an image. Sections are read
    one by one: images whose chunks reach over many of them are slow to read.

    Args:
        image: OME-Zarr file with the axes y, x and any of t, c, z.
        model: From `vimunet.load_model`.
        output: OME-Zarr file to write; `OUTPUT.parts` keeps what is done until then.
        level: Level of the pyramid to segment, 0 is the finest. The labels have its size.
        channel: Which channel to segment; None: all of them, if the network takes as many, or the
            only one.
        stitch_threshold: Least IoU at which objects of neighbouring sections along z become one,
            in (0, 1]; None: objects of different sections are different.
        overwrite: Replace labels that are there.
        block_size: Side of a block, in pixels as the network sees them (see `scale` of `predict`).
            Less if a block would have more than 8192 pixels of the image with its margin, but
            then at least the margin.
        margin: Context of a block, in the same pixels. Larger than the objects are: where two
            blocks see an object in different ways, it stays cut.
        options: Keywords of `vimunet.predict`.

    Attributes:
        blocks: All blocks, section by section.

    Raises:
        FileNotFoundError: If there is no such image.
        FileExistsError: If there is something at `output` already, and it may not be replaced.
        ValueError: If the image has no such level or channel or other axes, if it contains the
            output or the other way round, if the model finds classes, if there is no z to stitch
            along, or if the parts that are there were made of another image, by another model or
            with other settings.
    """

    def __init__(
        self,
        image: str | Path,
        model: "TrainedModel",
        output: str | Path,
        *,
        level: int = 0,
        channel: int | None = None,
        stitch_threshold: float | None = None,
        overwrite: bool = False,
        block_size: int = 2048,
        margin: int = 128,
        **options: Any,
    ):
        if model.representation.labels_are_classes:
            raise ValueError("`model` must find objects, got one of classes.")
        self._model, self._options = model, options
        self._volume = read_ome_zarr(image, level)
        self._array = self._volume.levels[0]
        axes = self._volume.axes
        self.axes = "".join(axis for axis in axes if axis != "c")
        if self.axes not in ("yx", "zyx", "tyx", "tzyx"):
            raise ValueError(f"{image} must have the axes y, x and any of t, c, z, got {axes}.")
        if stitch_threshold is not None and "z" not in axes:
            raise ValueError(f"`stitch_threshold` is for images with an axis z, got {axes}.")
        self._stitch_threshold, self._overwrite = stitch_threshold, overwrite
        network: Any = model.network
        sizes = dict(zip(axes, self._array.shape, strict=True))
        self._channel = _chosen_channel(sizes, channel, network.in_channels)
        self._shape = tuple(sizes[axis] for axis in self.axes)
        scale = options.get("scale", 1.0)
        check_scale(scale)
        margin = max(1, round(margin / scale))
        largest = max(margin, _MOST_PIXELS - 2 * margin)
        self._block_size = min(max(1, round(block_size / scale)), largest)
        self.blocks = list(_blocks(self._shape, self._block_size, margin))

        self._output, source = Path(output), Path(image).resolve()
        target = self._output.resolve()
        if target == source or source in target.parents or target in source.parents:
            raise ValueError(f"`output` must lie outside of the image {image}, got {output}.")
        if self._output.exists() and not overwrite:
            raise FileExistsError(f"{output} exists already. Choose another name, or overwrite it.")
        self._parts = self._output.with_name(f"{self._output.name}.parts")
        self._joining = self._output.with_name(f"{self._output.name}.joining")
        if self._joining.exists():
            raise ValueError(
                f"{self._joining} is there: either the blocks are being joined now, or that was "
                f"interrupted. In the latter case rename it to {self._parts.name}."
            )
        self._written = _written(self._output)
        form = model.representation
        device = device_for(options.get("device", "auto"), network)
        precision = choose_precision(options.get("precision", "auto"), device)
        settings = {
            "image": str(source),
            "image written": _written(_description(self._array)),
            "level": level,
            "channel": channel,
            "block_size": self._block_size,
            "margin": margin,
            "prediction": {name: options.get(name) for name in _THAT_MATTER},
            "precision": str(precision).removeprefix("torch."),
            "weights": _checksum(model),
            "normalization": model.normalization,
            "representation": [type(form).__name__, asdict(form)],
        }
        self._settings = json.loads(json.dumps(settings))
        self._begun = self._parts.exists()
        if self._begun:
            self._check_parts()

    def _check_parts(self) -> None:
        """Refuse blocks that were done with other settings."""
        file = self._parts / _SETTINGS
        there = json.loads(file.read_text()) if file.exists() else {}
        other = [name for name in self._settings if self._settings[name] != there.get(name)]
        if other:
            raise ValueError(
                f"{self._parts} must have been made with the same settings, but differs in "
                f"{', '.join(other)}. Use those of {file.name} in it again, or delete the folder."
            )

    def missing(self) -> list[int]:
        """Tell which blocks are not done, as indices of `blocks`."""
        # After a crash of the system the last parts may be there, but empty or cut off.
        return [i for i in range(len(self.blocks)) if not zipfile.is_zipfile(self._part(i))]

    def _part(self, number: int) -> Path:
        return self._parts / f"{number}.npz"

    def run(
        self, numbers: list[int] | None = None, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Segment blocks.

        Args:
            numbers: Which ones, as indices of `blocks`; by default all that are missing.
            progress: Called as progress(done, total) after each.

        Raises:
            ValueError: See `predict`; the message names the section.
            RuntimeError: If the parts vanished, since another process joined them.
        """
        numbers = self.missing() if numbers is None else numbers
        done = 0
        for section, group in groupby(numbers, lambda number: self.blocks[number].section):
            try:
                pixels = self._pixels(section)
                for number in group:
                    block = self.blocks[number]
                    maps = predict(pixels, self._model, region=block.window, **self._options)
                    self._keep(number, self._model.representation.decode(maps))
                    done += 1
                    if progress is not None:
                        progress(done, len(numbers))
            except ValueError as error:
                where = ", ".join(f"{a} = {i}" for a, i in zip(self.axes, section, strict=False))
                raise ValueError(f"{where}: {error}" if where else str(error)) from error

    def _pixels(self, section: tuple[int, ...]) -> Pixels:
        place = dict(zip(self.axes, section, strict=False)) | self._channel
        network: Any = self._model.network
        return Pixels(
            _Section(self._array, self._volume.axes, place),
            network.in_channels,
            self._model.normalization,
        )

    def _keep(self, number: int, labels: np.ndarray) -> None:
        """Store the labels of a block, given with its margin.

        `labels` are those inside, numbered without gaps, of `sizes` in pixels. `first_y` and
        `first_x` are their first lines, `after_y` and `after_x` the lines after them, which the
        next block sees as its first ones.
        """
        block = self.blocks[number]
        rows, columns = (
            slice(kept.start - seen.start, kept.stop - seen.start)
            for kept, seen in zip(block.inner, block.window, strict=True)
        )
        ids = np.unique(labels[rows, columns])
        table = np.zeros(labels.max() + 1, np.uint32)
        table[ids] = np.arange(len(ids)) + (ids[0] > 0)
        labels = table[labels]
        inside = labels[rows, columns]
        self._begin()
        temporary = self._parts / f".{uuid4().hex}"
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(
                    file,
                    labels=inside,
                    sizes=np.bincount(inside.ravel()),
                    first_y=inside[:1],
                    first_x=inside[:, :1],
                    after_y=labels[rows.stop : rows.stop + 1, columns],
                    after_x=labels[rows, columns.stop : columns.stop + 1],
                )
            temporary.replace(self._part(number))
        except FileNotFoundError as error:
            raise self._vanished() from error
        finally:
            temporary.unlink(missing_ok=True)

    def _vanished(self) -> RuntimeError:
        return RuntimeError(f"{self._parts} vanished: another process joined the blocks.")

    def _begin(self) -> None:
        """Make the folder of the parts, once; of several processes one does."""
        if self._begun:
            return
        if self._joining.exists() or _written(self._output) != self._written:
            raise self._vanished()
        self._begun = True
        self._parts.parent.mkdir(parents=True, exist_ok=True)
        new = self._parts.with_name(f".{self._parts.name}.{uuid4().hex}")
        new.mkdir()
        (new / _SETTINGS).write_text(json.dumps(self._settings, indent=2))
        try:
            new.rename(self._parts)
        except OSError:
            shutil.rmtree(new)
            self._check_parts()

    def finish(self) -> int:
        """Stitch the blocks, write the labels and delete the parts; start it when all jobs ended.

        Returns:
            The number of objects.

        Raises:
            RuntimeError: If blocks are missing, or another process joins them already.
            FileExistsError: If something was written to `output` meanwhile.
        """
        if self._begun and not self._parts.exists():
            raise self._vanished()
        if missing := self.missing():
            raise RuntimeError(
                f"All {len(self.blocks)} blocks must be done, {len(missing)} are missing. Run them."
            )
        try:
            self._parts.rename(self._joining)  # the claim: only one process can do this
        except FileNotFoundError as error:
            raise self._vanished() from error
        parts, self._parts = self._parts, self._joining
        try:
            numbers = self._numbers()
            kept = [self._volume.axes.index(axis) for axis in self.axes]
            write_ome_zarr_labels(
                self._output,
                _Joined(self._shape, self._block_size, self.blocks, numbers, self._read),
                scale=[self._volume.scale[i] for i in kept],
                translate=[self._volume.translate[i] for i in kept],
                units=[self._volume.units[i] for i in kept],
                axes=self.axes,
                overwrite=self._overwrite,
                read_size=self._block_size,
            )
        except BaseException:
            self._joining.rename(parts)
            raise
        finally:
            self._parts = parts
        shutil.rmtree(self._joining)
        return max(int(table.max()) for table in numbers)

    def _read(self, number: int, name: str) -> np.ndarray:
        with np.load(self._part(number)) as file:
            array: np.ndarray = file[name]
        return array

    def _numbers(self) -> list[np.ndarray]:
        """Give, for each block, the final number of each of its labels."""
        sizes = [self._read(number, "sizes") for number in range(len(self.blocks))]
        numbers = joined_numbers([len(size) - 1 for size in sizes], self._border_pairs())
        count = max(int(table.max()) for table in numbers)
        total = np.zeros(count + 1)
        for table, size in zip(numbers, sizes, strict=True):
            total += np.bincount(table, weights=size, minlength=count + 1)
        # A piece at a border may be too small by itself: only now it is known what is whole.
        large = total >= getattr(self._model.representation, "min_size", 0)
        large[0] = False
        renumbered = np.cumsum(large) * large
        numbers = [renumbered[table] for table in numbers]
        pairs = ((0, 0, pair) for pair in self._section_pairs(numbers))
        (final,) = joined_numbers([int(large.sum())], pairs)
        return [final[table] for table in numbers]

    def _border_pairs(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Pair the labels of neighbouring blocks on the first line of the later one."""
        places = {(block.section, *block.grid): i for i, block in enumerate(self.blocks)}
        for (section, row, column), number in places.items():
            for axis, after in (("y", (row + 1, column)), ("x", (row, column + 1))):
                other = places.get((section, *after))
                if other is not None:
                    seen = self._read(number, f"after_{axis}")
                    line = self._read(other, f"first_{axis}")
                    yield number, other, partners([(seen, line)], _BORDER_THRESHOLD)

    def _section_pairs(self, numbers: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Pair the objects of neighbouring sections along z, over all blocks together."""
        if self._stitch_threshold is None:
            return
        numbered = groupby(range(len(self.blocks)), lambda number: self.blocks[number].section)
        sections = {section: list(group) for section, group in numbered}
        for (*time, z), here in sections.items():
            below = sections.get((*time, z + 1), [])
            faces = (
                tuple(numbers[number][self._read(number, "labels")] for number in pair)
                for pair in zip(here, below, strict=False)
            )
            yield partners(faces, self._stitch_threshold)


class _Joined:
    """The labels of all blocks with their final numbers, read block by block."""

    def __init__(
        self,
        shape: tuple[int, ...],
        block_size: int,
        blocks: list[Block],
        numbers: list[np.ndarray],
        read: Callable[[int, str], np.ndarray],
    ):
        self.shape, self.dtype = shape, np.dtype(np.uint32)
        self._places = {(*block.section, *block.grid): i for i, block in enumerate(blocks)}
        self._block_size, self._numbers, self._read = block_size, numbers, read

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        *section, row, column = (part.start for part in box)
        number = self._places[*section, row // self._block_size, column // self._block_size]
        labels = self._numbers[number][self._read(number, "labels")]
        return labels.reshape([1] * len(section) + list(labels.shape))


def _written(path: Path) -> int | None:
    """Tell when a file, or what is directly in a folder, was written, in nanoseconds."""
    return path.stat().st_mtime_ns if path.exists() else None


def _description(array: zarr.Array) -> Path:
    """Find the file that was written when an array was made; changes of its pixels do not show."""
    folder = Path(cast(LocalStore, array.store).root) / array.path
    return folder / ("zarr.json" if array.metadata.zarr_format == 3 else ".zarray")


def _checksum(model: "TrainedModel") -> int:
    """Sum up the weights of a model."""
    checksum = 0
    for tensor in model.network.state_dict().values():
        numbers = tensor.detach().cpu().contiguous().reshape(-1)
        checksum = zlib.crc32(numbers.view(torch.uint8).numpy().tobytes(), checksum)
    return checksum


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
