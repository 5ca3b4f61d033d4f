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

from vimunet.models import compiled, scan, scan_torch
from vimunet.models.scan import ORDERS, active_backend, selective_scan, selective_scan_reference

GOLDEN = json.loads((Path(__file__).parent / "golden" / "mamba.json").read_text())
DIRECTIONS = ["forward", "reverse"]


def random_inputs(b: int, l: int, d: int, n: int, dtype=torch.float64) -> list[Tensor]:  # noqa: E741
    """Random u, delta, A, B, C, D, with decays from nearly 0 to nearly 1."""
    delta = torch.rand(b, l, d, dtype=dtype) * 2
    A = -torch.exp(torch.randn(d, n, dtype=dtype))
    u, B, C, D = (torch.randn(*shape, dtype=dtype) for shape in [(b, l, d), *[(b, l, n)] * 2, (d,)])
    return [u, delta, A, B, C, D]


def one_scan(*inputs: Tensor, direction: str = "forward") -> Tensor:
    """`selective_scan` of one scan, with the arguments of the definition."""
    return selective_scan(*(x[None] for x in inputs), orders=(direction,))


def reference(inputs: list[Tensor], direction: str) -> Tensor:
    """The definition in either direction; reverse by flipping the tokens."""
    if direction == "forward":
        return selective_scan_reference(*inputs)
    return selective_scan_reference(*(x.flip(1) if x.ndim == 3 else x for x in inputs)).flip(1)


