"""Foreground and boundary maps, or boundary maps alone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vimunet.axes import PerAxis
from vimunet.labels import find_boundaries
from vimunet.representations.base import Landscape, Representation, Tunable
from vimunet.representations.watershed import (
    find_markers,
    find_networks,
    remove_small,
    seeded_watershed,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Boundaries(Representation):
    """Foreground and boundary, or the boundary alone.

    Attributes:
        foreground: Whether there is a foreground map. Without it every pixel belongs to an object,
            as in electron microscopy.
        seed_threshold: An object starts where foreground minus boundary is larger than this.
            Without foreground map, the foreground is 1.
        foreground_threshold: Pixels with less foreground are background.
        seed_radius: A start is dropped if no circle (in volumes no ball) of this radius fits into
            it. Larger values join what unsure boundaries and narrow necks would split. 0 keeps
            all. Unit: pixels along x.
        max_elongation: Only of sections, and without foreground map: a start whose area is more
            than this many times that of its largest inner circle is no cell but the membrane
            network between them, and becomes background. A disc has 1, a neurite in section 2 to
            8. 0 turns it off.
        min_size: Objects with fewer pixels become background.

    Source:
        Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705. Deviations of decode:
        `seed_radius`, `max_elongation` and a smaller `min_size`; `published()` is without them.
    """

    foreground: bool = True
    seed_threshold: float = 0.5
    foreground_threshold: float = 0.5
    seed_radius: float = 2.0
    max_elongation: float = 12.0
    min_size: int = 20

    name: ClassVar[str] = "boundaries"
    tools: ClassVar[tuple[str, ...]] = ("torch-em",)

    def __post_init__(self) -> None:
        if not isinstance(self.foreground, bool):
            raise TypeError(f"`foreground` must be True or False, got {self.foreground!r}.")
        self._check_thresholds("seed_threshold", "foreground_threshold")
        self._check_not_negative("seed_radius", "max_elongation", "min_size")

    @property
    def title(self) -> str:
        """The maps in words."""
        return "foreground and boundary maps" if self.foreground else "boundary map"

    @property
    def channels(self) -> tuple[str, ...]:
        """Name of each map."""
        return ("foreground", "boundary") if self.foreground else ("boundary",)

    @property
    def has_background(self) -> bool:
        """Whether a pixel may belong to no object; if not, unlabelled pixels are not judged."""
        return self.foreground

    @property
    def tunable(self) -> tuple[Tunable, ...]:
        """The fields worth tuning."""
        foreground = Tunable(
            "foreground_threshold",
            "Foreground",
            "Lower: more and larger objects. Higher: only what is certain",
            *(0, 1, 0.01),
            grid=(0.3, 0.5, 0.7),
        )
        separation = Tunable(
            "seed_threshold",
            "Separation",
            "Higher: touching objects are split sooner. Lower: joined sooner",
            *(0, 1, 0.01),
            grid=(0.3, 0.5, 0.7) if self.foreground else (0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
        )
        radius = Tunable(
            "seed_radius",
            "Core radius",
            "Cores that are thinner start no object: fewer splits. In pixels",
            *(0, 20, 0.5),
            grid=(2.0, 3.0, 4.0) if self.foreground else (2.0, 3.0, 4.0, 5.0),
        )
        elongation = Tunable(
            "max_elongation",
            "Elongation",
            "What is longer is membrane, not a cell. 0 switches this off",
            *(0, 50, 0.5),
        )
        smallest = Tunable(
            "min_size", "Smallest object", "Smaller objects are dropped. In pixels", 0, 1000, 1
        )
        if self.foreground:
            return foreground, separation, radius, smallest
        return separation, radius, elongation, smallest

    def published(self) -> Self:
        """Give the recipe of the paper: every start counts, objects under 50 pixels do not."""
        return type(self)(
            foreground=self.foreground, seed_radius=0.0, max_elongation=0.0, min_size=50
        )

    def nothing(self) -> NDArray[np.float32]:
        """Give the value of each map where there is nothing to see: no object shall start."""
        return super().nothing() if self.foreground else np.ones(1, np.float32)

    def landscape(self, maps: NDArray[np.float32]) -> Landscape:
        """Read from the maps where one more object could be."""
        return Landscape(maps[-1], maps[0] if self.foreground else None)

    def loss(self, logits: "Tensor", target: "Tensor") -> "Tensor":
        """Dice loss of the maps."""
        from vimunet.representations.losses import at_least_float32, dice_loss

        return dice_loss(at_least_float32(logits).sigmoid(), target)

    def encode(
        self, labels: ArrayLike, spacing: PerAxis[float] | None = None
    ) -> NDArray[np.float32]:
        """Turn labels into the maps that a network shall predict.

        The boundary is two pixels wide, one on each side of the face between two labels or a
        label and background; the image border is none. Foreground includes the boundary pixels
        inside the objects. See `Representation.encode`; `spacing` does not matter.
        """
        labels = self._checked_labels(labels)
        maps = np.empty((len(self.channels), *labels.shape), np.float32)
        maps[-1] = find_boundaries(labels)
        if self.foreground:
            maps[0] = labels != 0
        return maps

    def decode(self, maps: ArrayLike, spacing: PerAxis[float] | None = None) -> NDArray[np.int32]:
        """Turn maps into labels.

        Pixels well inside, where the boundary map is low, form the starts of the objects; the
        boundary pixels are given back to them by a watershed on the boundary map.

        What is lost of perfect maps: objects less than 5 pixels wide, which are all boundary;
        they go to the object that touches them, or to the background.
        See `Representation.decode`.
        """
        maps = self._checked_maps(maps)
        boundary = maps[-1]
        foreground = maps[0] if self.foreground else np.ones_like(boundary)
        inside = foreground - boundary > self.seed_threshold
        markers = find_markers(inside, self.seed_radius, spacing)
        labels = seeded_watershed(boundary, markers, foreground > self.foreground_threshold)
        if self.max_elongation and not self.foreground and labels.ndim == 2:
            labels[find_networks(markers, self.max_elongation)[labels]] = 0
        return remove_small(labels, self.smallest(spacing, labels.ndim))
