"""`vimunet segment`: image files in, label files out; OME-Zarr in, OME-Zarr out, block by block."""

import argparse
import shutil
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
from vimunet.cli.messages import known_models
from vimunet.messages import some_of

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
        help="folder for NAME.tif (of OME-Zarr NAME.ome.zarr), maps/NAME.tif and overlays/NAME.png "
        "(default: %(default)s)",
    )
    command.add_argument("--save-maps", action="store_true", help="also write the predicted maps")
    command.add_argument(
        "--overlay", action="store_true", help="also write pictures of the labels on the image"
    )
    command.add_argument("--min-size", type=int, help="smallest object in pixels")
    command.add_argument(
        "--stitch-threshold",
        type=_iou,
        metavar="IOU",
        help="make one object of those in neighbouring slices (z; t of a series of images) that "
        "overlap as much, e.g. 0.2",
    )
    command.add_argument("--key", help="data set inside HDF5, Zarr or N5 files")
    command.add_argument("--level", type=int, help="of an OME-Zarr image, 0 is the finest")
    command.add_argument("--channel", type=int, help="of images with channels or colours, from 0")
    command.add_argument(
        "--part",
        type=_part,
        metavar="K/N",
        help="of OME-Zarr images, do the K-th of N shares, for the jobs of a cluster; run again "
        "without it to join them",
    )
    existing = command.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing results")
    existing.add_argument(
        "--skip-existing", action="store_true", help="leave out images that have labels already"
    )
    add_prediction_options(command)


def run(options: argparse.Namespace) -> int:
    """Segment image files and write label files."""
    import numpy as np
    from tqdm import tqdm

    from vimunet.checkpoint import load_model
    from vimunet.models.compiled import memory_kept
    from vimunet.prediction import choose_device, predict

    if options.model is None:
        raise ValueError(f"`--model` must be chosen. {known_models()}")
    files = _input_files(options.images)
    if options.skip_existing:
        count = len(files)
        files = [file for file in files if not _output_files(file, options)["labels"].exists()]
        print(f"{count - len(files)} of {count} images have labels in {options.output} already")
    _check_outputs(files, options)
    _check_kinds(files, options)
    model = load_model(options.model)
    for name in ("min_size", "stitch_threshold"):
        if getattr(options, name) is not None and model.representation.labels_are_classes:
            raise ValueError(
                f"`--{name.replace('_', '-')}` must be left out: {options.model} finds classes, "
                "not objects."
            )
    if options.min_size is not None:
        model = replace(
            model, representation=replace(model.representation, min_size=options.min_size)
        )
    model.network.to(choose_device(options.device))
    predict(np.zeros((1, 1)), model, **prediction_options(options))  # wrong options: said once
    failed = 0
    with tqdm(files, unit="image", disable=None) as bar, memory_kept():
        for file in bar:
            volume = _is_volume(file, options)
            piece = "block" if volume else "tile"

            def show(done: int, total: int, text: str = f"{file.name}, {piece}") -> None:
                bar.set_postfix_str(f"{text} {done} of {total}")

            try:
                segment = _segment_volume if volume else _segment_file
                found = segment(file, model, options, show)
            except Exception as error:  # whatever is wrong with one file, the others go on
                failed += 1
                tqdm.write(f"vimunet: {file} failed: {error}", file=sys.stderr)
            else:
                tqdm.write(f"{file}: {found}", file=sys.stdout)
    if options.part is None:
        print(f"{len(files) - failed} of {len(files)} images segmented into {options.output}")
    elif failed < len(files):
        print("Once all blocks are done, join them: the same command without --part.")
    return 1 if failed else 0


def _input_files(inputs: Sequence[str]) -> list[Path]:
    """Expand folders and patterns; what does not exist is kept, to be reported in its turn."""
    from vimunet.data.folder import list_images, natural_key, other_files
    from vimunet.volumes import is_ome_zarr

    files: dict[Path, Path] = {}
    for name in inputs:
        path = Path(name)
        container = path.suffix.lower() in (".zarr", ".n5") or is_ome_zarr(path)
        if path.is_dir() and not container:
            found = list_images(path)
            if others := other_files(path):
                print(
                    f"vimunet: left out, of unknown type: {some_of(others)}. Save such images as "
                    "TIFF.",
                    file=sys.stderr,
                )
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
    if _is_volume(file, options):
        if file.resolve().parent.suffix == ".zarr":  # one image of several in a file
            name = f"{stem(file.resolve().parent)}_{name}"
        return {"labels": output / f"{name}.ome.zarr"}
    paths = {"labels": output / f"{name}.tif"}
    if options.save_maps:
        paths["maps"] = output / "maps" / f"{name}.tif"
    if options.overlay:
        paths["overlay"] = output / "overlays" / f"{name}.png"
        paths["overlays"] = output / "overlays" / name
    return paths


def _check_outputs(files: list[Path], options: argparse.Namespace) -> None:
    """Refuse, before anything is computed, to write over images, labels or each other."""
    paths = [_output_files(file, options) for file in files]
    names = [of_file["labels"].stem.casefold() for of_file in paths]
    count = Counter(names)
    doubles = [str(file) for file, name in zip(files, names, strict=True) if count[name] > 1]
    if doubles:
        raise ValueError(
            f"Images must differ by more than folder and extension, got {some_of(doubles)}. "
            "Rename them, or segment them one by one into different folders."
        )
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"`--output` must be a folder, got the file {options.output}.")
    outputs = [path for of_file in paths for path in of_file.values()]
    image_folders = {file.resolve().parent for file in files}
    if any(path.resolve().parent in image_folders for path in outputs):
        raise ValueError(
            f"`--output` must not be a folder of images, got {options.output}: labels would "
            "replace them or be taken for them. Choose another folder."
        )
    existing = [str(path) for path in outputs if path.exists()]
    # What `--skip-existing` leaves to do has no labels: only its maps and overlays are replaced.
    if existing and not (options.overwrite or options.skip_existing):
        raise ValueError(
            f"{len(existing)} of the outputs exist already: {some_of(existing)}. They may hold "
            "corrections. Choose another folder, go on with --skip-existing, or replace them with "
            "--overwrite."
        )


