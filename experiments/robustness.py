"""How the score of a model changes when images get worse: curves for its card.

Each test image is changed in one way at a time, as another microscope, camera or user might have
changed it, and segmented as it then is. Labels change only with the scale.

    python experiments/robustness.py nuclei --data DIR --output DIR
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from keep import put_rows
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from vimunet.datasets.splits import DATASETS, find_dataset
from vimunet.io.atomic import replacing
from vimunet.io.pairs import Sample
from vimunet.segmentation.model_file import TrainedModel, load_model
from vimunet.training.augmentation import resize
from vimunet.training.scoring import segment_samples

Change = Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]


def scale(image: np.ndarray, labels: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Magnify by a factor."""
    size = (round(labels.shape[0] * factor), round(labels.shape[1] * factor))
    return resize(image, labels, size)


def noise(image: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Add Gaussian noise; the strength is a part of the image's own spread."""
    rng = np.random.default_rng(0)
    return image + strength * image.std() * rng.normal(size=image.shape), labels


def blur(image: np.ndarray, labels: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Blur by a Gaussian, its standard deviation in pixels."""
    return gaussian_filter(image, (0, sigma, sigma)), labels


def shade(image: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Light the image unevenly: from 1 + strength to 1 - strength, corner to corner."""
    y, x = np.mgrid[-1 : 1 : image.shape[1] * 1j, -1 : 1 : image.shape[2] * 1j]
    return image * (1 + strength * (y + x) / 2), labels


def invert(image: np.ndarray, labels: np.ndarray, on: float) -> tuple[np.ndarray, np.ndarray]:
    """Exchange bright and dark."""
    return (image.max() - image if on else image), labels


def deepen(image: np.ndarray, labels: np.ndarray, on: float) -> tuple[np.ndarray, np.ndarray]:
    """Store as a 16-bit camera might: 12 bit of signal above an offset of 500."""
    unit = (image - image.min()) / max(image.max() - image.min(), 1)
    return ((500 + 4095 * unit).astype(np.uint16) if on else image), labels


def surround(image: np.ndarray, labels: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Put the image into the corner of an empty field, `factor` times as high and wide.

    The field has the level and the noise of the pixels without object.
    """
    if factor == 1:
        return image, labels
    outside = image[:, labels == 0]
    level = np.median(outside, axis=1)
    noise = 1.48 * np.median(np.abs(outside - level[:, None]), axis=1)  # of a normal distribution
    _, height, width = image.shape
    size = (round(height * factor), round(width * factor))
    field = np.random.default_rng(0).normal(size=(len(image), *size))
    field = np.rint(level[:, None, None] + noise[:, None, None] * field)
    field[:, :height, :width] = image
    annotated = np.zeros(size, labels.dtype)
    annotated[:height, :width] = labels
    return field.astype(np.float32), annotated


CHANGES: dict[str, tuple[Change, tuple[float, ...]]] = {
    "scale": (scale, (0.5, 0.7, 1.0, 1.4, 2.0)),
    "noise": (noise, (0.0, 0.1, 0.2, 0.4, 0.8)),
    "blur": (blur, (0.0, 1.0, 2.0, 3.0)),
    "shading": (shade, (0.0, 0.3, 0.6, 0.9)),
    "inversion": (invert, (0.0, 1.0)),
    "16 bit": (deepen, (0.0, 1.0)),
    "empty field": (surround, (1.0, 2.0, 4.0)),
}
"""Each change, and the strengths to try; the unchanged image is among them."""


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("name", choices=("nuclei", "phase", "neurites"), help="whose test images")
    flags.add_argument("--model", help="name or model file; default: the shipped one of that name")
    flags.add_argument("--data", type=Path, help="folder of the data set (default: data/NAME)")
    flags.add_argument(
        "--output", type=Path, required=True, help="gets robustness.csv, with a row per strength"
    )
    options = flags.parse_args()
    name = options.model or options.name
    samples = DATASETS[options.name].read(find_dataset(options.name, options.data), "test")
    curves = measure(load_model(name), samples)
    rows = [
        {"model": name, "change": change, "strength": strength, "mSA": f"{score:.4f}"}
        for change, curve in curves.items()
        for strength, score in curve.items()
    ]
    put_rows(options.output / "robustness.csv", rows, key=("model",))
    draw(curves, options.output / f"robustness_{options.name}.png")


def measure(model: TrainedModel, samples: list[Sample]) -> dict[str, dict[float, float]]:
    """Give the mean score over the samples for each change and strength."""
    cases = [
        (name, change, strength)
        for name, (change, strengths) in CHANGES.items()
        for strength in strengths
        if name != "empty field" or model.representation.has_background
    ]
    curves: dict[str, dict[float, float]] = {}
    for name, change, strength in tqdm(cases, disable=None):
        found = segment_samples(model, samples, in_planes(change, strength))
        scores = [image.scores[model.representation.score] for image in found]
        curves.setdefault(name, {})[strength] = float(np.mean(scores))
    return curves


def in_planes(
    change: Change, strength: float
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Let a change, which takes (c, y, x) images, work on (y, x) and (y, x, c)."""

    def changed(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        planes = np.moveaxis(np.atleast_3d(image), 2, 0).astype(np.float32)
        planes, labels = change(planes, labels, strength)
        return np.moveaxis(planes, 0, 2), labels

    return changed


def draw(curves: dict[str, dict[float, float]], picture: Path) -> None:
    """Plot one panel per change."""
    figure = Figure(figsize=(2.1 * len(curves), 2.4), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True)
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        axes.plot(list(curve), list(curve.values()), marker="o")
        axes.set(title=name, ylim=(0, 1))
        axes.grid(alpha=0.3)
        if len(curve) == 2:
            axes.set(xticks=(0, 1), xticklabels=("off", "on"), xlim=(-0.5, 1.5))
    if "empty field" in curves:
        panels[-1].set(xticks=[1, 2, 4])
    panels[0].set(xscale="log", xticks=[0.5, 1, 2], xticklabels=["0.5", "1", "2"], ylabel="mSA")
    panels[0].minorticks_off()
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    main()
