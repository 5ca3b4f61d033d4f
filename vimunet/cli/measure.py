"""`vimunet measure`: label images in, a table of their objects out."""

import argparse
from pathlib import Path

from vimunet.cli.arguments import add_spacing, check_free, one_or_each


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    command.add_argument("--labels", type=Path, required=True, help="folder of label images")
    command.add_argument(
        "--images", type=Path, help="folder of images of the same names, for intensities"
    )
    command.add_argument("--channel", type=int, help="of images with channels (default: all)")
    add_spacing(command)
    command.add_argument("--csv", type=Path, required=True, help="table to write, a row an object")
    command.add_argument("--overwrite", action="store_true", help="replace an existing --csv")


def run(options: argparse.Namespace) -> int:
    """Measure the objects of label files and write one table."""
    from vimunet.io.tables import write_columns
    from vimunet.objects.measurement import measure_folders

    check_free(options.csv, options.overwrite)
    table, images = measure_folders(
        options.labels,
        options.images,
        spacing=one_or_each(options.spacing),
        channel=options.channel,
        progress=True,
    )
    write_columns(options.csv, table)
    print(f"{len(table['label'])} objects of {images} images: {options.csv}")
    return 0
