"""Vision Mamba and UNets in equal time: is a state-space layer worth its minutes?

    python experiments/equal_time.py time
    python experiments/equal_time.py run --data DIR --runs RUNS
    python experiments/equal_time.py report --runs RUNS

What is run and what decides was written down before: `results/equal_time.md`. `time` measures the
seconds of an iteration and of a prediction on one core; leave the machine to it. `run` trains and
scores whatever is missing, first every entrant with one seed, then the best with more, and goes on
where it was interrupted; it may share the machine, and several may share the work. `report` adds
finished runs to the tables in `results` and writes what they say behind the registration.
"""

import argparse
import fcntl
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equal_time_plan import (
    DATA,
    ENTRANTS,
    MINUTES,
    RECIPE,
    SECONDS,
    Run,
    is_done,
    planned,
)
from equal_time_report import report
from keep import RESULTS, read_rows
from torch import nn

from vimunet.io.tables import write_rows
from vimunet.models.compiled import memory_kept
from vimunet.representations import Boundaries
from vimunet.scores.objects import mean_segmentation_accuracy
from vimunet.scores.statistics import confidence_interval
from vimunet.segmentation.model_file import TrainedModel, load_model
from vimunet.segmentation.predict import predict
from vimunet.training.config import TrainConfig
from vimunet.training.loop import train
from vimunet.training.scoring import predict_samples
from vimunet.training.tuning import tune_thresholds

ROUNDS = 5
"""In each of them every network is timed, so that a slower minute is slower for all."""


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = flags.add_subparsers(dest="command", required=True)
    commands.add_parser("time", help="measure the seconds of an iteration and of a prediction")
    command = commands.add_parser("run", help="make the runs that are missing")
    command.add_argument("--data", type=Path, required=True, help="folder of all data sets")
    command.add_argument("--runs", type=Path, required=True, help="folder of all runs")
    command = commands.add_parser("report", help="write the tables and what they say")
    command.add_argument("--runs", type=Path, help="folder of runs to add to those kept")
    options = flags.parse_args()
    torch.set_num_threads(1)
    if options.command == "time":
        write_rows(RESULTS / SECONDS, time_all())
    elif options.command == "run":
        run_all(options.data, options.runs, read_iterations())
    else:
        report(options.runs, RESULTS)


def time_all() -> list[dict[str, Any]]:
    """Measure the seconds of an iteration and of the prediction of 1024 x 1024 pixels.

    Returns:
        One row per entrant, with the medians of `ROUNDS` and of three predictions.
    """
    maps = Boundaries(foreground=False)
    networks = {name: entrant.build(1) for name, entrant in ENTRANTS.items()}
    steps = {name: step_of(network, maps) for name, network in networks.items()}
    iterations: dict[str, list[float]] = {name: [] for name in ENTRANTS}
    predictions: dict[str, list[float]] = {name: [] for name in ENTRANTS}
    image = np.random.default_rng(0).normal(size=(1024, 1024))
    with memory_kept():
        for step in steps.values():
            step()  # warms up
        for _ in range(ROUNDS):
            for name, step in steps.items():
                iterations[name].append(seconds_of(step, at_least=2.0))
    for _ in range(3):
        for name, network in networks.items():
            task = partial(predict, image, TrainedModel(network, maps), device="cpu")
            predictions[name].append(seconds_of(task))
    return [
        {
            "entrant": name,
            "parameters": sum(p.numel() for p in networks[name].parameters()),
            "seconds_per_iteration": f"{statistics.median(iterations[name]):.3f}",
            "fastest": f"{min(iterations[name]):.3f}",
            "slowest": f"{max(iterations[name]):.3f}",
            "prediction_seconds": f"{statistics.median(predictions[name]):.2f}",
        }
        for name in ENTRANTS
    ]


def step_of(network: nn.Module, maps: Boundaries) -> Callable[[], None]:
    """Prepare an iteration of the recipe on crops of noise."""
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    side = RECIPE["crop_size"]
    images = torch.randn(RECIPE["batch_size"], 1, side, side)
    targets = torch.rand_like(images).round()

    def step() -> None:
        optimizer.zero_grad()
        maps.loss(network(images), targets).backward()
        optimizer.step()

    return step


