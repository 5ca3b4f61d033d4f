"""Public data sets as lists of `Sample`, how they are fetched, and the samples that come along."""

from pathlib import Path
from typing import Literal

from vimunet.axes import SpatialAxes
from vimunet.io.pairs import Sample, find_pairs

SAMPLES = Path(__file__).parent / "samples"
"""Small real images with labels: KIND/SPLIT/images and labels."""


def samples(kind: str, split: Literal["train", "test"] = "test") -> list[Sample]:
    """List small real images that come with the package, with their labels.

    Args:
        kind: "nuclei", "phase" or "neurites", as the models; or "neurites_3d", blocks of volumes.
        split: "train", or "test" for those that no model of the package has seen.

    Raises:
        FileNotFoundError: If there is no such kind or split.

    Examples:
        >>> image, labels = samples("nuclei")[0].read()
        >>> image.shape[:2] == labels.shape
        True
    """
    folder = SAMPLES / kind / split
    if not folder.is_dir():
        known = ", ".join(sorted(path.name for path in SAMPLES.iterdir() if path.is_dir()))
        raise FileNotFoundError(f"No samples {kind!r} to {split}. Known: {known}.")
    axes: SpatialAxes = "zyx" if kind.endswith("_3d") else "yx"
    return find_pairs(folder / "images", folder / "labels", axes=axes)
