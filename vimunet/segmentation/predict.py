"""From an image to maps, in tiles if the image is large.

An image is normalised as a whole, cut into overlapping windows of one size, and every window is
predicted on its own. Each pixel of the maps comes from one window, the one in which it lies away
from the border; nothing is blended. Images may be arrays or lazily indexed (Zarr, HDF5, Dask): they
are read window by window, so that beyond the maps themselves the memory does not grow with the
image. Volumes go the same way, in blocks.

A window without any contrast, such as the padding of a mosaic, is not predicted: nothing is there.

This module knows nothing about files, nor about what the channels of a network mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vimunet.axes import Box, PerAxis, Turn, inside, per_axis, turns
from vimunet.deprecation import renamed_keyword
from vimunet.models.compiled import memory_kept
from vimunet.segmentation.devices import borrowed, choose_precision, device_for
from vimunet.segmentation.normalization import NormalizedImage, check_normalization, resize
from vimunet.segmentation.tiling import HALO, choose_tile_size, tile_slices

if TYPE_CHECKING:
    from vimunet.segmentation.model_file import TrainedModel


@renamed_keyword("symmetries", "test_time_augmentation")
def predict(
    image: Any,
    model: TrainedModel,
    *,
    region: Box | None = None,
    scale: PerAxis[float] = 1.0,
    tile_size: PerAxis[int] | None = None,
    halo: PerAxis[int] | None = None,
    batch_size: int = 1,
    test_time_augmentation: int = 1,
    device: str | torch.device = "auto",
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Predict the maps of an image.

    On Linux the C library is told to keep freed memory meanwhile, which saves a fifth of the time
    on a CPU; at the end it is given back to the system. What remains for the rest of the process:
    blocks of up to 32 MB come from the heap, as they do in any program that has freed such a block.

    Args:
        image: Axes of the network, ([z,] y, x), or with channels last; any size and any real type:
            an array, or anything that is indexed like one (Zarr, HDF5, Dask), which is then read
            piece by piece; or a `NormalizedImage`, to predict several regions of an image whose
            statistics are known already.
        model: Network, representation and normalisation, from `load_model`. The network is used
            in eval mode; it is given back in the mode and on the device in which it came.
        region: Part to predict, as slices with start and stop inside the image along each axis;
            None: all. The image is normalised as a whole all the same.
        scale: How much the network sees the image magnified, 1/16 to 16: 2 where objects are half
            as large as those that the model was trained on. The maps get the size of the image
            again. Other than 1, the whole image is held in memory at that size; tiles and halo
            are of the magnified image.
        tile_size: Size of a tile in pixels, without the halo. None: images of up to 1024 x 1024
            pixels and volumes of up to 128 x 128 x 128 in one piece, larger ones in tiles of this
            size with their halo, or of the largest size that the network takes. An image that
            fits into one tile with its halo is not cut, and then the result does not depend on
            this choice.
        halo: Context around each tile in pixels, predicted and thrown away; None: 64, in volumes
            16.
        batch_size: Tiles predicted together. 1 is the fastest choice on most CPUs, where tiles
            fight for the cache; on a GPU more may be faster.
        test_time_augmentation: In how many of its positions, turned and mirrored, the network sees
            each tile (of images there are 8, of volumes 16); the maps are their mean. More take as
            many times longer and are a little better.
        device: "auto" is the network's own device if that is an accelerator, otherwise CUDA,
            MPS or CPU, whichever is there first. Move the network yourself before many calls:
            otherwise it travels with each.
        precision: "float32", "bfloat16", "float16", or "auto": bfloat16 on a device whose
            hardware computes with it (CUDA, and processors with AVX512-BF16), where networks are
            two to three times faster; else float32. Labels differ in a few pixels, and now and
            then in an object that is split elsewhere; mean scores of images do not.
        progress: Called as progress(done, total) after each batch, in tiles.

    Returns:
        (m, [z,] y, x) float32 maps of the region, in the order of `model.representation.channels`
        and in their ranges.

    Raises:
        ValueError: If the image is empty, has NaN or the wrong number of axes or channels, if
            region or scale are out of their range, the tile too small or too large for the
            network, or the output not finite.
        TypeError: If the pixels are not real numbers.

    Source:
        Tiles follow torch-em's `predict_with_halo`, with three deviations: the whole image is
        normalised instead of each tile; the windows of border tiles are moved into the image
        instead of being filled with reflected pixels, so that a tiled image and a whole one
        agree at the border too; and tiles are made equal, so that fewer are needed.
    """
    network, representation = model.network, model.representation
    ndim = len(network.axes)
    check_normalization(model.normalization)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    scales = check_scale(scale, ndim)
    views = _views(network.axes, test_time_augmentation)
    halos = per_axis("halo", HALO[ndim] if halo is None else halo, ndim)
    run_device = device_for(device, network)
    dtype = choose_precision(precision, run_device)
    pixels = image
    if not isinstance(pixels, NormalizedImage):
        pixels = NormalizedImage(image, network.in_channels, model.normalization, network.axes)
    if region is not None:
        pixels = pixels.part(region)
    shape = pixels.shape
    if set(scales) != {1.0}:
        pixels = pixels.magnified(scales)
    side = choose_tile_size(pixels.shape, tile_size, halos, network.stride, network.max_size)
    tiles = tile_slices(pixels.shape, side, halos, network.stride)

    maps = np.empty((network.out_channels, *pixels.shape), dtype=np.float32)
    autocast = torch.autocast(run_device.type, dtype, enabled=dtype != torch.float32)
    with borrowed(network, run_device), torch.inference_mode(), memory_kept(), autocast:
        for start in range(0, len(tiles), batch_size):
            batch = tiles[start : start + batch_size]
            windows = np.stack([pixels.read(tile.window) for tile in batch])
            blank = np.ptp(windows, axis=tuple(range(2, windows.ndim))).max(axis=1) == 0
            size = (len(batch), network.out_channels, *windows.shape[2:])
            outputs = np.empty(size, np.float32)
            if blank.any():
                outputs[blank] = representation.nothing().reshape(-1, *[1] * ndim)
            if not blank.all():
                visible = torch.from_numpy(windows[~blank]).to(run_device)
                outputs[~blank] = _mean_of_views(model, visible, views).cpu().numpy()
            if not np.isfinite(outputs).all():
                raise ValueError(
                    f"The network returned NaN in {str(dtype).removeprefix('torch.')}. "
                    f'Try `precision="float32"`; if it stays, the weights are broken.'
                )
            for tile, output in zip(batch, outputs, strict=True):
                kept = inside(tile.inner, tile.window)
                maps[(slice(None), *tile.inner)] = output[(slice(None), *kept)]
            if progress is not None:
                progress(start + len(batch), len(tiles))
    if maps.shape[1:] == tuple(shape):
        return maps
    low, high = (
        np.reshape(ends, (-1, *[1] * ndim)) for ends in zip(*representation.ranges, strict=True)
    )
    return resize(maps, shape).clip(low, high, dtype=np.float32)  # rounding leads past


def _mean_of_views(model: TrainedModel, windows: Tensor, views: Sequence[Turn]) -> Tensor:
    """Predict (b, c, [z,] y, x) windows in some of their positions; give the mean of the maps."""
    representation = model.representation
    maps = [
        representation.turned(representation.activate(model.network(turn(windows))), turn.inverse)
        for turn in views
    ]
    return torch.stack(maps).mean(dim=0) if len(maps) > 1 else maps[0]


def _views(axes: Any, count: int) -> list[Turn]:
    known = turns(axes)
    if not 1 <= count <= len(known):
        raise ValueError(f"`test_time_augmentation` must be from 1 to {len(known)}, got {count}.")
    return known[:count]


def check_scale(scale: PerAxis[float], ndim: int) -> tuple[float, ...]:
    """Refuse a scale that `predict` cannot use; give one for each axis."""
    scales = per_axis("scale", scale, ndim)
    if not all(1 / 16 <= factor <= 16 for factor in scales):
        raise ValueError(
            f"`scale` must be from 1/16 to 16, got {scale}. It is the size of the objects in the "
            "training images over their size here."
        )
    return tuple(float(factor) for factor in scales)
