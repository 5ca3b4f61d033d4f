"""Synapse: eight abdominal organs in CT, as prepared for TransUNet and used for VM-UNet.

Training data are single slices (`train_npz/caseXXXX_sliceXXX.npz` with `image` and `label`), test
data whole volumes (`test_vol_h5/caseXXXX.npy.h5` with the same two). Splits are the business of
`splits.py`.

Source:
    Landman et al. 2015, https://doi.org/10.7303/syn3193805; prepared by Chen et al. 2021,
    "TransUNet", https://arxiv.org/abs/2102.04306.
"""

from functools import partial
from pathlib import Path

import h5py
import numpy as np
from scipy.ndimage import zoom

from vimunet.io.names import natural_key
from vimunet.io.pairs import Sample
from vimunet.messages import some_lines

NUM_CLASSES = 9
"""Background and eight organs."""

_LISTS = ("lists/lists_Synapse", "lists_Synapse", ".")


def synapse_slices(root: str | Path, *, size: int | None = 224) -> list[Sample]:
    """List the slices to train with.

    Args:
        root: Folder with `train_npz`. If there is a list of names (`train.txt`, in
            `lists/lists_Synapse`, `lists_Synapse` or `root`), it says which slices are used.
        size: Side of the square to which slices are resized, see `resize`; None leaves them.

    Returns:
        Samples called `caseXXXX_sliceXXX`, in natural order: images (y, x) float32, labels (y, x)
        uint8 in 0 ... 8.

    Raises:
        FileNotFoundError: If the folder is missing or empty, or lacks slices of the list; the
            message lists them.
        ValueError: If a file is damaged (when it is read).
    """
    files = _find(Path(root), "train_npz", ".npz", "train.txt")
    return [Sample(name, partial(_read_slice, file, size)) for name, file in files.items()]


def synapse_volumes(root: str | Path) -> list[Sample]:
    """List the volumes to test with.

    Args:
        root: Folder with `test_vol_h5`; a list of names is `test_vol.txt`, as for
            `synapse_slices`.

    Returns:
        Samples called `caseXXXX`, in natural order: images (z, y, x) float32, labels (z, y, x)
        uint8 in 0 ... 8.

    Raises:
        FileNotFoundError: If the folder is missing or empty, or lacks volumes of the list; the
            message lists them.
        ValueError: If a file is damaged (when it is read).
    """
    files = _find(Path(root), "test_vol_h5", ".npy.h5", "test_vol.txt")
    return [Sample(name, partial(_read_volume, file)) for name, file in files.items()]


def resize(image: np.ndarray, shape: tuple[int, int], *, order: int) -> np.ndarray:
    """Resize one slice.

    Args:
        image: (y, x) image or labels.
        shape: (y, x) wanted.
        order: Degree of the splines: 3 for images, 0 (nearest pixel) for labels.

    Returns:
        Image of that shape, in the dtype of `image`. Corner pixels stay corner pixels.

    Source:
        `scipy.ndimage.zoom`, as in TransUNet's and VM-UNet's code.
    """
    if image.shape == shape:
        return image
    factors = [want / have for want, have in zip(shape, image.shape, strict=True)]
    return zoom(image, factors, order=order)


def _find(root: Path, folder: str, ending: str, list_name: str) -> dict[str, Path]:
    """Find the files by name: those of the list if there is one, else all in the folder."""
    place = root / folder
    if not place.is_dir():
        raise FileNotFoundError(f"No Synapse data in {place}. Get TransUNet's prepared data.")
    files = {file.name.removesuffix(ending): file for file in place.glob(f"*{ending}")}
    lists = [root / where / list_name for where in _LISTS]
    names = next((file.read_text().split() for file in lists if file.is_file()), list(files))
    missing = [f"{name}{ending}" for name in names if name not in files]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} files of {list_name} are not in {place}:"
            + some_lines(missing)
        )
    if not names:
        raise FileNotFoundError(f"No files *{ending} in {place}.")
    return {name: files[name] for name in sorted(names, key=natural_key)}


def _read_slice(file: Path, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    with np.load(file, allow_pickle=False) as content:
        image, labels = _checked(file, dict(content), axes=2)
    if size is not None:
        image = resize(image, (size, size), order=3)
        labels = resize(labels, (size, size), order=0)
    return image, labels


def _read_volume(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(file, "r") as content:
        arrays = {name: content[name][()] for name in ("image", "label") if name in content}
    return _checked(file, arrays, axes=3)


def _checked(file: Path, arrays: dict[str, np.ndarray], axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and labels; the original files store both as floats."""
    if not {"image", "label"} <= arrays.keys():
        raise ValueError(
            f"{file} must hold `image` and `label`, got {', '.join(arrays) or 'nothing'}."
        )
    image, labels = arrays["image"], arrays["label"]
    if image.shape != labels.shape or image.ndim != axes:
        raise ValueError(
            f"{file}: image {image.shape} and label {labels.shape} must have the same {axes} axes."
        )
    classes = labels.astype(np.uint8)
    if (classes != labels).any() or classes.max(initial=0) >= NUM_CLASSES:
        raise ValueError(
            f"{file}: labels must be classes in 0 ... {NUM_CLASSES - 1}, got "
            f"{labels.min()} to {labels.max()}."
        )
    return image.astype(np.float32), classes
