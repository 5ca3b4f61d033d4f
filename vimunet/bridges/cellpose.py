"""Segmentations of Cellpose: the labels in `X_seg.npy`, without running anything in it.

Cellpose stores a dict as an array of one object, which is a pickle, and numpy loads such files only
if they may run any code. `read_seg` needs no such trust: the pickle is looked through before
anything is made of it, and may only put together numbers, texts, lists, tuples, dicts and arrays.
Of these, nothing but the labels becomes an array. `X_cp_masks.tif` and `.png` need no reader of
their own, `vimunet.data.folder.read_labels` reads them.

Source:
    Pickle protocols 2 to 4 as in Python's pickletools; numpy's way to pickle arrays: `_reconstruct`
    and a state of (version, shape, dtype, order, bytes).
"""

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAX_OPERATIONS = 2**20
_MAX_HEADER_BYTES = 10_000
_MOST_TOLD = 300

# What builds plain values, in the words of pickletools. Text protocols, persistent objects,
# extensions, instances, sets and buffers outside of the pickle are not among them.
_PLAIN = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 "
    "EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS "
    "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
)
_OPERATIONS = frozenset(_PLAIN.split())
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


def read_seg(path: str | Path) -> np.ndarray:
    """Read the labels in a file of Cellpose; nothing in it is executed.

    Args:
        path: `X_seg.npy`, as Cellpose or its window saves it.

    Returns:
        (y, x) or (z, y, x) labels in the integer dtype of the file, 0 = background.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds no labels, or anything that could act.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No such file: {path}.")
    try:
        with path.open("rb") as file:
            _check_header(file)
            content = _load(file.read())
        return _labels(content)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        found = (str(error) or repr(error)).rstrip(".")[:_MOST_TOLD]
        raise ValueError(
            f"{path} must be a segmentation as Cellpose saves it, got: {found}. "
            "Let Cellpose write `_cp_masks.tif` instead."
        ) from error


class _Noted:
    """Stands for what a pickle calls; only notes what with.

    Both methods must be here: without them, pickle would set attributes of the class itself.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Noted):
    """An array; its state tells its shape, dtype and bytes."""


class _Kind(_Noted):
    """A dtype; its first argument tells kind and size, its state the order of bytes."""


_NAMES: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Noted,
    ("numpy", "dtype"): _Kind,
    **{(module, "_reconstruct"): _Array for module in _MODULES},
    **{(module, "scalar"): _Noted for module in _MODULES},
    **{(module, name): _Noted for module in ("pathlib", "pathlib._local") for name in _PATHS},
}


class _Unpickler(pickle.Unpickler):
    """Makes nothing but plain values and the classes above."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"an object of {module}.{name}")
        return _NAMES[module, name]


def _check_header(file: BinaryIO) -> None:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of the npy format")
    shape, _, dtype = read[version](file, _MAX_HEADER_BYTES)
    if shape != () or dtype.kind != "O":
        raise ValueError(f"an array of shape {shape} and {dtype}")


def _load(pickled: bytes) -> Any:
    """Return what a pickle holds, after a look at each of its operations.

    That is also what bounds the memory by the size of the file: an operation may name a place in
    the memo, or a length, for which pickle would make room at once.
    """
    for count, (operation, argument, _) in enumerate(pickletools.genops(pickled)):
        if operation.name not in _OPERATIONS:
            raise ValueError(f"the operation {operation.name}")
        if isinstance(argument, int) and operation.name == "LONG_BINPUT" and argument > count:
            raise ValueError(f"place {argument} of the memo before so many values")
        if count >= MAX_OPERATIONS:
            raise ValueError(f"more than {MAX_OPERATIONS} values")
    return _Unpickler(io.BytesIO(pickled)).load()


def _labels(content: Any) -> np.ndarray:
    """Return the masks in what was loaded."""
    if not isinstance(content, _Array):
        raise ValueError(f"a {type(content).__name__.strip('_')} instead of an array")
    *_, objects = content.state
    if not isinstance(objects, list) or len(objects) != 1 or not isinstance(objects[0], dict):
        raise ValueError("an array without a dict in it")
    if "masks" not in objects[0]:
        known = ", ".join(str(key) for key in list(objects[0])[:20] if isinstance(key, str))
        raise ValueError(f"a dict without `masks`, but with {known or 'nothing'}")
    masks = objects[0]["masks"]
    if not isinstance(masks, _Array):
        raise ValueError(f"`masks` of type {type(masks).__name__.strip('_')}, which is no array")
    *_, shape, kind, by_columns, numbers = masks.state
    if not isinstance(kind, _Kind) or not isinstance(kind.state, tuple):
        raise ValueError("`masks` without a dtype")
    code, order = kind.arguments[0], kind.state[1]
    if not re.fullmatch(r"[iu][1248]", str(code)) or order not in ("<", ">", "|"):
        raise ValueError(f"`masks` of dtype {code}, which are no whole numbers")
    dtype = np.dtype(f"{order}{code}")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"`masks` of shape {shape}")
    if not isinstance(numbers, bytes) or len(numbers) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"`masks` of shape {shape} and {dtype} without all their numbers")
    labels = np.frombuffer(numbers, dtype).reshape(shape, order="F" if by_columns else "C")
    while labels.ndim > 2 and labels.shape[0] == 1:
        labels = labels[0]
    if labels.ndim not in (2, 3):
        raise ValueError(f"`masks` of shape {shape}")
    if labels.size and labels.min() < 0:
        raise ValueError(f"a negative number {labels.min()} in `masks`")
    return labels.astype(dtype.newbyteorder("="), order="C")
