"""`vimunet segment`: image files in, label files out."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimunet.cli.arguments import (
    Commands,
    add_command,
    add_prediction_options,
    prediction_options,
)
from vimunet.cli.messages import known_models, some_of

if TYPE_CHECKING:
    import numpy as np

    from vimunet.checkpoint import TrainedModel


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = add_command(commands, "segment", run, "turn images into label images")
    command.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, folders or quoted patterns ('a*.tif')"
    )
    command.add_argument(
        "--model", help="nuclei, ... or a model file; without it, the models are listed"
    )
    command.add_argument(
        "--output",
        type=Path,
        default=Path("segmented"),
        help="folder for NAME.tif, maps/NAME.tif and overlays/NAME.png (default: %(default)s)",
    )
    command.add_argument("--save-maps", action="store_true", help="also write the predicted maps")
    command.add_argument(
        "--overlay", action="store_true", help="also write pictures of the labels on the image"
    )
    command.add_argument("--min-size", type=int, help="smallest object in pixels")
    command.add_argument("--key", help="data set inside HDF5, Zarr or N5 files")
    command.add_argument("--overwrite", action="store_true", help="replace existing results")
    add_prediction_options(command)


def run(options: argparse.Namespace) -> int:
    """Segment image files and write label files."""
    from tqdm import tqdm

    from vimunet.checkpoint import load_model
    from vimunet.models.compiled import memory_kept
    from vimunet.prediction import choose_device

    if options.model is None:
        raise ValueError(f"`--model` must be chosen. {known_models()}")
    files = _input_files(options.images)
    _check_outputs(files, options)
    model = load_model(options.model)
    classes = model.representation.labels_are_classes
    if options.min_size is not None:
        if classes:
            raise ValueError(
                f"`--min-size` must be left out: {options.model} finds classes, not objects."
            )
        model = replace(
            model, representation=replace(model.representation, min_size=options.min_size)
        )
    model.network.to(choose_device(options.device))
    failed = 0
    with tqdm(files, unit="image", disable=None) as bar, memory_kept():
        for file in bar:

            def show(done: int, total: int, name: str = file.name) -> None:
                bar.set_postfix_str(f"{name}, tile {done} of {total}")

            try:
                found = _segment_file(file, model, options, show)
            except Exception as error:  # whatever is wrong with one file, the others go on
                failed += 1
                tqdm.write(f"vimunet: {file} failed: {error}", file=sys.stderr)
            else:
                kind = "classes besides background" if classes else "objects"
                tqdm.write(f"{file}: {found} {kind}", file=sys.stdout)
    print(f"{len(files) - failed} of {len(files)} images segmented into {options.output}")
    return 1 if failed else 0


def _input_files(inputs: Sequence[str]) -> list[Path]:
    """Expand folders and patterns; what does not exist is kept, to be reported in its turn."""
    from vimunet.data.folder import list_images, natural_key

    files: dict[Path, Path] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir() and path.suffix.lower() not in (".zarr", ".n5"):
            found = list_images(path)
        elif path.exists():
            found = [path]
        else:
            matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
            found = sorted(matches, key=lambda match: natural_key(match.name)) or [path]
        files.update((file.resolve(), file) for file in found)
    return list(files.values())


def _output_files(file: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Return where the results of an image go; the overlays of a stack get a folder."""
    from vimunet.data.folder import stem

    name, output = stem(file), options.output
    paths = {"labels": output / f"{name}.tif"}
    if options.save_maps:
        paths["maps"] = output / "maps" / f"{name}.tif"
    if options.overlay:
        paths["overlay"] = output / "overlays" / f"{name}.png"
        paths["overlays"] = output / "overlays" / name
    return paths


