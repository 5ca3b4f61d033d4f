"""Which sections the neurites experiment trains, validates and tests on."""

from functools import partial
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from scipy.ndimage import distance_transform_edt

from vimunet.data import Sample
from vimunet.data.cremi import NEURON_IDS, RAW, slice_labels

Split = Literal["train", "val", "test"]
LICENCE = "trained on the FIB-25 sample of FlyEM, Janelia (neuroproof_examples), CC BY"

TRAIN_DEPTH = 192
"""Sections z = 0 ... 191 are for training, also cut along the two other axes."""

_SECTIONS = {"val": range(196, 206, 3), "test": range(210, 250)}
_SMALLEST_PIECE = 20


def neurites(root: Path, split: Split) -> list[Sample]:
    """Read the FIB-25 sample: neurites in the medulla of a fly, 10 nm voxels, equal in all axes.

    Since no axis is special, the training part is cut along each of them. The proofread bodies
    leave specks of a few voxels; in training and validation, pieces under 20 pixels go to their
    nearest neighbour. The test labels stay as they are.

    Args:
        root: Folder with `derived/fib25_sample2_cremi_layout.hdf`, 250 x 250 x 250 voxels.
        split: "train" (z 0-191, and the planes across it), "val" (z 196, 199, 202, 205) or "test"
            (z 210-249).
    """
    file = root / "derived" / "fib25_sample2_cremi_layout.hdf"
    if split != "train":
        return [
            Sample(f"z{z:03d}", partial(_plane, file, 0, z, split == "val"))
            for z in _SECTIONS[split]
        ]
    with h5py.File(file, "r") as volume:
        _, height, width = volume[RAW].shape
    planes = [("z", TRAIN_DEPTH), ("y", height), ("x", width)]
    return [
        Sample(f"{name}{i:03d}", partial(_plane, file, axis, i, True))
        for axis, (name, count) in enumerate(planes)
        for i in range(count)
    ]


def _plane(file: Path, axis: int, index: int, tidy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read a section across `axis`; those along z are cut from the training part."""
    box = [slice(None)] * 3 if axis == 0 else [slice(TRAIN_DEPTH), slice(None), slice(None)]
    place: list[slice | int] = list(box)
    place[axis] = index
    with h5py.File(file, "r") as volume:
        image, labels = volume[RAW][tuple(place)], slice_labels(volume[NEURON_IDS][tuple(place)])
    return image, without_specks(labels) if tidy else labels


def without_specks(labels: np.ndarray) -> np.ndarray:
    """Give pieces under 20 pixels, and pixels without label, to the nearest larger piece."""
    small = np.bincount(labels.ravel()) < _SMALLEST_PIECE
    small[0] = True
    nearest = distance_transform_edt(small[labels], return_distances=False, return_indices=True)
    return labels[tuple(nearest)]
