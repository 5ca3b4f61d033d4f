"""The paper's comparison on the stand-ins: every network for the same minutes, one table.

    python experiments/paper_table.py time --data FOLDER --runs RUNS
    python experiments/paper_table.py train --data FOLDER --runs RUNS
    python experiments/paper_table.py report --runs RUNS

`time` measures the seconds of an iteration and of a prediction; leave the machine to it, it takes a
few minutes. `train` makes the runs, each with as many iterations as its network does in the same
time; it may share the machine, since only iterations count. It leaves out finished runs and goes on
with interrupted ones. `report` keeps what finished runs tell in the tables of `experiments/results`
(see `keep.py`); from all that is kept there it writes `paper_table.md` and its figure. To make
missing runs on another machine with the same iterations, copy `paper_table.csv` from there to RUNS
instead of `time`.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keep import RESULTS, keep_scores, put_rows, read_rows
from matplotlib.figure import Figure

from vimunet.cli.arguments import Renamed
from vimunet.io.atomic import replacing
from vimunet.models import build_model
from vimunet.representations.boundaries import Boundaries
from vimunet.segmentation.model_file import TrainedModel
from vimunet.segmentation.predict import predict

HERE = Path(__file__).resolve().parent
PUBLISHED = HERE / "benchmark" / "published.csv"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        data: "em" or "phase".
        form: "boundaries" or "distances".
        model: Name of the network.
        seed: Of weights and crops.
    """

    data: str
    form: str
    model: str
    seed: int = 0

    @property
    def name(self) -> str:
        """Folder of the run."""
        return f"{self.data}_{self.form}_{self.model}_{self.seed}"

    @property
    def data_set(self) -> str:
        """Name of the stand-in."""
        return {"em": "cremi_sample", "phase": "livecell_sample"}[self.data]

    @property
    def representation(self) -> str:
        """What the network learns."""
        return "boundary" if self.data == "em" else self.form


MODELS = {
    "unet": "UNet",
    "unetr_b": "UNETR Base",
    "vim_t": "ViM-UNet Tiny",
    "vim_s": "ViM-UNet Small",
    "vmunet": "",
    "umamba_bot": "U-Mamba Bot",
}
"""The networks, and what the paper calls those that it has."""

RUNS = [
    *(Run("em", "boundaries", model) for model in MODELS),
    *(Run("em", "boundaries", model, seed) for model in ("unet", "vim_t") for seed in (1, 2)),
    *(Run("phase", form, model) for form in ("boundaries", "distances") for model in MODELS),
]
OPTIONS = {"umamba_bot": {"image_size": 256}}
"""Planned for its crops, as nnU-Net does."""

SECONDS = "paper_table.csv"
"""What `time` measures, in the folder of runs and, kept, beside the table."""

EXPERIMENT = "paper_table"
"""The runs in the tables of `results`."""

TIMED, WARMUP = 25, 5
"""Iterations to time a network with, and how many of them do not count."""

PREDICTIONS = 7
"""Predictions of an image of 512 x 512 pixels to time a network with, the first does not count."""

INTRODUCTION = """# The paper's comparison on the stand-ins

Each network has as many iterations as fit into the same minutes, alone on the machine: `python
experiments/paper_table.py time`, `train` and `report`. 256 crops, batch 2, Adam 1e-4, flips and
quarter turns, bfloat16; scored is the last iteration, with thresholds chosen on the validation
images. Brackets: central 95 % over images (bootstrap); ±: standard deviation of the seeds. What it
shows: [README.md](README.md#the-papers-comparison-in-equal-minutes)."""

VALIDATION_INTERVAL = 400
"""Also that of saving, so that an interrupted run loses little. Scored is the last iteration."""

PAPER = {"em": "CREMI", "phase": "LIVECell"}
"""The paper's data for which each stand-in stands in."""


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = flags.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("time", help="measure the seconds of a step")
    command = commands.add_parser("train", help="make the runs that are missing")
    for reader in (timing, command):
        reader.add_argument("--data", type=Path, help="folder of the stand-ins")
        reader.add_argument(
            "--stand-in", type=Path, dest="data", action=Renamed, help=argparse.SUPPRESS
        )
        reader.add_argument("--runs", type=Path, required=True, help="folder of all runs")
    command.add_argument("--minutes", type=float, default=20.0, help="of each network")
    command.add_argument("--only", nargs="+", choices=[run.name for run in RUNS], metavar="NAME")
    command = commands.add_parser("report", help="write the table and the figure")
    command.add_argument("--runs", type=Path, help="folder of runs to add to those kept")
    command.add_argument("--output", type=Path, default=RESULTS, help="folder of the table")
    options = flags.parse_args()
    if options.command == "report":
        if options.runs is not None:
            keep(options.runs, options.output)
        report(options.output)
        return
    if options.data is None:
        flags.error("--data must be given, the folder of the stand-ins")
    if options.command == "time":
        time_all(options.data, options.runs)
        return
    seconds = measured_seconds(options.runs)
    for run in RUNS:
        folder = options.runs / run.name
        if (options.only is None or run.name in options.only) and not is_done(folder):
            iterations = round(60 * options.minutes / seconds[run.model]["iteration"])
            train(run, folder, options.data, iterations)


