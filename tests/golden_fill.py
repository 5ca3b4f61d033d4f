"""Weights for golden values: numbers that look random but are a formula, the same on every machine.

The formula (called "fill R" where the golden values were measured): element i of the k-th tensor,
names sorted, is a hash of i and k, spread evenly over [-a, a), plus a constant that keeps norms,
decays and steps in their usual range.
"""

import numpy as np
import torch


def fill(k: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the float32 tensor that the network holds under `name`, the k-th in sorted order."""
    mask = np.uint64(2**32 - 1)
    i = np.arange(int(np.prod(shape)), dtype=np.uint64)
    h = (i * np.uint64(2654435761) + np.uint64((k + 1) * 2246822519 % 2**32)) & mask
    for shift, factor in [(15, 2246822519), (13, 3266489917), (16, 1)]:
        h ^= h >> np.uint64(shift)
        h = (h * np.uint64(factor)) & mask
    values = _amplitude(name, shape) * (h / 2**31 - 1)
    if name.endswith(("A_log", "A_b_log")):
        values += np.log(i % np.uint64(16) + 1.0)
    elif name.endswith((".D", ".D_b", "norm.weight", "norm_f.weight")) or name == "D":
        values += 1
    elif name.endswith(("dt_proj.bias", "dt_proj_b.bias")):
        values -= 2
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def _amplitude(name: str, shape: tuple[int, ...]) -> float:
    if len(shape) < 2 or name.endswith(("A_log", "A_b_log")):
        return 0.1
    if "pos_embed" in name or "cls_token" in name:
        return 0.5
    fan = shape[-1] if len(shape) < 4 else int(np.prod(shape[1:]))
    return float(np.sqrt(3 / fan))
