"""nnU-Net: write a folder of images and labels as its data set, and read its predictions.

nnU-Net sorts pixels into classes and knows no objects. `to_classes` hides the objects in classes,
`to_labels` finds them again; `write_dataset` and `read_prediction` do so with files. Nothing of
nnU-Net is imported, and nothing here trains: `docs/nnunet.md` has the commands in between.

Two protocols. "fair": the boundary lies inside the objects and is given back to them, so that a
perfect network scores nearly 1. "paper": the conversion and evaluation published with ViM-UNet,
whose boundary lies on both sides of an outline and belongs to no object; a perfect network loses
the rim of every object. Axis letters: k classes, y rows, x columns.
"""

import json
import math
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import tifffile
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from vimunet.data import Sample
from vimunet.data.folder import find_pairs, list_images, natural_key, read_image, read_labels, stem
from vimunet.files import replacing
from vimunet.matching import renumbered
from vimunet.postprocessing import connected_components, depth_inside, largest_per_label
from vimunet.representation import Boundaries

Protocol = Literal["fair", "paper"]
Kind = Literal["boundaries", "boundary"]

# nnU-Net's name of each class, background first. Readers know the boundary by its name.
CLASSES: dict[str, tuple[str, ...]] = {
    "boundaries": ("background", "interior", "boundary"),
    "boundary": ("background", "boundary"),
}
MIN_INTERIOR_RADIUS = 2.0  # narrower pieces of interior become boundary; unit: pixels
_PROTOCOLS = ("fair", "paper")
_BOUNDARY_NAME = re.compile("bound|border|membrane|contour|edge|outline", re.IGNORECASE)
_LABEL_SUFFIXES = (".tif", ".tiff", ".png", ".bmp", ".nii.gz", ".nii")
_OWN = {"dataset.json", "splits_final.json", "imagesTr", "labelsTr", "imagesTs"}
_FOLDS = 5
_MOST_PACKED = 1100  # deflate makes data at most 1032 times smaller
_MOST_BYTES = 16 * 2**30  # of one prediction in memory
_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class WrittenDataset:
    """What `write_dataset` has written.

    Attributes:
        folder: The data set, `DatasetXXX_Name`.
        train: Names of the training images, as in the split.
        val: Names of the validation images; empty if nnU-Net is to choose them.
        test: Names of the test images.
        split: The file that nnU-Net reads the split from, if it is already there.
    """

    folder: Path
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    split: Path | None


def to_classes(
    labels: ArrayLike, representation: Kind = "boundaries", protocol: Protocol = "fair"
) -> NDArray[np.uint8]:
    """Turn labelled objects into the classes that nnU-Net shall predict.

    "boundaries", fair: 1 interior, 2 the outermost pixels inside each object. Pieces of interior
    that no circle of 2 pixels fits into are boundary too, since each would come back as an object
    of its own; an object keeps its widest piece in any case. An object without interior is
    interior where it touches no other object; if it touches everywhere, its middle is.
    "boundaries", paper: 1 foreground, 2 the pixels on both sides of every outline, background
    included.
    "boundary", for images where objects fill everything: 1 on both sides of every outline.
    Fair: 1 on all unlabelled pixels too, the rest of a thick membrane.

    Args:
        labels: (y, x) integer labels, 0 background; ids need not be consecutive.
        representation: "boundaries" for three classes, "boundary" for two.
        protocol: "fair" or "paper".

    Returns:
        (y, x) classes.

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If a label is negative, the shape is not (y, x), or an argument is unknown.

    Source:
        "paper": Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705, in the code of
        its comparison with nnU-Net.

    Examples:
        >>> to_classes(np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]))
        array([[0, 0, 0, 0],
               [0, 2, 2, 2],
               [0, 2, 1, 1],
               [0, 2, 1, 1]], dtype=uint8)
    """
    _check_choices(representation, protocol)
    labels = np.asarray(labels)
    foreground, outline = Boundaries().encode(labels) > 0
    if representation == "boundary":
        return (outline if protocol == "paper" else outline | ~foreground).astype(np.uint8)
    if protocol == "paper":
        return np.where(outline, 2, foreground).astype(np.uint8)
    interior = _one_interior_each(renumbered(labels), foreground & ~outline)
    return np.where(interior, 1, 2 * foreground).astype(np.uint8)


