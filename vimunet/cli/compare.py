"""`vimunet compare`: predictions of several methods in, one table, one figure, one report out."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vimunet.cli.arguments import add_labelled_pixels_only, add_protocol, check_free
from vimunet.messages import some_of

_OUTPUTS = (
    "comparison.json",
    "methods.csv",
    "images.csv",
    "report.html",
    "figure.png",
    "figure.svg",
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments, which `experiments/benchmark/compare.py` shares."""
    command.add_argument(
        "methods",
        nargs="+",
        metavar="NAME=FOLDER",
        help="what each method found, as nnU-Net, Cellpose, StarDist, ImageJ or any other tool "
        "wrote it; without NAME=, the folder's own name",
    )
    command.add_argument("--labels", type=Path, required=True, help="folder of annotated labels")
    command.add_argument("--images", type=Path, help="folder of the images, for the pictures")
    command.add_argument(
        "--output",
        type=Path,
        default=Path("comparison"),
        help="folder for report.html, figure.png, figure.svg, methods.csv, images.csv and "
        "comparison.json (default: %(default)s)",
    )
    add_protocol(command, "how nnU-Net's classes become objects and matches are counted")
    command.add_argument(
        "--threshold", type=float, default=0.5, help="IoU of a match (default: %(default)s)"
    )
    add_labelled_pixels_only(command)
    command.add_argument(
        "--seconds",
        action="append",
        default=[],
        metavar="NAME=SECONDS",
        help="seconds per image of a method, if you know them; may be repeated",
    )
    command.add_argument(
        "--gallery", type=int, default=12, help="images to show (default: %(default)s)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace an earlier comparison")


def run(
    options: argparse.Namespace,
    published: Mapping[str, float] | None = None,
    program: Sequence[str] = ("vimunet", "compare"),
) -> int:
    """Score several methods and write the tables, the figure and the report.

    Args:
        options: What `add_arguments` reads.
        published: mSA of others' methods on others' images, for a panel of their own.
        program: The words before these options, for the report to tell how to repeat it.

    Returns:
        The exit code.
    """
    from tqdm import tqdm

    from vimunet.bridges import nnunet
    from vimunet.comparison import compare, perfect_maps, write_tables
    from vimunet.comparison.figure import write_figure
    from vimunet.comparison.report import write_report

    methods = _methods(options.methods)
    seconds = _seconds(options.seconds)
    output = options.output
    if options.gallery < 0:
        raise ValueError(f"`--gallery` must not be negative, got {options.gallery}.")
    if options.images is not None and not options.images.is_dir():
        raise FileNotFoundError(f"No such folder: {options.images}.")
    read = [options.labels, options.images, *methods.values()]
    if output.resolve() in {folder.resolve() for folder in read if folder is not None}:
        raise ValueError(f"`--output` must be a folder of its own, got {output}, which is read.")
    for name in _OUTPUTS:
        check_free(output / name, options.overwrite)
    with tqdm(unit="image", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = compare(
            options.labels,
            methods,
            images=options.images,
            threshold=options.threshold,
            protocol=options.protocol,
            labelled_pixels_only=options.labelled_pixels_only,
            seconds=seconds,
            ceilings=perfect_maps(
                background=not options.labelled_pixels_only,
                classes=any(nnunet.is_prediction_folder(folder) for folder in methods.values()),
            ),
            progress=show,
        )
    write_figure(result, output, published=published)
    write_report(
        result,
        output / "report.html",
        options.images,
        most_images=options.gallery,
        published=published,
        program=program,
    )
    write_tables(output, result)
    _print(result)
    print(f"\nReport: {output / 'report.html'}")
    return int(any(_problems(method) for method in result["methods"].values()))


def _methods(given: Sequence[str]) -> dict[str, Path]:
    methods: dict[str, Path] = {}
    for text in given:
        path = Path(text).expanduser()
        name = path.resolve().name
        if not path.is_dir() and "=" in text:
            name, _, folder = text.partition("=")
            path = Path(folder).expanduser()
        if not path.is_dir():
            what = "is no folder" if path.exists() else "does not exist"
            raise FileNotFoundError(f"The predictions of {name!r}: {path} {what}.")
        if not name or name in methods:
            raise ValueError(
                f"Methods must have different names, got {name!r} for {path}. "
                "Write NAME=FOLDER to name one."
            )
        methods[name] = path
    return methods


def _seconds(given: Sequence[str]) -> dict[str, float]:
    seconds = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            seconds[name] = float(number)
        except ValueError:
            seconds[name] = math.nan
        if not name or not 0 <= seconds[name] < math.inf:
            raise ValueError(f"`--seconds` must be NAME=SECONDS, got {text!r}.")
    return seconds


def _problems(method: dict[str, Any]) -> dict[str, list[str]]:
    """Images that were scored as empty, by what was wrong; nothing found is nothing wrong."""
    from vimunet.comparison.scoring import NOTHING_FOUND

    images: dict[str, list[str]] = {}
    for entry in method["problems"]:
        if entry["problem"] != NOTHING_FOUND:
            what = entry["problem"].replace(entry["name"], "...")
            images.setdefault(what, []).append(entry["name"])
    return images


def _print(result: dict[str, Any]) -> None:
    columns = ("mSA", "SA50", "SA75", "F1", "PQ")
    methods = sorted(result["methods"].items(), key=lambda item: -item[1]["mean"]["mSA"])
    width = max(len(name) for name in ("perfect maps", *result["methods"]))
    print(" " * width + "".join(f"{column:>8}" for column in columns) + "   95 % of mSA")
    for name, method in methods:
        low, high = method["confidence"]["mSA"]
        print(
            f"{name:<{width}}"
            + "".join(f"{method['mean'][column]:>8.3f}" for column in columns)
            + f"   {low:.3f} - {high:.3f}"
        )
    for title, ceiling in result["ceilings"].items():
        print(f"{'perfect maps':<{width}}{ceiling['mSA']:>8.3f}   {title}")
    for name, method in methods:
        for problem, images in _problems(method).items():
            print(f"{name}: {problem}; scored as empty: {some_of(images)}")
        for entry in method["notes"]:
            print(f"{name}: {entry['name']}: {entry['note']}")
        if method["extra"]:
            print(f"{name}: no labels, not scored: {some_of(method['extra'])}")
