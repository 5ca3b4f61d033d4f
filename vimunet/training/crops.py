"""Random crops with targets, cut from any list of samples: what a training reads.

Item i is a pure function of (seed, i). So a training that was interrupted goes on exactly where
it was, and several processes see different crops by asking for different items. Reading, labels
and file formats are not the business of this module.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch import Tensor
from torch.utils.data import Dataset

from vimunet.axes import PerAxis, SpatialAxes, per_axis
from vimunet.io.pairs import Sample
from vimunet.messages import naming
from vimunet.representations import Representation
from vimunet.segmentation.normalization import (
    check_channels,
    check_normalization,
    normalize_channels,
    to_channels,
)
from vimunet.training.augmentation import clear_out, degrade, draw_zoom, resize

_CLEARED = 0.1
"""Probability that a changed crop has little or nothing left in it."""

_MOST_TRIES = 500


def rotate(image: np.ndarray, labels: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotate an image and its labels about their centre, in the plane of y and x.

    Args:
        image: (c, [z,] y, x) image, standardised; interpolated bilinearly.
        labels: ([z,] y, x) integer labels; each pixel takes the nearest one.
        degrees: Angle, counter-clockwise as the image is shown, y downwards.

    Returns:
        Image and labels of the same shapes; 0 where they were outside before.

    Examples:
        >>> labels = np.array([[1, 2], [3, 4]])
        >>> rotate(np.zeros((1, 2, 2)), labels, 90)[1]
        array([[2, 4],
               [1, 3]])
    """
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    center = (np.array(labels.shape[-2:]) - 1) / 2
    offset = center - turn @ center

    def turned(array: np.ndarray, order: int) -> np.ndarray:
        planes = array.reshape(-1, *array.shape[-2:])
        options = {"order": order, "mode": "grid-constant"}
        found = [affine_transform(plane, turn, offset, **options) for plane in planes]
        return np.stack(found).reshape(array.shape)

    return turned(image, 1), turned(labels, 0)


