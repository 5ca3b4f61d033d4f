"""The comparison in equal time as it was registered: who, on what, how long, and who goes on.

`results/equal_time.md` says it in words, `equal_time.py` runs it, `equal_time_report.py` tells
what came out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from keep import read_rows
from torch import nn

from vimunet.datasets.splits import DATASETS, Split
from vimunet.io.pairs import Sample
from vimunet.models import build_model
from vimunet.representations import Boundaries, Distances

SECONDS = "equal_time_seconds.csv"

KEY = ("data", "entrant", "seed")

MINUTES = 20
"""Of one core, for each training."""

SEEDS = (0, 1, 2)
"""All entrants have the first, the best `FINALISTS` and their controls the others, too."""

FINALISTS = 4
RECIPE: dict[str, Any] = {
    "crop_size": 256,
    "batch_size": 2,
    "lr": 1e-3,
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "lr_min": 1e-5,
    "precision": "float32",
    "rotations": True,
    "val_crops": 8,
    "val_images": 0,
    "workers": 1,
    "device": "cpu",
}


@dataclass(frozen=True)
class Entrant:
    """A network that is compared.

    Attributes:
        model: Name of the network.
        options: Of the network.
        controls: For a network with Mamba layers: the entrants that tell what these are worth.
        screened: Whether it takes part from the beginning; otherwise only as a control of one of
            the best.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    screened: bool = True

    def build(self, maps: int) -> nn.Module:
        """Build it with fresh weights, for one channel and a number of maps."""
        return build_model(self.model, 1, maps, **self.options)


ENTRANTS = {
    "vim_n": Entrant("vim_n", controls=("vim_n_without", "vim_n_convolution", "unet_16")),
    "vim_n_without": Entrant("vim_n", {"depth": 0}),
    "vim_n_convolution": Entrant("vim_n", {"mixer": "convolution"}),
    "unet_16": Entrant("unet", {"features": 16}),
    "vim_t_stem": Entrant("vim_t", {"conv_stem": True}, ("vim_t_stem_without", "unet_46")),
    "umamba_bot": Entrant("umamba_bot", {"image_size": 256}, ("resunet", "unet_46")),
    "unet_46": Entrant("unet", {"features": 46}),
    "unet": Entrant("unet"),
    "vim_t_stem_without": Entrant("vim_t", {"conv_stem": True, "depth": 0}, screened=False),
    "resunet": Entrant("resunet", {"image_size": 256}, screened=False),
}
"""The networks. `unet_N` are UNets with N features, narrowed to the milliseconds of another."""


@dataclass(frozen=True)
class DataSet:
    """Images that a network learns from, chooses thresholds with, and is judged by.

    Attributes:
        title: In the report.
        source: A key of `DATASETS`.
        folder: Folder below that of all data.
        representation: What a network learns, with the default thresholds.
        min_objects: Fewest labels in a crop, see `RandomCrops`.
        block: How many neighbouring test images count as one.
    """

    title: str
    source: str
    folder: str
    representation: Boundaries | Distances
    min_objects: int = 0
    block: int = 1

    def read(self, root: Path, split: Split) -> list[Sample]:
        """Read a split, "train", "val" or "test"."""
        return DATASETS[self.source].read(root / self.folder, split)

    def kind_of(self, image: np.ndarray) -> str:
        """Name the kind of a test image, where there are several."""
        kind_of = DATASETS[self.source].kind_of
        return "" if kind_of is None else kind_of(image)

    def units(self, scores: Sequence[float]) -> np.ndarray:
        """Average the scores of neighbouring test images: what is independent of each other."""
        return np.reshape(scores, (-1, self.block)).mean(axis=1)


DATA = {
    "em": DataSet(
        *("Neurites, EM", "cremi_sample", "", Boundaries(foreground=False)),
        min_objects=2,
        block=5,
    ),
    "phase": DataSet("Cells, phase contrast", "livecell_sample", "", Distances()),
    "nuclei": DataSet("Nuclei", "nuclei", "dsb2018_fixed", Boundaries()),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        data: A key of `DATA`.
        entrant: A key of `ENTRANTS`.
        seed: Of weights and crops.
    """

    data: str
    entrant: str
    seed: int

    @property
    def name(self) -> str:
        """Folder of the run."""
        return f"{self.data}_{self.entrant}_{self.seed}"


def planned(runs: Path) -> list[Run]:
    """List all runs that are known to be wanted: the screening, then what follows from it."""
    screened = [name for name, entrant in ENTRANTS.items() if entrant.screened]
    plan = [Run(data, name, SEEDS[0]) for data in DATA for name in screened]
    for data in DATA:
        folders = {name: runs / Run(data, name, SEEDS[0]).name for name in screened}
        if all(is_done(folder) for folder in folders.values()):
            best = finalists({name: validation_score(folder) for name, folder in folders.items()})
            plan += [Run(data, name, seed) for seed in SEEDS for name in best]
    return list(dict.fromkeys(plan))


def finalists(scores: Mapping[str, float]) -> list[str]:
    """Choose who gets all seeds.

    Args:
        scores: mSA on the validation images, of each entrant that was screened.

    Returns:
        The best `FINALISTS`, the best with Mamba layers, and the controls of those that have them.
    """
    ranking = sorted(scores, key=lambda name: -scores[name])
    with_mamba = [name for name in ranking if ENTRANTS[name].controls]
    best = [*ranking[:FINALISTS], *with_mamba[:1]]
    return list(dict.fromkeys([*best, *(c for name in best for c in ENTRANTS[name].controls)]))


def is_done(folder: Path) -> bool:
    """Tell whether a run was scored, or ended because its loss was not finite."""
    return (folder / "run.csv").exists() or (folder / "failed.txt").exists()


def validation_score(folder: Path) -> float:
    """Read the mSA of a finished run on the validation images; 0 if its loss was not finite."""
    file = folder / "run.csv"
    return float(read_rows(file)[0]["val_mSA"]) if file.exists() else 0.0


def run_of(row: Mapping[str, str]) -> Run:
    """Tell which run a row belongs to."""
    return Run(row["data"], row["entrant"], int(row["seed"]))
