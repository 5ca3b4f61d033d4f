"""From an image to maps (`predict`) and to labels (`segment`), in tiles if the image is large.

An image is standardised as a whole, cut into overlapping windows of one size, and every window
is predicted on its own. Each pixel of the maps comes from one window, the one in which it lies
away from the border; nothing is blended. Images may be arrays or lazily indexed (Zarr, HDF5,
Dask): they are read window by window, so that beyond the maps themselves the memory does not
grow with the image.

A window without any contrast, such as the padding of a mosaic, is not predicted: nothing is there.

This module knows nothing about files, nor about what the channels of a network mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vimunet.data.crops import check_channels, to_channels
from vimunet.models.compiled import bfloat16_is_fast, memory_kept

if TYPE_CHECKING:
    from vimunet.checkpoint import TrainedModel

WHOLE_IMAGE_PIXELS = 1024**2
"""Images up to this size, in pixels, are predicted in one piece unless `tile_size` is given."""

WINDOW_SIZE = 1024
"""Larger images are cut into tiles that have this side with their halo, in pixels."""

_SMALLEST_DEFAULT_TILE = 256
PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

NORMALIZATIONS = ("image", "channel", "range")
_READ_SIZE = 1024
"""Side in pixels of the blocks in which the mean and spread of an image are computed."""

_POSITIONS = (
    (0, False),
    (2, False),
    (1, False),
    (3, False),
    (0, True),
    (2, True),
    (1, True),
    (3, True),
)
"""Quarter turns, and whether the image is mirrored before; in pairs that balance each other."""

Box = tuple[slice, slice]


class Tile(NamedTuple):
    """One piece of an image: what the network sees, and what is kept of it, as (y, x) slices.

    `window` may reach past the lower and right end of the image; the part beyond is reflected.
    """

    window: Box
    inner: Box


def tile_slices(
    shape: tuple[int, int], tile_size: int, halo: int = 64, stride: int = 1
) -> list[Tile]:
    """Cut an image of `shape` (y, x) into tiles, each with a halo of context.

    All windows have one size, at most `tile_size` + 2 * `halo` per axis, and start at a multiple
    of `stride`. Windows stay inside the image (padded to a multiple of `stride`): where the
    image ends, the network meets its border just as it does in an image predicted whole.
    Everywhere else a kept pixel has at least `halo` pixels of context on each side. An axis
    that fits into one window is not cut at all.

    Args:
        shape: Height and width of the image in pixels.
        tile_size: Side of the inner region in pixels, without the halo. Rounded down to a
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
    if min(shape) < 1:
        raise ValueError(f"Image must have at least one pixel, got shape {tuple(shape)}.")
    if tile_size < stride:
        raise ValueError(
            f"`tile_size` must be at least {stride}, the stride of the network, got {tile_size}."
        )
    if halo < 0:
        raise ValueError(f"`halo` must not be negative, got {halo}.")
    rows, columns = (_axis_tiles(length, tile_size, halo, stride) for length in shape)
    return [
        Tile((window_y, window_x), (inner_y, inner_x))
        for window_y, inner_y in rows
        for window_x, inner_x in columns
    ]


