"""Plot how a training went: its loss, and the mSA on whole validation images.

python experiments/learning_curve.py runs/nuclei runs/nuclei_2 --output learning.png
"""

import argparse
from pathlib import Path

import numpy as np
from keep import read_rows
from matplotlib.figure import Figure

from vimunet.io.atomic import replacing

_WINDOW = 50


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("runs", type=Path, nargs="+", help="folders of trainings, one after another")
    flags.add_argument("--output", type=Path, required=True, help="PNG file to write")
    options = flags.parse_args()
    with replacing(options.output) as temporary:
        draw(options.runs).savefig(temporary, format="png", dpi=110)


def draw(runs: list[Path]) -> Figure:
    """Plot runs that go on from one another behind each other."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    start = 0
    for run in runs:
        rows = read_rows(run / "log.csv")
        iterations = start + np.array([int(row["iteration"]) for row in rows])
        loss = np.array([float(row["loss"]) for row in rows])
        window = min(_WINDOW, len(loss))
        mean = np.convolve(loss, np.full(window, 1 / window), mode="valid")
        losses.plot(iterations[window - 1 :], mean, color="C0")
        seen = [(start + int(r["iteration"]), float(r["val_mSA"])) for r in rows if r["val_mSA"]]
        scores.plot(*zip(*seen, strict=True), marker="o", markersize=3, color="C0")
        start = int(iterations[-1])
    losses.set(xlabel="iteration", ylabel=f"loss, mean of {_WINDOW}", ylim=(0, None))
    scores.set(xlabel="iteration", ylabel="mSA, default thresholds", ylim=(0, None))
    scores.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
