"""Write the measured parts of docs/performance.md and docs/models.md from the CSV files.

    python -m benchmarks.report

Nothing is measured here, and no such number is typed by hand: between `<!-- NAME -->` and
`<!-- /NAME -->` stands what this script writes. Scores come from `experiments/results`.
"""

import argparse
import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.corrections import LIMIT
from benchmarks.measure import RESULTS, ROOT
from vimunet.io.atomic import replacing

TABLES = (
    "scan",
    "networks",
    "models",
    "limits",
    "arrangement",
    "road",
    "training_step",
    "growth",
    "start",
    "imports",
    "corrections",
)
SCORES = ROOT / "experiments" / "results" / "scores.csv"
MISSING = "Not measured yet: `make bench`."
PEERS = ("torch-em UNet2d", "torch-em UNet2d, channels-last")
SAME_WEIGHTS = "unet, torch-em's weights"

Row = dict[str, str]
Tables = dict[str, list[Row]]


def main() -> None:
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--results", type=Path, default=RESULTS)
    flags.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = flags.parse_args()
    tables = read_tables(options.results)
    for name, sections in DOCUMENTS.items():
        text = fill((options.docs / name).read_text(), tables, sections)
        with replacing(options.docs / name) as temporary:
            temporary.write_text(text)
    for name, draw in PLOTS.items():
        if tables[name]:
            path = options.docs / "images" / f"performance_{name}.png"
            with replacing(path) as temporary:
                draw(tables[name]).savefig(temporary, format="png", dpi=120)
    print(goals(tables))


def read_tables(folder: Path) -> Tables:
    """Read the CSV files in a folder; what was not measured is an empty table."""
    tables: Tables = {}
    for name in TABLES:
        path = folder / f"{name}.csv"
        tables[name] = []
        if path.exists():
            with path.open(newline="") as file:
                tables[name] = list(csv.DictReader(file))
    return tables


