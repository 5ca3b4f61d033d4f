"""Put the weights of a file into a network, and say what became of each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimunet.bridges.torch_file import Weights
from vimunet.models import Network, build_model


@dataclass(frozen=True)
class Report:
    """What became of each tensor of a file and of a network.

    Attributes:
        path: The file.
        loaded: Tensors of the network that got the numbers of the file as they are.
        adapted: Tensors of the network that got changed numbers, and how they were changed.
        skipped: Tensors of the file that are not used, and why.
        missing: Tensors of the network that the file does not have; they keep their values.
        notes: What else should be known.
    """

    path: Path
    loaded: Sequence[str] = ()
    adapted: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        """List the tensors that were not simply loaded, grouped by what they share."""
        lines = [f"{self.path}: {len(self.loaded)} tensors loaded as they are"]
        for verb, reasons in (("adapted", self.adapted), ("skipped", self.skipped)):
            for reason in dict.fromkeys(reasons.values()):
                names = [name for name in reasons if reasons[name] == reason]
                lines.append(f"  {len(names)} {verb}, {reason}: {_summary(names)}")
        if self.missing:
            lines.append(
                f"  {len(self.missing)} not in the file, left as they were: "
                f"{_summary(self.missing)}"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _summary(names: Sequence[str]) -> str:
    """Name a few tensors in full, many by their first part."""
    if len(names) <= 4:
        return ", ".join(names)
    heads: dict[str, int] = {}
    for name in names:
        head = ".".join(name.split(".")[:2])
        heads[head] = heads.get(head, 0) + 1
    return ", ".join(f"{head}{f'.* ({n})' if n > 1 else ''}" for head, n in heads.items())


def build_from(
    weights: Weights,
    name: str,
    options: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
) -> Network:
    """Build a network and give it all its weights, in eval mode and float32.

    No memory is taken for the network before its shapes are known to be those of the file.

    Args:
        weights: The file.
        name: A key of `MODELS`.
        options: Options of `build_model`.
        names: Name in the file of each tensor of the network; None if the names are the same.

    Raises:
        ValueError: If names or shapes of the weights are not those of the network.
    """
    path = weights.path
    names = {key: key for key in weights.shapes} if names is None else names
    found = {key: weights.shapes[source] for key, source in names.items()}
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
    state = {key: weights.read(source) for key, source in names.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def load_some(
    network: Network,
    weights: Weights,
    tensors: Mapping[str, Tensor],
    adapted: Mapping[str, str],
    skipped: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Report:
    """Copy tensors into a network, in place.

    Args:
        network: Any network.
        weights: The file that the tensors come from.
        tensors: New numbers, by name in the network.
        adapted: See `Report`; keys of `tensors`.
        skipped: See `Report`.
        notes: See `Report`.

    Raises:
        ValueError: If there is nothing to load, or a tensor has another shape than the network's.
            The network is then unchanged.
    """
    own = network.state_dict()
    if not tensors:
        raise ValueError(
            f"{weights.path} holds no weights for this network, its weights are named "
            f"{', '.join(sorted(weights.shapes)[:3])}, ..."
        )
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise ValueError(
                f"Weights of {weights.path} must fit the network: `{name}` must have shape "
                f"{tuple(own[name].shape)}, got {tuple(tensor.shape)}."
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    parameters = {name for name, _ in network.named_parameters()}
    return Report(
        path=weights.path,
        loaded=[name for name in tensors if name not in adapted],
        adapted=dict(adapted),
        skipped=dict(skipped),
        missing=[name for name in own if name not in tensors and name in parameters],
        notes=list(notes),
    )


def fit_channels(kernel: Tensor, in_channels: int, path: Path) -> Tensor:
    """Adapt a kernel that reads red, green and blue to the channels of a network.

    Args:
        kernel: (c, 3, y, x) weights of the first convolution.
        in_channels: Channels that the network takes.
        path: File that the kernel comes from.

    Returns:
        (c, in_channels, y, x). For one channel it is the sum over the colours: the result for a
        grey image is that of the colour image made of three copies of it.

    Raises:
        ValueError: If `in_channels` is neither 1 nor that of the kernel.
    """
    if in_channels == kernel.shape[1]:
        return kernel
    if in_channels != 1:
        raise ValueError(
            f"`in_channels` must be 1 or {kernel.shape[1]} for the weights of {path}, "
            f"got {in_channels}."
        )
    return kernel.sum(dim=1, keepdim=True)


def resize_grid(grid: Tensor, shape: tuple[int, int], mode: str) -> Tensor:
    """Interpolate (y, x, c) positions to (*shape, c)."""
    return F.interpolate(grid.permute(2, 0, 1)[None], shape, mode=mode)[0].permute(1, 2, 0)
