"""How well objects of sections become objects of the volume: `--stitch-threshold` on FIB-25.

The threshold is chosen on sections z 192-209 by the variation of information and tested on
210-249, none of which took part in training.

    python experiments/neurites/stitch.py --data DIR --output experiments/results/shipped/neurites
"""

import argparse
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from vimunet.checkpoint import load_model
from vimunet.data.cremi import NEURON_IDS, RAW
from vimunet.evaluation import evaluate
from vimunet.files import replacing
from vimunet.prediction import segment
from vimunet.stitching import stitch_slices

SECTIONS = {"val": slice(192, 210), "test": slice(210, 250)}
THRESHOLDS = (None, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
MEASURES = ("ARE", "VI_split", "VI_merge")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--data", type=Path, required=True, help="folder with the FIB-25 sample")
    flags.add_argument("--output", type=Path, required=True, help="folder for stitching.csv")
    options = flags.parse_args()
    model = load_model("neurites")
    rows = [",".join(["split", "threshold", "objects", *MEASURES])]
    for split, sections in SECTIONS.items():
        with h5py.File(options.data / "derived" / "fib25_sample2_cremi_layout.hdf", "r") as file:
            image, bodies = file[RAW][sections], file[NEURON_IDS][sections].astype(np.int64)
        planes = np.stack([segment(plane, model) for plane in tqdm(image, disable=None)])
        for threshold in THRESHOLDS:
            found = stitch_slices(planes, threshold)
            scores = evaluate(found, bodies, labelled_pixels_only=True)
            numbers = [f"{scores[name]:.4f}" for name in MEASURES]
            rows.append(",".join([split, str(threshold), str(found.max()), *numbers]))
            print(rows[-1])
    with replacing(options.output / "stitching.csv") as temporary:
        temporary.write_text("\n".join([*rows, ""]))


if __name__ == "__main__":
    main()
