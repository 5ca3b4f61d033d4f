"""The command line: `vimunet info | segment | train | tune | evaluate | convert | data`.

Each command reads files, calls one function of the library and writes files; nothing is computed
here. A command imports what it needs when it runs, so that `vimunet --help` answers at once.

Exit codes: 0 all done, 1 a part failed, 2 the command could not be carried out, 130 interrupted.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from vimunet.checkpoint import TrainedModel
    from vimunet.data import Sample
    from vimunet.representation import Representation

OPTIONAL_PACKAGES = {
    "lightning-fabric": "train",
    "matplotlib": "train",
    "tensorboard": "train",
    "pycocotools": "train",
    "mamba-ssm": "cuda",
    "causal-conv1d": "cuda",
    "napari": "napari",
    "z5py": "n5",
    "monai": "monai",
    "torch-em": "torch-em",
}
REPRESENTATIONS = ("boundaries", "distances", "boundary", "semantic")
VALIDATION_FRACTION = 0.15
_OF_OBJECTS = ("threshold", "labelled_pixels_only")
_OF_CLASSES = ("num_classes", "spacing")
"""Flags of `vimunet evaluate` for the one and the other kind of labels."""
TRAIN_SETTINGS = (
    "output",
    "iterations",
    "max_minutes",
    "crop_size",
    "batch_size",
    "lr",
    "optimizer",
    "weight_decay",
    "schedule",
    "precision",
    "seed",
    "resume",
    "validation_interval",
    "rotations",
    "device",
)
"""Fields of `TrainConfig` that have a flag; a flag that is not given leaves the default."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: As typed behind `vimunet`; None takes them from the command line.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
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


def info(options: argparse.Namespace) -> int:
    """Print what is installed and what runs where."""
    import torch

    import vimunet
    from vimunet.models import MODELS
    from vimunet.models.scan import active_backend
    from vimunet.prediction import choose_device

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    print(f"vimunet {vimunet.__version__}")
    print(f"python  {sys.version.split()[0]}")
    print(f"torch   {torch.__version__}, {torch.get_num_threads()} threads")
    print("\ndevices and the code that runs the selective scan there")
    for device in devices:
        name = f" ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else ""
        chosen = " [auto]" if torch.device(device).type == choose_device().type else ""
        backend, why = active_backend(device)
        print(f"  {device}{name}{chosen}: {backend}. {why}")
    compiled = util.find_spec("vimunet._kernels") is not None
    print(f"  compiled kernels (`vimunet._kernels`): {'built' if compiled else 'not built'}")
    print(f"\n{_known_models()}")
    print("\nnetworks to train")
    for name, build in MODELS.items():
        function, fixed = getattr(build, "func", build), getattr(build, "keywords", {})
        sizes = ", ".join(f"{key} {value}" for key, value in fixed.items())
        summary = (function.__doc__ or "").strip().splitlines()[0].removeprefix("Build a ")
        print(f"  {name:<10} {summary}{f' ({sizes})' if sizes else ''}")
    print("\noptional packages")
    for package, extra in OPTIONAL_PACKAGES.items():
        try:
            state = metadata.version(package)
        except metadata.PackageNotFoundError:
            state = f"not installed (pip install 'vimunet[{extra}]')"
        print(f"  {package:<16} {state}")
    return 0


def segment(options: argparse.Namespace) -> int:
    """Segment image files and write label files."""
    from tqdm import tqdm

    from vimunet.checkpoint import load_model
    from vimunet.models.compiled import memory_kept
    from vimunet.prediction import choose_device

    if options.model is None:
        raise ValueError(f"`--model` must be chosen. {_known_models()}")
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


def _known_models() -> str:
    from vimunet.checkpoint import embedded_models

    lines = [f"  {name:<10} {purpose}" for name, purpose in embedded_models().items()]
    return "\n".join(["Models that come with vimunet:", *lines, "or the path of a model file."])


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
            f"Images must differ by more than folder and extension, got {_some(doubles)}. "
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
            f"{len(existing)} of the outputs exist already: {_some(existing)}. They may hold "
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
        maps = predict(pixels, model, progress=progress, **_prediction_options(options))
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


def _prediction_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("tile_size", "halo", "batch_size", "device", "precision")
    return {name: getattr(options, name) for name in names}


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


def train(options: argparse.Namespace) -> int:
    """Train a network on a folder of images with labels."""
    import torch

    from vimunet.checkpoint import load_model
    from vimunet.data.folder import find_pairs
    from vimunet.models import MODELS, build_model
    from vimunet.training import TrainConfig
    from vimunet.training import train as run_training

    start = None if options.model in MODELS else _model_to_continue(options)
    representation = (
        start.representation
        if start is not None
        else _representation(options.representation or "boundaries", options.num_classes)
    )
    reading = {
        "image_key": options.image_key,
        "label_key": options.label_key,
        "masks": representation.labels_are_classes,
    }
    samples = find_pairs(options.images, options.labels, **reading)
    if options.val_images is not None:
        if options.val_labels is None:
            raise ValueError("`--val-images` must come with --val-labels.")
        validation = find_pairs(options.val_images, options.val_labels, **reading)
    else:
        samples, validation = _split(samples)
    print(f"{len(samples)} images to train on, {len(validation)} to validate on")

    if start is not None:
        network = start.network
    else:
        in_channels = options.in_channels
        if in_channels is None:
            image, _ = samples[0].read()
            in_channels = 1 if image.ndim == 2 else image.shape[2]
        extra = _model_options(options.option)
        if options.skip_connections:
            extra["skip_connections"] = True
        torch.manual_seed(options.seed)
        network = build_model(options.model, in_channels, len(representation.channels), **extra)
    if options.pretrained is not None:
        from vimunet.bridges import load_pretrained

        print(load_pretrained(network, options.pretrained))
    given = {name: getattr(options, name) for name in TRAIN_SETTINGS if hasattr(options, name)}
    training_data = options.images.resolve().name
    if start is not None:
        before = start.info.get("training_data") or "unknown data"
        training_data = f"{training_data}, after {options.model} ({before})"
        given["licence"] = start.info.get("licence", "")
    config = TrainConfig(training_data=training_data, **given)
    best = run_training(network, representation, samples, validation, config)
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first does the rest
        return 0
    print(f"Best model: {best}\nIts thresholds, chosen on the validation images:")
    _tune(
        load_model(best),
        validation,
        best.with_name("tuned.safetensors"),
        labelled_pixels_only=not representation.has_background,
        device=getattr(options, "device", "auto"),
    )
    return 0


def _model_to_continue(options: argparse.Namespace) -> "TrainedModel":
    """Load the model that a training starts from, and refuse flags that would change it."""
    from vimunet.checkpoint import load_model
    from vimunet.models import MODELS

    try:
        model = load_model(options.model)
    except FileNotFoundError as error:
        raise ValueError(
            f"`--model` must be a network or a model to continue from, got {options.model!r}. "
            f"Networks: {', '.join(sorted(MODELS))}. {error}"
        ) from error
    if model.normalization != "image":
        raise ValueError(
            f"{options.model} must have the normalization 'image' to be trained on, got "
            f"{model.normalization!r}. Train a new network instead."
        )
    own = ("representation", "num_classes", "skip_connections", "in_channels", "option")
    for flag in (*own, "pretrained"):
        if getattr(options, flag):
            raise ValueError(
                f"`--{flag.replace('_', '-')}` must be left out with --model {options.model}, "
                "which has its own."
            )
    return model


def _split(samples: Sequence["Sample"]) -> tuple[list["Sample"], list["Sample"]]:
    """Keep a part of the images for validation, chosen by name, so that it stays the same.

    The slices of a stack stay together: neighbours look alike.
    """

    def image(sample: "Sample") -> str:
        return re.sub(r"_z\d{3,}$", "", sample.name)

    names = sorted(
        {image(sample) for sample in samples},
        key=lambda name: hashlib.sha256(name.encode()).hexdigest(),
    )
    if len(names) < 2:
        raise ValueError(
            "At least two images are needed to keep one for validation, got "
            f"{len(names)}. Pass --val-images and --val-labels."
        )
    kept = set(names[: max(1, round(VALIDATION_FRACTION * len(names)))])
    return (
        [sample for sample in samples if image(sample) not in kept],
        [sample for sample in samples if image(sample) in kept],
    )


def _model_options(pairs: Sequence[str]) -> dict[str, Any]:
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


def _representation(name: str, num_classes: int | None = None) -> "Representation":
    from vimunet.representation import Boundaries, Distances, Semantic

    if name == "semantic":
        return Semantic() if num_classes is None else Semantic(num_classes)
    if num_classes is not None:
        raise ValueError(f"`--num-classes` must come with semantic labels, got {name}.")
    if name == "distances":
        return Distances()
    return Boundaries(foreground=name == "boundaries")


