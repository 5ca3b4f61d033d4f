"""What the package does, on the small real images that it ships: segment, then learn.

First each model that comes with the package segments images of its kind that it has never seen.
Then the model for nuclei learns another kind of image, cells in phase contrast, from three
annotated images in two minutes. Scores are the segmentation accuracy at an overlap of one half
(SA50), the mean over overlaps from 0.5 to 0.95 (mSA), and the ceiling, the mSA of perfect maps.

    python experiments/demo.py --output demo_output
"""

import argparse
import csv
import shutil
import time
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from matplotlib.figure import Figure
from PIL import Image

import vimunet
from vimunet import TrainedModel
from vimunet.data import Sample
from vimunet.data.folder import find_pairs
from vimunet.evaluation import evaluate, mean_segmentation_accuracy
from vimunet.models.compiled import bfloat16_is_fast
from vimunet.overlay import draw_overlay
from vimunet.training import TrainConfig, train

_SIDE = 360
SAMPLES = Path(vimunet.__file__).parent / "data" / "samples"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--output", type=Path, default=Path("demo_output"))
    flags.add_argument("--minutes", type=float, default=2.0, help="time to learn")
    options = flags.parse_args()

    for name, purpose in vimunet.embedded_models().items():
        print(f"\n`{name}`: {purpose}")
        score(vimunet.load_model(name), samples(name, "test"), options.output / name)

    draw_models(options.output)

    student, kind = "nuclei", "phase"
    lessons = samples(kind, "train")
    print(f"\n`{student}` learns from {len(lessons) - 1} images of `{kind}`")
    model = vimunet.load_model(student)
    before = score(model, samples(kind, "test"), options.output / "before_learning")
    run = options.output / "learning"
    if (run / "config.json").exists():
        shutil.rmtree(run)  # of the demo before
    config = TrainConfig(
        output=run,
        iterations=240,
        max_minutes=options.minutes,
        crop_size=256,
        batch_size=2,
        lr=5e-4,
        optimizer="adamw",
        schedule="cosine",
        precision="bf16" if bfloat16_is_fast() else "float32",
        validation_interval=240,
        val_crops=4,
        rotations=True,
        training_data=f"vimunet samples: {kind}, after {student}",
    )
    best = train(model.network, model.representation, lessons[:-1], lessons[-1:], config)
    after = score(
        vimunet.load_model(best), samples(kind, "test"), options.output / "after_learning"
    )
    print(f"\nmSA on images of `{kind}`: {before:.3f} before learning, {after:.3f} after")
    draw_loss(run / "log.csv", options.output / "loss.png")
    print(
        f"\nTo look at, in {options.output}: models.png, */labels/*.tif, */overlays/*.png (found "
        f"on the left, annotated on the right), loss.png, and {best.relative_to(options.output)}"
    )


def samples(kind: str, split: str) -> list[Sample]:
    """List shipped images: "train", or "test" for those that no shipped model has seen."""
    return find_pairs(SAMPLES / kind / split / "images", SAMPLES / kind / split / "labels")


def score(model: TrainedModel, images: list[Sample], output: Path) -> float:
    """Segment images, write labels and overlays, print the scores and return the mean mSA."""
    for folder in ("labels", "overlays"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    labelled_only = not model.representation.has_background
    columns = f"{'objects':>8}{'annotated':>11}{'seconds':>9}{'SA50':>8}{'mSA':>8}{'ceiling':>9}"
    print(f"{'image':<16}{columns}")
    rows = []
    for sample in images:
        image, annotated = sample.read()
        assert annotated is not None  # `find_pairs` only makes samples with labels
        started = time.perf_counter()
        labels = vimunet.segment(image, model)
        seconds = time.perf_counter() - started
        perfect = model.representation.decode(model.representation.encode(annotated))
        scores = evaluate(labels, annotated, labelled_pixels_only=labelled_only)
        ceiling = mean_segmentation_accuracy(perfect, annotated, labelled_pixels_only=labelled_only)
        rows.append((scores["SA50"], scores["mSA"], ceiling))
        print(
            f"{sample.name:<16}{labels.max():>8}{len(np.unique(annotated)) - 1:>11}{seconds:>9.2f}"
            "{:>8.3f}{:>8.3f}{:>9.3f}".format(*rows[-1])
        )
        tifffile.imwrite(
            output / "labels" / f"{sample.name}.tif", labels.astype(np.uint16), compression="zlib"
        )
        pair = [draw_overlay(image, found) for found in (labels, annotated)]
        (output / "overlays" / f"{sample.name}.png").write_bytes(
            imagecodecs.png_encode(np.concatenate(pair, axis=1))
        )
    means = np.mean(rows, axis=0)
    print("{:<44}{:>8.3f}{:>8.3f}{:>9.3f}".format("mean", *means))
    return float(means[1])


def draw_models(output: Path) -> None:
    """Put one overlay of each shipped model side by side: `models.png`, as in the README."""
    pictures = []
    for name in vimunet.embedded_models():
        pair = Image.open(min((output / name / "overlays").iterdir()))
        found = pair.crop((0, 0, pair.width // 2, pair.height))
        pictures.append(np.asarray(found.resize((_SIDE, _SIDE * found.height // found.width))))
    height = min(len(picture) for picture in pictures)
    row = np.concatenate([picture[:height] for picture in pictures], axis=1)
    (output / "models.png").write_bytes(imagecodecs.png_encode(row))


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
