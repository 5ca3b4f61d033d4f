"""What each map means, in both directions: labels to maps for training, maps to labels after.

`Boundaries`, `Distances` and `Semantic` each name their `channels`, `encode` labels into the
target of a network and `decode` the maps of a network into labels. Nothing else in the project
knows which channel is which. Here is no network, no loss and no image.

The labels of `Boundaries` and `Distances` number objects; for both, `encode` is the paper's, and
`decode` has better defaults than the paper, whose recipe `paper()` gives. The labels of `Semantic`
are classes: their values mean something and are never renumbered. Each kind says with
`labels_are_classes` which of the two it is, and with `activation` how logits become maps.
Axis letters: m maps, y rows, x columns.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vimunet.postprocessing import (
    connected_components,
    depth_inside,
    find_markers,
    find_networks,
    largest_per_label,
    remove_small,
    seeded_watershed,
    smooth,
)

_EPSILON = 1e-7  # keeps the distances of a one-pixel object from 0 / 0


@dataclass(frozen=True)
class Boundaries:
    """Foreground and boundary, or the boundary alone.

    Attributes:
        foreground: Whether there is a foreground map. Without it every pixel belongs to an object,
            as in electron microscopy.
        seed_threshold: An object starts where foreground minus boundary is larger than this.
            Without foreground map, the foreground is 1.
        foreground_threshold: Pixels with less foreground are background.
        seed_radius: A start is dropped if no circle of this radius fits into it. Larger values
            join what unsure boundaries and narrow necks would split. 0 keeps all. Unit: pixels.
        max_elongation: Only without foreground map: a start whose area is more than this many
            times that of its largest inner circle is no cell but the membrane network between
            them, and becomes background. A disc has 1, a neurite in section 2 to 8. 0 turns it
            off.
        min_size: Objects with fewer pixels become background.

    Source:
        Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705. Deviations of decode:
        `seed_radius`, `max_elongation` and a smaller `min_size`; `paper()` is without them.
    """

    foreground: bool = True
    seed_threshold: float = 0.5
    foreground_threshold: float = 0.5
    seed_radius: float = 2.0
    max_elongation: float = 12.0
    min_size: int = 20

    name: ClassVar[str] = "boundaries"
    activation: ClassVar[Literal["sigmoid"]] = "sigmoid"
    labels_are_classes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.foreground, bool):
            raise TypeError(f"`foreground` must be True or False, got {self.foreground!r}.")
        _check_thresholds(self, "seed_threshold", "foreground_threshold")
        _check_not_negative(self, "seed_radius", "max_elongation", "min_size")

    @property
    def has_background(self) -> bool:
        """Whether a pixel may belong to no object; if not, unlabelled pixels are not judged."""
        return self.foreground

    @property
    def channels(self) -> tuple[str, ...]:
        """Name of each map."""
        return ("foreground", "boundary") if self.foreground else ("boundary",)

    @classmethod
    def paper(cls, foreground: bool = True) -> "Boundaries":
        """Give the recipe of the paper: every start counts, objects under 50 pixels do not."""
        return cls(foreground=foreground, seed_radius=0.0, max_elongation=0.0, min_size=50)

    def threshold_grid(self) -> dict[str, tuple[float, ...]]:
        """Give the fields worth tuning on validation images, and the values to try."""
        if not self.foreground:
            return {
                "seed_threshold": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
                "seed_radius": (2.0, 3.0, 4.0, 5.0),
            }
        return {
            "foreground_threshold": (0.3, 0.5, 0.7),
            "seed_threshold": (0.3, 0.5, 0.7),
            "seed_radius": (2.0, 3.0, 4.0),
        }

    def config(self) -> dict[str, Any]:
        """Describe this for JSON; `representation_from_config` rebuilds it."""
        return {"name": self.name, **asdict(self)}

    def encode(self, labels: ArrayLike) -> NDArray[np.float32]:
        """Turn labels into the maps that a network shall predict.

        The boundary is two pixels wide, one on each side of the line between two labels or a
        label and background; the image border is none. Foreground includes the boundary pixels
        inside the objects.

        Args:
            labels: (y, x) integer labels, 0 background; ids need not be consecutive.

        Returns:
            (m, y, x) maps in the order of `channels`, 0 or 1.

        Raises:
            TypeError: If the labels are not integers.
            ValueError: If a label is negative or the shape is not (y, x).
        """
        labels = _checked_labels(labels)
        maps = np.empty((len(self.channels), *labels.shape), np.float32)
        maps[-1] = _boundaries(labels)
        if self.foreground:
            maps[0] = labels != 0
        return maps

    def decode(self, maps: ArrayLike) -> NDArray[np.int32]:
        """Turn maps into labels.

        Pixels well inside, where the boundary map is low, form the starts of the objects; the
        boundary pixels are given back to them by a watershed on the boundary map.

        What is lost of perfect maps: objects less than 5 pixels wide, which are all boundary;
        they go to the object that touches them, or to the background.

        Args:
            maps: (m, y, x) maps in the order of `channels`, in [0, 1].

        Returns:
            (y, x) labels: 0 background, 1..n.

        Raises:
            TypeError: If the maps are not floating point.
            ValueError: If the shape does not fit `channels` or a value is not in [0, 1].
        """
        maps = _checked_maps(maps, self.channels)
        boundary = maps[-1]
        foreground = maps[0] if self.foreground else np.ones_like(boundary)
        markers = find_markers(foreground - boundary > self.seed_threshold, self.seed_radius)
        labels = seeded_watershed(boundary, markers, foreground > self.foreground_threshold)
        if self.max_elongation and not self.foreground:
            labels[find_networks(markers, self.max_elongation)[labels]] = 0
        return remove_small(labels, self.min_size)


@dataclass(frozen=True)
class Distances:
    """Foreground, distance to the centre and distance to the boundary, both within each object.

    Attributes:
        center_threshold: An object starts where the centre distance is smaller than this ...
        boundary_threshold: ... and the boundary distance smaller than this, in the foreground.
        foreground_threshold: Pixels with less foreground are background.
        smoothing: Both distances are blurred by a Gaussian of this standard deviation first. It
            closes small gaps, but thin objects vanish. Unit: pixels.
        seed_radius: A start is dropped if no circle of this radius fits into it. 0 keeps all.
            Unit: pixels.
        min_size: Objects with fewer pixels become background.
        min_target_size: Pieces with fewer pixels are left out of the maps that `encode` makes.

    Source:
        Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705. Deviations of decode:
        `seed_radius`, less `smoothing` and a smaller `min_size`; `paper()` is without them.
    """

    center_threshold: float = 0.5
    boundary_threshold: float = 0.6
    foreground_threshold: float = 0.5
    smoothing: float = 0.5
    seed_radius: float = 2.0
    min_size: int = 20
    min_target_size: int = 25

    name: ClassVar[str] = "distances"
    activation: ClassVar[Literal["sigmoid"]] = "sigmoid"
    labels_are_classes: ClassVar[bool] = False
    has_background: ClassVar[bool] = True
    channels: ClassVar[tuple[str, ...]] = ("foreground", "center_distance", "boundary_distance")

    def __post_init__(self) -> None:
        _check_thresholds(self, "center_threshold", "boundary_threshold", "foreground_threshold")
        _check_not_negative(self, "smoothing", "seed_radius", "min_size", "min_target_size")

    @classmethod
    def paper(cls) -> "Distances":
        """Give the recipe of the paper: more smoothing, every start counts, 50 pixels at least."""
        return cls(smoothing=1.0, seed_radius=0.0, min_size=50)

    def threshold_grid(self) -> dict[str, tuple[float, ...]]:
        """Give the fields worth tuning on validation images, and the values to try."""
        return {
            "foreground_threshold": (0.3, 0.5, 0.7),
            "center_threshold": (0.4, 0.5, 0.6),
            "boundary_threshold": (0.6, 0.8),
        }

    def config(self) -> dict[str, Any]:
        """Describe this for JSON; `representation_from_config` rebuilds it."""
        return {"name": self.name, **asdict(self)}

    def encode(self, labels: ArrayLike) -> NDArray[np.float32]:
        """Turn labels into the maps that a network shall predict.

        Each connected piece of a label is an object of its own. Its centre is the rounded centre
        of mass or, where that lies outside of it, its deepest pixel. The centre distance is 0 at
        the centre; the boundary distance is 0 at the deepest pixel and 1 at the pixels along the
        outline. Both are 1 at the farthest pixel of each object and in the background.

        Args:
            labels: (y, x) integer labels, 0 background; ids need not be consecutive.

        Returns:
            (3, y, x) maps in the order of `channels`, in [0, 1].

        Raises:
            TypeError: If the labels are not integers.
            ValueError: If a label is negative or the shape is not (y, x).

        Source:
            As in the paper's code, except: in a crop that lies inside one object and sees none of
            its outline the boundary distance is 0, as deep inside any other object; the centre of
            an object that is all outline is its first pixel, not the corner of its bounding box.
        """
        labels = _checked_labels(labels)
        objects = remove_small(connected_components(labels), self.min_target_size)
        count = int(objects.max())
        inside = objects != 0
        maps = np.ones((3, *labels.shape), np.float32)
        maps[0] = inside
        if count == 0:
            return maps
        # The outline pixel nearest to a pixel always belongs to the pixel's own object.
        outline = _boundaries(objects) & inside
        depth = depth_inside(~outline) if outline.any() else np.zeros(labels.shape, np.float32)
        rows, columns = np.nonzero(inside)
        ids, depth = objects[inside], depth[inside]
        centers = _centers(objects, count, ids, rows, columns, depth)
        to_center = np.hypot(rows - centers[ids, 0], columns - centers[ids, 1])
        above_deepest = largest_per_label(ids, depth, count)[ids] - depth
        for channel, distance in ((1, to_center.astype(np.float32)), (2, above_deepest)):
            largest = largest_per_label(ids, distance, count)
            maps[channel][inside] = distance / (largest + _EPSILON)[ids]
        return maps

    def decode(self, maps: ArrayLike) -> NDArray[np.int32]:
        """Turn maps into labels.

        Pixels near a centre and far from the boundary form the starts of the objects, which a
        watershed on the boundary distance then grows over the foreground.

        What is lost of perfect maps: objects below `min_target_size`, and those too narrow for
        `seed_radius`.

        Args:
            maps: (3, y, x) maps in the order of `channels`, in [0, 1].

        Returns:
            (y, x) labels: 0 background, 1..n.

        Raises:
            TypeError: If the maps are not floating point.
            ValueError: If the shape does not fit `channels` or a value is not in [0, 1].
        """
        foreground, center, boundary = _checked_maps(maps, self.channels)
        center, boundary = smooth(center, self.smoothing), smooth(boundary, self.smoothing)
        mask = foreground > self.foreground_threshold
        seeds = mask & (center < self.center_threshold) & (boundary < self.boundary_threshold)
        labels = seeded_watershed(boundary, find_markers(seeds, self.seed_radius), mask)
        return remove_small(labels, self.min_size)


@dataclass(frozen=True)
class Semantic:
    """The class of each pixel.

    Two classes need one map, the foreground; more classes have one map each, background included.

    Attributes:
        num_classes: Number of classes, background (class 0) included; at least 2.
        foreground_threshold: With two classes, pixels with less foreground are background. With
            more, the class with the largest map wins and this is not used.

    Source:
        As in Ruan & Xiang 2024, "VM-UNet", https://arxiv.org/abs/2402.02491, for skin lesions (two
        classes) and for abdominal organs (nine).
    """

    num_classes: int = 2
    foreground_threshold: float = 0.5

    name: ClassVar[str] = "semantic"
    labels_are_classes: ClassVar[bool] = True
    has_background: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.num_classes, int) or isinstance(self.num_classes, bool):
            raise TypeError(f"`num_classes` must be a whole number, got {self.num_classes!r}.")
        if self.num_classes < 2:
            raise ValueError(
                f"`num_classes` must be at least 2, background included, got {self.num_classes}."
            )
        _check_thresholds(self, "foreground_threshold")

    @property
    def channels(self) -> tuple[str, ...]:
        """Name of each map."""
        if self.num_classes == 2:
            return ("foreground",)
        return ("background", *(f"class_{i}" for i in range(1, self.num_classes)))

    @property
    def activation(self) -> Literal["sigmoid", "softmax"]:
        """How logits become maps: each on its own, or all maps of a pixel with the sum 1."""
        return "sigmoid" if self.num_classes == 2 else "softmax"

    @classmethod
    def for_channels(cls, count: int) -> "Semantic":
        """Give the representation with `count` maps: 1 for two classes, else one each.

        Raises:
            ValueError: If there is none with so many maps.
        """
        if count < 1 or count == 2:
            raise ValueError(
                f"A semantic network must have 1 map or at least 3, got {count}: two classes "
                "have one map, the foreground."
            )
        return cls(num_classes=2 if count == 1 else count)

    def threshold_grid(self) -> dict[str, tuple[float, ...]]:
        """Give the fields worth tuning on validation images, and the values to try."""
        if self.num_classes > 2:
            return {}
        return {"foreground_threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)}

    def config(self) -> dict[str, Any]:
        """Describe this for JSON; `representation_from_config` rebuilds it."""
        return {"name": self.name, **asdict(self)}

    def encode(self, labels: ArrayLike) -> NDArray[np.float32]:
        """Turn classes into the maps that a network shall predict.

        Args:
            labels: (y, x) class of each pixel, integer in 0 ... num_classes - 1; a mask of true
                and false is class 1 and 0.

        Returns:
            (m, y, x) maps in the order of `channels`, 1 where the pixel has the class of the map
            and 0 elsewhere.

        Raises:
            TypeError: If the labels are not integers.
            ValueError: If a label is no class or the shape is not (y, x).

        Examples:
            >>> Semantic(num_classes=3).encode(np.array([[0, 2, 1]]))[:, 0]
            array([[1., 0., 0.],
                   [0., 0., 1.],
                   [0., 1., 0.]], dtype=float32)
        """
        labels = np.asarray(labels)
        labels = _checked_labels(labels.astype(np.uint8) if labels.dtype == bool else labels)
        if labels.max() >= self.num_classes:
            raise ValueError(
                f"`labels` must be classes below {self.num_classes}, got {labels.max()}. Set "
                "`num_classes` to the number of classes, background included; where labels number "
                "objects, or are 0 and 255, turn them into classes first."
            )
        classes = range(1, 2) if self.num_classes == 2 else range(self.num_classes)
        return np.stack([labels == i for i in classes]).astype(np.float32)

    def decode(self, maps: ArrayLike) -> NDArray[np.int32]:
        """Turn maps into classes. Nothing is lost of perfect maps.

        Args:
            maps: (m, y, x) maps in the order of `channels`, in [0, 1].

        Returns:
            (y, x) class of each pixel; between equal maps the lower class wins.

        Raises:
            TypeError: If the maps are not floating point.
            ValueError: If the shape does not fit `channels` or a value is not in [0, 1].
        """
        maps = _checked_maps(maps, self.channels)
        if self.num_classes == 2:
            return (maps[0] >= self.foreground_threshold).astype(np.int32)
        return maps.argmax(axis=0).astype(np.int32)


Representation = Boundaries | Distances | Semantic

REPRESENTATIONS: dict[str, type[Boundaries] | type[Distances] | type[Semantic]] = {
    kind.name: kind for kind in (Boundaries, Distances, Semantic)
}


def representation_from_config(config: dict[str, Any]) -> Representation:
    """Rebuild a representation from its `config()`.

    Args:
        config: "name" and any fields of the representation; missing fields take their default.

    Returns:
        The representation.

    Raises:
        ValueError: If the name or a field is unknown, or a value is out of range.
    """
    options = dict(config)
    name = options.pop("name", None)
    if name not in REPRESENTATIONS:
        known = ", ".join(sorted(REPRESENTATIONS))
        raise ValueError(f"Unknown representation {name!r}. Known: {known}.")
    known_fields = sorted(field.name for field in fields(REPRESENTATIONS[name]))
    for field in options:
        if field not in known_fields:
            raise ValueError(
                f"Unknown field {field!r} of representation {name!r}. "
                f"Known: {', '.join(known_fields)}."
            )
    return REPRESENTATIONS[name](**options)


def _boundaries(labels: NDArray) -> NDArray[np.bool_]:
    """Find the pixels with another label, 0 included, among their four direct neighbours."""
    boundary = np.zeros(labels.shape, bool)
    below = labels[1:] != labels[:-1]
    beside = labels[:, 1:] != labels[:, :-1]
    boundary[1:] |= below
    boundary[:-1] |= below
    boundary[:, 1:] |= beside
    boundary[:, :-1] |= beside
    return boundary


def _centers(
    objects: NDArray, count: int, ids: NDArray, rows: NDArray, columns: NDArray, depth: NDArray
) -> NDArray[np.intp]:
    """Find the centre pixel of each object, (n + 1, 2) with an unused row for the background.

    `ids`, `rows`, `columns` and `depth` describe the pixels of the objects, row by row.
    """
    areas = np.maximum(np.bincount(ids, minlength=count + 1), 1)
    centers = np.stack(
        [np.rint(np.bincount(ids, place, count + 1) / areas) for place in (rows, columns)], axis=1
    ).astype(np.intp)
    outside = objects[centers[:, 0], centers[:, 1]] != np.arange(count + 1)
    for i in np.flatnonzero(outside[1:]) + 1:
        pixels = np.flatnonzero(ids == i)
        deepest = pixels[np.argmax(depth[pixels])]
        centers[i] = rows[deepest], columns[deepest]
    return centers


def _checked_labels(labels: ArrayLike) -> NDArray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"`labels` must be integers, got {labels.dtype}. "
            "Give each object its own number; `skimage.measure.label` does so for a mask."
        )
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(f"`labels` must have shape (y, x), got {labels.shape}.")
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise ValueError(f"`labels` must not be negative, got {labels.min()}.")
    return labels.astype(labels.dtype.newbyteorder("="), copy=False)


def _checked_maps(maps: ArrayLike, channels: tuple[str, ...]) -> NDArray[np.float32]:
    maps = np.asarray(maps)
    if maps.dtype.kind != "f":
        raise TypeError(f"`maps` must be floating point, got {maps.dtype}.")
    if maps.ndim != 3 or len(maps) != len(channels) or maps.size == 0:
        raise ValueError(
            f"`maps` must have shape ({len(channels)}, y, x) for {', '.join(channels)}, "
            f"got {maps.shape}."
        )
    if np.isnan(maps).any():
        raise ValueError("`maps` must not contain NaN.")
    if maps.min() < 0 or maps.max() > 1:
        raise ValueError(
            f"`maps` must lie in [0, 1], got [{maps.min():.3g}, {maps.max():.3g}]. "
            "Apply the sigmoid or softmax to logits first."
        )
    return maps.astype(np.float32, copy=False)


def _check_thresholds(representation: Any, *names: str) -> None:
    for name in names:
        value = getattr(representation, name)
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")


def _check_not_negative(representation: Any, *names: str) -> None:
    for name in names:
        value = getattr(representation, name)
        if not 0 <= value < np.inf:
            raise ValueError(f"`{name}` must be a number from 0 up, got {value}.")
