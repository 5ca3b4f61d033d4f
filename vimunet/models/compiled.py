"""The compiled kernels of `vimunet._kernels` as torch operators, on the CPU in float32 or bfloat16.

Three operations, each with its gradient: `selective_scan`, `causal_conv_silu`, `instance_norm`.
They are registered with torch (`torch.ops.vimunet`), so that autograd, torch.compile and
torch.export know them. What they compute, and what computes it elsewhere, is written where they
are called: in `scan.py`, `mamba.py` and `unet.py`. Axis letters: k scans, b images, c channels,
l tokens, d inner channels, n state size.
"""

import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

kernels: Any = None
"""The compiled module, or None; then `problem` says why."""

problem = ""
try:
    kernels = importlib.import_module("vimunet._kernels")
except ImportError as error:  # not built, or built for another system
    problem = str(error)

DTYPES = (torch.float32, torch.bfloat16)


def bfloat16_is_fast() -> bool:
    """Tell whether this processor multiplies bfloat16 numbers in hardware (AVX512-BF16, AMX)."""
    return kernels is not None and kernels.BFLOAT16


_lock = threading.Lock()
_keepers = 0


@contextmanager
def memory_kept() -> Iterator[None]:
    """Let freed memory stay in the process meanwhile; give it back at the end.

    The maps of a network are so large that the C library asks the system for each of them, and the
    system clears each of their pages again: a fifth of the time of a network on the CPU. Does
    nothing without the kernels, and outside of Linux's glibc.
    """
    global _keepers
    with _lock:
        _keepers += 1
        if kernels is not None and _keepers == 1:
            kernels.keep_memory(True)
    try:
        yield
    finally:
        with _lock:
            _keepers -= 1
            if kernels is not None and _keepers == 0:
                kernels.keep_memory(False)


def runs(*tensors: Tensor | None) -> bool:
    """Tell whether the kernels can compute with these tensors as they are."""
    return kernels is not None and all(
        tensor.device.type == "cpu" and tensor.dtype in DTYPES
        for tensor in tensors
        if tensor is not None
    )


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    orders: Sequence[int],
    columns: int,
) -> Tensor:
    """Compute `vimunet.models.scan.selective_scan`, whose arguments these are.

    If all activations are bfloat16 they are read and written so; else everything is float32.

    Args:
        u: (k, b, l, d).
        delta: (k, b, l, d).
        A: (k, d, n).
        B: (k, b, l, n).
        C: (k, b, l, n).
        D: (k, d).
        bias: (k, d) of the steps, or None.
        gate: (b, l, d), or None.
        orders: (k) indices into `scan.ORDERS`.
        columns: Columns of the token grid.

    Returns:
        (b, l, d), in the dtype of `u`.
    """
    dtype = u.dtype
    activations = [u, delta, B, C] + ([] if gate is None else [gate])
    common = torch.float32
    if all(tensor.dtype == torch.bfloat16 for tensor in activations):
        common = torch.bfloat16
    u, delta, B, C = (_last_contiguous(tensor.to(common)) for tensor in (u, delta, B, C))
    if gate is not None:
        gate = _last_contiguous(gate.to(common))
    A, D = A.float().contiguous(), D.float().contiguous()
    if bias is not None:
        bias = bias.float().contiguous()
    inputs = (u, delta, A, B, C, D, bias, gate)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y, _, _ = _scan(*inputs, list(orders), columns, keep)
    return y.to(dtype)


def causal_conv_silu(signal: Tensor, weight: Tensor, bias: Tensor, orders: Sequence[int]) -> Tensor:
    """Convolve each channel along the tokens in k directions without looking ahead; then SiLU.

    Args:
        signal: (b, l, d); float32 or bfloat16.
        weight: (k, taps, d); the last tap weighs the token itself.
        bias: (k, d).
        orders: (k) of 0 (forward) and 1 (reverse: "ahead" is towards token 0).

    Returns:
        (k, b, l, d), in the dtype of `signal`.
    """
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    return _conv(_last_contiguous(signal), weight, bias, list(orders))


