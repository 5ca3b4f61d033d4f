"""CREMI: neurites in electron microscopy, slice by slice.

Reads the original HDF5 files (`volumes/raw`, `volumes/labels/neuron_ids`) and any file of that
layout. A neuron runs through many slices and crosses one slice in several places; each place
becomes an object of its own, because that is all a model of single slices can see.

Source:
    MICCAI challenge on circuit reconstruction from electron microscopy images, https://cremi.org.
    Splits and relabelling as in Archit & Pape 2024, https://arxiv.org/abs/2404.07705.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from skimage.measure import label

from vimunet.io.names import natural_key
from vimunet.io.pairs import Sample

RAW = "volumes/raw"
NEURON_IDS = "volumes/labels/neuron_ids"
_SUFFIXES = (".hdf", ".h5", ".hdf5")
# The last numbers of uint64 mark voxels outside of the annotated volume (cremi.org, padded files).
_OUTSIDE = np.uint64(2**64 - 10)


def cremi_samples(root: str | Path, split: Literal["train", "val", "test"]) -> list[Sample]:
    """List the slices of one split, of all volumes in a folder.

    Each volume is split along z: the first 60 % train, the next 20 % val, the last 20 % test
    (75, 25 and 25 of CREMI's 125 slices). Test slices with a single label are left out.

    Args:
        root: Folder with `sample_A_20160501.hdf` and so on, or one such file.
        split: "train", "val" or "test".

    Returns:
        One sample per slice, called `VOLUME_z000`. Images are (y, x); labels are int32 connected
        components of the neuron ids in that slice, see `slice_labels`.

    Raises:
        FileNotFoundError: If there is no HDF5 file in `root`.
        ValueError: If the split is unknown, or files lack data sets or have others shapes; the
            message lists them.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"Unknown split {split!r}. Known: train, val, test.")
    files = _find_files(Path(root))
    problems = [problem for file in files if (problem := _problem(file)) is not None]
    if problems:
        raise ValueError("Files that are not as CREMI's:\n  " + "\n  ".join(problems))
    samples = []
    for file in files:
        with h5py.File(file, "r") as volume:
            ids = volume[NEURON_IDS]
            slices = _split(len(ids), split)
            if split == "test":
                slices = _with_several_labels(ids, slices)
        samples += [Sample(f"{file.stem}_z{z:03d}", partial(_read_slice, file, z)) for z in slices]
    if not samples:
        raise ValueError(f"The volumes in {root} are too small to have slices for {split!r}.")
    return samples


def slice_labels(neuron_ids: np.ndarray) -> np.ndarray:
    """Number the connected pieces of one slice.

    Neighbours (8-connected) belong together if they have the same id; two neurons that touch stay
    two objects.

    Args:
        neuron_ids: (y, x) ids of any integer dtype, 0 = background. The last ten numbers of
            uint64, which CREMI uses outside of the annotated volume, count as background, and so
            do negative numbers, which they become in a signed type.

    Returns:
        (y, x) int32 labels 1..n without gaps, 0 = background.

    Examples:
        >>> slice_labels(np.array([[7, 7, 9, 7], [0, 0, 9, 7]], dtype=np.uint64))
        array([[1, 1, 2, 3],
               [0, 0, 2, 3]], dtype=int32)
    """
    if neuron_ids.dtype == np.uint64:
        neuron_ids = np.where(neuron_ids >= _OUTSIDE, np.uint64(0), neuron_ids)
    elif neuron_ids.dtype.kind == "i":
        neuron_ids = np.maximum(neuron_ids, 0)
    return label(neuron_ids, background=0, connectivity=2).astype(np.int32)


def _split(depth: int, split: str) -> list[int]:
    train, val = round(0.6 * depth), round(0.8 * depth)
    bounds = {"train": (0, train), "val": (train, val), "test": (val, depth)}
    return list(range(*bounds[split]))


def _with_several_labels(ids: h5py.Dataset, slices: list[int]) -> list[int]:
    """Keep the slices with at least two labels; reads chunk by chunk, so that each is read once."""
    depth = ids.chunks[0] if ids.chunks else 1
    kept = []
    for start in range(0, len(ids), depth):
        wanted = [z for z in slices if start <= z < start + depth]
        block = ids[wanted[0] : wanted[-1] + 1] if wanted else ()
        kept += [z for z, part in zip(wanted, block, strict=True) if (part != part.flat[0]).any()]
    return kept


def _read_slice(file: Path, z: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one slice; the file is opened each time, so that processes never share a handle."""
    with h5py.File(file, "r") as volume:
        return volume[RAW][z], slice_labels(volume[NEURON_IDS][z])


def _find_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    files = [file for file in root.glob("*") if file.suffix.lower() in _SUFFIXES]
    if not files:
        raise FileNotFoundError(
            f"No CREMI volumes ({', '.join(_SUFFIXES)}) in {root}. "
            f"Run `vimunet data cremi {root}` to fetch them."
        )
    return sorted(files, key=lambda file: natural_key(file.name))


def _problem(file: Path) -> str | None:
    """Say why a file cannot be used, None if it can."""
    try:
        with h5py.File(file, "r") as volume:
            missing = [name for name in (RAW, NEURON_IDS) if name not in volume]
            if missing:
                found: list[str] = []
                volume.visititems(
                    lambda name, item: (
                        found.append(f"{name} {item.shape}")
                        if isinstance(item, h5py.Dataset)
                        else None
                    )
                )
                there = ", ".join(found) or "nothing"
                return f"{file}: no {' and no '.join(missing)}, but {there}"
            raw, ids = volume[RAW], volume[NEURON_IDS]
            if raw.ndim != 3 or raw.shape != ids.shape:
                return (
                    f"{file}: {RAW} {raw.shape} and {NEURON_IDS} {ids.shape} must have the same "
                    "three axes z, y, x (take CREMI's cropped files, not the padded ones)"
                )
            if ids.dtype.kind not in "ui":
                return f"{file}: {NEURON_IDS} must be whole numbers, got {ids.dtype}"
    except OSError as error:
        return f"{file}: {error}"
    return None
