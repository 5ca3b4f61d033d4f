"""Read the weights in files that `torch.save` wrote, without running anything in them.

Such a file is a pickle, which torch may only be able to load where the program that wrote it is
installed, and which may run any code while it loads. `open_weights` needs no such program and runs
nothing: it takes names, shapes and numbers of the weights out of the file, keeps plain numbers,
texts, lists and dicts, and replaces every other object by an empty one.

Source:
    The format of torch.save since torch 1.6: a zip archive with a pickle, `data.pkl`, and one
    entry of raw numbers per tensor storage.
"""

import io
import math
import pickle
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_PICKLE_BYTES = 2**30
# Where a training program puts the weights: torch-em, VM-UNet, nnU-Net, timm and DeiT, Lightning.
SECTIONS = ("model_state", "model_state_dict", "network_weights", "model", "state_dict")
_TRAINING_STATE = {"network", "optimizer", "scheduler"}
"""Some of what `vimunet.training` keeps to continue a run."""

_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


class Weights:
    """The weights of an open file.

    Attributes:
        path: The file.
        shapes: Shape of each tensor, by name, without the prefixes of data-parallel and compiled
            networks.
        other: What the file holds beside the weights. Objects of any class are empty in it.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        entries = [entry[: -len("/data.pkl")] for entry in archive.namelist() if _is_pickle(entry)]
        if len(entries) != 1:
            raise ValueError(
                f"{path} must be written by `torch.save`, got a zip file of other content."
            )
        self.path = path
        self._archive, self._folder = archive, entries[0]
        pickled = _entry(archive, f"{self._folder}/data.pkl", MAX_PICKLE_BYTES)
        self._views, self.other = _parse(pickled, path)
        self.shapes = {name: tuple(view.shape) for name, view in self._views.items()}
        order = f"{self._folder}/byteorder"
        if order in archive.namelist() and _entry(archive, order, 16) != sys.byteorder.encode():
            raise ValueError(f"{path} must be written on a machine of {sys.byteorder} byte order.")

    def read(self, name: str) -> Tensor:
        """Read one tensor; floating-point numbers become float32.

        Raises:
            ValueError: If its numbers are not all there.
        """
        return _tensor(self._archive, self._folder, self._views[name], self.path)

    def same(self, name: str, other: str) -> bool:
        """Tell whether two names stand for the same numbers."""
        if self._views[name] == self._views[other]:
            return True
        return self.shapes[name] == self.shapes[other] and torch.equal(
            self.read(name), self.read(other)
        )


@contextmanager
def open_weights(path: str | Path) -> Iterator[Weights]:
    """Open a file written by `torch.save`; nothing in it is executed.

    Args:
        path: File with a state dict, or with a dict that has one under a name of `SECTIONS`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            yield Weights(archive, path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{path} must be an undamaged zip file as `torch.save` writes it, got: {error}. "
            "Save files of torch before 1.6 again with a newer torch."
        ) from error


class _Storage(NamedTuple):
    """A storage that a pickle refers to: numbers in another entry of the archive."""

    dtype: torch.dtype
    key: str
    numel: int


class _View(NamedTuple):
    """A tensor that a pickle describes; nothing is read before it is known to be wanted."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any


class _Placeholder:
    """Stands for every class, function and method that a pickle names; does nothing."""

    def __new__(cls, *ignored: Any, **also_ignored: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *ignored: Any, **also_ignored: Any) -> None:
        pass

    def __call__(self, *ignored: Any) -> "_Placeholder":
        return self

    def _nothing(*ignored: Any) -> None:  # noqa: N805  (may also be called on the class)
        pass

    __setstate__ = __setitem__ = append = extend = add = _nothing


class _Rebuild(_Placeholder):
    """Stands for torch's function that makes a tensor from a storage."""

    def __new__(cls, storage: Any, offset: Any, shape: Any, stride: Any, *ignored: Any) -> Any:
        return _View(storage, offset, shape, stride)


class _RebuildParameter(_Placeholder):
    """Stands for torch's function that makes a parameter from a tensor."""

    def __new__(cls, view: Any, *ignored: Any) -> Any:
        return view


class _Dict(dict):
    """Stands for OrderedDict; drops the attributes that state dicts carry."""

    def __setstate__(*ignored: Any) -> None:  # noqa: N805
        pass