def instance_norm(maps: Sequence[Tensor], relu: bool, eps: float) -> Tensor:
    """Join maps along their channels and give each channel of each image mean 0 and variance 1.

    Args:
        maps: (b, c, [z,] y, x) each, of one dtype, float32 or bfloat16; channels-last, or copied
            so.
        relu: Apply a ReLU to the maps before.
        eps: Added to the variance.

    Returns:
        (b, sum of c, [z,] y, x), channels-last.
    """
    size = maps[0].shape[2:]
    form = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    rows = []
    for part in maps:
        steps = part.stride()[2:]
        gaps = any(steps[i] != steps[i + 1] * size[i + 1] for i in range(len(size) - 1))
        if part.stride(1) != 1 or gaps:
            part = part.contiguous(memory_format=form)
        rows.append(part.movedim(1, -1).flatten(1, -2))
    y, _, _ = _norm(rows, relu, eps)
    return y.unflatten(1, size).movedim(-1, 1)


_library = torch.library.Library("vimunet", "DEF")


def _operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function `torch.ops.vimunet.NAME`, for the CPU.

    As `torch.library.custom_op` does, whose operators import torch's compiler when they are first
    called: three seconds for everybody who only predicts.
    """

    def register(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=())
        tags = (torch.Tag.pt2_compliant_tag,)
        torch.library.define(f"vimunet::{name}", schema, lib=_library, tags=tags)
        torch.library.impl(f"vimunet::{name}", "cpu", function, lib=_library)
        return getattr(torch.ops.vimunet, name)

    return register


def _last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


@_operator("selective_scan")
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    orders: Sequence[int],
    columns: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and if `keep` what the backward pass needs besides the inputs.

    These are the sum before the gate (b, l, d) and the states at the borders of chunks, together
    about twice as many numbers as the input of one scan and image has.
    """
    y, total, borders = _scan_outputs(u, delta, A, B, C, D, bias, gate, orders, columns, keep)
    kernels.scan_forward(
        *map(_plain, (u, delta, A, B, C, D, bias, gate, y)),
        total if keep and gate is not None else None,
        borders if keep else None,
        list(orders),
        columns,
        torch.get_num_threads(),
    )
    return y, total, borders


