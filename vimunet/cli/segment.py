"""`vimunet segment`: image files in, label files out; OME-Zarr in, OME-Zarr out, block by block."""

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vimunet.cli.arguments import (
    add_assignments,
    add_prediction_options,
    add_spacing,
    assignments,
    flag,
    one_or_each,
    prediction_options,
)
from vimunet.cli.messages import known_models
from vimunet.messages import some_of

if TYPE_CHECKING:
    import numpy as np

    from vimunet.segmentation.model_file import TrainedModel


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments."""
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
    add_assignments(
        command,
        "--set",
        "how maps become objects, in place of what the model says, e.g. seed_threshold=0.6; may be "
        "repeated",
    )
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
        "--axes",
        help="a letter for each axis of files that do not name them: t, z, c, y, x, s (colours)",
    )
    add_spacing(command)
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

    from vimunet.models.compiled import memory_kept
    from vimunet.segmentation.devices import choose_device
    from vimunet.segmentation.model_file import load_model
    from vimunet.segmentation.predict import predict

    if options.model is None:
        raise ValueError(f"`--model` must be chosen. {known_models()}")
    files = _input_files(options.images)
    if options.skip_existing:
        count = len(files)
        files = [file for file in files if not _output_files(file, options)["labels"].exists()]
        print(f"{count - len(files)} of {count} images have labels in {options.output} already")
    _check_outputs(files, options)
    _check_kinds(files, options)
    model = _as_wanted(load_model(options.model), options)
    model.network.to(choose_device(options.device))
    # Wrong options are said once, not for each image.
    predict(np.zeros((1,) * len(model.axes)), model, **prediction_options(options))
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


def _as_wanted(model: "TrainedModel", options: argparse.Namespace) -> "TrainedModel":
    """Give the model that reads its maps as the flags say."""
    if model.representation.labels_are_classes:
        for name in ("min_size", "stitch_threshold"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"`{flag(name)}` must be left out: {options.model} finds classes, not objects."
                )
    values = assignments("--set", options.set)
    if options.min_size is not None:
        values["min_size"] = options.min_size
    return replace(model, representation=model.representation.tuned(**values)) if values else model


def _input_files(inputs: Sequence[str]) -> list[Path]:
    """Expand folders and patterns; what does not exist is kept, to be reported in its turn."""
    from vimunet.io.names import list_images, natural_key, other_files
    from vimunet.io.ome_zarr import is_ome_zarr

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
    from vimunet.io.names import stem

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
    from vimunet.io.ome_zarr import is_ome_zarr

    return options.key is None and file.is_dir() and is_ome_zarr(file)


def _check_kinds(files: list[Path], options: argparse.Namespace) -> None:
    """Refuse options that are not for what was given."""
    volumes = [file for file in files if _is_volume(file, options)]
    others = [file for file in files if file.exists() and file not in volumes]
    for names, wrong, kind in (
        (
            ("save_maps", "overlay", "axes"),
            volumes,
            "images other than OME-Zarr (or one `--key` in it)",
        ),
        (("level", "part"), others, "OME-Zarr images"),
    ):
        for name in names:
            value = getattr(options, name)
            if wrong and value is not None and value is not False:
                given = some_of([str(file) for file in wrong])
                raise ValueError(f"`{flag(name)}` is for {kind}, got {given}. Leave it out.")


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
        spacing=one_or_each(options.spacing),
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
    """Segment one file; return what was found."""
    import numpy as np

    from vimunet.io.formats import open_image
    from vimunet.io.image import Pieces, with_named_axes
    from vimunet.io.label_files import place_of, write_label_tiff
    from vimunet.overlay import draw_overlay
    from vimunet.segmentation.segment import segment_image

    in_channels, channel = model.network.in_channels, options.channel
    paths = _output_files(file, options)
    with open_image(file, options.key) as opened:
        image = with_named_axes(opened, in_channels, channel, model.axes, options.axes)
        found = segment_image(
            image,
            model,
            channel,
            one_or_each(options.spacing),
            options.stitch_threshold,
            progress,
            keep_maps=options.save_maps,
            **prediction_options(options),
        )
        write_label_tiff(paths["labels"], found.labels, place_of(image, found.axes))
        if found.maps is not None:
            leading = found.axes.removesuffix(model.axes)
            _write_tiff(paths["maps"], found.maps, f"{leading}c{model.axes}")
        if options.overlay:
            pixels = Pieces(image, model.axes, in_channels, channel).whole().read()
            if paths["overlays"].is_dir():  # of a longer stack, maybe
                shutil.rmtree(paths["overlays"])
            size = found.labels.shape[-2:]
            planes = found.labels.reshape(-1, *size)
            slices = pixels.reshape(len(planes), *size, *pixels.shape[found.labels.ndim :])
            for z, (picture, plane) in enumerate(zip(slices, planes, strict=True)):
                stack = found.labels.ndim > 2
                path = paths["overlays"] / f"z{z:03d}.png" if stack else paths["overlay"]
                _write_png(path, draw_overlay(picture, plane))
    if model.representation.labels_are_classes:
        number = np.unique(found.labels[found.labels > 0]).size
        return f"{number} classes besides background"
    return f"{found.labels.max()} objects"


def _write_tiff(path: Path, image: "np.ndarray", axes: str) -> None:
    import tifffile

    from vimunet.io.atomic import replacing
    from vimunet.io.label_files import LARGEST_CLASSIC

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

    from vimunet.io.atomic import replacing

    with replacing(path) as temporary:
        temporary.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))
