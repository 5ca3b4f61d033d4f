"""What each map means, in both directions: labels to maps for training, maps to labels after.

A representation names its `channels`, `encode`s labels into the target of a network, `decode`s the
maps of a network into labels, and declares everything else that anybody asks about maps (see
`base.py`). Nothing else in the project knows which channel is which. Here is no network and no
image.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from vimunet.representations.base import (
    Landscape,
    Representation,
    Tunable,
    field_names,
    turned_vectors,
)
from vimunet.representations.boundaries import Boundaries
from vimunet.representations.distances import Distances
from vimunet.representations.semantic import Semantic

__all__ = [
    "REPRESENTATIONS",
    "Boundaries",
    "Distances",
    "Landscape",
    "Representation",
    "Semantic",
    "Tunable",
    "build_representation",
    "representation_for",
    "representation_from_config",
    "representation_with",
    "turned_vectors",
]

REPRESENTATIONS: dict[str, Callable[..., Representation]] = {
    "boundaries": Boundaries,
    "boundary": partial(Boundaries, foreground=False),
    "distances": Distances,
    "semantic": Semantic,
}
"""By the name that `--representation` takes; several names may be forms of one kind."""


def build_representation(name: str, **options: Any) -> Representation:
    """Build what `--representation` names.

    Args:
        name: A key of `REPRESENTATIONS`.
        **options: Fields of the representation.

    Raises:
        ValueError: If the name, a field or its value is unknown. The message lists the known.

    Examples:
        >>> build_representation("boundary").channels
        ('boundary',)
    """
    if name not in REPRESENTATIONS:
        raise ValueError(
            f"Unknown representation {name!r}. Known: {', '.join(sorted(REPRESENTATIONS))}."
        )
    _check_fields(name, _kind(name), options)
    return REPRESENTATIONS[name](**options)


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
    kinds = {_kind(key).name: _kind(key) for key in REPRESENTATIONS}
    if name not in kinds:
        raise ValueError(f"Unknown representation {name!r}. Known: {', '.join(sorted(kinds))}.")
    _check_fields(name, kinds[name], options)
    return kinds[name](**options)


def representation_with(name: str, count: int) -> Representation:
    """Give the representation of a name with `count` maps.

    Raises:
        ValueError: If there is none.
    """
    made = build_representation(name)
    if len(made.channels) == count:
        return made
    return type(made).for_maps(count)


def representation_for(tool: str, count: int) -> Representation | None:
    """Give the representation of which a network of another tool predicts `count` maps, if any."""
    for name in REPRESENTATIONS:
        made = build_representation(name)
        if tool in made.tools and len(made.channels) == count:
            return made
    return None


def _kind(name: str) -> type[Representation]:
    builder: Any = REPRESENTATIONS[name]
    return getattr(builder, "func", builder)


def _check_fields(name: str, kind: type[Representation], options: dict[str, Any]) -> None:
    known = field_names(kind)
    for field in options:
        if field not in known:
            raise ValueError(
                f"Unknown field {field!r} of representation {name!r}. Known: {', '.join(known)}."
            )
