"""The compiled kernels against the scan in float64, for every register width.

float64 runs in plain torch, which test_scan.py holds against the definition.
"""

import pytest
import torch
from torch import Tensor

from vimunet.models import scan
from vimunet.models.scan import active_backend, selective_scan, selective_scan_reference

kernels = pytest.importorskip(
    "vimunet._kernels",
    reason="`vimunet._kernels` is not built; run `pip install -e .` where a C++ compiler is.",
    exc_type=ImportError,
)

DIRECTIONS = ["forward", "reverse"]
# Widths 16 (AVX-512), 8 (AVX2) and 4 (any) go into 16 channels; the others leave a rest.
SIZES = [(2, 1, 3, 1), (1, 2, 16, 16), (2, 37, 20, 5), (3, 257, 33, 16), (1, 4097, 17, 2)]


def random_inputs(b: int, l: int, d: int, n: int, step: float = 2.0) -> list[Tensor]:  # noqa: E741
    """Random u, delta, A, B, C, D that float32 holds exactly, as float64 with gradients."""
    delta = torch.rand(b, l, d) * step
    A = -torch.exp(torch.randn(d, n))
    u, B, C, D = (torch.randn(shape) for shape in [(b, l, d), *[(b, l, n)] * 2, (d,)])
    return [x.double().requires_grad_() for x in (u, delta, A, B, C, D)]


