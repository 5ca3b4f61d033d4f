"""Where a network runs, and in which precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vimunet.models.compiled import bfloat16_is_fast

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return `device`; for "auto" CUDA, MPS or CPU, whichever is there first.

    Raises:
        ValueError: If the device does not exist.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`device` {str(device)!r} cannot be used: {reason}") from error
    return chosen


def device_for(device: str | torch.device, network: nn.Module) -> torch.device:
    """Return the device on which `predict` runs a network, given its option `device`."""
    current = _device_of(network)
    if str(device) == "auto" and current.type != "cpu":
        return current
    return choose_device(device)


def _device_of(network: nn.Module) -> torch.device:
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type in which `predict` computes on a device, given its option `precision`."""
    if precision == "auto":
        if device.type == "cpu":
            fast = bfloat16_is_fast()
        else:
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if precision not in PRECISIONS:
        raise ValueError(f"Unknown precision {precision!r}. Known: auto, {', '.join(PRECISIONS)}.")
    return PRECISIONS[precision]


@contextmanager
def borrowed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a network on `device` and in eval mode, and everything back afterwards."""
    home = _device_of(network)
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        if home != device:
            network.to(device)
        yield
    finally:
        if home != device:
            network.to(home)
        for module, training in modes:
            module.training = training
