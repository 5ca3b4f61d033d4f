"""The contract of a representation: what the maps of a network mean, in both directions.

Everything that any part of the project wants to know of maps is declared here, and asked of the
representation: nobody outside looks at its class, at the name of a channel or at the number of
maps. A new one is a frozen dataclass that inherits from `Representation`, in a file of its own, and
a line in `REPRESENTATIONS`.

Axis letters: b images, m maps, z sections, y rows, x columns. Maps are `(m, [z,] y, x)`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vimunet.axes import SPATIAL_AXES, PerAxis, SpatialAxes, Turn, relative_spacing
from vimunet.deprecation import warn
from vimunet.labels import checked_labels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tunable:
    """A field of a representation that decides how maps are read, and may be tuned.

    Attributes:
        field: Its name.
        title: What people see.
        hint: What less and more of it do, in a sentence.
        low: Lowest sensible value.
        high: Highest sensible value.
        step: Least difference that matters; a whole number for whole numbers.
        grid: Values to try on validation images; none if only people tune it.
    """

    field: str
    title: str
    hint: str
    low: float
    high: float
    step: float
    grid: tuple[float, ...] = ()


@dataclass(frozen=True)
class Landscape:
    """What the maps of an image say about where one more object could be.

    Attributes:
        heights: ([z,] y, x) in [0, 1], low inside objects and high between them; None if no map
            tells.
        foreground: ([z,] y, x) in [0, 1], high in objects; None if no map tells.
    """

    heights: NDArray[np.float32] | None = None
    foreground: NDArray[np.float32] | None = None


class Representation(ABC):
    """What the maps of a network mean; subclasses are frozen dataclasses.

    Their fields are what a model file keeps. Those in `tunable` decide how maps are read; the
    others decide which maps there are.

    Attributes:
        name: In model files and on the command line.
        axes: Of the images it works for.
        labels_are_classes: Whether the values of labels mean something, so that they are never
            renumbered. Otherwise they number objects.
        score: What tells how good it is, a key of `vimunet.scores.SCORES`.
        tools: Other tools whose networks predict these maps, as `vimunet.bridges` calls them.
    """

    name: ClassVar[str]
    axes: ClassVar[tuple[SpatialAxes, ...]] = SPATIAL_AXES
    labels_are_classes: ClassVar[bool] = False
    score: ClassVar[str] = "mSA"
    tools: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def title(self) -> str:
        """The maps in words, "foreground and boundary maps" for example."""

    @property
    @abstractmethod
    def channels(self) -> tuple[str, ...]:
        """Name of each map."""

    @property
    def has_background(self) -> bool:
        """Whether a pixel may belong to no object; if not, unlabelled pixels are not judged."""
        return True

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """Lowest and highest value of each map."""
        return ((0.0, 1.0),) * len(self.channels)

    @property
    def tunable(self) -> tuple[Tunable, ...]:
        """The fields worth tuning."""
        return ()

    @property
    def min_size(self) -> float:
        """Objects with fewer pixels are no objects. Unit: pixels (cubes of the width of one)."""
        return 0

    @abstractmethod
    def encode(
        self, labels: ArrayLike, spacing: PerAxis[float] | None = None
    ) -> NDArray[np.float32]:
        """Turn labels into the maps that a network shall predict.

        Args:
            labels: ([z,] y, x) integer labels, 0 background; ids need not be consecutive.
            spacing: Size of a voxel along each axis; only its proportions count. None for cubes.

        Returns:
            (m, [z,] y, x) maps in the order of `channels`, in their `ranges`.

        Raises:
            TypeError: If the labels are not integers.
            ValueError: If a label is negative or the axes are not those of an image.
        """

    @abstractmethod
    def decode(self, maps: ArrayLike, spacing: PerAxis[float] | None = None) -> NDArray[np.int32]:
        """Turn maps into labels.

        Args:
            maps: (m, [z,] y, x) maps in the order of `channels`, in their `ranges`.
            spacing: Size of a voxel along each axis; only its proportions count. None for cubes.

        Returns:
            ([z,] y, x) labels: 0 background, 1..n.

        Raises:
            TypeError: If the maps are not floating point.
            ValueError: If the shape does not fit `channels` or a value is not in its range.
        """

    @abstractmethod
    def loss(self, logits: "Tensor", target: "Tensor") -> "Tensor":
        """Measure how far a network is from its target.

        Args:
            logits: (b, m, [z,] y, x) output of the network.
            target: (b, m, [z,] y, x) of `encode`.

        Returns:
            () loss, to be minimised.
        """

    def activate(self, logits: "Tensor") -> "Tensor":
        """Turn the output of a network into maps: (b, m, [z,] y, x) float32."""
        return logits.float().sigmoid()

    @classmethod
    def for_maps(cls, count: int) -> Self:
        """Give the representation of this kind with `count` maps, another number than usual.

        Raises:
            ValueError: If there is none; only a kind that has any number of maps overrides this.
        """
        made = cls()
        raise ValueError(
            f"Representation {cls.name!r} must have {len(made.channels)} maps "
            f"({', '.join(made.channels)}), got {count}."
        )

    def published(self) -> Self:
        """Give the recipe of the publication for the same maps."""
        return self

    @classmethod
    def paper(cls, **options: Any) -> Self:
        """Give the recipe of the publication; the old name of `published`."""
        warn(f"`{cls.__name__}.paper()`", f"`{cls.__name__}().published()`")
        return cls(**options).published()

    def nothing(self) -> NDArray[np.float32]:
        """Give the value of each map, (m,), where there is nothing to see."""
        return self.encode(np.zeros((1, 1), np.uint8))[:, 0, 0]

    def turned(self, maps: Any, turn: Turn) -> Any:
        """Give the maps of the turned image, from those of the image.

        Maps of scalars move with their pixels. Where a map tells a direction or looks at a
        neighbour, override this; see `turned_vectors`.

        Args:
            maps: (..., m, [z,] y, x) array or tensor.
            turn: How the image is turned.
        """
        return turn(maps)

    def landscape(self, maps: NDArray[np.float32]) -> Landscape:
        """Read from (m, [z,] y, x) maps where one more object could be, for corrections by hand."""
        return Landscape()

    def threshold_grid(self) -> dict[str, tuple[float, ...]]:
        """Give the fields worth tuning on validation images, and the values to try."""
        return {tunable.field: tunable.grid for tunable in self.tunable if tunable.grid}

    def tuned(self, **values: float) -> Self:
        """Read maps in another way.

        Raises:
            ValueError: If a field is not tunable, or its value is out of range.
        """
        known = [tunable.field for tunable in self.tunable]
        for name in values:
            if name not in known:
                raise ValueError(
                    f"Unknown field {name!r} of representation {self.name!r}. Known: "
                    f"{', '.join(known) or 'none that can be tuned'}."
                )
        return replace(self, **values)  # type: ignore[type-var]

    def smallest(self, spacing: PerAxis[float] | None, ndim: int) -> float:
        """Give `min_size` as a number of voxels."""
        return self.min_size / math.prod(relative_spacing(spacing, ndim))

    def config(self) -> dict[str, Any]:
        """Describe this for JSON; `representation_from_config` rebuilds it."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]

    def _checked_labels(self, labels: ArrayLike) -> NDArray[Any]:
        checked = checked_labels("labels", labels)
        self._check_axes("labels", checked.shape)
        return checked

    def _checked_maps(self, maps: ArrayLike) -> NDArray[np.float32]:
        maps = np.asarray(maps)
        if maps.dtype.kind != "f":
            raise TypeError(f"`maps` must be floating point, got {maps.dtype}.")
        if maps.ndim < 3 or len(maps) != len(self.channels) or maps.size == 0:
            raise ValueError(
                f"`maps` must have shape ({len(self.channels)}, [z,] y, x) for "
                f"{', '.join(self.channels)}, got {maps.shape}."
            )
        self._check_axes("maps", maps.shape[1:])
        if np.isnan(maps).any():
            raise ValueError("`maps` must not contain NaN.")
        for name, map_, (low, high) in zip(self.channels, maps, self.ranges, strict=True):
            if map_.min() < low or map_.max() > high:
                raise ValueError(
                    f"`maps` must lie in [{low:g}, {high:g}], got [{map_.min():.3g}, "
                    f"{map_.max():.3g}] of {name}. Apply the activation to logits first."
                )
        return maps.astype(np.float32, copy=False)

    def _check_axes(self, name: str, shape: tuple[int, ...]) -> None:
        if len(shape) not in map(len, self.axes):
            known = " or ".join(f"({', '.join(axes)})" for axes in self.axes)
            raise ValueError(f"`{name}` must have the axes {known}, got shape {shape}.")

    def _check_thresholds(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")

    def _check_not_negative(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be a number from 0 up, got {value}.")


def turned_vectors(maps: Any, turn: Turn) -> Any:
    """Turn maps that are the components of one vector along each axis, z, y and x in this order.

    Args:
        maps: (..., d, [z,] y, x) array or tensor, one component for each of the d axes.
        turn: How the image is turned.

    Returns:
        The same shape: vectors at their new places, pointing into their new directions.

    Examples:
        A vector to the right points downwards after a swap of the axes, and stays what it is when
        the rows are reversed:

        >>> right = np.array([0.0, 1.0]).reshape(2, 1, 1)
        >>> turned_vectors(right, Turn((1, 0), (False, False))).ravel()
        array([1., 0.])
        >>> turned_vectors(right, Turn((0, 1), (True, False))).ravel() + 0
        array([0., 1.])
    """
    axis = maps.ndim - len(turn.order) - 1
    moved = turn(maps)
    before = (slice(None),) * axis
    swapped = moved[(*before, list(turn.order))]
    signs = np.array([-1.0 if flip else 1.0 for flip in turn.flipped], np.float32)
    signs = signs.reshape(-1, *[1] * len(turn.order))
    return swapped * (signs if isinstance(maps, np.ndarray) else swapped.new_tensor(signs))


def field_names(kind: type[Representation]) -> list[str]:
    """List the fields of a kind of representation."""
    return sorted(field.name for field in fields(kind))  # type: ignore[arg-type]
