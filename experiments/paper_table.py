"""The paper's comparison on the stand-ins: every network for the same minutes, one table.

    python experiments/paper_table.py time --stand-in FOLDER --runs RUNS
    python experiments/paper_table.py train --stand-in FOLDER --runs RUNS
    python experiments/paper_table.py report --runs RUNS

`time` measures the seconds of an iteration and of a prediction; leave the machine to it, it takes a
few minutes. `train` makes the runs, each with as many iterations as its network does in the same
time; it may share the machine, since only iterations count. It leaves out finished runs and goes on
with interrupted ones. `report` keeps what finished runs tell in `experiments/results/paper_table`;
from all that is kept there it writes `paper_table.md` and its figure. To make missing runs on
another machine with the same iterations, copy `seconds.json` from there to RUNS instead of `time`.
"""

import argparse
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

sys.path.insert(0, str(Path(__file__).resolve().parent / "benchmark"))

import numpy as np
from matplotlib.figure import Figure
from published import published_scores

from vimunet.checkpoint import TrainedModel
from vimunet.cli.arguments import model_options
from vimunet.files import replacing
from vimunet.models import build_model
from vimunet.prediction import predict
from vimunet.representation import Boundaries

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


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
    def script(self) -> Path:
        """Folder of the experiment."""
        return HERE / {"em": "cremi", "phase": "livecell"}[self.data]


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
OPTIONS = {"umamba_bot": ("--option", "image_size=256")}
"""Planned for its crops, as nnU-Net does."""

SECONDS = "seconds.json"
KEPT = "paper_table"
"""Folder beside the table: what it is made of."""

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
        reader.add_argument("--stand-in", type=Path, required=True, help="folder of the stand-ins")
        reader.add_argument("--runs", type=Path, required=True, help="folder of all runs")
    command.add_argument("--minutes", type=float, default=20.0, help="of each network")
    command.add_argument("--only", nargs="+", choices=[run.name for run in RUNS], metavar="NAME")
    command = commands.add_parser("report", help="write the table and the figure")
    command.add_argument("--runs", type=Path, help="folder of runs to add to those kept")
    command.add_argument("--output", type=Path, default=RESULTS, help="folder of the table")
    options = flags.parse_args()
    if options.command == "report":
        if options.runs is not None:
            keep(options.runs, options.output / KEPT)
        report(options.output)
        return
    if options.command == "time":
        time_all(options.stand_in, options.runs)
        return
    seconds = measured_seconds(options.runs)
    for run in RUNS:
        folder = options.runs / run.name
        if (options.only is None or run.name in options.only) and not is_done(folder):
            iterations = round(60 * options.minutes / seconds[run.model]["iteration"])
            train(run, folder, options.stand_in, iterations)


def is_done(folder: Path) -> bool:
    """Tell whether a run was trained and scored."""
    return (folder / "scores" / "summary.json").exists()


def time_all(stand_in: Path, runs: Path) -> None:
    """Measure the seconds of an iteration and of a prediction; write them to the folder of runs."""
    seconds: dict[str, dict[str, float]] = {}
    for model in MODELS:
        run = Run("em", "boundaries", model)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(training(run, Path(folder) / "run", stand_in, TIMED), check=True)
            log = np.genfromtxt(Path(folder) / "run" / "log.csv", delimiter=",", names=True)
        # Without the first iterations, which warm up, and the last, which is followed by scoring.
        iteration = float(np.median(np.diff(log["seconds"])[WARMUP:-1]))
        seconds[model] = {"iteration": iteration, "prediction": prediction_seconds(run)}
        print(f"{model}: {seconds[model]}", flush=True)
        with replacing(runs / SECONDS) as temporary:
            temporary.write_text(json.dumps(seconds, indent=2))


def prediction_seconds(run: Run) -> float:
    """Measure the seconds in which a network predicts the maps of an image."""
    options = model_options(OPTIONS.get(run.model, ())[1:])
    model = TrainedModel(build_model(run.model, 1, 1, **options), Boundaries(foreground=False))
    image = np.random.default_rng(0).normal(size=(512, 512))
    times = []
    for _ in range(PREDICTIONS):
        start = time.perf_counter()
        predict(image, model)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measured_seconds(runs: Path) -> dict[str, dict[str, float]]:
    """Read what `time` measured."""
    file = runs / SECONDS
    seconds = json.loads(file.read_text()) if file.exists() else {}
    missing = [model for model in MODELS if model not in seconds]
    if missing:
        raise FileNotFoundError(
            f"{file} must tell the seconds per iteration of each network, got none for "
            f"{', '.join(missing)}. Run `paper_table.py time` first."
        )
    return seconds


