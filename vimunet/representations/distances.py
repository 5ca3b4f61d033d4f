"""Foreground, distance to the centre and distance to the boundary of each object."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vimunet.axes import PerAxis, relative_spacing
from vimunet.labels import find_boundaries
from vimunet.representations.base import Landscape, Representation, Tunable
from vimunet.representations.watershed import (
    connected_components,
    depth_inside,
    find_markers,
    largest_per_label,
    remove_small,
    seeded_watershed,
    smooth,
)

if TYPE_CHECKING:
    from torch import Tensor

_EPSILON = 1e-7  # keeps the distances of a one-pixel object from 0 / 0


@dataclass(frozen=True)
class Distances(Representation):
    """Foreground, distance to the centre and distance to the boundary, both within each object.

    Attributes:
        center_threshold: An object starts where the centre distance is smaller than this ...
        boundary_threshold: ... and the boundary distance smaller than this, in the foreground.
        foreground_threshold: Pixels with less foreground are background.
        smoothing: Both distances are blurred by a Gaussian of this standard deviation first. It
            closes small gaps, but thin objects vanish. Unit: pixels along x.
        seed_radius: A start is dropped if no circle (in volumes no ball) of this radius fits into
            it. 0 keeps all. Unit: pixels along x.
        min_size: Objects with fewer pixels become background.
        min_target_size: Pieces with fewer pixels are left out of the maps that `encode` makes.

    Source:
        Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705. Deviations of decode:
        `seed_radius`, less `smoothing` and a smaller `min_size`; `published()` is without them.
    """

    center_threshold: float = 0.5
    boundary_threshold: float = 0.6
    foreground_threshold: float = 0.5
    smoothing: float = 0.5
    seed_radius: float = 2.0
    min_size: int = 20
    min_target_size: int = 25

    name: ClassVar[str] = "distances"
    title: ClassVar[str] = "distance maps"
    tools: ClassVar[tuple[str, ...]] = ("torch-em",)
    channels: ClassVar[tuple[str, ...]] = ("foreground", "center_distance", "boundary_distance")

    def __post_init__(self) -> None:
        self._check_thresholds("center_threshold", "boundary_threshold", "foreground_threshold")
        self._check_not_negative("smoothing", "seed_radius", "min_size", "min_target_size")

    @property
    def tunable(self) -> tuple[Tunable, ...]:
        """The fields worth tuning."""
        return (
            Tunable(
                "foreground_threshold",
                "Foreground",
                "Lower: more and larger objects. Higher: only what is certain",
                *(0, 1, 0.01),
                grid=(0.3, 0.5, 0.7),
            ),
            Tunable(
                "center_threshold",
                "Centre",
                "Lower: an object starts closer to its centre, more are split",
                *(0, 1, 0.01),
                grid=(0.4, 0.5, 0.6),
            ),
            Tunable(
                "boundary_threshold",
                "Depth",
                "Lower: an object starts deeper inside, thin ones are lost",
                *(0, 1, 0.01),
                grid=(0.6, 0.8),
            ),
            Tunable("smoothing", "Smoothing", "Blurs the maps: fewer splits. In pixels", 0, 5, 0.1),
            Tunable(
                "seed_radius",
                "Core radius",
                "Cores that are thinner start no object: fewer splits. In pixels",
                *(0, 20, 0.5),
            ),
            Tunable(
                "min_size", "Smallest object", "Smaller objects are dropped. In pixels", 0, 1000, 1
            ),
        )

    def published(self) -> Self:
        """Give the recipe of the paper: more smoothing, every start counts, 50 pixels at least."""
        return type(self)(smoothing=1.0, seed_radius=0.0, min_size=50)

    def landscape(self, maps: NDArray[np.float32]) -> Landscape:
        """Read from the maps where one more object could be."""
        return Landscape(maps[2], maps[0])

    def loss(self, logits: "Tensor", target: "Tensor") -> "Tensor":
        """Dice loss of the maps; of the distances only in the foreground."""
        from vimunet.representations.losses import at_least_float32, dice_distance_loss

        return dice_distance_loss(at_least_float32(logits).sigmoid(), target)

    def encode(
        self, labels: ArrayLike, spacing: PerAxis[float] | None = None
    ) -> NDArray[np.float32]:
        """Turn labels into the maps that a network shall predict.

        Each connected piece of a label is an object of its own. Its centre is the rounded centre
        of mass or, where that lies outside of it, its deepest pixel. The centre distance is 0 at
        the centre; the boundary distance is 0 at the deepest pixel and 1 at the pixels along the
        outline. Both are 1 at the farthest pixel of each object and in the background.
        See `Representation.encode`.

        Source:
            As in the paper's code, except: in a crop that lies inside one object and sees none of
            its outline the boundary distance is 0, as deep inside any other object; the centre of
            an object that is all outline is its first pixel, not the corner of its bounding box;
            distances count voxels by their size.
        """
        labels = self._checked_labels(labels)
        sizes = relative_spacing(spacing, labels.ndim)
        least = self.min_target_size / np.prod(sizes)
        objects = remove_small(connected_components(labels), float(least))
        count = int(objects.max())
        inside = objects != 0
        maps = np.ones((3, *labels.shape), np.float32)
        maps[0] = inside
        if count == 0:
            return maps
        # The outline pixel nearest to a pixel always belongs to the pixel's own object.
        outline = find_boundaries(objects) & inside
        depth = np.zeros(labels.shape, np.float32)
        if outline.any():
            depth = depth_inside(~outline, spacing)
        places = np.nonzero(inside)
        ids, depth = objects[inside], depth[inside]
        centers = _centers(objects, count, ids, places, depth)
        steps = [
            (place - centers[ids, axis]) * size
            for axis, (place, size) in enumerate(zip(places, sizes, strict=True))
        ]
        to_center = np.hypot(steps[-2], steps[-1])
        if len(steps) == 3:
            to_center = np.hypot(steps[0], to_center)
        above_deepest = largest_per_label(ids, depth, count)[ids] - depth
        for channel, distance in ((1, to_center.astype(np.float32)), (2, above_deepest)):
            largest = largest_per_label(ids, distance, count)
            maps[channel][inside] = distance / (largest + _EPSILON)[ids]
        return maps

    def decode(self, maps: ArrayLike, spacing: PerAxis[float] | None = None) -> NDArray[np.int32]:
        """Turn maps into labels.

        Pixels near a centre and far from the boundary form the starts of the objects, which a
        watershed on the boundary distance then grows over the foreground.

        What is lost of perfect maps: objects below `min_target_size`, and those too narrow for
        `seed_radius`. See `Representation.decode`.
        """
        foreground, center, boundary = self._checked_maps(maps)
        center = smooth(center, self.smoothing, spacing)
        boundary = smooth(boundary, self.smoothing, spacing)
        mask = foreground > self.foreground_threshold
        starts = mask & (center < self.center_threshold) & (boundary < self.boundary_threshold)
        labels = seeded_watershed(boundary, find_markers(starts, self.seed_radius, spacing), mask)
        return remove_small(labels, self.smallest(spacing, labels.ndim))


def _centers(
    objects: NDArray, count: int, ids: NDArray, places: tuple[NDArray, ...], depth: NDArray
) -> NDArray[np.intp]:
    """Find the centre pixel of each object, (n + 1, axes) with an unused row for the background.

    `ids`, `places` along each axis and `depth` describe the pixels of the objects, row by row.
    """
    sizes = np.maximum(np.bincount(ids, minlength=count + 1), 1)
    centers = np.stack(
        [np.rint(np.bincount(ids, place, count + 1) / sizes) for place in places], axis=1
    ).astype(np.intp)
    outside = objects[tuple(centers.T)] != np.arange(count + 1)
    for i in np.flatnonzero(outside[1:]) + 1:
        pixels = np.flatnonzero(ids == i)
        deepest = pixels[np.argmax(depth[pixels])]
        centers[i] = [place[deepest] for place in places]
    return centers
