"""The command line: `vimunet info | segment | train | tune | evaluate | measure | compare | ...`.

Each command reads files, calls one function of the library and writes files; nothing is computed
here. Only the module of the command that is asked for is loaded, and it imports what is slow when
it runs, so that `vimunet --help` answers at once.

Exit codes: 0 all done, 1 a part failed, 2 the command could not be carried out, 130 interrupted.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

COMMANDS = {
    "info": "show versions, devices, models and optional packages",
    "segment": "turn images into label images",
    "train": "train a network on images with labels",
    "tune": "choose the thresholds of a model on images with labels",
    "evaluate": "score predicted labels against annotated ones",
    "measure": "measure objects: area or volume, position, shape, intensity",
    "compare": "score several methods on the same images, with a report",
    "convert": "turn a checkpoint of another tool into a model file",
    "convert nnunet": "write images and labels as a data set of nnU-Net",
    "data": "download a public data set",
}
"""What each command does, in the order of `vimunet --help`; each is a module of this package."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: As typed behind `vimunet`; None takes them from the command line.

    Returns:
        The exit code.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _main(sys.argv[1:] if arguments is None else arguments)


def _main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    logging.basicConfig(format="vimunet: %(message)s")
    logging.getLogger("vimunet").setLevel(logging.INFO)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        print(f"vimunet: error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:  # a training that diverged: it did start, and left files
        print(f"vimunet: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vimunet: interrupted", file=sys.stderr)
        return 130


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Show a warning as a line for users, without the place in the code."""
    if issubclass(category, UserWarning | FutureWarning):
        print(f"vimunet: {message}", file=sys.stderr)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read what was typed behind `vimunet`; `convert nnunet` is one command of two words."""
    if list(arguments[:2]) == ["convert", "nnunet"]:
        arguments = ["convert nnunet", *arguments[2:]]
    return _parser(next((word for word in arguments if word in COMMANDS), "")).parse_args(arguments)


def _parser(wanted: str) -> argparse.ArgumentParser:
    """Build the parser; only the arguments of the command that is wanted are known to it."""
    parser = argparse.ArgumentParser(
        prog="vimunet",
        description="Segment cells and neurites in microscopy images.",
        epilog="`vimunet COMMAND --help` explains a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(
            name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}."
        )
        if name == wanted:
            module = import_module(f"vimunet.cli.{name.replace(' ', '_')}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
