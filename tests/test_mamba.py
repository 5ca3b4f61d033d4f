"""The bidirectional Mamba block against a forward-only original and against literal flips."""

import json
import math
from pathlib import Path

import pytest
import torch
from golden_fill import fill
from torch.nn import functional

from vimunet.models import mamba
from vimunet.models.mamba import BidirectionalMamba, DropPath, Mamba, RMSNorm
from vimunet.models.scan import selective_scan_reference

GOLDEN = json.loads((Path(__file__).parent / "golden" / "mamba.json").read_text())
FORWARD = ["A_log", "D", "conv1d.bias", "conv1d.weight", "dt_proj.bias", "dt_proj.weight"]
FORWARD += ["in_proj.weight", "out_proj.weight", "x_proj.weight"]  # sorted, as the fill counts


def backward_name(name: str) -> str:
    """Name of the same parameter in the backward direction."""
    head, _, tail = name.partition(".")
    if head in ("in_proj", "out_proj"):
        return name
    return {"A_log": "A_b_log", "D": "D_b"}.get(head, f"{head}_b.{tail}")


def test_parameter_names_and_shapes_are_those_of_vim():
    shapes = {k: tuple(v.shape) for k, v in BidirectionalMamba(192).state_dict().items()}
    one_direction = {
        "A_log": (384, 16),
        "D": (384,),
        "conv1d.weight": (384, 1, 4),
        "conv1d.bias": (384,),
        "x_proj.weight": (44, 384),
        "dt_proj.weight": (384, 12),
        "dt_proj.bias": (384,),
    }
    expected = {"in_proj.weight": (768, 192), "out_proj.weight": (192, 384), **one_direction}
    expected |= {backward_name(name): shape for name, shape in one_direction.items()}
    assert shapes == expected


def test_one_direction_is_the_original_mamba_block():
    block = Mamba(24).double()
    assert sorted(block.state_dict()) == FORWARD
    with torch.no_grad():
        for k, name in enumerate(FORWARD):
            weight = block.get_parameter(name)
            weight.copy_(fill(k, name, tuple(weight.shape)))
    tokens = torch.sin(0.11 * torch.arange(11 * 24, dtype=torch.float64)).reshape(1, 11, 24)
    tokens = tokens.float().double()
    output, single = block(tokens), block.float()(tokens.float())
    for index, value in GOLDEN["block"].items():
        assert output[tuple(json.loads(index))].item() == pytest.approx(value, abs=1e-10)
        assert single[tuple(json.loads(index))].item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_each_direction_is_the_original_mamba_block(direction):
    """A direction whose convolution is zero adds nothing; what is left is a plain Mamba block."""
    block = BidirectionalMamba(24, average=False).double()
    name_of = backward_name if direction == "backward" else str
    weights = {
        name_of(name): fill(k, name, tuple(block.get_parameter(name).shape))
        for k, name in enumerate(FORWARD)
    }
    silent = block.conv1d if direction == "backward" else block.conv1d_b
    with torch.no_grad():
        for name, weight in weights.items():
            block.get_parameter(name).copy_(weight)
        silent.weight.zero_()
        silent.bias.zero_()
    tokens = torch.sin(0.11 * torch.arange(11 * 24, dtype=torch.float64)).reshape(1, 11, 24)
    tokens = tokens.float().double()
    output = block(tokens.flip(1)).flip(1) if direction == "backward" else block(tokens)
    for index, value in GOLDEN["block"].items():
        assert output[tuple(json.loads(index))].item() == pytest.approx(value, abs=1e-10)


