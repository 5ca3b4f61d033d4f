"""Tables and results as CSV and JSON files, completely or not at all."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vimunet.io.atomic import replacing


def write_json(path: str | Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, nan as null."""
    _write(path, json.dumps(_without_nan(result), indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, result: dict[str, Any]) -> None:
    """Write the result of `evaluate_folders` as a table.

    One row per image, then the rows `mean`, `low` and `high` (of the confidence interval); for
    classes also `micro`, `micro low` and `micro high`. Scores that are not defined are left empty.
    """
    summary = [{"name": "mean", **result["mean"]}]
    summary += _ends(result["confidence"])
    if "micro" in result:
        summary += [{"name": "micro", **result["micro"]}]
        summary += _ends(result["micro_confidence"], "micro ")
    write_rows(path, result["images"] + summary)


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, nan and None as nothing; the first row has all keys."""
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(_without_nan(row) for row in rows)
    _write(path, text.getvalue())


def write_columns(path: str | Path, table: Mapping[str, Iterable[Any]]) -> None:
    """Write columns as CSV for spreadsheets: seven digits, nan as nothing.

    Args:
        path: File to write; an existing one is replaced.
        table: Column name -> values.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow([_cell(value) for value in row])
    # With the mark at its start, spreadsheets read the file as UTF-8.
    with replacing(Path(path)) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8-sig", newline="")


def _cell(value: Any) -> Any:
    """Give what stands in the file: seven digits, nothing for NaN."""
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else f"{value:.7g}"
    return value


def _ends(confidence: dict[str, list[float]], prefix: str = "") -> list[dict[str, Any]]:
    """Turn intervals into two rows of a table."""
    return [
        {"name": f"{prefix}{title}", **{key: ends[i] for key, ends in confidence.items()}}
        for i, title in enumerate(("low", "high"))
    ]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _write(path: str | Path, text: str) -> None:
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")
