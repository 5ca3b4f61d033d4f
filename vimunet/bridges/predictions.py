"""The segmentations that any tool wrote into a folder: which tool, which files, and their labels.

`open_predictions` looks at the names of the files only:

- nnU-Net (and U-Mamba, which is run by it): as `vimunet.bridges.nnunet` recognises it.
- Cellpose (and Omnipose): `X_cp_masks.tif`, else `X_cp_masks.png`, else `X_seg.npy` for each image
  X. The masks come first because they are what the tool predicted, while its window also saves what
  a user changed into `X_seg.npy`.
- StarDist: `X.stardist.tif`.
- ImageJ's ROI manager: `X.zip`, `X_rois.zip`, `X_RoiSet.zip`, or one region, `X.roi`.
- Label images of any kind: every file that `vimunet.io.formats` reads, without one of the endings
  `_mask`, `_masks`, `_label`, `_labels` if all of them have one.

Images may lie in the same folder if their names tell that they are no labels: X.tif beside the
segmentation of X, under any of the names above.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vimunet.bridges import nnunet
from vimunet.bridges.cellpose import read_seg
from vimunet.bridges.imagej import read_rois
from vimunet.io.formats import FOLDERS, LABEL_SUFFIXES, read_labels
from vimunet.io.names import by_name, natural_key, stem
from vimunet.messages import some_of
from vimunet.protocol import Protocol

# Endings of files, without regard to case; where an image has several, the first one is read.
_PNG, _SEG = "_cp_masks.png", "_seg.npy"
_ENDINGS = {
    "Cellpose": ("_cp_masks.tif", "_cp_masks.tiff", _PNG, _SEG),
    "StarDist": (".stardist.tif", ".stardist.tiff"),
    "ImageJ ROIs": ("_rois.zip", "_roiset.zip", ".zip", ".roi"),
}
_LABELS = ("_masks", "_mask", "_labels", "_label")
# Cellpose ends the pictures that it draws like the masks: X_flows_cp_masks.tif.
_CELLPOSE_PICTURES = ("_cp_output", "_outlines", "_flows", "_dP")


@dataclass(frozen=True)
class Predictions:
    """The segmentations of one tool.

    Attributes:
        tool: "nnU-Net", "Cellpose", "StarDist", "ImageJ ROIs" or "label images".
        files: File of each image, by its name without any extension or ending of the tool, in
            natural order.
        missing_is_empty: Whether the tool writes no file where it finds nothing. Cellpose does so
            if it writes PNG files only.
        protocol: How objects are made of the classes of nnU-Net, see
            `vimunet.bridges.nnunet.read_prediction`.
    """

    tool: str
    files: dict[str, Path]
    missing_is_empty: bool = False
    protocol: Protocol = "fair"

    def read(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """Read the labels of one image.

        Args:
            name: One of `files`.
            shape: (y, x) of the image, for formats that do not tell it: regions, and images where
                nothing was found.

        Returns:
            (y, x) labels, of any integer dtype, 0 = background; as stored, so maybe of another
            shape.

        Raises:
            FileNotFoundError: If there is no file of that name, and that does not mean that
                nothing was found.
            ImportError: If roifile is needed and not installed.
            ValueError: If the file is damaged or holds no labels.
        """
        if name not in self.files:
            if self.missing_is_empty:
                return np.zeros(shape, np.int32)
            raise FileNotFoundError(
                f"No segmentation of {name!r} by {self.tool}. Known: {some_of(self.files)}."
            )
        path = self.files[name]
        if self.tool == "nnU-Net":
            return nnunet.read_prediction(path, protocol=self.protocol)
        if self.tool == "ImageJ ROIs":
            return read_rois(path, shape)
        if self.tool == "Cellpose" and path.name.lower().endswith(_SEG):
            return read_seg(path)
        return read_labels(path)


def open_predictions(folder: str | Path, *, protocol: Protocol = "fair") -> Predictions:
    """Find out which tool wrote the segmentations in a folder, and list them.

    Args:
        folder: Folder with the files of one tool, as the tool left them. Images may be among them.
        protocol: See `vimunet.bridges.nnunet.read_prediction`; for other tools it means nothing.

    Raises:
        FileNotFoundError: If there is no such folder, or no segmentation in it.
        ValueError: If there are the files of several tools, or files that may be images as well as
            labels. The message lists them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"No such folder: {folder}.")
    if nnunet.is_prediction_folder(folder):
        return Predictions("nnU-Net", nnunet.find_predictions(folder), protocol=protocol)
    files = sorted(
        (
            file
            for file in folder.iterdir()
            if not file.name.startswith(".") and file.is_dir() == (file.suffix.lower() in FOLDERS)
        ),
        key=lambda file: natural_key(file.name),
    )
    tools = {
        "Cellpose": _without_pictures(_with_endings(files, _ENDINGS["Cellpose"])),
        "StarDist": _with_endings(files, _ENDINGS["StarDist"]),
    }
    others = set().union(*tools.values())  # they may have regions of the same objects too
    regions = _with_endings(files, _ENDINGS["ImageJ ROIs"])
    tools["ImageJ ROIs"] = {name: file for name, file in regions.items() if name not in others}
    present = [tool for tool, found in tools.items() if found]
    if len(present) > 1:
        listed = "; ".join(
            f"{tool}: {some_of(file.name for file in tools[tool].values())}" for tool in present
        )
        raise ValueError(
            f"{folder} must hold the segmentations of one tool, got {listed}. "
            "Put the files of each tool into a folder of their own."
        )
    if present:
        (tool,) = present
        _check_others(folder, tool, tools[tool], files)
        png = all(file.name.lower().endswith(_PNG) for file in tools[tool].values())
        empty = png and not any(file.name.lower().endswith(_SEG) for file in files)
        return Predictions(tool, tools[tool], missing_is_empty=empty)
    found = _label_images(folder, [file for file in files if file.suffix.lower() in LABEL_SUFFIXES])
    if not found:
        raise FileNotFoundError(
            f"No segmentations in {folder}. Known: label images ({', '.join(LABEL_SUFFIXES)}), and "
            "the files of nnU-Net, Cellpose, StarDist and ImageJ's ROI manager."
        )
    return Predictions("label images", found)


