"""Which images of a public data set train, validate and test: one table, `DATASETS`.

A data set is read from a folder, one split at a time. Those that end in `_sample` are small public
stand-ins for data sets that are large.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from scipy.ndimage import distance_transform_edt

from vimunet.datasets.cremi import NEURON_IDS, RAW, cremi_samples, slice_labels
from vimunet.datasets.isic import isic_samples, lesion_samples, prepared_samples
from vimunet.datasets.livecell import livecell_samples
from vimunet.datasets.synapse import synapse_slices, synapse_volumes
from vimunet.io.pairs import Sample, find_pairs

Split = Literal["train", "val", "test"]

_ISIC_TRAIN = 0.7  # of VM-UNet: 1500 of 2150 images (2017), 1886 of 2694 (2018)
_ISIC_VAL = 0.1  # of the training images
_SYNAPSE_VAL = 2  # of 18; VM-UNet has none: its best model is the one with the lowest training loss
_PHASE_VAL = ("set10", "set18", "set36", "set44")  # two of each kind of cells
_NEURITES_DEPTH = 192
_NEURITES_SECTIONS = {"val": range(196, 206, 3), "test": range(210, 250)}
_SMALLEST_PIECE = 20
_STAND_IN = "_sample"


def livecell(root: Path, split: Split) -> list[Sample]:
    """Read the official split of LIVECell."""
    return livecell_samples(root, split, progress=True)


def livecell_sample(root: Path, split: Split) -> list[Sample]:
    """Read a stand-in for LIVECell: Usiigaci to learn from and to choose with, LIVECell to test.

    Args:
        root: Folder with `usiigaci` (images and labels, each with `train` and `val`) and
            `livecell_sample` (original LIVECell layout; 5 annotated val and 8 test images).
        split: "train" (34 Usiigaci images and the 5 LIVECell val images), "val" (6 Usiigaci
            images) or "test" (8 LIVECell test images).
    """
    if split == "test":
        return livecell_samples(root / "livecell_sample", "test")
    usiigaci = root / "usiigaci"
    samples = find_pairs(usiigaci / "images" / split, usiigaci / "labels" / split)
    if split == "train":
        samples += livecell_samples(root / "livecell_sample", "val")
    return samples


def cremi(root: Path, split: Split) -> list[Sample]:
    """Read the paper's split of each CREMI volume: sections 0-74, 75-99 and 100-124."""
    return cremi_samples(root, split)


def cremi_sample(root: Path, split: Split) -> list[Sample]:
    """Read a stand-in for CREMI: larval ssTEM sections to learn from, another specimen to test.

    Args:
        root: Folder with `vnc_sstem` (sections 00-16) and `isbi2012` (30 sections), each with
            `images` and `labels/instances`.
        split: "train" (VNC sections 0-12), "val" (14 and 15; 13 and 16 stay unused, neighbours
            are nearly the same) or "test" (all of ISBI 2012).
    """
    if split == "test":
        return find_pairs(root / "isbi2012" / "images", root / "isbi2012" / "labels" / "instances")
    sections = range(13) if split == "train" else (14, 15)
    samples = find_pairs(root / "vnc_sstem" / "images", root / "vnc_sstem" / "labels" / "instances")
    return [sample for sample in samples if int(sample.name) in sections]


def isic(root: Path, split: Split) -> list[Sample]:
    """Read ISIC, split 7 : 3 as for VM-UNet, and a part kept back to choose with.

    Which images were in the published split is known only to those who have it as files. Here the
    names decide. VM-UNet has no third part: its best model is the one with the lowest loss on the
    images that it reports.

    Args:
        root: Folder with VM-UNet's `train` and `val` (`images` and `masks` in each), or with the
            unpacked training and validation archives of ISIC 2017 or 2018.
        split: "train", "val" (a tenth of the training images) or "test" (VM-UNet's `val`, or three
            tenths of all images).
    """
    if (root / "train" / "images").is_dir():
        if split == "test":
            return prepared_samples(root, "val")
        learnt = prepared_samples(root, "train")
    else:
        year: Literal[2017, 2018] = 2017 if (root / "ISIC-2017_Training_Data").is_dir() else 2018
        images = isic_samples(root, "training", year) + isic_samples(root, "validation", year)
        learnt, reported = _parted(images, _ISIC_TRAIN)
        if split == "test":
            return reported
    return _parted(learnt, 1 - _ISIC_VAL)[split == "val"]


