"""Time corrections by hand: from a click to the pixels that change.

python -m benchmarks.corrections

The picture is a mosaic of 1024 x 1024 pixels: the real annotations of the 16 samples of nuclei that
have most objects. Each correction is done at many places drawn at random. What takes longer than
`LIMIT` would feel slow.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from benchmarks import measure
from vimunet.datasets import samples
from vimunet.objects import editing
from vimunet.objects.editing import Edit
from vimunet.representations import Boundaries, Landscape
from vimunet.representations.watershed import smooth

SIDE = 4
TILE = 256
LIMIT = 0.2
"""Seconds from the click, of 95 corrections in 100."""


def main() -> None:
    flags = measure.parser(__doc__, repeats=200)
    options = flags.parse_args()
    labels = mosaic()
    maps = np.stack([smooth(one, 1.0) for one in Boundaries().encode(labels)])
    landscape = Boundaries().landscape(maps)
    objects = int(labels.max())
    print(f"{objects} objects in {labels.shape[0]} x {labels.shape[1]} pixels")
    rows = []
    for name, seconds in timings(
        labels, landscape, 3 if options.quick else options.repeats
    ).items():
        median, most = float(np.median(seconds)), float(np.percentile(seconds, 95))
        rows.append(
            {
                "correction": name,
                "objects": objects,
                "times": len(seconds),
                "median_seconds": median,
                "p95_seconds": most,
                "largest_seconds": max(seconds),
                "limit_seconds": LIMIT,
            }
        )
        print(
            f"  {name:<20}{1e3 * median:>8.1f} ms, 95 % below {1e3 * most:.1f} ms, at most "
            f"{1e3 * max(seconds):.1f} ms{'' if most <= LIMIT else ': too long'}"
        )
    measure.write_rows(options.output / "corrections.csv", rows)


def mosaic() -> np.ndarray:
    """Return the (1024, 1024) labels of the corners of 16 samples, side by side."""
    annotations = [
        np.asarray(sample.read()[1], np.int32)[:TILE, :TILE]
        for sample in (*samples("nuclei", "train"), *samples("nuclei", "test"))
    ]
    annotations.sort(key=np.max, reverse=True)
    labels = np.zeros((SIDE * TILE, SIDE * TILE), np.int32)
    for number, annotated in enumerate(annotations[: SIDE**2]):
        row, column = divmod(number, SIDE)
        box = np.s_[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        labels[box] = np.where(annotated > 0, annotated + labels.max(), 0)
    return labels


def timings(labels: np.ndarray, landscape: Landscape, times: int) -> dict[str, list[float]]:
    """Time each correction at so many places."""
    found: dict[str, list[float]] = {}
    for name, correct in corrections(labels, landscape, times):
        started = time.perf_counter()
        correct()
        found.setdefault(name, []).append(time.perf_counter() - started)
    return found


def corrections(
    labels: np.ndarray, landscape: Landscape, times: int
) -> Iterator[tuple[str, Callable[[], Edit]]]:
    """Draw what a user might do: at objects, between neighbours and in the background."""
    rng = np.random.default_rng(0)
    inside, outside = np.argwhere(labels > 0), np.argwhere(labels == 0)
    heights, foreground = landscape.heights, landscape.foreground
    for _ in range(times):
        here = inside[rng.integers(len(inside))]
        there = here + rng.integers(-60, 61, 2)
        label = int(labels[tuple(here)])
        pixels = np.argwhere(labels == label)
        ends = pixels[[0, -1]]
        empty = outside[rng.integers(len(outside))]
        corners = here + np.array([[-15, -10], [-10, 15], [15, 10], [10, -15]])
        if len(pixels) > 1:
            yield "split, no maps", partial(editing.split, labels, here, ends)
            yield "split", partial(editing.split, labels, here, ends, heights)
        yield "cut", partial(editing.cut, labels, [here, there])
        yield "merge", partial(editing.merge, labels, [here, there])
        yield "delete", partial(editing.delete, labels, here)
        yield "redraw", partial(editing.redraw, labels, label, corners)
        yield "add, no maps", partial(editing.add, labels, empty)
        yield "add", partial(editing.add, labels, empty, heights, foreground)
        yield "delete at border", partial(editing.delete_at_border, labels)


if __name__ == "__main__":
    main()
