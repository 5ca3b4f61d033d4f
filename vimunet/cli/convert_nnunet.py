"""`vimunet convert nnunet`: images and labels in, a data set of nnU-Net out."""

import argparse
from pathlib import Path

from vimunet.cli.arguments import add_protocol


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    command.add_argument("--images", type=Path, required=True, help="folder of training images")
    command.add_argument("--labels", type=Path, required=True, help="folder of their labels")
    command.add_argument("--output", type=Path, required=True, help="nnU-Net's folder nnUNet_raw")
    command.add_argument("--id", type=int, required=True, help="number of the data set, 1 to 999")
    command.add_argument("--name", required=True, help="name of the data set")
    command.add_argument("--val-images", type=Path, help="images to validate on")
    command.add_argument("--val-labels", type=Path, help="their labels")
    command.add_argument("--test-images", type=Path, help="images to predict")
    command.add_argument(
        "--representation",
        choices=("boundaries", "boundary"),
        default="boundaries",
        help="`boundary` is for images that objects fill (default: %(default)s)",
    )
    add_protocol(command, "boundaries inside the objects, or on both sides as published")
    command.add_argument(
        "--channel", action="append", help="name of a channel, by which nnU-Net normalises it"
    )
    command.add_argument("--overwrite", action="store_true", help="replace such a data set")


def run(options: argparse.Namespace) -> int:
    """Write a data set of nnU-Net."""
    from vimunet.bridges.nnunet import write_dataset

    written = write_dataset(
        options.images,
        options.labels,
        options.output,
        dataset_id=options.id,
        name=options.name,
        val_images=options.val_images,
        val_labels=options.val_labels,
        test_images=options.test_images,
        representation=options.representation,
        protocol=options.protocol,
        channel_names=options.channel,
        overwrite=options.overwrite,
    )
    print(
        f"{written.folder}: {len(written.train)} images to train on, {len(written.val)} to "
        f"validate, {len(written.test)} to predict"
    )
    if written.val and written.split is None:
        print(
            f"Copy {written.folder / 'splits_final.json'} to nnUNet_preprocessed/"
            f"{written.folder.name} after planning, or nnU-Net makes its own split."
        )
    return 0
