"""Measure planes of labels one after the other, so that it can be stopped between them."""

from collections.abc import Callable, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from vimunet.axes import Box
from vimunet.interactive.planes import Planes
from vimunet.interactive.prediction import CancelledError
from vimunet.io.image import Index

if TYPE_CHECKING:
    from vimunet.objects.measurement import Table


def measure_planes(
    labels: Any,
    indices: Sequence[Index],
    image: Planes | None,
    box: Box | None,
    spacing: tuple[float, float] | None,
    progress: Callable[[int, int], None],
    stop: Event,
) -> "Table":
    """Measure the objects of some planes.

    Args:
        labels: (..., y, x) integer labels, an array or anything indexed like one.
        indices: Which planes, at least one.
        image: Planes of the same leading axes; None: no intensities.
        box: The part of each plane of the image that the labels cover; None: all.
        spacing: Size (y, x) of a pixel in µm; None: in pixels.
        progress: Called as progress(done, total) before each plane.
        stop: Once it is set, no other plane is measured.

    Returns:
        What `vimunet.measure` gives. The columns before it say in which plane an object is, along
        each axis that is longer than 1: `slice` or, of several leading axes, `slice_0`, ...

    Raises:
        CancelledError: If `stop` was set.
        ValueError: If the shapes do not agree.
    """
    from vimunet.objects.measurement import joined, measure  # loads the readers of all formats

    tables: list[Table] = []
    for number, index in enumerate(indices):
        progress(number, len(indices))
        if stop.is_set():
            raise CancelledError
        pixels = None if image is None else image.plane(image.at(index), box).read()
        table = measure(np.asarray(labels[index]), pixels, spacing=spacing)
        places = {
            f"slice_{axis}" if len(index) > 1 else "slice": np.full(len(table["label"]), place)
            for axis, place in enumerate(index)
            if labels.shape[axis] > 1
        }
        tables.append({**places, **table})
    return joined(tables)
