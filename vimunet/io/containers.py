"""Files of arrays: HDF5, Zarr with OME-Zarr, N5 and NumPy."""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from vimunet.io.image import LazyImage
from vimunet.io.ome_zarr import is_ome_zarr, read_ome_zarr

_AXIS_WORDS = {"t", "c", "z", "y", "x", "time", "channel"}


def open_hdf5(path: Path, key: str | None, indices: bool, files: ExitStack) -> LazyImage:
    """Open a data set of an HDF5 file, see `vimunet.io.formats.READERS`."""
    arrays = _hdf5_arrays(files.enter_context(h5py.File(path)))
    return LazyImage(_select(path, key, arrays), name=str(path))


def open_n5(path: Path, key: str | None, indices: bool, files: ExitStack) -> LazyImage:
    """Open an array of an N5 folder, see `vimunet.io.formats.READERS`."""
    arrays = _n5_arrays(files.enter_context(closing(_n5_file(path))))
    return LazyImage(_select(path, key, arrays), name=str(path))


def open_numpy(path: Path, key: str | None, indices: bool, files: ExitStack) -> LazyImage:
    """Open a NumPy file, see `vimunet.io.formats.READERS`."""
    return LazyImage(np.load(path, mmap_mode="r"), name=str(path))


def open_zarr(path: Path, key: str | None, indices: bool, files: ExitStack) -> LazyImage:
    """Open a Zarr folder, of OME-Zarr the finest level, see `vimunet.io.formats.READERS`."""
    if key is None and is_ome_zarr(path):
        volume = read_ome_zarr(path)
        return LazyImage(volume.levels[0], "".join(volume.axes), volume.pixel, name=str(path))
    root = zarr.open(str(path), mode="r")
    if not isinstance(root, zarr.Array):
        members = root.members(max_depth=None)
        arrays = {name: item for name, item in members if isinstance(item, zarr.Array)}
        root = _select(path, key, arrays)
    return LazyImage(root, _dimension_names(root), name=str(path))


def _dimension_names(array: zarr.Array) -> str:
    """Give the axes that a Zarr array of version 3 names, if they are letters that we know."""
    names = getattr(array.metadata, "dimension_names", None) or ()
    letters = "".join(str(name or "?").lower()[:1] for name in names)
    known = all(str(name or "").lower() in _AXIS_WORDS for name in names)
    return letters if known and len(set(letters)) == array.ndim else ""


def _hdf5_arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    arrays = {}

    def collect(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item

    file.visititems(collect)
    return arrays


def _n5_file(path: Path) -> Any:
    try:
        import z5py
    except ImportError as error:
        raise ImportError(
            f"Reading N5 files such as {path} needs z5py. Install it with "
            "`pip install 'vimunet[n5]'`, or convert the file to Zarr."
        ) from error
    return z5py.File(str(path), mode="r")


def _n5_arrays(group: Any, prefix: str = "") -> dict[str, Any]:
    arrays = {}
    for name, item in group.items():
        if hasattr(item, "shape"):
            arrays[prefix + name] = item
        else:
            arrays.update(_n5_arrays(item, f"{prefix}{name}/"))
    return arrays


def _select(path: Path, key: str | None, arrays: dict[str, Any]) -> Any:
    """Return the data set called `key`, or the only one."""
    if key is not None and key.strip("/") in arrays:
        return arrays[key.strip("/")]
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    known = ", ".join(f"{name} {tuple(item.shape)}" for name, item in sorted(arrays.items()))
    wrong = "a key is needed" if key is None else f"no data set {key!r}"
    raise ValueError(f"{path}: {wrong}. Data sets in this file: {known or 'none'}.")
