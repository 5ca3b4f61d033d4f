"""The command line: `vimunet info | segment | train | tune | evaluate | measure | compare | ...`.

Each command reads files, calls one function of the library and writes files; nothing is computed
here. A command imports what it needs when it runs, so that `vimunet --help` answers at once.

Exit codes: 0 all done, 1 a part failed, 2 the command could not be carried out, 130 interrupted.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = (
    "info",
    "segment",
    "train",
    "tune",
    "evaluate",
    "measure",
    "compare",
    "convert",
    "convert_nnunet",
    "data",
)
"""Modules of this package, each with one command, in the order of `vimunet --help`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: As typed behind `vimunet`; None takes them from the command line.

    Returns:
        The exit code.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="vimunet: %(message)s")
    logging.getLogger("vimunet").setLevel(logging.INFO)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"vimunet: error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:  # a training that diverged: it did start, and left files
        print(f"vimunet: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vimunet: interrupted", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read what was typed behind `vimunet`; `convert nnunet` is one command of two words."""
    if list(arguments[:2]) == ["convert", "nnunet"]:
        arguments = ["convert nnunet", *arguments[2:]]
    return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vimunet",
        description="Segment cells and neurites in microscopy images.",
        epilog="`vimunet COMMAND --help` explains a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        import_module(f"vimunet.cli.{module}").add_parser(commands)
    return parser
