"""The numbers of the ViM-UNet paper, to be shown beside measured ones and never among them.

`published.csv` has one row per number of figure 2 (mSA) and table 1 (parameters, memory, seconds)
of Archit & Pape 2024 (https://arxiv.org/abs/2404.07705): single runs on the full LIVECell and CREMI
data, each network after 100,000 iterations. `spread` is what the table gives in brackets.
"""

import csv
from dataclasses import dataclass, fields
from pathlib import Path

FILE = Path(__file__).with_suffix(".csv")


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        origin: "published", so that a row tells it wherever it ends up.
        method: As the paper calls it.
        data: "LIVECell" or "CREMI"; empty if the number does not depend on it.
        representation: "boundaries" or "distances"; empty if the number does not depend on it.
        quantity: "mSA", "parameters", "training memory" or "inference".
        unit: Of the number; empty for mSA.
        relation: "=", or "<=" where the paper gives a bound.
        value: The number.
        spread: Its spread, None if the paper gives none.
        source: Paper and figure or table.
    """

    origin: str
    method: str
    data: str
    representation: str
    quantity: str
    unit: str
    relation: str
    value: float
    spread: float | None
    source: str


def read_published(file: str | Path = FILE) -> list[Published]:
    """Read a table of published numbers.

    Args:
        file: CSV with the columns of `Published`.

    Returns:
        The rows.

    Raises:
        ValueError: If columns are missing, or a row is not marked as published.
    """
    with Path(file).open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    names = [field.name for field in fields(Published)]
    numbers = []
    for row in rows:
        if missing := [name for name in names if row.get(name) is None]:
            raise ValueError(f"{file} must have the columns {', '.join(names)}, lacks {missing}.")
        if row["origin"] != "published":
            raise ValueError(
                f"`origin` in {file} must be 'published', got {row['origin']!r} for "
                f"{row['method']}. Measured numbers belong elsewhere."
            )
        texts = {name: row[name] for name in names if name not in ("value", "spread")}
        spread = float(row["spread"]) if row["spread"] else None
        numbers.append(Published(**texts, value=float(row["value"]), spread=spread))
    return numbers


def published_scores(data: str, representation: str, file: str | Path = FILE) -> dict[str, float]:
    """Return the published mSA of each method, for `vimunet.comparison.figure.write_figure`.

    Args:
        data: "LIVECell" or "CREMI".
        representation: "boundaries" or "distances".
        file: As in `read_published`.

    Raises:
        ValueError: If nothing was published for the two; the message lists what was.
    """
    numbers = [number for number in read_published(file) if number.quantity == "mSA"]
    scores = {
        number.method: number.value
        for number in numbers
        if (number.data, number.representation) == (data, representation)
    }
    if not scores:
        known = sorted({f"{number.data} {number.representation}" for number in numbers})
        asked = f"{data} {representation}".strip()
        raise ValueError(f"No published mSA for {asked!r}. Known: {', '.join(known)}.")
    return scores
