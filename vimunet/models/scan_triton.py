"""The selective scan for GPUs, forward and backward, in Triton (CUDA, ROCm, XPU).

`scan.py` says what a selective scan is and decides who computes it; `scan_triton_kernels.py` holds
the kernels. Nothing here imports Triton before the first call. Not measured on a GPU.

One program per image and block of channels that walks along the tokens would leave a GPU nearly
empty: a Vim sees few images at a time, and each as thousands of tokens. So the tokens are cut into
chunks of 16 that are worked on at the same time, in three passes. (1) Each chunk runs from an empty
state and leaves its last state. (2) The chunks are joined one after the other: over a whole chunk a
state decays by exp(A * sum of delta). (3) Each chunk runs again, now from its true state, and
writes y. The backward pass does the same with the gradient of
the state from the last token to the first, and recomputes the states in registers. Kept for it are
the states at the chunk borders, for 16 states as much as one float32 copy of `u`.

The price: decays are computed twice forward and twice backward, and pass 2 is a loop over l / 16
chunks. With so many images and channels that one program each would fill the GPU, a single pass
would be faster. Inside a chunk the recurrence is a plain loop in registers, 2 operations per state;
`tl.associative_scan` would do it with exchanges between threads and has no advantage for 16 tokens.

Sums run in a fixed order, without atomic additions: the same input gives the same bits.
"""

import contextlib
import functools
import importlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Lower bit: backwards; upper bit: down the columns.
_CODES = {"forward": 0, "reverse": 1, "columns": 2, "columns-reverse": 3}

# Tokens of a chunk, channels of a block: two channels per thread of the one warp of a program. What
# compiling for sm_90 shows (Triton 3.9, no run): 5, 7 and 28 instructions per token, channel and
# state in passes 1 and 3 and in the gradients, with 110, 184 and 255 registers; only the gradients
# spill, one read per 28 instructions.
_TILE = {"TOKENS": 16, "CHANNELS": 64, "num_warps": 1}
_OLDEST_TRITON = (3, 3)


@functools.cache
def triton_problem() -> str | None:
    """Tell why `triton_selective_scan` cannot be used here.

    Returns:
        One sentence without its full stop, or None if it can be used: with tensors on the GPU, or
        on the CPU where the environment has TRITON_INTERPRET=1, Triton's slow mode for tests.
    """
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return f"Triton is not installed ({error})"
    release = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if release < _OLDEST_TRITON:
        return f"Triton {triton.__version__} is too old, tuples in kernels came with 3.3"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    try:
        triton.runtime.driver.active.get_current_target()
    except RuntimeError as error:
        return f"Triton finds no GPU ({error})"
    return None


def triton_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    orders: Sequence[str] = ("forward",),
    grid: tuple[int, int] | None = None,
    delta_bias: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """Same result as `selective_scan`, which checks the shapes and calls this on a GPU.

    Any strides will do; nothing larger than A is copied. The state is float32. Differs from the
    other backends in one point: a gate with bfloat16 input gets its gradient from a y that was
    rounded to bfloat16.

    Args:
        u: (k, b, l, d) input of each scan, float32, bfloat16 or float16.
        delta: (k, b, l, d) step size, > 0; or, with `delta_bias`, what softplus makes it from.
        A: (k, d, n) decay rate, < 0. Unit: 1 / token.
        B: (k, b, l, n) input weights.
        C: (k, b, l, n) output weights.
        D: (k, d) skip weights.
        orders: k orders in which the scans visit the tokens, as in
            `selective_scan`. At most 31.
        grid: (rows, columns) of the tokens, needed for the two orders down the columns.
        delta_bias: (k, d) is added to `delta` before softplus.
        gate: (b, l, d) the result is multiplied by silu(gate).

    Returns:
        (b, l, d) sum over the scans, in the dtype of `u`. Can be differentiated once.

    Raises:
        ValueError: If `u` is float64.
        RuntimeError: If Triton cannot be used, with the reason of `triton_problem`.
    """
    if problem := triton_problem():
        raise RuntimeError(f"`triton_selective_scan` must have Triton and a GPU: {problem}.")
    if u.dtype == torch.float64:
        raise ValueError(
            "`u` must be float32, bfloat16 or float16, got torch.float64. "
            "Call `selective_scan`, which computes float64 in plain torch."
        )
    # Two bits per scan, the first scan in the lowest.
    code = sum(_CODES[order] << (2 * i) for i, order in enumerate(orders))
    return _TritonScan.apply(u, delta, A, B, C, D, delta_bias, gate, code, grid or (1, 1))


