"""The report of a comparison: one HTML file that needs nothing else.

`write_report` puts the result of `vimunet.comparison.compare` into words, tables and pictures:
`report.html` is the page, what stands in it is computed here. The file loads nothing from elsewhere
and runs no script; names of files and methods are only text.
"""

import datetime
import math
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from vimunet import __version__
from vimunet.bridges.predictions import open_predictions
from vimunet.comparison import LABELLED_OUTCOMES
from vimunet.comparison.figure import PUBLISHED_TITLE, figure_svg
from vimunet.comparison.pictures import (
    COLORS,
    MOST_METHODS,
    Painter,
    Panel,
    Readable,
    choose_images,
)
from vimunet.comparison.sentences import (
    FEW_IMAGES,
    diagnosis,
    headline,
    interval_text,
    is_certain,
    number,
    p_text,
    plural,
    printable,
    ranking,
    score_text,
    size_text,
)
from vimunet.io.atomic import replacing
from vimunet.messages import some_of

MOST_IMAGES = 12
"""Images in the gallery, unless told otherwise."""

OUTCOMES = {
    "found": "matched",
    "inexact": "seen, but the outline is too far off",
    "split": "cut into pieces",
    "merged": "joined with a neighbour",
    "missed": "not seen",
    "false": "nothing of the kind in the labels",
}
"""What becomes of objects, in the order of the bars."""


@dataclass(frozen=True)
class _Column:
    """A score in the table: its key in the result, the value of a perfect one, what it means."""

    key: str
    best: int
    meaning: str

    @property
    def title(self) -> str:
        return self.key.replace("_", " ")


_COLUMNS = (
    _Column("mSA", 1, "mean over IoU thresholds 0.5 to 0.95 of TP / (TP + FP + FN)"),
    _Column("SA50", 1, "TP / (TP + FP + FN) at IoU 0.5: objects roughly right"),
    _Column("SA75", 1, "the same at IoU 0.75: outlines good"),
    _Column("F1", 1, "2 TP / (2 TP + FP + FN) at the IoU threshold of the settings"),
    _Column("PQ", 1, "panoptic quality: F1 times the mean IoU of the matched objects"),
    _Column("VI_split", 0, "variation of information by splitting objects, bits per pixel"),
    _Column("VI_merge", 0, "variation of information by merging objects, bits per pixel"),
    _Column("ARE", 0, "adapted Rand error: pairs of pixels that are wrongly together or apart"),
)
_MOST_NAMES = 12
_WORST_IMAGES = 3
_WIDE_ENOUGH = 0.06  # of a bar, to write a number into it
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class _Mark:
    """Where a difference and its interval lie in their column, in percent of its width."""

    zero: float
    start: float
    middle: float
    width: float


