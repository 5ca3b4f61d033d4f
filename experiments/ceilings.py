"""Measure the score of perfect maps: the highest that any network can reach with a representation.

Labels are encoded, decoded again and compared with themselves, for the default decoding and for
the published one. For nnU-Net both directions differ: its classes are those of the fair and of the
published protocol. Nothing is trained and no image is read.

    python experiments/ceilings.py --data FOLDER
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from keep import RESULTS
from numpy.typing import NDArray
from tqdm import tqdm

from vimunet.bridges.nnunet import Kind
from vimunet.cli.arguments import Renamed
from vimunet.comparison.ceilings import through_classes, through_maps
from vimunet.io.formats import read_labels
from vimunet.io.tables import write_rows
from vimunet.representations import REPRESENTATIONS, build_representation
from vimunet.scores.objects import mean_segmentation_accuracy
from vimunet.training.run_folder import code_commit

FOLDERS = {
    "nuclei (DSB 2018)": ["dsb2018_fixed/labels"],
    "LIVECell val": ["livecell_sample/labels/val"],
    "LIVECell test": ["livecell_sample/labels/test"],
    "phase contrast (Usiigaci)": ["usiigaci/labels/train", "usiigaci/labels/val"],
    "EM sections (VNC ssTEM)": ["vnc_sstem/labels/instances"],
}
NNUNET: dict[str, Kind] = {
    "nnU-Net, three classes": "boundaries",
    "nnU-Net, boundary only": "boundary",
}
WITHOUT_BACKGROUND = {
    *(name for name in REPRESENTATIONS if not build_representation(name).has_background),
    "nnU-Net, boundary only",
}
"""Those of electron microscopy, which are scored on labelled pixels only."""

RoundTrip = Callable[[NDArray], NDArray]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--data", type=Path, help="folder with the data sets")
    flags.add_argument("--stand-in", type=Path, dest="data", action=Renamed, help=argparse.SUPPRESS)
    flags.add_argument("--output", type=Path, default=RESULTS / "ceilings.csv", help="table")
    options = flags.parse_args()
    if options.data is None:
        flags.error("--data must be given, the folder with the data sets")
    rows = []
    for data_set, folders in FOLDERS.items():
        files = sorted(f for folder in folders for f in (options.data / folder).glob("*.*"))
        if not files:
            raise FileNotFoundError(f"No labels in {options.data / folders[0]}.")
        for name, ways in round_trips().items():
            if name in WITHOUT_BACKGROUND and "EM" not in data_set:
                continue
            scores = [
                ceilings(file, ways, name in WITHOUT_BACKGROUND)
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
                    "published": f"{theirs:.4f}",
                    "commit": code_commit(),
                }
            )
    write_rows(options.output, rows)


def round_trips() -> dict[str, tuple[RoundTrip, RoundTrip]]:
    """Give what becomes of labels on the default and on the published way to maps and back."""
    ways: dict[str, tuple[RoundTrip, RoundTrip]] = {}
    for name in REPRESENTATIONS:
        form = build_representation(name)
        if not form.labels_are_classes and "yx" in form.axes:
            ways[name] = (
                partial(through_maps, representation=form),
                partial(through_maps, representation=form.published()),
            )
    for name, kind in NNUNET.items():
        ways[name] = (
            partial(through_classes, kind=kind, protocol="fair"),
            partial(through_classes, kind=kind, protocol="published"),
        )
    return ways


def ceilings(
    file: Path, ways: tuple[RoundTrip, RoundTrip], labelled_pixels_only: bool
) -> list[float]:
    """Score perfect maps of one label image."""
    labels = read_labels(file)
    return [
        mean_segmentation_accuracy(way(labels), labels, labelled_pixels_only=labelled_pixels_only)
        for way in ways
    ]


if __name__ == "__main__":
    main()
