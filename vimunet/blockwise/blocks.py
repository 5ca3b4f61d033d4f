"""From an OME-Zarr image to OME-Zarr labels that need not fit into memory, by one process or many.

Each section (y, x), or for models of volumes each volume (z, y, x), is cut into blocks. A block is
predicted and its labels are read with a margin around it, without looking at any other; the folder
`RESULT.parts` beside the result keeps one file for each block that is done, so that work can be
interrupted, and shared by the jobs of a cluster. At last the blocks are joined (`joining.py`).
"""

import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import numpy as np
import torch
import zarr
from zarr.storage import LocalStore

from vimunet.axes import PerAxis, per_axis
from vimunet.blockwise.joining import Block, Joined, final_numbers, part_of
from vimunet.io.image import LazyImage, Pieces
from vimunet.io.ome_zarr import read_ome_zarr, write_ome_zarr_labels
from vimunet.segmentation.devices import choose_precision, device_for
from vimunet.segmentation.normalization import NormalizedImage
from vimunet.segmentation.predict import check_scale, predict

if TYPE_CHECKING:
    from vimunet.segmentation.model_file import TrainedModel

BLOCK_SIZE = {2: 2048, 3: 256}
"""Side of a block in voxels as the network sees them, by the number of its axes."""

MARGIN = {2: 128, 3: 32}
"""Context of a block in the same voxels."""

_MOST_VOXELS = {2: 8192, 3: 400}
"""Largest side of a block with its margin, in voxels of the image: it takes about 3 GB."""

_SETTINGS = "settings.json"

_THAT_MATTER = ("scale", "tile_size", "halo", "test_time_augmentation")
"""Keywords of `predict` on which the labels depend; so does `precision`, as the device has it."""


