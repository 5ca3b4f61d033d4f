"""What a training leaves on disk and on the screen: settings, log, previews, models, state.

The folder of a run holds

    config.json            all settings, the network, the maps and the names of the data
    log.csv                one row per iteration
    events.out.tfevents.*  the same for TensorBoard
    preview/*.png          image, target, prediction and labels at each validation
    best.safetensors       model with the best validation score so far
    last.safetensors       newest model
    training_state.pt      what is needed to continue

Nothing here decides anything about the training; the loop is in `loop.py`.
"""

import csv
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vimunet.io.atomic import replacing
from vimunet.io.pairs import Sample
from vimunet.models import Network
from vimunet.overlay import color_labels, stretch_contrast
from vimunet.representations import Representation
from vimunet.segmentation.model_file import TrainedModel, save_model

try:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise ImportError("Training needs more packages: pip install 'vimunet[train]'") from error

MAY_DIFFER = ("iterations", "max_minutes", "resume", "output", "workers", "device")
"""Settings that may change when a run is continued: they do not alter what it computes."""

_NEW_SINCE = {"normalization": "image", "spacing": None}
"""What a run of version 0.1 did not say, and was."""


class RunFolder:
    """The folder of one run. Only the process that `writes` touches the disk or the screen.

    Args:
        folder: Where everything goes.
        settings: JSON-able description of the run, for config.json.
        resume: Whether to continue the run that is in `folder`.
        writes: Whether this process is the one that writes.

    Raises:
        FileNotFoundError: If there is nothing to resume.
        ValueError: If `folder` is not empty and must not be continued, or was made with other
            settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], resume: bool, writes: bool):
        self.folder = folder
        self.settings = settings
        self.writes = writes
        self._state_file = folder / "training_state.pt"
        if resume:
            self._check_settings()
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"`output` must be an empty or a new folder, got {folder}. "
                "Choose another, or continue the run in it with `resume` (--resume)."
            )

    def load_state(self) -> dict[str, Any]:
        """Read what `save_state` wrote."""
        return torch.load(self._state_file, map_location="cpu", weights_only=True)

    def save_state(self, state: dict[str, Any]) -> None:
        """Write what is needed to continue; the file before it stays until it is complete."""
        if self.writes:
            with replacing(self._state_file) as temporary:
                torch.save(state, temporary)

    def save_model(self, name: str, model: TrainedModel) -> None:
        """Write a model file."""
        if self.writes:
            save_model(self.folder / f"{name}.safetensors", model)

    def save_preview(
        self,
        iteration: int,
        crops: list[tuple[Tensor, Tensor, Tensor]],
        representation: Representation,
    ) -> None:
        """Draw what the network makes of a few crops (image, target, maps)."""
        if self.writes:
            images, targets, maps = (torch.stack(p).numpy() for p in zip(*crops, strict=True))
            figure = draw_preview(images, targets, maps, representation)
            with replacing(self.folder / "preview" / f"{iteration:07d}.png") as temporary:
                figure.savefig(temporary, format="png")

    def save_crops(
        self,
        iteration: int,
        rank: int,
        images: Tensor,
        targets: Tensor,
        items: Sequence[int],
        names: Sequence[str],
    ) -> Path:
        """Write a batch to look at. Every process may do this.

        Args:
            iteration: Iterations done before this batch.
            rank: Number of the process.
            images: (b, c, y, x) crops.
            targets: (b, m, y, x) targets.
            items: Which items of `RandomCrops` they are.
            names: Names of the samples they are cut from.
        """
        path = self.folder / f"not_finite_{iteration + 1:07d}_process_{rank}.npz"
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                images=images.cpu().numpy(),
                targets=targets.cpu().numpy(),
                items=np.asarray(items),
                names=np.asarray(names),
            )
        return path

    def open_log(
        self,
        columns: Sequence[str],
        iteration: int,
        iterations: int,
        seconds: float,
        bar: bool = True,
    ) -> "Log":
        """Start to log after `iteration`; what was logged beyond it is forgotten.

        Args:
            columns: What is logged, "iteration" first.
            iteration: Iterations already done.
            iterations: Iterations in the end.
            seconds: Seconds in the end, if that comes first.
            bar: Whether to draw a progress bar.
        """
        if not self.writes:
            return Log(iteration, iterations, seconds)
        with replacing(self.folder / "config.json") as temporary:
            temporary.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        return _WrittenLog(self.folder, columns, iteration, iterations, seconds, bar)

    def _check_settings(self) -> None:
        if not self._state_file.is_file():
            raise FileNotFoundError(
                f"No training state in {self.folder} to continue from. Leave out `resume` "
                "(--resume) to start a new run in an empty folder."
            )
        before = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        before = {**_NEW_SINCE, **before}
        if before.get("precision") == "bf16":  # as version 0.1 wrote it
            before["precision"] = "bfloat16"
        now = json.loads(json.dumps(self.settings))
        differing = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if name not in MAY_DIFFER and before.get(name) != now.get(name)
        ]
        if differing:
            raise ValueError(
                f"The run in {self.folder} must be continued with the settings it was started "
                f"with, but {'; '.join(differing)}."
            )


class Log:
    """Log of a process that does not write; knows how long the rest will take.

    Args:
        iteration: Iterations already done.
        iterations: Iterations in the end.
        seconds: Seconds in the end, if that comes first.
    """

    def __init__(self, iteration: int, iterations: int, seconds: float):
        self._first = iteration
        self._iterations = iterations
        self._seconds = seconds
        self._started = time.perf_counter()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, row: dict[str, Any]) -> float:
        """Take note of one iteration.

        Args:
            row: Values by column; None for what was not measured.

        Returns:
            Seconds that are left at the mean pace so far.
        """
        pace = (time.perf_counter() - self._started) / (row["iteration"] - self._first)
        left = min((self._iterations - row["iteration"]) * pace, self._seconds - row["seconds"])
        return max(left, 0.0)

    def close(self) -> None:
        """Finish."""


class _WrittenLog(Log):
    """One row per iteration in log.csv, TensorBoard and the progress bar."""

    def __init__(
        self,
        folder: Path,
        columns: Sequence[str],
        iteration: int,
        iterations: int,
        seconds: float,
        bar: bool,
    ):
        super().__init__(iteration, iterations, seconds)
        path = folder / "log.csv"
        kept: list[dict[str, str]] = []
        if iteration:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # the last may be torn
            kept = [row for row in csv.DictReader(whole) if int(row["iteration"]) <= iteration]
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(kept)
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._table = csv.DictWriter(self._file, columns, lineterminator="\n")
        self._board = SummaryWriter(str(folder), purge_step=iteration + 1)
        self._bar = tqdm(
            total=iterations,
            initial=iteration,
            unit="it",
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{rate_fmt}{postfix}]",
            mininterval=0.5 if bar and sys.stderr.isatty() else 60,
            disable=not bar,
        )

    def write(self, row: dict[str, Any]) -> float:
        self._table.writerow({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()})
        for name, value in row.items():
            if name not in ("iteration", "seconds") and value is not None:
                self._board.add_scalar(name, value, row["iteration"])
        left = super().write(row)
        self._bar.set_postfix_str(
            f"loss {row['loss']:.4f}, {tqdm.format_interval(left)} left", refresh=False
        )
        self._bar.update()
        return left

    def close(self) -> None:
        self._file.close()
        self._board.close()
        self._bar.close()


def describe_run(
    network: Network,
    representation: Representation,
    train_samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Collect everything that defines a run as JSON values.

    Args:
        network: From `build_model`.
        representation: What it learns.
        train_samples: Images to learn from.
        val_samples: Images to judge by.
        settings: All other settings, JSON-able.
    """
    return {
        **settings,
        **network.config,
        "representation": representation.config(),
        "train_samples": _names(train_samples),
        "val_samples": _names(val_samples),
    }


