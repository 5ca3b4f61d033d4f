"""Read networks that torch-em trained: ViM-UNet of every generation, UNETR and UNet.

A torch-em checkpoint is a pickle of the whole training set-up, which torch can only load where
torch-em, kornia, mamba_ssm and the rest are installed, and which may run any code while it loads.
`read_checkpoint` needs none of them and runs nothing: it takes names, shapes and numbers of the
weights out of the file, replaces every other object by an empty one, and infers the network
from the shapes.

Source:
    The format of torch.save since torch 1.6: a zip archive with a pickle, `data.pkl`, and one
    entry of raw numbers per tensor storage.
"""

import io
import math
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vimunet.models import build_model

MAX_PICKLE_BYTES = 2**30

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


def read_checkpoint(path: str | Path, **overrides: Any) -> nn.Module:
    """Build the network of a torch-em checkpoint, with its weights.

    Generation, sizes, number of maps, upsampling and skip connections are inferred from the
    weights. What weights do not tell has the default of torch-em's training scripts: one input
    channel, and for UNETR the image scaled to the square without Segment Anything's statistics.

    Args:
        path: A `best.pt` or `latest.pt` of torch-em, or a state dict saved by `torch.save`.
        **overrides: Options of `build_model` that replace the inferred ones, for example
            `in_channels=3`, or `resize_input=False` and `sam_stats=True` for UNETR.

    Returns:
        The network in eval mode, in float32. Its `forward` gives logits; torch-em's gave the
        sigmoid of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or no checkpoint, if it holds another network, or if
            an override does not fit the weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path, overrides)
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


def _read(archive: zipfile.ZipFile, path: Path, overrides: Mapping[str, Any]) -> nn.Module:
    folders = [entry[: -len("/data.pkl")] for entry in archive.namelist() if _is_pickle(entry)]
    if len(folders) != 1:
        raise ValueError(
            f"{path} must be written by `torch.save`, got a zip file of other content."
        )
    folder = folders[0]
    views = _weights(_entry(archive, f"{folder}/data.pkl", MAX_PICKLE_BYTES), path)

    name, options = _infer(views, path)
    network = _empty_network(name, {**options, **overrides}, views, path)
    order = f"{folder}/byteorder"
    if order in archive.namelist() and _entry(archive, order, 16) != sys.byteorder.encode():
        raise ValueError(f"{path} must be written on a machine of {sys.byteorder} byte order.")
    weights = {key: _tensor(archive, folder, view, path) for key, view in views.items()}
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval()


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


def _weights(pickled: bytes, path: Path) -> dict[str, _View]:
    """Return the state dict in a pickle: `model_state` of a checkpoint, or all of it.

    Raises:
        ValueError: If the pickle is damaged, or does not hold names and tensors only.
    """
    try:
        content = _Unpickler(io.BytesIO(pickled)).load()
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise ValueError(f"{path} must hold a valid pickle, got: {error}.") from error
    state = content.get("model_state", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise ValueError(
            f"{path} must hold a state dict, or a dict with `model_state`, "
            f"got {type(content).__name__.strip('_')}."
        )
    for key, view in state.items():
        if not isinstance(key, str) or not _is_sound(view):
            raise ValueError(f"`model_state` of {path} must hold tensors only, got {key!r}.")
    return {key.removeprefix("_orig_mod."): view for key, view in state.items()}


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


def _infer(views: Mapping[str, _View], path: Path) -> tuple[str, dict[str, Any]]:
    """Return name and options of the network that has these weights.

    Raises:
        ValueError: If it is none of ours.
    """
    shapes = {key: view.shape for key, view in views.items()}
    upsampling = "transposed" if "decoder.samplers.0.block.weight" in shapes else "bilinear"
    try:
        out_channels = shapes["out_conv.weight"][0]
        if "encoder.cls_token" in shapes:
            name, options = _infer_vim(shapes, upsampling)
        elif "encoder.pos_embed" in shapes:
            name, options = _infer_unetr(shapes)
            options["upsampling"] = upsampling
        else:
            features, in_channels = shapes["encoder.blocks.0.block.1.weight"][:2]
            depth = _count(shapes, "encoder.blocks.")
            name = "unet"
            options = {"in_channels": in_channels, "features": features, "depth": depth}
            options["upsampling"] = upsampling
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} must hold a ViM-UNet, UNETR or UNet of torch-em, got weights named "
            f"{', '.join(sorted(shapes)[:3])}, ..."
        ) from error
    return name, {"out_channels": out_channels, **options}


def _infer_vim(
    shapes: Mapping[str, tuple[int, ...]], upsampling: str
) -> tuple[str, dict[str, Any]]:
    embed_dim = shapes["encoder.cls_token"][-1]
    if "encoder.rope.freqs_cos" in shapes:
        variant = "paper"
    elif upsampling == "transposed":
        variant = "torch-em-0.7.5"
    else:
        variant = "torch-em-0.7.10"
    return {384: "vim_s", 768: "vim_b"}.get(embed_dim, "vim_t"), {
        "variant": variant,
        "embed_dim": embed_dim,
        "depth": _count(shapes, "encoder.layers."),
        "image_size": 16 * math.isqrt(shapes["encoder.pos_embed"][1] - 1),
        "num_classes": shapes["encoder.head.weight"][0],
        "skip_connections": _has_layer_skips(shapes),
    }


def _infer_unetr(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, dict[str, Any]]:
    _, grid, _, embed_dim = shapes["encoder.pos_embed"]
    depth = _count(shapes, "encoder.blocks.")
    head = shapes["encoder.blocks.0.attn.rel_pos_h"][1]
    sides = [(shapes[f"encoder.blocks.{i}.attn.rel_pos_h"][0] + 1) // 2 for i in range(depth)]
    windows = set(sides) - {grid}
    # If a window is as large as the grid, windowed and global layers look the same and compute
    # the same; the last of each quarter are then the global ones, as in Segment Anything.
    global_layers = [i for i, side in enumerate(sides) if side == grid] if windows else None
    return {1024: "unetr_l", 1280: "unetr_h"}.get(embed_dim, "unetr_b"), {
        "variant": "paper",
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": embed_dim // head,
        "image_size": 16 * grid,
        "window": windows.pop() if windows else grid,
        "global_layers": global_layers,
        "skip_connections": _has_layer_skips(shapes),
    }


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})


def _has_layer_skips(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return "deconv4.block.1.weight" in shapes


def _empty_network(
    name: str, options: Mapping[str, Any], views: Mapping[str, _View], path: Path
) -> nn.Module:
    """Build a network without memory for its weights, and check that the weights will fit.

    Raises:
        ValueError: If names or shapes of the weights are not those of the network.
    """
    found = {key: view.shape for key, view in views.items()}
    try:
        with torch.device("meta"):
            network = build_model(name, **options)
    except (ArithmeticError, RuntimeError, TypeError) as error:
        raise ValueError(f"No {name!r} can have the weights of {path}: {error}.") from error
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    wrong = sorted(
        key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)
    )
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights of {path} do not fit {network.config}: `{wrong[0]}` must have "
            f"shape {expected.get(wrong[0])}, got {found.get(wrong[0])}."
        )
    return network


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
