"""Label images as OME-Zarr: written block by block, with pixel size, read lazily.

OME-Zarr (NGFF) keeps an image as a pyramid of chunked arrays with axes, units and pixel size beside
them. Labels are either a file of their own or, as the format wants it, part of the image that they
belong to: `image.zarr/labels/NAME`. Nothing here knows networks.

Source:
    NGFF 0.5, https://ngff.openmicroscopy.org/0.5/. Version 0.4 is read too.
"""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import zarr

from vimunet.axes import boxes
from vimunet.units import UNITS, Kind, is_no_unit, unit_name

VERSION = "0.5"
_CHUNK = 512
_SMALLEST_LEVEL = 1024
"""Levels are added until rows and columns are not longer than this, in pixels."""

_KINDS: dict[str, Kind] = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


@dataclass(frozen=True)
class Volume:
    """An image or label image in an OME-Zarr file.

    Attributes:
        levels: The pyramid, finest first; arrays that are read when they are indexed.
        axes: One letter each: t, c, z, y or x.
        scale: Size of a pixel of the finest level along each axis, 1 where it is not known.
        translate: Position of its first pixel, in the same units.
        units: Of each axis, None where it is not known.
        is_labels: Whether the file says that these are labels.
    """

    levels: tuple[zarr.Array, ...]
    axes: tuple[str, ...]
    scale: tuple[float, ...]
    translate: tuple[float, ...]
    units: tuple[str | None, ...]
    is_labels: bool

    @property
    def pixel(self) -> dict[str, tuple[float, str]]:
        """Length of a pixel and its unit along the axes of which they are known."""
        sizes = zip(self.axes, self.scale, self.units, strict=True)
        return {axis: (length, unit) for axis, length, unit in sizes if unit is not None}


def write_ome_zarr_labels(
    path: str | Path,
    labels: Any,
    *,
    scale: Sequence[float] | None = None,
    translate: Sequence[float] | None = None,
    units: str | Sequence[str | None] = "pixel",
    axes: str | None = None,
    overwrite: bool = False,
    read_size: Sequence[int] | None = None,
) -> None:
    """Write labels as an OME-Zarr file, completely or not at all.

    Coarser levels take every second pixel of the one before, so that no label is invented.

    Args:
        path: Folder to write, usually NAME.ome.zarr.
        labels: Integer array with axes (y, x), and z, t or both in front; anything that is indexed
            like one (Dask, Zarr) is read block by block.
        scale: Size of a pixel along each axis, > 0; for y and x alone, or for all axes.
        translate: Position of the first pixel in the same way. None: 0.
        units: Of the scale along z, y and x; or one unit or None for each axis. "pixel" is none.
        axes: One letter for each axis, the last ones of "tzyx" by default.
        overwrite: Replace what is there, if it is a Zarr file.
        read_size: Size of the blocks in which the labels are read, along their last axes, one
            section at a time along the others; None: 512 x 512.

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If axes, scale or translate do not fit the labels.
        FileExistsError: If there is something at `path` already, and it may not be replaced.
    """
    path = Path(path)
    frame = _Frame.of(labels, axes, scale, translate, units)
    with _replacing_folder(path, overwrite) as temporary:
        _write(temporary, labels, frame, path.name.split(".")[0], read_size=read_size)


def add_ome_zarr_labels(
    image: str | Path, name: str, labels: Any, *, axes: str | None = None, overwrite: bool = False
) -> Path:
    """Write labels into the OME-Zarr file of the image that they belong to.

    They get the pixel size, the position and the number of levels of the image.

    Args:
        image: OME-Zarr file of an image, of version 0.5.
        name: What to call the labels.
        labels: As for `write_ome_zarr_labels`, with the axes of the image except its channels.
        axes: One letter for each axis, where that is not so.
        overwrite: Replace labels of the same name.

    Returns:
        The folder of the labels.

    Raises:
        FileNotFoundError: If there is no such image.
        TypeError: If the labels are not integers.
        ValueError: If the image has another version or another size than the labels, or `name`
            is no name of a folder.
        FileExistsError: If there are such labels already, and they may not be replaced.
    """
    image = Path(image)
    of_image = read_ome_zarr(image)
    if not (image / "zarr.json").is_file():
        raise ValueError(
            f"{image} must be of OME-Zarr version {VERSION}. Write the labels to a file of their "
            "own."
        )
    if not name or name.startswith(".") or set(name) & set("/\\:"):
        raise ValueError(f"`name` must be the name of a folder, got {name!r}.")
    letters = "".join(a for a in of_image.axes if a != "c") if axes is None else axes
    place = {axis: i for i, axis in enumerate(of_image.axes)}
    sizes = tuple(of_image.levels[0].shape[place[axis]] for axis in letters if axis in place)
    if sizes != tuple(labels.shape):
        raise ValueError(
            f"`labels` must have the size {sizes} of the image along {letters}, got "
            f"{tuple(labels.shape)}."
        )
    frame = _Frame.of(
        labels,
        letters,
        [of_image.scale[place[axis]] for axis in letters],
        [of_image.translate[place[axis]] for axis in letters],
        [of_image.units[place[axis]] for axis in letters],
    )
    group = zarr.open_group(str(image), mode="a").require_group("labels")
    path = image / "labels" / name
    with _replacing_folder(path, overwrite) as temporary:
        _write(temporary, labels, frame, name, "../../", len(of_image.levels))
    listed = _attributes(group).get("ome", {}).get("labels", [])
    group.attrs["ome"] = {"version": VERSION, "labels": [*(n for n in listed if n != name), name]}
    return path


def is_ome_zarr(path: str | Path) -> bool:
    """Tell whether `read_ome_zarr` can open a file."""
    try:
        read_ome_zarr(path)
    except (FileNotFoundError, ValueError):
        return False
    return True


def read_ome_zarr(path: str | Path, level: int = 0) -> Volume:
    """Open an OME-Zarr image or label image; no pixel is read yet.

    Args:
        path: The file, or `FILE/labels/NAME` for labels inside it. Of a file with a series of
            images (bioformats2raw), `FILE/0` and so on; if there is only one, `FILE` is it.
        level: Where the pyramid shall begin, 0 is the finest level.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an OME-Zarr image, or has no such level. The message lists what is
            in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"No OME-Zarr file {path}.")
    try:
        group = zarr.open_group(str(path), mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be an OME-Zarr file: {error}") from error
    attributes = _attributes(group)
    attributes = attributes.get("ome", attributes)
    if "bioformats2raw.layout" in attributes and "0" in group and "1" not in group:
        return read_ome_zarr(path / "0", level)
    if not attributes.get("multiscales"):
        inside = ", ".join(sorted(group.keys())) or "nothing"
        raise ValueError(f"{path} must be an image with `multiscales`, but holds {inside}.")
    try:
        multiscale = attributes["multiscales"][0]
        datasets = multiscale["datasets"]
        # Version 0.3 only names the axes, those before have all five.
        axes = [
            {"name": axis} if isinstance(axis, str) else axis
            for axis in multiscale.get("axes", "tczyx")
        ]
        names = tuple(axis["name"] for axis in axes)
        if not 0 <= level < len(datasets):
            raise ValueError(f"`level` must be from 0 to {len(datasets) - 1}, got {level}.")
        scale, translate = _transformed(
            len(axes), datasets[level].get("coordinateTransformations", [])
        )
        outer_scale, outer_translate = _transformed(
            len(axes), multiscale.get("coordinateTransformations", [])
        )
        levels = tuple(_array(group, path, dataset["path"]) for dataset in datasets[level:])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"The description of {path} must be as NGFF wants it: {error}") from error
    return Volume(
        levels=levels,
        axes=names,
        scale=tuple((scale * outer_scale).tolist()),
        translate=tuple((translate * outer_scale + outer_translate).tolist()),
        units=tuple(axis.get("unit") for axis in axes),
        is_labels="image-label" in attributes,
    )


@dataclass(frozen=True)
class _Frame:
    """Axes of a label image and where they lie in space, checked."""

    shape: tuple[int, ...]
    axes: str
    scale: tuple[float, ...]
    translate: tuple[float, ...]
    units: tuple[str | None, ...]

    @classmethod
    def of(
        cls,
        labels: Any,
        axes: str | None,
        scale: Sequence[float] | None,
        translate: Sequence[float] | None,
        units: str | Sequence[str | None],
    ) -> "_Frame":
        shape = tuple(int(length) for length in labels.shape)
        if np.dtype(labels.dtype).kind not in "iu":
            raise TypeError(f"`labels` must be integers, got {labels.dtype}.")
        axes = "tzyx"[-len(shape) :] if axes is None else axes
        if not 2 <= len(shape) <= 4 or 0 in shape:
            raise ValueError(
                f"`labels` must have axes (y, x), with z or t or both in front, got shape {shape}."
            )
        if len(axes) != len(shape) or axes not in ("yx", "zyx", "tyx", "tzyx"):
            raise ValueError(
                f"`axes` must be yx, zyx, tyx or tzyx and fit shape {shape}, got {axes!r}."
            )
        scale = _for_all("scale", scale, 1.0, axes)
        if not all(0 < size < np.inf for size in scale):
            raise ValueError(f"`scale` must be positive, got {scale}.")
        return cls(
            shape, axes, scale, _for_all("translate", translate, 0.0, axes), _unit(units, axes)
        )

    def multiscale(self, name: str, levels: int) -> dict[str, Any]:
        """Describe the pyramid as NGFF wants it."""
        axes = [
            {"name": letter, "type": _KINDS[letter]} | ({"unit": unit} if unit else {})
            for letter, unit in zip(self.axes, self.units, strict=True)
        ]
        datasets = []
        for level in range(levels):
            scale = [
                size * (2**level if letter in "yx" else 1)
                for letter, size in zip(self.axes, self.scale, strict=True)
            ]
            transformations: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
            if any(self.translate):
                # The first pixel of every level has the same centre.
                transformations.append({"type": "translation", "translation": list(self.translate)})
            datasets.append({"path": str(level), "coordinateTransformations": transformations})
        return {"name": name, "axes": axes, "datasets": datasets}


def _for_all(
    name: str, values: Sequence[float] | None, default: float, axes: str
) -> tuple[float, ...]:
    """Complete values for y and x by the default of the axes in front."""
    given = () if values is None else tuple(float(value) for value in values)
    if len(given) not in (0, 2, len(axes)):
        raise ValueError(f"`{name}` must have 2 or {len(axes)} numbers, got {given}.")
    return (default,) * (len(axes) - len(given)) + given


def _unit(units: str | Sequence[str | None], axes: str) -> tuple[str | None, ...]:
    """Give the unit of each axis in the words of NGFF."""
    if isinstance(units, str):
        units = [units if _KINDS[letter] == "space" else None for letter in axes]
    if len(units) != len(axes):
        raise ValueError(f"`units` must be one word or {len(axes)}, got {tuple(units)}.")
    return tuple(_word(str(u or ""), _KINDS[a]) for u, a in zip(units, axes, strict=True))


def _word(unit: str, kind: Kind) -> str | None:
    word = unit_name(unit, kind)
    if word is None and not is_no_unit(unit):
        warnings.warn(
            f"The unit {unit!r} is not known to OME-Zarr for an axis of {kind} and left out. "
            f"Known: {', '.join(sorted(UNITS[kind]))}.",
            stacklevel=2,
        )
    return word


def _write(
    folder: Path,
    labels: Any,
    frame: _Frame,
    name: str,
    source: str | None = None,
    levels: int | None = None,
    read_size: Sequence[int] | None = None,
) -> None:
    """Write all levels and their description into a new folder."""
    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    shape = frame.shape
    finer = labels
    level = 0
    while True:
        array = group.create_array(
            str(level),
            shape=shape,
            chunks=tuple(
                min(length, _CHUNK) if letter in "yx" else 1
                for length, letter in zip(shape, frame.axes, strict=True)
            ),
            dtype=np.dtype(labels.dtype).newbyteorder("="),
            dimension_names=list(frame.axes),
        )
        step = 1 if level == 0 else 2
        # What is read of a finer level is read in chunks.
        sides = (_CHUNK, _CHUNK) if read_size is None or level else tuple(read_size)
        for block in boxes(shape, ((1,) * len(shape) + sides)[-len(shape) :]):
            reached = tuple(
                slice(part.start * step, part.stop * step, step) if letter in "yx" else part
                for part, letter in zip(block, frame.axes, strict=True)
            )
            array[block] = np.asarray(finer[reached])
        level += 1
        if level == levels or (levels is None and max(shape[-2:]) <= _SMALLEST_LEVEL):
            break
        finer = array
        shape = (*shape[:-2], *(-(-length // 2) for length in shape[-2:]))
    group.attrs["ome"] = {
        "version": VERSION,
        "multiscales": [frame.multiscale(name, level)],
        "image-label": {} if source is None else {"source": {"image": source}},
    }


def _attributes(group: zarr.Group) -> dict[str, Any]:
    return cast(dict[str, Any], group.attrs.asdict())


def _array(group: zarr.Group, path: Path, name: str) -> zarr.Array:
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{path} names the level {name!r}, but does not have it.")
    return array


def _transformed(
    axes: int, transformations: Sequence[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Read a scale and a translation after it: the format allows no other order."""
    scale, translate = np.ones(axes), np.zeros(axes)
    for one in transformations:
        if one["type"] == "scale":
            scale = scale * one["scale"]
        elif one["type"] == "translation":
            translate = translate + one["translation"]
    return scale, translate


@contextmanager
def _replacing_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder to write, and put it in the place of `path` once it is complete."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. Choose another name, or overwrite it.")
    if path.exists() and not any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        raise FileExistsError(f"{path} is no Zarr file and is not replaced. Choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{uuid4().hex}.{end}") for end in ("new", "old"))
    try:
        yield temporary
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} was written meanwhile, and is not replaced.")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)
