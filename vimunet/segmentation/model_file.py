"""The model file: weights and everything needed to use them, in one safetensors file.

Some models come with the package, in `vimunet/weights`; they have a name instead of a path.

The weights are plain tensors; network, representation (with its thresholds), normalisation and
origin are JSON text in the header of the same file. Nothing is ever unpickled. Checkpoints of
other tools are read in `vimunet.bridges`; the state of a running training is kept by
`vimunet.training`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vimunet.axes import SpatialAxes
from vimunet.io.atomic import replacing
from vimunet.messages import some_of
from vimunet.models import Network, build_model
from vimunet.representations import Representation, representation_from_config

FORMAT = "vimunet 1"
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
"""Folder of the models that come with the package, each with a card, NAME.md."""

_ENTRIES = ("format", "model", "model_args", "representation", "normalization", "info")


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """A network and what is needed to use it: the one thing that `predict` and `segment` take.

    Attributes:
        network: Maps images or volumes to logits.
        representation: What its maps mean and how they are read, with thresholds.
        normalization: How images are prepared, one of `vimunet.segmentation.NORMALIZATIONS`.
        info: Where the model comes from (training data, licence, config, iteration, commit, ...).
        spacing: Size of a voxel in µm along each axis of the images that it learnt from; None if it
            is not known.
    """

    network: Network
    representation: Representation
    normalization: str = "image"
    info: dict[str, Any] = field(default_factory=dict)
    spacing: tuple[float, ...] | None = None

    @property
    def axes(self) -> SpatialAxes:
        """Of what it segments: "yx" for images, "zyx" for volumes."""
        return self.network.axes

    def __repr__(self) -> str:
        """Say in a line what it is."""
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        name = getattr(self.network, "config", {}).get("model", type(self.network).__name__)
        return (
            f"TrainedModel({name} with {parameters / 1e6:.1f} M parameters, {self.axes}, "
            f"{self.network.in_channels} channels -> {', '.join(self.representation.channels)})"
        )


def save_model(path: str | Path, model: TrainedModel) -> None:
    """Write a model file, completely or not at all.

    Tensors are stored in the type they have: the file of `network.half()` is half as large.

    Args:
        path: File to write, ending in `.safetensors`. An existing file is replaced.
        model: What to write. Its network comes from `build_model` or from `load_model`.

    Raises:
        ValueError: If the file name does not end in `.safetensors`, the network does not know
            how it was built, or `info` is not made of JSON values.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"`path` must end in .safetensors, got {path}.")
    config = getattr(model.network, "config", None)
    if config is None:
        raise ValueError(
            f"`model.network` must know how it was built, got a {type(model.network).__name__} "
            "without `config`. Make it with `build_model`."
        )
    entries = {
        "format": FORMAT,
        **config,
        "representation": model.representation.config(),
        "normalization": model.normalization,
        "info": model.info,
        "spacing": model.spacing,
    }
    try:
        header = {name: json.dumps(value) for name, value in entries.items()}
    except TypeError as error:
        raise ValueError(f"`model.info` must be made of JSON values: {error}.") from error
    # A fresh copy of each tensor: the format knows neither shared memory nor other layouts.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.network.state_dict().items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def embedded_models() -> dict[str, str]:
    """Name the models that come with the package, and say in a line what each is for."""
    purposes = {}
    for file in sorted(WEIGHTS.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            purposes[file.stem] = json.loads(opened.metadata()["info"])["purpose"]
    return purposes


def load_model(path: str | Path) -> TrainedModel:
    """Read a model file. Nothing in it is executed.

    Args:
        path: Name of an embedded model, see `embedded_models`, or a file written by `save_model`.
            A file of that very name comes first.

    Returns:
        The model, on the CPU, in eval mode and in float32 (weights stored in half precision are
        widened).

    Raises:
        FileNotFoundError: If there is no such model. The message lists those that exist: the
            embedded ones for a name, those in the same folder for a path.
        ValueError: If the file is not a model file, or its tensors are not exactly those of the
            network it names.
    """
    path = _find(Path(path))
    header, tensors = _read(path)
    missing = [name for name in _ENTRIES if name not in header]
    if missing:
        raise ValueError(
            f"{path} must be a vimunet model file, but its header lacks {', '.join(missing)}. "
            f"It has: {', '.join(sorted(header)) or 'nothing'}."
        )
    try:
        entries = {name: json.loads(header[name]) for name in _ENTRIES}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a damaged header: {error}.") from error
    if entries["format"] != FORMAT:
        raise ValueError(
            f"{path} must have format {FORMAT!r}, got {entries['format']!r}. "
            "Update vimunet, or save the model again."
        )
    try:
        network = build_model(entries["model"], **entries["model_args"])
        representation = representation_from_config(entries["representation"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} describes a model that cannot be built: {error}") from error
    _check_tensors(path, network.state_dict(), tensors)
    network.load_state_dict(tensors)
    spacing = json.loads(header.get("spacing", "null"))
    return TrainedModel(
        network.eval(),
        representation,
        entries["normalization"],
        entries["info"],
        None if spacing is None else tuple(spacing),
    )


def _find(path: Path) -> Path:
    """Return the file of a path or of an embedded name."""
    if path.is_file():
        return path
    embedded = WEIGHTS / f"{path}.safetensors"
    if path.is_dir() and not embedded.is_file():
        raise FileNotFoundError(
            f"A model must be a file or one of {', '.join(embedded_models())}, got the folder "
            f"{path}. {_files_in(path)}"
        )
    if path.suffix or len(path.parts) != 1:
        raise FileNotFoundError(f"No model file {path}. {_beside(path)}")
    if not embedded.is_file():
        raise FileNotFoundError(
            f"No model {str(path)!r}. Known: {', '.join(embedded_models())}, or the path of a "
            "model file (.safetensors)."
        )
    return embedded


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {
                name: file.get_tensor(name) for name in sorted(file.keys())
            }
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be a safetensors file: {error}. Checkpoints of torch-em are converted "
            "with `vimunet convert`."
        ) from error


def _beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either."
    return _files_in(path.parent)


def _files_in(folder: Path) -> str:
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    return f"Model files in {folder}: {', '.join(names) or 'none'}."


def _check_tensors(path: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raise if names or shapes differ."""
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is not part of it" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    if problems:
        raise ValueError(f"Tensors of {path} must be those of its network: {some_of(problems, 8)}.")