def is_done(folder: Path) -> bool:
    """Tell whether a run was trained and scored."""
    return (folder / "scores" / "summary.json").exists()


def time_all(data: Path, runs: Path) -> None:
    """Measure the seconds of an iteration and of a prediction; write them to the folder of runs."""
    for model in MODELS:
        run = Run("em", "boundaries", model)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(training(run, Path(folder) / "run", data, TIMED), check=True)
            log = np.genfromtxt(Path(folder) / "run" / "log.csv", delimiter=",", names=True)
        # Without the first iterations, which warm up, and the last, which is followed by scoring.
        iteration = float(np.median(np.diff(log["seconds"])[WARMUP:-1]))
        row = {"model": model, "iteration": iteration, "prediction": prediction_seconds(model)}
        print(row, flush=True)
        put_rows(runs / SECONDS, [row], key=("model",))


def prediction_seconds(name: str) -> float:
    """Measure the seconds in which a network predicts the maps of an image."""
    network = build_model(name, 1, 1, **OPTIONS.get(name, {}))
    model = TrainedModel(network, Boundaries(foreground=False))
    image = np.random.default_rng(0).normal(size=(512, 512))
    times = []
    for _ in range(PREDICTIONS):
        start = time.perf_counter()
        predict(image, model)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measured_seconds(folder: Path) -> dict[str, dict[str, float]]:
    """Read what `time` measured."""
    file = folder / SECONDS
    seconds = {
        row["model"]: {name: float(row[name]) for name in ("iteration", "prediction")}
        for row in read_rows(file)
    }
    missing = [model for model in MODELS if model not in seconds]
    if missing:
        raise FileNotFoundError(
            f"{file} must tell the seconds per iteration of each network, got none for "
            f"{', '.join(missing)}. Run `paper_table.py time` first."
        )
    return seconds


def training(run: Run, folder: Path, data: Path, iterations: int) -> list[str]:
    """Write the command of a training."""
    options = [f"{name}={value}" for name, value in OPTIONS.get(run.model, {}).items()]
    arguments = [
        *(sys.executable, "-m", "vimunet", "train", "--dataset", run.data_set, "--data", data),
        *("--output", folder, "--model", run.model, "--representation", run.representation),
        *("--seed", run.seed, "--iterations", iterations, "--crop-size", 256),
        *("--precision", "bfloat16", "--rotations", "--validation-interval", VALIDATION_INTERVAL),
        *(argument for option in options for argument in ("--option", option)),
        *(["--resume"] if (folder / "training_state.pt").exists() else []),
    ]
    return [str(argument) for argument in arguments]


def train(run: Run, folder: Path, data: Path, iterations: int) -> None:
    """Train and score in fresh processes, and note the memory that the training needed."""
    print(f"{run.name}: {iterations} iterations", flush=True)
    if folder.exists() and not (folder / "training_state.pt").exists():
        shutil.rmtree(folder)  # ended before anything was saved
    process = subprocess.Popen(training(run, folder, data, iterations))
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{run.name}: the training failed, see above.")
    peak = folder / "peak_kilobytes"  # of all parts, if the run was interrupted
    before = int(peak.read_text()) if peak.exists() else 0
    peak.write_text(str(max(before, usage.ru_maxrss)))
    scoring = [
        *(sys.executable, "-m", "vimunet", "evaluate", "--dataset", run.data_set, "--data", data),
        *("--model", folder / "last.safetensors", "--output", folder / "scores"),
    ]
    subprocess.run([str(part) for part in scoring], check=True, stdout=subprocess.DEVNULL)


def keep(runs: Path, results: Path) -> None:
    """Keep the scores of the finished runs, with the peak memory, and the measured seconds."""
    for run in RUNS:
        folder = runs / run.name
        if is_done(folder):
            summary = json.loads((folder / "scores" / "summary.json").read_text())
            peak = round(int((folder / "peak_kilobytes").read_text()) / 2**20, 2)
            key = {"experiment": EXPERIMENT, "run": run.name}
            keep_scores(results, key, summary, peak_gib=peak)
    measured = [{"model": model, **times} for model, times in measured_seconds(runs).items()]
    put_rows(results / SECONDS, measured, key=("model",))