def _axis_tiles(length: int, tile_size: int, halo: int, stride: int) -> list[Box]:
    """Cut one axis: (window, inner) slices for each tile."""
    tile_size = tile_size // stride * stride
    halo = _round_up(halo, stride)
    padded = _round_up(length, stride)
    count = max(1, -(-(padded - 2 * halo) // tile_size))
    window = _round_up(-(-(padded + (count - 1) * 2 * halo) // count), stride)
    starts = [min(i * (window - 2 * halo), padded - window) for i in range(count)]
    cuts = [0, *(start + halo for start in starts[1:]), length]
    return [
        (slice(start, start + window), slice(cuts[i], cuts[i + 1]))
        for i, start in enumerate(starts)
    ]


def normalize(image: Any, in_channels: int | None = None) -> np.ndarray:
    """Standardise an image: subtract its mean, divide by its spread.

    Args:
        image: (y, x) or (y, x, c) array of any integer, boolean or float type.
        in_channels: Number of channels wanted; None keeps those of the image.

    Returns:
        (c, y, x) float32 with zero mean and unit spread over all channels together, as
        `data.crops.RandomCrops` does it in training. A constant image becomes zeros.

    Raises:
        ValueError: If the image is empty, contains NaN or infinity, or has the wrong shape.
        TypeError: If the pixels are not real numbers.

    Source:
        Archit & Pape 2024, https://arxiv.org/abs/2404.07705, standardise with
        (x - mean) / (std + 1e-7), as done here.
    """
    pixels = Pixels(image, in_channels, "image")
    height, width = pixels.shape
    return pixels.read((slice(0, height), slice(0, width)))


class Pixels:
    """An image that is standardised as a whole and read in pieces.

    Args:
        image: (y, x) or (y, x, c) array, or anything indexed like one; see `predict`.
        in_channels: Number of channels wanted; None keeps those of the image.
        normalization: One of `NORMALIZATIONS`, or None to leave the numbers as they are.

    Attributes:
        shape: (y, x) in pixels.

    Raises:
        ValueError: If the image is empty, contains NaN or infinity, or has the wrong shape.
        TypeError: If the pixels are not real numbers.
    """

    def __init__(self, image: Any, in_channels: int | None, normalization: str | None):
        if not hasattr(image, "shape") or not hasattr(image, "dtype"):
            image = np.asarray(image)
        if len(image.shape) not in (2, 3) or 0 in image.shape:
            raise ValueError(
                f"Image must have shape (y, x) or (y, x, c) and at least one pixel, got "
                f"{tuple(image.shape)}. Pass a stack slice by slice."
            )
        if np.dtype(image.dtype).kind not in "buif":
            raise TypeError(f"Image must hold real numbers, got dtype {image.dtype}.")
        self.image = image
        self.shape: tuple[int, int] = (image.shape[0], image.shape[1])
        if in_channels is None:
            in_channels = 1 if len(image.shape) == 2 else image.shape[2]
        check_channels(tuple(image.shape), in_channels)
        self.in_channels = in_channels
        self.origin = (0, 0)
        self.offset, self.spread = self._statistics(normalization)

    def _channels(self, box: Box) -> np.ndarray:
        return to_channels(np.asarray(self.image[box]), self.in_channels)

    def _statistics(self, normalization: str | None) -> tuple[Any, Any]:
        """Return what `normalization` subtracts and divides by, block by block.

        Both are numbers, or (c, 1, 1) arrays. Sums are taken relative to the first pixel: exact for
        a constant image, and no cancellation for an image with a large offset.
        """
        if normalization is None:
            return 0.0, 1.0
        height, width = self.shape
        apart = normalization == "channel"
        axes = (1, 2) if apart else None
        origin: Any = self._channels((slice(0, 1), slice(0, 1))).astype(np.float64)
        origin = origin if apart else origin.flat[0]
        total = squares = np.zeros_like(origin)
        low, high = np.inf, -np.inf
        for y in range(0, height, _READ_SIZE):
            for x in range(0, width, _READ_SIZE):
                box = (
                    slice(y, min(y + _READ_SIZE, height)),
                    slice(x, min(x + _READ_SIZE, width)),
                )
                shifted = self._channels(box).astype(np.float64) - origin
                total = total + shifted.sum(axis=axes, keepdims=apart)
                squares = squares + np.square(shifted).sum(axis=axes, keepdims=apart)
                low, high = min(low, shifted.min()), max(high, shifted.max())
        if not np.isfinite(total).all():
            raise ValueError(
                "Image contains NaN or infinity. Replace missing pixels before segmenting, with "
                "numpy.nan_to_num for example."
            )
        if normalization == "range":
            return origin + low, (high - low) / 255
        count = height * width * (1 if apart else self.in_channels)
        mean = total / count
        return origin + mean, np.maximum(squares / count - mean**2, 0.0) ** 0.5

    def read(self, box: Box) -> np.ndarray:
        """(c, y, x) float32, normalised; past its end, the image is reflected."""
        inside, rows_columns = [], []
        for part, length, origin in zip(box, self.shape, self.origin, strict=True):
            index = _reflect(np.arange(part.start, part.stop), length)
            first, last = int(index.min()), int(index.max())
            inside.append(slice(origin + first, origin + last + 1))
            rows_columns.append(index - first)
        channels = self._channels((inside[0], inside[1]))
        shifted = channels.astype(np.float64) - self.offset
        standardised = (shifted / (self.spread + 1e-7)).astype(np.float32)
        rows, columns = rows_columns
        if standardised.shape[1:] == (len(rows), len(columns)):
            return standardised
        return standardised[:, rows[:, None], columns[None, :]]

    def part(self, region: Box) -> Pixels:
        """Take a region for the image, with the statistics of the whole."""
        for piece, length in zip(region, self.shape, strict=True):
            if None in (piece.start, piece.stop) or not 0 <= piece.start < piece.stop <= length:
                raise ValueError(
                    f"`region` must lie in the image of {self.shape} pixels, got {region}. Give "
                    "start and stop of rows and columns."
                )
        part = copy(self)
        part.origin = (self.origin[0] + region[0].start, self.origin[1] + region[1].start)
        part.shape = (region[0].stop - region[0].start, region[1].stop - region[1].start)
        return part

    def magnified(self, factor: float) -> Pixels:
        """Read everything and give it another size, of at least one pixel."""
        height, width = self.shape
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        planes = _resize(self.read((slice(0, height), slice(0, width))), size)
        return Pixels(np.moveaxis(planes, 0, 2), self.in_channels, normalization=None)


def predict(
    image: Any,
    model: TrainedModel,
    *,
    region: Box | None = None,
    scale: float = 1.0,
    tile_size: int | None = None,
    halo: int = 64,
    batch_size: int = 1,
    symmetries: int = 1,
    device: str | torch.device = "auto",
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Predict the maps of an image.

    Args:
        image: (y, x) or (y, x, c) of any size and any real type: an array, or anything that is
            indexed like one (Zarr, HDF5, Dask), which is then read piece by piece; or `Pixels`,
            to predict several regions of an image whose statistics are known already.
        model: Network, representation and normalisation, from `load_model`. The network is used
            in eval mode; it is given back in the mode and on the device in which it came.
        region: Rows and columns to predict, as slices with start and stop inside the image; None:
            all. The image is standardised as a whole all the same.
        scale: How much the network sees the image magnified, 1/16 to 16: 2 where objects are half
            as large as those that the model was trained on. The maps get the size of the image
            again. Other than 1, the whole image is held in memory at that size; tiles and halo
            are of the magnified image.
        tile_size: Side of a tile in pixels, without the halo. None: images of up to 1024 x 1024
            pixels in one piece, larger ones in tiles of this size with their halo, or of the
            largest size that the network takes. An image that fits into one tile with its halo is
            not cut, and then the result does not depend on this choice.
        halo: Context around each tile in pixels, predicted and thrown away.
        batch_size: Tiles predicted together. 1 is the fastest choice on most CPUs, where tiles
            fight for the cache; on a GPU more may be faster.
        symmetries: In how many of its 8 positions, turned and mirrored, the network sees each tile;
            the maps are their mean. More take as many times longer and are a little better.
        device: "auto" is the network's own device if that is an accelerator, otherwise CUDA,
            MPS or CPU, whichever is there first. Move the network yourself before many calls:
            otherwise it travels with each.
        precision: "float32", "bfloat16", "float16", or "auto": bfloat16 on a device whose
            hardware computes with it (CUDA, and processors with AVX512-BF16), where networks are
            two to three times faster; else float32. Labels differ in a few pixels, and now and
            then in an object that is split elsewhere; mean scores of images do not.
        progress: Called as progress(done, total) after each batch, in tiles.

    Returns:
        (m, y, x) float32 maps in [0, 1] of the region, in the order of
        `model.representation.channels`.

    Raises:
        ValueError: If the image is empty, has NaN or the wrong number of channels, if region or
            scale are out of their range, the tile too small or too large for the network, or the
            output not finite.
        TypeError: If the pixels are not real numbers.

    Source:
        Tiles follow torch-em's `predict_with_halo`, with three deviations: the whole image is
        standardised instead of each tile; the windows of border tiles are moved into the image
        instead of being filled with reflected pixels, so that a tiled image and a whole one
        agree at the border too; and tiles are made equal, so that fewer are needed.
    """
    network: Any = model.network  # Any: its attributes are named in `vimunet.models`
    if model.normalization not in NORMALIZATIONS:
        raise ValueError(
            f"Unknown normalization {model.normalization!r}. Known: {', '.join(NORMALIZATIONS)}."
        )
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if not 1 <= symmetries <= 8:
        raise ValueError(f"`symmetries` must be from 1 to 8, got {symmetries}.")
    check_scale(scale)
    run_device = device_for(device, network)
    dtype = choose_precision(precision, run_device)
    pixels = image
    if not isinstance(pixels, Pixels):
        pixels = Pixels(image, network.in_channels, model.normalization)
    if region is not None:
        pixels = pixels.part(region)
    shape = pixels.shape
    if scale != 1:
        pixels = pixels.magnified(scale)
    tile_size = _choose_tile_size(pixels.shape, tile_size, halo, network.stride, network.max_size)
    tiles = tile_slices(pixels.shape, tile_size, halo, network.stride)

    activation = model.representation.activation
    maps = np.empty((network.out_channels, *pixels.shape), dtype=np.float32)
    autocast = torch.autocast(run_device.type, dtype, enabled=dtype != torch.float32)
    with _borrowed(network, run_device), torch.inference_mode(), memory_kept(), autocast:
        for start in range(0, len(tiles), batch_size):
            batch = tiles[start : start + batch_size]
            windows = np.stack([pixels.read(tile.window) for tile in batch])
            blank = np.ptp(windows, axis=(2, 3)).max(axis=1) == 0
            size = (len(batch), network.out_channels, *windows.shape[2:])
            outputs = np.empty(size, np.float32)
            if blank.any():
                outputs[blank] = _nothing(model)[:, None, None]
            if not blank.all():
                visible = torch.from_numpy(windows[~blank]).to(run_device)
                mean = _mean_of_views(network, visible, activation, symmetries)
                outputs[~blank] = mean.cpu().numpy()
            if not np.isfinite(outputs).all():
                raise ValueError(
                    f"The network returned NaN in {str(dtype).removeprefix('torch.')}. "
                    f'Try `precision="float32"`; if it stays, the weights are broken.'
                )
            for tile, output in zip(batch, outputs, strict=True):
                inner = tuple(
                    slice(kept.start - seen.start, kept.stop - seen.start)
                    for kept, seen in zip(tile.inner, tile.window, strict=True)
                )
                maps[(slice(None), *tile.inner)] = output[(slice(None), *inner)]
            if progress is not None:
                progress(start + len(batch), len(tiles))
    return maps if scale == 1 else _resize(maps, shape).clip(0, 1)  # rounding leads past


def segment(image: Any, model: TrainedModel, **options: Any) -> np.ndarray:
    """Segment an image: predict its maps and read the labels from them.

    Args:
        image: (y, x) or (y, x, c), any size and any real type; see `predict`.
        model: Network, representation and normalisation, from `load_model`.
        **options: Keywords of `predict`: `region`, `scale`, `tile_size`, `halo`, `batch_size`,
            `symmetries`, `device`, `precision`, `progress`.

    Returns:
        (y, x) int32 labels. 0 is background, objects are numbered from 1 without gaps; for a
        `Semantic` representation, the class of each pixel.

    Raises:
        ValueError: See `predict`.
        TypeError: See `predict`.
    """
    return model.representation.decode(predict(image, model, **options))


def _nothing(model: TrainedModel) -> np.ndarray:
    """Give the maps of a pixel where there is nothing to see."""
    if not model.representation.has_background:
        return np.ones(1, np.float32)  # all boundary, so that no object starts
    return model.representation.encode(np.zeros((1, 1), np.uint8))[:, 0, 0]


def _mean_of_views(
    network: nn.Module,
    windows: Tensor,
    activation: Literal["sigmoid", "softmax"],
    symmetries: int,
) -> Tensor:
    """Predict (b, c, y, x) windows in some of their positions; give the mean of the maps."""
    views = [
        _placed(activate(network(_placed(windows, *at)), activation), *at, back=True)
        for at in _POSITIONS[:symmetries]
    ]
    return torch.stack(views).mean(dim=0) if symmetries > 1 else views[0]


def activate(logits: Tensor, activation: Literal["sigmoid", "softmax"]) -> Tensor:
    """Turn logits into maps.

    Args:
        logits: (b, m, y, x) output of a network.
        activation: "sigmoid" for each map on its own, "softmax" for maps whose sum is 1; see
            `vimunet.representation`.

    Returns:
        (b, m, y, x) float32 maps in [0, 1].
    """
    logits = logits.float()
    return logits.softmax(dim=1) if activation == "softmax" else logits.sigmoid()


def check_scale(scale: float) -> None:
    """Refuse a scale that `predict` cannot use."""
    if not 1 / 16 <= scale <= 16:
        raise ValueError(
            f"`scale` must be from 1/16 to 16, got {scale}. It is the size of the objects in the "
            "training images over their size here."
        )


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return `device`; for "auto" CUDA, MPS or CPU, whichever is there first.

    Raises:
        ValueError: If the device does not exist.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`device` {str(device)!r} cannot be used: {reason}") from error
    return chosen


def device_for(device: str | torch.device, network: nn.Module) -> torch.device:
    """Return the device on which `predict` runs a network, given its option `device`."""
    current = _device_of(network)
    if str(device) == "auto" and current.type != "cpu":
        return current
    return choose_device(device)


def _device_of(network: nn.Module) -> torch.device:
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type in which `predict` computes on a device, given its option `precision`."""
    if precision == "auto":
        if device.type == "cpu":
            fast = bfloat16_is_fast()
        else:
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if precision not in PRECISIONS:
        raise ValueError(f"Unknown precision {precision!r}. Known: auto, {', '.join(PRECISIONS)}.")
    return PRECISIONS[precision]


def _choose_tile_size(
    shape: tuple[int, int], tile_size: int | None, halo: int, stride: int, largest: int | None
) -> int:
    """Return the side of a tile, so that no window is larger than the network takes."""
    padded = [_round_up(length, stride) for length in shape]
    context = 2 * _round_up(halo, stride)
    if tile_size is None:
        whole = padded[0] * padded[1] <= WHOLE_IMAGE_PIXELS
        if whole and (largest is None or max(padded) <= largest):
            return max(padded)
        if largest is None:
            return max(WINDOW_SIZE - context, _SMALLEST_DEFAULT_TILE)
        tile_size = min(WINDOW_SIZE, largest) - context
        if tile_size < stride:
            raise ValueError(
                f"`halo` must leave room for a tile: this network takes at most {largest} "
                f"pixels, got a halo of {halo}."
            )
    window = min(tile_size // stride * stride + context, max(padded))
    if largest is not None and window > largest:
        raise ValueError(
            f"`tile_size` + 2 * `halo` must be at most {largest} for this network, got "
            f"{tile_size} + 2 * {halo}. Leave `tile_size` out to have it chosen."
        )
    return tile_size


@contextmanager
def _borrowed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Put the network on `device` and in eval mode, and everything back afterwards."""
    home = _device_of(network)
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        if home != device:
            network.to(device)
        yield
    finally:
        if home != device:
            network.to(home)
        for module, training in modes:
            module.training = training


def _placed(images: Tensor, turns: int, mirrored: bool, back: bool = False) -> Tensor:
    """Turn (b, c, y, x) by quarters, and mirror them along x before; or undo that."""
    if back and turns:
        images = images.rot90(-turns, (2, 3))
    if mirrored:
        images = images.flip(3)
    if turns and not back:
        images = images.rot90(turns, (2, 3))
    return images  # as they came, not a copy, where nothing turns


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


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


def _resize(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate (c, y, x) float32 linearly; where it shrinks, over all pixels that are merged."""
    batch = torch.from_numpy(planes)[None]
    return functional.interpolate(batch, size, mode="bilinear", antialias=True)[0].numpy()
