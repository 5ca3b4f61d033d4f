"""What becomes of labels on the way through perfect maps: the ceiling of a representation.

Labels are encoded and decoded again, and what comes back is scored against the labels themselves.
What is lost on the way is the price of the representation, whatever network predicts its maps.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vimunet.bridges import nnunet
from vimunet.protocol import Protocol
from vimunet.representations import REPRESENTATIONS, Representation, build_representation


def through_maps(labels: NDArray[np.integer], representation: Representation) -> NDArray[np.int32]:
    """Find the objects again in perfect maps of them.

    Args:
        labels: (y, x) integer labels, 0 background.
        representation: What the maps mean, and how they are read.

    Returns:
        (y, x) labels: 0 background, 1..n. Their numbers differ from those given.
    """
    return representation.decode(representation.encode(labels))


def through_classes(
    labels: NDArray[np.integer], kind: nnunet.Kind, protocol: Protocol
) -> NDArray[np.int32]:
    """Find the objects again in the classes of a perfect nnU-Net.

    Args:
        labels: (y, x) integer labels, 0 background.
        kind: "boundaries" for three classes, "boundary" for two.
        protocol: "fair" or "published", see `vimunet.bridges.nnunet`; it holds in both directions.

    Returns:
        (y, x) labels: 0 background, 1..n. Their numbers differ from those given.

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If a label is negative, the shape is not (y, x), or an argument is unknown.
    """
    classes = nnunet.to_classes(labels, kind, protocol)
    certain = nnunet.one_hot(classes, len(nnunet.CLASSES[kind]))
    return nnunet.to_labels(certain, protocol=protocol)


def perfect_maps(
    background: bool = True, classes: bool = True
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Give what turns labels into the labels that perfect maps would give, as ceilings.

    Args:
        background: Whether there is background; without it, objects fill the image (EM).
        classes: Whether to add those of nnU-Net, as this project reads them and as published.

    Returns:
        Title -> function of (y, x) labels.
    """
    known = map(build_representation, REPRESENTATIONS)
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        form.title: partial(through_maps, representation=form)
        for form in known
        if form.has_background == background and not form.labels_are_classes
    }
    if not classes:
        return ways
    kind: nnunet.Kind = "boundaries" if background else "boundary"
    ways["nnU-Net's classes"] = partial(through_classes, kind=kind, protocol="fair")
    ways["nnU-Net's classes, as published"] = partial(
        through_classes, kind=kind, protocol="published"
    )
    return ways
