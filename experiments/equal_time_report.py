"""What the comparison in equal time says: two long tables, and the text behind the registration."""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from equal_time_plan import DATA, ENTRANTS, KEY, SECONDS, SEEDS, Run, run_of
from keep import read_rows

from vimunet.comparison.scoring import sign_flip_test
from vimunet.comparison.sentences import interval_text, p_text, score_text
from vimunet.io.atomic import replacing
from vimunet.io.tables import write_rows
from vimunet.scores.statistics import confidence_interval

RUNS, IMAGES, REGISTRATION = "equal_time_runs.csv", "equal_time_images.csv", "equal_time.md"
LEVEL = 0.05
MARK = "<!-- Written by `python experiments/equal_time.py report`: -->"


def report(runs: Path | None, results: Path) -> None:
    """Add finished runs to the tables; write what these say behind the registration.

    Args:
        runs: Folder of runs; None to write again what is in the tables.
        results: Folder with the measured seconds, the registration and the tables.
    """
    timed = {row["entrant"]: row for row in read_rows(results / SECONDS)}
    failed = []
    if runs is not None:
        failed = sorted(file.parent.name for file in runs.glob("*/failed.txt"))
        files = sorted(runs.glob("*/run.csv"))
        rows = [row for file in files for row in read_rows(file)]
        add_rows(results / RUNS, [[costs(timed[row["entrant"]], row)] for row in rows])
        add_rows(results / IMAGES, [read_rows(file.with_name("images.csv")) for file in files])
    table = Table(results)
    lines = [line for data in DATA for line in table.section(data)]
    lines += table.claims()
    if failed:
        lines.append(f"\nEnded because the loss was not finite: {', '.join(failed)}.")
    text = (results / REGISTRATION).read_text(encoding="utf-8").partition(MARK)[0]
    with replacing(results / REGISTRATION) as temporary:
        temporary.write_text("\n".join([f"{text}{MARK}", "", *lines, ""]), encoding="utf-8")


def costs(timed: Mapping[str, str], row: Mapping[str, str]) -> dict[str, str]:
    """Put what an entrant costs beside what a run of it scored."""
    seconds = float(timed["seconds_per_iteration"])
    costs = {
        **{name: timed[name] for name in ("parameters", "seconds_per_iteration")},
        "minutes": f"{int(row['iterations']) * seconds / 60:.1f}",
        "prediction_seconds": timed["prediction_seconds"],
    }
    return {**{name: row[name] for name in KEY}, **costs, **row}


def add_rows(file: Path, groups: Iterable[list[dict[str, str]]]) -> None:
    """Add rows to a table, in place of those of the same run, in the order of the data sets."""
    kept = read_rows(file)
    rows = {run: list(of_run) for run, of_run in itertools.groupby(kept, run_of)}
    rows |= {run_of(group[0]): group for group in groups}
    ordered = sorted(rows, key=lambda run: (list(DATA).index(run.data), run.seed, run.entrant))
    if rows:
        write_rows(file, [row for run in ordered for row in rows[run]])


