"""What `--test-time-augmentation` brings: scores of a shipped model on its test images, and time.

python experiments/test_time_augmentation.py nuclei --data DIR --output DIR
"""

import argparse
from pathlib import Path

import numpy as np
from keep import put_rows
from tqdm import tqdm

from vimunet.datasets.splits import DATASETS, find_dataset
from vimunet.segmentation.model_file import load_model
from vimunet.training.scoring import segment_samples

VIEWS = (1, 2, 4, 8)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("name", choices=("nuclei", "phase", "neurites"), help="of the model")
    flags.add_argument("--data", type=Path, help="folder of the data set (default: data/NAME)")
    flags.add_argument(
        "--output", type=Path, required=True, help="folder for test_time_augmentation.csv"
    )
    options = flags.parse_args()
    samples = DATASETS[options.name].read(find_dataset(options.name, options.data), "test")
    model = load_model(options.name)
    rows = []
    for views in VIEWS:
        found = segment_samples(
            model, tqdm(samples, desc=str(views), disable=None), test_time_augmentation=views
        )
        measured = [(i.scores["mSA"], i.scores["SA50"], i.seconds) for i in found]
        score, at_half, seconds = np.mean(measured, axis=0)
        row = {"model": options.name, "views": views, "mSA": f"{score:.4f}"}
        rows.append({**row, "SA50": f"{at_half:.4f}", "seconds": f"{seconds:.3f}"})
        print(rows[-1])
    put_rows(options.output / "test_time_augmentation.csv", rows, key=("model",))


if __name__ == "__main__":
    main()
