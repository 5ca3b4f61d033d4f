"""VM-UNet and its modules against numbers measured on the published code (golden/vmunet.json)."""

import json
from pathlib import Path

import pytest
import torch
from golden_fill import check_sums, check_values, fill_layout, wave

from vimunet.bridges.vmunet import read_checkpoint
from vimunet.models import build_model
from vimunet.models.vmunet import Block, FourWayScan, PatchExpand, PatchMerging

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vmunet.json").read_text())
CASES = GOLDEN["cases"]
MODULES = {
    "ss2d": lambda: FourWayScan(24),
    "vss_block": lambda: Block(24),
    "patch_merging": lambda: PatchMerging(8),
    "patch_expand": lambda: PatchExpand(16, 8),
    "final_patch_expand": lambda: PatchExpand(16, 4, scale=4),
}


@pytest.mark.parametrize("name", GOLDEN["modules"])
def test_modules_agree_with_the_published_code(name):
    golden = GOLDEN["modules"][name]
    state = fill_layout(golden["layout"])
    check_sums(state, golden)
    module = MODULES[name]()
    module.load_state_dict(state)
    with torch.no_grad():
        single = module(wave(golden["input_shape"], torch.float32))
        double = module.double()(wave(golden["input_shape"], torch.float64))
    check_values(single, golden["output"], 6e-5 if name == "final_patch_expand" else 1e-5)
    check_values(double, golden["output"], 1e-10)


def outputs_of(network: torch.nn.Module, parts: list[str], image: torch.Tensor) -> dict:
    seen = {}
    hooks = [
        network.vmunet.get_submodule(part).register_forward_hook(
            lambda _, __, out, part=part: seen.update({part: out})
        )
        for part in parts
        if part != "logits"
    ]
    with torch.no_grad():
        seen["logits"] = network(image)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_published_code(name, tmp_path):
    case = CASES[name]
    layout = dict(GOLDEN["layout"])
    for key in ("vmunet.final_conv.weight", "vmunet.final_conv.bias"):
        shape, added = layout[key]
        layout[key] = [[case["out_channels"], *shape[1:]], added]
    state = fill_layout(layout)
    check_sums(state, case)
    assert len(state) == case["n_state"]
    torch.save(state, tmp_path / "best.pth")
    network, report = read_checkpoint(tmp_path / "best.pth", in_channels=case["input_shape"][1])
    assert (len(report.loaded), report.missing, dict(report.skipped)) == (222, (), {})
    assert sum(parameter.numel() for parameter in network.parameters()) == case["n_params"]

    parts = list(case["values"])
    single = outputs_of(network, parts, wave(case["input_shape"], torch.float32))
    double = outputs_of(network.double(), parts, wave(case["input_shape"], torch.float64))
    for part, golden in case["values"].items():
        check_values(single[part], golden, 1e-4)
        check_values(double[part], golden, 1e-8)


@pytest.mark.parametrize(
    ("options", "parameters", "tensors"),
    [
        ({}, 27_427_561, 222),
        ({"out_channels": 9}, 27_427_761, 222),
        ({"depths": [2, 2, 9, 2], "decoder_depths": [2, 9, 2, 2]}, 44_273_833, 417),
        ({"depths": [2, 2, 9, 2]}, 35_797_993, 313),
        ({"depths": [2, 2, 27, 2], "decoder_depths": [2, 27, 2, 2]}, 87_321_769, 885),
    ],
    ids=str,
)
def test_published_sizes(options, parameters, tensors):
    with torch.device("meta"):
        network = build_model("vmunet", **{"in_channels": 3, "out_channels": 1, **options})
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors
