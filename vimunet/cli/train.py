"""`vimunet train`: a folder of images with labels in, a folder with a trained model out."""

import argparse
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimunet.cli.arguments import (
    REPRESENTATIONS,
    Commands,
    add_command,
    add_model_options,
    add_num_classes,
    add_pairs,
    build_representation,
    model_options,
)
from vimunet.cli.tune import choose_thresholds

if TYPE_CHECKING:
    from vimunet.checkpoint import TrainedModel
    from vimunet.data import Sample

VALIDATION_FRACTION = 0.15
TRAIN_SETTINGS = (
    "output",
    "iterations",
    "max_minutes",
    "crop_size",
    "batch_size",
    "lr",
    "optimizer",
    "weight_decay",
    "schedule",
    "precision",
    "seed",
    "resume",
    "validation_interval",
    "rotations",
    "device",
)
"""Fields of `TrainConfig` that have a flag; a flag that is not given leaves the default."""


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = add_command(commands, "train", run, "train a network on images with labels")
    add_pairs(command)
    command.add_argument(
        "--model",
        required=True,
        help="a new network (vim_t, unet, ...; see `vimunet info`), or a model to continue from "
        "(nuclei, ..., or a model file)",
    )
    command.add_argument("--output", type=Path, required=True, help="folder of this training")
    command.add_argument(
        "--val-images", type=Path, help="images to validate on; default: a part of --images"
    )
    command.add_argument("--val-labels", type=Path, help="their labels")
    command.add_argument(
        "--representation",
        choices=REPRESENTATIONS,
        help="what the network learns; `boundary` is for images without background, `semantic` for "
        "labels that are classes or masks (default: boundaries)",
    )
    add_num_classes(command)
    settings = command.add_argument_group(
        "settings", "Left out, they are the paper's.", argument_default=argparse.SUPPRESS
    )
    settings.add_argument("--iterations", type=int, help="steps of the optimizer (100000)")
    settings.add_argument(
        "--max-minutes",
        type=float,
        help="stop after this time, earlier parts of a run with --resume included (no limit)",
    )
    settings.add_argument("--crop-size", type=int, help="side of the crops in pixels (512)")
    settings.add_argument("--batch-size", type=int, help="crops per iteration (2)")
    settings.add_argument("--lr", type=float, help="learning rate (1e-4)")
    settings.add_argument("--optimizer", choices=("adam", "adamw"), help="(adam)")
    settings.add_argument("--weight-decay", type=float, help="of the optimizer (0)")
    settings.add_argument(
        "--schedule",
        choices=("plateau", "cosine"),
        help="how the learning rate falls (plateau: when the validation loss does not)",
    )
    settings.add_argument("--precision", choices=("float32", "bf16"), help="(float32)")
    settings.add_argument("--seed", type=int, default=0, help="of weights and crops (0)")
    settings.add_argument(
        "--validation-interval", type=int, help="iterations between two validations (1000)"
    )
    settings.add_argument(
        "--rotations", action="store_true", help="also rotate the crops by quarter turns"
    )
    settings.add_argument("--device", help="cpu, cuda or mps (auto)")
    command.add_argument("--resume", action="store_true", help="continue the training in --output")
    command.add_argument(
        "--skip-connections", action="store_true", help="ViM-UNet with finer maps from the image"
    )
    command.add_argument("--in-channels", type=int, help="default: those of the first image")
    command.add_argument(
        "--pretrained",
        type=Path,
        help="published weights to start from: Vision Mamba's for vim_t, vim_s and vim_b, "
        "VMamba's for vmunet, Segment Anything's for unetr_*",
    )
    add_model_options(command, "variant=paper")