class Table:
    """What the tables in a folder of results say.

    Args:
        results: Folder of the tables.

    Attributes:
        runs: Row of each finished run.
        images: Scores of its test images, by name, in their order.
        kinds: Kind of each test image, by data set and name.
    """

    def __init__(self, results: Path):
        self.runs = {run_of(row): row for row in read_rows(results / RUNS)}
        self.images: dict[Run, dict[str, float]] = {run: {} for run in self.runs}
        self.kinds: dict[tuple[str, str], str] = {}
        for row in read_rows(results / IMAGES):
            self.images[run_of(row)][row["image"]] = float(row["mSA"])
            self.kinds[row["data"], row["image"]] = row["kind"]

    def seeds(self, data: str, *entrants: str) -> list[int]:
        """List the seeds that all of some entrants have."""
        return [seed for seed in SEEDS if all(Run(data, e, seed) in self.runs for e in entrants)]

    def entrants(self, data: str) -> list[str]:
        """List the entrants with a finished run, the best on the validation images first."""
        found = [name for name in ENTRANTS if self.seeds(data, name)]
        return sorted(found, key=lambda name: -self.validation(data, name))

    def validation(self, data: str, entrant: str) -> float:
        """Average the mSA on the validation images over the seeds."""
        seeds = self.seeds(data, entrant)
        return statistics.mean(float(self.runs[Run(data, entrant, s)]["val_mSA"]) for s in seeds)

    def scores(
        self, data: str, entrant: str, seeds: Iterable[int], kind: str | None = None
    ) -> np.ndarray:
        """Average the mSA of each test image, or each of a kind, over the seeds."""
        runs = [self.images[Run(data, entrant, seed)] for seed in seeds]
        names = [name for name in runs[0] if kind is None or self.kinds[data, name] == kind]
        return np.array([[scores[name] for name in names] for scores in runs]).mean(axis=0)

    def section(self, data: str) -> Iterator[str]:
        """Write the entrants of a data set, and those with Mamba layers against the others."""
        entrants = self.entrants(data)
        if not entrants:
            return
        yield f"## {DATA[data].title}\n"
        kinds = sorted({kind for (of, _), kind in self.kinds.items() if of == data and kind})
        header = (
            *("entrant", "parameters", "seconds per iteration", "iterations", "seeds"),
            *("val mSA", "**test mSA**", *kinds, "seconds per 1024 x 1024 image"),
        )
        yield f"| {' | '.join(header)} |"
        yield f"|{'---|' * len(header)}"
        for name in entrants:
            yield f"| {' | '.join(self._cells(data, name, kinds))} |"
        yield "\n| with Mamba layers | against | seeds | difference, test mSA | 95 % | p |"
        yield "|---|---|---|---|---|---|"
        for name in entrants:
            controls = ENTRANTS[name].controls
            for other in dict.fromkeys([*self.rivals(data), *controls]) if controls else ():
                if seeds := self.seeds(data, name, other):
                    difference, ends, p = self.compared(data, name, other)
                    cells = (
                        *(f"`{name}`", f"`{other}`", ", ".join(map(str, seeds))),
                        *(score_text(difference, sign=True), interval_text(ends, sign=True)),
                        p_text(p).removeprefix("p = "),
                    )
                    yield f"| {' | '.join(cells)} |"
        yield ""

    def _cells(self, data: str, name: str, kinds: Sequence[str]) -> Iterator[str]:
        seeds = self.seeds(data, name)
        row = self.runs[Run(data, name, seeds[0])]
        yield f"`{name}`"
        yield f"{int(row['parameters']) / 1e6:.1f} M"
        yield f"{float(row['seconds_per_iteration']):.2f}"
        yield row["iterations"]
        yield ", ".join(map(str, seeds))
        yield score_text(self.validation(data, name))
        scores = self.scores(data, name, seeds)
        ends = confidence_interval(DATA[data].units(scores.tolist()))
        yield f"**{score_text(scores.mean())}** ({interval_text(ends)})"
        for kind in kinds:
            yield score_text(self.scores(data, name, seeds, kind).mean())
        yield row["prediction_seconds"]

    def rivals(self, data: str) -> list[str]:
        """List the UNets with a finished run."""
        return [name for name in self.entrants(data) if ENTRANTS[name].model == "unet"]

    def compared(self, data: str, first: str, second: str) -> tuple[float, list[float], float]:
        """Compare two entrants on the test images, their common seeds averaged first.

        Returns:
            How much the first is better, the central 95 % of it, and p of the two-sided test.
        """
        seeds = self.seeds(data, first, second)
        differences = DATA[data].units(
            (self.scores(data, first, seeds) - self.scores(data, second, seeds)).tolist()
        )
        return (
            float(differences.mean()),
            confidence_interval(differences),
            sign_flip_test(differences),
        )

    def above(self, data: str, first: str, others: Iterable[str]) -> float:
        """Give p of the claim that one entrant is above each of the others: the largest, or 1."""
        compared = [self.compared(data, first, other) for other in others]
        return max((p if difference > 0 else 1.0 for difference, _, p in compared), default=1.0)

    def claims(self) -> Iterator[str]:
        """Say for each data set with all seeds whether Mamba wins, by the registered rule."""
        candidates = {}
        for data in DATA:
            with_mamba = [name for name in self.entrants(data) if ENTRANTS[name].controls]
            complete = [name for name in with_mamba if len(self.seeds(data, name)) == len(SEEDS)]
            if complete:
                candidates[data] = complete[0]
        claims = {
            data: self.above(data, candidates[data], self.rivals(data)) if data in candidates else 1
            for data in DATA
        }
        claims |= holm({data: p for data, p in claims.items() if data != "em"})
        yield "## Does Mamba win?\n"
        if not candidates:
            yield "No data set has all its seeds yet."
        for data, name in candidates.items():
            said = "does not win"
            if claims[data] < LEVEL:
                controls = [c for c in ENTRANTS[name].controls if self.seeds(data, name, c)]
                by_layers = self.above(data, name, controls) < LEVEL
                said = f"wins, {'and' if by_layers else 'but not shown to be'} by its Mamba layers,"
            p = p_text(claims[data])
            yield f"- {DATA[data].title}: `{name}` {said} against the UNets ({p})."


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Correct the p of several claims.

    Source:
        Holm 1979, "A simple sequentially rejective multiple test procedure".

    Examples:
        >>> holm({"a": 0.03, "b": 0.02})
        {'b': 0.04, 'a': 0.04}
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - place) * p[name]))
        corrected[name] = largest
    return corrected
