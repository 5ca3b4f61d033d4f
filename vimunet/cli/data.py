"""`vimunet data`: the name of a public data set in, its files out."""

import argparse
from pathlib import Path

from vimunet.cli.arguments import Commands, add_command


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = add_command(commands, "data", run, "download a public data set")
    command.add_argument("name", choices=("livecell", "cremi"))
    command.add_argument("directory", type=Path, metavar="DIR")


def run(options: argparse.Namespace) -> int:
    """Download a public data set."""
    from vimunet.data.download import download

    folder = download(options.name, options.directory)
    print(f"{options.name} is in {folder}")
    return 0