def isic_sample(root: Path, split: Split) -> list[Sample]:
    """Read a stand-in for ISIC: 750 images of ISIC 2018, 256 x 256 pixels.

    Args:
        root: Folder with `isic2018_256` (images and labels, each with `train` and `val`).
        split: "train" (540 of its 600 training images), "val" (the other 60) or "test" (its 150
            validation images).
    """
    folder = root / "isic2018_256"
    place = "val" if split == "test" else "train"
    samples = lesion_samples(folder / "images" / place, folder / "labels" / place)
    return samples if split == "test" else _parted(samples, 1 - _ISIC_VAL)[split == "val"]


def synapse(root: Path, split: Split) -> list[Sample]:
    """Read TransUNet's prepared data of Synapse.

    Args:
        root: Folder with `train_npz` and `test_vol_h5`.
        split: "train" (slices of 224 x 224), "val" (all slices of the last two training cases)
            or "test" (whole volumes).

    Raises:
        ValueError: If there are not enough cases to keep some for validation.
    """
    if split == "test":
        return synapse_volumes(root)
    slices = synapse_slices(root)
    cases = sorted({sample.name.split("_")[0] for sample in slices})
    if len(cases) <= _SYNAPSE_VAL:
        raise ValueError(
            f"{root} must have more than {_SYNAPSE_VAL} cases, got {', '.join(cases)}."
        )
    kept = cases[-_SYNAPSE_VAL:]
    return [s for s in slices if (s.name.split("_")[0] in kept) == (split == "val")]


def nuclei(root: Path, split: Split) -> list[Sample]:
    """Read the 2018 Data Science Bowl: nuclei in fluorescence, histology and bright field.

    One image in ten, by a hash of its name, is for the test and one in ten for validation. Some
    images are neighbouring fields of one plate, and so are those of different splits.

    Args:
        root: Folder with `images` (PNG) and `labels` (TIFF), one of each per name.
        split: "train", "val" or "test".
    """
    parts: dict[int, Split] = {0: "test", 1: "val"}
    return [
        sample
        for sample in find_pairs(root / "images", root / "labels")
        if parts.get(int(_digest(sample), 16) % 10, "train") == split
    ]


def kind_of_nuclei(image: np.ndarray) -> str:
    """Tell fluorescence, which has a dark background, from transmitted light."""
    return "fluorescence" if np.median(image) < 128 else "transmitted light"


def phase(root: Path, split: Split) -> list[Sample]:
    """Read Usiigaci: T98G and NIH-3T3 cells in phase contrast.

    Args:
        root: Folder with `images` and `labels`, each with `train` and `val`.
        split: "train" (30 images of the folder `train`), "val" (its 4 others) or "test" (the 6
            images of the folder `val`).
    """
    part = "val" if split == "test" else "train"
    samples = find_pairs(root / "images" / part, root / "labels" / part)
    if split == "test":
        return samples
    return [sample for sample in samples if (sample.name in _PHASE_VAL) == (split == "val")]


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
            for z in _NEURITES_SECTIONS[split]
        ]
    with h5py.File(file, "r") as volume:
        _, height, width = volume[RAW].shape
    planes = [("z", _NEURITES_DEPTH), ("y", height), ("x", width)]
    return [
        Sample(f"{name}{i:03d}", partial(_plane, file, axis, i, True))
        for axis, (name, count) in enumerate(planes)
        for i in range(count)
    ]