def _one_interior_each(objects: NDArray, interior: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop narrow pieces of interior, and give some to the objects 1..n that have none."""
    pieces = connected_components(interior)
    count = int(pieces.max())
    radius = largest_per_label(pieces, depth_inside(interior), count)
    area = np.bincount(pieces.ravel(), minlength=count + 1)
    owner = np.zeros(count + 1, np.intp)
    owner[pieces] = objects
    order = np.lexsort((area, radius, owner))  # the widest piece of each object comes last
    kept = radius >= MIN_INTERIOR_RADIUS
    kept[order[np.append(np.diff(owner[order]) > 0, True)]] = True
    kept[0] = False
    interior = kept[pieces]

    without = np.bincount(objects[interior], minlength=objects.max() + 1) == 0
    without[0] = False
    if not without.any():
        return interior
    others = np.where(objects == 0, objects.max() + 1, objects)
    alone = (ndimage.maximum_filter(objects, 3) <= objects) & (
        ndimage.minimum_filter(others, 3) >= objects
    )
    interior |= without[objects] & alone
    without[objects[interior]] = False
    for i in np.flatnonzero(without):
        rows, columns = np.nonzero(objects == i)
        to_middle = np.hypot(rows - rows.mean(), columns - columns.mean())
        interior[rows[to_middle.argmin()], columns[to_middle.argmin()]] = True
    return interior


def one_hot(classes: NDArray[np.integer], count: int) -> NDArray[np.float32]:
    """Turn (y, x) classes into their (count, y, x) probabilities, 0 and 1."""
    return (classes == np.arange(count)[:, None, None]).astype(np.float32)


def to_labels(
    probabilities: NDArray,
    *,
    protocol: Protocol = "fair",
    classes: Sequence[str] | None = None,
    representation: Boundaries | None = None,
) -> NDArray[np.int32]:
    """Turn the classes that nnU-Net predicts into labelled objects.

    Fair: foreground is interior or boundary, and `Boundaries` reads the two maps. Paper: the most
    probable class counts, and boundary is not foreground. Where the boundary is the only class,
    everything is foreground. If there is no boundary among two classes, each connected piece of
    the other is an object.

    Args:
        probabilities: (k, y, x) probability of each class, 0 to 1. Hard classes are 0 and 1.
        protocol: "fair" or "paper".
        classes: Name of each class, background first; None for those of `write_dataset`.
        representation: Other thresholds than the default's; only for "fair".

    Returns:
        (y, x) labels: 0 background, 1..n.

    Raises:
        ValueError: If there are not two or three classes, an argument is unknown, or a value is
            not in [0, 1].
    """
    _check_choices("boundaries", protocol)
    if classes is None:
        classes = next((c for c in CLASSES.values() if len(c) == len(probabilities)), ())
    boundary = [i for i, name in enumerate(classes) if i and _BOUNDARY_NAME.search(name)]
    if len(classes) not in (2, 3) or len(boundary) > 1 or (len(classes) == 3 and not boundary):
        raise ValueError(
            "`classes` must be background, interior and boundary, or background and one of them, "
            f"got {len(probabilities)}: {', '.join(classes) or 'no names'}."
        )
    if len(classes) != len(probabilities):
        raise ValueError(
            f"`probabilities` must have one map per class, {', '.join(classes)}, got "
            f"{len(probabilities)} maps."
        )
    if protocol == "paper":
        probabilities = one_hot(probabilities.argmax(axis=0), len(classes))
    if not boundary:
        return connected_components(probabilities[1] > 0.5)
    edge = probabilities[boundary[0]]
    maps = edge[None]
    if len(classes) == 3:
        interior = probabilities[3 - boundary[0]]
        inside = interior if protocol == "paper" else np.minimum(interior + edge, 1)
        maps = np.stack([inside, edge])
    if protocol == "paper":
        return Boundaries.paper(foreground=len(maps) == 2).decode(maps)
    return (representation or Boundaries(foreground=len(maps) == 2)).decode(maps)


def write_dataset(
    images: str | Path,
    labels: str | Path,
    output: str | Path,
    *,
    dataset_id: int,
    name: str,
    val_images: str | Path | None = None,
    val_labels: str | Path | None = None,
    test_images: str | Path | None = None,
    representation: Kind = "boundaries",
    protocol: Protocol = "fair",
    channel_names: Sequence[str] | None = None,
    preprocessed: str | Path | None = None,
    overwrite: bool = False,
) -> WrittenDataset:
    """Write images and labels as a data set of nnU-Net, completely or not at all.

    The folder `DatasetXXX_Name` gets `dataset.json`, `labelsTr` with the classes of `to_classes`,
    `imagesTr` and, with test images, `imagesTs`. Images keep their numbers; those of three
    channels are stored as one colour file, others as one file per channel. Slices of a stack are
    images of their own.

    With validation images there is also `splits_final.json`, the same split for each of the five
    folds. nnU-Net does not read it there but in `DatasetXXX_Name` of its folder
    `nnUNet_preprocessed`: it is written there too if that folder is given or set in the
    environment.

    Args:
        images: Folder of training images, see `vimunet.data.folder`.
        labels: Folder of their labels.
        output: nnU-Net's folder `nnUNet_raw`.
        dataset_id: Number of the data set, 1 to 999.
        name: Name of the data set: letters, digits, - and _.
        val_images: Folder of validation images; None lets nnU-Net split the training images.
        val_labels: Folder of their labels.
        test_images: Folder of images to predict.
        representation: "boundaries" for cells on a background, "boundary" for images that objects
            fill.
        protocol: "fair" or "paper", see `to_classes`.
        channel_names: Name of each channel. nnU-Net normalises by it, "rgb_to_0_1" for example;
            names that it does not know mean zero mean and unit spread per image.
        preprocessed: nnU-Net's folder `nnUNet_preprocessed`; None for that of the environment.
        overwrite: Replace a data set of the same number and name.

    Returns:
        Where the data set is, and the names of its images.

    Raises:
        FileNotFoundError: If a folder is missing or holds no images.
        FileExistsError: If the data set, its number or its split exists.
        ValueError: If an argument is out of its range, a name occurs twice, or images differ in
            their number of channels.
    """
    _check_choices(representation, protocol)
    if not isinstance(dataset_id, int) or not 1 <= dataset_id <= 999:
        raise ValueError(f"`dataset_id` must be a whole number from 1 to 999, got {dataset_id!r}.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"`name` must consist of letters, digits, - and _, got {name!r}.")
    if (val_images is None) != (val_labels is None):
        raise ValueError("`val_images` and `val_labels` must be given together.")
    folder = Path(output) / f"Dataset{dataset_id:03d}_{name}"
    split = _split_file(folder.name, preprocessed)
    _check_free(folder, split, overwrite)

    train = find_pairs(images, labels)
    val = [] if val_images is None or val_labels is None else find_pairs(val_images, val_labels)
    names = [sample.name for sample in (*train, *val)]
    doubles = sorted(case for case, count in Counter(names).items() if count > 1)
    if doubles:
        raise ValueError(
            f"Images for training and validation must have different names, got {doubles[0]!r} "
            f"in both{f' and {len(doubles) - 1} more' if len(doubles) > 1 else ''}."
        )

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (partial / "imagesTr").mkdir()
        (partial / "labelsTr").mkdir()
        channels = _write_training(partial, (*train, *val), representation, protocol)
        test: list[str] = []
        if test_images is not None:
            (partial / "imagesTs").mkdir()
            test = _write_test(partial / "imagesTs", Path(test_images), channels)
        description = _describe(channels, channel_names, representation, protocol, len(names))
        _write_json(partial / "dataset.json", description)
        folds = [{"train": names[: len(train)], "val": names[len(train) :]}] * _FOLDS
        if val:
            _write_json(partial / "splits_final.json", folds)
        partial.chmod(0o755)  # mkdtemp lets only the owner in
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if split is not None and val:
        _write_json(split, folds)
    elif split is not None:
        split.unlink(missing_ok=True)  # of the data set that was replaced
    return WrittenDataset(
        folder,
        train=tuple(names[: len(train)]),
        val=tuple(names[len(train) :]),
        test=tuple(test),
        split=split if val else None,
    )


def _check_choices(representation: str, protocol: str) -> None:
    if representation not in CLASSES:
        raise ValueError(
            f"Unknown `representation` {representation!r}. Known: {', '.join(CLASSES)}."
        )
    if protocol not in _PROTOCOLS:
        raise ValueError(f"Unknown `protocol` {protocol!r}. Known: {', '.join(_PROTOCOLS)}.")


def _split_file(dataset: str, preprocessed: str | Path | None) -> Path | None:
    root = preprocessed or os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 nnU-Net's name
    return Path(root) / dataset / "splits_final.json" if root else None


def _check_free(folder: Path, split: Path | None, overwrite: bool) -> None:
    """Raise if writing would destroy something, or confuse nnU-Net."""
    number = folder.name.partition("_")[0]
    for other in folder.parent.glob(f"{number}_*"):
        if other != folder:
            raise FileExistsError(
                f"The number of a data set must be free, but {other} has it. Choose another."
            )
    if folder.exists():
        foreign = sorted({item.name for item in folder.iterdir()} - _OWN)
        if foreign:
            raise FileExistsError(
                f"{folder} holds files that this does not write, such as {foreign[0]}, and is "
                "left alone. Choose another name."
            )
    for existing in (folder, split):
        if not overwrite and existing is not None and existing.exists():
            raise FileExistsError(
                f"{existing} exists. Choose another number, or replace it with --overwrite "
                "(`overwrite=True`)."
            )


def _write_training(
    folder: Path, samples: Iterable[Sample], representation: Kind, protocol: Protocol
) -> int:
    """Write all images and classes; return the number of channels, the same for all."""
    first: tuple[str, int] | None = None
    for sample in samples:
        image, labels = sample.read()
        channels = 1 if image.ndim == 2 else image.shape[2]
        first = first or (sample.name, channels)
        if channels != first[1]:
            raise ValueError(
                f"All images must have the same number of channels, got {first[1]} in "
                f"{first[0]!r} and {channels} in {sample.name!r}. Make all of them grey or all "
                "of them colour."
            )
        _write_image(folder / "imagesTr", sample.name, image)
        assert labels is not None  # these samples are pairs
        classes = to_classes(labels, representation, protocol)
        tifffile.imwrite(folder / "labelsTr" / f"{sample.name}.tif", classes, compression="zlib")
    assert first is not None
    return first[1]


def _write_test(folder: Path, images: Path, channels: int) -> list[str]:
    """Write the images to predict, slice by slice if they are stacks; return their names."""
    names: list[str] = []
    for file in list_images(images):
        image = read_image(file)
        if image.ndim == 2 or (image.ndim == 3 and (channels > 1 or image.shape[2] in (3, 4))):
            slices = {stem(file): image}
        else:
            slices = {f"{stem(file)}_z{z:03d}": part for z, part in enumerate(image)}
        for name, part in slices.items():
            if part.ndim == 3 and part.shape[0] == channels != part.shape[2]:
                part = np.moveaxis(part, 0, 2)
            if part.ndim > 3 or (1 if part.ndim == 2 else part.shape[2]) != channels:
                raise ValueError(
                    f"Test images must have the {channels} channel{'s' * (channels > 1)} of the "
                    f"training images, got shape {image.shape} in {file}."
                )
            if name in names:
                raise ValueError(f"Names in {images} must be unique, got {name!r} twice.")
            _write_image(folder, name, part)
            names.append(name)
    return names


def _write_image(folder: Path, name: str, image: NDArray) -> None:
    """Write one file, (y, x) or (y, x, 3), or one file per channel."""
    if image.dtype == bool:
        image = image.astype(np.uint8)
    if image.dtype not in (np.uint8, np.uint16):
        image = image.astype(np.float32)
    if not np.isfinite(image).all():
        raise ValueError(
            f"Image {name!r} contains NaN or infinity. Replace missing pixels before converting."
        )
    files = [image] if image.ndim == 2 or image.shape[2] == 3 else list(np.moveaxis(image, 2, 0))
    for channel, pixels in enumerate(files):
        tifffile.imwrite(
            folder / f"{name}_{channel:04d}.tif",
            pixels,
            photometric="minisblack" if pixels.ndim == 2 else "rgb",
            compression="zlib",
        )


def _describe(
    channels: int,
    channel_names: Sequence[str] | None,
    representation: Kind,
    protocol: Protocol,
    count: int,
) -> dict[str, Any]:
    if channel_names is None:
        grey = ["image"] if channels == 1 else [f"channel {i}" for i in range(channels)]
        channel_names = ["red", "green", "blue"] if channels == 3 else grey
    if len(channel_names) != channels or isinstance(channel_names, str):
        raise ValueError(
            f"`channel_names` must name {channels} channel{'s' * (channels > 1)}, "
            f"got {channel_names!r}."
        )
    return {
        "channel_names": {str(i): channel for i, channel in enumerate(channel_names)},
        "labels": {label: i for i, label in enumerate(CLASSES[representation])},
        "numTraining": count,
        "file_ending": ".tif",
        "description": f"Converted by vimunet: {representation}, protocol {protocol}.",
    }


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


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
        protocol: "fair" or "paper".
        representation: Other thresholds than the default's; only for "fair".

    Returns:
        (y, x) labels: 0 background, 1..n.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is .nii.gz and nibabel is not installed.
        ValueError: If the file is damaged, no such prediction, or does not fit its neighbours.
    """
    _check_choices("boundaries", protocol)
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