class RandomCrops(Dataset):
    """A fixed number of random crops, each with the maps to be learnt from it.

    Each pass over the samples (`len(samples)` items) visits every sample once, in an order drawn
    anew. A crop starts anywhere inside the image, each possible start equally likely. It is
    flipped along each axis with probability 0.5, and normalised by itself as
    `vimunet.segmentation.normalization` does it. An image smaller than the crop is normalised first
    and then padded with 0, its labels with background.
    A crop without any contrast becomes white noise: in instance norms its gradient would overflow.

    Decoded samples are kept in memory up to `cache_bytes` (in each worker process), so that files
    are not decoded again for every crop.

    Args:
        samples: Images with labels.
        crop_size: Size of a crop in pixels along each axis of the samples, one number for all.
        representation: Turns the labels of a crop into its target.
        seed: Item i depends on `seed` and i alone.
        in_channels: Channels of the image that the network takes, see `to_channels`.
        length: Number of items; one per sample by default.
        axes: Of the samples, "yx" or "zyx".
        normalization: How a crop is prepared, one of `NORMALIZATIONS`.
        spacing: Size of a voxel along each axis, for samples that do not tell it.
        rotations: Also rotate by a random multiple of 90 degrees in the plane of y and x. Needs
            square crops.
        free_rotation: Probability that a crop is also rotated about its centre by any angle:
            the image bilinearly, the labels to the nearest pixel. What turns in from outside is
            0 and background. In [0, 1].
        augment: Also change scale, contrast, sharpness, noise and illumination, and clear out one
            of ten crops of objects on background, see `vimunet.training.augmentation`.
        zoom: With `augment`, crops are magnified by a factor between these two.
        min_objects: Draw another crop of the same sample, up to 500 times, until the crop has at
            least this many different label values, background counted: 2 leaves out crops that
            are all background or inside one object.
        cache_bytes: Most memory for decoded samples, in bytes.

    Raises:
        ValueError: If there is no sample, a number is out of range, or `min_objects` is given for
            labels that are classes.

    Source:
        Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705, trained with torch-em.
        Deviations: the last row, column and start position are included (torch-em never draws
        them); small images are padded after standardisation, not before; rotations are new.
        `min_objects=2` is torch-em's `MinInstanceSampler`. `free_rotation=0.5` is VM-UNet's
        (https://arxiv.org/abs/2402.02491), with a new angle for each crop instead of one for all.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        crop_size: PerAxis[int],
        representation: Representation,
        seed: int = 0,
        in_channels: int = 1,
        length: int | None = None,
        *,
        axes: SpatialAxes = "yx",
        normalization: str = "image",
        spacing: PerAxis[float] | None = None,
        rotations: bool = False,
        free_rotation: float = 0.0,
        augment: bool = False,
        zoom: tuple[float, float] = (0.5, 2.0),
        min_objects: int = 0,
        cache_bytes: int = 2**29,
    ):
        size = per_axis("crop_size", crop_size, len(axes))
        check_normalization(normalization)
        if not samples:
            raise ValueError("`samples` must hold at least one sample, got none.")
        if min(size) < 1:
            raise ValueError(f"`crop_size` must be numbers > 0, got {crop_size}.")
        if rotations and size[-2] != size[-1]:
            raise ValueError(f"`crop_size` must be square for rotations, got {size}.")
        if length is not None and length < 1:
            raise ValueError(f"`length` must be at least 1, got {length}.")
        if not 0 <= free_rotation <= 1:
            raise ValueError(f"`free_rotation` must lie in [0, 1], got {free_rotation}.")
        if not 0 < zoom[0] <= zoom[1] < math.inf:
            raise ValueError(f"`zoom` must be two factors > 0, the smaller one first, got {zoom}.")
        if min_objects and representation.labels_are_classes:
            raise ValueError(
                f"`min_objects` must be 0 for labels that are classes, got {min_objects}."
            )
        self.samples = list(samples)
        self.crop_size = size
        self.axes = axes
        self.normalization = normalization
        self.spacing = spacing
        self.representation = representation
        self.seed = seed
        self.in_channels = in_channels
        self.length = len(self.samples) if length is None else length
        self.rotations = rotations
        self.free_rotation = free_rotation
        self.augment = augment
        self.zoom = zoom
        self.min_objects = min_objects
        self.cache_bytes = cache_bytes
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the (c, [z,] y, x) image and the (m, [z,] y, x) target of an item, float32."""
        image, labels = self.crop(index)
        sample = self.samples[self._number(index)]
        spacing = self.spacing if sample.spacing is None else sample.spacing
        with naming(sample.name):
            target = self.representation.encode(labels, spacing)
        return torch.from_numpy(image), torch.from_numpy(np.ascontiguousarray(target, np.float32))

    def crop(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the (c, [z,] y, x) float32 image and the ([z,] y, x) int32 labels of an item.

        Raises:
            IndexError: If `index` is not in 0 ... length - 1.
            ValueError: If the sample has no labels or impossible ones, NaN or infinite pixels,
                too few objects, or channels that do not fit.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"`index` must be in 0 ... {self.length - 1}, got {index}.")
        rng = np.random.default_rng([self.seed, index])
        image, labels = self._read(self._number(index))
        magnification = draw_zoom(rng, *self.zoom) if self.augment else 1.0
        wanted = tuple(math.ceil(side / magnification) for side in self.crop_size)
        image, labels = self._cut(image, labels, wanted, rng, self.name(index))

        pixels = to_channels(image, self.in_channels, self.axes)
        pixels = normalize_channels(pixels, self.normalization)
        if self.augment:
            if magnification != 1:
                scaled = tuple(
                    min(most, max(1, round(side * magnification)))
                    for side, most in zip(labels.shape, self.crop_size, strict=True)
                )
                pixels, labels = resize(pixels, labels, scaled)
            if self._may_be_empty and rng.random() < _CLEARED:
                pixels, labels = clear_out(pixels, labels, rng)
            pixels = degrade(pixels, rng)
            if self.normalization != "image":
                pixels = normalize_channels(pixels, self.normalization)
        missing = [
            (0, want - have) for want, have in zip(self.crop_size, labels.shape, strict=True)
        ]
        pixels = np.pad(pixels, [(0, 0), *missing])
        labels = np.pad(labels, missing)
        for axis in range(-len(self.axes), 0):
            if rng.random() < 0.5:
                pixels, labels = np.flip(pixels, axis), np.flip(labels, axis)
        if self.rotations:
            turns = int(rng.integers(4))
            pixels, labels = np.rot90(pixels, turns, (-2, -1)), np.rot90(labels, turns, (-2, -1))
        if self.free_rotation and rng.random() < self.free_rotation:
            pixels, labels = rotate(pixels, labels, float(rng.uniform(0, 360)))
        if np.ptp(pixels) == 0:
            pixels = rng.normal(size=pixels.shape).astype(np.float32)
        return np.ascontiguousarray(pixels), np.ascontiguousarray(labels, np.int32)

    def name(self, index: int) -> str:
        """Return the name of the sample that item `index` is cut from."""
        return self.samples[self._number(index)].name

    @property
    def _may_be_empty(self) -> bool:
        return self.representation.has_background and not self.representation.labels_are_classes

    def _number(self, index: int) -> int:
        """Return which sample item `index` is cut from."""
        turn, place = divmod(index, len(self.samples))
        order = np.random.default_rng([self.seed, turn, 1]).permutation(len(self.samples))
        return int(order[place])

    def _cut(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        wanted: tuple[int, ...],
        rng: np.random.Generator,
        name: str,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut a random piece of a size out; it is smaller if the image is."""
        for _ in range(_MOST_TRIES):
            window = tuple(
                slice(start, start + size)
                for size, start in (
                    (size, int(rng.integers(max(1, have - size + 1))))
                    for size, have in zip(wanted, labels.shape, strict=True)
                )
            )
            if self.min_objects < 2 or np.unique(labels[window]).size >= self.min_objects:
                return image[window], labels[window]
        raise ValueError(
            f"{name}: no crop of {wanted} with {self.min_objects} different labels "
            f"(background counted) in {_MOST_TRIES} tries. Leave this image out, or lower "
            "`min_objects`."
        )

    def _read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return one checked sample, from memory if it is there."""
        if number in self._cache:
            return self._cache[number]
        sample = self.samples[number]
        image, labels = sample.read()
        if labels is None:
            raise ValueError(f"{sample.name}: training needs labels, this sample has none.")
        if labels.dtype.kind not in "bui" or labels.min(initial=0) < 0:
            raise ValueError(
                f"{sample.name}: labels must be whole numbers >= 0, got {labels.dtype} "
                f"from {labels.min()}."
            )
        ndim = len(self.axes)
        if labels.ndim != ndim or image.shape[:ndim] != labels.shape:
            raise ValueError(
                f"{sample.name}: image {image.shape} and labels {labels.shape} must agree in "
                f"{', '.join(self.axes)}."
            )
        with naming(sample.name):
            check_channels(image.shape, self.in_channels, self.axes)
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise ValueError(
                f"{sample.name}: the image contains NaN or infinite pixels. Replace them before "
                "training."
            )
        if self.representation.labels_are_classes and labels.max() > np.iinfo(np.int32).max:
            raise ValueError(f"{sample.name}: labels must be classes, got {labels.max()}.")
        pair = image, _compact(labels)
        size = pair[0].nbytes + pair[1].nbytes
        if self._cached_bytes + size <= self.cache_bytes:
            # Kept until the end: crops come in random order, so newer is not likelier.
            self._cache[number] = pair
            self._cached_bytes += size
        return pair

    def __getstate__(self) -> dict[str, Any]:
        """Leave the decoded samples behind when a worker process gets a copy."""
        return {**self.__dict__, "_cache": {}, "_cached_bytes": 0}


def _compact(labels: np.ndarray) -> np.ndarray:
    """Store labels in a small dtype; numbers beyond int32 (as in CREMI) become 1, 2, ..."""
    if labels.dtype.itemsize <= 2:
        return labels
    if labels.max(initial=0) > np.iinfo(np.int32).max:
        values, inverse = np.unique(labels, return_inverse=True)
        labels = inverse.reshape(labels.shape) + int(values[0] != 0)
    small = np.uint16 if labels.max(initial=0) <= np.iinfo(np.uint16).max else np.int32
    return labels.astype(small)