def tune(options: argparse.Namespace) -> int:
    """Choose thresholds on images with labels and store them in a model file."""
    from vimunet.checkpoint import load_model
    from vimunet.data.folder import find_pairs
    from vimunet.prediction import choose_device

    if (options.output is None) != options.in_place:
        raise ValueError("Give either --output FILE or --in-place, to say where the model goes.")
    if options.in_place and not Path(options.model).is_file():
        raise ValueError(f"`--in-place` must come with a model file, got {options.model}.")
    model = load_model(options.model)
    classes = model.representation.labels_are_classes
    if classes and options.labelled_pixels_only:
        raise ValueError("`--labelled-pixels-only` must be left out for classes.")
    samples = find_pairs(
        options.images,
        options.labels,
        image_key=options.image_key,
        label_key=options.label_key,
        masks=classes,
    )
    model.network.to(choose_device(options.device))
    path = options.model if options.in_place else options.output
    _tune(model, samples, path, options.labelled_pixels_only, **_prediction_options(options))
    return 0


def _tune(
    model: "TrainedModel",
    samples: Sequence["Sample"],
    path: Path,
    labelled_pixels_only: bool,
    **prediction_options: Any,
) -> None:
    """Choose thresholds, print them and write the model with them."""
    from tqdm import tqdm

    from vimunet.checkpoint import save_model
    from vimunet.evaluation import tune_thresholds
    from vimunet.prediction import predict
    from vimunet.representation import Semantic
    from vimunet.semantic_evaluation import tune_threshold

    maps, labels = [], []
    for sample in tqdm(samples, unit="image", disable=None):
        image, annotated = sample.read()
        maps.append(predict(image, model, **prediction_options))
        labels.append(annotated)
    tuned: Representation
    if isinstance(model.representation, Semantic):
        measure = "Dice"
        tuned, score, table = tune_threshold(model.representation, maps, labels)
    else:
        measure = "mSA"
        tuned, score, table = tune_thresholds(
            model.representation, maps, labels, labelled_pixels_only=labelled_pixels_only
        )
    before = table[0][measure]
    print(f"{len(samples)} images, {measure} {before:.4f} before, {score:.4f} after")
    for name in tuned.threshold_grid():
        print(f"  {name}: {getattr(model.representation, name)} -> {getattr(tuned, name)}")
    note = {
        "images": [sample.name for sample in samples],
        f"{measure}_before": before,
        measure: score,
        "labelled_pixels_only": labelled_pixels_only,
    }
    save_model(path, replace(model, representation=tuned, info={**model.info, "tuned": note}))
    print(f"Model with these thresholds: {path}")


def evaluate(options: argparse.Namespace) -> int:
    """Score predicted label files against annotated ones."""
    from vimunet.evaluation import evaluate_folders, write_csv
    from vimunet.semantic_evaluation import evaluate_semantic_folders

    given: dict[str, Any] = {
        name: value
        for name in (*_OF_OBJECTS, *_OF_CLASSES)
        if (value := getattr(options, name)) is not None
    }
    if len(given.get("spacing", ())) == 1:
        (given["spacing"],) = given["spacing"]
    unused = _OF_OBJECTS if options.semantic else _OF_CLASSES
    for name in unused:
        if name in given:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"`{flag}` must {'not come' if options.semantic else 'come'} with --semantic."
            )
    score_folders = evaluate_semantic_folders if options.semantic else evaluate_folders
    result = score_folders(options.predictions, options.labels, protocol=options.protocol, **given)
    if options.csv is not None:
        write_csv(options.csv, result)
    if options.json:
        text = json.dumps(result)
        print(json.dumps(json.loads(text, parse_constant=lambda nan: None), indent=2))
    else:
        _print_scores(result)
    return 0


def _print_scores(result: dict[str, Any]) -> None:
    semantic = "micro" in result
    columns = (
        ("Dice", "IoU", "mIoU", "accuracy", "sensitivity", "specificity", "HD95")
        if semantic
        else ("mSA", "SA50", "SA75", "precision", "recall", "F1")
    )

    def ends(confidence: dict[str, list[float]], what: str) -> list[dict[str, Any]]:
        return [
            {
                "name": f"95 % of {what}: {title}",
                **{key: pair[i] for key, pair in confidence.items()},
            }
            for i, title in enumerate(("low", "high"))
        ]

    mean = {"name": f"mean of {len(result['images'])}", **result["mean"]}
    rows = [*result["images"], mean, *ends(result["confidence"], "means")]
    if semantic:
        rows += [{"name": "all pixels together", **result["micro"]}]
        rows += ends(result["micro_confidence"], "these")
    name_width = max(len(row["name"]) for row in rows)
    width = max(map(len, columns)) + 2
    print(" " * name_width + "".join(f"{column:>{width}}" for column in columns))
    for row in rows:
        cells = (f"{row[key]:>{width}.3f}" if key in row else " " * width for key in columns)
        print(f"{row['name']:<{name_width}}" + "".join(cells))
    settings, total = result["settings"], result["total"]
    if semantic:
        print(
            f"\n{total['missed']} structures missed and {total['invented']} invented, "
            f"protocol {settings['protocol']}"
        )
    else:
        print(
            f"\nprecision, recall and F1 at IoU {settings['threshold']}, "
            f"protocol {settings['protocol']}"
        )
    for title, names in (
        ("without prediction, scored as empty", result["missing"]),
        ("without labels, not scored", result["extra"]),
    ):
        if names:
            print(f"{len(names)} {title}: {_some(names)}")


