"""Time the whole road of an image: read, predict, decode, write.

    python -m benchmarks.road

A LIVECell image, 520 x 704, and an EM section, 1250 x 1250 as in CREMI, are stored as TIFF, read,
predicted with ViM-UNet tiny, decoded and written as `vimunet segment` does. The speed of the
network does not depend on its weights, but that of the decoding depends on the maps: it gets those
of the image's own annotation, or with --model those that the trained network predicted.

Without the data sets, sample images that come with vimunet are put side by side to the same sizes.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
import torch

from benchmarks import measure
from vimunet import TrainedModel, load_model, predict
from vimunet.datasets import samples
from vimunet.io.formats import read_image
from vimunet.io.pairs import find_pairs
from vimunet.models import build_model
from vimunet.representations.boundaries import Boundaries

STEPS = ("read", "predict", "decode", "write")
KINDS: dict[str, tuple[tuple[int, int], bool, tuple[str, str], str]] = {
    "LIVECell": (
        (520, 704),
        True,
        ("livecell_sample/images/livecell_test_images", "livecell_sample/labels/test"),
        "phase",
    ),
    "EM section": (
        (1250, 1250),
        False,
        ("vnc_sstem/images", "vnc_sstem/labels/instances"),
        "neurites",
    ),
}
"""Size, whether there is a foreground map, folders in --data, and kind of samples instead."""


def main() -> None:
    flags = measure.parser(__doc__, repeats=5)
    flags.add_argument(
        "--data",
        type=Path,
        default=measure.ROOT.parent / "shared" / "data",
        help="folder with the data sets; samples are used if it does not exist",
    )
    flags.add_argument("--model", type=Path, help="model file instead of fresh weights")
    options = flags.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for kind, (shape, foreground, _, _) in KINDS.items():
        size = (64, 96) if options.quick else shape
        image, labels, source = load_pair(kind, options.data, size)
        representation = Boundaries(foreground=foreground)
        if options.model is None:
            network = build_model("vim_t", out_channels=len(representation.channels))
            model = TrainedModel(network.eval(), representation)
        else:
            model = load_model(options.model)
        for precision in ("float32", "bfloat16"):
            print(f"{kind}, {size[0]} x {size[1]}, {precision}")
            maps = None if options.model else representation.encode(labels)
            times, objects = time_road(image, model, maps, precision, options.repeats)
            whole = sum(times.values())
            for step, seconds in times.items():
                print(f"  {step:<10}{seconds:>10.4f} s{seconds / whole:>8.1%}")
                rows.append(
                    {
                        "image": kind,
                        "height": size[0],
                        "width": size[1],
                        "precision": precision,
                        "step": step,
                        "median_seconds": seconds,
                        "share": seconds / whole,
                        "objects": objects,
                        "source": source,
                    }
                )
    measure.write_rows(options.output / "road.csv", rows)


def load_pair(kind: str, data: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, str]:
    """Return an image, its labels, and where they come from, repeated or cut to `size`."""
    _, _, (images, labels), kind_of_sample = KINDS[kind]
    found = (data / images).is_dir()
    pairs = find_pairs(data / images, data / labels) if found else samples(kind_of_sample)
    source = "data set" if found else "samples"
    image, annotated = pairs[0].read()
    assert annotated is not None  # both only make samples with labels
    return _fit(image, size), _fit(annotated, size), source


def _fit(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    missing = [(0, max(0, want - have)) for want, have in zip(size, pixels.shape, strict=False)]
    return np.pad(pixels, missing, mode="wrap")[: size[0], : size[1]]


def time_road(
    image: np.ndarray,
    model: TrainedModel,
    maps: np.ndarray | None,
    precision: str,
    repeats: int,
) -> tuple[dict[str, float], int]:
    """Go the road several times.

    Args:
        image: (y, x) image.
        model: Predicts and decodes.
        maps: (m, y, x) maps to decode; None for the predicted ones.
        precision: A precision of `predict`.
        repeats: How often, after once without the clock.

    Returns:
        Median seconds of each step, and the number of objects.
    """
    times: dict[str, list[float]] = {step: [] for step in STEPS}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "image.tif", Path(folder) / "labels.tif"
        tifffile.imwrite(source, image)

        for _ in range(repeats + 1):
            with _clock(times["read"]):
                pixels = read_image(source)
            with _clock(times["predict"]):
                predicted = predict(pixels, model, precision=precision)
            with _clock(times["decode"]):
                labels = model.representation.decode(predicted if maps is None else maps)
            with _clock(times["write"]):
                tifffile.imwrite(target, labels.astype(np.uint16), compression="zlib")
    medians = {step: statistics.median(seconds[1:]) for step, seconds in times.items()}
    return medians, int(labels.max())


@contextmanager
def _clock(times: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    times.append(time.perf_counter() - started)


if __name__ == "__main__":
    main()
