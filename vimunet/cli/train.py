"""`vimunet train`: images with labels in, a folder with a trained model out.

The images are two folders, or a public data set by name. A recipe gives the defaults; each of its
settings has a flag.
"""

import argparse
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimunet.cli.arguments import (
    add_model_options,
    add_pairs,
    add_representation,
    add_settings,
    assignments,
    chosen_representation,
    flag,
    given_settings,
)
from vimunet.cli.tune import told

if TYPE_CHECKING:
    from vimunet.io.pairs import Sample
    from vimunet.models import Network
    from vimunet.representations import Representation
    from vimunet.segmentation.model_file import TrainedModel
    from vimunet.training.recipes import Recipe

VALIDATION_FRACTION = 0.15

_WITHOUT_FLAG = ("output", "val_images")
"""Settings whose flags are added by hand."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    from vimunet.datasets.splits import DATASETS
    from vimunet.training.config import TrainConfig
    from vimunet.training.recipes import RECIPES

    add_pairs(command, required=False)
    command.add_argument(
        "--dataset", choices=sorted(DATASETS), help="a public data set instead of --images"
    )
    command.add_argument(
        "--data",
        type=Path,
        help="folder of the data set (default: $VIMUNET_DATA, or data/DATASET)",
    )
    command.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        help="defaults of network, maps and settings (default: that of the data set, or published)",
    )
    command.add_argument(
        "--model",
        help="a new network (vim_t, unet, ...; see `vimunet info`), or a model to continue from "
        "(nuclei, ..., or a model file); default: that of the recipe",
    )
    command.add_argument(
        "--output", type=Path, help="folder of this training (default: runs/DATASET_MODEL)"
    )
    command.add_argument(
        "--val-images", type=Path, help="images to validate on; default: a part of --images"
    )
    command.add_argument("--val-labels", type=Path, help="their labels")
    command.add_argument(
        "--axes", choices=("yx", "zyx"), default="yx", help="zyx trains on volumes (default: yx)"
    )
    add_representation(
        command,
        "what the network learns; `boundary` is for images without background, `semantic` for "
        "labels that are classes or masks (default: that of the recipe)",
    )
    add_settings(command, TrainConfig, _WITHOUT_FLAG)
    command.add_argument(
        "--val-scored",
        type=int,
        metavar="N",
        help="most whole validation images to segment and score at each validation; 0 for none",
    )
    command.add_argument(
        "--skip-connections", action="store_true", help="ViM-UNet with finer maps from the image"
    )
    command.add_argument("--variant", help="a published form of the network, e.g. paper")
    command.add_argument("--in-channels", type=int, help="default: those of the first image")
    command.add_argument(
        "--pretrained",
        type=Path,
        help="published weights to start from: Vision Mamba's for vim_t, vim_s and vim_b, "
        "VMamba's for vmunet, Segment Anything's for unetr_*",
    )
    add_model_options(command, "conv_stem=true")


def run(options: argparse.Namespace) -> int:
    """Train a network on images with labels."""
    from vimunet.segmentation.model_file import load_model, save_model
    from vimunet.training.config import TrainConfig
    from vimunet.training.loop import train
    from vimunet.training.tuning import tune

    _check_data(options)
    recipe = _recipe(options)
    given = given_settings(options, TrainConfig, _WITHOUT_FLAG)
    settings = {**recipe.settings, **given}
    if options.val_scored is not None:
        settings["val_images"] = options.val_scored
    start = _model_to_continue(options, recipe)
    if start is None:
        representation = chosen_representation(options) or recipe.build_representation()
    else:
        representation = start.representation
        settings.setdefault("normalization", start.normalization)
    samples, validation, origin = _data(options, representation, start)
    print(f"{len(samples)} images to train on, {len(validation)} to validate on")
    if start is None:
        network = _new_network(options, recipe, representation, samples, settings.get("seed", 0))
    else:
        network = start.network
        origin["licence"] = start.info.get("licence", "") or origin["licence"]
    if options.pretrained is not None:
        from vimunet.bridges.checkpoints import load_pretrained

        print(load_pretrained(network, options.pretrained))
    name = options.model or recipe.model
    output = options.output or Path("runs") / f"{options.dataset}_{Path(name).stem}"
    config = TrainConfig(output=output, **origin | settings)
    best = train(network, representation, samples, validation, config)
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first does the rest
        return 0
    print(f"Best model: {best}\nIts thresholds, chosen on the validation images:")
    tuned = tune(load_model(best), validation, device=config.device, progress=True)
    path = best.with_name("tuned.safetensors")
    save_model(path, tuned.model)
    print(f"{told(tuned, len(validation))}\nModel with these thresholds: {path}")
    return 0


def _check_data(options: argparse.Namespace) -> None:
    """Refuse flags of which only one of two kinds may be given."""
    folders = (options.images, options.labels)
    if (options.val_images is None) != (options.val_labels is None):
        raise ValueError("`--val-images` and `--val-labels` must be given together, got one.")
    if options.dataset is None and None in folders:
        raise ValueError("Give --images and --labels, or a public data set: --dataset.")
    if options.dataset is not None and folders != (None, None):
        raise ValueError("`--images` and `--labels` must be left out with --dataset.")
    if options.data is not None and options.dataset is None:
        raise ValueError("`--data` is the folder of a --dataset. Give its name too.")
    if options.dataset is None and options.output is None:
        raise ValueError("`--output` must be given, the folder of this training.")


def _recipe(options: argparse.Namespace) -> "Recipe":
    """Choose the defaults; without a recipe and a data set, a network must be chosen."""
    from vimunet.datasets.splits import DATASETS
    from vimunet.training.recipes import RECIPES

    if options.recipe is None and options.dataset is None and options.model is None:
        raise ValueError(
            "`--model` must be a network (see `vimunet info`) or a model to continue from, or "
            "choose a recipe: --recipe."
        )
    name = options.recipe or (
        "published" if options.dataset is None else DATASETS[options.dataset].recipe
    )
    return RECIPES[name]


def _model_to_continue(options: argparse.Namespace, recipe: "Recipe") -> "TrainedModel | None":
    """Load the model that a training starts from, and refuse flags that would change it."""
    from vimunet.models import MODELS
    from vimunet.segmentation.model_file import load_model

    name = options.model or recipe.model
    if name in MODELS:
        return None
    try:
        model = load_model(name)
    except FileNotFoundError as error:
        raise ValueError(
            f"`--model` must be a network or a model to continue from, got {name!r}. "
            f"Networks: {', '.join(sorted(MODELS))}. {error}"
        ) from error
    own = ("representation", "representation_option", "num_classes", "skip_connections")
    for field in (*own, "variant", "in_channels", "option", "pretrained"):
        if getattr(options, field):
            raise ValueError(
                f"`{flag(field)}` must be left out with --model {name}, which has its own."
            )
    return model


def _data(
    options: argparse.Namespace,
    representation: "Representation",
    start: "TrainedModel | None",
) -> tuple[list["Sample"], list["Sample"], dict[str, str]]:
    """Read what to train and to validate on, and say where it comes from."""
    from vimunet.datasets.splits import DATASETS, find_dataset
    from vimunet.io.pairs import find_pairs

    before = ""
    if start is not None:
        before = f", after {options.model} ({start.info.get('training_data') or 'unknown data'})"
    if options.dataset is not None:
        data = DATASETS[options.dataset]
        folder = find_dataset(options.dataset, options.data)
        origin = {"training_data": f"{data.title}{before}", "licence": data.licence}
        return data.read(folder, "train"), data.read(folder, "val"), origin
    reading: dict[str, Any] = {
        "in_channels": options.in_channels if start is None else start.network.in_channels,
        "channel": options.channel,
        "image_key": options.image_key,
        "label_key": options.label_key,
        "masks": representation.labels_are_classes,
        "axes": options.axes if start is None else start.axes,
    }
    origin = {"training_data": f"{options.images.resolve().name}{before}", "licence": ""}
    samples = find_pairs(options.images, options.labels, **reading)
    if options.val_images is not None:
        return samples, find_pairs(options.val_images, options.val_labels, **reading), origin
    return *_split(samples), origin


def _new_network(
    options: argparse.Namespace,
    recipe: "Recipe",
    representation: "Representation",
    samples: Sequence["Sample"],
    seed: int,
) -> "Network":
    """Build the network that is asked for, with fresh weights."""
    import torch

    from vimunet.models import build_model

    in_channels = options.in_channels
    if in_channels is None and options.dataset is not None:
        in_channels = recipe.in_channels
    elif in_channels is None:
        image, _ = samples[0].read()
        in_channels = 1 if image.ndim == len(options.axes) else image.shape[-1]
    extra = assignments("--option", options.option)
    if options.skip_connections:
        extra["skip_connections"] = True
    if options.variant:
        extra["variant"] = options.variant
    if options.axes != "yx":
        extra["axes"] = options.axes
    torch.manual_seed(seed)
    name = options.model or recipe.model
    return build_model(name, in_channels, len(representation.channels), **extra)


def _split(samples: Sequence["Sample"]) -> tuple[list["Sample"], list["Sample"]]:
    """Keep a part of the images for validation, chosen by name, so that it stays the same.

    The slices of a stack stay together: neighbours look alike.
    """

    def image(sample: "Sample") -> str:
        return sample.source or sample.name

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
