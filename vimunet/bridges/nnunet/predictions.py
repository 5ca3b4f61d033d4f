"""Read the predictions of nnU-Net as labels.

Axis letters: k classes, y rows, x columns.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vimunet.bridges.nnunet.classes import CLASSES, check_choices, one_hot, to_labels
from vimunet.io.formats import read_labels
from vimunet.io.names import natural_key
from vimunet.protocol import Protocol
from vimunet.representations.boundaries import Boundaries

_LABEL_SUFFIXES = (".tif", ".tiff", ".png", ".bmp", ".nii.gz", ".nii")
_MOST_PACKED = 1100  # deflate makes data at most 1032 times smaller
_MOST_BYTES = 16 * 2**30  # of one prediction in memory
_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


def is_prediction_folder(folder: str | Path) -> bool:
    """Tell whether a folder holds what `nnUNetv2_predict` or a validation of nnU-Net has written.

    Either there is a `dataset.json` with classes (for validations, that of the trained model) and
    at least one prediction, or a .npz file with probabilities.

    Raises:
        ValueError: If there is a `dataset.json` that cannot be read or has no plain classes: what
            lies beside it must not be taken for labelled objects.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return False
    files = find_predictions(folder)
    if files and _class_names(folder) is not None:
        return True
    packed = next((file for file in files.values() if file.suffix == ".npz"), None)
    if packed is None:
        return False
    try:
        with zipfile.ZipFile(packed) as archive:
            return "probabilities.npy" in archive.namelist()
    except _UNREADABLE:
        return False