def run(options: argparse.Namespace) -> int:
    """Train a network on a folder of images with labels."""
    import torch

    from vimunet.checkpoint import load_model
    from vimunet.data.folder import find_pairs
    from vimunet.models import MODELS, build_model
    from vimunet.training import TrainConfig, train

    if (options.val_images is None) != (options.val_labels is None):
        raise ValueError("`--val-images` and `--val-labels` must be given together, got one.")
    start = None if options.model in MODELS else _model_to_continue(options)
    representation = (
        start.representation
        if start is not None
        else build_representation(options.representation or "boundaries", options.num_classes)
    )
    taken: Any = options if start is None else start.network
    reading = {
        "in_channels": taken.in_channels,
        "channel": options.channel,
        "image_key": options.image_key,
        "label_key": options.label_key,
        "masks": representation.labels_are_classes,
    }
    samples = find_pairs(options.images, options.labels, **reading)
    if options.val_images is not None:
        validation = find_pairs(options.val_images, options.val_labels, **reading)
    else:
        samples, validation = _split(samples)
    print(f"{len(samples)} images to train on, {len(validation)} to validate on")

    if start is not None:
        network = start.network
    else:
        in_channels = options.in_channels
        if in_channels is None:
            image, _ = samples[0].read()
            in_channels = 1 if image.ndim == 2 else image.shape[2]
        extra = model_options(options.option)
        if options.skip_connections:
            extra["skip_connections"] = True
        torch.manual_seed(options.seed)
        network = build_model(options.model, in_channels, len(representation.channels), **extra)
    if options.pretrained is not None:
        from vimunet.bridges.checkpoints import load_pretrained

        print(load_pretrained(network, options.pretrained))
    given = {name: getattr(options, name) for name in TRAIN_SETTINGS if hasattr(options, name)}
    training_data = options.images.resolve().name
    if start is not None:
        before = start.info.get("training_data") or "unknown data"
        training_data = f"{training_data}, after {options.model} ({before})"
        given["licence"] = start.info.get("licence", "")
    config = TrainConfig(training_data=training_data, **given)
    best = train(network, representation, samples, validation, config)
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first does the rest
        return 0
    print(f"Best model: {best}\nIts thresholds, chosen on the validation images:")
    choose_thresholds(
        load_model(best),
        validation,
        best.with_name("tuned.safetensors"),
        labelled_pixels_only=not representation.has_background,
        device=getattr(options, "device", "auto"),
    )
    return 0


def _model_to_continue(options: argparse.Namespace) -> "TrainedModel":
    """Load the model that a training starts from, and refuse flags that would change it."""
    from vimunet.checkpoint import load_model
    from vimunet.models import MODELS

    try:
        model = load_model(options.model)
    except FileNotFoundError as error:
        raise ValueError(
            f"`--model` must be a network or a model to continue from, got {options.model!r}. "
            f"Networks: {', '.join(sorted(MODELS))}. {error}"
        ) from error
    if model.normalization != "image":
        raise ValueError(
            f"{options.model} must have the normalization 'image' to be trained on, got "
            f"{model.normalization!r}. Train a new network instead."
        )
    own = ("representation", "num_classes", "skip_connections", "in_channels", "option")
    for flag in (*own, "pretrained"):
        if getattr(options, flag):
            raise ValueError(
                f"`--{flag.replace('_', '-')}` must be left out with --model {options.model}, "
                "which has its own."
            )
    return model


def _split(samples: Sequence["Sample"]) -> tuple[list["Sample"], list["Sample"]]:
    """Keep a part of the images for validation, chosen by name, so that it stays the same.

    The slices of a stack stay together: neighbours look alike.
    """

    def image(sample: "Sample") -> str:
        return re.sub(r"_z\d{3,}$", "", sample.name)

    names = sorted(
        {image(sample) for sample in samples},
        key=lambda name: hashlib.sha256(name.encode()).hexdigest(),
    )
    if len(names) < 2:
        raise ValueError(
            f"At least two images are needed to keep one for validation, got {len(names)} "
            "(slices of a stack, NAME_z000 and so on, count as one, because neighbours look "
            "alike). Pass --val-images and --val-labels."
        )
    kept = set(names[: max(1, round(VALIDATION_FRACTION * len(names)))])
    return (
        [sample for sample in samples if image(sample) not in kept],
        [sample for sample in samples if image(sample) in kept],
    )
