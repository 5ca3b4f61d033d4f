"""Time a training step and its memory: ViM-UNet at the crop's own size, as published, and UNet.

    python -m benchmarks.training_step

Each training is the real one, `vimunet.training.train`, in a process of its own: crops of 512 x 512
pixels in batches of two, from sample images that come with vimunet. The published network places
each crop on a square of 1024 x 1024 pixels. Memory is the largest resident size of the process
(the processes that prepare crops are not in it).
"""

import csv
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from vimunet.datasets import samples
from vimunet.io.pairs import Sample
from vimunet.models import build_model
from vimunet.representations.boundaries import Boundaries
from vimunet.training.config import TrainConfig
from vimunet.training.loop import train

NETWORKS: dict[str, dict[str, Any]] = {
    "vim_t": {"name": "vim_t"},
    "vim_t, published": {"name": "vim_t", "variant": "paper"},
    "unet": {"name": "unet"},
}
BATCH = 2


def main() -> None:
    flags = measure.parser(__doc__, repeats=5)
    flags.add_argument("--crop-size", type=int, default=512)
    options = flags.parse_args()
    torch.set_num_threads(options.threads)  # for the tables; the trainings set their own
    crop_size = 64 if options.quick else options.crop_size
    rows = []
    for precision in measure.PRECISIONS:
        for name, network in NETWORKS.items():
            small = {"image_size": 128} if options.quick and "variant" in network else {}
            measured = measure.run_fresh(
                "benchmarks.training_step:train_some",
                network={**network, **small},
                precision=precision,
                crop_size=crop_size,
                steps=options.repeats,
                threads=options.threads,
            )
            print(
                f"{name:<18}{precision:<9}{measured['seconds']:>9.3f} s a step, "
                f"{measured['peak_bytes'] / 2**30:>7.2f} GiB, {measured['waiting']:.1%} waiting"
            )
            rows.append(
                {
                    "network": name,
                    "precision": precision,
                    "crop_size": crop_size,
                    "batch_size": BATCH,
                    **measured,
                }
            )
    measure.write_rows(options.output / "training_step.csv", rows)


def train_some(
    network: dict[str, Any], precision: measure.Precision, crop_size: int, steps: int, threads: int
) -> dict[str, float]:
    """Train for some steps.

    Args:
        network: Arguments of `build_model`.
        precision: A precision of `TrainConfig`.
        crop_size: Side of the crops in pixels.
        steps: Number of steps that count; one before and one after them do not.
        threads: Of torch.

    Returns:
        Least and median seconds of a step, share of the time spent waiting for crops, peak memory
        in bytes.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tiled = tiled_samples(crop_size)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            output=Path(folder) / "run",
            iterations=steps + 2,
            crop_size=crop_size,
            batch_size=BATCH,
            precision=precision,
            validation_interval=steps + 2,
            val_crops=1,
            val_images=0,
        )
        train(build_model(**network), Boundaries(), tiled, tiled[:1], config)
        with (Path(folder) / "run" / "log.csv").open() as file:
            log = list(csv.DictReader(file))
    # The first step waits for the workers to start, the last one validates.
    ends = [float(row["seconds"]) for row in log[:-1]]
    seconds = [end - start for start, end in pairwise(ends)]
    waiting = [float(row["data_seconds"]) for row in log[1:-1]]
    return {
        "seconds": min(seconds),
        "median_seconds": statistics.median(seconds),
        "waiting": sum(waiting) / sum(seconds),
        "peak_bytes": measure.peak_memory(),
    }


def tiled_samples(side: int) -> list[Sample]:
    """Read the phase-contrast samples and repeat them to at least `side` + 1 pixels."""
    return [Sample(sample.name, _Tiled(sample, side + 1)) for sample in samples("phase", "train")]


class _Tiled:
    """Reads a sample and repeats it; a class, because workers need to pickle it."""

    def __init__(self, sample: Sample, side: int) -> None:
        self.sample, self.side = sample, side

    def __call__(self) -> tuple[np.ndarray, np.ndarray | None]:
        image, labels = self.sample.read()
        assert labels is not None  # `find_pairs` only makes samples with labels
        missing = [(0, max(0, self.side - length)) for length in labels.shape]
        return np.pad(image, missing, mode="wrap"), np.pad(labels, missing, mode="wrap")


if __name__ == "__main__":
    main()