class _Unpickler(pickle.Unpickler):
    """Reads the structure of a pickle; every name in it leads to one of the classes above.

    A pickle can only act by calling what `find_class` gave it. Those calls end in `_Placeholder`,
    `_Rebuild`, `_RebuildParameter` and `_Dict`, or fail because a dtype cannot be called.
    What remains possible is to ask for more memory than there is.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known: dict[tuple[str, str], type] = {
            ("collections", "OrderedDict"): _Dict,
            ("torch._utils", "_rebuild_tensor_v2"): _Rebuild,
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter,
        }
        return known.get((module, name), _Placeholder)

    def persistent_load(self, identifier: Any) -> Any:
        if not isinstance(identifier, tuple) or len(identifier) != 5:
            return _Placeholder()
        kind, dtype, key, _, numel = identifier
        if (
            kind != "storage"
            or not isinstance(dtype, torch.dtype)
            or not isinstance(key, str)
            or not isinstance(numel, int)
        ):
            return _Placeholder()
        return _Storage(dtype, key, numel)


def _is_pickle(entry: str) -> bool:
    return entry.endswith("/data.pkl") and entry.count("/") == 1


def _entry(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """Read one entry, which must be stored as it is: a packed one might unpack to any size."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise zipfile.BadZipFile(f"entry {name} is compressed")
    if info.file_size > max_bytes:
        raise zipfile.BadZipFile(f"entry {name} has {info.file_size} bytes, more than {max_bytes}")
    return archive.read(info)


def _parse(pickled: bytes, path: Path) -> tuple[dict[str, _View], dict[Any, Any]]:
    """Return the state dict in a pickle, and what is beside it.

    Raises:
        ValueError: If the pickle is damaged, or does not hold names and tensors only.
    """
    try:
        content = _Unpickler(io.BytesIO(pickled)).load()
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise ValueError(f"{path} must hold a valid pickle, got: {error}.") from error
    if isinstance(content, dict) and content.keys() >= _TRAINING_STATE:
        raise ValueError(
            f"{path} must be a checkpoint of another tool, got the state of a training with "
            "vimunet. Its model is best.safetensors or last.safetensors beside it."
        )
    state: Any = content if isinstance(content, dict) else None
    other: dict[Any, Any] = {}
    for section in SECTIONS:
        if isinstance(content, dict) and section in content:
            state, other = content[section], content
            break
    if not isinstance(state, dict) or not state:
        names = ", ".join(f"`{section}`" for section in SECTIONS)
        raise ValueError(
            f"{path} must hold a state dict, or a dict with {names}, "
            f"got {type(content).__name__.strip('_')}."
        )
    for key, view in state.items():
        if not isinstance(key, str) or not _is_sound(view):
            raise ValueError(f"Weights in {path} must hold tensors only, got {key!r}.")
    names_only = {key.removeprefix("module.").removeprefix("_orig_mod."): key for key in state}
    return {name: state[key] for name, key in names_only.items()}, other


def _is_sound(view: Any) -> bool:
    """Tell whether a view is a tensor, and lies within its storage without repeating itself."""
    if not isinstance(view, _View) or not isinstance(view.storage, _Storage):
        return False
    if not (isinstance(view.shape, tuple) and isinstance(view.stride, tuple)):
        return False
    numbers = (view.offset, *view.shape, *view.stride)
    if any(type(number) is not int or number < 0 for number in numbers):
        return False
    if len(view.shape) != len(view.stride) or math.prod(view.shape) > view.storage.numel:
        return False
    steps = zip(view.shape, view.stride, strict=True)
    last = view.offset + sum((size - 1) * stride for size, stride in steps)
    return 0 in view.shape or last < view.storage.numel


def _tensor(archive: zipfile.ZipFile, folder: str, view: _View, path: Path) -> Tensor:
    """Read one tensor; floating-point numbers become float32."""
    storage = view.storage
    name = f"{folder}/data/{storage.key}"
    size = storage.numel * storage.dtype.itemsize
    if name not in archive.NameToInfo or archive.getinfo(name).file_size != size:
        raise ValueError(f"Entry {name} of {path} must have {size} bytes, the file is damaged.")
    if storage.numel == 0:
        return torch.zeros(view.shape, dtype=storage.dtype)
    numbers = torch.frombuffer(bytearray(_entry(archive, name, size)), dtype=storage.dtype)
    tensor = numbers.as_strided(view.shape, view.stride, view.offset)
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor.clone(memory_format=torch.contiguous_format)