class _TritonScan(torch.autograd.Function):
    """The three passes in each direction; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        delta_bias: Tensor | None,
        gate: Tensor | None,
        orders: int,
        grid: tuple[int, int],
    ) -> Tensor:
        """Return the sum of the scans (b, l, d), gated."""
        kernels = _kernels()
        scans, images, length, channels = u.shape
        n = A.shape[2]
        chunks, blocks = _cut(length, channels)
        rates, skip = A.float().mT.contiguous(), D.float().contiguous()  # (k, n, d), (k, d)
        bias = None if delta_bias is None else delta_bias.float().contiguous()
        weights_B, weights_C = _float32(u, 2, scans, images, chunks, n, _TILE["TOKENS"])
        states = _float32(u, scans, images, chunks, n, channels)
        spans = _float32(u, scans, images, chunks, channels)
        parts = _float32(u, scans, images, length, channels)
        differentiable = any(ctx.needs_input_grad)
        y = u.new_empty(images, length, channels) if differentiable and gate is not None else None
        gated = u.new_empty(images, length, channels)
        sizes = (orders, images, length, *grid)
        sources = (*_strided(u), *_strided(delta), bias, rates)
        with _device(u):
            kernels.gather_weights[chunks, scans * images](
                *_strided(B), *_strided(C), weights_B, weights_C, *sizes, **_weights_tile(n)
            )
            kernels.chunk_states[chunks, blocks, scans * images](
                *sources, weights_B, states, spans, *sizes, channels, STATES=n, **_TILE
            )
            _join(states, spans, rates, backward=False)
            kernels.outputs[chunks, blocks, scans * images](
                *(*sources, weights_B, weights_C, skip, states, parts, *sizes, channels),
                STATES=n,
                **_TILE,
            )
            kernels.gate_outputs[chunks, blocks, images](
                *(parts, *_strided(gate), y, gated, images, length, channels), SCANS=scans, **_TILE
            )
        if differentiable:
            kept = (u, delta, bias, rates, weights_B, weights_C, skip, gate, y, states, spans)
            ctx.save_for_backward(*kept)
            ctx.sizes = sizes
            ctx.dtypes = [None if x is None else x.dtype for x in (A, B, C, D, delta_bias)]
        return gated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the six inputs, of the bias and of the gate."""
        kernels = _kernels()
        u, delta, bias, rates, weights_B, weights_C, skip, gate, y, states, spans = (
            ctx.saved_tensors
        )
        scans, images, length, channels = u.shape
        n = rates.shape[1]
        chunks, blocks = _cut(length, channels)
        dtype_A, dtype_B, dtype_C, dtype_D, dtype_bias = ctx.dtypes

        grads, grad_A = torch.empty_like(states), torch.empty_like(states)
        grad_D = torch.empty_like(spans)
        grad_bias = None if bias is None else torch.empty_like(spans)
        grad_u, grad_delta = u.new_empty(u.shape), delta.new_empty(u.shape)
        grad_B = u.new_empty(scans, images, length, n, dtype=dtype_B)
        grad_C = u.new_empty(scans, images, length, n, dtype=dtype_C)
        parts_B, parts_C = _float32(u, 2, scans, images, chunks, blocks, n, _TILE["TOKENS"])
        grad_y, grad_gate = grad, None
        with _device(u):
            if gate is not None:
                grad_y = _float32(u, images, length, channels)
                grad_gate = gate.new_empty(gate.shape)
                kernels.gate_gradients[chunks, blocks, images](
                    *(*_strided(grad), *_strided(gate), y, grad_y, grad_gate, length, channels),
                    **_TILE,
                )
            kernels.chunk_gradients[chunks, blocks, scans * images](
                *(*_strided(grad_y), *_strided(delta), bias, rates, weights_C, grads),
                *(*ctx.sizes, channels),
                STATES=n,
                **_TILE,
            )
            _join(grads, spans, rates, backward=True)
            kernels.gradients[chunks, blocks, scans * images](
                *(*_strided(grad_y), *_strided(u), *_strided(delta), bias, rates),
                *(weights_B, weights_C, skip, states, grads, grad_u, grad_delta),
                *(grad_A, parts_B, parts_C, grad_D, grad_bias, *ctx.sizes, channels),
                STATES=n,
                **_TILE,
            )
            kernels.scatter_gradients[chunks, scans * images](
                *(parts_B, parts_C, grad_B, grad_C, blocks, *ctx.sizes), **_weights_tile(n)
            )
        return (
            grad_u,
            grad_delta,
            grad_A.sum((1, 2)).mT.to(dtype_A),
            grad_B,
            grad_C,
            grad_D.sum((1, 2)).to(dtype_D),
            None if grad_bias is None else grad_bias.sum((1, 2)).to(dtype_bias),
            grad_gate,
            None,
            None,
        )


def _join(states: Tensor, spans: Tensor, rates: Tensor, backward: bool) -> None:
    """Join the chunks in place: states (k, b, chunks, n, d)."""
    scans, images, chunks, n, channels = states.shape
    _, blocks = _cut(1, channels)
    _kernels().join_chunks[blocks, n, scans * images](
        states, spans, rates, images, chunks, channels, STATES=n, BACKWARD=backward, **_TILE
    )


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("vimunet.models.scan_triton_kernels")


def _cut(length: int, channels: int) -> tuple[int, int]:
    """Return the numbers of chunks of tokens and of blocks of channels."""
    return -(-length // _TILE["TOKENS"]), -(-channels // _TILE["CHANNELS"])


def _weights_tile(n: int) -> dict[str, int]:
    """Return the sizes of a tile of B or C; those of a tile in Triton must be powers of two."""
    return {"STATES": n, "STATES_POWER": 1 << (n - 1).bit_length(), "TOKENS": _TILE["TOKENS"]}


def _strided(tensor: Tensor | None) -> tuple[Any, ...]:
    """Return a tensor and its strides, as arguments of a kernel; no gate is passed as None."""
    return (None, 0, 0, 0) if tensor is None else (tensor, *tensor.stride())


def _float32(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the device of a tensor the current one, for Triton launches there."""
    if tensor.device.type == "cpu":  # interpreted
        return contextlib.nullcontext()
    return torch.get_device_module(tensor.device).device(tensor.device)
