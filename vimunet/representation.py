"""What each map means, in both directions: labels to maps for training, maps to labels after.

`Boundaries` and `Distances` each name their `channels`, `encode` labels into the target of a
network and `decode` the maps of a network into labels. Nothing else in the project knows which
channel is which. Here is no network, no loss and no image.

Axis letters: m maps, y rows, x columns.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
from bioimage_cpp import distance as _distance
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from vimunet.postprocessing import connected_components, remove_small, seeded_watershed


@dataclass(frozen=True)
class Boundaries:
    """Foreground and boundary, or the boundary alone."""

    foreground: bool = True
    seed_threshold: float = 0.5
    foreground_threshold: float = 0.5
    min_size: int = 10

    name: ClassVar[str] = "boundaries"

    def __post_init__(self) -> None:
        _check_fields(self)

    @property
    def channels(self) -> tuple[str, ...]:
        """Name of each map."""
        return ("foreground", "boundary") if self.foreground else ("boundary",)

    @classmethod
    def paper(cls, foreground: bool = True) -> "Boundaries":
        """The recipe of the paper."""
        return cls(foreground=foreground, min_size=50)

    @staticmethod
    def threshold_grid() -> dict[str, tuple[float, ...]]:
        """Fields worth tuning on a validation set, and the values to try."""
        return {
            "foreground_threshold": (0.3, 0.5, 0.7),
            "seed_threshold": (0.3, 0.5, 0.6, 0.7, 0.8, 0.9),
        }

    def config(self) -> dict[str, Any]:
        """JSON-able description, from which `representation_from_config` rebuilds this."""
        return {"name": self.name, **asdict(self)}

    def encode(self, labels: ArrayLike) -> NDArray[np.float32]:
        """Turn labels into the target maps."""
        labels = _checked_labels(labels)
        boundary = _thick_boundaries(labels)
        maps = np.empty((len(self.channels), *labels.shape), np.float32)
        maps[-1] = boundary
        if self.foreground:
            maps[0] = labels != 0
        return maps

    def decode(self, maps: ArrayLike) -> NDArray[np.int32]:
        """Turn maps into labels."""
        maps = _checked_maps(maps, self.channels)
        boundary = maps[-1]
        foreground = maps[0] if self.foreground else np.ones_like(boundary)
        mask = foreground > self.foreground_threshold
        markers = connected_components(foreground - boundary > self.seed_threshold)
        labels = seeded_watershed(boundary, markers, mask)
        return remove_small(labels, self.min_size)


@dataclass(frozen=True)
class Distances:
    """Foreground, distance to the centre and distance to the boundary of each object."""

    center_threshold: float = 0.5
    boundary_threshold: float = 0.6
    foreground_threshold: float = 0.5
    smoothing: float = 1.0
    min_size: int = 10
    min_target_size: int = 25

    name: ClassVar[str] = "distances"
    channels: ClassVar[tuple[str, ...]] = ("foreground", "center_distance", "boundary_distance")

    def __post_init__(self) -> None:
        _check_fields(self)

    @classmethod
    def paper(cls) -> "Distances":
        """The recipe of the paper."""
        return cls(min_size=50)

    @staticmethod
    def threshold_grid() -> dict[str, tuple[float, ...]]:
        """Fields worth tuning on a validation set, and the values to try."""
        return {
            "foreground_threshold": (0.3, 0.5, 0.7),
            "center_threshold": (0.3, 0.4, 0.5, 0.6),
            "boundary_threshold": (0.5, 0.6),
        }

    def config(self) -> dict[str, Any]:
        """JSON-able description, from which `representation_from_config` rebuilds this."""
        return {"name": self.name, **asdict(self)}

    def encode(self, labels: ArrayLike) -> NDArray[np.float32]:
        """Turn labels into the target maps."""
        labels = _checked_labels(labels)
        objects = remove_small(connected_components(labels), self.min_target_size)
        inside = objects != 0
        maps = np.ones((3, *labels.shape), np.float32)
        maps[0] = inside
        if not inside.any():
            return maps
        inner = _thick_boundaries(objects) & inside
        depth = np.zeros(labels.shape, np.float32)
        if inner.any():
            depth = _distance.distance_transform(~inner)
        rows, columns = np.nonzero(inside)
        ids, depth = objects[inside] - 1, depth[inside]
        n = int(objects.max())
        centers = _centers(objects, ids, rows, columns, depth, n)
        reach = np.hypot(rows - centers[ids, 0], columns - centers[ids, 1]).astype(np.float32)
        for channel, distance in ((1, reach), (2, _per_object_max(ids, depth, n)[ids] - depth)):
            largest = _per_object_max(ids, distance, n)
            maps[channel][inside] = distance / (largest + 1e-7)[ids]
        return maps

    def decode(self, maps: ArrayLike) -> NDArray[np.int32]:
        """Turn maps into labels."""
        foreground, center, boundary = _checked_maps(maps, self.channels)
        if self.smoothing > 0:
            center, boundary = (
                ndimage.gaussian_filter(d, self.smoothing, mode="mirror", truncate=3)
                for d in (center, boundary)
            )
        mask = foreground > self.foreground_threshold
        seeds = mask & (center < self.center_threshold) & (boundary < self.boundary_threshold)
        labels = seeded_watershed(boundary, connected_components(seeds), mask)
        return remove_small(labels, self.min_size)


REPRESENTATIONS: dict[str, type[Boundaries] | type[Distances]] = {
    kind.name: kind for kind in (Boundaries, Distances)
}


def representation_from_config(config: dict[str, Any]) -> Boundaries | Distances:
    """Rebuild a representation from its `config()`."""
    if "name" not in config:
        raise ValueError(f"`config` must have a 'name', got {sorted(config)}.")
    options = dict(config)
    name = options.pop("name")
    if name not in REPRESENTATIONS:
        known = ", ".join(sorted(REPRESENTATIONS))
        raise ValueError(f"Unknown representation {name!r}. Known: {known}.")
    kind = REPRESENTATIONS[name]
    known_fields = [field.name for field in fields(kind)]
    unknown = sorted(set(options) - set(known_fields))
    if unknown:
        raise ValueError(
            f"Unknown field {unknown[0]!r} of representation {name!r}. "
            f"Known: {', '.join(known_fields)}."
        )
    return kind(**options)


def _centers(objects, ids, rows, columns, depth, n):
    """(n, 2) centre pixel of each object."""
    areas = np.bincount(ids, minlength=n)
    centers = np.stack(
        [np.rint(np.bincount(ids, place, n) / areas) for place in (rows, columns)], axis=1
    ).astype(np.intp)
    outside = np.flatnonzero(objects[centers[:, 0], centers[:, 1]] != np.arange(1, n + 1))
    for i in outside:
        pixels = np.flatnonzero(ids == i)
        deepest = pixels[np.argmax(depth[pixels])]
        centers[i] = rows[deepest], columns[deepest]
    return centers


def _per_object_max(ids, values, n):
    """(n,) largest value of each object."""
    largest = np.zeros(n, np.float32)
    np.maximum.at(largest, ids, values)
    return largest


def _thick_boundaries(labels):
    """(y, x) bool: pixels with another label, 0 included, among their four direct neighbours."""
    boundary = np.zeros(labels.shape, bool)
    down = labels[1:] != labels[:-1]
    right = labels[:, 1:] != labels[:, :-1]
    boundary[1:] |= down
    boundary[:-1] |= down
    boundary[:, 1:] |= right
    boundary[:, :-1] |= right
    return boundary


def _checked_labels(labels):
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"`labels` must be integers, got {labels.dtype}. "
            "Number the objects 1..n, or call `skimage.measure.label` on a mask."
        )
    if labels.ndim != 2 or 0 in labels.shape:
        raise ValueError(f"`labels` must have shape (y, x), got {labels.shape}.")
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise ValueError(f"`labels` must not be negative, got {labels.min()}.")
    return labels


def _checked_maps(maps, channels):
    maps = np.asarray(maps)
    if maps.ndim != 3 or maps.shape[0] != len(channels) or 0 in maps.shape:
        raise ValueError(
            f"`maps` must have shape ({len(channels)}, y, x) for {', '.join(channels)}, "
            f"got {maps.shape}."
        )
    if maps.dtype.kind != "f":
        raise TypeError(f"`maps` must be floating point, got {maps.dtype}.")
    maps = maps.astype(np.float32, copy=False)
    low, high = float(maps.min()), float(maps.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"`maps` must lie in [0, 1] without NaN, got [{low}, {high}].")
    return maps


def _check_fields(representation):
    for field in fields(representation):
        value = getattr(representation, field.name)
        if field.name.endswith("threshold") and not 0 <= value <= 1:
            raise ValueError(f"`{field.name}` must lie in [0, 1], got {value}.")
        if field.name in ("min_size", "min_target_size", "smoothing") and value < 0:
            raise ValueError(f"`{field.name}` must not be negative, got {value}.")