def _is_volume(file: Path, options: argparse.Namespace) -> bool:
    """Tell whether a file is taken as OME-Zarr, with its axes and its pyramid."""
    from vimunet.volumes import is_ome_zarr

    return options.key is None and file.is_dir() and is_ome_zarr(file)


def _check_kinds(files: list[Path], options: argparse.Namespace) -> None:
    """Refuse options that are not for what was given."""
    volumes = [file for file in files if _is_volume(file, options)]
    others = [file for file in files if file.exists() and file not in volumes]
    for names, wrong, kind in (
        (("save_maps", "overlay"), volumes, "images other than OME-Zarr (or one `--key` in it)"),
        (("level", "part"), others, "OME-Zarr images"),
    ):
        for name in names:
            value = getattr(options, name)
            if wrong and value is not None and value is not False:
                given = some_of([str(file) for file in wrong])
                raise ValueError(
                    f"`--{name.replace('_', '-')}` is for {kind}, got {given}. Leave it out."
                )


def _iou(text: str) -> float:
    """Read a threshold of intersection over union."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return value


def _part(text: str) -> tuple[int, int]:
    """Read K/N."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be K/N with 1 <= K <= N, e.g. 3/16, got {text!r}")
    return int(number), int(count)


def _segment_volume(
    file: Path,
    model: "TrainedModel",
    options: argparse.Namespace,
    progress: Callable[[int, int], None],
) -> str:
    """Segment an OME-Zarr image, or a share of its blocks; return what was done."""
    from vimunet.blockwise import BlockwiseSegmentation

    (output,) = _output_files(file, options).values()
    volume = BlockwiseSegmentation(
        file,
        model,
        output,
        level=options.level or 0,
        channel=options.channel,
        stitch_threshold=options.stitch_threshold,
        overwrite=options.overwrite,
        **prediction_options(options),
    )
    missing = volume.missing()
    if options.part is not None:
        number, count = options.part
        shares = [len(volume.blocks) * i // count for i in (number - 1, number)]
        missing = [block for block in missing if block in range(*shares)]
    volume.run(missing, progress)
    if options.part is not None:
        left = len(volume.missing())
        return f"{len(volume.blocks) - left} of {len(volume.blocks)} blocks done"
    return f"{volume.finish()} objects"


def _segment_file(
    file: Path,
    model: "TrainedModel",
    options: argparse.Namespace,
    progress: Callable[[int, int], None],
) -> str:
    """Segment one file, slice by slice if it is a stack; return what was found."""
    import numpy as np

    from vimunet.data.folder import read_slices
    from vimunet.label_files import place_of_image, write_label_tiff
    from vimunet.overlay import draw_overlay
    from vimunet.prediction import predict
    from vimunet.stitching import stitch_slices

    network: Any = model.network
    pixels, stack = read_slices(
        file, options.key, in_channels=network.in_channels, channel=options.channel
    )
    lengths = pixels.shape[: len(stack)]
    slices = pixels.reshape(-1, *pixels.shape[len(stack) :])
    all_labels, all_maps = [], []
    for image in slices:
        maps = predict(image, model, progress=progress, **prediction_options(options))
        all_labels.append(model.representation.decode(maps))
        if options.save_maps:
            all_maps.append(maps)
    found: np.ndarray = np.stack(all_labels).reshape(*(lengths or (1,)), *slices.shape[1:3])
    classes = model.representation.labels_are_classes
    if stack and not classes:
        found = stitch_slices(found, options.stitch_threshold)
    labels = found.reshape(*lengths, *slices.shape[1:3])
    paths = _output_files(file, options)
    write_label_tiff(paths["labels"], labels, place_of_image(file, f"{stack}yx"))
    if options.save_maps:
        maps = np.stack(all_maps)
        _write_tiff(paths["maps"], maps.reshape(*lengths, *maps.shape[1:]), f"{stack}cyx")
    if options.overlay:
        if paths["overlays"].is_dir():  # of a longer stack, maybe
            shutil.rmtree(paths["overlays"])
        planes = labels.reshape(-1, *slices.shape[1:3])
        for z, (image, plane) in enumerate(zip(slices, planes, strict=True)):
            path = paths["overlays"] / f"z{z:03d}.png" if stack else paths["overlay"]
            _write_png(path, draw_overlay(image, plane))
    if classes:
        return f"{np.unique(labels[labels > 0]).size} classes besides background"
    return f"{found.max()} objects"


def _write_tiff(path: Path, image: "np.ndarray", axes: str) -> None:
    import tifffile

    from vimunet.files import replacing
    from vimunet.label_files import LARGEST_CLASSIC

    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary,
            image,
            photometric="minisblack",
            compression="zlib",
            predictor=image.dtype.kind == "f",
            bigtiff=image.nbytes > LARGEST_CLASSIC,
            metadata={"axes": axes.upper()},
        )


def _write_png(path: Path, picture: "np.ndarray") -> None:
    import imagecodecs
    import numpy as np

    from vimunet.files import replacing

    with replacing(path) as temporary:
        temporary.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))