@pytest.fixture(autouse=True, params=["torch", "cpp"])
def backend(request, monkeypatch) -> str:
    """Run every test with each backend of the CPU that is there."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "kernels", None)
    elif compiled.kernels is None:
        pytest.skip("`vimunet._kernels` is not built")
    return request.param


@pytest.fixture
def short_chunks(monkeypatch):
    """Cut the tokens into chunks of 4, so that short sequences have borders."""
    monkeypatch.setattr(scan_torch, "_CHUNK_ELEMENTS", {"cpu": 1, "other": 1})
    monkeypatch.setattr(scan_torch, "_MIN_CHUNK_TOKENS", 4)


@pytest.mark.parametrize("function", [selective_scan_reference, one_scan])
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


@pytest.mark.parametrize("function", [selective_scan_reference, one_scan])
def test_constant_step_is_a_recursive_filter(function, rng):
    u = rng.normal(size=50)
    delta, rate, b, c, d = 0.3, -0.7, 1.5, -2.0, 0.25
    expected = c * scipy.signal.lfilter([delta * b], [1, -np.exp(delta * rate)], u) + d * u
    sequence = torch.from_numpy(u).reshape(1, 50, 1)
    one = torch.ones_like(sequence)
    D = torch.tensor([d], dtype=torch.float64)
    y = function(sequence, delta * one, rate * one[0, :1], b * one, c * one, D)
    np.testing.assert_allclose(y.flatten().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [selective_scan_reference, one_scan])
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
    y, expected = one_scan(*inputs, direction=direction), reference(inputs, direction)
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
    assert torch.autograd.gradcheck(lambda *x: one_scan(*x, direction=direction), inputs)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_default_chunks_in_float32(direction):
    inputs = random_inputs(2, 70, 384, 16)
    y = one_scan(*(x.float() for x in inputs), direction=direction)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), reference(inputs, direction), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [1e-30, 1e-4, 30.0, 1e4])
def test_extreme_steps_stay_finite(step):
    """exp(delta * A) runs from 1 to 0 (underflow); neither direction of time may overflow."""
    u, _, _, B, C, D = random_inputs(1, 300, 4, 16, torch.float32)
    A = -torch.arange(1.0, 17.0).repeat(4, 1)
    inputs = [x.requires_grad_() for x in (u, torch.full_like(u, step), A, B, C, D)]
    y = one_scan(*inputs)
    expected = selective_scan_reference(*(x.detach().double() for x in inputs))
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4 * max(step, 1))
    assert all(x.isfinite().all() for x in torch.autograd.grad(y.sum(), inputs))


def test_state_is_float32_for_bfloat16_input():
    """2000 small steps add up; in bfloat16 the sum would stand still at 1 / 2^-8 steps."""
    u = torch.ones(1, 2000, 1, dtype=torch.bfloat16)
    A, D = torch.tensor([[-1e-6]]), torch.zeros(1)
    y = one_scan(u, u * 2**-9, A, u, u, D)
    assert y.dtype == torch.bfloat16
    assert y[0, -1, 0].item() == pytest.approx(2000 * 2**-9, rel=0.01)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_autocast_changes_nothing(direction):
    inputs = [x.requires_grad_() for x in random_inputs(2, 40, 8, 4, torch.float32)]
    plain = one_scan(*inputs, direction=direction)
    expected = torch.autograd.grad(plain.square().sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = one_scan(*inputs, direction=direction)
        gradients = torch.autograd.grad(y.square().sum(), inputs)
    assert torch.equal(y, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_keeps_no_states_of_all_tokens_for_the_backward_pass():
    sizes = []
    inputs = [x.requires_grad_() for x in random_inputs(1, 1024, 256, 16, torch.float32)]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        one_scan(*inputs)
    assert max(sizes) <= 1.1 * inputs[0].numel()  # all states would be 16 times as many


@pytest.mark.parametrize("batch", [1, 2])
def test_inputs_of_any_stride_are_left_alone(batch):
    inputs = [x.requires_grad_() for x in random_inputs(batch, 9, 3, 2)]
    strided = [x.detach().mT.contiguous().mT if x.ndim > 1 else x.detach() for x in inputs]
    before = [x.detach().clone() for x in inputs]
    y = one_scan(*inputs)
    y.sum().backward()
    assert torch.equal(one_scan(*strided), y)
    assert all(torch.equal(x, kept) for x, kept in zip(inputs, before, strict=True))
    assert all(torch.equal(x, kept) for x, kept in zip(strided, before, strict=True))


def test_batch_of_two_is_two_batches_of_one(short_chunks):
    u, delta, A, B, C, D = random_inputs(2, 50, 3, 2)
    both = one_scan(u, delta, A, B, C, D)
    for i in range(2):
        alone = one_scan(u[i : i + 1], delta[i : i + 1], A, B[i : i + 1], C[i : i + 1], D)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [selective_scan_reference, one_scan])
def test_wrong_shapes_are_named(function):
    u, delta, A, B, C, D = random_inputs(2, 7, 3, 4)
    k, axes = ("", "") if function is selective_scan_reference else ("1, ", "k, ")
    message = rf"`B` must have shape \({k}2, 7, 4\) to fit `u` \({k}2, 7, 3\) and `A` \({k}3, 4\), "
    with pytest.raises(ValueError, match=message + rf"got \({k}2, 7, 2\)\."):
        function(u, delta, A, B[..., :2], C, D)
    with pytest.raises(ValueError, match=rf"`delta` must have shape \({k}2, 7, 3\)"):
        function(u, delta[:1], A, B, C, D)
    with pytest.raises(ValueError, match=rf"`D` must have shape \({k}3,?\)"):
        function(u, delta, A, B, C, D[:1])
    with pytest.raises(ValueError, match=rf"`u` must have shape \({axes}b, l, d\)"):
        function(u[0], delta, A, B, C, D)


def random_scans(b: int, l: int, d: int, n: int, dtype=torch.float64) -> list[Tensor]:  # noqa: E741
    """Inputs of four scans as `random_inputs`, and a bias of the steps and a gate."""
    four = [random_inputs(b, l, d, n, dtype) for _ in ORDERS]
    inputs = [torch.stack(tensors) for tensors in zip(*four, strict=True)]
    return [*inputs, torch.randn(4, d, dtype=dtype), torch.randn(b, l, d, dtype=dtype)]


def four_scans_by_definition(inputs: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """Each scan through the tokens in the order that its name says, one index at a time."""
    u, delta, A, B, C, D, bias, gate = inputs
    rows, columns = grid
    down = [row * columns + column for column in range(columns) for row in range(rows)]
    total = torch.zeros_like(u[0])
    for i, order in enumerate(ORDERS):
        visited = down if order.startswith("columns") else list(range(rows * columns))
        visited = visited[::-1] if order.endswith("reverse") else visited
        steps = torch.log1p(torch.exp(delta[i] + bias[i]))
        y = selective_scan_reference(
            u[i][:, visited], steps[:, visited], A[i], B[i][:, visited], C[i][:, visited], D[i]
        )
        total = total.index_add(1, torch.tensor(visited), y)
    return total * gate / (1 + torch.exp(-gate))


@pytest.mark.parametrize("grid", [(5, 7), (1, 9), (9, 1), (17, 4), (16, 16)])
@pytest.mark.parametrize("states", [3, 16])
def test_four_scans_with_bias_and_gate_agree_with_the_definition(short_chunks, grid, states):
    inputs = [x.requires_grad_() for x in random_scans(2, grid[0] * grid[1], 5, states)]
    expected = four_scans_by_definition(inputs, grid)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, weights)
    for dtype, close, closer in [(torch.float64, 1e-9, 1e-10), (torch.float32, 1e-4, 1e-5)]:
        own = [x.detach().to(dtype).requires_grad_() for x in inputs]
        y = selective_scan(*own[:6], orders=ORDERS, grid=grid, delta_bias=own[6], gate=own[7])
        assert (y - expected).abs().max() < closer * expected.abs().max()
        gradients = torch.autograd.grad(y, own, weights.to(dtype))
        for gradient, want in zip(gradients, wanted, strict=True):
            assert (gradient - want).abs().max() < close * want.abs().max()


def test_views_into_larger_buffers_and_expanded_inputs():
    u, delta, A, B, C, D, bias, gate = random_scans(2, 12, 5, 16, torch.float32)
    u = u[:1].expand(4, -1, -1, -1)
    buffer = torch.cat([delta, B, C], dim=-1).requires_grad_()
    both = torch.cat([gate, gate], dim=-1)
    views = buffer.split([5, 16, 16], dim=-1)
    options = {"orders": ORDERS, "grid": (3, 4), "delta_bias": bias}
    y = selective_scan(u, views[0], A, *views[1:], D, gate=both[..., 5:], **options)
    separate = [part.detach().clone().requires_grad_() for part in views]
    x, write, read = separate
    expected = selective_scan(u.clone(), x, A, write, read, D, gate=gate, **options)
    torch.testing.assert_close(y, expected)
    (gradient,) = torch.autograd.grad(y.sum(), buffer)
    wanted = torch.cat(torch.autograd.grad(expected.sum(), separate), dim=-1)
    torch.testing.assert_close(gradient, wanted)


def test_bfloat16_in_and_out_keeps_a_float32_state():
    inputs = random_scans(1, 200, 24, 16, torch.float32)
    halves = [x if i in (2, 5, 6) else x.bfloat16() for i, x in enumerate(inputs)]
    options = {"orders": ORDERS, "grid": (10, 20)}
    *six, bias, gate = halves
    y = selective_scan(*six, delta_bias=bias, gate=gate, **options)
    *six, bias, gate = (x.double() for x in halves)
    expected = selective_scan(*six, delta_bias=bias, gate=gate, **options)
    assert y.dtype == torch.bfloat16
    # Half a unit in the last of 8 places is all that may be lost.
    error = (y.double() - expected).abs()
    assert (error <= 2**-8 * expected.abs() + 1e-5 * expected.abs().max()).all()


def test_wrong_orders_and_grids_are_named():
    u, delta, A, B, C, D, bias, gate = random_scans(1, 6, 2, 1)
    message = r"`orders` must hold 4 of 'forward', 'reverse', 'columns', 'columns-reverse' .* got "
    for orders in (("forward",), ("up",) * 4):
        with pytest.raises(ValueError, match=message):
            selective_scan(u, delta, A, B, C, D, orders=orders)
    with pytest.raises(ValueError, match=r"`grid` must be \(rows, columns\) .* got None"):
        selective_scan(u, delta, A, B, C, D, orders=ORDERS)
    with pytest.raises(ValueError, match=r"`grid` must hold 6 tokens, got \(2, 4\)"):
        selective_scan(u, delta, A, B, C, D, orders=ORDERS, grid=(2, 4))
    with pytest.raises(ValueError, match=r"`delta_bias` must have shape \(4, 2\)"):
        selective_scan(u, delta, A, B, C, D, orders=ORDERS, grid=(2, 3), delta_bias=bias[:3])
    with pytest.raises(ValueError, match=r"`gate` must have shape \(1, 6, 2\)"):
        selective_scan(u, delta, A, B, C, D, orders=ORDERS, grid=(2, 3), gate=gate[:, :5])


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
        monkeypatch.setattr(scan, "triton_problem", lambda: None)
        assert active_backend("cuda")[0] == "triton"
        monkeypatch.setattr(scan, "triton_problem", lambda: "Triton is not installed")
        assert active_backend("cuda")[0] == "mamba_ssm"
        monkeypatch.setattr(scan, "active_backend", lambda device: ("mamba_ssm", ""))
        inputs = random_inputs(2, 9, 3, 2, torch.float32)
        y = one_scan(*inputs, direction=direction)
        torch.testing.assert_close(y, reference(inputs, direction))
    finally:
        scan._mamba_ssm_kernel.cache_clear()
