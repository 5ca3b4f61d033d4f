"""Predict images of growing size, in tiles: how do time and memory grow?

    python -m benchmarks.growth

ViM-UNet tiny, tiles of 896 pixels with a halo of 64, as `predict` chooses them. The image is never
in memory: it is indexed like a Zarr or HDF5 array and makes the pixels that are asked for. Each
size has a process of its own. Wherever tiles meet, the halo is predicted twice;
`predicted_megapixel` counts all that the network sees, `megapixel` the image.
"""

import time
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from vimunet import TrainedModel, predict
from vimunet.models import build_model
from vimunet.representations.boundaries import Boundaries
from vimunet.segmentation.tiling import tile_slices

SIZES = [512, 1024, 2048, 4096, 8192]
HALO = 64


def main() -> None:
    flags = measure.parser(__doc__, repeats=1)
    flags.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    flags.add_argument("--tile-size", type=int, default=896)
    options = flags.parse_args()
    torch.set_num_threads(options.threads)  # for the table; the predictions set their own
    sizes, tile_size = ([128, 256], 64) if options.quick else (options.sizes, options.tile_size)
    rows = []
    for size in sizes:
        runs = [
            measure.run_fresh(
                "benchmarks.growth:predict_one",
                size=size,
                tile_size=tile_size,
                threads=options.threads,
            )
            for _ in range(options.repeats)
        ]
        best = min(runs, key=lambda run: run["seconds"])
        row = {
            "size": size,
            "tile_size": tile_size,
            "halo": HALO,
            "megapixel": size**2 / 1e6,
            "predicted_megapixel": predicted_pixels(size, tile_size) / 1e6,
            **best,
        }
        rows.append(row)
        print(
            f"{size:>6} x {size:<6}{row['seconds']:>9.2f} s"
            f"{row['seconds'] / row['megapixel']:>8.3f} s/Mpixel"
            f"{row['peak_bytes'] / 2**20:>8.0f} MiB,"
            f" of which {row['output_bytes'] / 2**20:.0f} maps",
            flush=True,
        )
    measure.write_rows(options.output / "growth.csv", rows)


def predicted_pixels(size: int, tile_size: int) -> int:
    """Count the pixels of all windows that the network sees."""
    windows = (tile.window for tile in tile_slices((size, size), tile_size, HALO, stride=16))
    return sum((y.stop - y.start) * (x.stop - x.start) for y, x in windows)


def predict_one(size: int, tile_size: int, threads: int) -> dict[str, Any]:
    """Predict one image; return seconds, bytes of the maps, and peak memory in bytes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = TrainedModel(build_model("vim_t").eval(), Boundaries())
    predict(Noise(tile_size, tile_size), model)  # allocates, chooses algorithms
    started = time.perf_counter()
    maps = predict(Noise(size, size), model, tile_size=tile_size, halo=HALO)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "output_bytes": maps.nbytes,
        "peak_bytes": measure.peak_memory(),
    }


class Noise:
    """An image (y, x) that is made where it is read: 8-bit noise, the same wherever one asks."""

    dtype = np.dtype(np.uint8)

    def __init__(self, height: int, width: int) -> None:
        self.shape = (height, width)
        self._pattern = np.random.default_rng(0).integers(0, 256, 1021, np.uint8)

    def __getitem__(self, box: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (
            np.arange(*part.indices(length)) for part, length in zip(box, self.shape, strict=True)
        )
        return self._pattern[(rows[:, None] * 389 + columns) % len(self._pattern)]


if __name__ == "__main__":
    main()
