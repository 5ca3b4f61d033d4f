"""`vimunet tune`: the thresholds of a model, chosen on images with labels."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vimunet.cli.arguments import (
    add_labelled_pixels_only,
    add_pairs,
    add_prediction_options,
    add_spacing,
    check_model_file,
    one_or_each,
    prediction_options,
)

if TYPE_CHECKING:
    from vimunet.training.tuning import Tuned


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    command.add_argument("--model", required=True, help="nuclei, ... or a model file")
    add_pairs(command)
    command.add_argument("--output", type=Path, help="model file to write")
    command.add_argument("--overwrite", action="store_true", help="replace an existing --output")
    command.add_argument("--in-place", action="store_true", help="replace the file of --model")
    add_labelled_pixels_only(command)
    add_spacing(command)
    add_prediction_options(command)


def run(options: argparse.Namespace) -> int:
    """Choose thresholds on images with labels and store them in a model file."""
    from vimunet.io.pairs import find_pairs
    from vimunet.segmentation.devices import choose_device
    from vimunet.segmentation.model_file import load_model, save_model
    from vimunet.training.tuning import tune

    if (options.output is None) != options.in_place:
        raise ValueError("Give either --output FILE or --in-place, to say where the model goes.")
    if options.in_place and not Path(options.model).is_file():
        raise ValueError(f"`--in-place` must come with a model file, got {options.model}.")
    path = Path(options.model) if options.in_place else options.output
    check_model_file(path, options.in_place or options.overwrite)
    model = load_model(options.model)
    classes = model.representation.labels_are_classes
    if classes and options.labelled_pixels_only:
        raise ValueError("`--labelled-pixels-only` must be left out for classes.")
    samples = find_pairs(
        options.images,
        options.labels,
        image_key=options.image_key,
        label_key=options.label_key,
        masks=classes,
        in_channels=model.network.in_channels,
        channel=options.channel,
        axes=model.axes,
    )
    model.network.to(choose_device(options.device))
    tuned = tune(
        model,
        samples,
        labelled_pixels_only=options.labelled_pixels_only or None,
        spacing=one_or_each(options.spacing),
        progress=True,
        **prediction_options(options),
    )
    save_model(path, tuned.model)
    print(told(tuned, len(samples)))
    print(f"Model with these thresholds: {path}")
    return 0


def told(tuned: "Tuned", images: int) -> str:
    """Say what changed, over several lines."""
    representation = tuned.model.representation
    lines = [f"{images} images, {tuned.score} {tuned.before:.4f} before, {tuned.after:.4f} after"]
    lines += [
        f"  {name}: {tuned.table[0][name]} -> {getattr(representation, name)}"
        for name in representation.threshold_grid()
    ]
    return "\n".join(lines)
