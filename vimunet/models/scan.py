"""The selective scan, the recurrence at the heart of Mamba: its definition and its fast forms.

`selective_scan_reference` is the definition, a loop that can be read in a minute. `selective_scan`
computes the same with the fastest backend for the device and is what the networks call. This module
knows nothing of projections, convolutions or images; those are in `mamba.py` and `vim.py`.
Axis letters: b images, l tokens, d channels, n state size.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_kernels: Any = None
_kernels_error = ""
try:
    _kernels = importlib.import_module("vimunet._kernels")
except ImportError as error:  # not built, or built for another system
    _kernels_error = str(error)

Direction = Literal["forward", "reverse"]

# Elements of one (tokens, b, n, d) buffer of the chunked scan. The few buffers of a chunk then stay
# in a core's level-2 cache, and each operation is long enough to outweigh the call from Python.
_CHUNK_ELEMENTS = {"cpu": 2**17, "other": 2**22}
# At least as many tokens per chunk as there are states (16 in every Vim), so that the states saved
# for the backward pass take no more memory than the input itself.
_MIN_CHUNK_TOKENS = 16


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
    _check_shapes(u, delta, A, B, C, D)
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
    direction: Direction = "forward",
) -> Tensor:
    """Same result as `selective_scan_reference`, faster, with little memory, in either direction.

    `active_backend` tells which code computes it. Autocast has no effect inside: the state is
    float32 (float64 for float64 input) with every backend.

    Args:
        u: (b, l, d) input sequence.
        delta: (b, l, d) step size, > 0, already through softplus. Unit: tokens.
        A: (d, n) decay rate, < 0. Unit: 1 / token.
        B: (b, l, n) input weights.
        C: (b, l, n) output weights.
        D: (d,) skip weights.
        direction: "forward" from token 0 to l - 1; "reverse" from l - 1 to 0, the same as flipping
            the tokens of `u`, `delta`, `B`, `C` and of the result, without the copies.

    Returns:
        (b, l, d) output, in the dtype of `u`. Can be differentiated once, by all six inputs.

    Raises:
        ValueError: If a shape does not fit `u` and `A`, or `direction` is unknown.
    """
    _check_shapes(u, delta, A, B, C, D)
    if direction not in ("forward", "reverse"):
        raise ValueError(f"`direction` must be 'forward' or 'reverse', got {direction!r}.")
    dtype = u.dtype
    with torch.autocast(u.device.type, enabled=False):
        u, delta, A, B, C, D = (tensor.to(state_dtype(dtype)) for tensor in (u, delta, A, B, C, D))
        backend, _ = active_backend(u.device)
        if u.dtype == torch.float32 and backend == "cpp":
            y = _CompiledScan.apply(u, delta, A, B, C, D, direction == "reverse")
        elif u.dtype == torch.float32 and backend == "mamba_ssm":
            y = _scan_mamba_ssm(u, delta, A, B, C, D, direction == "reverse")
        else:
            y = _ChunkedScan.apply(u, delta, A, B, C, direction == "reverse") + D * u
        return y.to(dtype)


def active_backend(device: torch.device | str) -> tuple[str, str]:
    """Tell which code runs `selective_scan` on a device; the one place where it is chosen.

    Args:
        device: Device of the tensors, e.g. "cpu" or "cuda:0".

    Returns:
        Name of the backend, and one sentence why it was taken. float64 always runs in "torch".
    """
    device = torch.device(device)
    if device.type == "cpu":
        if _kernels is None:
            return "torch", f"The compiled `vimunet._kernels` is missing: {_kernels_error}."
        if torch.compiler.is_compiling():
            return "torch", "Inside `torch.compile` the chunked scan in plain torch is traced."
        width = _kernels.WIDTHS[0]
        return "cpp", f"`vimunet._kernels` is built; it computes {width} channels at once."
    if device.type != "cuda":
        return "torch", f"The chunked scan in plain torch runs on every device, here {device.type}."
    try:
        _mamba_ssm_kernel()
    except ImportError as error:
        return "torch", f"The CUDA kernel of `mamba_ssm`, which is faster, is missing: {error}."
    return "mamba_ssm", "`mamba_ssm` is installed and brings a CUDA kernel."


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which steps, decays and states are kept for an input of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_shapes(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> None:
    if u.ndim != 3 or A.ndim != 2 or u.shape[1] == 0:
        raise ValueError(
            f"`u` must have shape (b, l, d) with l > 0 and `A` (d, n), "
            f"got {tuple(u.shape)} and {tuple(A.shape)}."
        )
    batch, length, channels = u.shape
    states = A.shape[1]
    for name, tensor, shape in [
        ("delta", delta, (batch, length, channels)),
        ("A", A, (channels, states)),
        ("B", B, (batch, length, states)),
        ("C", C, (batch, length, states)),
        ("D", D, (channels,)),
    ]:
        if tensor.shape != shape:
            raise ValueError(
                f"`{name}` must have shape {shape} to fit `u` {tuple(u.shape)} and "
                f"`A` {tuple(A.shape)}, got {tuple(tensor.shape)}."
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


class _CompiledScan(torch.autograd.Function):
    """The recurrence in C++, for float32 on the CPU; `kernels/selective_scan.cpp` explains it.

    Runs on `torch.get_num_threads()` threads. Only the states (chunks, b, d, n) at the borders of
    chunks of tokens are kept for the backward pass, as much memory as the input for 16 states.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        reverse: bool,
    ) -> Tensor:
        """Return y (b, l, d)."""
        inputs = [tensor.detach().contiguous() for tensor in (u, delta, A, B, C, D)]
        y, borders = torch.empty_like(inputs[0]), None
        if any(ctx.needs_input_grad):
            chunks = -(-u.shape[1] // _kernels.CHUNK)
            borders = u.new_empty(chunks, u.shape[0], *A.shape)
            ctx.save_for_backward(*inputs, borders)
        _kernels.selective_scan_forward(*inputs, y, borders, reverse, torch.get_num_threads())
        ctx.reverse = reverse
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all six inputs."""
        *inputs, borders = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in inputs]
        _kernels.selective_scan_backward(
            grad_y.contiguous(),
            *inputs,
            borders,
            *gradients,
            ctx.reverse,
            torch.get_num_threads(),
        )
        return *gradients, None


class _ChunkedScan(torch.autograd.Function):
    """The recurrence without the skip term, in plain torch, chunk after chunk of tokens.

    Everything that does not depend on the previous token is computed for a chunk at once; what is
    left per token is one fused multiply-add in place. Only the states between chunks are kept for
    the backward pass, which recomputes the others. Decays are multiplied one at a time and never
    divided by, so steps and rates of any size are safe. Buffers are (tokens, b, n, d): the state of
    a token is contiguous, and the long axis d is innermost.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: bool
    ) -> Tensor:
        """Return y (b, l, d); save the inputs and the state (b, n, d) before each chunk."""
        u, delta, B, C = (tensor.transpose(0, 1).contiguous() for tensor in (u, delta, B, C))
        rates = A.T.contiguous()
        chunks = _Chunks(u * delta, delta, rates, B, reverse)
        y = torch.empty_like(u)
        borders = u.new_zeros(len(chunks.slices) + 1, u.shape[1], *rates.shape)
        for i, tokens in enumerate(chunks.slices):
            _, _, states = chunks.run(tokens, borders[i])
            torch.bmm(_rows(C[tokens]), states.flatten(0, 1), out=_rows(y[tokens]))
            borders[i + 1] = states[0 if reverse else -1]
        ctx.save_for_backward(u, delta, rates, B, C, borders)
        ctx.reverse = reverse
        return y.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """Go through the chunks the other way round, carrying the gradient of the state."""
        u, delta, rates, B, C, borders = ctx.saved_tensors
        with torch.autocast(u.device.type, enabled=False):
            grad_y = grad_y.transpose(0, 1).contiguous()
            grad_input, grad_delta, grad_rates, grad_B, grad_C = _chunked_gradients(
                grad_y, u * delta, delta, rates, B, C, borders, ctx.reverse
            )
            grad_u = grad_input * delta
            grad_delta.addcmul_(grad_input, u)
        grad_u, grad_delta, grad_B, grad_C = (
            grad.transpose(0, 1) for grad in (grad_u, grad_delta, grad_B, grad_C)
        )
        return grad_u, grad_delta, grad_rates.T, grad_B, grad_C, None


