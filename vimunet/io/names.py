"""Which files of a folder are images, and the names that images and labels share."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

from vimunet.io.formats import FOLDERS, IMAGE_SUFFIXES
from vimunet.messages import some_lines


def list_images(folder: str | Path) -> list[Path]:
    """List the image files in a folder, in natural order (cell2 before cell10).

    Hidden files, subfolders (except those that are images) and other file types are left out.

    Raises:
        FileNotFoundError: If the folder does not exist or has no image in it.
    """
    return list_files(folder, IMAGE_SUFFIXES)


def other_files(folder: str | Path) -> list[str]:
    """Name the files in a folder that `list_images` leaves out, hidden ones aside."""
    return sorted(
        file.name
        for file in Path(folder).iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and file.suffix.lower() not in IMAGE_SUFFIXES
    )


def list_files(folder: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List the files of some types in a folder, as `list_images` does."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"No such folder: {folder}.")
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in suffixes
        and not file.name.startswith(".")
        and file.is_dir() == (file.suffix.lower() in FOLDERS)
    ]
    if not files:
        raise FileNotFoundError(f"No files of type {', '.join(suffixes)} in {folder}.")
    return sorted(files, key=lambda file: natural_key(file.name))


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts cell2 before cell10.

    Examples:
        >>> sorted(["cell10", "cell2"], key=natural_key)
        ['cell2', 'cell10']
    """
    parts = re.split(r"(\d+)", name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def stem(path: str | Path) -> str:
    """Return the file name without its extension, the name that images and labels share.

    Letters with accents count as one sign, however a file system writes them.

    Examples:
        >>> stem("run.2/cell_01.ome.tif"), stem("iso.2780.png")
        ('cell_01', 'iso.2780')
    """
    name = unicodedata.normalize("NFC", Path(path).stem)
    return name[:-4] if name.lower().endswith(".ome") else name


def by_name(files: list[Path]) -> dict[str, Path]:
    """Give files by the names that images and labels share; refuse names that occur twice."""
    names = Counter(stem(file) for file in files)
    doubles = [file.name for file in files if names[stem(file)] > 1]
    if doubles:
        raise ValueError(
            f"Names in {files[0].parent} must be unique without their extension, got:"
            + some_lines(doubles)
        )
    return {stem(file): file for file in files}


def unpaired(title: str, names: dict[str, Path], others: dict[str, Path]) -> str:
    """List the files whose names the others lack, below a title; nothing if there are none."""
    missing = [file.name for name, file in names.items() if name not in others]
    return f"\n{title}:{some_lines(missing)}" if missing else ""