def convert(options: argparse.Namespace) -> int:
    """Turn a checkpoint of another tool into a model file."""
    from vimunet.bridges import read_checkpoint
    from vimunet.checkpoint import TrainedModel, save_model
    from vimunet.representation import Semantic

    if options.output.exists() and not options.overwrite:
        raise ValueError(f"{options.output} exists already. Replace it with --overwrite.")
    found = read_checkpoint(options.checkpoint, **_model_options(options.option))
    network: Any = found[0]
    report, tool = found[1:]
    if tool != "torch-em" and options.representation is None:
        raise ValueError(
            f"`--representation` must be given for a checkpoint of {tool}: it does not say what "
            "its maps mean."
        )
    name = options.representation or {1: "boundary", 2: "boundaries", 3: "distances"}.get(
        network.out_channels
    )
    if name is None:
        raise ValueError(f"A network with {network.out_channels} maps has no representation here.")
    representation = (
        Semantic.for_channels(network.out_channels) if name == "semantic" else _representation(name)
    )
    if len(representation.channels) != network.out_channels:
        raise ValueError(
            f"`--representation {name}` has {len(representation.channels)} maps, but the network "
            f"of {options.checkpoint} has {network.out_channels}."
        )
    origin = {"converted_from": options.checkpoint.name, "tool": tool}
    normalization = {"VM-UNet": "range", "U-Mamba": "channel"}.get(tool, "image")
    model = TrainedModel(network, representation, normalization, info=origin)
    save_model(options.output, model)
    print(report)
    print(f"{network.config['model']} with {name} written to {options.output}")
    return 0


