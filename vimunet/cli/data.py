"""`vimunet data`: the name of a public data set in, its files out."""

import argparse
from pathlib import Path


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    command.add_argument("name", choices=("livecell", "cremi"))
    command.add_argument("directory", type=Path, metavar="DIR")


def run(options: argparse.Namespace) -> int:
    """Download a public data set."""
    from vimunet.datasets.download import download

    folder = download(options.name, options.directory)
    print(f"{options.name} is in {folder}")
    return 0
