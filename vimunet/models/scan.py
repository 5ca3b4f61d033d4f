"""The selective scan, the recurrence at the heart of Mamba: its definition and its fast forms.

`selective_scan_reference` is the definition, a loop that can be read in a minute. `selective_scan`
computes several such scans over the same tokens with the fastest backend for the device and is what
the networks call. This module knows nothing of projections, convolutions or images; those are in
`mamba.py` and `vim.py`. Axis letters: k scans, b images, l tokens, d channels, n state size.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from vimunet.models import compiled
from vimunet.models.scan_torch import chunked_scan
from vimunet.models.scan_triton import triton_problem, triton_selective_scan

Order = Literal["forward", "reverse", "columns", "columns-reverse"]
ORDERS: tuple[Order, ...] = get_args(Order)


def selective_scan_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """Run the selective state-space recurrence, one token after the other.

    Each channel carries a hidden state h of n numbers, empty at first. At token t it becomes

        h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * B[t] * u[t]

    and is read as

        y[t] = sum over n of (C[t] * h[t]) + D * u[t].

    The step delta says how much of the past to forget and how much of the present to write; B and C
    say what to write and what to read. All three depend on the input: this is the selection.
    This loop is the definition; `selective_scan` must agree with it (tests/test_scan.py).

    Args:
        u: (b, l, d) input sequence.
        delta: (b, l, d) step size, > 0, already through softplus. Unit: tokens.
        A: (d, n) decay rate, < 0, so that exp(delta * A) lies in (0, 1). Unit: 1 / token.
        B: (b, l, n) input weights.
        C: (b, l, n) output weights.
        D: (d,) skip weights.

    Returns:
        (b, l, d) output, in the dtype of `u`. The state is float32, or float64 if `u` is.

    Raises:
        ValueError: If a shape does not fit `u` and `A`. The message names both shapes.

    Source:
        Gu & Dao 2023, "Mamba", https://arxiv.org/abs/2312.00752, algorithm 2. A is
        discretised exactly (zero-order hold), B by one Euler step as in the authors' code,
        not by the paper's equation 4.

    Examples:
        A state that halves at every token remembers 1, 1/2, 1/4 of an impulse:

        >>> impulse = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1)
        >>> one, halving = torch.ones(1, 3, 1), torch.tensor([[0.5]]).log()
        >>> selective_scan_reference(impulse, one, halving, one, one, torch.zeros(1)).flatten()
        tensor([1.0000, 0.5000, 0.2500])
    """
    _check_shapes("", u, delta, A, B, C, D)
    dtype = u.dtype
    u, delta, A, B, C, D = (tensor.to(state_dtype(dtype)) for tensor in (u, delta, A, B, C, D))
    h = u.new_zeros(u.shape[0], *A.shape)
    y = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)  # (b, d, n)
        h = decay * h + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        y.append((h * C[:, t, None, :]).sum(dim=-1))  # (b, d)
    return (torch.stack(y, dim=1) + D * u).to(dtype)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    orders: Sequence[Order] = ("forward",),
    grid: tuple[int, int] | None = None,
    delta_bias: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """Run k selective scans over the same tokens and add them up.

    Scan i is `selective_scan_reference` on the tokens in `orders[i]`, its output put back in the
    first order. Steps and gate may come before their activation, which then costs no pass over
    memory of its own:

        (sum over i of scan(u[i], softplus(delta[i] + delta_bias[i]), A[i], ...)) * silu(gate)

    `active_backend` tells which code computes it. Autocast has no effect inside: the state is
    float32 (float64 for float64 input) with every backend.

    Args:
        u: (k, b, l, d) input of each scan. An expanded first axis is not copied on the CPU.
        delta: (k, b, l, d) step size, > 0 without `delta_bias`. Unit: tokens.
        A: (k, d, n) decay rate, < 0. Unit: 1 / token.
        B: (k, b, l, n) input weights; may be a view into a larger buffer.
        C: (k, b, l, n) output weights; may be a view into a larger buffer.
        D: (k, d) skip weights.
        orders: How each scan goes through the tokens: "forward" from 0 to l - 1, "reverse" from
            l - 1 to 0, "columns" down each column of the row-major `grid` from left to right,
            "columns-reverse" the same backwards.
        grid: Rows and columns of the tokens, only needed for the last two; their product is l.
        delta_bias: (k, d); if given, the steps are softplus(delta + delta_bias).
        gate: (b, l, d); if given, the sum is multiplied by silu(gate).

    Returns:
        (b, l, d) output, in the dtype of `u`. Can be differentiated once, by all tensors.

    Raises:
        ValueError: If a shape does not fit `u` and `A`, an order is unknown, or `grid` is missing
            or does not hold l tokens.
    """
    columns = _check_scans(u, delta, A, B, C, D, orders, grid, delta_bias, gate)
    backend, _ = active_backend(u.device)
    if backend == "cpp" and u.dtype != torch.float64:
        codes = [ORDERS.index(order) for order in orders]
        return compiled.selective_scan(u, delta, A, B, C, D, delta_bias, gate, codes, columns)
    with torch.autocast(u.device.type, enabled=False):
        if backend == "triton" and u.dtype != torch.float64:
            return triton_selective_scan(
                u, delta, A, B, C, D, orders=orders, grid=grid, delta_bias=delta_bias, gate=gate
            )
        dtype, state = u.dtype, state_dtype(u.dtype)
        u, delta, A, B, C, D = (tensor.to(state) for tensor in (u, delta, A, B, C, D))
        if delta_bias is not None:
            delta = functional.softplus(delta + delta_bias.to(state)[:, None, None])
        run = chunked_scan
        if backend == "mamba_ssm" and state == torch.float32:
            run = _scan_mamba_ssm
        elif u.device.type == "cpu" and compiled.kernels is None:
            _warn_that_kernels_are_missing()
        total = u.new_zeros(())
        for i, order in enumerate(orders):
            tokens = [u[i], delta[i], B[i], C[i]]
            down = order.startswith("columns")
            if down:
                tokens = [_transpose(sequence, columns) for sequence in tokens]
            x, steps, inputs, outputs = tokens
            y = run(x, steps, A[i], inputs, outputs, D[i], order.endswith("reverse"))
            total = total + (_transpose(y, y.shape[1] // columns) if down else y)
        if gate is not None:
            total = total * functional.silu(gate.to(state))
        return total.to(dtype)


def active_backend(device: torch.device | str) -> tuple[str, str]:
    """Tell which code runs `selective_scan` on a device; the one place where it is chosen.

    Args:
        device: Device of the tensors, e.g. "cpu" or "cuda:0".

    Returns:
        Name of the backend, and one sentence why it was taken. float64 always runs in "torch".
    """
    device = torch.device(device)
    if device.type == "cpu":
        if compiled.kernels is None:
            return "torch", f"The compiled `vimunet._kernels` is missing: {compiled.problem}."
        width = compiled.kernels.WIDTHS[0]
        return "cpp", f"`vimunet._kernels` is built; it computes {width} channels at once."
    if device.type not in ("cuda", "xpu"):
        return "torch", f"The chunked scan in plain torch runs on every device, here {device.type}."
    if torch.compiler.is_compiling():
        return "torch", "Inside `torch.compile` the chunked scan in plain torch is traced."
    problem = triton_problem()
    if problem is None:
        return "triton", "Triton is installed and finds the GPU; all scans run in one call."
    try:
        _mamba_ssm_kernel()
    except ImportError as error:
        return "torch", f"Both faster ways are missing: {problem}; `mamba_ssm` neither ({error})."
    return "mamba_ssm", f"`mamba_ssm` is installed; not Triton, the first choice: {problem}."


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which steps, decays and states are kept for an input of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_scans(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    orders: Sequence[Order],
    grid: tuple[int, int] | None,
    delta_bias: Tensor | None,
    gate: Tensor | None,
) -> int:
    """Raise if arguments of `selective_scan` do not fit; return the columns of the token grid."""
    _check_shapes("k", u, delta, A, B, C, D)
    scans, batch, length, channels = u.shape
    unknown = [order for order in orders if order not in ORDERS]
    if unknown or len(orders) != scans:
        raise ValueError(
            f"`orders` must hold {scans} of {', '.join(map(repr, ORDERS))} to fit `u` "
            f"{tuple(u.shape)}, got {tuple(orders)}."
        )
    for name, tensor, shape in [
        ("delta_bias", delta_bias, (scans, channels)),
        ("gate", gate, (batch, length, channels)),
    ]:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"`{name}` must have shape {shape} to fit `u` {tuple(u.shape)}, "
                f"got {tuple(tensor.shape)}."
            )
    needs_grid = any(order.startswith("columns") for order in orders)
    if grid is None:
        if needs_grid:
            raise ValueError("`grid` must be (rows, columns) for an order by columns, got None.")
        return length
    if grid[0] * grid[1] != length:
        raise ValueError(f"`grid` must hold {length} tokens, got {tuple(grid)}.")
    return grid[1]


def _check_shapes(
    scans: Literal["", "k"], u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> None:
    """Raise if a shape does not fit `u` and `A`; with a first axis of k scans if `scans` is "k"."""
    k, more = len(scans), "k, " * len(scans)
    if u.ndim != 3 + k or A.ndim != 2 + k or u.shape[-2] == 0:
        raise ValueError(
            f"`u` must have shape ({more}b, l, d) with l > 0 and `A` ({more}d, n), "
            f"got {tuple(u.shape)} and {tuple(A.shape)}."
        )
    first = tuple(u.shape[:k])
    batch, length, channels = u.shape[k:]
    states = A.shape[-1]
    for name, tensor, shape in [
        ("delta", delta, (*first, batch, length, channels)),
        ("A", A, (*first, channels, states)),
        ("B", B, (*first, batch, length, states)),
        ("C", C, (*first, batch, length, states)),
        ("D", D, (*first, channels)),
    ]:
        if tensor.shape != shape:
            raise ValueError(
                f"`{name}` must have shape {shape} to fit `u` {tuple(u.shape)} and "
                f"`A` {tuple(A.shape)}, got {tuple(tensor.shape)}."
            )


def _transpose(tokens: Tensor, columns: int) -> Tensor:
    """Reorder (b, l, d) tokens of a row-major grid with so many columns to column-major."""
    return tokens.unflatten(1, (-1, columns)).transpose(1, 2).flatten(1, 2)


@functools.cache
def _warn_that_kernels_are_missing() -> None:
    warnings.warn(
        f"The selective scan runs in plain torch, several times slower: the compiled "
        f"`vimunet._kernels` is missing ({compiled.problem}). Install vimunet where a C++ compiler "
        f"is found; `vimunet info` tells more.",
        RuntimeWarning,
        stacklevel=3,
    )


@functools.cache
def _mamba_ssm_kernel() -> Callable[..., Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn


def _scan_mamba_ssm(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool
) -> Tensor:
    """Call the CUDA kernel of mamba_ssm, which wants (b, d, l) and knows only one direction."""
    sequences = [tensor.transpose(1, 2) for tensor in (u, delta, B, C)]
    if reverse:
        sequences = [tensor.flip(-1) for tensor in sequences]
    u, delta, B, C = (tensor.contiguous() for tensor in sequences)
    y = _mamba_ssm_kernel()(u, delta, A.contiguous(), B, C, D.contiguous())
    return (y.flip(-1) if reverse else y).transpose(1, 2)
