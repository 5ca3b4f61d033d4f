"""From annotations to a model to instances, on the small real images that the package ships.

Trains the smallest ViM-UNet for a few minutes on 14 images of fluorescent nuclei, segments 6
others, and prints their segmentation accuracy at an overlap of one half (SA50), the mean over
overlaps (mSA), and the ceiling, the mSA of perfect maps.

    python experiments/demo.py --output demo_output
"""

import argparse
import csv
import shutil
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import torch
from matplotlib.figure import Figure

import vimunet
from vimunet.data.folder import find_pairs
from vimunet.evaluation import evaluate, mean_segmentation_accuracy, tune_thresholds
from vimunet.models.compiled import bfloat16_is_fast
from vimunet.overlay import draw_overlay
from vimunet.representation import Boundaries
from vimunet.training import TrainConfig, train


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--output", type=Path, default=Path("demo_output"))
    flags.add_argument("--samples", choices=("nuclei", "phase", "neurites"), default="nuclei")
    flags.add_argument("--minutes", type=float, default=4.0, help="time to train")
    options = flags.parse_args()

    folder = Path(vimunet.__file__).parent / "data" / "samples" / options.samples
    train_samples, test_samples = (
        find_pairs(folder / split / "images", folder / split / "labels")
        for split in ("train", "test")
    )
    representation = Boundaries(foreground=options.samples != "neurites")
    torch.manual_seed(0)
    network = vimunet.build_model("vim_n", out_channels=len(representation.channels))
    run = options.output / "training"
    shutil.rmtree(run, ignore_errors=True)
    print(
        f"Training `vim_n` on {len(train_samples)} images of {options.samples} "
        f"for at most {options.minutes:g} minutes"
    )
    config = TrainConfig(
        output=run,
        iterations=800,
        max_minutes=options.minutes,
        crop_size=256,
        batch_size=2,
        lr=2e-3,
        optimizer="adamw",
        schedule="cosine",
        precision="bf16" if bfloat16_is_fast() else "float32",
        validation_interval=800,
        val_crops=4,
        rotations=True,
        augment=True,
        training_data=f"vimunet samples: {options.samples}",
    )
    # The held-out images take no part in the training nor in the choice of thresholds.
    train_samples, val_samples = train_samples[:-2], train_samples[-2:]
    best = train(network, representation, train_samples, val_samples, config)

    model = vimunet.load_model(best)
    rules = {"labelled_pixels_only": options.samples == "neurites"}
    maps, truths = [], []
    for sample in val_samples:
        image, annotated = sample.read()
        assert annotated is not None  # `find_pairs` only makes samples with labels
        maps.append(vimunet.predict(image, model))
        truths.append(annotated)
    tuned, _, _ = tune_thresholds(representation, maps, truths, **rules)
    model = replace(model, representation=tuned)
    (options.output / "labels").mkdir(parents=True, exist_ok=True)
    (options.output / "overlays").mkdir(parents=True, exist_ok=True)
    scores, halves, ceilings = [], [], []
    columns = f"{'objects':>8}{'annotated':>11}{'SA50':>8}{'mSA':>8}{'ceiling':>9}"
    print(f"\n{'held-out image':<16}{columns}")
    for sample in test_samples:
        image, annotated = sample.read()
        assert annotated is not None
        labels = vimunet.segment(image, model)
        perfect = representation.decode(representation.encode(annotated))
        score = evaluate(labels, annotated, **rules)
        scores.append(score["mSA"])
        halves.append(score["SA50"])
        ceilings.append(mean_segmentation_accuracy(perfect, annotated, **rules))
        print(
            f"{sample.name:<16}{labels.max():>8}{len(np.unique(annotated)) - 1:>11}"
            f"{halves[-1]:>8.3f}{scores[-1]:>8.3f}{ceilings[-1]:>9.3f}"
        )
        tifffile.imwrite(
            options.output / "labels" / f"{sample.name}.tif",
            labels.astype(np.uint16),
            compression="zlib",
        )
        pair = [draw_overlay(image, found) for found in (labels, annotated)]
        (options.output / "overlays" / f"{sample.name}.png").write_bytes(
            imagecodecs.png_encode(np.concatenate(pair, axis=1))
        )
    means = (np.mean(column) for column in (halves, scores, ceilings))
    print("{:<35}{:>8.3f}{:>8.3f}{:>9.3f}".format("mean", *means))
    print("SA50: objects that overlap by half or more; mSA: mean for overlaps from 0.5 to 0.95")
    draw_loss(run / "log.csv", options.output / "loss.png")
    print(
        f"\nTo look at, in {options.output}: labels/*.tif, overlays/*.png (predicted on the left, "
        f"annotated on the right), loss.png, and the model, {best.relative_to(options.output)}"
    )


def draw_loss(log: Path, picture: Path) -> None:
    """Plot the loss of each iteration and its running mean."""
    with log.open() as file:
        loss = np.array([float(row["loss"]) for row in csv.DictReader(file)])
    window = max(1, min(20, len(loss) // 4))
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(loss) + 1), loss, color="0.8", label="one batch")
    mean = np.convolve(loss, np.full(window, 1 / window), mode="valid")
    axes.plot(np.arange(window, len(loss) + 1), mean, label=f"mean of {window}")
    axes.set(xlabel="iteration", ylabel="Dice loss, summed over maps", ylim=(0, None))
    axes.legend()
    figure.savefig(picture)


if __name__ == "__main__":
    main()