def seconds_of(task: Callable[[], Any], at_least: float = 0.0) -> float:
    """Measure the mean seconds of a task, repeated for some seconds."""
    started, count = time.perf_counter(), 0
    while not count or time.perf_counter() - started < at_least:
        task()
        count += 1
    return (time.perf_counter() - started) / count


def read_iterations() -> dict[str, int]:
    """Read how many iterations each entrant does in `MINUTES`."""
    rows = read_rows(RESULTS / SECONDS)
    return {row["entrant"]: int(60 * MINUTES / float(row["seconds_per_iteration"])) for row in rows}


def run_all(root: Path, runs: Path, iterations: Mapping[str, int]) -> None:
    """Make the runs that are missing, each by one of those who call this at the same time."""
    runs.mkdir(parents=True, exist_ok=True)
    while due := [run for run in planned(runs) if not is_done(runs / run.name)]:
        for run in due:
            with claimed(runs / f"{run.name}.lock") as mine:
                if mine and not is_done(runs / run.name):
                    make(run, root, runs / run.name, iterations[run.entrant])
                    break
        else:
            time.sleep(60)  # others make what is left


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Tell whether this file is ours, which it then is until the block or the process ends."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def make(run: Run, root: Path, folder: Path, iterations: int) -> None:
    """Train and score a network, or go on with it."""
    print(f"{time.strftime('%H:%M:%S')} {run.name}: {iterations} iterations", flush=True)
    resume = (folder / "training_state.pt").exists()
    if folder.exists() and not resume:
        shutil.rmtree(folder)  # ended before anything was saved
    data = DATA[run.data]
    torch.manual_seed(run.seed)
    config = TrainConfig(
        output=folder,
        iterations=iterations,
        seed=run.seed,
        min_objects=data.min_objects,
        resume=resume,
        validation_interval=max(1, iterations // 10),  # also that of saving
        training_data=f"{data.title}, {data.source}",
        licence="made to compare networks, not to be used",
        **RECIPE,
    )
    network = ENTRANTS[run.entrant].build(len(data.representation.channels))
    samples, val_samples = data.read(root, "train"), data.read(root, "val")
    try:
        train(network, data.representation, samples, val_samples, config)
    except FloatingPointError as error:
        (folder / "failed.txt").write_text(f"{error}\n")
        return
    score(run, root, folder)
    (folder / "training_state.pt").unlink()


def score(run: Run, root: Path, folder: Path) -> None:
    """Choose thresholds on the validation images; write the scores of the last iteration.

    Args:
        run: What was trained.
        root: Folder of all data sets.
        folder: Of the run; gets `images.csv`, one row per test image, and then `run.csv`, one row.
    """
    data, model = DATA[run.data], load_model(folder / "last.safetensors")
    only = not data.representation.has_background
    val_images = list(predict_samples(model, data.read(root, "val"), title="val"))
    tuned, val, _ = tune_thresholds(
        data.representation,
        [image.maps for image in val_images],
        [image.labels for image in val_images],
        labelled_pixels_only=only,
    )
    images = list(predict_samples(model, data.read(root, "test"), title="test"))
    scores = [
        mean_segmentation_accuracy(image.decoded(tuned), image.labels, labelled_pixels_only=only)
        for image in images
    ]
    key = {"data": run.data, "entrant": run.entrant, "seed": run.seed}
    rows = [
        {**key, "image": image.name, "kind": data.kind_of(image.image), "mSA": f"{score:.5f}"}
        for image, score in zip(images, scores, strict=True)
    ]
    write_rows(folder / "images.csv", rows)
    low, high = confidence_interval(data.units(scores))
    thresholds = {name: getattr(tuned, name) for name in tuned.threshold_grid()}
    row = {
        **key,
        "iterations": model.info["iteration"],
        "thresholds": " ".join(f"{name}={value}" for name, value in thresholds.items()),
        "val_mSA": f"{val:.5f}",
        "test_mSA": f"{statistics.mean(scores):.5f}",
        "test_low": f"{low:.5f}",
        "test_high": f"{high:.5f}",
        "commit": model.info["commit"],
    }
    write_rows(folder / "run.csv", [row])


if __name__ == "__main__":
    main()
