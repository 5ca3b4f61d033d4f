"""The selective scan: the definition against closed forms, the fast form against the definition."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from vimunet.models import scan
from vimunet.models.scan import active_backend, selective_scan, selective_scan_reference

GOLDEN = json.loads((Path(__file__).parent / "golden" / "mamba.json").read_text())
DIRECTIONS = ["forward", "reverse"]


def random_inputs(b: int, l: int, d: int, n: int, dtype=torch.float64) -> list[Tensor]:  # noqa: E741
    """Random u, delta, A, B, C, D, with decays from nearly 0 to nearly 1."""
    delta = torch.rand(b, l, d, dtype=dtype) * 2
    A = -torch.exp(torch.randn(d, n, dtype=dtype))
    u, B, C, D = (torch.randn(*shape, dtype=dtype) for shape in [(b, l, d), *[(b, l, n)] * 2, (d,)])
    return [u, delta, A, B, C, D]


def reference(inputs: list[Tensor], direction: str) -> Tensor:
    """The definition in either direction; reverse by flipping the tokens."""
    if direction == "forward":
        return selective_scan_reference(*inputs)
    return selective_scan_reference(*(x.flip(1) if x.ndim == 3 else x for x in inputs)).flip(1)


@pytest.fixture(autouse=True, params=["torch", "cpp"])
def backend(request, monkeypatch) -> str:
    """Run every test with each backend of the CPU that is there."""
    if request.param == "torch":
        monkeypatch.setattr(scan, "_kernels", None)
    elif scan._kernels is None:
        pytest.skip("`vimunet._kernels` is not built")
    return request.param


@pytest.fixture
def short_chunks(monkeypatch):
    """Cut the tokens into chunks of 4, so that short sequences have borders."""
    monkeypatch.setattr(scan, "_CHUNK_ELEMENTS", {"cpu": 1, "other": 1})
    monkeypatch.setattr(scan, "_MIN_CHUNK_TOKENS", 4)


@pytest.mark.parametrize("function", [selective_scan_reference, selective_scan])
def test_two_tokens_by_hand(function):
    u, delta = torch.tensor([2.0, 3.0]).reshape(1, 2, 1), torch.tensor([1.0, 0.5]).reshape(1, 2, 1)
    A = torch.tensor([[-1.0, -2.0]])
    B = torch.tensor([[[1.0, 0.5], [2.0, -1.0]]])
    C = torch.tensor([[[1.0, 1.0], [-1.0, 2.0]]])
    D = torch.tensor([10.0])
    # Token 0: states 1*1*2 = 2 and 1*0.5*2 = 1, so y = 2 + 1 + 10*2.
    # Token 1: states exp(-0.5)*2 + 0.5*2*3 and exp(-1)*1 - 0.5*1*3.
    first, second = np.exp(-0.5) * 2 + 3, np.exp(-1) - 1.5
    expected = torch.tensor([23.0, -first + 2 * second + 30]).reshape(1, 2, 1)
    torch.testing.assert_close(function(u, delta, A, B, C, D), expected.float())


@pytest.mark.parametrize("function", [selective_scan_reference, selective_scan])
def test_constant_step_is_a_recursive_filter(function, rng):
    u = rng.normal(size=50)
    delta, rate, b, c, d = 0.3, -0.7, 1.5, -2.0, 0.25
    expected = c * scipy.signal.lfilter([delta * b], [1, -np.exp(delta * rate)], u) + d * u
    sequence = torch.from_numpy(u).reshape(1, 50, 1)
    one = torch.ones_like(sequence)
    D = torch.tensor([d], dtype=torch.float64)
    y = function(sequence, delta * one, rate * one[0, :1], b * one, c * one, D)
    np.testing.assert_allclose(y.flatten().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [selective_scan_reference, selective_scan])
@pytest.mark.parametrize("options", ["scan_plain", "scan_with_skip_gate_bias_softplus"])
def test_golden_values(function, options):
    """Formulas of the golden values are in (b, d, l); step sizes of the plain case are not > 0."""

    def wave(factor, *shape):
        return factor * torch.arange(np.prod(shape), dtype=torch.float64).reshape(shape)

    u, delta = wave(0.37, 1, 6, 11).sin(), 0.5 * wave(0.71, 1, 6, 11).cos()
    A, D = -(1 + wave(0.1, 6, 16)), 1 + wave(0.1, 6)
    B, C = wave(0.23, 1, 16, 11).sin(), wave(0.41, 1, 16, 11).cos()
    gate = torch.ones_like(u)
    if options == "scan_plain":
        D = torch.zeros_like(D)
    else:
        gate = torch.nn.functional.silu(wave(0.53, 1, 6, 11).cos())
        delta = torch.nn.functional.softplus(delta + (-1 + wave(0.2, 6))[:, None])
    u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
    y = function(u, delta, A, B, C, D).transpose(1, 2) * gate
    for index, value in GOLDEN[options]["elements_float64"].items():
        assert y[tuple(json.loads(index))].item() == pytest.approx(value, rel=1e-10, abs=1e-12)
    assert y.sum().item() == pytest.approx(GOLDEN[options]["sum"], rel=1e-9)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("length", [1, 2, 4, 5, 37, 4097])
def test_value_and_gradients_agree_with_the_definition(short_chunks, length, direction):
    inputs = [x.requires_grad_() for x in random_inputs(2, length, 3, 2)]
    y, expected = selective_scan(*inputs, direction=direction), reference(inputs, direction)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    weights = torch.randn_like(y)
    gradients = torch.autograd.grad(y, inputs, weights)
    for gradient, wanted in zip(
        gradients, torch.autograd.grad(expected, inputs, weights), strict=True
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_agree_with_finite_differences(short_chunks, direction):
    inputs = [x.requires_grad_() for x in random_inputs(2, 6, 3, 2)]
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, direction=direction), inputs)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_default_chunks_in_float32(direction):
    inputs = random_inputs(2, 70, 384, 16)
    y = selective_scan(*(x.float() for x in inputs), direction=direction)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), reference(inputs, direction), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [1e-30, 1e-4, 30.0, 1e4])
def test_extreme_steps_stay_finite(step):
    """exp(delta * A) runs from 1 to 0 (underflow); neither direction of time may overflow."""
    u, _, _, B, C, D = random_inputs(1, 300, 4, 16, torch.float32)
    A = -torch.arange(1.0, 17.0).repeat(4, 1)
    inputs = [x.requires_grad_() for x in (u, torch.full_like(u, step), A, B, C, D)]
    y = selective_scan(*inputs)
    expected = selective_scan_reference(*(x.detach().double() for x in inputs))
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4 * max(step, 1))
    assert all(x.isfinite().all() for x in torch.autograd.grad(y.sum(), inputs))


def test_state_is_float32_for_bfloat16_input():
    """2000 small steps add up; in bfloat16 the sum would stand still at 1 / 2^-8 steps."""
    u = torch.ones(1, 2000, 1, dtype=torch.bfloat16)
    A, D = torch.tensor([[-1e-6]]), torch.zeros(1)
    y = selective_scan(u, u * 2**-9, A, u, u, D)
    assert y.dtype == torch.bfloat16
    assert y[0, -1, 0].item() == pytest.approx(2000 * 2**-9, rel=0.01)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_autocast_changes_nothing(direction):
    inputs = [x.requires_grad_() for x in random_inputs(2, 40, 8, 4, torch.float32)]
    plain = selective_scan(*inputs, direction=direction)
    expected = torch.autograd.grad(plain.square().sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = selective_scan(*inputs, direction=direction)
        gradients = torch.autograd.grad(y.square().sum(), inputs)
    assert torch.equal(y, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_keeps_no_states_of_all_tokens_for_the_backward_pass():
    sizes = []
    inputs = [x.requires_grad_() for x in random_inputs(1, 1024, 256, 16, torch.float32)]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        selective_scan(*inputs)
    assert max(sizes) <= 1.1 * inputs[0].numel()  # all states would be 16 times as many


@pytest.mark.parametrize("batch", [1, 2])
def test_inputs_of_any_stride_are_left_alone(batch):
    inputs = [x.requires_grad_() for x in random_inputs(batch, 9, 3, 2)]
    strided = [x.detach().mT.contiguous().mT if x.ndim > 1 else x.detach() for x in inputs]
    before = [x.detach().clone() for x in inputs]
    y = selective_scan(*inputs)
    y.sum().backward()
    assert torch.equal(selective_scan(*strided), y)
    assert all(torch.equal(x, kept) for x, kept in zip(inputs, before, strict=True))
    assert all(torch.equal(x, kept) for x, kept in zip(strided, before, strict=True))


def test_batch_of_two_is_two_batches_of_one(short_chunks):
    u, delta, A, B, C, D = random_inputs(2, 50, 3, 2)
    both = selective_scan(u, delta, A, B, C, D)
    for i in range(2):
        alone = selective_scan(u[i : i + 1], delta[i : i + 1], A, B[i : i + 1], C[i : i + 1], D)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [selective_scan_reference, selective_scan])
def test_wrong_shapes_are_named(function):
    u, delta, A, B, C, D = random_inputs(2, 7, 3, 4)
    message = r"`B` must have shape \(2, 7, 4\) to fit `u` \(2, 7, 3\) and `A` \(3, 4\), "
    with pytest.raises(ValueError, match=message + r"got \(2, 7, 2\)\."):
        function(u, delta, A, B[..., :2], C, D)
    with pytest.raises(ValueError, match=r"`delta` must have shape \(2, 7, 3\)"):
        function(u, delta[:1], A, B, C, D)
    with pytest.raises(ValueError, match=r"`D` must have shape \(3,\)"):
        function(u, delta, A, B, C, D[:1])
    with pytest.raises(ValueError, match=r"`u` must have shape \(b, l, d\)"):
        function(u[0], delta, A, B, C, D)


def test_unknown_direction():
    with pytest.raises(ValueError, match="`direction` must be 'forward' or 'reverse', got 'up'"):
        selective_scan(*random_inputs(1, 2, 1, 1), direction="up")


def test_active_backend_names_and_reason(backend):
    name, why = active_backend("cpu")
    assert name == backend
    assert why.endswith(".")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_mamba_ssm_is_called_in_its_own_layout(monkeypatch, direction):
    """A stand-in for the CUDA kernel: (b, d, l) layout, contiguous, one direction only."""

    def kernel(u, delta, A, B, C, D):
        assert all(x.is_contiguous() for x in (u, delta, A, B, C, D))
        u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
        return selective_scan_reference(u, delta, A, B, C, D).transpose(1, 2)

    module = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = kernel
    monkeypatch.setitem(sys.modules, "mamba_ssm", ModuleType("mamba_ssm"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", ModuleType("mamba_ssm.ops"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    scan._mamba_ssm_kernel.cache_clear()
    try:
        assert active_backend("cuda")[0] == "mamba_ssm"
        monkeypatch.setattr(scan, "active_backend", lambda device: ("mamba_ssm", ""))
        inputs = random_inputs(2, 9, 3, 2, torch.float32)
        y = selective_scan(*inputs, direction=direction)
        torch.testing.assert_close(y, reference(inputs, direction))
    finally:
        scan._mamba_ssm_kernel.cache_clear()
