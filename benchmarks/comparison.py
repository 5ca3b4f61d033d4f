"""Time `vimunet compare`: five methods on 1,000 images of 520 x 704 pixels with 300 cells each.

python -m benchmarks.comparison

The whole command, with ceilings, figure and report, in a process of its own. The labels are drawn
at random, as large and as crowded as LIVECell's; each method has its own errors: moved outlines,
merged pairs, halved cells, missed cells, all at once. Files are TIFF, as the tools write them.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from benchmarks import measure

SHAPE, CELLS, RADIUS = (520, 704), 300, 14


def main() -> None:
    flags = measure.parser(__doc__, repeats=1)
    options = flags.parse_args()
    images = 20 if options.quick else 1000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        methods = write(folder, images)
        command = ["compare", *(str(folder / method) for method in methods)]
        command += ["--labels", str(folder / "labels"), "--images", str(folder / "labels")]
        seconds, memory = measured([*command, "--output", str(folder / "result")])
    row = {
        "images": images,
        "methods": len(methods),
        "seconds": seconds,
        "milliseconds_per_image_and_method": 1e3 * seconds / images / len(methods),
        "peak_mib": memory,
    }
    for key, value in row.items():
        print(f"  {key:<36}{value:>12.5g}")
    measure.write_rows(options.output / "comparison.csv", [row])


def measured(command: list[str]) -> tuple[float, float]:
    """Run `vimunet`; return the seconds and the peak memory in MiB."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vimunet", *command], check=True)
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def write(folder: Path, images: int) -> list[str]:
    """Write labels and the files of five methods; return the methods."""
    rng = np.random.default_rng(0)
    names: list[str] = []
    for number in range(images):
        labels = cells(rng)
        predictions = {
            "moved": np.roll(labels, (1, 2), (0, 1)),
            "merged": (labels + 1) // 2,
            "halved": np.where(labels > 0, 2 * labels + np.arange(SHAPE[1]) // 12 % 2, 0),
            "missed": np.where(labels % 4 == 0, 0, labels),
        }
        predictions["all"] = np.roll(np.where(labels % 5 == 0, 0, (labels + 2) // 3), 1)
        for name, image in {"labels": labels, **predictions}.items():
            (folder / name).mkdir(exist_ok=True)
            path = folder / name / f"{number:04d}.tif"
            tifffile.imwrite(path, image.astype(np.uint16), compression="zlib")
        names = list(predictions)
    return names


def cells(rng: np.random.Generator) -> NDArray[np.int32]:
    """Return (520, 704) labels of cells around random centres, cut where they meet."""
    markers = np.zeros(SHAPE, np.int32)
    markers.flat[rng.choice(markers.size, CELLS, replace=False)] = np.arange(1, CELLS + 1)
    distance, nearest = distance_transform_edt(markers == 0, return_indices=True)
    return np.where(distance < RADIUS, markers[tuple(nearest)], 0)


if __name__ == "__main__":
    main()
