"""Published networks against numbers measured on the published code (golden/networks.json).

The weights are a formula; they reach our networks as a user's would, through a file of torch-em.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vimunet.bridges.torch_em import read_checkpoint
from vimunet.models import build_model

GOLDEN = json.loads((Path(__file__).parent / "golden" / "networks.json").read_text())
CASES = GOLDEN["cases"]
# Largest difference of logits in float32, ten times what two orders of summation give.
FLOAT32 = {"vimunet": 3e-4, "unet2d": 5e-4, "unetr": 4e-4}
ADDED = {"": 0.0, "+1": 1.0, "-2": -2.0}


def hash_numbers(k: int, count: int) -> np.ndarray:
    """Numbers in [-1, 1) that look random, for the k-th tensor in alphabetical order."""
    mask = np.uint64(2**32 - 1)
    h = np.arange(count, dtype=np.uint64) * np.uint64(2654435761)
    h = (h + np.uint64((k + 1) * 2246822519 % 2**32)) & mask
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        h = ((h ^ (h >> np.uint64(shift))) * np.uint64(factor)) & mask
    h ^= h >> np.uint64(16)
    return h / 2**31 - 1


def published_weights(layout: dict) -> dict[str, torch.Tensor]:
    """The state dict that torch-em would save for these weights."""
    state = {}
    for k, (name, (shape, added)) in enumerate(sorted(layout.items())):
        if len(shape) < 2 or name.endswith(("A_log", "A_b_log")):
            amplitude = 0.1
        elif "pos_embed" in name or "cls_token" in name:
            amplitude = 0.5
        else:
            amplitude = (3 / (shape[-1] if len(shape) < 4 else np.prod(shape[1:]))) ** 0.5
        values = amplitude * hash_numbers(k, int(np.prod(shape)))
        values += np.log(np.arange(values.size) % 16 + 1) if added == "log" else ADDED[added]
        state[name] = torch.from_numpy(values.astype(np.float32)).reshape(shape)
        if name.endswith("running_mean"):
            state[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    return state


def read_case(case: dict, folder: Path) -> torch.nn.Module:
    state = published_weights(GOLDEN["layouts"][case["layout"]])
    filled = [tensor.double() for tensor in state.values() if tensor.is_floating_point()]
    assert sum(tensor.sum() for tensor in filled) == pytest.approx(case["fill_sum"], rel=1e-6)
    assert sum(tensor.square().sum() for tensor in filled) == pytest.approx(
        case["fill_sumsq"], rel=1e-6
    )
    if "_v1_" in case["layout"]:  # the published tables of the rotary embedding are no weights
        options = {"variant": "paper", "embed_dim": 32, "depth": 1, "image_size": 64}
        fresh = build_model("vim_t", **options).state_dict()
        state.update({name: fresh[name] for name in fresh if "rope" in name})
    assert len(state) == case["n_state"]
    torch.save({"model_state": state, "epoch": 3}, folder / "best.pt")
    return read_checkpoint(folder / "best.pt", **case["overrides"])


def input_of(case: dict, dtype: torch.dtype) -> torch.Tensor:
    wave = np.sin(0.11 * np.arange(np.prod(case["input_shape"]))).astype(np.float32)
    if case["overrides"].get("sam_stats"):
        wave = (100 + 100 * wave.astype(np.float64)).astype(np.float32)
    return torch.from_numpy(wave).reshape(case["input_shape"]).to(dtype)


def outputs_of(network: torch.nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the golden file may hold: output, logits on the canvas, last grid of the encoder."""
    seen = {}
    hooks = [network.out_conv.register_forward_hook(lambda _, __, out: seen.update(logits=out))]
    if hasattr(network, "canvas"):
        hooks.append(
            network.encoder.register_forward_hook(
                lambda _, args, out: seen.update(canvas=args[0], grid=out[-1])
            )
        )
    with torch.no_grad():
        seen["output"] = network(image).sigmoid()
    for hook in hooks:
        hook.remove()
    seen["logits_canvas"] = seen["logits"]
    return seen


def check(values: torch.Tensor, golden: dict, tolerance: float) -> None:
    assert list(values.shape) == golden["shape"]
    for index, expected in golden["elements"].items():
        found = values[tuple(json.loads(index))].item()
        assert found == pytest.approx(expected, abs=tolerance, rel=0), index
    assert values.double().mean().item() == pytest.approx(golden["mean"], abs=tolerance)
    assert values.double().std().item() == pytest.approx(golden["std"], abs=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_published_code(name, tmp_path):
    case = CASES[name]
    network = read_case(case, tmp_path)
    assert sum(parameter.numel() for parameter in network.parameters()) == case["n_params"]

    single = outputs_of(network, input_of(case, torch.float32))
    double = outputs_of(network.double(), input_of(case, torch.float64))
    tolerance = FLOAT32[name.split("_")[0]]
    for part, golden in case["values"].items():
        check(single[part], golden, tolerance if "logits" in part else tolerance / 3)
        assert double[part].dtype == torch.float64
        check(double[part], golden, 1e-8)