class BlockwiseSegmentation:
    """The segmentation of one OME-Zarr image.

    Each section, or volume, is normalised as a whole, as `predict` does it with an image. Sections
    are read one by one: images whose chunks reach over many of them are slow to read.

    Args:
        image: OME-Zarr file with the axes y, x and any of t, c, z, in any order.
        model: From `vimunet.load_model`.
        output: OME-Zarr file to write; `OUTPUT.parts` keeps what is done until then.
        level: Level of the pyramid to segment, 0 is the finest. The labels have its size.
        channel: Which channel to segment; None: all of them, if the network takes as many, or the
            only one.
        spacing: Size of a voxel in µm along each axis of the model; None: what the file declares.
        stitch_threshold: Least IoU at which objects of neighbouring sections along z (of volumes,
            or without z, along t) become one, in (0, 1]; None: objects of different sections are
            different.
        overwrite: Replace labels that are there.
        block_size: Size of a block, in voxels as the network sees them (see `scale` of `predict`);
            None: 2048, of volumes 256. Less if a block would take too much memory with its margin,
            but then at least the margin.
        margin: Context of a block, in the same voxels; None: 128, of volumes 32. Larger than the
            objects are: where two blocks see an object in different ways, it stays cut.
        options: Keywords of `vimunet.predict`.

    Attributes:
        blocks: All blocks, section by section.

    Raises:
        FileNotFoundError: If there is no such image.
        FileExistsError: If there is something at `output` already, and it may not be replaced.
        ValueError: If the image has no such level or channel or other axes, if it contains the
            output or the other way round, if the model finds classes, if there is nothing to
            stitch along, or if the parts that are there were made of another image, by another
            model or with other settings.
    """

    def __init__(
        self,
        image: str | Path,
        model: "TrainedModel",
        output: str | Path,
        *,
        level: int = 0,
        channel: int | None = None,
        spacing: PerAxis[float] | None = None,
        stitch_threshold: float | None = None,
        overwrite: bool = False,
        block_size: PerAxis[int] | None = None,
        margin: PerAxis[int] | None = None,
        **options: Any,
    ):
        if model.representation.labels_are_classes:
            raise ValueError("`model` must find objects, got one of classes.")
        self._model, self._options = model, options
        self._volume = read_ome_zarr(image, level)
        self._array = self._volume.levels[0]
        lazy = LazyImage(
            self._array, "".join(self._volume.axes), self._volume.pixel, name=str(image)
        )
        self._pieces = Pieces(lazy, model.axes, model.network.in_channels, channel)
        sizes = lazy.sizes
        self.axes = "".join(axis for axis in "tzyx" if axis in sizes)
        self._leading = self.axes.removesuffix(model.axes)
        if stitch_threshold is not None and not self._leading:
            raise ValueError(
                f"`stitch_threshold` is for images with sections to stitch, got {lazy.axes}."
            )
        self._stitch_threshold, self._overwrite = stitch_threshold, overwrite
        self._spacing = self._pieces.spacing if spacing is None else spacing
        self._shape = tuple(sizes[axis] for axis in self.axes)
        ndim = len(model.axes)
        scales = check_scale(options.get("scale", 1.0), ndim)
        wanted = per_axis(
            "block_size", BLOCK_SIZE[ndim] if block_size is None else block_size, ndim
        )
        around = per_axis("margin", MARGIN[ndim] if margin is None else margin, ndim)
        margins = [max(1, round(side / scale)) for side, scale in zip(around, scales, strict=True)]
        self._block_size = tuple(
            min(max(1, round(side / scale)), max(edge, _MOST_VOXELS[ndim] - 2 * edge))
            for side, scale, edge in zip(wanted, scales, margins, strict=True)
        )
        self.blocks = list(_blocks(self._shape, self._block_size, margins))

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
        device = device_for(options.get("device", "auto"), model.network)
        precision = choose_precision(options.get("precision", "auto"), device)
        settings = {
            "image": str(source),
            "image written": _written(_description(self._array)),
            "level": level,
            "channel": channel,
            "block_size": self._block_size,
            "margin": margins,
            "spacing": self._spacing,
            "prediction": {name: options.get(name) for name in _THAT_MATTER},
            "precision": str(precision).removeprefix("torch."),
            "weights": _checksum(model),
            "normalization": model.normalization,
            "representation": [type(form).__name__, asdict(form)],  # type: ignore[call-overload]
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
                    labels = self._model.representation.decode(maps, self._spacing)
                    self._keep(number, part_of(labels, block, self._model.axes))
                    done += 1
                    if progress is not None:
                        progress(done, len(numbers))
            except ValueError as error:
                where = ", ".join(f"{a} = {i}" for a, i in zip(self._leading, section, strict=True))
                raise ValueError(f"{where}: {error}" if where else str(error)) from error

    def _pixels(self, section: tuple[int, ...]) -> NormalizedImage:
        place = dict(zip(self._leading, section, strict=True))
        view = self._pieces.piece(tuple(place[axis] for axis in self._pieces.leading))
        model = self._model
        return NormalizedImage(view, model.network.in_channels, model.normalization, model.axes)

    def _keep(self, number: int, part: dict[str, np.ndarray]) -> None:
        """Store the part of a block, completely or not at all."""
        self._begin()
        temporary = self._parts / f".{uuid4().hex}"
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **part)  # type: ignore[arg-type]
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
            smallest = self._model.representation.smallest(self._spacing, len(self._model.axes))
            numbers = final_numbers(
                self.blocks, self._model.axes, self._read, smallest, self._stitch_threshold
            )
            kept = [self._volume.axes.index(axis) for axis in self.axes]
            write_ome_zarr_labels(
                self._output,
                Joined(self._shape, self._block_size, self.blocks, numbers, self._read),
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


def _blocks(
    shape: Sequence[int], block_size: Sequence[int], margins: Sequence[int]
) -> Iterator[Block]:
    """Cut (..., [z,] y, x) into blocks, section by section."""
    ndim = len(block_size)
    along = [
        [
            (
                slice(start, min(start + side, length)),
                slice(max(start - margin, 0), min(start + side + margin, length)),
            )
            for start in range(0, length, side)
        ]
        for length, side, margin in zip(shape[-ndim:], block_size, margins, strict=True)
    ]
    for section in np.ndindex(*shape[:-ndim]):
        for pieces in product(*map(enumerate, along)):
            grid = tuple(place for place, _ in pieces)
            inner, window = zip(*(slices for _, slices in pieces), strict=True)
            yield Block(section, grid, inner, window)