def _names(samples: Sequence[Sample]) -> str:
    names = "\n".join(sample.name for sample in samples)
    digest = hashlib.sha256(names.encode()).hexdigest()[:12]
    return f"{len(samples)} from {samples[0].name} to {samples[-1].name} (names: sha256 {digest})"


def code_commit() -> str | None:
    """Commit of this code, with "-dirty" if it was changed since; None if it is not under git."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    commands = (
        [*git, "ls-files", "--error-unmatch", here.name],  # or it would be a stranger's commit
        [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    )
    try:
        outputs = [
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            for command in commands
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return outputs[-1]


def draw_preview(
    images: np.ndarray,
    targets: np.ndarray,
    maps: np.ndarray,
    representation: Representation,
) -> Figure:
    """Draw crops in rows: image, target maps, their labels, predicted maps, their labels.

    Args:
        images: (b, c, [z,] y, x) normalised crops; of volumes the section in the middle is drawn.
        targets: (b, m, [z,] y, x) target maps.
        maps: (b, m, [z,] y, x) predicted maps.
        representation: Reads the labels from the maps.

    Returns:
        The figure, not yet written.
    """
    names = representation.channels
    titles = [
        "image",
        *(f"target\n{name}" for name in names),
        "target\nlabels",
        *(f"predicted\n{name}" for name in names),
        "predicted\nlabels",
    ]
    size = (1.8 * len(titles), 1.8 * len(images) + 0.4)
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    grid = figure.subplots(len(images), len(titles), squeeze=False)
    for row, image, target, prediction in zip(grid, images, targets, maps, strict=True):
        panels = [(stretch_contrast(np.moveaxis(_section(image, 1), 0, -1)), (0.0, 1.0))]
        for half in (target, prediction):
            panels += zip(_section(half, 1), representation.ranges, strict=True)
            labels = _section(representation.decode(half), 0)
            panels.append((color_labels(labels), (0.0, 1.0)))
        for axes, (panel, (low, high)) in zip(row, panels, strict=True):
            axes.imshow(panel, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axes.set_axis_off()
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    return figure


def _section(array: np.ndarray, leading: int) -> np.ndarray:
    """Take the section in the middle of (..., z, y, x), or (..., y, x) as it is."""
    if array.ndim == leading + 2:
        return array
    return array.take(array.shape[leading] // 2, axis=leading)