@torch.library.register_fake("vimunet::selective_scan")
def _scan_outputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    orders: Sequence[int],
    columns: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scans, batch, length, channels = u.shape
    width = kernels.WIDTHS[0]
    lanes = -(-channels // width) * width
    chunks = -(-length // kernels.CHUNK)
    sums = (batch, length, channels) if keep and gate is not None else (0, 0, 0)
    states = scans * chunks * batch * lanes * A.shape[-1] if keep else 0
    return u.new_empty(batch, length, channels), A.new_empty(sums), A.new_empty(states)


def _scan_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.orders, ctx.columns, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _scan_backward(ctx: Any, grad_y: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, total, borders = ctx.saved_tensors
    bias, gate = inputs[-2:]
    grads = list(_scan_gradients(grad_y, *inputs, total, borders, ctx.orders, ctx.columns))
    if bias is None:
        grads[6] = None
    if gate is None:
        grads[7] = None
    return *grads, None, None, None


@_operator("selective_scan_backward")
def _scan_gradients(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    total: Tensor,
    borders: Tensor,
    orders: Sequence[int],
    columns: int,
) -> list[Tensor]:
    """Return the gradients of the eight tensors; empty ones for those that are None."""
    grads = _scan_gradient_outputs(
        grad_y, u, delta, A, B, C, D, bias, gate, total, borders, orders, columns
    )
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias, grad_gate = grads
    float_B, float_C = torch.empty(B.shape), torch.empty(C.shape)
    kernels.scan_backward(
        *map(_plain, (grad_y.contiguous(), u, delta, A, B, C, D, bias, gate)),
        None if gate is None else total,
        borders,
        grad_u,
        grad_delta,
        grad_A,
        float_B,
        float_C,
        grad_D,
        None if bias is None else grad_bias,
        None if gate is None else grad_gate,
        list(orders),
        columns,
        torch.get_num_threads(),
    )
    grad_B.copy_(float_B)
    grad_C.copy_(float_C)
    return grads


@torch.library.register_fake("vimunet::selective_scan_backward")
def _scan_gradient_outputs(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    total: Tensor,
    borders: Tensor,
    orders: Sequence[int],
    columns: int,
) -> list[Tensor]:
    return [
        A.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in (u, delta, A, B, C, D, bias, gate)
    ]


torch.library.register_autograd(
    "vimunet::selective_scan", _scan_backward, setup_context=_scan_context
)


@_operator("causal_conv_silu")
def _conv(signal: Tensor, weight: Tensor, bias: Tensor, orders: Sequence[int]) -> Tensor:
    y = signal.new_empty(weight.shape[0], *signal.shape)
    kernels.convolve(*map(_plain, (signal, weight, bias, y)), list(orders), torch.get_num_threads())
    return y


@torch.library.register_fake("vimunet::causal_conv_silu")
def _(signal: Tensor, weight: Tensor, bias: Tensor, orders: Sequence[int]) -> Tensor:
    return signal.new_empty(weight.shape[0], *signal.shape)


def _conv_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.orders = inputs
    ctx.save_for_backward(*tensors)


def _conv_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    return *_conv_gradients(grad_y, *ctx.saved_tensors, ctx.orders), None


@_operator("causal_conv_silu_backward")
def _conv_gradients(
    grad_y: Tensor, signal: Tensor, weight: Tensor, bias: Tensor, orders: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    grads = signal.new_empty(signal.shape), torch.empty_like(weight), torch.empty_like(bias)
    kernels.convolve_backward(
        *map(_plain, (grad_y.contiguous(), signal, weight, bias, *grads)),
        list(orders),
        torch.get_num_threads(),
    )
    return grads


@torch.library.register_fake("vimunet::causal_conv_silu_backward")
def _(
    grad_y: Tensor, signal: Tensor, weight: Tensor, bias: Tensor, orders: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return signal.new_empty(signal.shape), torch.empty_like(weight), torch.empty_like(bias)


torch.library.register_autograd(
    "vimunet::causal_conv_silu", _conv_backward, setup_context=_conv_context
)


@_operator("instance_norm")
def _norm(maps: Sequence[Tensor], relu: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the joined and normalised (b, pixels, c) maps, and scale and shift (b, c)."""
    y, scale, shift = _norm_outputs(maps, relu, eps)
    kernels.instance_norm(
        [_plain(part) for part in maps], relu, eps, scale, shift, y, torch.get_num_threads()
    )
    return y, scale, shift


@torch.library.register_fake("vimunet::instance_norm")
def _norm_outputs(maps: Sequence[Tensor], relu: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    batch, pixels, _ = maps[0].shape
    channels = sum(part.shape[2] for part in maps)
    scale = maps[0].new_empty(batch, channels, dtype=torch.float32)
    return maps[0].new_empty(batch, pixels, channels), scale, torch.empty_like(scale)


def _norm_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    maps, ctx.relu, _ = inputs
    ctx.save_for_backward(*maps, *output[1:])


def _norm_backward(ctx: Any, grad_y: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    *maps, scale, shift = ctx.saved_tensors
    return _norm_gradients(grad_y, maps, ctx.relu, scale, shift), None, None


@_operator("instance_norm_backward")
def _norm_gradients(
    grad_y: Tensor, maps: Sequence[Tensor], relu: bool, scale: Tensor, shift: Tensor
) -> list[Tensor]:
    grads = [part.new_empty(part.shape) for part in maps]
    kernels.instance_norm_backward(
        _plain(grad_y.contiguous()),
        [_plain(part) for part in maps],
        relu,
        scale,
        shift,
        grads,
        torch.get_num_threads(),
    )
    return grads


@torch.library.register_fake("vimunet::instance_norm_backward")
def _(
    grad_y: Tensor, maps: Sequence[Tensor], relu: bool, scale: Tensor, shift: Tensor
) -> list[Tensor]:
    return [part.new_empty(part.shape) for part in maps]


torch.library.register_autograd(
    "vimunet::instance_norm", _norm_backward, setup_context=_norm_context
)


def _plain(tensor: Tensor | None) -> Tensor | None:
    """Detach, as DLPack demands."""
    return tensor if tensor is None else tensor.detach()
