"""`vimunet evaluate`: folders of predicted and of annotated labels in, a table of scores out.

Or a model and a public data set, see `vimunet.cli.experiment`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from vimunet.cli import experiment
from vimunet.cli.arguments import (
    add_labelled_pixels_only,
    add_protocol,
    check_free,
    flag,
    one_or_each,
)
from vimunet.messages import some_of

_OF_OBJECTS = ("threshold", "labelled_pixels_only")
_OF_CLASSES = ("num_classes", "spacing")
"""Flags of `vimunet evaluate` for the one and the other kind of labels."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    command.add_argument("--predictions", type=Path, help="folder of label images")
    command.add_argument("--labels", type=Path, help="folder of annotated labels")
    command.add_argument("--csv", type=Path, help="also write a table, one row per image")
    command.add_argument("--overwrite", action="store_true", help="replace an existing --csv")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_protocol(command, "how matches are counted")
    command.add_argument(
        "--threshold", type=float, help="IoU of a match for precision, recall and F1 (default: 0.5)"
    )
    add_labelled_pixels_only(command, default=None)
    command.add_argument(
        "--semantic", action="store_true", help="labels are classes or masks: Dice, IoU, HD95, ..."
    )
    command.add_argument(
        "--num-classes", type=int, help="of semantic labels, background included (default: 2)"
    )
    command.add_argument(
        "--spacing",
        type=float,
        nargs="+",
        help="distance of neighbouring pixels along each axis, for HD95 (default: 1)",
    )
    experiment.add_arguments(command)


def run(options: argparse.Namespace) -> int:
    """Score predicted label files against annotated ones, or a model on a public data set."""
    experiment.check(options)
    if options.dataset is not None:
        return experiment.run(options)
    if options.predictions is None or options.labels is None:
        raise ValueError(
            "Give --predictions and --labels, or a model and a public data set: --model and "
            "--dataset."
        )
    return _score_folders(options)


def _score_folders(options: argparse.Namespace) -> int:
    from vimunet.io.tables import write_csv
    from vimunet.scores.folders import evaluate_folders, evaluate_semantic_folders

    if options.csv is not None:
        check_free(options.csv, options.overwrite)
    given: dict[str, Any] = {
        name: value
        for name in (*_OF_OBJECTS, *_OF_CLASSES)
        if (value := getattr(options, name)) is not None
    }
    if "spacing" in given:
        given["spacing"] = one_or_each(given["spacing"])
    unused = _OF_OBJECTS if options.semantic else _OF_CLASSES
    for name in unused:
        if name in given:
            raise ValueError(
                f"`{flag(name)}` must {'not come' if options.semantic else 'come'} with --semantic."
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
            print(f"{len(names)} {title}: {some_of(names)}")
