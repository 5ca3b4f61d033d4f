"""What several commands take: how it is added to their parsers and read from what was typed.

The flags of settings are made from a dataclass: name, type and default are those of its fields, the
help is what its docstring says of them.
"""

import argparse
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

from vimunet.deprecation import renamed, warn


def add_pairs(command: argparse.ArgumentParser, required: bool = True) -> None:
    """Add a folder of images and one of their labels."""
    command.add_argument("--images", type=Path, required=required, help="folder of images")
    command.add_argument(
        "--labels", type=Path, required=required, help="folder of label images of the same names"
    )
    command.add_argument("--image-key", help="data set of the images in HDF5, Zarr or N5 files")
    command.add_argument("--label-key", help="data set of the labels in HDF5, Zarr or N5 files")
    command.add_argument(
        "--channel", type=int, help="of images with channels or colours, from 0 (default: all)"
    )


def add_spacing(command: argparse.ArgumentParser) -> None:
    """Add the size of a voxel."""
    command.add_argument(
        "--spacing",
        type=float,
        nargs="+",
        metavar="MICROMETRES",
        help="size of a voxel in µm, one number or one for each of [z] y x (default: what the "
        "files declare)",
    )


def one_or_each(values: Sequence[Any] | None) -> Any:
    """Give one number for one number, a tuple for several, None for none."""
    if values is None:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def check_model_file(path: Path, overwrite: bool) -> None:
    """Refuse a place where no model file can or may be written, before anything is computed."""
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"A model must be a file that ends in .safetensors, got {path}.")
    check_free(path, overwrite)


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file without being told so, before anything is computed."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already. Replace it with --overwrite.")


def flag(name: str) -> str:
    """Write the name of a setting as it is typed.

    Examples:
        >>> flag("max_minutes")
        '--max-minutes'
    """
    return f"--{name.replace('_', '-')}"


def add_assignments(command: argparse.ArgumentParser, name: str, text: str) -> None:
    """Add a flag for NAME=VALUE that may be repeated, to be read by `assignments`."""
    command.add_argument(name, action="append", default=[], metavar="NAME=VALUE", help=text)


