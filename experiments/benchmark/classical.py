"""Segment without a network, as the baseline of a benchmark: threshold and watershed.

Cells: where the image varies (local standard deviation above Otsu's threshold) there is a cell;
touching cells are cut at the necks, by a watershed on the distance to the background. Neurites:
each dip of the blurred darkness starts one, and a watershed on the darkness grows it to the
membranes. Colours become grey by their mean.

    python experiments/benchmark/classical.py IMAGES --output FOLDER
    python experiments/benchmark/classical.py IMAGES --output FOLDER --neurites
"""

import argparse
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label
from skimage.morphology import h_minima
from skimage.segmentation import watershed
from tqdm import tqdm

from vimunet.io.atomic import replacing
from vimunet.io.formats import read_image
from vimunet.io.names import list_images, stem
from vimunet.representations.watershed import remove_small

SMALLEST = 50  # pixels of an object
MOST_COLORS = 4


def segment_cells(image: np.ndarray, sigma: float) -> np.ndarray:
    """Segment a grey image of cells; (y, x) -> (y, x) labels. `sigma`: smallest detail, pixels."""
    image = image.astype(float)
    mean = gaussian(image, sigma)
    variation = np.sqrt(np.maximum(gaussian(image**2, sigma) - mean**2, 0))
    foreground = ndimage.binary_fill_holes(variation > threshold_otsu(variation))
    depth = gaussian(ndimage.distance_transform_edt(foreground), sigma)
    peaks = peak_local_max(depth, min_distance=round(3 * sigma), labels=label(foreground))
    markers = np.zeros(image.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return remove_small(watershed(-depth, markers, mask=foreground), SMALLEST)


def segment_neurites(image: np.ndarray, sigma: float) -> np.ndarray:
    """Segment dark membranes' insides; (y, x) -> (y, x) labels. `sigma`: of the blur, pixels."""
    if image.min() == image.max():  # no dip has a depth then
        return np.zeros(image.shape, np.int32)
    darkness = -gaussian(image.astype(float), sigma)
    step = 0.25 * darkness.std()
    return remove_small(watershed(darkness, label(h_minima(darkness, step))), SMALLEST)


def read_grey(file: Path) -> np.ndarray:
    """Read an image, (y, x) or (y, x, c), as (y, x); stacks raise a ValueError."""
    image = read_image(file)
    if image.ndim == 2:
        return image
    if image.ndim == 3 and image.shape[-1] <= MOST_COLORS:
        return image.mean(axis=-1)
    raise ValueError(
        f"{file} must be (y, x) or (y, x, c) with at most {MOST_COLORS} colours, got shape "
        f"{image.shape}. Write the slices of a stack as files of their own."
    )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("images", type=Path, help="folder of images")
    flags.add_argument("--output", type=Path, required=True, help="folder for label images")
    flags.add_argument("--neurites", action="store_true", help="dark membranes instead of cells")
    flags.add_argument("--sigma", type=float, help="blur in pixels (1, or 6 for neurites)")
    options = flags.parse_args()
    method, sigma = (segment_neurites, 6.0) if options.neurites else (segment_cells, 1.0)
    if options.sigma is not None:
        sigma = options.sigma
    for file in tqdm(list_images(options.images), unit="image"):
        labels = method(read_grey(file), sigma)
        with replacing(options.output / f"{stem(file)}.tif") as temporary:
            tifffile.imwrite(temporary, labels, compression="zlib")


if __name__ == "__main__":
    main()
