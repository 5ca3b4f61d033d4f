"""How well objects of sections become objects of the volume: `--stitch-threshold` on FIB-25.

The threshold is chosen on sections z 192-209 by the variation of information and tested on
210-249, none of which took part in training.

    python experiments/neurites/stitch.py --data DIR --output experiments/results
"""

import argparse
from pathlib import Path

import h5py
import numpy as np

from vimunet.datasets.cremi import NEURON_IDS, RAW
from vimunet.datasets.splits import find_dataset
from vimunet.io.tables import write_rows
from vimunet.scores.folders import evaluate
from vimunet.segmentation.model_file import load_model
from vimunet.segmentation.segment import segment
from vimunet.segmentation.stitching import stitch_slices

SECTIONS = {"val": slice(192, 210), "test": slice(210, 250)}
THRESHOLDS = (None, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
MEASURES = ("ARE", "VI_split", "VI_merge")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--data", type=Path, help="folder of FIB-25 (default: data/neurites)")
    flags.add_argument("--output", type=Path, required=True, help="folder for stitching.csv")
    options = flags.parse_args()
    folder = find_dataset("neurites", options.data)
    model = load_model("neurites")
    rows = []
    for split, sections in SECTIONS.items():
        with h5py.File(folder / "derived" / "fib25_sample2_cremi_layout.hdf", "r") as file:
            image, bodies = file[RAW][sections], file[NEURON_IDS][sections].astype(np.int64)
        planes = segment(image, model, axes="zyx", progress=True)
        for threshold in THRESHOLDS:
            found = stitch_slices(planes, threshold)
            scores = evaluate(found, bodies, labelled_pixels_only=True)
            row = {"split": split, "threshold": threshold, "objects": found.max()}
            rows.append(row | {name: f"{scores[name]:.4f}" for name in MEASURES})
            print(rows[-1])
    write_rows(options.output / "stitching.csv", rows)


if __name__ == "__main__":
    main()