def write_report(
    result: dict[str, Any],
    path: str | Path,
    images_folder: str | Path | None = None,
    *,
    labels_folder: str | Path | None = None,
    predictions: Mapping[str, Readable] | None = None,
    most_images: int = MOST_IMAGES,
    published: Mapping[str, float] | None = None,
    program: Sequence[str] = ("vimunet", "compare"),
) -> None:
    """Write the report of a comparison as one HTML file of a few megabytes at most.

    Files are read again for the pictures, one image at a time.

    Args:
        result: What `vimunet.comparison.compare` returns, also after a way through JSON.
        path: File to write, all of it or nothing.
        images_folder: Folder of the images; without it, labels are drawn on black.
        labels_folder: Folder of the labels; by default where the result says.
        predictions: Name of each method -> its predictions, as `open_predictions` returns them;
            by default from the folders that the result names.
        most_images: How many images are shown at most; 0 for none.
        published: mSA of other people's methods on other images, by name; they get a panel of
            their own in the figure and no place in the tables.
        program: The words before the arguments of `vimunet compare`, to tell how to repeat it.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If `most_images` is negative.
    """
    if most_images < 0:
        raise ValueError(f"`most_images` must not be negative, got {most_images}.")
    path = Path(path)
    chosen = choose_images(result, most_images)
    if predictions is None:
        protocol = result["settings"]["protocol"]
        predictions = {
            name: open_predictions(method["folder"], protocol=protocol)
            for name, method in result["methods"].items()
        }
    labels = open_predictions(labels_folder or result["labels"])
    painter = Painter(result, labels, predictions, images_folder, len(chosen))
    pieces = _page().generate(
        **_scores(result, published),
        **_errors(result, chosen),
        headline=headline(result),
        problems=_problems(result),
        pictures=_pictures(chosen, painter),
        facts=_facts(result, images_folder),
        command=_command(program, result, images_folder, most_images, path.parent),
    )
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def _page() -> Template:
    """Load the template, which makes all text that it is given printable and escapes it."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        finalize=lambda value: value if hasattr(value, "__html__") else printable(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": score_text,
        "interval": interval_text,
        "p": p_text,
        "size": size_text,
        "thousands": "{:,}".format,
    }
    environment.tests["known"] = lambda score: not math.isnan(number(score))
    environment.globals |= {
        "plural": plural,
        "some_of": some_of,
        "style": (_FOLDER / "report.css").read_text(encoding="utf-8"),
        "colors": COLORS,
        "columns": _COLUMNS,
        "outcomes": OUTCOMES,
        "labelled_outcomes": LABELLED_OUTCOMES[1:],
        "published_title": PUBLISHED_TITLE,
        "few_images": FEW_IMAGES,
        "most_methods": MOST_METHODS,
        "most_names": _MOST_NAMES,
        "wide_enough": _WIDE_ENOUGH,
    }
    return environment.get_template("report.html")


def _scores(result: dict[str, Any], published: Mapping[str, float] | None) -> dict[str, Any]:
    """Compute what the figure and the tables of scores and differences show."""
    methods = {name: result["methods"][name] for name in ranking(result)}
    return {
        "methods": methods,
        "images": len(result["names"]),
        "settings": result["settings"],
        "ceilings": [
            f"{title} {score_text(top['mSA'])} ({interval_text(top['confidence'])})"
            for title, top in result["ceilings"].items()
        ],
        "images_of_ceilings": min(
            (top["images"] for top in result["ceilings"].values()), default=0
        ),
        "svg": figure_svg(result, published),
        "published": published,
        "timed": any(method["seconds_per_image"] is not None for method in methods.values()),
        "best": result["best"],
        "best_means": {column.key: _best_mean(methods, column) for column in _COLUMNS},
        "certain": [name for name in methods if is_certain(result, name)],
        "marks": _marks(result),
    }


def _best_mean(methods: Mapping[str, Any], column: _Column) -> float:
    means = [number(method["mean"][column.key]) for method in methods.values()]
    known = [mean for mean in means if not math.isnan(mean)]
    return (max if column.best else min)(known, default=math.nan)


def _marks(result: dict[str, Any]) -> dict[str, _Mark | None]:
    """Draw differences and their intervals to one scale with 0 in it; None if not defined."""
    differences = {
        name: [number(against["difference"]), *map(number, against["confidence"])]
        for name, method in result["methods"].items()
        if (against := method["against_best"])
    }
    ends = [end for _, *ends in differences.values() for end in ends if not math.isnan(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    scale = 100 / (high - low) if high > low else 0.0
    return {
        name: None
        if math.isnan(start)
        else _Mark(
            zero=-low * scale,
            start=(start - low) * scale,
            middle=(middle - low) * scale,
            width=(end - start) * scale,
        )
        for name, (middle, start, end) in differences.items()
    }


def _errors(result: dict[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
    """Compute what the bars, the diagnoses and the links to the pictures show."""
    methods = result["methods"].items()
    return {
        "longest": max(
            [1, *(method["total"]["objects"] + method["total"]["false"] for _, method in methods)]
        ),
        "diagnoses": {name: diagnosis(method) for name, method in methods},
        "worst_images": {name: _worst_images(method) for name, method in methods},
        "places": {name: place for place, name in enumerate(chosen)},
        "not_shown": len(result["names"]) - len(chosen),
    }


def _worst_images(method: Mapping[str, Any]) -> list[dict[str, Any]]:
    known = [image for image in method["images"] if not math.isnan(number(image["mSA"]))]
    return sorted(known, key=lambda image: number(image["mSA"]))[:_WORST_IMAGES]


def _problems(result: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """List what could not be scored as it was meant: method, problem, names of the files."""
    rows = []
    for name in ranking(result):
        method = result["methods"][name]
        grouped: dict[str, list[str]] = {}
        for entry in method["problems"]:
            grouped.setdefault(entry["problem"], []).append(entry["name"])
        for entry in method.get("notes", ()):
            grouped.setdefault(entry["note"], []).append(entry["name"])
        if extra := method.get("extra"):
            grouped["predictions without labels of their name, not scored"] = extra
        rows += [(name, problem, files) for problem, files in grouped.items()]
    return rows


def _pictures(
    chosen: Mapping[str, str], painter: Painter
) -> Iterator[tuple[str, str, Iterator[Panel]]]:
    """Give each image, why it was chosen, and its panels, drawn when they are asked for."""
    for name, reason in chosen.items():
        yield name, reason, painter.panels(name)


def _facts(result: dict[str, Any], images_folder: str | Path | None) -> dict[str, Any]:
    settings = result["settings"]
    return {
        "Labels": result["labels"],
        "Images": images_folder or "not given",
        "IoU threshold of counts, F1, PQ and errors": f"{settings['threshold']:g}",
        "Protocol": settings["protocol"],
        "Scored pixels": "only labelled ones" if settings["labelled_pixels_only"] else "all",
        **{
            f"Method {name}": f"{method['folder']} ({method['tool']})"
            for name, method in result["methods"].items()
        },
        "Versions": ", ".join(
            (
                f"vimunet {__version__}",
                *(f"{name} {metadata.version(name)}" for name in ("numpy", "scipy")),
                f"Python {platform.python_version()}",
            )
        ),
        "Written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def _command(
    program: Sequence[str],
    result: dict[str, Any],
    images_folder: str | Path | None,
    most_images: int,
    output: Path,
) -> str:
    """Write the command line that makes this comparison."""
    settings = result["settings"]
    methods = result["methods"].items()
    words = [*program, *(f"{name}={method['folder']}" for name, method in methods)]
    words += ["--labels", result["labels"]]
    if images_folder is not None:
        words += ["--images", str(images_folder)]
    if settings["threshold"] != 0.5:
        words += ["--threshold", f"{settings['threshold']:g}"]
    if settings["protocol"] != "fair":
        words += ["--protocol", settings["protocol"]]
    if settings["labelled_pixels_only"]:
        words += ["--labelled-pixels-only"]
    for name, method in methods:
        if method["seconds_per_image"] is not None:
            words += ["--seconds", f"{name}={method['seconds_per_image']:g}"]
    if most_images != MOST_IMAGES:
        words += ["--gallery", str(most_images)]
    return shlex.join([*words, "--output", str(output), "--overwrite"])