def run(
    inputs: list[Tensor], grad_y: Tensor, direction: str = "forward", **options: int
) -> tuple[Tensor, list[Tensor]]:
    """Call the kernels themselves in float32; return y and the six gradients."""
    options = {"threads": 2, **options}
    inputs = [x.detach().float().contiguous() for x in inputs]
    b, l, d = inputs[0].shape  # noqa: E741
    chunks = -(-l // kernels.CHUNK)
    # NaN where nothing is written.
    y, *gradients = (torch.full_like(x, torch.nan) for x in (inputs[0], *inputs))
    borders = torch.full((chunks, b, d, inputs[2].shape[1]), torch.nan)
    reverse = direction == "reverse"
    kernels.selective_scan_forward(*inputs, y, borders, reverse, **options)
    kernels.selective_scan_backward(
        grad_y.float().contiguous(), *inputs, borders, *gradients, reverse, **options
    )
    return y, gradients


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest value; the least value that counts is 1e-3."""
    return ((value - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_value_and_gradients_agree_with_float64(size, direction):
    inputs = random_inputs(*size)
    expected = selective_scan(*inputs, direction=direction)
    grad_y = torch.randn_like(expected).float().double()
    wanted = torch.autograd.grad(expected, inputs, grad_y)
    for width in kernels.WIDTHS:
        y, gradients = run(inputs, grad_y, direction, width=width)
        assert relative_error(y, expected) < 1e-6, width
        for gradient, value in zip(gradients, wanted, strict=True):
            assert relative_error(gradient, value) < 1e-5, width


@pytest.mark.parametrize("step", [1e-6, 1e-2, 50.0, 1e4])
def test_small_and_large_steps(step):
    """exp(delta * A) runs from 1 to 0 (underflow)."""
    inputs = random_inputs(2, 100, 19, 16, step)
    expected = selective_scan(*inputs)
    grad_y = torch.randn_like(expected).float().double()
    wanted = torch.autograd.grad(expected, inputs, grad_y)
    for width in kernels.WIDTHS:
        y, gradients = run(inputs, grad_y, width=width)
        assert relative_error(y, expected) < 1e-6, width
        for gradient, value in zip(gradients, wanted, strict=True):
            # Where the decays are 0 so are gradients of A, except for what rounding leaves.
            assert relative_error(gradient, value) < 1e-5, width


@pytest.mark.parametrize("width", kernels.WIDTHS)
def test_decay_is_exact_to_single_precision(width):
    """One token that writes 1, one that reads it through exp(delta * A), for all sizes of it."""
    exponents = torch.linspace(-110, 0, 4001)
    one = torch.ones(1, 2, 4001)
    u = torch.tensor([1.0, 0.0]).reshape(1, 2, 1) * one
    delta = torch.stack([one[0, 0], -exponents])[None]
    y = torch.empty_like(one)
    ones = torch.ones(1, 2, 1)
    arguments = (u, delta, -torch.ones(4001, 1), ones, ones, torch.zeros(4001))
    kernels.selective_scan_forward(*arguments, y, None, False, 1, width=width)
    expected = exponents.double().exp()
    normal = exponents > -87.3  # below, float32 has no full precision left
    assert (y[0, 1] / expected - 1)[normal].abs().max() < 8e-6  # 87 times the rounding of A
    assert (y[0, 1] / expected - 1)[exponents > -1].abs().max() < 3e-7
    assert (y[0, 1] - expected)[~normal].abs().max() < 2e-38
    assert y[0, 1, -1] == 1


def test_threads_and_repetition_leave_the_bits_alone():
    inputs = random_inputs(2, 60, 100, 16)
    grad_y = torch.randn(2, 60, 100)
    y, gradients = run(inputs, grad_y, threads=2)
    for threads in (1, 2, 3, 50):
        value, others = run(inputs, grad_y, threads=threads)
        assert torch.equal(value, y)
        # With other threads the sums over channels for B and C are cut elsewhere.
        for gradient, other in zip(gradients, others, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)
            if threads == 2:
                assert torch.equal(gradient, other)


def test_not_a_number_stays_visible():
    for i in range(6):
        inputs = [x.detach().clone() for x in random_inputs(1, 5, 3, 2)]
        inputs[i].flatten()[0] = torch.nan
        y, _ = run(inputs, torch.ones(1, 5, 3))
        assert torch.equal(y.isnan(), selective_scan(*inputs).isnan()), i


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_selective_scan_uses_them(monkeypatch, direction):
    assert active_backend("cpu")[0] == "cpp"
    inputs = random_inputs(2, 40, 24, 16)
    singles = [x.detach().float().mT.contiguous().mT if x.ndim > 1 else x.detach().float()
               for x in inputs]  # fmt: skip
    singles = [x.requires_grad_() for x in singles]
    before = [x.detach().clone() for x in singles]
    expected = selective_scan(*inputs, direction=direction)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    monkeypatch.setattr(scan, "_ChunkedScan", None)
    y = selective_scan(*singles, direction=direction)
    assert y.dtype == torch.float32
    assert relative_error(y, expected) < 1e-6
    for gradient, value in zip(torch.autograd.grad(y.square().sum(), singles), wanted, strict=True):
        assert relative_error(gradient, value) < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(singles, before, strict=True))
    half = selective_scan(*(x.bfloat16() for x in singles), direction=direction)
    assert half.dtype == torch.bfloat16
    assert relative_error(half, expected) < 0.05


def test_some_inputs_without_gradient():
    inputs = [x.detach().float() for x in random_inputs(1, 20, 5, 3)]
    inputs[1].requires_grad_()
    selective_scan(*inputs).sum().backward()
    y = selective_scan_reference(*inputs)
    (expected,) = torch.autograd.grad(y.sum(), inputs[1])
    torch.testing.assert_close(inputs[1].grad, expected)


def test_wrong_arrays_are_refused():
    inputs = [x.detach().float() for x in random_inputs(1, 4, 3, 2)]
    y = torch.empty(1, 4, 3)
    with pytest.raises(ValueError, match=r"`B` must have shape \(b, l, n\)"):
        kernels.selective_scan_forward(*inputs[:3], y, *inputs[4:], y, None, False, 1)
    with pytest.raises(ValueError, match=r"`borders` must have shape"):
        kernels.selective_scan_forward(*inputs, y, torch.empty(2, 1, 3, 2), False, 1)
    with pytest.raises(ValueError, match="`width` must be one of `WIDTHS`"):
        kernels.selective_scan_forward(*inputs, y, None, False, 1, width=3)
    with pytest.raises(TypeError):
        kernels.selective_scan_forward(*inputs, y.double(), None, False, 1)
    with pytest.raises(TypeError):
        kernels.selective_scan_forward(inputs[0].mT, *inputs[1:], y.mT, None, False, 1)


def test_without_them_the_torch_form_is_named(monkeypatch):
    monkeypatch.setattr(scan, "_kernels", None)
    name, why = active_backend("cpu")
    assert name == "torch"
    assert "`vimunet._kernels` is missing" in why
    inputs = [x.detach().float() for x in random_inputs(1, 20, 5, 3)]
    torch.testing.assert_close(selective_scan(*inputs), selective_scan_reference(*inputs))
