"""What there is to choose from on this machine, models and devices; and how a model is loaded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import vimunet

if TYPE_CHECKING:
    from vimunet.segmentation.model_file import TrainedModel


@dataclass(frozen=True)
class Available:
    """What can be chosen.

    Attributes:
        models: Name of each model that comes with the package, and what it is for.
        devices: What `vimunet.predict` takes as device, "auto" first.
        fastest: The device that "auto" stands for.
    """

    models: dict[str, str]
    devices: tuple[str, ...]
    fastest: str


def find_available() -> Available:
    """Look what there is; loads PyTorch, which takes seconds."""
    import torch

    from vimunet.segmentation.devices import choose_device

    devices = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return Available(vimunet.embedded_models(), tuple(devices), str(choose_device()))


def load_plane_model(choice: str) -> "TrainedModel":
    """Load a model that segments planes.

    Args:
        choice: Name of an embedded model, or path of a file.

    Raises:
        FileNotFoundError: See `vimunet.load_model`.
        ValueError: See `vimunet.load_model`; or if the model segments volumes.
    """
    model = vimunet.load_model(choice)
    if model.axes != "yx":
        raise ValueError(
            f"Model {choice} must segment images to be used here, but it segments volumes. Use it "
            "with the command `vimunet segment` or with `vimunet.segment`, and open the labels."
        )
    return model