def assignments(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE pairs; a value is JSON, or text if it is not."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"`{name}` must have the form NAME=VALUE, got {pair!r}.")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def add_model_options(command: argparse.ArgumentParser, example: str) -> None:
    """Add `--option NAME=VALUE` of the network."""
    text = f"option of the network, e.g. {example}; may be repeated"
    add_assignments(command, "--option", text)


def add_representation(command: argparse.ArgumentParser, text: str) -> None:
    """Add what the maps of a network mean, to be read by `chosen_representation`."""
    from vimunet.representations import REPRESENTATIONS

    command.add_argument("--representation", choices=sorted(REPRESENTATIONS), help=text)
    add_assignments(
        command,
        "--representation-option",
        "field of the representation, e.g. num_classes=4 (classes, background included); may be "
        "repeated",
    )
    command.add_argument(
        "--num-classes", type=int, help="of semantic labels, background included (default: 2)"
    )


def chosen_representation(options: argparse.Namespace, default: str | None = None) -> Any:
    """Build what was chosen with the flags of `add_representation`; None if nothing was."""
    from vimunet.representations import build_representation

    fields_ = assignments("--representation-option", options.representation_option)
    name = options.representation or default
    if options.num_classes is not None:
        fields_["num_classes"] = options.num_classes
    if options.num_classes is not None and name != "semantic":
        raise ValueError("`--num-classes` must come with semantic labels: --representation.")
    if name is None:
        if fields_:
            raise ValueError("`--representation-option` must come with --representation.")
        return None
    return build_representation(name, **fields_)


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


def add_protocol(command: argparse.ArgumentParser, text: str) -> None:
    """Add whether scores are counted as published."""
    command.add_argument(
        "--protocol",
        type=lambda given: renamed("--protocol", given, {"paper": "published"}),
        choices=("fair", "published"),
        default="fair",
        help=f"{text} (default: %(default)s)",
    )


class Renamed(argparse.Action):
    """A flag that has another name now, and says so."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Take the value for the new flag."""
        warn(f"`{option_string}`", f"`{flag(self.dest)}`")
        setattr(namespace, self.dest, values)


def add_prediction_options(command: argparse.ArgumentParser) -> None:
    """Add how a network is run, to be read by `prediction_options`."""
    command.add_argument(
        "--scale",
        type=float,
        nargs="+",
        default=[1.0],
        help="how much the network sees the image magnified, e.g. 2 where objects are half as "
        "large as in the training images; one number or one per axis (default: 1)",
    )
    command.add_argument(
        "--tile-size",
        type=int,
        nargs="+",
        help="of large images, in pixels without halo, one number or one per axis (default: auto)",
    )
    command.add_argument(
        "--halo",
        type=int,
        nargs="+",
        help="context of a tile in pixels (default: 64, of volumes 16)",
    )
    command.add_argument(
        "--batch-size", type=int, default=1, help="tiles at a time (default: %(default)s)"
    )
    command.add_argument(
        "--test-time-augmentation",
        type=int,
        default=1,
        metavar="VIEWS",
        help="average over so many turned and mirrored views, of 8 (of volumes 16): slower, a "
        "little better (default: %(default)s)",
    )
    command.add_argument(
        "--symmetries",
        type=int,
        dest="test_time_augmentation",
        default=argparse.SUPPRESS,
        action=Renamed,
        help=argparse.SUPPRESS,
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
    names = ("batch_size", "test_time_augmentation", "device", "precision")
    per_axis = ("scale", "tile_size", "halo")
    return {name: one_or_each(getattr(options, name)) for name in per_axis} | {
        name: getattr(options, name) for name in names
    }


def add_settings(
    command: argparse.ArgumentParser, kind: type, leave_out: Collection[str] = ()
) -> None:
    """Add a flag for each field of a dataclass; what is not given is not in the namespace.

    Args:
        command: Gets the flags.
        kind: Dataclass whose docstring explains its attributes.
        leave_out: Fields without a flag.
    """
    group = command.add_argument_group("settings", argument_default=argparse.SUPPRESS)
    hints, texts = typing.get_type_hints(kind), described(kind)
    for field in fields(kind):
        if field.name in leave_out:
            continue
        default = "" if field.default in (MISSING, None, "", False) else f" ({field.default})"
        text = (texts[field.name] + default).replace("%", "%%")
        group.add_argument(flag(field.name), help=text, **_parsing(hints[field.name]))


def given_settings(
    options: argparse.Namespace, kind: type, leave_out: Collection[str] = ()
) -> dict[str, Any]:
    """Collect what was given with the flags of `add_settings`; arguments as there."""
    hints = typing.get_type_hints(kind)
    names = [f.name for f in fields(kind) if f.name not in leave_out and hasattr(options, f.name)]
    found = {name: getattr(options, name) for name in names}
    return {
        name: one_or_each(value) if _is_per_axis(hints[name]) else value
        for name, value in found.items()
    }


def described(kind: type) -> dict[str, str]:
    """Read what the docstring of a dataclass says of each attribute, in one line each."""
    text = inspect.getdoc(kind) or ""
    section = text.partition("Attributes:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", line).replace("`", "").rstrip(".") for name, line in found}


def _parsing(hint: Any) -> dict[str, Any]:
    """Say how a flag of a type is parsed."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if _is_per_axis(hint):
            return {"type": _number_of(hint), "nargs": "+"}
        return _parsing(next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        old = {"bf16": "bfloat16"}
        return {"choices": arguments, "type": lambda given: renamed("Value", given, old)}
    if origin is tuple:
        return {"type": arguments[0], "nargs": len(arguments), "metavar": ("LOW", "HIGH")}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    parse: Callable[[str], Any] = hint
    return {"type": parse}


def _is_per_axis(hint: Any) -> bool:
    return any(typing.get_origin(a) in _SEQUENCES for a in typing.get_args(hint))


def _number_of(hint: Any) -> Any:
    return next(a for a in typing.get_args(hint) if a in (int, float))


_SEQUENCES = (Sequence, typing.get_origin(typing.Sequence[int]))
