"""Recipes by name: which network learns what, and with which settings.

`vimunet train --recipe NAME` takes one as its defaults; what is given besides wins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vimunet.models import Network, build_model
from vimunet.representations import Representation, build_representation


@dataclass(frozen=True)
class Recipe:
    """The defaults of a training.

    Attributes:
        purpose: What it is for, in a line.
        model: Name of the network.
        representation: Name of what it learns.
        settings: Fields of `TrainConfig` that differ from its defaults.
        representation_options: Fields of the representation.
        in_channels: Channels that the network takes.
    """

    purpose: str
    model: str = "vim_t"
    representation: str = "boundaries"
    settings: Mapping[str, Any] = field(default_factory=dict)
    representation_options: Mapping[str, Any] = field(default_factory=dict)
    in_channels: int = 1

    def build_representation(self) -> Representation:
        """Build what the network learns."""
        return build_representation(self.representation, **self.representation_options)

    def build_model(self, **options: Any) -> Network:
        """Build the network with fresh weights; draw a seed before."""
        channels = len(self.build_representation().channels)
        return build_model(self.model, self.in_channels, channels, **options)


_SHIPPED = {
    "batch_size": 4,
    "crop_size": 256,
    "lr": 1e-3,
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "precision": "bfloat16",
    "rotations": True,
    "augment": True,
    "validation_interval": 500,
    "val_images": 60,
}
"""Of the models that come with the package."""

_VMUNET = {
    "batch_size": 32,
    "lr": 1e-3,
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "val_images": 64,
}

RECIPES: dict[str, Recipe] = {
    "published": Recipe("the ViM-UNet paper's training, for any images"),
    "livecell": Recipe("cells in phase contrast, as in the ViM-UNet paper"),
    "cremi": Recipe(
        "neurites in sections of electron microscopy, as in the ViM-UNet paper",
        representation="boundary",
        settings={"min_objects": 2},
    ),
    "isic": Recipe(
        "skin lesions, as in the VM-UNet paper; 17,700 iterations are 300 epochs of ISIC 2018",
        representation="semantic",
        settings={**_VMUNET, "iterations": 17_700, "crop_size": 256, "free_rotation": 0.5},
        in_channels=3,
    ),
    "synapse": Recipe(
        "eight abdominal organs in slices of CT, as in the VM-UNet paper; 20,700 iterations are "
        "300 epochs. Its turns by up to 20 degrees are not among ours",
        representation="semantic",
        settings={**_VMUNET, "iterations": 20_700, "crop_size": 224, "rotations": True},
        representation_options={"num_classes": 9},
    ),
    "nuclei": Recipe(
        "the model `nuclei` that comes with the package",
        "vim_n",
        settings={**_SHIPPED, "iterations": 10_000, "zoom": (0.5, 1.8)},
    ),
    "phase": Recipe(
        "the model `phase` that comes with the package",
        "vim_n",
        "distances",
        {**_SHIPPED, "iterations": 12_000, "zoom": (0.7, 1.4)},
    ),
    "neurites": Recipe(
        "the model `neurites` that comes with the package",
        "vim_n",
        "boundary",
        {**_SHIPPED, "iterations": 3000, "crop_size": 192, "batch_size": 6, "zoom": (1.0, 2.5)},
    ),
}
"""By name; those of data sets have theirs."""