def data(options: argparse.Namespace) -> int:
    """Download a public data set."""
    from vimunet.data.download import download

    folder = download(options.name, options.directory)
    print(f"{options.name} is in {folder}")
    return 0


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vimunet",
        description="Segment cells and neurites in microscopy images.",
        epilog="`vimunet COMMAND --help` explains a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Any, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=description, description=f"{description.capitalize()}."
        )
        command.set_defaults(run=run)
        return command

    add("info", info, "show versions, devices, models and optional packages")

    command = add("segment", segment, "turn images into label images")
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
    _add_prediction_options(command)

    command = add("train", train, "train a network on images with labels")
    _add_pairs(command)
    command.add_argument(
        "--model",
        required=True,
        help="a new network (vim_t, unet, ...; see `vimunet info`), or a model to continue from "
        "(nuclei, ..., or a model file)",
    )
    command.add_argument("--output", type=Path, required=True, help="folder of this training")
    command.add_argument(
        "--val-images", type=Path, help="images to validate on; default: a part of --images"
    )
    command.add_argument("--val-labels", type=Path, help="their labels")
    command.add_argument(
        "--representation",
        choices=REPRESENTATIONS,
        help="what the network learns; `boundary` is for images without background, `semantic` for "
        "labels that are classes or masks (default: boundaries)",
    )
    _add_num_classes(command)
    settings = command.add_argument_group(
        "settings", "Left out, they are the paper's.", argument_default=argparse.SUPPRESS
    )
    settings.add_argument("--iterations", type=int, help="steps of the optimizer (100000)")
    settings.add_argument("--max-minutes", type=float, help="stop after this time (no limit)")
    settings.add_argument("--crop-size", type=int, help="side of the crops in pixels (512)")
    settings.add_argument("--batch-size", type=int, help="crops per iteration (2)")
    settings.add_argument("--lr", type=float, help="learning rate (1e-4)")
    settings.add_argument("--optimizer", choices=("adam", "adamw"), help="(adam)")
    settings.add_argument("--weight-decay", type=float, help="of the optimizer (0)")
    settings.add_argument(
        "--schedule",
        choices=("plateau", "cosine"),
        help="how the learning rate falls (plateau: when the validation loss does not)",
    )
    settings.add_argument("--precision", choices=("float32", "bf16"), help="(float32)")
    settings.add_argument("--seed", type=int, default=0, help="of weights and crops (0)")
    settings.add_argument(
        "--validation-interval", type=int, help="iterations between two validations (1000)"
    )
    settings.add_argument(
        "--rotations", action="store_true", help="also rotate the crops by quarter turns"
    )
    settings.add_argument("--device", help="cpu, cuda or mps (auto)")
    command.add_argument("--resume", action="store_true", help="continue the training in --output")
    command.add_argument(
        "--skip-connections", action="store_true", help="ViM-UNet with finer maps from the image"
    )
    command.add_argument("--in-channels", type=int, help="default: those of the first image")
    command.add_argument(
        "--pretrained",
        type=Path,
        help="published weights to start from: Vision Mamba's for vim_*, VMamba's for vmunet, "
        "Segment Anything's for unetr_*",
    )
    _add_option(command, "variant=paper")

    command = add("tune", tune, "choose the thresholds of a model on images with labels")
    command.add_argument("--model", required=True, help="nuclei, ... or a model file")
    _add_pairs(command)
    command.add_argument("--output", type=Path, help="model file to write")
    command.add_argument("--in-place", action="store_true", help="replace the file of --model")
    _add_labelled_pixels_only(command)
    _add_prediction_options(command)

    command = add("evaluate", evaluate, "score predicted labels against annotated ones")
    command.add_argument("--predictions", type=Path, required=True, help="folder of label images")
    command.add_argument("--labels", type=Path, required=True, help="folder of annotated labels")
    command.add_argument("--csv", type=Path, help="also write a table, one row per image")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument(
        "--protocol",
        choices=("fair", "paper"),
        default="fair",
        help="how matches are counted (default: %(default)s)",
    )
    command.add_argument(
        "--threshold", type=float, help="IoU of a match for precision, recall and F1 (default: 0.5)"
    )
    _add_labelled_pixels_only(command, default=None)
    command.add_argument(
        "--semantic", action="store_true", help="labels are classes or masks: Dice, IoU, HD95, ..."
    )
    _add_num_classes(command)
    command.add_argument(
        "--spacing",
        type=float,
        nargs="+",
        help="distance of neighbouring pixels along each axis, for HD95 (default: 1)",
    )

    command = add("convert", convert, "turn a checkpoint of another tool into a model file")
    command.add_argument(
        "checkpoint", type=Path, help="of torch-em, VM-UNet or U-Mamba, as `torch.save` wrote it"
    )
    command.add_argument("--output", type=Path, required=True, help="model file to write")
    command.add_argument(
        "--representation",
        choices=REPRESENTATIONS,
        help="what its maps mean (default for torch-em: from their number)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")
    _add_option(command, "in_channels=3")

    command = add("data", data, "download a public data set")
    command.add_argument("name", choices=("livecell", "cremi"))
    command.add_argument("directory", type=Path, metavar="DIR")
    return parser


def _add_pairs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--images", type=Path, required=True, help="folder of images")
    command.add_argument(
        "--labels", type=Path, required=True, help="folder of label images of the same names"
    )
    command.add_argument("--image-key", help="data set of the images in HDF5, Zarr or N5 files")
    command.add_argument("--label-key", help="data set of the labels in HDF5, Zarr or N5 files")


def _add_option(command: argparse.ArgumentParser, example: str) -> None:
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"option of the network, e.g. {example}; may be repeated",
    )


def _add_num_classes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--num-classes", type=int, help="of semantic labels, background included (default: 2)"
    )


def _add_labelled_pixels_only(
    command: argparse.ArgumentParser, default: bool | None = False
) -> None:
    command.add_argument(
        "--labelled-pixels-only",
        action="store_true",
        default=default,
        help="score only where the labels are not 0 (EM labels that leave out boundaries)",
    )


def _add_prediction_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tile-size", type=int, help="of large images, in pixels without halo (default: auto)"
    )
    command.add_argument(
        "--halo", type=int, default=64, help="context of a tile in pixels (default: %(default)s)"
    )
    command.add_argument(
        "--batch-size", type=int, default=1, help="tiles at a time (default: %(default)s)"
    )
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: auto)")
    command.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the network (default: bfloat16 on CUDA, else float32)",
    )


if __name__ == "__main__":
    sys.exit(main())
