"""The selective scan in plain torch, for every device and dtype that has no kernel of its own.

`chunked_scan` is one scan in one direction, without the skip term; `scan.py` says what a scan is
and when this one is taken. Axis letters: b images, l tokens, d channels, n state size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of one (tokens, b, n, d) buffer of the chunked scan. The few buffers of a chunk then stay
# in a core's level-2 cache, and each operation is long enough to outweigh the call from Python.
_CHUNK_ELEMENTS = {"cpu": 2**17, "other": 2**22}
# At least as many tokens per chunk as there are states (16 in every Vim), so that the states saved
# for the backward pass take no more memory than the input itself.
_MIN_CHUNK_TOKENS = 16


def chunked_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool
) -> Tensor:
    """Run one selective scan, chunk after chunk of tokens.

    Args:
        u: (b, l, d) input sequence, float32 or float64 like all others.
        delta: (b, l, d) step size.
        A: (d, n) decay rate.
        B: (b, l, n) input weights.
        C: (b, l, n) output weights.
        D: (d,) skip weights.
        reverse: Run from the last token to the first.

    Returns:
        (b, l, d) output.
    """
    return _ChunkedScan.apply(u, delta, A, B, C, reverse) + D * u


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
