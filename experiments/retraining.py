"""What corrections are worth: fine-tune a model on a few images for minutes, score others.

Takes images at random from a folder with annotations, pretends that they were corrected by hand,
retrains as the napari plugin does, and scores images that took no part.

    python experiments/retraining.py nuclei --images DIR --labels DIR --output retrained.json
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from napari_vimunet.retraining import Step, retrain, score_image
from napari_vimunet.training_set import TrainingSet

import vimunet
from vimunet.data import Sample
from vimunet.data.folder import find_pairs
from vimunet.files import replacing
from vimunet.training_files import code_commit


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
    samples = find_pairs(options.images, options.labels)
    order = np.random.default_rng(options.seed).permutation(len(samples))
    chosen = [samples[i] for i in order[: options.corrected + options.others]]
    corrected, others = chosen[: options.corrected], chosen[options.corrected :]

    def scores(scored: vimunet.TrainedModel) -> dict[str, float]:
        return {sample.name: score(scored, sample) for sample in others}

    losses = []

    def note(step: Step) -> None:
        if step.loss is not None:
            losses.append(step.loss)

    before = scores(model)
    with tempfile.TemporaryDirectory() as folder:
        training_set = TrainingSet(Path(folder) / "corrected")
        for sample in corrected:
            training_set.add(sample.name, *sample.read())
        started, cpu_started = time.perf_counter(), time.process_time()
        result = retrain(
            model,
            training_set.folder,
            folder,
            options.minutes,
            note,
            **options.settings,
        )
        seconds = time.perf_counter() - started
        cpu_seconds = time.process_time() - cpu_started
        after = scores(vimunet.load_model(result.path))
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
    with replacing(options.output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"mSA of {len(others)} other images: {record['before']:.3f} -> {record['after']:.3f}")


def score(model: vimunet.TrainedModel, sample: Sample) -> float:
    image, labels = sample.read()
    assert labels is not None
    return score_image(model, image, labels)


if __name__ == "__main__":
    main()
