"""What corrections are worth: fine-tune a model on a few images for minutes, score others.

Takes images at random from a folder with annotations, pretends that they were corrected by hand,
fine-tunes as the napari plugin does, and scores images that took no part.

    python experiments/retraining.py nuclei --images DIR --labels DIR --output retrained.json
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import vimunet
from vimunet.io.tables import write_json
from vimunet.training.fine_tuning import Step, score_image
from vimunet.training.run_folder import code_commit


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("model", help="name or file of the model to start from")
    flags.add_argument("--images", type=Path, required=True)
    flags.add_argument("--labels", type=Path, required=True)
    flags.add_argument("--output", type=Path, required=True, help="JSON file")
    flags.add_argument("--corrected", type=int, default=3, help="images to learn from")
    flags.add_argument("--others", type=int, default=8, help="images to score")
    flags.add_argument("--minutes", type=float, default=5.0)
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--seed", type=int, default=0, help="decides which images")
    flags.add_argument("--settings", type=json.loads, default={}, help="JSON, of TrainConfig")
    options = flags.parse_args()
    torch.set_num_threads(options.threads)

    model = vimunet.load_model(options.model)
    samples = vimunet.find_pairs(options.images, options.labels)
    order = np.random.default_rng(options.seed).permutation(len(samples))
    chosen = [samples[i] for i in order[: options.corrected + options.others]]
    corrected, others = chosen[: options.corrected], chosen[options.corrected :]
    losses: list[float] = []

    def note(step: Step) -> None:
        if step.loss is not None:
            losses.append(step.loss)

    before = scores(model, others)
    with tempfile.TemporaryDirectory() as folder:
        started, cpu_started = time.perf_counter(), time.process_time()
        result = vimunet.fine_tune(
            model, corrected, folder, options.minutes, note, **options.settings
        )
        seconds = time.perf_counter() - started
        cpu_seconds = time.process_time() - cpu_started
        after = scores(vimunet.load_model(result.path), others)
    record = {
        "before": float(np.mean(list(before.values()))),
        "after": float(np.mean(list(after.values()))),
        "corrected_before": result.before,
        "corrected_after": result.after,
        "iterations": result.iterations,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "loss": [float(np.mean(part)) for part in np.array_split(losses, 10)],
        "corrected": [sample.name for sample in corrected],
        "others_before": before,
        "others_after": after,
        "options": {k: v for k, v in vars(options).items() if not isinstance(v, Path)},
        "commit": code_commit(),
    }
    write_json(options.output, record)
    print(f"mSA of {len(others)} other images: {record['before']:.3f} -> {record['after']:.3f}")


def scores(model: vimunet.TrainedModel, samples: list[vimunet.Sample]) -> dict[str, float]:
    """Score each sample."""
    found = {}
    for sample in samples:
        image, labels = sample.read()
        assert labels is not None  # `find_pairs` only makes samples with labels
        found[sample.name] = score_image(model, image, labels)
    return found


if __name__ == "__main__":
    main()
