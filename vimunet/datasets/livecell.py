"""LIVECell: phase-contrast images of eight cell lines with COCO annotations.

Reads the original files. The polygons are turned into label images once and kept beside the data
in `labels_cache`, because reading the annotations of the training split takes long.

Source:
    Edlund et al. 2021, "LIVECell - A large-scale dataset for label-free live cell segmentation",
    Nature Methods 18, https://doi.org/10.1038/s41592-021-01249-6. Licence CC BY-NC 4.0.
"""

import hashlib
import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pooch
import tifffile
from tqdm import tqdm

from vimunet.io.atomic import replacing
from vimunet.io.formats import read_image, read_labels
from vimunet.io.names import natural_key
from vimunet.io.pairs import Sample
from vimunet.messages import some_of

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_CACHE_VERSION = 2  # raise it when `polygons_to_labels` gives other labels
_LEAST_NUMBERS = 6
"""Of a polygon: x and y of three corners."""


def livecell_samples(
    root: str | Path,
    split: Literal["train", "val", "test"],
    *,
    min_size: int = 50,
    progress: bool = False,
) -> list[Sample]:
    """List the annotated images of one official split.

    Looks for `livecell_coco_SPLIT.json` in `root/annotations`, `root/annotations/LIVECell`,
    `root/LIVECell` and `root`, and for the images in `root/images/livecell_train_val_images` and
    `root/images/livecell_test_images` (or without `images/`), with or without a folder for each
    cell line. Images without an annotation are left out. Some images of the published files stand
    under two ids, with annotations of their own each: such an image is listed once, with the
    annotations of its first id, and their number is logged.

    Args:
        root: Folder of the data set, e.g. from `vimunet data livecell ROOT`.
        split: "train", "val" or "test".
        min_size: Objects with fewer pixels are removed, see `polygons_to_labels`.
        progress: Show a progress bar while label images are made, which happens once.

    Returns:
        Samples in natural order of their names.

    Source:
        As torch-em's reader, which made the labels of Archit & Pape 2024. Deviation: torch-em
        lists an image that has two ids twice, with the labels of the first id both times.

    Raises:
        FileNotFoundError: If annotations or images are missing; the message lists them.
        ValueError: If the split is unknown, the file is no COCO file, or an image has not the
            size that its annotation says.
        ImportError: If label images must be made and pycocotools is not installed.
    """
    root = Path(root)
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Known: {', '.join(SPLITS)}.")
    annotation_file = _find_annotations(root, split)
    folder = _find_images(root, split)
    cache = _cache_folder(root, split, annotation_file, min_size)
    index = cache / "index.json"
    if not index.is_file():
        images, annotations = _read_coco(annotation_file)
        paths = _match(images, folder, annotation_file)
        logger.info("Making %d label images of LIVECell %s in %s.", len(images), split, cache)
        for image in tqdm(images, desc=f"LIVECell {split} labels", disable=not progress):
            labels = polygons_to_labels(
                annotations[image["id"]], (image["height"], image["width"]), min_size=min_size
            )
            _write_labels(cache / f"{Path(image['file_name']).stem}.tif", labels)
        relative = [str(path.relative_to(folder)) for path in paths]
        with replacing(index) as temporary:
            temporary.write_text(json.dumps(relative))
    image_files = [folder / name for name in json.loads(index.read_text())]
    _require(image_files, folder, annotation_file)
    return [
        Sample(file.stem, partial(_read, file, cache / f"{file.stem}.tif")) for file in image_files
    ]