def _check_outputs(files: list[Path], options: argparse.Namespace) -> None:
    """Refuse, before anything is computed, to write over images, labels or each other."""
    from vimunet.data.folder import stem

    names = Counter(stem(file).casefold() for file in files)
    doubles = [str(file) for file in files if names[stem(file).casefold()] > 1]
    if doubles:
        raise ValueError(
            f"Images must differ by more than folder and extension, got {some_of(doubles)}. "
            "Segment them into different folders."
        )
    outputs = [path for file in files for path in _output_files(file, options).values()]
    image_folders = {file.resolve().parent for file in files}
    if any(path.resolve().parent in image_folders for path in outputs):
        raise ValueError(
            f"`--output` must not be a folder of images, got {options.output}: labels would "
            "replace them or be taken for them. Choose another folder."
        )
    existing = [str(path) for path in outputs if path.exists()]
    if existing and not options.overwrite:
        raise ValueError(
            f"{len(existing)} of the outputs exist already: {some_of(existing)}. They may hold "
            "corrections. Choose another folder, or replace them with --overwrite."
        )


def _segment_file(
    file: Path,
    model: "TrainedModel",
    options: argparse.Namespace,
    progress: Callable[[int, int], None],
) -> int:
    """Segment one file, slice by slice if it is a stack; return how many objects or classes."""
    import numpy as np

    from vimunet.data.folder import read_image
    from vimunet.overlay import draw_overlay
    from vimunet.prediction import predict

    network: Any = model.network
    image = read_image(file, options.key)
    slices, stacked = _slices(image, network.in_channels)
    all_labels, all_maps = [], []
    classes = model.representation.labels_are_classes
    objects = 0
    for pixels in slices:
        maps = predict(pixels, model, progress=progress, **prediction_options(options))
        labels = model.representation.decode(maps).astype(np.int64)
        if not classes:
            labels[labels > 0] += objects  # the objects of two slices are never the same ones
        objects = max(objects, int(labels.max()))
        all_labels.append(labels)
        if options.save_maps:
            all_maps.append(maps)
    paths = _output_files(file, options)
    if options.overlay:
        for z, (pixels, labels) in enumerate(zip(slices, all_labels, strict=True)):
            path = paths["overlays"] / f"z{z:03d}.png" if stacked else paths["overlay"]
            _write_png(path, draw_overlay(pixels, labels))
    if options.save_maps:
        _write_tiff(
            paths["maps"], np.stack(all_maps) if stacked else all_maps[0], "ZCYX"[not stacked :]
        )
    dtype = np.uint16 if objects < 2**16 else np.uint32
    labels = np.stack(all_labels) if stacked else all_labels[0]
    _write_tiff(paths["labels"], labels.astype(dtype), "ZYX"[not stacked :])
    return int(np.unique(labels[labels > 0]).size) if classes else objects


def _slices(image: "np.ndarray", in_channels: int) -> tuple[list["np.ndarray"], bool]:
    """Tell a stack from an image with channels.

    Args:
        image: (y, x), (y, x, c), (c, y, x), (z, y, x) or (z, y, x, c).
        in_channels: Channels that the network takes.

    Returns:
        The images, (y, x) or (y, x, c), and whether they are the slices of a stack. A last axis
        of at most 4, or of `in_channels`, holds channels; a first axis of `in_channels` too, if
        the network takes more than one channel; any other first axis is z.
    """
    if image.ndim == 2:
        return [image], False
    if image.ndim == 4:
        return list(image), True
    if image.ndim != 3:
        raise ValueError(f"Image must have 2 to 4 axes, got shape {image.shape}.")
    if image.shape[2] <= 4 or image.shape[2] == in_channels > 1:
        return [image], False
    if image.shape[0] == in_channels > 1:
        return [image.transpose(1, 2, 0)], False
    return list(image), True


def _write_tiff(path: Path, image: "np.ndarray", axes: str) -> None:
    import tifffile

    from vimunet.files import replacing

    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary,
            image,
            photometric="minisblack",
            compression="zlib",
            predictor=image.dtype.kind == "f",
            metadata={"axes": axes},
        )


def _write_png(path: Path, picture: "np.ndarray") -> None:
    import imagecodecs

    from vimunet.files import replacing

    with replacing(path) as temporary:
        temporary.write_bytes(imagecodecs.png_encode(picture))
