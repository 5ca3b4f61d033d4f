"""The report of a comparison: one HTML file that needs nothing else.

`write_report` puts the result of `vimunet.comparison.compare` into words, tables and pictures.
The file loads nothing from elsewhere and runs no script; names of files and methods are only text.
"""

import datetime
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vimunet import __version__
from vimunet.bridges.predictions import open_predictions
from vimunet.comparison.pictures import (
    COLORS,
    MOST_METHODS,
    Painter,
    Panel,
    Readable,
    choose_images,
)
from vimunet.comparison.sentences import headline, plural, ranking, score_text
from vimunet.comparison.tables import (
    FATES,
    as_html,
    write_differences,
    write_errors,
    write_scores,
)
from vimunet.files import replacing
from vimunet.messages import some_of

MOST_IMAGES = 12
"""Images in the gallery, unless told otherwise."""

_MOST_NAMES = 12
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    command = _command(program, result, images_folder, most_images, path.parent)
    parts = (
        _head(result),
        _problems(result),
        write_scores(result, published),
        write_differences(result),
        write_errors(result, chosen),
        _gallery(result, chosen, painter),
        _settings(result, images_folder, command),
        ["</main></body></html>\n"],
    )
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for part in parts:
            file.writelines(part)


def _head(result: dict[str, Any]) -> Iterator[str]:
    first, *others = headline(result)
    methods, images = len(result["methods"]), len(result["names"])
    title = f"{methods} {plural(methods, 'method')} on {images} {plural(images, 'image')}"
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    colors = "".join(f".{fate}{{--fate:{color}}}" for fate, color in COLORS.items())
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Comparison: {title}</title><style>{style}{colors}</style></head><body>"
        f'<header><p class="kind">Comparison of {title}</p><h1>{as_html(first)}</h1>'
        f"<p>{as_html(' '.join(others))}</p>"
        '<nav aria-label="Sections"><a href="#scores">Scores</a>'
    )
    if methods > 1:
        yield '<a href="#differences">Differences</a>'
    yield (
        '<a href="#errors">Errors</a><a href="#pictures">Pictures</a>'
        '<a href="#settings">Settings</a></nav></header><main>'
    )


def _problems(result: dict[str, Any]) -> Iterator[str]:
    """List what could not be scored as it was meant, by method and problem."""
    rows, empty = [], False
    for name in ranking(result):
        method = result["methods"][name]
        grouped: dict[str, list[str]] = {}
        for entry in method["problems"]:
            grouped.setdefault(entry["problem"], []).append(entry["name"])
        empty |= bool(grouped)
        for entry in method.get("notes", ()):
            grouped.setdefault(entry["note"], []).append(entry["name"])
        if extra := method.get("extra"):
            grouped["predictions without labels of their name, not scored"] = extra
        for problem, images in grouped.items():
            shown = some_of(map(as_html, images), _MOST_NAMES)
            rows.append(
                f"<li><b>{as_html(name)}</b>: {as_html(problem)} ({len(images)}): {shown}</li>"
            )
    if not rows:
        return
    yield '<section class="problems"><h2>Problems</h2>'
    if empty:
        yield (
            "<p>Images without a usable file count as if nothing had been found. Unless that is "
            "so, the scores of their method are too low.</p>"
        )
    yield f"<ul>{''.join(rows)}</ul></section>"


def _gallery(result: dict[str, Any], chosen: Mapping[str, str], painter: Painter) -> Iterator[str]:
    yield '<section id="pictures"><h2>Pictures</h2>'
    if not chosen:
        yield "<p>None were asked for.</p></section>"
        return
    legend = "".join(f'<li><i class="{fate}"></i><b>{fate}</b></li>' for fate in FATES)
    notes = ["Large images are shown smaller than they are."]
    if rest := len(result["names"]) - len(chosen):
        notes.append(f"{rest:,} more {plural(rest, 'image')} not shown.")
    if len(result["methods"]) > MOST_METHODS:
        notes.append(f"Only the best {MOST_METHODS} methods are shown.")
    yield (
        "<p>Per method the objects as outlines and, beside them, the errors: labelled objects in "
        "the colour of what became of them, false objects too, predicted outlines in white. "
        f'{" ".join(notes)}</p><p class="choice"><label><input type="checkbox" id="large"> '
        f'larger pictures</label></p><ul class="legend">{legend}</ul>'
    )
    for place, (name, reason) in enumerate(chosen.items()):
        yield (
            f'<section class="picture" id="picture-{place}"><h3>{as_html(name)} '
            f'<small>{as_html(reason)}</small></h3><div class="panels">'
        )
        for panel in painter.panels(name):
            yield _panel(panel)
        yield "</div></section>"
    yield "</section>"


def _panel(panel: Panel) -> str:
    pictures = "".join(
        f'<img src="{picture.source}" width="{picture.width}" height="{picture.height}" '
        f'alt="{as_html(picture.alt)}">'
        for picture in panel.pictures
    )
    caption = f"<b>{as_html(panel.title)}</b>"
    if panel.scores is not None:
        kinds = [
            f"{panel.scores[fate]} {fate}"
            for fate in FATES
            if panel.scores[fate] or fate == "found"
        ]
        caption += f" mSA {score_text(panel.scores['mSA'])}: {', '.join(kinds)}"
    if panel.note:
        caption += f' <span class="warn">{as_html(panel.note)}</span>'
    return f'<figure><div class="pair">{pictures}</div><figcaption>{caption}</figcaption></figure>'


def _settings(
    result: dict[str, Any], images_folder: str | Path | None, command: str
) -> Iterator[str]:
    settings = result["settings"]
    rows = {
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
    listed = "".join(f"<dt>{as_html(key)}</dt><dd>{as_html(row)}</dd>" for key, row in rows.items())
    yield (
        f'<section id="settings"><h2>Settings</h2><dl class="settings">{listed}</dl>'
        f"<h3>To repeat it</h3><pre>{as_html(command)}</pre></section>"
    )


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