def find_predictions(folder: str | Path) -> dict[str, Path]:
    """List what nnU-Net has predicted.

    Args:
        folder: The output of `nnUNetv2_predict`, or a folder `fold_X/validation`.

    Returns:
        The file of each image, by the name of the image and in natural order: the probabilities
        if they were saved, else the classes.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"No such folder: {folder}.")
    found = {}
    for suffix in (*_LABEL_SUFFIXES[::-1], ".npz"):  # the last one counts
        for file in folder.iterdir():
            if file.name.lower().endswith(suffix) and not file.name.startswith("."):
                found[file.name[: -len(suffix)]] = file
    return {name: found[name] for name in sorted(found, key=natural_key)}


def read_prediction(
    path: str | Path, *, protocol: Protocol = "fair", representation: Boundaries | None = None
) -> NDArray[np.int32]:
    """Read the objects of one prediction of nnU-Net, see `to_labels`.

    The names of the classes are read from the `dataset.json` that nnU-Net puts beside its
    predictions. If a prediction has probabilities and classes, the two are compared, which tells
    in which order the axes are stored.

    Args:
        path: The file of probabilities (.npz, written with `--save_probabilities`; better) or of
            classes (.tif, .png, .bmp, .nii.gz).
        protocol: "fair" or "published".
        representation: Other thresholds than the default's; only for "fair".

    Returns:
        (y, x) labels: 0 background, 1..n.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is .nii.gz and nibabel is not installed.
        ValueError: If the file is damaged, no such prediction, or does not fit its neighbours.
    """
    protocol = check_choices("boundaries", protocol)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such file: {path}.")
    try:
        classes = _class_names(path.parent)
        if path.suffix.lower() == ".npz":
            probabilities = _read_probabilities(path)
        else:
            hard = _read_classes(path)
            count = len(classes or CLASSES["boundaries"])
            if hard.max() >= count:
                raise ValueError(f"classes must be numbered 0 to {count - 1}, got {hard.max()}")
            probabilities = one_hot(hard, count)
        return to_labels(
            probabilities, protocol=protocol, classes=classes, representation=representation
        )
    except _UNREADABLE as error:
        raise ValueError(f"{path} is no prediction of nnU-Net: {error}") from error


def _class_names(folder: Path) -> tuple[str, ...] | None:
    """Read the names of the classes in their order; None if there is no `dataset.json`."""
    file = folder / "dataset.json"
    if not file.is_file() and folder.name == "validation":
        file = folder.parents[1] / "dataset.json"
    if not file.is_file():
        return None
    try:
        description = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read {file} ({error}).") from error
    labels = description.get("labels") if isinstance(description, Mapping) else None
    if not isinstance(labels, Mapping):
        raise ValueError(f"{file} names no labels.")
    numbers = {name: number for name, number in labels.items() if name != "ignore"}
    if sorted(map(str, numbers.values())) != [str(i) for i in range(len(numbers))]:
        raise ValueError(f"{file} must number its labels 0, 1, 2, got {dict(labels)}.")
    return tuple(sorted(numbers, key=lambda name: int(numbers[name])))


def _read_probabilities(path: Path) -> NDArray[np.float32]:
    """Read (k, y, x) probabilities; nnU-Net stores (k, 1, y, x), for NIfTI maybe with x first."""
    with zipfile.ZipFile(path) as archive, archive.open("probabilities.npy") as file:
        shape, dtype = _npy_header(file)
        if dtype.kind != "f" or len(shape) not in (3, 4) or (len(shape) == 4 and shape[1] != 1):
            raise ValueError(
                f"probabilities must be floats of shape (classes, 1, y, x), got {dtype} {shape}"
            )
        _check_size(shape, dtype, path)
    with np.load(path, allow_pickle=False) as arrays:
        stored = arrays["probabilities"].astype(np.float32, copy=False)
    stored = stored[:, 0] if stored.ndim == 4 else stored
    if not np.isfinite(stored).all() or stored.min() < 0 or stored.max() > 1.0001:
        raise ValueError("probabilities must lie in [0, 1]")
    probabilities = np.minimum(stored, 1)
    name = path.name[: -len(".npz")]
    for suffix in _LABEL_SUFFIXES:
        beside = path.with_name(name + suffix)
        if beside.is_file():
            return _as_in(_read_classes(beside), probabilities, beside)
    return probabilities


def _as_in(hard: NDArray, probabilities: NDArray, file: Path) -> NDArray:
    """Turn probabilities so that their most probable class is that of the label file."""
    for turned in (probabilities, probabilities.swapaxes(1, 2)):
        if turned.shape[1:] == hard.shape and np.mean(turned.argmax(axis=0) == hard) > 0.99:
            return turned
    raise ValueError(
        f"the most probable classes are not those of {file.name}, shape "
        f"{probabilities.shape[1:]} and {hard.shape}. One of the two files is of another run"
    )


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _check_size(shape: Sequence[int], dtype: np.dtype, path: Path) -> None:
    """Raise before memory is taken for more than the file can hold."""
    size = math.prod(shape) * dtype.itemsize
    if not 0 < size <= min(_MOST_PACKED * path.stat().st_size, _MOST_BYTES):
        raise ValueError(f"{path.stat().st_size} bytes cannot hold an array of shape {shape}")


def _read_classes(path: Path) -> NDArray:
    """Read (y, x) hard classes."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return _read_nifti(path)
    hard = read_labels(path)
    if hard.ndim != 2 or hard.size == 0:
        raise ValueError(f"classes must have shape (y, x), got {hard.shape}")
    return hard


def _read_nifti(path: Path) -> NDArray:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(
            f"Reading NIfTI files such as {path} needs nibabel. Install it with "
            "`pip install 'vimunet[benchmark]'`."
        ) from error
    try:
        image: Any = nibabel.load(path)
        _check_size(image.shape, image.get_data_dtype(), path)
        stored = np.asanyarray(image.dataobj)
    except nibabel.filebasedimages.ImageFileError as error:
        raise ValueError(str(error)) from error
    flat = stored.reshape([size for size in stored.shape if size > 1] or [1])
    if flat.ndim != 2 or (flat != np.rint(flat)).any() or flat.min() < 0:
        raise ValueError(f"classes must be whole numbers of shape (x, y, 1), got {stored.shape}")
    return flat.T.astype(np.intp)  # NIfTI stores x first
