"""U-Mamba against numbers measured on the published code (golden/umamba.json).

The weights reach our network as a user's would: through a checkpoint with all the copies that the
published code writes.
"""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from golden_fill import check_sums, check_values, fill_layout, wave
from torch import Tensor

from vimunet.bridges.umamba import read_checkpoint
from vimunet.models import build_model
from vimunet.models.scan import selective_scan_reference
from vimunet.representations import Boundaries
from vimunet.segmentation.model_file import TrainedModel
from vimunet.segmentation.predict import predict

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


# --- the published network written down once more, as its description reads, for any patch --------


def described_enc(
    state: dict[str, Tensor], image: Tensor, strides: list[tuple[int, int]]
) -> Tensor:
    """U-Mamba Enc in 2D as Ma et al. 2024 publish it, one operation after the other.

    Args:
        state: Its weights under their published names.
        image: (b, c, y, x) of the size of the patches of its plan.
        strides: Of each stage along y and x.

    Returns:
        (b, m, y, x) logits.
    """

    def convolve(name: str, maps: Tensor, stride: tuple[int, int] = (1, 1)) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(maps, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def norm(name: str, maps: Tensor) -> Tensor:
        return F.instance_norm(
            maps, weight=state[f"{name}.weight"], bias=state[f"{name}.bias"], eps=1e-5
        )

    def blocks(name: str, maps: Tensor, stride: tuple[int, int] = (1, 1)) -> Tensor:
        first = f"{name}.0"
        found = F.leaky_relu(norm(f"{first}.norm1", convolve(f"{first}.conv1", maps, stride)))
        found = norm(f"{first}.norm2", convolve(f"{first}.conv2", found))
        maps = F.leaky_relu(found + convolve(f"{first}.conv3", maps, stride))
        number = 1
        while f"{name}.{number}.conv1.conv.weight" in state:
            one, two = f"{name}.{number}.conv1", f"{name}.{number}.conv2"
            found = F.leaky_relu(norm(f"{one}.norm", convolve(f"{one}.conv", maps)))
            found = norm(f"{two}.norm", convolve(f"{two}.conv", found))
            maps = F.leaky_relu(found + maps)
            number += 1
        return maps

    def mamba(name: str, tokens: Tensor) -> Tensor:
        own = {key.removeprefix(f"{name}."): w for key, w in state.items() if key.startswith(name)}
        tokens = F.layer_norm(tokens, tokens.shape[-1:], own["norm.weight"], own["norm.bias"])
        u, gate = (tokens @ own["mamba.in_proj.weight"].T).chunk(2, dim=-1)
        kernel = own["mamba.conv1d.weight"]
        before = F.pad(u.transpose(1, 2), (kernel.shape[-1] - 1, 0))
        u = F.conv1d(before, kernel, own["mamba.conv1d.bias"], groups=len(kernel))
        u = F.silu(u).transpose(1, 2)
        rank = own["mamba.dt_proj.weight"].shape[1]
        steps, inputs, outputs = (u @ own["mamba.x_proj.weight"].T).split([rank, 16, 16], dim=-1)
        steps = steps @ own["mamba.dt_proj.weight"].T + own["mamba.dt_proj.bias"]
        decay = -own["mamba.A_log"].exp()
        y = selective_scan_reference(u, F.softplus(steps), decay, inputs, outputs, own["mamba.D"])
        return (y * F.silu(gate)) @ own["mamba.out_proj.weight"].T

    maps, skips = blocks("encoder.stem", image), []
    for stage, stride in enumerate(strides):
        maps = blocks(f"encoder.stages.{stage}", maps, stride)
        if stage % 2 != len(strides) % 2:
            _, channels, height, width = maps.shape
            tokens = maps.flatten(2)
            if height * width > channels:  # otherwise each channel is a token
                tokens = tokens.transpose(1, 2)
            tokens = mamba(f"encoder.mamba_layers.{stage}", tokens)
            if height * width > channels:
                tokens = tokens.transpose(1, 2)
            maps = tokens.reshape(maps.shape)
        skips.append(maps)
    for step, stride in enumerate(strides[:0:-1]):
        maps = maps.repeat_interleave(stride[0], 2).repeat_interleave(stride[1], 3)
        maps = convolve(f"decoder.upsample_layers.{step}.conv", maps)
        if step < len(strides) - 2:  # the finest maps of the encoder are not used
            maps = torch.cat([maps, skips[-2 - step]], dim=1)
        maps = blocks(f"decoder.stages.{step}", maps)
    return convolve(f"decoder.seg_layers.{len(strides) - 2}", maps)


def test_description_agrees_with_the_published_code():
    case = CASES["umamba_enc_S5_64x64_fillR0"]
    state = {
        key: tensor.double()
        for key, tensor in with_copies(fill_layout(GOLDEN["layouts"][case["layout"]])).items()
    }
    strides = [(1, 1), *[(2, 2)] * 4]
    logits = described_enc(state, wave(case["input_shape"], torch.float64), strides)
    check_values(logits, case["heads"][0], 1e-8)


@pytest.mark.parametrize("size", [(96, 48), (48, 96), (64, 160)])
def test_enc_of_oblong_patches_is_as_described(size, tmp_path):
    """Its weights fit one size of patch, which need not be square."""
    options = {"features": 8, "max_features": 64, "image_size": list(size)}
    made = build_model("umamba_enc", 1, 2, variant="paper", **options).eval()
    assert (made.stride, made.max_size) == ((1, 1), size)
    strides = [stage[0].stride for stage in made.encoder.stages]
    plans = {"patch_size": list(size), "pool_op_kernel_sizes": [list(step) for step in strides]}
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    state = with_copies(made.state_dict())
    torch.save(
        {
            "network_weights": state,
            "init_args": {
                "plans": {"configurations": {"2d": plans}},
                "configuration": "2d",
            },
        },
        tmp_path / "checkpoint_final.pth",
    )
    network = read_checkpoint(tmp_path / "checkpoint_final.pth")[0].eval().double()
    image = torch.randn(2, 1, *size, dtype=torch.float64)
    state = {key: tensor.double() for key, tensor in state.items()}
    with torch.no_grad():
        torch.testing.assert_close(network(image), described_enc(state, image, strides))
        model = TrainedModel(network.float(), Boundaries(), "channel")
        maps = predict(image[0, 0].numpy(), model)
    assert maps.shape == (2, *size)
    with pytest.raises(ValueError, match=f"must be at most {re.escape(str(size))}"):
        network(torch.zeros(1, 1, size[1], size[0]))
