"""From an image, a stack, a volume or a time series to labels: the verb that users call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vimunet.axes import PerAxis
from vimunet.io.formats import open_image
from vimunet.io.image import LazyImage, Pieces, with_named_axes
from vimunet.models.compiled import memory_kept
from vimunet.segmentation.model_file import TrainedModel, load_model
from vimunet.segmentation.predict import predict
from vimunet.segmentation.stitching import stitch_slices

Progress = Callable[[int, int], None]
"""Called as progress(done, total), in tiles."""


def segment(
    image: Any,
    model: TrainedModel | str | Path,
    *,
    axes: str | None = None,
    channel: int | None = None,
    spacing: PerAxis[float] | None = None,
    stitch_threshold: float | None = None,
    progress: bool | Progress = False,
    **options: Any,
) -> np.ndarray:
    """Segment an image, a stack, a volume or a time series.

    A model of images takes a stack slice by slice, and `stitch_threshold` makes objects of their
    cross-sections; a model of volumes takes it as a whole.

    Args:
        image: Array of any size and any real type, or the path of a file; see `axes`.
        model: From `load_model`, or what that takes: a name ("nuclei") or a file.
        axes: A letter for each axis of an array, in any order: t, z, c, y, x, and s for colours.
            None: those that a file declares, or else (y, x) and, for models of volumes,
            (z, y, x), with or without channels behind.
        channel: Which channel or colour to segment; None: all of them, if the model takes as many.
        spacing: Size of a voxel in µm along each axis of the model; None: what a file declares.
            Only its proportions count.
        stitch_threshold: Least overlap (IoU) at which objects of neighbouring slices, or of
            neighbouring times, are one; None: they are different.
        progress: True for a bar on the screen, or a function, called as progress(done, total).
        **options: Keywords of `predict`: `region`, `scale`, `tile_size`, `halo`, `batch_size`,
            `test_time_augmentation`, `device`, `precision`.

    Returns:
        (..., [z,] y, x) labels, int32, the axes of time and depth in front. 0 is background,
        objects are numbered from 1 without gaps; of a model for classes, the class of each pixel.

    Raises:
        FileNotFoundError: If there is no such file or model.
        ValueError: See `predict`; or if `axes` do not fit.
        TypeError: If the pixels are not real numbers.

    Examples:
        >>> from vimunet.datasets import SAMPLES
        >>> folder = SAMPLES / "nuclei" / "test" / "images"
        >>> labels = segment(folder / "28d33efef218.png", "nuclei")
        >>> labels.shape, bool(labels.max() > 10)
        ((360, 360), True)
    """
    if not isinstance(model, TrainedModel):
        model = load_model(model)
    settings = (channel, spacing, stitch_threshold, progress)
    if isinstance(image, str | Path):
        with open_image(image) as opened:
            in_channels, spatial = model.network.in_channels, model.axes
            named = with_named_axes(opened, in_channels, channel, spatial, axes)
            return segment_image(named, model, *settings, **options).labels
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        image = np.asarray(image)
    if axes is None:
        axes = model.axes if len(image.shape) <= len(model.axes) else f"{model.axes}s"
        if len(image.shape) != len(axes):  # a single image, and its message
            return model.representation.decode(predict(image, model, **options), spacing)
    return segment_image(LazyImage(image, axes), model, *settings, **options).labels


@dataclass(frozen=True)
class Segmented:
    """What was found in an image.

    Attributes:
        labels: (..., [z,] y, x) int32 labels.
        axes: A letter for each of their axes.
        maps: (..., m, [z,] y, x) what the network predicted, if it was to be kept.
    """

    labels: np.ndarray
    axes: str
    maps: np.ndarray | None = None


def segment_image(
    image: LazyImage,
    model: TrainedModel,
    channel: int | None = None,
    spacing: PerAxis[float] | None = None,
    stitch_threshold: float | None = None,
    progress: bool | Progress = False,
    *,
    keep_maps: bool = False,
    **options: Any,
) -> Segmented:
    """Segment an image whose axes are named; arguments as in `segment`.

    Args:
        image: With named axes.
        model: What segments it.
        channel: Which channel or colour.
        spacing: Size of a voxel in µm.
        stitch_threshold: Least overlap of objects that go on.
        progress: Bar or function.
        keep_maps: Also give the maps.
        **options: Keywords of `predict`.
    """
    representation = model.representation
    if stitch_threshold is not None and representation.labels_are_classes:
        raise ValueError("`stitch_threshold` must be left out: the model finds classes.")
    pieces = Pieces(image, model.axes, model.network.in_channels, channel)
    spacing = pieces.spacing if spacing is None else spacing
    labels, maps = [], []
    with _reporting(progress, math.prod(pieces.lengths)) as report, memory_kept():
        for number, index in enumerate(pieces.indices()):
            found = predict(pieces.piece(index), model, progress=report(number), **options)
            labels.append(representation.decode(found, spacing))
            if keep_maps:
                maps.append(found)
    size = labels[0].shape
    together = np.stack(labels).reshape(*pieces.lengths, *size)
    if pieces.leading and not representation.labels_are_classes:
        together = stitch_slices(together, stitch_threshold, len(size)).astype(np.int32)
    kept = np.stack(maps).reshape(*pieces.lengths, *maps[0].shape) if keep_maps else None
    return Segmented(together, f"{pieces.leading}{model.axes}", kept)


@contextmanager
def _reporting(progress: bool | Progress, count: int) -> Iterator[Callable[[int], Progress | None]]:
    """Give, for the number of a piece, what `predict` calls; the pieces have equally many tiles."""
    if progress is False:
        yield lambda number: None
        return
    with tqdm(unit="tile", disable=progress is not True) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if callable(progress):
                progress(done, total)

        def of(number: int) -> Progress:
            return lambda done, total: tell(number * total + done, count * total)

        yield of
