"""The settings of a training: command line, plugin and recipes take them from here."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from vimunet.axes import PerAxis
from vimunet.deprecation import renamed
from vimunet.segmentation.normalization import check_normalization

_AT_LEAST_ONE = ("iterations", "batch_size", "validation_interval", "val_crops")
_NOT_NEGATIVE = ("val_images", "seed", "min_objects", "lr_patience", "workers")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training. The defaults are the recipe of the ViM-UNet paper.

    Attributes:
        output: Folder of the run, see `vimunet.training.run_folder`. New or empty, unless `resume`.
        iterations: Number of steps of the optimizer.
        max_minutes: Stop after this time, validation and earlier parts of the run included.
        crop_size: Size of the training crops in pixels, one number or one per axis.
        batch_size: Crops per iteration and process.
        lr: Learning rate of the optimizer, at the start.
        optimizer: "adam" or "adamw" (Adam with decoupled weight decay).
        weight_decay: Of the optimizer.
        schedule: How the learning rate falls: "plateau", see `lr_factor` and `lr_patience`, or
            "cosine", see `lr_min` and `lr_half_period`.
        precision: "float32" or "bfloat16" (automatic mixed precision).
        seed: Decides crops and dropped paths. (The weights are those that `network` has.)
        resume: Continue the run in `output`.
        validation_interval: Iterations between two validations.
        val_crops: Number of fixed crops for the validation loss.
        val_images: Most whole validation images to segment and score; 0 for none.
        normalization: How crops are prepared, and images later: "image", "channel" or "range".
        spacing: Size of a voxel in µm along each axis, for images that do not declare it.
        rotations: Also rotate the crops by multiples of 90 degrees; flips are always on.
        free_rotation: Probability that a crop is also rotated by any angle, see `RandomCrops`.
        augment: Also change scale, contrast, sharpness, noise and illumination of the crops.
        zoom: With `augment`, crops are magnified by a factor between these two.
        min_objects: Fewest different labels in a training crop, see `RandomCrops`.
        lr_factor: "plateau": the learning rate is multiplied by this ...
        lr_patience: ... after more than this many validations without a lower validation loss.
        lr_min: "cosine": the learning rate goes down to this along half a cosine ...
        lr_half_period: ... within so many iterations, then up again, and so on. None: within
            `iterations`, so that it only goes down.
        workers: Processes that prepare crops; None chooses, 0 prepares them in this process.
        device: "auto", "cpu", "cuda" or "mps".
        training_data: What the network is trained on, in words, for the model file.
        licence: Licence of the resulting model, for the model file.

    Source:
        Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705, trained with torch-em.
        Deviations: the validation crops are fixed instead of drawn anew each time, and the best
        model is the one with the best mSA on whole images where there are some.
    """

    output: str | Path
    iterations: int = 100_000
    max_minutes: float | None = None
    crop_size: PerAxis[int] = 512
    batch_size: int = 2
    lr: float = 1e-4
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    schedule: Literal["plateau", "cosine"] = "plateau"
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    resume: bool = False
    validation_interval: int = 1000
    val_crops: int = 32
    val_images: int = 8
    normalization: str = "image"
    spacing: PerAxis[float] | None = None
    rotations: bool = False
    free_rotation: float = 0.0
    augment: bool = False
    zoom: tuple[float, float] = (0.5, 2.0)
    min_objects: int = 0
    lr_factor: float = 0.9
    lr_patience: int = 10
    lr_min: float = 1e-5
    lr_half_period: int | None = None
    workers: int | None = None
    device: str = "auto"
    training_data: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        precision = renamed("precision", self.precision, {"bf16": "bfloat16"})
        object.__setattr__(self, "precision", precision)
        for name in ("crop_size", "spacing"):  # as JSON and command line give them
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        sides = (self.crop_size,) if isinstance(self.crop_size, int) else tuple(self.crop_size)
        numbers = [("crop_size", side) for side in sides]
        for name, number in [*numbers, *((name, getattr(self, name)) for name in _AT_LEAST_ONE)]:
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}.")
        for name in _NOT_NEGATIVE:
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"`lr` must be positive, got {self.lr}.")
        if not 0 < self.lr_factor < 1:
            raise ValueError(f"`lr_factor` must lie between 0 and 1, got {self.lr_factor}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"`weight_decay` must be 0 or more, got {self.weight_decay}.")
        if not 0 <= self.free_rotation <= 1:
            raise ValueError(f"`free_rotation` must lie in [0, 1], got {self.free_rotation}.")
        if self.schedule == "cosine" and not 0 <= self.lr_min <= self.lr:
            raise ValueError(f"`lr_min` must lie between 0 and `lr` {self.lr}, got {self.lr_min}.")
        if self.lr_half_period is not None and self.lr_half_period < 1:
            raise ValueError(f"`lr_half_period` must be at least 1, got {self.lr_half_period}.")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"`max_minutes` must be positive, got {self.max_minutes}.")
        check_normalization(self.normalization)
        for name, hint in get_type_hints(type(self)).items():
            known = get_args(hint)
            if hint_is_choice(hint) and getattr(self, name) not in known:
                raise ValueError(
                    f"Unknown {name} {getattr(self, name)!r}. Known: {', '.join(known)}."
                )

    @property
    def half_period(self) -> int | None:
        """`lr_half_period`, resolved: part of what must not change in a continued run."""
        if self.schedule == "cosine" and self.lr_half_period is None:
            return self.iterations
        return self.lr_half_period


def hint_is_choice(hint: Any) -> bool:
    """Tell whether a type is a `Literal`."""
    return getattr(hint, "__origin__", None) is Literal


def cosine_learning_rate(config: TrainConfig, iteration: int) -> float:
    """Give the learning rate of an iteration (from 0) with `schedule="cosine"`.

    lr_min + (lr - lr_min) * (1 + cos(pi * iteration / half period)) / 2

    Not torch's `CosineAnnealingLR`, which multiplies from step to step: a continued run would
    differ from an uninterrupted one in the last bits.

    Source:
        Loshchilov & Hutter 2017, "SGDR", https://arxiv.org/abs/1608.03983, equation 5, without
        restarts. VM-UNet's changes once per epoch, with a half period of 50 epochs and 300 epochs
        in all, so that it ends as high as it began.
    """
    period = config.half_period or config.iterations
    wave = (1 + math.cos(math.pi * iteration / period)) / 2
    return config.lr_min + (config.lr - config.lr_min) * wave
