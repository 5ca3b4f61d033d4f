"""What several commands take: how it is added to their parsers and read from what was typed."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from vimunet.representation import Representation

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `vimunet` adds its commands to."""

REPRESENTATIONS = ("boundaries", "distances", "boundary", "semantic")


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], description: str
) -> argparse.ArgumentParser:
    """Add a command, still without arguments.

    Args:
        commands: Those of `vimunet`.
        name: What the user types.
        run: Carries the command out and returns the exit code.
        description: For `vimunet --help`, without a capital and a full stop.

    Returns:
        The parser of the command.
    """
    command = commands.add_parser(
        name, help=description, description=f"{description[0].upper()}{description[1:]}."
    )
    command.set_defaults(run=run)
    return command


def add_pairs(command: argparse.ArgumentParser) -> None:
    """Add a folder of images and one of their labels."""
    command.add_argument("--images", type=Path, required=True, help="folder of images")
    command.add_argument(
        "--labels", type=Path, required=True, help="folder of label images of the same names"
    )
    command.add_argument("--image-key", help="data set of the images in HDF5, Zarr or N5 files")
    command.add_argument("--label-key", help="data set of the labels in HDF5, Zarr or N5 files")
    command.add_argument(
        "--channel", type=int, help="of images with channels or colours, from 0 (default: all)"
    )


def check_model_file(path: Path, overwrite: bool) -> None:
    """Refuse a place where no model file can or may be written, before anything is computed."""
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"A model must be a file that ends in .safetensors, got {path}.")
    check_free(path, overwrite)


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file without being told so, before anything is computed."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already. Replace it with --overwrite.")


def add_model_options(command: argparse.ArgumentParser, example: str) -> None:
    """Add `--option NAME=VALUE`, to be read by `model_options`."""
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"option of the network, e.g. {example}; may be repeated",
    )


def model_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE pairs; a value is JSON, or text if it is not."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"`--option` must have the form NAME=VALUE, got {pair!r}.")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def build_representation(name: str, num_classes: int | None = None) -> "Representation":
    """Build what `--representation` names; `num_classes` is for semantic labels alone."""
    from vimunet.representation import Boundaries, Distances, Semantic

    if name == "semantic":
        return Semantic() if num_classes is None else Semantic(num_classes)
    if num_classes is not None:
        raise ValueError(f"`--num-classes` must come with semantic labels, got {name}.")
    if name == "distances":
        return Distances()
    return Boundaries(foreground=name == "boundaries")


def add_num_classes(command: argparse.ArgumentParser) -> None:
    """Add the number of classes of semantic labels."""
    command.add_argument(
        "--num-classes", type=int, help="of semantic labels, background included (default: 2)"
    )


def add_labelled_pixels_only(
    command: argparse.ArgumentParser, default: bool | None = False
) -> None:
    """Add the flag that leaves pixels without label out; `default` is its value when not given."""
    command.add_argument(
        "--labelled-pixels-only",
        action="store_true",
        default=default,
        help="score only where the labels are not 0 (EM labels that leave out boundaries)",
    )


def add_prediction_options(command: argparse.ArgumentParser) -> None:
    """Add how a network is run, to be read by `prediction_options`."""
    command.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="how much the network sees the image magnified, e.g. 2 where objects are half as "
        "large as in the training images (default: %(default)s)",
    )
    command.add_argument(
        "--tile-size", type=int, help="of large images, in pixels without halo (default: auto)"
    )
    command.add_argument(
        "--halo", type=int, default=64, help="context of a tile in pixels (default: %(default)s)"
    )
    command.add_argument(
        "--batch-size", type=int, default=1, help="tiles at a time (default: %(default)s)"
    )
    command.add_argument(
        "--symmetries",
        type=int,
        default=1,
        metavar="1...8",
        help="average over so many turned and mirrored views: slower, a little better "
        "(default: %(default)s)",
    )
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: auto)")
    command.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the network (default: bfloat16 where the device computes with it, else float32)",
    )


def prediction_options(options: argparse.Namespace) -> dict[str, Any]:
    """Pick the arguments of `vimunet.predict`."""
    names = ("scale", "tile_size", "halo", "batch_size", "symmetries", "device", "precision")
    return {name: getattr(options, name) for name in names}
