"""What the package does, on the small real images that it ships: segment, then learn.

First each model that comes with the package segments images of its kind that it has never seen.
Then the model for nuclei learns another kind of image, cells in phase contrast, from three
annotated images in two minutes. Scores are the segmentation accuracy at an overlap of one half
(SA50), the mean over overlaps from 0.5 to 0.95 (mSA), and the ceiling, the mSA of perfect maps.

    python experiments/demo.py --output demo_output
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from keep import read_rows
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

import vimunet
from vimunet.overlay import draw_overlay
from vimunet.scores.objects import mean_segmentation_accuracy
from vimunet.training.fine_tuning import Step
from vimunet.training.scoring import segment_samples

_SIDE = 360


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--output", type=Path, default=Path("demo_output"))
    flags.add_argument("--minutes", type=float, default=2.0, help="time to learn")
    options = flags.parse_args()

    for name, purpose in vimunet.embedded_models().items():
        print(f"\n`{name}`: {purpose}")
        score(vimunet.load_model(name), vimunet.samples(name), options.output / name)
    draw_models(options.output)

    student, kind = "nuclei", "phase"
    lessons = vimunet.samples(kind, "train")
    print(f"\n`{student}` learns from {len(lessons) - 1} images of `{kind}`")
    model = vimunet.load_model(student)
    before = score(model, vimunet.samples(kind), options.output / "before_learning")
    with tqdm(desc="learning", unit=" steps", disable=None) as bar:

        def show(step: Step) -> None:
            bar.update()
            bar.set_postfix_str(f"{step.phase}, {step.seconds_left:.0f} s left")

        learnt = vimunet.fine_tune(
            model, lessons, options.output / "learning", options.minutes, show, name=kind
        )
    taught = vimunet.load_model(learnt.path)
    after = score(taught, vimunet.samples(kind), options.output / "after_learning")
    print(f"\nmSA on images of `{kind}`: {before:.3f} before learning, {after:.3f} after")
    log = learnt.path.with_name(f"{learnt.path.stem}_training") / "log.csv"
    draw_loss([float(row["loss"]) for row in read_rows(log)], options.output / "loss.png")
    print(
        f"\nTo look at, in {options.output}: models.png, */labels/*.tif, */overlays/*.png (found "
        "on the left, annotated on the right), loss.png, and "
        f"{learnt.path.relative_to(options.output)}"
    )


def score(model: vimunet.TrainedModel, images: list[vimunet.Sample], output: Path) -> float:
    """Segment images, write labels and overlays, print the scores and return the mean mSA."""
    for folder in ("labels", "overlays"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    representation = model.representation
    columns = f"{'objects':>8}{'annotated':>11}{'seconds':>9}{'SA50':>8}{'mSA':>8}{'ceiling':>9}"
    print(f"{'image':<16}{columns}")
    rows = []
    for image in segment_samples(model, images):
        ceiling = mean_segmentation_accuracy(
            representation.decode(representation.encode(image.labels)),
            image.labels,
            labelled_pixels_only=not representation.has_background,
        )
        rows.append((image.scores["SA50"], image.scores["mSA"], ceiling))
        annotated = len(np.unique(image.labels)) - 1
        print(
            f"{image.name:<16}{image.found.max():>8}{annotated:>11}{image.seconds:>9.2f}"
            "{:>8.3f}{:>8.3f}{:>9.3f}".format(*rows[-1])
        )
        tifffile.imwrite(
            output / "labels" / f"{image.name}.tif",
            image.found.astype(np.uint16),
            compression="zlib",
        )
        pair = [draw_overlay(image.image, labels) for labels in (image.found, image.labels)]
        (output / "overlays" / f"{image.name}.png").write_bytes(
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


def draw_loss(loss: Sequence[float], picture: Path) -> None:
    """Plot the loss of each iteration and its running mean."""
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
