"""What `--symmetries` brings: scores of a shipped model on its test images, and the time it takes.

python experiments/symmetries.py nuclei --data DIR --output DIR
"""

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vimunet.checkpoint import load_model
from vimunet.evaluation import evaluate
from vimunet.files import replacing
from vimunet.prediction import segment

COUNTS = (1, 2, 4, 8)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("name", choices=("nuclei", "phase", "neurites"), help="of the model")
    flags.add_argument("--data", type=Path, required=True, help="folder with the data set")
    flags.add_argument("--output", type=Path, required=True, help="folder for symmetries.csv")
    options = flags.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent / options.name))
    samples = getattr(import_module("splits"), options.name)(options.data, "test")
    model = load_model(options.name)
    rows = ["symmetries,mSA,SA50,seconds"]
    for count in COUNTS:
        scores, seconds = [], 0.0
        for sample in tqdm(samples, desc=str(count), disable=None):
            image, annotated = sample.read()
            assert annotated is not None  # the splits only hold samples with labels
            started = time.perf_counter()
            found = segment(image, model, symmetries=count)
            seconds += time.perf_counter() - started
            only = not model.representation.has_background
            scores.append(evaluate(found, annotated, labelled_pixels_only=only))
        means = [np.mean([score[name] for score in scores]) for name in ("mSA", "SA50")]
        rows.append(f"{count},{means[0]:.4f},{means[1]:.4f},{seconds / len(samples):.3f}")
        print(rows[-1])
    with replacing(options.output / "symmetries.csv") as temporary:
        temporary.write_text("\n".join([*rows, ""]))


if __name__ == "__main__":
    main()
