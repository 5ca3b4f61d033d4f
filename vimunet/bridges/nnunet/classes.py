"""Objects as classes of pixels, and back.

Axis letters: k classes, y rows, x columns.
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from vimunet.labels import renumbered
from vimunet.protocol import Protocol, checked_protocol
from vimunet.representations.boundaries import Boundaries
from vimunet.representations.watershed import connected_components, depth_inside, largest_per_label

Kind = Literal["boundaries", "boundary"]

# nnU-Net's name of each class, background first. Readers know the boundary by its name.
CLASSES: dict[str, tuple[str, ...]] = {
    "boundaries": ("background", "interior", "boundary"),
    "boundary": ("background", "boundary"),
}
MIN_INTERIOR_RADIUS = 2.0  # narrower pieces of interior become boundary; unit: pixels
_BOUNDARY_NAME = re.compile("bound|border|membrane|contour|edge|outline", re.IGNORECASE)


def to_classes(
    labels: ArrayLike, representation: Kind = "boundaries", protocol: Protocol = "fair"
) -> NDArray[np.uint8]:
    """Turn labelled objects into the classes that nnU-Net shall predict.

    "boundaries", fair: 1 interior, 2 the outermost pixels inside each object. Pieces of interior
    that no circle of 2 pixels fits into are boundary too, since each would come back as an object
    of its own; an object keeps its widest piece in any case. An object without interior is
    interior where it touches no other object; if it touches everywhere, its middle is.
    "boundaries", published: 1 foreground, 2 the pixels on both sides of every outline, background
    included.
    "boundary", for images where objects fill everything: 1 on both sides of every outline.
    Fair: 1 on all unlabelled pixels too, the rest of a thick membrane.

    Args:
        labels: (y, x) integer labels, 0 background; ids need not be consecutive.
        representation: "boundaries" for three classes, "boundary" for two.
        protocol: "fair" or "published".

    Returns:
        (y, x) classes.

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If a label is negative, the shape is not (y, x), or an argument is unknown.

    Source:
        "published": Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705, in the code
        of its comparison with nnU-Net.

    Examples:
        >>> to_classes(np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]))
        array([[0, 0, 0, 0],
               [0, 2, 2, 2],
               [0, 2, 1, 1],
               [0, 2, 1, 1]], dtype=uint8)
    """
    protocol = check_choices(representation, protocol)
    labels = np.asarray(labels)
    foreground, outline = Boundaries().encode(labels) > 0
    if representation == "boundary":
        return (outline if protocol == "published" else outline | ~foreground).astype(np.uint8)
    if protocol == "published":
        return np.where(outline, 2, foreground).astype(np.uint8)
    interior = _one_interior_each(renumbered(labels), foreground & ~outline)
    return np.where(interior, 1, 2 * foreground).astype(np.uint8)


def _one_interior_each(objects: NDArray, interior: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop narrow pieces of interior, and give some to the objects 1..n that have none."""
    pieces = connected_components(interior)
    count = int(pieces.max())
    radius = largest_per_label(pieces, depth_inside(interior), count)
    area = np.bincount(pieces.ravel(), minlength=count + 1)
    owner = np.zeros(count + 1, np.intp)
    owner[pieces] = objects
    order = np.lexsort((area, radius, owner))  # the widest piece of each object comes last
    kept = radius >= MIN_INTERIOR_RADIUS
    kept[order[np.append(np.diff(owner[order]) > 0, True)]] = True
    kept[0] = False
    interior = kept[pieces]

    without = np.bincount(objects[interior], minlength=objects.max() + 1) == 0
    without[0] = False
    if not without.any():
        return interior
    others = np.where(objects == 0, objects.max() + 1, objects)
    alone = (ndimage.maximum_filter(objects, 3) <= objects) & (
        ndimage.minimum_filter(others, 3) >= objects
    )
    interior |= without[objects] & alone
    without[objects[interior]] = False
    for i in np.flatnonzero(without):
        rows, columns = np.nonzero(objects == i)
        to_middle = np.hypot(rows - rows.mean(), columns - columns.mean())
        interior[rows[to_middle.argmin()], columns[to_middle.argmin()]] = True
    return interior


def one_hot(classes: NDArray[np.integer], count: int) -> NDArray[np.float32]:
    """Turn (y, x) classes into their (count, y, x) probabilities, 0 and 1."""
    return (classes == np.arange(count)[:, None, None]).astype(np.float32)


def to_labels(
    probabilities: NDArray,
    *,
    protocol: Protocol = "fair",
    classes: Sequence[str] | None = None,
    representation: Boundaries | None = None,
) -> NDArray[np.int32]:
    """Turn the classes that nnU-Net predicts into labelled objects.

    Fair: foreground is interior or boundary, and `Boundaries` reads the two maps. Published: the
    most probable class counts, and boundary is not foreground. Where the boundary is the only
    class, everything is foreground. If there is no boundary among two classes, each connected piece
    of the other is an object.

    Args:
        probabilities: (k, y, x) probability of each class, 0 to 1. Hard classes are 0 and 1.
        protocol: "fair" or "published".
        classes: Name of each class, background first; None for those of `write_dataset`.
        representation: Other thresholds than the default's; only for "fair".

    Returns:
        (y, x) labels: 0 background, 1..n.

    Raises:
        ValueError: If there are not two or three classes, an argument is unknown, or a value is
            not in [0, 1].
    """
    protocol = check_choices("boundaries", protocol)
    if classes is None:
        classes = next((c for c in CLASSES.values() if len(c) == len(probabilities)), ())
    boundary = [i for i, name in enumerate(classes) if i and _BOUNDARY_NAME.search(name)]
    if len(classes) not in (2, 3) or len(boundary) > 1 or (len(classes) == 3 and not boundary):
        raise ValueError(
            "`classes` must be background, interior and boundary, or background and one of them, "
            f"got {len(probabilities)}: {', '.join(classes) or 'no names'}."
        )
    if len(classes) != len(probabilities):
        raise ValueError(
            f"`probabilities` must have one map per class, {', '.join(classes)}, got "
            f"{len(probabilities)} maps."
        )
    if protocol == "published":
        probabilities = one_hot(probabilities.argmax(axis=0), len(classes))
    if not boundary:
        return connected_components(probabilities[1] > 0.5)
    edge = probabilities[boundary[0]]
    maps = edge[None]
    if len(classes) == 3:
        interior = probabilities[3 - boundary[0]]
        inside = interior if protocol == "published" else np.minimum(interior + edge, 1)
        maps = np.stack([inside, edge])
    if protocol == "published":
        return Boundaries(foreground=len(maps) == 2).published().decode(maps)
    return (representation or Boundaries(foreground=len(maps) == 2)).decode(maps)


def check_choices(representation: str, protocol: str) -> Protocol:
    """Raise if the kind of classes or the protocol is unknown; give the protocol."""
    if representation not in CLASSES:
        raise ValueError(
            f"Unknown `representation` {representation!r}. Known: {', '.join(CLASSES)}."
        )
    return checked_protocol(protocol)