def literal_block(block: BidirectionalMamba, tokens: torch.Tensor) -> torch.Tensor:
    """The block as its paper states it: each direction gated, the backward one between flips."""
    signal, gate = block.in_proj(tokens).chunk(2, dim=-1)
    parts = []
    for suffix, flip in [("", lambda x: x), ("_b", lambda x: x.flip(1))]:
        conv, x_proj = getattr(block, "conv1d" + suffix), getattr(block, "x_proj" + suffix)
        dt_proj, skip = getattr(block, "dt_proj" + suffix), getattr(block, "D" + suffix)
        rate = -torch.exp(block.A_b_log if suffix else block.A_log)
        x = functional.pad(flip(signal).transpose(1, 2), (3, 0))
        x = functional.silu(functional.conv1d(x, conv.weight, conv.bias, groups=len(skip)))
        step, write, read = x_proj(x.transpose(1, 2)).split([2, 16, 16], dim=-1)
        delta = torch.log1p(torch.exp(dt_proj(step)))
        y = selective_scan_reference(x.transpose(1, 2), delta, rate, write, read, skip)
        parts.append(flip(y * functional.silu(flip(gate))))
    return block.out_proj(sum(parts) / (2 if block.average else 1))


@pytest.mark.parametrize("length", [1, 3, 30])
@pytest.mark.parametrize("average", [False, True])
def test_agrees_with_literal_flips(length, average):
    block = BidirectionalMamba(24, average=average).double()
    tokens = torch.randn(2, length, 24, dtype=torch.float64)
    output, expected = block(tokens), literal_block(block, tokens)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(output.square().sum(), list(block.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), list(block.parameters()))
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-8, atol=1e-12)


def test_both_directions_start_with_the_steps_of_mamba():
    block = BidirectionalMamba(384)
    for projection in (block.dt_proj, block.dt_proj_b):
        steps = functional.softplus(projection.bias)
        assert 0.9e-3 < steps.min() < 2e-3
        assert 0.05 < steps.max() < 0.101
        assert steps.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.2)
        bound = 24**-0.5
        assert 0.99 * bound < projection.weight.abs().max() <= bound
    for rates in (block.A_log, block.A_b_log):
        assert torch.equal(rates.exp().round()[5], torch.arange(1.0, 17.0))
    assert block.A_log is not block.A_b_log
    assert torch.equal(block.D, torch.ones(768))
    assert torch.equal(block.D_b, torch.ones(768))


def test_autocast_keeps_the_bias_of_the_step_and_the_decay_in_float32(monkeypatch):
    dtypes = []

    def watched(u, delta, rate, *rest, delta_bias, **options):
        dtypes.append((u.dtype, delta_bias.dtype, rate.dtype))
        return mamba_scan(u, delta, rate, *rest, delta_bias=delta_bias, **options)

    mamba_scan = mamba.selective_scan
    monkeypatch.setattr(mamba, "selective_scan", watched)
    block, tokens = BidirectionalMamba(48), torch.randn(2, 60, 48)
    expected = block(tokens)
    dtypes.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = block(tokens)
    assert dtypes == [(torch.bfloat16, torch.float32, torch.float32)]
    assert output.dtype == torch.bfloat16
    error = (output - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.02


def test_rms_norm_by_hand():
    norm = RMSNorm(2, eps=0.5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    # The mean square of (3, 4) is 12.5; with eps 13.
    expected = torch.tensor([[3 / math.sqrt(13), 40 / math.sqrt(13)]])
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), expected)


def test_rms_norm_computes_in_float32_and_returns_the_dtype_of_its_weight():
    norm = RMSNorm(512).bfloat16()
    tokens = torch.randn(3, 512)
    assert torch.equal(norm(tokens), RMSNorm(512)(tokens).bfloat16())
    assert RMSNorm(512).double()(tokens.double()).dtype == torch.float64


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    y = drop(x)
    kept = y[:, 0, 0] != 0
    assert torch.equal(y, (kept / 0.75)[:, None, None].expand_as(x))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(drop.eval()(x), x)


def test_drop_path_rate_out_of_range():
    with pytest.raises(ValueError, match=r"`rate` must lie in \[0, 1\), got 1"):
        DropPath(1)
