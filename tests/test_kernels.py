"""The compiled kernels against float64 in plain torch, for every instruction set of this machine.

What float64 computes, test_scan.py and test_models.py hold against the definitions.
"""

import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimunet.models import build_model, compiled, scan
from vimunet.models.scan import ORDERS, active_backend, selective_scan, selective_scan_reference

kernels = pytest.importorskip(
    "vimunet._kernels",
    reason="`vimunet._kernels` is not built; run `pip install -e .` where a C++ compiler is.",
    exc_type=ImportError,
)

# Widths 16 (AVX-512), 8 (AVX2) and 4 (any) go into 16 channels; the others leave a rest.
SIZES = [(2, 1, 3, 1), (1, 2, 16, 16), (2, 37, 20, 5), (3, 257, 33, 16), (1, 4097, 17, 2)]


@pytest.fixture(params=kernels.WIDTHS)
def width(request, monkeypatch) -> int:
    """Let the operators use one instruction set after the other."""
    monkeypatch.setattr(compiled, "kernels", OneWidth(request.param))
    return request.param


class OneWidth:
    """`vimunet._kernels` on a processor whose widest registers hold `width` floats."""

    def __init__(self, width: int) -> None:
        self.WIDTHS, self.CHUNK = [width], kernels.CHUNK

    def __getattr__(self, name: str):
        return lambda *arguments: getattr(kernels, name)(*arguments, width=self.WIDTHS[0])


def random_inputs(b: int, l: int, d: int, n: int, step: float = 2.0) -> list[Tensor]:  # noqa: E741
    """Random u, delta, A, B, C, D of one scan that float32 holds exactly, as float64."""
    delta = torch.rand(1, b, l, d) * step
    A = -torch.exp(torch.randn(1, d, n))
    u, B, C, D = (torch.randn(1, *shape) for shape in [(b, l, d), *[(b, l, n)] * 2, (d,)])
    return [x.double().requires_grad_() for x in (u, delta, A, B, C, D)]


