"""From a plane to maps and to labels, so that it can be stopped at any time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import vimunet
from vimunet.interactive.planes import Plane

if TYPE_CHECKING:
    from torch import nn

    from vimunet.representations import Representation
    from vimunet.segmentation.model_file import TrainedModel


class CancelledError(Exception):
    """The user does not want the result any more."""


@dataclass(frozen=True)
class PredictionOptions:
    """How the network is run, see `vimunet.predict`."""

    tile_size: int | None = None
    halo: int = 64
    device: str = "auto"
    precision: str = "auto"
    scale: float = 1.0


@dataclass(frozen=True)
class PlaneMaps:
    """What a network found in one plane.

    Attributes:
        maps: (m, y, x) float32 maps, in the ranges of their representation.
        missing: (y, x) bool, pixels that the image lacks and that never get a label; or None.
        spacing: Size (y, x) of a pixel in µm; None if it is not known.
    """

    maps: NDArray[np.float32]
    missing: NDArray[np.bool_] | None = None
    spacing: tuple[float, float] | None = None

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.maps.nbytes + (0 if self.missing is None else self.missing.nbytes)

    def decode(self, representation: "Representation") -> NDArray[np.int32]:
        """Read the labels from the maps: (y, x) int32, 0 background, 1..n (or classes)."""
        labels = representation.decode(self.maps, self.spacing)
        if self.missing is not None:
            labels[self.missing] = 0
        return labels


def predict_plane(
    plane: Plane,
    model: "TrainedModel",
    options: PredictionOptions,
    progress: Callable[[int, int], None],
    stop: Event,
) -> PlaneMaps:
    """Predict the maps of a plane.

    Args:
        plane: What to predict. Missing pixels are read as the mean of all others.
        model: From `vimunet.interactive.models.load_plane_model`.
        options: How to run its network.
        progress: Called as progress(done, total), in tiles.
        stop: Once it is set, the prediction ends within one layer of the network.

    Returns:
        The maps.

    Raises:
        CancelledError: If `stop` was set.
        ValueError: See `vimunet.predict`.
        TypeError: See `vimunet.predict`.
    """
    with interruptible(model.network, stop) as plane.before_read:
        missing = plane.fill_missing()
        maps = vimunet.predict(
            plane,
            model,
            scale=options.scale,
            tile_size=options.tile_size,
            halo=options.halo,
            device=options.device,
            precision=options.precision,
            progress=progress,
        )
    return PlaneMaps(maps, missing, plane.spacing)


@contextmanager
def interruptible(network: "nn.Module", stop: Event) -> Iterator[Callable[[], None]]:
    """Let any call of `network` end with `CancelledError` as soon as `stop` is set.

    One call may take minutes on a slow machine; its layers take fractions of a second. Gives the
    function that raises, for what is done besides.
    """

    def check(*_: object) -> None:
        if stop.is_set():
            raise CancelledError

    check()
    hooks = [module.register_forward_pre_hook(check) for module in network.modules()]
    try:
        yield check
    finally:
        for hook in hooks:
            hook.remove()