def training(run: Run, folder: Path, stand_in: Path, iterations: int) -> list[str]:
    """Write the command of a training."""
    arguments = [
        *(sys.executable, run.script / "train.py", "--stand-in", stand_in, "--output", folder),
        *("--model", run.model, "--representation", run.form, "--seed", run.seed),
        *("--iterations", iterations, "--crop-size", 256, "--precision", "bf16", "--rotations"),
        *("--validation-interval", VALIDATION_INTERVAL, *OPTIONS.get(run.model, ())),
        *(["--resume"] if (folder / "training_state.pt").exists() else []),
    ]
    return [str(argument) for argument in arguments]


def train(run: Run, folder: Path, stand_in: Path, iterations: int) -> None:
    """Train and score in fresh processes, and note the memory that the training needed."""
    print(f"{run.name}: {iterations} iterations", flush=True)
    if folder.exists() and not (folder / "training_state.pt").exists():
        shutil.rmtree(folder)  # ended before anything was saved
    process = subprocess.Popen(training(run, folder, stand_in, iterations))
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{run.name}: the training failed, see above.")
    peak = folder / "peak_kilobytes"  # of all parts, if the run was interrupted
    before = int(peak.read_text()) if peak.exists() else 0
    peak.write_text(str(max(before, usage.ru_maxrss)))
    scoring = [
        *(run.script / "evaluate.py", "--stand-in", stand_in),
        *("--model", folder / "last.safetensors", "--output", folder / "scores"),
    ]
    subprocess.run([sys.executable, *map(str, scoring)], check=True, stdout=subprocess.DEVNULL)


def keep(runs: Path, kept: Path) -> None:
    """Copy the summaries of the finished runs, with the peak memory, and the measured seconds."""
    kept.mkdir(parents=True, exist_ok=True)
    for run in RUNS:
        folder = runs / run.name
        if is_done(folder):
            summary = json.loads((folder / "scores" / "summary.json").read_text())
            summary["peak_gib"] = round(int((folder / "peak_kilobytes").read_text()) / 2**20, 2)
            with replacing(kept / f"{run.name}.json") as temporary:
                temporary.write_text(json.dumps(summary, indent=2) + "\n")
    with replacing(kept / SECONDS) as temporary:
        temporary.write_text(json.dumps(measured_seconds(runs), indent=2) + "\n")


def report(output: Path) -> None:
    """Write `paper_table.md` and `paper_table.png` from what is kept in `paper_table`."""
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    seconds = measured_seconds(output / KEPT)
    missing = []
    for run in RUNS:
        file = output / KEPT / f"{run.name}.json"
        if file.exists():
            summary = json.loads(file.read_text()) | {"seconds": seconds[run.model]}
            groups.setdefault((run.data, run.form), defaultdict(list))[run.model].append(summary)
        else:
            missing.append(run.name)
    lines = [line for key, models in groups.items() for line in section(key, models)]
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
    ceiling = 0.0
    paper = published(key)
    for model, summaries in models.items():
        first = summaries[0]
        args = first["network"]["model_args"]
        count = sum(p.numel() for p in build_model(model, **args).parameters())
        iterations = [summary["info"]["iteration"] for summary in summaries]
        ceiling = first["test"]["ceiling"]["mSA"]
        cells = (
            f"`{model}`",
            f"{count / 1e6:.1f} M",
            ", ".join(str(summary["info"]["config"]["seed"]) for summary in summaries),
            ", ".join(map(str, dict.fromkeys(iterations))),
            f"{first['seconds']['iteration']:.2f}",
            f"{first['seconds']['iteration'] * iterations[0] / 60:.0f}",
            f"{max(summary['peak_gib'] for summary in summaries):.1f}",
            spread([summary["val"]["tuned"]["mSA"] for summary in summaries]),
            scores(summaries),
            f"{first['seconds']['prediction']:.2f}",
            shown(paper[model]) if model in paper else "",
        )
        yield f"| {' | '.join(cells)} |"
    infos = [summary["info"] for summaries in models.values() for summary in summaries]
    commits = sorted({info["commit"][:7] for info in infos})
    licences = sorted({info["licence"] for info in infos})
    yield (
        f"\nCeiling of the test images: {shown(ceiling)}. Weights: {'; '.join(licences)}. "
        f"Commit {', '.join(commits)}."
    )


def published(key: tuple[str, str]) -> dict[str, float]:
    """Look up the paper's mSA of each network that it has."""
    data, form = key
    scores = published_scores(PAPER[data], form)
    return {model: scores[name] for model, name in MODELS.items() if name in scores}


def scores(summaries: Sequence[dict[str, Any]]) -> str:
    """Write the tuned test scores; of a single run with its confidence interval."""
    tuned = [summary["test"]["tuned"] for summary in summaries]
    if len(tuned) > 1:
        return spread([score["mSA"] for score in tuned])
    low, high = tuned[0]["mSA_confidence"]
    return f"{shown(tuned[0]['mSA'])} ({shown(low)}-{shown(high)})"


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
        for place, (model, summaries) in enumerate(models.items()):
            values = [summary["test"]["tuned"]["mSA"] for summary in summaries]
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
