"""Measure the score of perfect maps: the highest that any network can reach with a representation.

Labels are encoded, decoded again and compared with themselves, for the default decoding and for
the paper's. For nnU-Net both directions differ: its classes are those of the fair and of the
published protocol. Nothing is trained and no image is read.

    python experiments/ceilings.py --stand-in FOLDER
"""

import argparse
import csv
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from numpy.typing import NDArray
from tqdm import tqdm

from vimunet.bridges.nnunet import Kind
from vimunet.comparison.ceilings import through_classes, through_maps
from vimunet.data.folder import read_labels
from vimunet.evaluation import mean_segmentation_accuracy
from vimunet.files import replacing
from vimunet.representation import Boundaries, Distances
from vimunet.training_files import code_commit

FOLDERS = {
    "nuclei (DSB 2018)": ["dsb2018_fixed/labels"],
    "LIVECell val": ["livecell_sample/labels/val"],
    "LIVECell test": ["livecell_sample/labels/test"],
    "phase contrast (Usiigaci)": ["usiigaci/labels/train", "usiigaci/labels/val"],
    "EM sections (VNC ssTEM)": ["vnc_sstem/labels/instances"],
}
REPRESENTATIONS: dict[str, tuple[Boundaries | Distances, ...]] = {
    "boundaries": (Boundaries(), Boundaries.paper()),
    "boundary only": (Boundaries(foreground=False), Boundaries.paper(foreground=False)),
    "distances": (Distances(), Distances.paper()),
}
NNUNET: dict[str, Kind] = {
    "nnU-Net, three classes": "boundaries",
    "nnU-Net, boundary only": "boundary",
}
RoundTrip = Callable[[NDArray], NDArray]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--stand-in", type=Path, required=True, help="folder with the data sets")
    flags.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "results" / "ceilings.csv",
        help="table to write",
    )
    options = flags.parse_args()
    rows = []
    for data_set, folders in FOLDERS.items():
        files = sorted(f for folder in folders for f in (options.stand_in / folder).glob("*.*"))
        if not files:
            raise FileNotFoundError(f"No labels in {options.stand_in / folders[0]}.")
        for name in (*REPRESENTATIONS, *NNUNET):
            boundary_only = name.endswith("boundary only")
            if boundary_only and "EM" not in data_set:
                continue
            scores = [
                ceilings(file, round_trips(name), boundary_only)
                for file in tqdm(files, f"{data_set}, {name}")
            ]
            ours, theirs = (statistics.mean(column) for column in zip(*scores, strict=True))
            rows.append(
                {
                    "data_set": data_set,
                    "images": len(files),
                    "representation": name,
                    "default": f"{ours:.4f}",
                    "default_lowest_image": f"{min(score[0] for score in scores):.4f}",
                    "paper": f"{theirs:.4f}",
                    "command": "python experiments/ceilings.py --stand-in FOLDER",
                    "commit": code_commit(),
                }
            )
    with replacing(options.output) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def round_trips(name: str) -> tuple[RoundTrip, RoundTrip]:
    """Return what becomes of labels in the default and in the paper's way to maps and back."""
    if name in REPRESENTATIONS:
        default, paper = REPRESENTATIONS[name]
        return (
            partial(through_maps, representation=default),
            partial(through_maps, representation=paper),
        )
    return (
        partial(through_classes, kind=NNUNET[name], protocol="fair"),
        partial(through_classes, kind=NNUNET[name], protocol="paper"),
    )


def ceilings(
    file: Path, ways: tuple[RoundTrip, RoundTrip], labelled_pixels_only: bool
) -> list[float]:
    """Score perfect maps of one label image; without foreground map, on labelled pixels only."""
    labels = read_labels(file)
    return [
        mean_segmentation_accuracy(way(labels), labels, labelled_pixels_only=labelled_pixels_only)
        for way in ways
    ]


if __name__ == "__main__":
    main()
