"""`vimunet measure`: label images in, a table of their objects out."""

import argparse
from pathlib import Path

from vimunet.cli.arguments import Commands, add_command, check_free
from vimunet.messages import naming, some_of


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = add_command(
        commands, "measure", run, "measure objects: area, position, shape, intensity"
    )
    command.add_argument("--labels", type=Path, required=True, help="folder of label images")
    command.add_argument(
        "--images", type=Path, help="folder of images of the same names, for intensities"
    )
    command.add_argument("--channel", type=int, help="of images with channels (default: all)")
    command.add_argument("--csv", type=Path, required=True, help="table to write, a row an object")
    command.add_argument("--overwrite", action="store_true", help="replace an existing --csv")


def run(options: argparse.Namespace) -> int:
    """Measure the objects of label files and write one table."""
    import numpy as np
    from tqdm import tqdm

    from vimunet.data.folder import by_name, list_images, read_labels, read_slices
    from vimunet.label_files import place_of_image
    from vimunet.measurement import measure, write_csv

    check_free(options.csv, options.overwrite)
    label_files = by_name(list_images(options.labels))
    image_files = {}
    if options.images is not None:
        image_files = by_name(list_images(options.images))
        if missing := [name for name in label_files if name not in image_files]:
            raise ValueError(
                f"{options.images} must have an image for all labels, lacks {some_of(missing)}."
            )
    elif options.channel is not None:
        raise ValueError("`--channel` is for intensities: give --images too, or leave it out.")
    tables = []
    for name, file in tqdm(label_files.items(), unit="image", disable=None):
        labels, image = read_labels(file), None
        places = [place_of_image(file, "zyx"[-labels.ndim :])]
        if name in image_files:
            image, _ = read_slices(image_files[name], in_channels=None, channel=options.channel)
            places.append(place_of_image(image_files[name], "zyx"[-labels.ndim :]))
        place = next((place for place in places if place.units[-1] != "pixel"), places[0])
        with naming(file):
            table = measure(labels, image, place.scale[-2:], place.units[-1])
        tables.append({"image": np.full(len(table["label"]), name), **table})
    columns = dict.fromkeys(column for table in tables for column in table)
    joined = {
        column: np.concatenate(
            [table.get(column, np.full(len(table["label"]), np.nan)) for table in tables]
        )
        for column in columns
    }
    write_csv(options.csv, joined)
    print(f"{len(joined['label'])} objects of {len(tables)} images: {options.csv}")
    return 0
