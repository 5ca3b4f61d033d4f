"""Keep what a scored run tells in the long tables of `results`.

    python experiments/keep.py NAME --run RUN --scores SCORES --experiment shipped

`runs.csv` has the settings of each training, `scores.csv` its scores for each split, recipe and
kind of images, `images.csv` those of each image with the tuned thresholds, `training_logs.csv`
every 25th line of its log. Runs that find classes have `class_scores.csv` and `class_images.csv`.
Rows of a run that was kept before are replaced.
"""

import argparse
import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vimunet.datasets.splits import DATASETS
from vimunet.io.tables import write_rows
from vimunet.representations import (
    REPRESENTATIONS,
    build_representation,
    representation_from_config,
)
from vimunet.training.scoring import score_rows

RESULTS = Path(__file__).resolve().parent / "results"
KEY = ("experiment", "run")

_EVERY = 25
_PLACE = ("split", "recipe", "kind", "images")
_OF_OBJECTS = ("mSA", "mSA low", "mSA high", "SA50")
_IMAGES_OF_OBJECTS = (
    *("mSA", "SA50", "SA75", "TP", "FP", "FN", "PQ", "VI_split", "VI_merge", "ARE"),
    *("rand_precision", "rand_recall"),
)
_IMAGES_OF_CLASSES = ("Dice", "IoU", "HD95", "TP", "FP", "FN", "TN")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("name", help="of the run")
    flags.add_argument("--run", type=Path, required=True, help="folder of the training")
    flags.add_argument("--scores", type=Path, required=True, help="what `evaluate.py` wrote")
    flags.add_argument("--experiment", required=True, help="what it belongs to, e.g. shipped")
    flags.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    options = flags.parse_args()
    summary = json.loads((options.scores / "summary.json").read_text())
    key = {"experiment": options.experiment, "run": options.name}
    keep_scores(options.results, key, summary)
    keep_images(options.results, key, read_rows(options.scores / "images.csv"))
    log = read_rows(options.run / "log.csv")[_EVERY - 1 :: _EVERY]
    rows = [{**key, **numbers(row)} for row in log]
    put_rows(options.results / "training_logs.csv", rows)


def keep_scores(
    results: Path, key: Mapping[str, str], summary: dict[str, Any], **measured: Any
) -> None:
    """Keep the settings and the scores of a run.

    Args:
        results: Folder of the tables.
        key: Experiment and name of the run.
        summary: What `vimunet.training.scoring.score_model` returned.
        **measured: More columns of `runs.csv`.
    """
    info = summary["info"]
    config = info["config"]
    titles = {data.title: name for name, data in DATASETS.items()}
    data = titles.get(info["training_data"], info["training_data"])
    settings = {k: v for k, v in config.items() if k not in ("training_data", "licence")}
    origin = {name: info[name] for name in ("iteration", "licence", "version", "commit")}
    row = {**key, "data": data, **origin, "tuned": summary["tuned"], **settings, **measured}
    put_rows(results / "runs.csv", [row])
    which = {
        "data": data,
        "model": config["model"],
        "representation": name_of(config["representation"]),
        "seed": config["seed"],
        "iterations": info["iteration"],
        "commit": info["commit"][:7],
    }
    of_classes = "micro" in summary["test"]["tuned"]
    rows = [
        {**key, **which}
        | {name: row[name] for name in row if of_classes or name in (*_PLACE, *_OF_OBJECTS)}
        for row in score_rows(summary)
    ]
    put_rows(results / f"{'class_' if of_classes else ''}scores.csv", rows)


def keep_images(results: Path, key: Mapping[str, str], rows: Sequence[dict[str, str]]) -> None:
    """Keep the main scores of each image with the tuned thresholds, from `images.csv` of a run."""
    of_classes = "Dice" in rows[0]
    scores = _IMAGES_OF_CLASSES if of_classes else _IMAGES_OF_OBJECTS
    kept = [
        {**key, "split": row["split"], "recipe": row["recipe"], "image": row["name"]}
        | numbers({name: row[name] for name in scores})
        for row in rows
        if row["recipe"] == "tuned"
    ]
    put_rows(results / f"{'class_' if of_classes else ''}images.csv", kept)


def name_of(representation: dict[str, Any]) -> str:
    """Name a representation as `--representation` does: one of the boundary alone is "boundary"."""
    channels = representation_from_config(representation).channels
    names = [name for name in REPRESENTATIONS if build_representation(name).channels == channels]
    return names[0] if names else representation["name"]


def numbers(row: Mapping[str, str]) -> dict[str, Any]:
    """Read the numbers of a row; what is empty stays so."""
    return {
        name: text and (int(text) if text.isdigit() else float(text)) for name, text in row.items()
    }


def read_rows(file: Path) -> list[dict[str, str]]:
    """Read a table; one that does not exist is empty."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def put_rows(file: Path, rows: Iterable[Mapping[str, Any]], key: Sequence[str] = KEY) -> None:
    """Add rows to a table; those that are there with the same key go.

    Args:
        file: The table; new columns come last.
        rows: What to add; numbers get seven digits, lists and dictionaries are written as JSON.
        key: Columns that tell what a row belongs to.
    """
    new = [{name: _cell(value) for name, value in row.items()} for row in rows]
    if not new:
        return
    replaced = {tuple(row[name] for name in key) for row in new}
    old = [row for row in read_rows(file) if tuple(row[name] for name in key) not in replaced]
    columns = dict.fromkeys(name for row in [*old, *new] for name in row)
    write_rows(file, [{name: row.get(name, "") for name in columns} for row in [*old, *new]])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.7g}"
    if isinstance(value, dict | list | tuple):
        return json.dumps(value)
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