def polygons_to_labels(
    annotations: Sequence[Mapping[str, Any]], shape: tuple[int, int], *, min_size: int = 50
) -> np.ndarray:
    """Paint the COCO annotations of one image as labels.

    Objects are painted from small to large (by their `area`; crowds first), so where two overlap
    the larger one wins; equal areas keep their order. What is left with fewer than `min_size`
    pixels is removed. Polygons of less than three corners have no area and are left out.

    Args:
        annotations: COCO annotations of the image: `segmentation` (polygons or run lengths),
            `area`, `iscrowd`.
        shape: (y, x) size of the image in pixels.
        min_size: Fewest pixels of an object.

    Returns:
        (y, x) uint16 labels (int32 beyond 65535 objects), 1..n without gaps, 0 = background.

    Raises:
        ImportError: If pycocotools is not installed.
        ValueError: If an outline is none; the message names the annotation.

    Source:
        torch-em's LIVECell reader, which made the labels of Archit & Pape 2024,
        https://arxiv.org/abs/2404.07705. Deviation: ties of area are resolved by order.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError(
            "Reading LIVECell annotations needs pycocotools. "
            "Install it with `pip install 'vimunet[train]'`."
        ) from error
    height, width = shape
    sizes = [1 if item.get("iscrowd") else item["area"] for item in annotations]
    labels = np.zeros(shape, np.int32)
    for number, place in enumerate(np.argsort(sizes, kind="stable"), start=1):
        outline = annotations[place]["segmentation"]
        if isinstance(outline, list):
            outline = [polygon for polygon in outline if len(polygon) >= _LEAST_NUMBERS]
            if not outline:
                continue
        try:
            if isinstance(outline, list):
                code = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
            elif isinstance(outline["counts"], list):
                code = coco_mask.frPyObjects(outline, height, width)
            else:
                code = outline
            left, top, wide, high = coco_mask.toBbox(code).astype(int)
        except Exception as error:  # whatever the library throws at what is no outline
            raise ValueError(
                f"The outline of annotation {annotations[place].get('id', place)} must be polygons "
                f"or run lengths of COCO, got {str(outline)[:60]} ({error})."
            ) from error
        window = slice(top, top + high), slice(left, left + wide)
        labels[window][coco_mask.decode(code)[window] > 0] = number
    counts = np.bincount(labels.ravel(), minlength=len(annotations) + 1)
    keep = counts >= max(min_size, 1)
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0)
    return numbers[labels].astype(np.uint16 if numbers.max() < 2**16 else np.int32)


def _read(image_file: Path, label_file: Path) -> tuple[np.ndarray, np.ndarray]:
    return read_image(image_file), read_labels(label_file)


def _find_annotations(root: Path, split: str) -> Path:
    name = f"livecell_coco_{split}.json"
    folders = [root / "annotations", root / "annotations" / "LIVECell", root / "LIVECell", root]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"No {name} in {', '.join(map(str, folders))}. "
        f"Run `vimunet data livecell {root}` to fetch it."
    )


def _find_images(root: Path, split: str) -> Path:
    part = "livecell_test_images" if split == "test" else "livecell_train_val_images"
    for folder in (root / "images" / part, root / part):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"No LIVECell images in {root / 'images' / part}. "
        f"Run `vimunet data livecell {root}` to fetch them."
    )


def _read_coco(file: Path) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """Return the images that have annotations, in natural order, and these by image id."""
    try:
        content = json.loads(file.read_bytes())
        annotations = defaultdict(list)
        items = content["annotations"]
        for item in items.values() if isinstance(items, dict) else items:
            annotations[item["image_id"]].append(item)
        named: dict[str, dict[str, Any]] = {}
        again = []
        for image in content["images"]:
            if image["id"] not in annotations:
                continue
            if named.setdefault(image["file_name"], image) is not image:
                again.append(image["file_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not a COCO file ({type(error).__name__}: {error}). Download it again."
        ) from error
    if again:
        logger.warning(
            "%d images of %s stand there under several ids; the annotations of the first are "
            "taken: %s.",
            len(set(again)),
            file,
            some_of(sorted(set(again))),
        )
    return sorted(named.values(), key=lambda image: natural_key(image["file_name"])), {
        **annotations
    }


def _match(images: list[dict[str, Any]], folder: Path, annotation_file: Path) -> list[Path]:
    """Find the file of each image and check its size against the annotation."""
    found = {file.name: file for file in folder.rglob("*.tif")}
    paths = [found.get(image["file_name"], folder / image["file_name"]) for image in images]
    _require(paths, folder, annotation_file)
    wrong = []
    for image, path in zip(images, paths, strict=True):
        with tifffile.TiffFile(path) as file:
            shape = file.pages.first.shape[:2]
        if shape != (image["height"], image["width"]):
            wrong.append(f"{path}: {shape}, annotated {(image['height'], image['width'])}")
    if wrong:
        raise ValueError("Images must have the size of their annotation:\n  " + "\n  ".join(wrong))
    return paths


def _require(files: list[Path], folder: Path, annotation_file: Path) -> None:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        shown = "".join(f"\n  {name}" for name in missing[:20])
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} images of {annotation_file} are not in {folder}:"
            + shown
            + ("\n  ..." if len(missing) > 20 else "")
        )


def _cache_folder(root: Path, split: str, annotation_file: Path, min_size: int) -> Path:
    """Return the folder of the label images, beside the data if that can be written to."""
    status = annotation_file.stat()
    facts = (_CACHE_VERSION, status.st_size, status.st_mtime_ns, min_size)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    beside = root / "labels_cache" / split / key
    if (beside / "index.json").is_file() or _can_write(beside):
        return beside
    place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    elsewhere = pooch.os_cache("vimunet") / "livecell" / place / split / key
    if not _can_write(elsewhere):
        raise OSError(f"Neither {beside} nor {elsewhere} can be written to. Free one of them.")
    return elsewhere


def _can_write(folder: Path) -> bool:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.stat().st_mode & 0o222:  # marked read-only: holds for the superuser, too
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _write_labels(file: Path, labels: np.ndarray) -> None:
    with replacing(file) as temporary:
        tifffile.imwrite(temporary, labels, compression="zlib")
