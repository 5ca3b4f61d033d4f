"""What the experiments share: one command line and one way to train from it.

The flags are the fields of `vimunet.training.TrainConfig`; their defaults are the recipe of
ViM-UNet, unless an experiment sets others.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from vimunet.bridges.checkpoints import load_pretrained
from vimunet.checkpoint import load_model
from vimunet.cli.arguments import model_options
from vimunet.data import Sample
from vimunet.models import MODELS, build_model
from vimunet.representation import Representation
from vimunet.training import TrainConfig, train

Split = Callable[[Path, Literal["train", "val", "test"]], list[Sample]]

SHIPPED = {
    "model": "vim_n",
    "batch_size": 4,
    "crop_size": 256,
    "lr": 1e-3,
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "precision": "bf16",
    "rotations": True,
    "augment": True,
    "validation_interval": 500,
    "val_images": 60,
    "stand_in": None,
}
"""Settings of the models that ship with the package."""


def parser(description: str, stand_in: bool = True) -> argparse.ArgumentParser:
    """Make the command line; the caller adds what is special to its data.

    Args:
        description: What the command is for.
        stand_in: Whether there is a stand-in for the data.
    """
    flags = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    flags.add_argument("--model", choices=sorted(MODELS), default="vim_t")
    flags.add_argument(
        "--skip-connections", action="store_true", help="our ViM-UNet option, not in the paper"
    )
    flags.add_argument("--variant", help="a published form of the network, e.g. paper")
    flags.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the network, e.g. image_size=256; may be repeated",
    )
    flags.add_argument(
        "--pretrained",
        type=Path,
        help="published weights to start from: Vision Mamba's for vim_t, vim_s and vim_b, "
        "VMamba's for vmunet, Segment Anything's for unetr_*",
    )
    flags.add_argument(
        "--start",
        type=Path,
        help="model file with the same network and the same maps to go on from",
    )
    data = flags.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=Path, help="folder with the original data set")
    if stand_in:
        data.add_argument("--stand-in", type=Path, help="folder with the small stand-in data sets")
    flags.add_argument("--output", type=Path, required=True, help="folder of this run")
    flags.add_argument("--iterations", type=int, default=TrainConfig.iterations)
    flags.add_argument("--max-minutes", type=float)
    flags.add_argument("--crop-size", type=int, default=TrainConfig.crop_size)
    flags.add_argument("--batch-size", type=int, default=TrainConfig.batch_size)
    flags.add_argument("--lr", type=float, default=TrainConfig.lr)
    flags.add_argument("--optimizer", choices=("adam", "adamw"), default=TrainConfig.optimizer)
    flags.add_argument("--weight-decay", type=float, default=TrainConfig.weight_decay)
    flags.add_argument("--schedule", choices=("plateau", "cosine"), default=TrainConfig.schedule)
    flags.add_argument("--lr-min", type=float, default=TrainConfig.lr_min, help="of the cosine")
    flags.add_argument(
        "--lr-half-period", type=int, help="iterations in which the cosine falls; default: all"
    )
    flags.add_argument("--precision", choices=("float32", "bf16"), default=TrainConfig.precision)
    flags.add_argument("--seed", type=int, default=TrainConfig.seed)
    flags.add_argument("--validation-interval", type=int, default=TrainConfig.validation_interval)
    flags.add_argument("--val-images", type=int, default=TrainConfig.val_images)
    flags.add_argument("--rotations", action="store_true", help="quarter turns, not in the papers")
    flags.add_argument(
        "--free-rotation",
        type=float,
        default=TrainConfig.free_rotation,
        help="probability of a turn by any angle",
    )
    flags.add_argument(
        "--augment", action="store_true", help="other scales, contrasts, noise, blur"
    )
    flags.add_argument(
        "--zoom",
        type=float,
        nargs=2,
        default=TrainConfig.zoom,
        metavar=("LOW", "HIGH"),
        help="smallest and largest scale of --augment",
    )
    flags.add_argument("--resume", action="store_true", help="continue the run in --output")
    return flags


def train_shipped(
    subject: str,
    representation: Representation,
    read: Split,
    name: str,
    licence: str,
    **settings: Any,
) -> None:
    """Train a model that ships with the package: the whole of its command.

    Args:
        subject: What the model is for.
        representation: What the network learns.
        read: Reads a split of the data set.
        name: What the data set is called.
        licence: Its terms.
        **settings: Flags whose defaults are not those of `SHIPPED`.
    """
    flags = parser(f"Train the model for {subject}.", stand_in=False)
    flags.set_defaults(**SHIPPED | settings)
    options = flags.parse_args()
    print(f"Best model: {run(options, representation, read, read, name, (licence, licence))}")


def run(
    options: argparse.Namespace,
    representation: Representation,
    official: Split,
    stand_in: Split,
    name: str,
    licences: tuple[str, str],
    min_objects: int = 0,
    in_channels: int = 1,
) -> Path:
    """Train as the flags say.

    Args:
        options: Parsed flags of `parser`.
        representation: What the network learns.
        official: Reads a split of the original data set from `options.data`.
        stand_in: Reads a split of the stand-in from `options.stand_in`.
        name: What the data set is called.
        licences: Terms of the original data and of the stand-in; those of the data that is used
            are stored in the model file.
        min_objects: See `TrainConfig`.
        in_channels: Channels that the network takes.

    Returns:
        The best model, `OUTPUT/best.safetensors`.
    """
    if options.data is not None:
        root, read, training_data, licence = options.data, official, name, licences[0]
    else:
        root, read = options.stand_in, stand_in
        training_data, licence = f"stand-in for {name}", licences[1]
    torch.manual_seed(options.seed)
    extra = model_options(options.option)
    if options.skip_connections:
        extra["skip_connections"] = True
    if options.variant:
        extra["variant"] = options.variant
    network = build_model(options.model, in_channels, len(representation.channels), **extra)
    if options.pretrained is not None:
        print(load_pretrained(network, options.pretrained))
    if options.start is not None:
        start = load_model(options.start)
        if start.representation.channels != representation.channels:
            raise ValueError(
                f"`--start` must be a model of {', '.join(representation.channels)}, got "
                f"{', '.join(start.representation.channels)}."
            )
        if start.normalization != "image":
            raise ValueError(
                f"`--start` must have the normalization 'image', got {start.normalization!r}."
            )
        network.load_state_dict(start.network.state_dict())
        before = start.info.get("licence", "unknown")
        training_data += f", after {start.info.get('training_data', 'unknown data')}"
        licence += f"; started from weights under: {before}"
    config = TrainConfig(
        output=options.output,
        iterations=options.iterations,
        max_minutes=options.max_minutes,
        crop_size=options.crop_size,
        batch_size=options.batch_size,
        lr=options.lr,
        optimizer=options.optimizer,
        weight_decay=options.weight_decay,
        schedule=options.schedule,
        lr_min=options.lr_min,
        lr_half_period=options.lr_half_period,
        precision=options.precision,
        seed=options.seed,
        validation_interval=options.validation_interval,
        val_images=options.val_images,
        rotations=options.rotations,
        free_rotation=options.free_rotation,
        augment=options.augment,
        zoom=tuple(options.zoom),
        resume=options.resume,
        min_objects=min_objects,
        training_data=training_data,
        licence=licence,
    )
    return train(network, representation, read(root, "train"), read(root, "val"), config)
