"""`vimunet tune`: the thresholds of a model, chosen on images with labels."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimunet.cli.arguments import (
    Commands,
    add_command,
    add_labelled_pixels_only,
    add_pairs,
    add_prediction_options,
    check_model_file,
    prediction_options,
)

if TYPE_CHECKING:
    from vimunet.checkpoint import TrainedModel
    from vimunet.data import Sample
    from vimunet.representation import Representation


_NO_MATTER = ("device", "batch_size")
"""Options of `predict` to which the thresholds do not belong."""


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = add_command(
        commands, "tune", run, "choose the thresholds of a model on images with labels"
    )
    command.add_argument("--model", required=True, help="nuclei, ... or a model file")
    add_pairs(command)
    command.add_argument("--output", type=Path, help="model file to write")
    command.add_argument("--overwrite", action="store_true", help="replace an existing --output")
    command.add_argument("--in-place", action="store_true", help="replace the file of --model")
    add_labelled_pixels_only(command)
    add_prediction_options(command)


def run(options: argparse.Namespace) -> int:
    """Choose thresholds on images with labels and store them in a model file."""
    from vimunet.checkpoint import load_model
    from vimunet.data.folder import find_pairs
    from vimunet.prediction import choose_device

    if (options.output is None) != options.in_place:
        raise ValueError("Give either --output FILE or --in-place, to say where the model goes.")
    if options.in_place and not Path(options.model).is_file():
        raise ValueError(f"`--in-place` must come with a model file, got {options.model}.")
    path = Path(options.model) if options.in_place else options.output
    check_model_file(path, options.in_place or options.overwrite)
    model = load_model(options.model)
    network: Any = model.network
    classes = model.representation.labels_are_classes
    if classes and options.labelled_pixels_only:
        raise ValueError("`--labelled-pixels-only` must be left out for classes.")
    samples = find_pairs(
        options.images,
        options.labels,
        image_key=options.image_key,
        label_key=options.label_key,
        masks=classes,
        in_channels=network.in_channels,
        channel=options.channel,
    )
    model.network.to(choose_device(options.device))
    unjudged = options.labelled_pixels_only or not model.representation.has_background
    choose_thresholds(model, samples, path, unjudged, **prediction_options(options))
    return 0


def choose_thresholds(
    model: "TrainedModel",
    samples: Sequence["Sample"],
    path: Path,
    labelled_pixels_only: bool,
    **options: Any,
) -> None:
    """Choose thresholds, print them and write the model with them."""
    from tqdm import tqdm

    from vimunet.checkpoint import save_model
    from vimunet.evaluation import tune_thresholds
    from vimunet.prediction import predict
    from vimunet.representation import Semantic
    from vimunet.semantic_evaluation import tune_threshold

    maps, labels = [], []
    for sample in tqdm(samples, unit="image", disable=None):
        image, annotated = sample.read()
        maps.append(predict(image, model, **options))
        labels.append(annotated)
    tuned: Representation
    if isinstance(model.representation, Semantic):
        measure = "Dice"
        tuned, score, table = tune_threshold(model.representation, maps, labels)
    else:
        measure = "mSA"
        tuned, score, table = tune_thresholds(
            model.representation, maps, labels, labelled_pixels_only=labelled_pixels_only
        )
    before = table[0][measure]
    print(f"{len(samples)} images, {measure} {before:.4f} before, {score:.4f} after")
    for name in tuned.threshold_grid():
        print(f"  {name}: {getattr(model.representation, name)} -> {getattr(tuned, name)}")
    note = {
        "images": [sample.name for sample in samples],
        f"{measure}_before": before,
        measure: score,
        "labelled_pixels_only": labelled_pixels_only,
        "prediction": {name: options[name] for name in options if name not in _NO_MATTER},
    }
    save_model(path, replace(model, representation=tuned, info={**model.info, "tuned": note}))
    print(f"Model with these thresholds: {path}")