def singles(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().float().requires_grad_() for x in tensors]


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest value; the least value that counts is 1e-3."""
    return ((value - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_value_and_gradients_agree_with_float64(size, direction, width):
    inputs = random_inputs(*size)
    expected = selective_scan(*inputs, orders=(direction,))
    grad_y = torch.randn_like(expected).float().double()
    wanted = torch.autograd.grad(expected, inputs, grad_y)
    own = singles(inputs)
    y = selective_scan(*own, orders=(direction,))
    assert relative_error(y, expected) < 1e-6
    for gradient, value in zip(torch.autograd.grad(y, own, grad_y.float()), wanted, strict=True):
        assert relative_error(gradient, value) < 1e-5


@pytest.mark.parametrize("step", [1e-6, 1e-2, 50.0, 1e4])
def test_small_and_large_steps(step, width):
    """exp(delta * A) runs from 1 to 0 (underflow)."""
    inputs = random_inputs(2, 100, 19, 16, step)
    expected = selective_scan(*inputs)
    grad_y = torch.randn_like(expected).float().double()
    wanted = torch.autograd.grad(expected, inputs, grad_y)
    own = singles(inputs)
    y = selective_scan(*own)
    assert relative_error(y, expected) < 1e-6
    for gradient, value in zip(torch.autograd.grad(y, own, grad_y.float()), wanted, strict=True):
        # Where the decays are 0 so are gradients of A, except for what rounding leaves.
        assert relative_error(gradient, value) < 1e-5


def test_decay_is_exact_to_single_precision(width):
    """One token that writes 1, one that reads it through exp(delta * A), for all sizes of it."""
    exponents = torch.linspace(-110, 0, 4001)
    one = torch.ones(1, 1, 2, 4001)
    u = torch.tensor([1.0, 0.0]).reshape(1, 1, 2, 1) * one
    delta = torch.stack([one[0, 0, 0], -exponents])[None, None]
    ones = torch.ones(1, 1, 2, 1)
    y = selective_scan(u, delta, -torch.ones(1, 4001, 1), ones, ones, torch.zeros(1, 4001))
    expected = exponents.double().exp()
    normal = exponents > -87.3  # below, float32 has no full precision left
    assert (y[0, 1] / expected - 1)[normal].abs().max() < 8e-6  # 87 times the rounding of A
    assert (y[0, 1] / expected - 1)[exponents > -1].abs().max() < 3e-7
    assert (y[0, 1] - expected)[~normal].abs().max() < 2e-38
    assert y[0, 1, -1] == 1


def test_softplus_and_silu_are_exact_to_single_precision(width):
    """With B = 0 and D = 1, y is u * silu(gate); with A = 0 one token adds softplus(x) to it."""
    x = torch.linspace(-80, 40, 24001)
    one, zero = torch.ones(1, 1, 1, len(x)), torch.zeros(1, 1, 1, 1)
    none, all_ones = torch.zeros(1, len(x), 1), torch.ones(1, len(x))
    y = selective_scan(one, one, none, zero, zero, all_ones, gate=x[None, None])
    expected = F.silu(x.double())
    allowed = 4e-7 + 1.2e-7 * x.abs()  # the rounding of x * log2(e)
    assert ((y[0, 0] - expected).abs() <= allowed * expected.abs() + 1e-37).all()
    y = selective_scan(
        one, one * x, none, zero + 1, zero + 1, all_ones * 0, delta_bias=torch.zeros(1, len(x))
    )
    expected = torch.log1p(torch.exp(x.double()))
    assert ((y[0, 0] - expected).abs() <= allowed * expected).all()


def four_scans() -> tuple[list[Tensor], dict]:
    inputs = [torch.cat([x.detach()] * 4).requires_grad_() for x in random_inputs(2, 60, 37, 16)]
    inputs += [x.double().requires_grad_() for x in (torch.randn(4, 37), torch.randn(2, 60, 37))]
    return inputs, {"orders": ORDERS, "grid": (5, 12)}


def run(inputs: list[Tensor], options: dict) -> Tensor:
    return selective_scan(*inputs[:6], delta_bias=inputs[6], gate=inputs[7], **options)


def test_four_scans_with_bias_and_gate(width):
    inputs, options = four_scans()
    expected = run(inputs, options)
    grad_y = torch.randn_like(expected).float().double()
    wanted = torch.autograd.grad(expected, inputs, grad_y)
    own = singles(inputs)
    y = run(own, options)
    assert relative_error(y, expected) < 1e-6
    for gradient, value in zip(torch.autograd.grad(y, own, grad_y.float()), wanted, strict=True):
        assert relative_error(gradient, value) < 1e-5


def test_threads_and_repetition_leave_the_bits_alone():
    inputs, options = four_scans()
    results = {}
    before = torch.get_num_threads()
    try:
        for threads in (2, 2, 1, 3, 50):
            torch.set_num_threads(threads)
            own = singles(inputs)
            y = run(own, options)
            gradients = torch.autograd.grad(y.square().sum(), own)
            if threads in results:
                assert all(map(torch.equal, gradients, results[threads][1]))
            results[threads] = y, gradients
    finally:
        torch.set_num_threads(before)
    for y, gradients in results.values():
        assert torch.equal(y, results[1][0])
        # With other threads the sums over channels for B and C are cut elsewhere.
        for gradient, other in zip(gradients, results[1][1], strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("operation", ["scan", "fused scan", "convolution", "norm"])
def test_not_a_number_stays_visible(operation, width):
    if operation == "norm":
        inputs = [torch.randn(1, 3, 4, 5)]
        function = lambda x: torch.cat([compiled.instance_norm([x], relu, 1e-5) for relu in (0, 1)])  # noqa: E731
    elif operation == "convolution":
        inputs = [torch.randn(1, 9, 3), torch.randn(1, 4, 3), torch.randn(1, 3)]
        function = lambda *x: compiled.causal_conv_silu(*x, (0,))  # noqa: E731
    else:
        inputs = [x.detach().float() for x in random_inputs(1, 5, 3, 2)]
        function = selective_scan
        if operation == "fused scan":
            inputs += [torch.randn(1, 3), torch.randn(1, 5, 3)]
            function = lambda *x: selective_scan(*x[:6], delta_bias=x[6], gate=x[7])  # noqa: E731
    for i in range(len(inputs)):
        broken = [x.clone() for x in inputs]
        broken[i].flatten()[0] = torch.nan
        assert function(*broken).isnan().any(), i


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 1, 5), (1, 200, 37), (3, 64, 16)])
def test_causal_convolution_is_a_padded_one(shape, dtype, width):
    b, l, d = shape  # noqa: E741
    signal = torch.randn(b, l, d + 3).to(dtype)[..., :d].requires_grad_()
    weight, bias = (x.requires_grad_() for x in (torch.randn(2, 4, d), torch.randn(2, d)))
    y = compiled.causal_conv_silu(signal, weight, bias, (0, 1))
    doubles = [x.detach().double().requires_grad_() for x in (signal, weight, bias)]
    tokens = doubles[0].transpose(1, 2)
    forward, mirrored = (doubles[1][i].T[:, None] for i in (0, 1))
    ahead = F.conv1d(F.pad(tokens, (3, 0)), forward, doubles[2][0], groups=d)
    behind = F.conv1d(F.pad(tokens, (0, 3)), mirrored.flip(-1), doubles[2][1], groups=d)
    expected = F.silu(torch.stack([ahead, behind]).transpose(2, 3))
    allowed = 1e-6 if dtype == torch.float32 else 2**-8
    assert y.dtype == dtype
    assert relative_error(y, expected) < allowed
    grad_y = torch.randn_like(y)
    wanted = torch.autograd.grad(expected, doubles, grad_y.double())
    for gradient, want in zip(
        torch.autograd.grad(y, (signal, weight, bias), grad_y), wanted, strict=True
    ):
        assert relative_error(gradient, want) < allowed * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [(2, 4), (9, 7), (150, 140)])
def test_instance_norm_joins_and_normalises(size, relu, dtype, width):
    """The largest size has more pixels than one thread sums up at a time."""
    wide = torch.randn(2, 40, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    maps = [torch.randn(2, 5, *size).to(dtype).requires_grad_(), wide.requires_grad_()]
    y = compiled.instance_norm([maps[0], maps[1][:, 4:21]], relu, 1e-5)
    doubles = [x.detach().double().requires_grad_() for x in maps]
    joined = torch.cat([doubles[0], doubles[1][:, 4:21]], dim=1)
    expected = F.instance_norm(F.relu(joined) if relu else joined)
    allowed = 1e-5 if dtype == torch.float32 else 2**-8
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, expected) < allowed
    grad_y = torch.randn_like(expected).to(dtype)
    wanted = torch.autograd.grad(expected, doubles, grad_y.double())
    for gradient, want in zip(torch.autograd.grad(y, maps, grad_y), wanted, strict=True):
        assert relative_error(gradient, want) < allowed * 2


def test_instance_norm_of_a_faint_image_on_a_bright_offset(width):
    """Sums of squares in float32 would lose everything here."""
    faint = torch.randn(1, 3, 300, 200, dtype=torch.float64) + 1000
    y = compiled.instance_norm([faint.float()], False, 1e-5)
    assert relative_error(y, F.instance_norm(faint.float().double())) < 1e-4


def test_operators_are_sound_for_torch():
    """Schemas, fake kernels, autograd registration, and shapes that change under compilation."""
    orders = [0, 1, 2, 3]
    inputs = singles(four_scans()[0])
    checks = torch.library.opcheck
    checks(torch.ops.vimunet.selective_scan.default, (*inputs, orders, 12, True))
    checks(torch.ops.vimunet.selective_scan.default, (*inputs[:6], None, None, orders, 12, True))
    signal = torch.randn(2, 9, 5, requires_grad=True)
    weight, bias = torch.randn(2, 4, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    checks(torch.ops.vimunet.causal_conv_silu.default, (signal, weight, bias, [0, 1]))
    rows = [torch.randn(2, 12, c, requires_grad=True) for c in (3, 4)]
    checks(torch.ops.vimunet.instance_norm.default, (rows, True, 1e-5))


def test_selective_scan_uses_them(monkeypatch):
    assert active_backend("cpu")[0] == "cpp"
    monkeypatch.setattr(scan, "chunked_scan", None)
    inputs = [x.detach().float() for x in random_inputs(1, 20, 5, 3)]
    expected = selective_scan_reference(*(x[0] for x in inputs))
    torch.testing.assert_close(selective_scan(*inputs), expected)


def test_some_inputs_without_gradient():
    inputs = [x.detach().float() for x in random_inputs(1, 20, 5, 3)]
    inputs[1].requires_grad_()
    selective_scan(*inputs).sum().backward()
    y = selective_scan_reference(*(x[0] for x in inputs))
    (expected,) = torch.autograd.grad(y.sum(), inputs[1])
    torch.testing.assert_close(inputs[1].grad, expected)


def test_wrong_arrays_are_refused():
    u, delta, A, B, C, D = (x.detach().float() for x in random_inputs(1, 4, 3, 2))
    y = torch.empty(1, 4, 3)
    rest = (None, None, y, None, None, [0], 4, 1)
    with pytest.raises(ValueError, match=r"`B` must have shape \(k, b, l, n\)"):
        kernels.scan_forward(u, delta, A, u, C, D, *rest)
    with pytest.raises(ValueError, match=r"`borders` must hold"):
        kernels.scan_forward(u, delta, A, B, C, D, None, None, y, None, torch.empty(5), [0], 4, 1)
    with pytest.raises(ValueError, match="`width` must be one of `WIDTHS`"):
        kernels.scan_forward(u, delta, A, B, C, D, *rest, width=3)
    with pytest.raises(ValueError, match="`orders` must be from 0 to 3"):
        kernels.scan_forward(u, delta, A, B, C, D, None, None, y, None, None, [4], 4, 1)
    with pytest.raises(ValueError, match="`columns` must divide l"):
        kernels.scan_forward(u, delta, A, B, C, D, None, None, y, None, None, [2], 3, 1)
    with pytest.raises(ValueError, match="The last axis must be contiguous"):
        kernels.scan_forward(u.mT.contiguous().mT, delta, A, B, C, D, *rest)
    with pytest.raises(TypeError):
        kernels.scan_forward(u, delta, A, B, C, D, None, None, y.double(), None, None, [0], 4, 1)


def test_without_them_the_torch_form_is_named_and_warned_of_once(monkeypatch):
    monkeypatch.setattr(compiled, "kernels", None)
    name, why = active_backend("cpu")
    assert name == "torch"
    assert "`vimunet._kernels` is missing" in why
    inputs = [x.detach().float() for x in random_inputs(1, 20, 5, 3)]
    expected = selective_scan_reference(*(x[0] for x in inputs))
    scan._warn_that_kernels_are_missing.cache_clear()
    with pytest.warns(RuntimeWarning, match="runs in plain torch, several times slower") as caught:
        torch.testing.assert_close(selective_scan(*inputs), expected)
        selective_scan(*inputs)
    assert len(caught) == 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_compiled_and_exported_networks_agree(precision):
    """torch.compile and torch.export see the operators, and no break in the graph."""
    network = build_model("vim_n", depth=3, image_size=64, out_channels=1).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        expected = network(image)
        exported = torch.export.export(network, (image,))
        assert relative_error(exported.module()(image), expected) < 1e-5
        torch._dynamo.reset()
        compiled_network = torch.compile(network, backend="aot_eager", fullgraph=True)
        assert relative_error(compiled_network(image), expected) < 1e-5
    targets = {str(node.target) for node in exported.graph.nodes}
    operators = {"selective_scan", "causal_conv_silu", "instance_norm"}
    assert {f"vimunet.{name}.default" for name in operators} <= targets


def test_a_compiled_network_learns():
    torch._dynamo.reset()
    network = build_model("vim_n", depth=3, image_size=64, out_channels=1, drop_path_rate=0.0)
    image = torch.randn(2, 1, 64, 64)
    gradients = []
    for forward in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        network.zero_grad()
        forward(image).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for eager, traced in zip(*gradients, strict=True):
        assert relative_error(traced, eager) < 1e-4


def test_who_only_predicts_never_loads_the_compiler_of_torch():
    """It takes seconds."""
    code = """
import sys, numpy, vimunet
from vimunet.representation import Boundaries
model = vimunet.TrainedModel(vimunet.build_model("vim_n", depth=4), Boundaries())
vimunet.segment(numpy.eye(40), model, precision="float32")
from vimunet.models import compiled
print("torch._dynamo" in sys.modules, compiled.runs())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="only glibc is told to keep memory")
def test_memory_is_kept_for_a_while_and_given_back():
    """In a process of its own: what this one has freed before would be used again."""
    script = """
from pathlib import Path
import numpy as np
from vimunet.models.compiled import memory_kept

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

def use():
    buffers = [np.ones(20 * 2**20, np.uint8) for _ in range(20)], np.ones(200 * 2**20, np.uint8)

before = resident()
with memory_kept():
    use()
    print(resident() - before)
print(resident() - before)
use()
print(resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    kept, after, later = map(int, done.stdout.split())
    assert kept > 500
    assert max(after, later) < 50
