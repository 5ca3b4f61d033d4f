"""The scan in Triton against a loop in float64, in Triton's interpreter or on a GPU (-m gpu)."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vimunet.models import scan, scan_triton
from vimunet.models.scan import ORDERS, selective_scan
from vimunet.models.scan_triton import triton_problem, triton_selective_scan

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(
    not (INSTALLED and INTERPRETED), reason="needs Triton and TRITON_INTERPRET=1: `make triton`"
)
on_gpu = pytest.mark.skipif(
    not (INSTALLED and torch.cuda.is_available()) or INTERPRETED, reason="needs Triton and a GPU"
)
on_devices = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=interpreted),
        pytest.param("cuda", marks=[pytest.mark.gpu, on_gpu]),
    ],
)

NAMES = ["u", "delta", "A", "B", "C", "D", "delta_bias", "gate"]


def random_inputs(k, b, l, d, n, bias=False, gate=False) -> dict[str, Tensor]:  # noqa: E741
    """Random float64 inputs by name; a state outlives a chunk of 16 tokens."""
    inputs = {
        "u": torch.randn(k, b, l, d, dtype=torch.float64),
        "delta": torch.rand(k, b, l, d, dtype=torch.float64) * 0.2,
        "A": -torch.exp(torch.randn(k, d, n, dtype=torch.float64)),
        "B": torch.randn(k, b, l, n, dtype=torch.float64),
        "C": torch.randn(k, b, l, n, dtype=torch.float64),
        "D": torch.randn(k, d, dtype=torch.float64),
    }
    if bias:
        inputs["delta"] = torch.randn(k, b, l, d, dtype=torch.float64) * 4
        inputs["delta_bias"] = torch.randn(k, d, dtype=torch.float64) - 4
    if gate:
        inputs["gate"] = torch.randn(b, l, d, dtype=torch.float64)
    return inputs


def visits(order: str, length: int, grid: tuple[int, int] | None) -> list[int]:
    """Tokens in the order in which a scan visits them."""
    tokens = list(range(length))
    if order.startswith("columns"):
        rows, columns = grid
        tokens = [row * columns + column for column in range(columns) for row in range(rows)]
    return tokens[::-1] if order.endswith("reverse") else tokens


def definition(u, delta, A, B, C, D, delta_bias=None, gate=None, *, orders, grid=None) -> Tensor:
    """The recurrence of each scan, one token after the other."""
    if delta_bias is not None:
        delta = functional.softplus(delta + delta_bias[:, None, None])
    y = [0.0] * u.shape[2]
    for i, order in enumerate(orders):
        h = torch.zeros(u.shape[1], *A.shape[1:], dtype=u.dtype)
        for t in visits(order, u.shape[2], grid):
            step = delta[i, :, t, :, None]
            h = torch.exp(step * A[i]) * h + step * B[i, :, t, None] * u[i, :, t, :, None]
            y[t] = y[t] + (h * C[i, :, t, None]).sum(-1) + D[i] * u[i, :, t]
    total = torch.stack(y, dim=1)
    return total if gate is None else total * functional.silu(gate)


def error(value: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    assert value.shape == expected.shape
    scale = expected.abs().max().clamp(min=1e-30)
    return ((value.detach().cpu().double() - expected).abs().max() / scale).item()


def check(inputs, device, orders, grid=None, dtype=torch.float32, limits=(1e-5, 1e-4)) -> None:
    """Compare result and all gradients with the definition in float64."""
    cast = {name: x.to(device, dtype).requires_grad_() for name, x in inputs.items()}
    exact = {name: x.detach().cpu().double().requires_grad_() for name, x in cast.items()}
    expected = definition(**exact, orders=orders, grid=grid)
    y = triton_selective_scan(**cast, orders=orders, grid=grid)
    assert y.dtype == dtype
    assert error(y, expected.detach()) < limits[0]
    weights = torch.randn_like(expected)
    # Given with strides of its own, as a gradient may come.
    grad = weights.to(device, dtype).mT.contiguous().mT
    gradients = torch.autograd.grad(y, list(cast.values()), grad)
    wanted = torch.autograd.grad(expected, list(exact.values()), grad.cpu().double())
    for name, gradient, value in zip(cast, gradients, wanted, strict=True):
        assert gradient.dtype == dtype
        assert error(gradient, value) < limits[1], name


@on_devices
def test_two_tokens_by_hand(device):
    u, delta = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.5])
    A, D = torch.tensor([[[-1.0, -2.0]]]), torch.tensor([[10.0]])
    B = torch.tensor([[[[1.0, 0.5], [2.0, -1.0]]]])
    C = torch.tensor([[[[1.0, 1.0], [-1.0, 2.0]]]])
    inputs = (u.reshape(1, 1, 2, 1), delta.reshape(1, 1, 2, 1), A, B, C, D)
    y = triton_selective_scan(*(x.to(device) for x in inputs))
    # Token 0: states 1*1*2 = 2 and 1*0.5*2 = 1, so y = 2 + 1 + 10*2.
    # Token 1: states exp(-0.5)*2 + 0.5*2*3 and exp(-1)*1 - 0.5*1*3.
    first, second = A.new_tensor([-0.5, -1.0]).exp() * A.new_tensor([2, 1]) + A.new_tensor(
        [3, -1.5]
    )
    expected = torch.stack([A.new_tensor(23.0), -first + 2 * second + 30])
    torch.testing.assert_close(y.cpu().flatten(), expected)


@on_devices
@pytest.mark.parametrize("order", ORDERS)
def test_each_order(device, order):
    check(random_inputs(1, 1, 35, 5, 1), device, [order], grid=(5, 7))


@on_devices
@pytest.mark.parametrize(("bias", "gate"), [(False, False), (True, False), (False, True)])
def test_sum_of_scans_with_and_without_bias_and_gate(device, bias, gate):
    orders = ["columns", "reverse"]
    check(random_inputs(2, 2, 6, 5, 3, bias, gate), device, orders, grid=(3, 2))


@on_devices
def test_four_orders_at_once(device):
    check(random_inputs(4, 1, 6, 3, 1, True, True), device, ORDERS, grid=(3, 2))


@on_devices
@pytest.mark.parametrize(
    ("length", "channels", "states"),
    [(1, 5, 16), (16, 64, 1), (37, 5, 16), (18, 70, 5)],
    ids=["one token", "one full tile", "odd", "two blocks of channels"],
)
def test_sizes(device, length, channels, states):
    check(random_inputs(1, 1, length, channels, states, True, True), device, ["reverse"])


@on_devices
def test_more_chunks_than_are_joined_at_a_time(device):
    inputs = random_inputs(1, 1, 300, 2, 1)
    inputs["A"] /= 10
    check(inputs, device, ["forward"])


@on_devices
def test_small_steps_are_exact_to_float32(device):
    """1 + exp(x) would lose four digits of a step of 0.0003."""
    inputs = random_inputs(1, 1, 5, 3, 1, bias=True)
    inputs["delta"].fill_(-5.0)
    inputs["D"].zero_()
    check(inputs, device, ["forward"], limits=(2e-6, 2e-6))


@on_devices
@pytest.mark.parametrize("step", [1e-30, 1e4])
def test_extreme_steps_stay_finite(device, step):
    inputs = random_inputs(1, 1, 20, 3, 2)
    inputs["delta"].fill_(step)
    check(inputs, device, ["forward"])


@on_devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_and_float32_state(device, dtype):
    limit = 4 * torch.finfo(dtype).eps
    inputs = random_inputs(1, 1, 18, 3, 1, True, True)
    check(inputs, device, ["reverse"], dtype=dtype, limits=(limit, limit))


@on_devices
def test_state_is_float32_for_bfloat16_input(device):
    """400 small steps add up; in bfloat16 the sum would stand still after 256 of them."""
    u = torch.ones(1, 1, 400, 1, dtype=torch.bfloat16, device=device)
    A, D = torch.tensor([[[-1e-6]]], device=device), torch.zeros(1, 1, device=device)
    y = triton_selective_scan(u, u * 2**-9, A, u, u, D)
    assert y[0, -1, 0].item() == pytest.approx(400 * 2**-9, rel=0.01)


@on_devices
def test_mixed_dtypes_and_views(device):
    """As in a network: u expanded, B and C cut from one buffer, gate cut from another."""
    inputs = random_inputs(2, 2, 18, 3, 2, bias=True)
    signal = torch.randn(2, 18, 6, dtype=torch.bfloat16)
    buffer = torch.randn(2, 2, 18, 7, dtype=torch.bfloat16)

    def views(move):
        leaves = {
            name: move(x.float()).requires_grad_()
            for name, x in inputs.items()
            if name not in "uBC"
        }
        leaves |= {"signal": move(signal).requires_grad_(), "buffer": move(buffer).requires_grad_()}
        half, gate = leaves["signal"].chunk(2, dim=-1)
        _, B, C = leaves["buffer"].split([3, 2, 2], dim=-1)
        named = {name: x for name, x in leaves.items() if name in NAMES}
        return leaves, {"u": half.expand(2, *half.shape), "B": B, "C": C, "gate": gate, **named}

    leaves, strided = views(lambda x: x.to(device))
    exact, exact_strided = views(lambda x: x.double())
    orders = ["forward", "columns"]
    y = triton_selective_scan(**strided, orders=orders, grid=(6, 3))
    expected = definition(**exact_strided, orders=orders, grid=(6, 3))
    assert error(y, expected.detach()) < 0.02
    weights = torch.randn_like(y, device="cpu").to(device)
    gradients = torch.autograd.grad(y, list(leaves.values()), weights)
    wanted = torch.autograd.grad(expected, list(exact.values()), weights.cpu().double())
    for (name, leaf), gradient, value in zip(leaves.items(), gradients, wanted, strict=True):
        assert gradient.dtype == leaf.dtype
        assert error(gradient, value) < 0.02, name


@on_devices
def test_keeps_no_states_of_all_tokens_for_the_backward_pass(device):
    sizes = []
    inputs = random_inputs(1, 1, 64, 64, 16)
    inputs = {name: x.float().to(device).requires_grad_() for name, x in inputs.items()}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        triton_selective_scan(**inputs)
    assert max(sizes) <= inputs["u"].numel()  # all states would be 16 times as many


@on_devices
def test_selective_scan_calls_it_except_for_float64(device, monkeypatch):
    monkeypatch.setattr(scan, "active_backend", lambda device: ("triton", ""))
    calls = []

    def counted(*args, **options):
        calls.append(args)
        return triton_selective_scan(*args, **options)

    monkeypatch.setattr(scan, "triton_selective_scan", counted)
    exact = random_inputs(2, 1, 6, 2, 1, True, True)
    options = {"orders": ["reverse", "columns"], "grid": (2, 3)}
    expected = definition(**exact, **options)
    for dtype, limit, count in [(torch.float32, 1e-5, 1), (torch.float64, 1e-12, 1)]:
        y = selective_scan(**{name: x.to(device, dtype) for name, x in exact.items()}, **options)
        assert error(y, expected) < limit
        assert len(calls) == count


@on_devices
def test_float64_is_refused(device):
    with pytest.raises(ValueError, match="`u` must be float32, bfloat16 or float16, got torch.flo"):
        triton_selective_scan(*(x.to(device) for x in random_inputs(1, 1, 2, 1, 1).values()))


@on_devices
def test_can_be_differentiated_only_once(device):
    inputs = [x.float().to(device).requires_grad_() for x in random_inputs(1, 1, 2, 1, 1).values()]
    y = triton_selective_scan(*inputs)
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_size_of_a_network_on_a_gpu(dtype):
    inputs = random_inputs(4, 2, 1024, 384, 16, True, True)
    limits = (1e-5, 1e-4) if dtype == torch.float32 else (0.02, 0.02)
    check(inputs, "cuda", ORDERS, grid=(32, 32), dtype=dtype, limits=limits)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs Triton: `make triton`")
@pytest.mark.parametrize("target", ["cuda", "rocm"])
def test_kernels_compile_without_a_gpu(target, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "tests/triton_compile.py", target],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 9


def test_import_leaves_triton_alone():
    code = "import sys, vimunet.models.scan_triton; print('triton' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "False"


def fake_triton(version: str, **driver) -> ModuleType:
    """A module that says it is Triton; its driver has the given attributes."""
    module = ModuleType("triton")
    module.__version__ = version
    module.runtime = ModuleType("triton.runtime")
    module.runtime.driver = ModuleType("triton.runtime.driver")
    vars(module.runtime.driver).update(driver)
    return module


class NoDriver:
    def get_current_target(self):
        raise RuntimeError("0 active drivers")


class Driver:
    def get_current_target(self):
        return "a GPU"


@pytest.mark.parametrize(
    ("module", "interpret", "problem"),
    [
        (None, "0", "Triton is not installed"),
        (fake_triton("3.2.0"), "0", "Triton 3.2.0 is too old"),
        (fake_triton("3.10.1", active=NoDriver()), "0", "Triton finds no GPU (0 active drivers)"),
        (fake_triton("3.10.1", active=Driver()), "0", None),
        (fake_triton("3.10.1", active=NoDriver()), "1", None),
    ],
)
def test_problems_are_named(monkeypatch, module, interpret, problem):
    monkeypatch.setitem(sys.modules, "triton", module)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    triton_problem.cache_clear()
    try:
        found = triton_problem()
    finally:
        triton_problem.cache_clear()
    assert found is None if problem is None else found.startswith(problem)


def test_call_without_triton_says_why(monkeypatch):
    monkeypatch.setattr(scan_triton, "triton_problem", lambda: "Triton is not installed")
    with pytest.raises(RuntimeError, match="must have Triton and a GPU: Triton is not installed."):
        triton_selective_scan(*random_inputs(1, 1, 2, 1, 1).values())
