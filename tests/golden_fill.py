"""Weights for golden values: numbers that look random but are a formula, the same on every machine.

The formula (called "fill R" where the golden values were measured): element i of the k-th tensor,
names sorted, is a hash of i and k, spread evenly over [-a, a), plus a constant that keeps norms,
decays and steps in their usual range. The input is a sine wave.
"""

import json

import numpy as np
import pytest
import torch

DECAYS = ("A_log", "A_b_log", "A_logs")


def hash_numbers(k: int, count: int) -> np.ndarray:
    """Numbers in [-1, 1) that look random, for the k-th tensor in alphabetical order."""
    mask = np.uint64(2**32 - 1)
    h = np.arange(count, dtype=np.uint64) * np.uint64(2654435761)
    h = (h + np.uint64((k + 1) * 2246822519 % 2**32)) & mask
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        h = ((h ^ (h >> np.uint64(shift))) * np.uint64(factor)) & mask
    h ^= h >> np.uint64(16)
    return h / 2**31 - 1


def fill(k: int, name: str, shape: tuple[int, ...], added: str | None = None) -> torch.Tensor:
    """Return the float32 tensor that the network holds under `name`, the k-th in sorted order.

    `added` says what is added to the hash: "log", "+1", "-2" or ""; None to tell by the name.
    """
    values = _amplitude(name, shape) * hash_numbers(k, int(np.prod(shape)))
    added = _added(name) if added is None else added
    if added == "log":
        values += np.log(np.arange(values.size) % 16 + 1)
    elif added:
        values += float(added)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def fill_layout(layout: dict) -> dict[str, torch.Tensor]:
    """Fill a whole state dict, given as {name: [shape, added]}."""
    return {
        name: fill(k, name, tuple(shape), added)
        for k, (name, (shape, added)) in enumerate(sorted(layout.items()))
    }


def check_sums(tensors: dict[str, torch.Tensor], case: dict) -> None:
    """Check that the weights are those that the golden values were measured with."""
    filled = [tensor.double() for tensor in tensors.values() if tensor.is_floating_point()]
    assert sum(tensor.sum() for tensor in filled) == pytest.approx(case["fill_sum"], rel=1e-6)
    if "fill_sumsq" in case:
        assert sum(tensor.square().sum() for tensor in filled) == pytest.approx(
            case["fill_sumsq"], rel=1e-6
        )


def wave(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Return sin(0.11 n), rounded to float32, as a tensor of this shape and type."""
    values = np.sin(0.11 * np.arange(np.prod(shape))).astype(np.float32)
    return torch.from_numpy(values).reshape(shape).to(dtype)


def check_values(values: torch.Tensor, golden: dict, tolerance: float) -> None:
    """Compare elements, mean and standard deviation."""
    assert list(values.shape) == golden["shape"]
    for index, expected in golden["elements"].items():
        found = values[tuple(json.loads(index))].item()
        assert found == pytest.approx(expected, abs=tolerance, rel=0), index
    for name, found in (("mean", values.double().mean()), ("std", values.double().std())):
        if name in golden:
            assert found.item() == pytest.approx(golden[name], abs=tolerance)


def _added(name: str) -> str:
    if name.endswith(("A_log", "A_b_log")):
        return "log"
    if name.endswith((".D", ".D_b", "norm.weight", "norm_f.weight")) or name == "D":
        return "+1"
    return "-2" if name.endswith(("dt_proj.bias", "dt_proj_b.bias")) else ""


def _amplitude(name: str, shape: tuple[int, ...]) -> float:
    if len(shape) < 2 or name.endswith(DECAYS):
        return 0.1
    if "pos_embed" in name or "cls_token" in name:
        return 0.5
    fan = shape[-1] if len(shape) < 4 else int(np.prod(shape[1:]))
    return float(np.sqrt(3 / fan))