def fill(document: str, tables: Tables, sections: dict[str, Callable[[Tables], str]]) -> str:
    """Replace everything between the markers of the document.

    Raises:
        ValueError: If the document lacks a pair of markers.
    """
    for name, write in sections.items():
        found = re.search(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", document, re.DOTALL)
        if found is None:
            raise ValueError(
                f"The document must have `<!-- {name} -->` and `<!-- /{name} -->`, each on a line "
                "of its own."
            )
        try:
            content = write(tables)
        except LookupError:
            content = MISSING
        document = document[: found.end(1)] + content + "\n" + document[found.start(2) :]
    return document


@dataclass(frozen=True)
class Goal:
    """A number to reach.

    Attributes:
        what: What it is.
        bound: What it shall be ...
        at_least: ... at least, or at most.
        value: Computes it; raises LookupError if it was not measured.
    """

    what: str
    bound: float
    at_least: bool
    value: Callable[[Tables], float]

    def row(self, tables: Tables) -> list[str]:
        """Return the row of the table: what, goal, measured, verdict."""
        sign = "≥" if self.at_least else "≤"
        try:
            value = self.value(tables)
        except LookupError:
            return [self.what, f"{sign} {self.bound:g}", "not measured", ""]
        reached = value >= self.bound if self.at_least else value <= self.bound
        return [
            self.what,
            f"{sign} {self.bound:g}",
            _number(value),
            "reached" if reached else "**missed**",
        ]


def pick(rows: Iterable[Row], column: str, **where: object) -> float:
    """Return the number in the one row with these values.

    Raises:
        LookupError: If there is no such row, or more than one.
    """
    found = [row for row in rows if all(row[key] == str(value) for key, value in where.items())]
    if len(found) != 1:
        raise LookupError(f"One row must have {where}, got {len(found)}.")
    return float(found[0][column])


def _scan(tables: Tables, form: str, direction: str = "forward") -> float:
    where = {"form": form, "pass": direction, "length": 1025, "width": 384, "threads": 1}
    return pick(tables["scan"], "seconds", **where)


def _network(tables: Tables, name: str, precision: str = "float32", of: str = "seconds") -> float:
    return pick(tables["networks"], of, network=name, precision=precision, size=512)


def _peer(tables: Tables, precision: str = "float32") -> float:
    return min(_network(tables, name, precision) for name in PEERS)


def _arrangement(tables: Tables, name: str) -> float:
    return pick(tables["arrangement"], "seconds", arrangement=name, size=512)


def _training(tables: Tables, name: str) -> float:
    where = {"network": name, "precision": "float32", "crop_size": 512}
    return pick(tables["training_step"], "peak_bytes", **where)


def _spread(numbers: Sequence[float]) -> float:
    return max(numbers) / min(numbers) - 1


def _large(tables: Tables) -> list[Row]:
    """Return the rows of growth from 1024 x 1024 pixels on."""
    rows = [row for row in tables["growth"] if int(row["size"]) >= 1024]
    if len(rows) < 2:
        raise LookupError("Two sizes of at least 1024 pixels are needed.")
    return rows


def _seconds_per_megapixel(row: Row) -> float:
    return float(row["seconds"]) / float(row["megapixel"])


def _slowest_correction(tables: Tables) -> float:
    if not tables["corrections"]:
        raise LookupError("Nothing was measured.")
    return max(float(row["p95_seconds"]) for row in tables["corrections"])


def _rest(row: Row) -> float:
    """Return the peak memory without the maps."""
    return float(row["peak_bytes"]) - float(row["output_bytes"])


GOALS = (
    Goal(
        "scan of 1025 tokens, 384 channels, 1 thread: times faster than its definition, a loop",
        100,
        True,
        lambda t: _scan(t, "definition") / _scan(t, "vimunet"),
    ),
    Goal("the same in milliseconds", 0.7, False, lambda t: 1e3 * _scan(t, "vimunet")),
    Goal(
        "scan with its gradient: times the scan alone",
        4,
        False,
        lambda t: _scan(t, "vimunet", "forward + backward") / _scan(t, "vimunet"),
    ),
    Goal(
        "`vim_t`, 512 x 512, float32: times faster than torch-em's UNet2d",
        2.1,
        True,
        lambda t: _peer(t) / _network(t, "vim_t"),
    ),
    Goal(
        "`vim_t`, 512 x 512: times faster in bfloat16 than in float32",
        2,
        True,
        lambda t: _network(t, "vim_t") / _network(t, "vim_t", "bfloat16"),
    ),
    Goal(
        "`unet` with torch-em's weights, 512 x 512, float32: times faster than torch-em",
        1.3,
        True,
        lambda t: _peer(t) / _network(t, SAME_WEIGHTS),
    ),
    Goal(
        "the same, both in bfloat16",
        3,
        True,
        lambda t: _peer(t, "bfloat16") / _network(t, SAME_WEIGHTS, "bfloat16"),
    ),
    Goal(
        "the same: largest difference of logits (float32)",
        1e-4,
        False,
        lambda t: _network(t, SAME_WEIGHTS, of="largest_difference"),
    ),
    *(
        Goal(
            f"`{name}`, 512 x 512, {precision}: fraction of the machine's limit",
            bound,
            True,
            partial(_network, name=name, precision=precision, of="fraction_of_limit"),
        )
        for name in ("vim_t", "unet")
        for precision, bound in (("float32", 0.8), ("bfloat16", 0.65))
    ),
    Goal(
        "`vim_t`, 512 x 512: times faster than the published arrangement with a loop",
        12,
        True,
        lambda t: _arrangement(t, "published, loop over tokens") / _arrangement(t, "default"),
    ),
    Goal(
        "`vim_t`, 512 x 512: times faster than the published arrangement with our scan",
        3,
        True,
        lambda t: _arrangement(t, "published") / _arrangement(t, "default"),
    ),
    Goal(
        "training `vim_t`, 512 crops: share of the peak memory of the published arrangement",
        0.5,
        False,
        lambda t: _training(t, "vim_t") / _training(t, "vim_t, published"),
    ),
    Goal(
        "1024 x 1024 to 8192 x 8192: spread of the seconds per image pixel",
        0.1,
        False,
        lambda t: _spread([_seconds_per_megapixel(row) for row in _large(t)]),
    ),
    Goal(
        "the same sizes: spread of the peak memory beyond the maps",
        0.1,
        False,
        lambda t: _spread([_rest(row) for row in _large(t)]),
    ),
    Goal(
        "correction by hand, 1024 x 1024: seconds in 95 of 100 times, the slowest kind",
        LIMIT,
        False,
        _slowest_correction,
    ),
)


def goals(tables: Tables) -> str:
    """Write the table of goals."""
    return markdown(
        ("what", "goal", "measured", ""), [goal.row(tables) for goal in GOALS], numbers=(1, 2)
    )


def machine(tables: Tables) -> str:
    """Tell on which machine and with which code each table was measured."""
    columns = ("cpu", "threads", "torch", "scan_backend", "commit")
    origins: dict[tuple[str, ...], list[str]] = {}
    for name in TABLES:
        for origin in sorted({tuple(row[column] for column in columns) for row in tables[name]}):
            origins.setdefault(origin, []).append(f"`{name}`")
    rows = [
        [", ".join(names), *origin[:-1], f"`{origin[-1][:12]}`"]
        for origin, names in origins.items()
    ]
    header = ("tables", "CPU", "threads", "torch", "scan", "commit")
    return _required(markdown(header, rows), rows)


def limit(tables: Tables) -> str:
    """Tell the limit of the machine, and how far from it ViM-UNet tiny is."""
    rates = [
        [
            row["precision"],
            _number(float(row["convolution_gflop_per_second"])),
            _number(float(row["product_gflop_per_second"])),
        ]
        for row in tables["limits"]
    ]
    sentences = []
    for precision in ("float32", "bfloat16"):
        values = [
            _network(tables, "vim_t", precision, column)
            for column in ("convolution_gflop", "product_gflop", "limit_seconds", "seconds")
        ]
        convolution, product, least, seconds = (_number(value) for value in values)
        sentences.append(
            f"In {precision}, `vim_t` on 512 x 512 pixels has {convolution} GFLOP of convolutions "
            f"and {product} GFLOP of matrix products, which take at least {least} s here; it takes "
            f"{seconds} s, which is {values[2] / values[3]:.0%} of the limit."
        )
    header = ("highest rates, GFLOP/s", "convolution", "matrix product")
    return _required(markdown(header, rates, numbers=(1, 2)) + "\n\n" + " ".join(sentences), rates)


def scan(tables: Tables) -> str:
    """Write the table of scans: milliseconds and how much slower than ours."""
    cases = sorted({(int(r["length"]), int(r["width"]), int(r["threads"])) for r in tables["scan"]})
    forms = list(dict.fromkeys(row["form"] for row in tables["scan"]))
    rows = []
    for length, width, threads in cases:
        for direction in ("forward", "forward + backward"):
            where = {"length": length, "width": width, "threads": threads, "pass": direction}
            seconds = {form: pick(tables["scan"], "seconds", form=form, **where) for form in forms}
            cells = [
                f"{1e3 * seconds[form]:.3g} ({seconds[form] / seconds['vimunet']:.3g} x)"
                for form in forms
            ]
            rows.append([str(length), str(width), str(threads), direction, *cells])
    header = ("tokens", "channels", "threads", "pass", *forms)
    text = markdown(header, rows, numbers=(0, 1, 2, *range(4, len(header))))
    return _required(f"{text}\n\n![Time of the scan](images/performance_scan.png)", rows)


def networks(tables: Tables) -> str:
    """Write the table of networks: seconds, ratio to torch-em's UNet2d, fraction of the limit."""
    rows = []
    for row in tables["networks"]:
        where = {"size": row["size"], "precision": row["precision"]}
        peer = min(pick(tables["networks"], "seconds", network=name, **where) for name in PEERS)
        rows.append(
            [
                row["network"],
                row["size"],
                row["precision"],
                _number(float(row["seconds"])),
                _number(float(row["median_seconds"])),
                f"{peer / float(row['seconds']):.2f} x",
                f"{float(row['fraction_of_limit']):.2f}",
                _difference(row),
            ]
        )
    header = (
        "network",
        "size",
        "precision",
        "seconds",
        "median",
        "faster than torch-em's UNet2d",
        "fraction of the limit",
        "difference to torch-em's logits",
    )
    picture = "![Seconds of a network; black: the limit](images/performance_networks.png)"
    return _required(f"{markdown(header, rows, numbers=(1, 3, 4, 5, 6, 7))}\n\n{picture}", rows)


def arrangement(tables: Tables) -> str:
    """Write the table of arrangements of ViM-UNet tiny."""
    rows = []
    for row in tables["arrangement"]:
        default = pick(tables["arrangement"], "seconds", arrangement="default", size=row["size"])
        rows.append(
            [
                row["arrangement"],
                f"{row['size']} x {row['size']}",
                f"{row['canvas']} x {row['canvas']}",
                _number(float(row["seconds"])),
                f"{float(row['seconds']) / default:.2f} x",
                _difference(row),
            ]
        )
    header = (
        "arrangement",
        "image",
        "network sees",
        "seconds",
        "of ours",
        "difference of logits between both scans",
    )
    return _required(markdown(header, rows, numbers=(3, 4, 5)), rows)


def road(tables: Tables) -> str:
    """Write the table of steps from file to file."""
    rows = [
        [
            f"{row['image']} ({row['source']}), {row['height']} x {row['width']}",
            row["precision"],
            row["step"],
            _number(float(row["median_seconds"])),
            f"{float(row['share']):.1%}",
            row["objects"],
        ]
        for row in tables["road"]
    ]
    header = ("image", "precision", "step", "seconds", "share", "objects")
    return _required(markdown(header, rows, numbers=(3, 4, 5)), rows)


def training_step(tables: Tables) -> str:
    """Write the table of training steps."""
    rows = [
        [
            row["network"],
            row["precision"],
            f"{row['batch_size']} x {row['crop_size']} x {row['crop_size']}",
            _number(float(row["median_seconds"])),
            f"{float(row['peak_bytes']) / 2**30:.2f}",
            f"{float(row['waiting']):.1%}",
        ]
        for row in tables["training_step"]
    ]
    header = ("network", "precision", "batch", "seconds a step", "peak GiB", "waiting for crops")
    return _required(markdown(header, rows, numbers=(3, 4, 5)), rows)


def growth(tables: Tables) -> str:
    """Write the table of growing images."""
    rows = [
        [
            f"{row['size']} x {row['size']}",
            _number(float(row["seconds"])),
            _number(_seconds_per_megapixel(row)),
            _number(float(row["seconds"]) / float(row["predicted_megapixel"])),
            f"{float(row['peak_bytes']) / 2**20:.0f}",
            f"{float(row['output_bytes']) / 2**20:.0f}",
            f"{_rest(row) / 2**20:.0f}",
        ]
        for row in tables["growth"]
    ]
    header = (
        "image",
        "seconds",
        "seconds per megapixel",
        "the same, halo counted",
        "peak MiB",
        "maps MiB",
        "rest MiB",
    )
    picture = "![Time and memory over the size of the image](images/performance_growth.png)"
    return _required(f"{markdown(header, rows, numbers=range(1, 7))}\n\n{picture}", rows)


def start(tables: Tables) -> str:
    """Write how long Python takes to start, and on which packages."""
    times = {row["command"]: float(row["seconds"]) for row in tables["start"]}
    rows = [[f"`{command}`", _number(seconds)] for command, seconds in times.items()]
    heavy = ", ".join(
        f"{row['package']} {_number(float(row['seconds']))}" for row in tables["imports"]
    )
    text = markdown(("command", "seconds"), rows, numbers=(1,))
    return _required(f"{text}\n\nHeaviest imports of `vimunet info`, seconds: {heavy}.", rows)


def models(tables: Tables) -> str:
    """Write the table of all models: seconds, and scores on the stand-ins."""
    rows = []
    for row in tables["models"]:
        loop = float(row["one_thread_loop"]) if row["one_thread_loop"] else None
        times = [_number(float(row[name])) for name in ("float32", "bfloat16", "one_thread")]
        rows.append(
            [
                f"`{row['model']}`",
                *times,
                ""
                if loop is None
                else f"{_number(loop)} ({loop / float(row['one_thread']):.0f} x)",
                *(_scores(data, row["model"]) for data in ("em", "phase")),
            ]
        )
    header = (
        "model",
        "seconds",
        "in bfloat16",
        "one thread",
        "one thread, a loop as scan",
        "EM, mSA val / test",
        "phase contrast, mSA val / test",
    )
    return _required(markdown(header, rows, numbers=range(1, 7)), rows)


def _scores(data: str, model: str) -> str:
    """Write the tuned mSA of a model on a stand-in, as `experiments/results` has it."""
    with SCORES.open(newline="", encoding="utf-8") as file:
        scores = {
            row["split"]: float(row["mSA"])
            for row in csv.DictReader(file)
            if (row["experiment"], row["run"], row["recipe"])
            == ("standins", f"{data}_{model}", "tuned")
        }
    return " / ".join(f"{scores[split]:.3f}"[1:] for split in ("val", "test")) if scores else ""


def _required(text: str, rows: Sequence[object]) -> str:
    if not rows:
        raise LookupError("Nothing was measured.")
    return text


def _difference(row: Row) -> str:
    """Write the largest difference of two outputs, where there is one."""
    return f"{float(row['largest_difference']):.1e}" if row["largest_difference"] else ""


def _number(value: float) -> str:
    """Write three digits, without an exponent where it can be avoided."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def markdown(
    header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()
) -> str:
    """Write a table; the columns `numbers` are right-aligned."""
    right = set(numbers)
    rule = ["---:" if i in right else "---" for i in range(len(header))]
    lines = [header, rule, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw_scan(rows: list[Row]) -> Figure:
    """Plot the time of the scan over the number of tokens, one thread, forward."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    width = rows[0]["width"]
    for form in dict.fromkeys(row["form"] for row in rows):
        points = sorted(
            (int(row["length"]), 1e3 * float(row["seconds"]))
            for row in rows
            if (row["form"], row["pass"], row["width"], row["threads"])
            == (form, "forward", width, rows[0]["threads"])
        )
        axes.loglog(*zip(*points, strict=True), marker="o", label=form)
    axes.set(xlabel="tokens", ylabel=f"milliseconds ({width} channels, 1 thread)")
    axes.legend()
    return figure


def draw_networks(rows: list[Row]) -> Figure:
    """Plot the time of each network at one size, and its limit as a line."""
    sizes = sorted({int(row["size"]) for row in rows})
    size = str(512 if 512 in sizes else sizes[-1])
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(9, 0.4 * len(names) + 1.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, precision in zip(panels, ("float32", "bfloat16"), strict=True):
        where = {"size": size, "precision": precision}
        seconds = [pick(rows, "seconds", network=name, **where) for name in names]
        limits = [pick(rows, "limit_seconds", network=name, **where) for name in names]
        colors = ["0.7" if name.startswith("torch-em") else "C0" for name in names]
        axes.barh(names, seconds, color=colors)
        axes.barh(names, limits, color="none", edgecolor="black", linewidth=1)
        axes.set(xlabel=f"seconds, {size} x {size}, {precision}")
    panels[0].invert_yaxis()  # of both: it is shared
    return figure


def draw_growth(rows: list[Row]) -> Figure:
    """Plot time and memory over the number of pixels."""
    pixels = [float(row["megapixel"]) for row in rows]
    figure = Figure(figsize=(9, 4), layout="constrained")
    time, memory = figure.subplots(1, 2)
    time.loglog(pixels, [float(row["seconds"]) for row in rows], marker="o", label="measured")
    pace = _seconds_per_megapixel(rows[-1])
    time.loglog(pixels, [pace * count for count in pixels], ":", color="0.5", label="proportional")
    time.set(xlabel="megapixels", ylabel="seconds")
    time.legend()
    memory.plot(pixels, [float(row["peak_bytes"]) / 2**20 for row in rows], "o-", label="peak")
    memory.plot(pixels, [float(row["output_bytes"]) / 2**20 for row in rows], "s-", label="maps")
    memory.set(xlabel="megapixels", ylabel="MiB", ylim=(0, None))
    memory.legend()
    return figure


PERFORMANCE: dict[str, Callable[[Tables], str]] = {
    "goals": goals,
    "machine": machine,
    "limit": limit,
    "scan": scan,
    "networks": networks,
    "arrangement": arrangement,
    "road": road,
    "training_step": training_step,
    "growth": growth,
    "start": start,
}
DOCUMENTS: dict[str, dict[str, Callable[[Tables], str]]] = {
    "performance.md": PERFORMANCE,
    "models.md": {"measured": models},
}
PLOTS: dict[str, Callable[[list[Row]], Figure]] = {
    "scan": draw_scan,
    "networks": draw_networks,
    "growth": draw_growth,
}

if __name__ == "__main__":
    main()
