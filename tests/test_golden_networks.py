"""Published networks against numbers measured on the published code (golden/networks.json).

The weights are a formula; they reach our networks as a user's would, through a file of torch-em.
"""

import json
from pathlib import Path

import pytest
import torch
from golden_fill import check_sums, check_values, fill_layout, wave

from vimunet.bridges.torch_em import read_checkpoint
from vimunet.models import build_model

GOLDEN = json.loads((Path(__file__).parent / "golden" / "networks.json").read_text())
CASES = GOLDEN["cases"]
# Largest difference of logits in float32, ten times what two orders of summation give.
FLOAT32 = {"vimunet": 3e-4, "unet2d": 5e-4, "unetr": 4e-4}


def published_weights(layout: dict) -> dict[str, torch.Tensor]:
    """The state dict that torch-em would save for these weights."""
    state = fill_layout(layout)
    for name in [name for name in state if name.endswith("running_mean")]:
        state[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    return state


def read_case(case: dict, folder: Path) -> torch.nn.Module:
    state = published_weights(GOLDEN["layouts"][case["layout"]])
    check_sums(state, case)
    if "_v1_" in case["layout"]:  # the published tables of the rotary embedding are no weights
        options = {"variant": "paper", "embed_dim": 32, "depth": 1, "image_size": 64}
        fresh = build_model("vim_t", **options).state_dict()
        state.update({name: fresh[name] for name in fresh if "rope" in name})
    assert len(state) == case["n_state"]
    torch.save({"model_state": state, "epoch": 3}, folder / "best.pt")
    return read_checkpoint(folder / "best.pt", **case["overrides"])


def input_of(case: dict, dtype: torch.dtype) -> torch.Tensor:
    if case["overrides"].get("sam_stats"):
        return (100 + 100 * wave(case["input_shape"], torch.float64)).float().to(dtype)
    return wave(case["input_shape"], dtype)


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


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_published_code(name, tmp_path):
    case = CASES[name]
    network = read_case(case, tmp_path)
    assert sum(parameter.numel() for parameter in network.parameters()) == case["n_params"]

    single = outputs_of(network, input_of(case, torch.float32))
    double = outputs_of(network.double(), input_of(case, torch.float64))
    tolerance = FLOAT32[name.split("_")[0]]
    for part, golden in case["values"].items():
        check_values(single[part], golden, tolerance if "logits" in part else tolerance / 3)
        assert double[part].dtype == torch.float64
        check_values(double[part], golden, 1e-8)