def _plane(file: Path, axis: int, index: int, tidy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read a section across `axis`; those along z are cut from the training part."""
    box = [slice(None)] * 3 if axis == 0 else [slice(_NEURITES_DEPTH), slice(None), slice(None)]
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


def _parted(samples: list[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """Part samples by their names alone, so that the parts stay the same; order is kept."""
    first = {
        sample.name for sample in sorted(samples, key=_digest)[: round(fraction * len(samples))]
    }
    return (
        [sample for sample in samples if sample.name in first],
        [sample for sample in samples if sample.name not in first],
    )


def _digest(sample: Sample) -> str:
    return hashlib.sha256(sample.name.encode()).hexdigest()


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Attributes:
        title: What it is called.
        read: Reads a split from a folder.
        licence: Of weights that are trained on it.
        recipe: Name of the recipe that it is trained with.
        fetched: Whether `vimunet data` downloads it.
        kind_of: Names the kind of an image, where there are several and scores are told for each.
        tidied: Makes other labels of those of a test image, which are scored too.
        slice_size: Side of the square that a network sees of each slice, where the test samples
            are volumes; None: they are images. Unit: pixels.
    """

    title: str
    read: Callable[[Path, Split], list[Sample]]
    licence: str
    recipe: str
    fetched: bool = False
    kind_of: Callable[[np.ndarray], str] | None = None
    tidied: Callable[[np.ndarray], np.ndarray] | None = None
    slice_size: int | None = None


_NON_COMMERCIAL = "CC BY-NC 4.0: for non-commercial use"

DATASETS = {
    "livecell": DataSet(
        "LIVECell", livecell, f"trained on LIVECell, {_NON_COMMERCIAL}", "livecell", fetched=True
    ),
    "livecell_sample": DataSet(
        "stand-in for LIVECell",
        livecell_sample,
        "trained on Usiigaci (MIT) and LIVECell (CC BY-NC 4.0): for non-commercial use",
        "livecell",
    ),
    "cremi": DataSet(
        "CREMI",
        cremi,
        "trained on CREMI; see https://cremi.org for its terms",
        "cremi",
        fetched=True,
    ),
    "cremi_sample": DataSet(
        "stand-in for CREMI",
        cremi_sample,
        "trained on larval ssTEM (Gerhard et al. 2013), CC BY-NC-SA 3.0: for non-commercial use",
        "cremi",
    ),
    "isic": DataSet("ISIC", isic, f"trained on ISIC images, {_NON_COMMERCIAL}", "isic"),
    "isic_sample": DataSet(
        "stand-in for ISIC", isic_sample, f"trained on ISIC 2018 images, {_NON_COMMERCIAL}", "isic"
    ),
    "synapse": DataSet(
        "Synapse",
        synapse,
        "trained on Synapse (syn3193805); see https://www.synapse.org for its terms",
        "synapse",
        slice_size=224,
    ),
    "nuclei": DataSet(
        "the 2018 Data Science Bowl",
        nuclei,
        "trained on images of the 2018 Data Science Bowl (BBBC038, with fixes), CC0 1.0",
        "nuclei",
        kind_of=kind_of_nuclei,
    ),
    "phase": DataSet("Usiigaci", phase, "trained on Usiigaci (Tsai et al. 2019), MIT", "phase"),
    "neurites": DataSet(
        "the FIB-25 sample",
        neurites,
        "trained on the FIB-25 sample of FlyEM, Janelia (neuroproof_examples), CC BY",
        "neurites",
        tidied=without_specks,
    ),
}
"""By name."""


def find_dataset(name: str, folder: str | Path | None = None) -> Path:
    """Find the folder of a data set.

    Args:
        name: A key of `DATASETS`.
        folder: Where it is; None: `$VIMUNET_DATA/NAME` or `$VIMUNET_DATA` itself, or `data/NAME`.
            Stand-ins are made of several folders of `$VIMUNET_DATA`, one of which may be NAME.

    Raises:
        FileNotFoundError: If there is no such folder. The message says how to get it.
    """
    root = os.environ.get("VIMUNET_DATA")
    if folder is not None:
        found = Path(folder)
    elif root:
        of_its_own = Path(root) / name
        found = of_its_own if of_its_own.is_dir() and not name.endswith(_STAND_IN) else Path(root)
    else:
        found = Path("data") / name
    if not found.is_dir():
        step = (
            f"Run `vimunet data {name} {found}` to fetch it"
            if DATASETS[name].fetched
            else "Put it there"
        )
        raise FileNotFoundError(
            f"No folder {found} with {DATASETS[name].title}. {step}, or say where it is: --data, "
            "or the environment variable VIMUNET_DATA."
        )
    return found