def _chunked_gradients(
    grad_y: Tensor,
    inputs: Tensor,
    delta: Tensor,
    rates: Tensor,
    B: Tensor,
    C: Tensor,
    borders: Tensor,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """Return the gradients of inputs = u * delta, delta (in the decay), rates, B and C."""
    chunks = _Chunks(inputs, delta, rates, B, reverse)
    grads_buffer = torch.empty_like(chunks.decay)
    products_buffer = torch.empty_like(chunks.decay)
    grad_at, decay_at = grads_buffer.unbind(), chunks.decay.unbind()
    grad_inputs, grad_delta = torch.empty_like(inputs), torch.empty_like(delta)
    grad_B, grad_C = torch.empty_like(B), torch.empty_like(C)
    grad_rates = torch.zeros_like(rates)
    carry = torch.zeros_like(borders[0])
    for i in reversed(range(len(chunks.slices))):
        tokens = chunks.slices[i]
        decay, before, states = chunks.run(tokens, borders[i])
        count = len(decay)
        grads, products = grads_buffer[:count], products_buffer[:count]

        # A state acts on y at its own token and, through the decay, on the next state.
        torch.mul(grad_y[tokens][:, :, None, :], C[tokens][..., None], out=grads)
        first, last, back = (count - 1, 0, 1) if reverse else (0, count - 1, -1)
        grad_at[last].add_(carry)
        for t in range(last, first, back):
            grad_at[t + back].addcmul_(decay_at[t], grad_at[t])
        torch.mul(decay_at[first], grad_at[first], out=carry)

        states, flat = states.flatten(0, 1), grads.flatten(0, 1)
        torch.bmm(_rows(grad_y[tokens]), states.transpose(1, 2), out=_rows(grad_C[tokens]))
        torch.bmm(_rows(inputs[tokens]), flat.transpose(1, 2), out=_rows(grad_B[tokens]))
        torch.bmm(_rows(B[tokens]), flat, out=_rows(grad_inputs[tokens]))

        grads.mul_(decay).mul_(before)  # now the gradient of delta * A
        torch.mul(grads, delta[tokens][:, :, None, :], out=products)
        grad_rates += products.sum((0, 1))
        torch.sum(grads.mul_(rates), dim=2, out=grad_delta[tokens])
    return grad_inputs, grad_delta, grad_rates, grad_B, grad_C


class _Chunks:
    """The chunks of one scan in running order, and the buffers they share.

    Args:
        inputs: (l, b, d) input u * delta.
        delta: (l, b, d) step size.
        rates: (n, d) decay rate, the transpose of A.
        B: (l, b, n) input weights.
        reverse: Run from the last token to the first.

    Attributes:
        slices: Tokens of each chunk, in running order.
        decay: (tokens, b, n, d) buffer of exp(delta * A) for the longest chunk.
    """

    def __init__(
        self, inputs: Tensor, delta: Tensor, rates: Tensor, B: Tensor, reverse: bool
    ) -> None:
        self._inputs, self._delta, self._rates, self._B = inputs, delta, rates, B
        self._reverse = reverse
        length, batch, _ = inputs.shape
        elements = _CHUNK_ELEMENTS["cpu" if inputs.device.type == "cpu" else "other"]
        size = min(length, max(_MIN_CHUNK_TOKENS, elements // (batch * rates.numel())))
        self.slices = [slice(i, min(i + size, length)) for i in range(0, length, size)]
        if reverse:
            self.slices.reverse()
        self.decay = inputs.new_empty(size, batch, *rates.shape)
        self._states = inputs.new_empty(size + 1, batch, *rates.shape)
        self._decay_at, self._state_at = self.decay.unbind(), self._states.unbind()

    def run(self, tokens: slice, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run one chunk, from `state` (b, n, d) before its first token in running order.

        Returns:
            Decay, state before and state after each token, all (tokens, b, n, d), at the place of
            the token in the sequence. The states are two views of one buffer, one token apart. The
            next run overwrites all three.
        """
        delta, inputs = self._delta[tokens], self._inputs[tokens]
        count = len(delta)
        decay, low, high = self.decay[:count], self._states[:count], self._states[1 : count + 1]
        before, after = (high, low) if self._reverse else (low, high)
        torch.mul(delta[:, :, None, :], self._rates, out=decay).exp_()
        torch.mul(inputs[:, :, None, :], self._B[tokens][..., None], out=after)
        decay_at, state_at = self._decay_at, self._state_at
        if self._reverse:
            state_at[count].copy_(state)
            for t in range(count - 1, -1, -1):
                state_at[t].addcmul_(decay_at[t], state_at[t + 1])
        else:
            state_at[0].copy_(state)
            for t in range(count):
                state_at[t + 1].addcmul_(decay_at[t], state_at[t])
        return decay, before, after


def _rows(sequence: Tensor) -> Tensor:
    """View (tokens, b, k) as tokens * b matrices of one row, for `torch.bmm`."""
    return sequence.flatten(0, 1).unsqueeze(1)