def report(output: Path) -> None:
    """Write `paper_table.md` and `paper_table.png` from what is kept beside them."""
    seconds = measured_seconds(output)
    settings = {
        row["run"]: row for row in read_rows(output / "runs.csv") if row["experiment"] == EXPERIMENT
    }
    scores: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in read_rows(output / "scores.csv"):
        if row["experiment"] == EXPERIMENT:
            scores[row["run"]][f"{row['split']} {row['recipe']}"] = row
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for run in RUNS:
        if run.name in settings:
            kept = settings[run.name] | scores[run.name] | {"seconds": seconds[run.model]}
            groups.setdefault((run.data, run.form), defaultdict(list))[run.model].append(kept)
    lines = [line for key, models in groups.items() for line in section(key, models)]
    missing = [run.name for run in RUNS if run.name not in settings]
    if missing:
        lines.append(f"\nNot made yet: {', '.join(missing)}.")
    with replacing(output / "paper_table.md") as temporary:
        temporary.write_text("\n".join([INTRODUCTION, *lines, ""]))
    draw(groups, output / "paper_table.png")


def section(key: tuple[str, str], models: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Write the table of one data set and one form of maps."""
    yield f"\n## {'Neurites, EM' if key[0] == 'em' else 'Cells, phase contrast'}: {key[1]}\n"
    header = (
        *("network", "parameters", "seeds", "iterations", "seconds per iteration", "minutes"),
        *("memory, GiB", "val mSA", "test mSA", "seconds per 512 x 512 image", "published mSA"),
    )
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    paper = published(key)
    for model, runs in models.items():
        first = runs[0]
        network = build_model(model, **json.loads(first["model_args"]))
        count = sum(parameter.numel() for parameter in network.parameters())
        cells = (
            f"`{model}`",
            f"{count / 1e6:.1f} M",
            ", ".join(run["seed"] for run in runs),
            ", ".join(dict.fromkeys(run["iteration"] for run in runs)),
            f"{first['seconds']['iteration']:.2f}",
            f"{first['seconds']['iteration'] * int(first['iteration']) / 60:.0f}",
            f"{max(float(run['peak_gib']) for run in runs):.1f}",
            spread([tuned(run, "val") for run in runs]),
            scored(runs),
            f"{first['seconds']['prediction']:.2f}",
            shown(paper[model]) if model in paper else "",
        )
        yield f"| {' | '.join(cells)} |"
    runs = [run for made in models.values() for run in made]
    commits = sorted({run["commit"][:7] for run in runs})
    licences = sorted({run["licence"] for run in runs})
    yield (
        f"\nCeiling of the test images: {shown(float(runs[0]['test ceiling']['mSA']))}. Weights: "
        f"{'; '.join(licences)}. Commit {', '.join(commits)}."
    )


def published(key: tuple[str, str]) -> dict[str, float]:
    """Look up the paper's mSA of each network that it has."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        scores = {
            row["method"]: float(row["value"])
            for row in csv.DictReader(file)
            if (row["quantity"], row["data"], row["representation"])
            == ("mSA", PAPER[key[0]], key[1])
        }
    return {model: scores[name] for model, name in MODELS.items() if name in scores}


def tuned(run: dict[str, Any], split: str, column: str = "mSA") -> float:
    """Look up a score with the tuned thresholds."""
    return float(run[f"{split} tuned"][column])


def scored(runs: Sequence[dict[str, Any]]) -> str:
    """Write the tuned test scores; of a single run with its confidence interval."""
    text = spread([tuned(run, "test") for run in runs])
    if len(runs) > 1:
        return text
    low, high = (tuned(runs[0], "test", f"mSA {end}") for end in ("low", "high"))
    return f"{text} ({shown(low)}-{shown(high)})"


def spread(values: Sequence[float]) -> str:
    """Write a mean, and the standard deviation of several seeds."""
    text = shown(statistics.mean(values))
    return text if len(values) == 1 else f"{text} ± {shown(statistics.stdev(values))}"


def shown(score: float) -> str:
    """Write three digits.

    Examples:
        >>> shown(0.1234), shown(1.0)
        ('.123', '1.000')
    """
    return f"{score:.3f}".removeprefix("0")


def draw(groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]], picture: Path) -> None:
    """Plot the test scores beside the published ones."""
    figure = Figure(figsize=(4 * max(1, len(groups)), 3.5), layout="constrained")
    panels = figure.subplots(1, max(1, len(groups)), sharey=True, squeeze=False)[0]
    for axes, (key, models) in zip(panels, groups.items(), strict=False):
        paper = published(key)
        for place, (model, runs) in enumerate(models.items()):
            values = [tuned(run, "test") for run in runs]
            axes.bar(place, statistics.mean(values), color="C0", width=0.6)
            axes.plot([place] * len(values), values, "k.", markersize=4)
            if model in paper:
                axes.plot(place, paper[model], "C1D", markersize=6)
        axes.set(xticks=range(len(models)), title=f"{key[0]}, {key[1]}", ylim=(0, 1))
        axes.set_xticklabels(list(models), rotation=45, ha="right")
    panels[0].set_ylabel("mSA; diamonds: published, full data")
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    main()
