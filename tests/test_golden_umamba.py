"""U-Mamba against numbers measured on the published code (golden/umamba.json).

The weights reach our network as a user's would: through a checkpoint with all the copies that the
published code writes.
"""

import json
from pathlib import Path

import pytest
import torch
from golden_fill import check_sums, check_values, fill_layout, wave

from vimunet.bridges.umamba import read_checkpoint
from vimunet.models import build_model

GOLDEN = json.loads((Path(__file__).parent / "golden" / "umamba.json").read_text())
CASES = GOLDEN["cases"]
# Largest difference of logits in float32, ten times what two orders of summation give.
FLOAT32 = {"umamba_bot": 2e-3, "umamba_enc": 1.5e-2}


def with_copies(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict that U-Mamba saves: most weights under two or four names."""
    both = {
        key.removeprefix("decoder.") if ".encoder." in key else key: state[key] for key in state
    }
    both.update(state)
    for key, value in list(both.items()):
        for index, name in (("0", "conv"), ("1", "norm")):
            both[key.replace(f"all_modules.{index}", name)] = value
    return both


def read_case(name: str, folder: Path) -> torch.nn.Module:
    case = CASES[name]
    filled = fill_layout(GOLDEN["layouts"][case["layout"]])
    check_sums(filled, case)
    state = with_copies(filled)
    assert len(state) == case["n_state"]
    torch.save({"network_weights": state, "current_epoch": 1000}, folder / "checkpoint_final.pth")
    network, report = read_checkpoint(folder / "checkpoint_final.pth")
    assert len(report.loaded) == len(filled)
    assert len(report.loaded) + len(report.skipped) == len(state)
    return network


def heads_of(network: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Logits, fine to coarse; the coarse ones by the heads that the network itself leaves out."""
    maps = []
    hooks = [
        stage.register_forward_hook(lambda _, __, out: maps.append(out))
        for stage in network.decoder.stages
    ]
    with torch.no_grad():
        logits = network(image)
        heads = [head(found) for head, found in zip(network.decoder.seg_layers, maps, strict=True)]
    for hook in hooks:
        hook.remove()
    assert torch.equal(heads[-1], logits)
    return heads[::-1]


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_published_code(name, tmp_path):
    case = CASES[name]
    network = read_case(name, tmp_path)
    assert sum(parameter.numel() for parameter in network.parameters()) == case["n_params"]
    single = heads_of(network, wave(case["input_shape"], torch.float32))
    double = heads_of(network.double(), wave(case["input_shape"], torch.float64))
    for found, exact, golden in zip(single, double, case["heads"], strict=True):
        check_values(found, golden, FLOAT32[name[:10]])
        check_values(exact, golden, 1e-8)


@pytest.mark.parametrize("plan", GOLDEN["counts"], ids=lambda plan: str(plan["image_size"]))
@pytest.mark.parametrize("kind", ["bot", "enc"])
def test_published_parameter_counts(plan, kind):
    options = {key: plan[key] for key in ("in_channels", "out_channels", "image_size")}
    with torch.device("meta"):
        network = build_model(f"umamba_{kind}", **options, variant="paper")
        control = build_model("resunet", **options, variant="paper")
    layers = [
        layer
        for name, layer in network.named_modules()
        if name == "mamba_layer"
        or name.startswith("encoder.mamba_layers.")
        and name.count(".") == 2
    ]
    count = sum(parameter.numel() for parameter in network.parameters())
    mamba = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    assert (count, mamba) == (plan[kind], plan[f"{kind}_mamba"])
    assert sum(parameter.numel() for parameter in control.parameters()) == count - mamba
    if kind == "enc":
        modes = {
            str(stage): [
                layer.norm.normalized_shape[0],
                "channel" if layer.tokens_are_channels else "spatial",
            ]
            for stage, layer in enumerate(network.encoder.mamba_layers)
            if not isinstance(layer, torch.nn.Identity)
        }
        assert modes == plan["enc_layers"]