def _with_endings(files: Iterable[Path], endings: tuple[str, ...]) -> dict[str, Path]:
    """Return the files with one of the endings, by name; the first ending wins."""
    ranked: dict[str, tuple[int, Path]] = {}
    for file in files:
        lower = file.name.lower()
        rank = next((i for i, ending in enumerate(endings) if lower.endswith(ending)), None)
        if rank is None:
            continue
        name = _name(file.name[: -len(endings[rank])])
        if name and (name not in ranked or rank < ranked[name][0]):
            ranked[name] = rank, file
    return {name: file for name, (_, file) in ranked.items()}


def _name(start: str) -> str:
    """Return the image's name from that of its segmentation: `cell.ome` was cell.ome.tif."""
    return stem(f"{start}.tif") if start else ""


def _without_pictures(files: dict[str, Path]) -> dict[str, Path]:
    pictures = {name + ending for name in files for ending in _CELLPOSE_PICTURES}
    return {name: file for name, file in files.items() if name not in pictures}


def _bare(name: str) -> str:
    """Return a name without the ending of label images."""
    ending = next((end for end in _LABELS if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)] if len(name) > len(ending) else name


def _check_others(folder: Path, tool: str, found: dict[str, Path], files: list[Path]) -> None:
    """Raise if other files may be segmentations too: labels by their names, of other images.

    Beside regions, whatever is no image of theirs may be one: images whose regions are missing
    cannot be told from label images.
    """
    others = [
        file.name
        for file in files
        if file.suffix.lower() in LABEL_SUFFIXES
        and not file.name.lower().endswith(_ENDINGS[tool])
        and not {stem(file), _bare(stem(file))} & found.keys()
        and (_bare(stem(file)) != stem(file) or tool == "ImageJ ROIs")
    ]
    if others:
        raise ValueError(
            f"{folder} must hold the segmentations of one tool, got {len(found)} of {tool}, and "
            f"{len(others)} other files that may be labels: {some_of(others)}. "
            "Put them into a folder of their own."
        )


def _label_images(folder: Path, files: list[Path]) -> dict[str, Path]:
    """Return label images by name; images are told from labels by the endings of the latter."""
    labels = [file for file in files if _bare(stem(file)) != stem(file)]
    images = [file for file in files if _bare(stem(file)) == stem(file)]
    bare = {_bare(stem(file)): file for file in labels}
    if labels and {stem(file) for file in images} <= bare.keys() and len(bare) == len(labels):
        return bare
    if labels and images:
        raise ValueError(
            f"{folder} must hold label images only, or names that tell them from images, got "
            f"{some_of(file.name for file in labels)} beside "
            f"{some_of(file.name for file in images)}. "
            "Put the label images into a folder of their own."
        )
    return by_name(files)
