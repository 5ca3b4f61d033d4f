"""The Mamba block, in one and in both directions, and the small layers around it.

This module turns tokens into tokens; images and their tokens are the business of `vim.py`, the
recurrence itself of `scan.py`. Axis letters: b images, l tokens, d inner channels, n state size.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vimunet.models import compiled
from vimunet.models.scan import selective_scan, state_dtype


class BidirectionalMamba(nn.Module):
    """Mix tokens with two selective scans, one from each end of the sequence.

    The tokens are projected to a signal and a gate. Each direction has its own short convolution,
    its own input-dependent step, B and C, and its own decay; the gate and the two outer projections
    are shared:

        signal, gate = in_proj(tokens)
        x = silu(conv(signal));  step, B, C = x_proj(x);  delta = softplus(dt_proj(step))
        y = selective_scan(x, delta, -exp(A_log), B, C, D)         for each direction
        output = out_proj((y_forward + y_backward) * silu(gate))   the sum halved if `average`

    Under autocast the projections and the convolution run in the lower precision; delta, decay and
    state stay float32.

    Args:
        d_model: Channels of the tokens.
        d_state: Numbers in the hidden state of one inner channel.
        d_conv: Width of the convolution, in tokens. It sees the present and earlier tokens only,
            where "earlier" is meant in the direction of the scan.
        expand: Inner channels per channel of the tokens.
        dt_rank: Rank of the projection to the step; d_model / 16, rounded up, if None.
        average: Halve the sum of the two directions.

    Source:
        Zhu et al. 2024, "Vision Mamba", https://arxiv.org/abs/2401.09417, algorithm 1, with the
        parameter names of the authors' code. `average` was added there in February 2024; the first
        version of ViM-UNet is without. Three deviations. The backward direction neither flips its
        input nor its output: it convolves with the mirrored kernel and scans in reverse, which is
        the same. The gate multiplies the sum of both directions, not each. Initialisation: both
        directions start as in Gu & Dao 2023 (https://arxiv.org/abs/2312.00752, section 3.6), with
        steps between 0.001 and 0.1; the authors' code then overwrites the bias of `dt_proj_b` (in
        its first version of `dt_proj` too) by zero, so that this direction starts with steps of
        0.7 and forgets within a few tokens.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        average: bool = True,
    ) -> None:
        super().__init__()
        d_inner = expand * d_model
        dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.average = average

        rates = torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(d_inner, 1)
        self.A_log, self.A_b_log = nn.Parameter(rates), nn.Parameter(rates.clone())
        self.D, self.D_b = nn.Parameter(torch.ones(d_inner)), nn.Parameter(torch.ones(d_inner))
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        self.conv1d_b = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.x_proj_b = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = _step_projection(dt_rank, d_inner)
        self.dt_proj_b = _step_projection(dt_rank, d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix the tokens.

        Args:
            tokens: (b, l, d_model) tokens, in the order of the scan.

        Returns:
            (b, l, d_model) mixed tokens.
        """
        signal, gate = self.in_proj(tokens).chunk(2, dim=-1)
        y = _scan(
            signal,
            gate,
            ("forward", "reverse"),
            [self.conv1d, self.conv1d_b],
            [self.x_proj, self.x_proj_b],
            [self.dt_proj, self.dt_proj_b],
            [self.A_log, self.A_b_log],
            [self.D, self.D_b],
        )
        mixed = self.out_proj(y)
        return mixed / 2 if self.average else mixed


class Mamba(nn.Module):
    """Mix tokens with one selective scan, each with what came before it.

        signal, gate = in_proj(tokens)
        x = silu(conv(signal));  step, B, C = x_proj(x);  delta = softplus(dt_proj(step))
        output = out_proj(selective_scan(x, delta, -exp(A_log), B, C, D) * silu(gate))

    Args:
        d_model: Channels of the tokens.
        d_state: Numbers in the hidden state of one inner channel.
        d_conv: Width of the convolution, in tokens. It sees the present and earlier tokens only.
        expand: Inner channels per channel of the tokens.

    Source:
        Gu & Dao 2023, "Mamba", https://arxiv.org/abs/2312.00752, section 3.4, with the parameter
        names and the initialisation of the authors' code.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        d_inner, dt_rank = expand * d_model, math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = _step_projection(dt_rank, d_inner)
        rates = torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(d_inner, 1)
        self.A_log = nn.Parameter(rates)
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix (b, l, d_model) tokens, in the order of the scan."""
        signal, gate = self.in_proj(tokens).chunk(2, dim=-1)
        y = _scan(
            signal,
            gate,
            ("forward",),
            [self.conv1d],
            [self.x_proj],
            [self.dt_proj],
            [self.A_log],
            [self.D],
        )
        return self.out_proj(y)


class RMSNorm(nn.Module):
    """Divide each token by the root of its mean square, then scale each channel.

    Computed in float32 (float64 for float64 input) and returned in the dtype of `weight`.

    Args:
        channels: Channels of the tokens.
        eps: Added to the mean square.

    Source:
        Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467, without bias.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise (..., channels) tokens over the last axis."""
        x = tokens.to(state_dtype(tokens.dtype))
        x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        return (x * self.weight).to(self.weight.dtype)


class DropPath(nn.Module):
    """Drop the whole output of a layer, for each image of the batch by itself, while training.

    What survives is divided by the probability to survive, so that the expectation stays the same.
    Does nothing in eval mode.

    Args:
        rate: Probability to drop, in [0, 1).

    Source:
        Huang et al. 2016, "Deep networks with stochastic depth", https://arxiv.org/abs/1603.09382,
        rescaled while training as in timm instead of in prediction.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must lie in [0, 1), got {rate}.")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, ...) with some of the b images set to zero."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) < keep
        return x * (mask / keep).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the rate when the module is printed."""
        return f"rate={self.rate:.3g}"


def _scan(
    signal: Tensor,
    gate: Tensor,
    orders: Sequence[Literal["forward", "reverse"]],
    convs: Sequence[nn.Conv1d],
    x_projs: Sequence[nn.Linear],
    dt_projs: Sequence[nn.Linear],
    A_logs: Sequence[Tensor],
    Ds: Sequence[Tensor],
) -> Tensor:
    """Convolve and scan (b, l, d) once for each order; return the gated sum, (b, l, d)."""
    x = _convolve(signal, orders, convs)
    weight = torch.stack([projection.weight for projection in x_projs])
    projected = torch.bmm(x.flatten(1, 2), weight.transpose(1, 2))
    states = A_logs[0].shape[1]
    step, B, C = projected.split([weight.shape[1] - 2 * states, states, states], dim=-1)
    weight = torch.stack([projection.weight for projection in dt_projs])
    delta = torch.bmm(step, weight.transpose(1, 2))
    # The bias is added in the scan: steps of 0.001 would drown in the rounding of bfloat16.
    dtype = state_dtype(x.dtype)
    return selective_scan(
        x,
        delta.unflatten(1, x.shape[1:3]),
        -torch.exp(torch.stack(list(A_logs)).to(dtype)),
        B.unflatten(1, x.shape[1:3]),
        C.unflatten(1, x.shape[1:3]),
        torch.stack(list(Ds)),
        orders=orders,
        delta_bias=torch.stack([projection.bias for projection in dt_projs]),
        gate=gate,
    )


def _convolve(
    signal: Tensor, orders: Sequence[Literal["forward", "reverse"]], convs: Sequence[nn.Conv1d]
) -> Tensor:
    """Convolve (b, l, d) along the tokens, each channel by itself, once for each order; then SiLU.

    No order looks ahead; in the reverse one, "ahead" is towards token 0 and the kernel is
    mirrored. Returns (k, b, l, d).
    """
    if compiled.runs(signal, convs[0].weight):
        weight = torch.stack([conv.weight[:, 0] for conv in convs]).transpose(1, 2)
        bias = torch.stack([conv.bias for conv in convs])  # type: ignore[misc]
        codes = [int(order == "reverse") for order in orders]
        return compiled.causal_conv_silu(signal, weight, bias, codes)
    tokens, margin = signal.transpose(1, 2), convs[0].kernel_size[0] - 1
    results = []
    for order, conv in zip(orders, convs, strict=True):
        back = order == "reverse"
        padded = functional.pad(tokens, (0, margin) if back else (margin, 0))
        weight = conv.weight.flip(-1) if back else conv.weight
        results.append(functional.conv1d(padded, weight, conv.bias, groups=conv.groups))
    return functional.silu(torch.stack(results).transpose(2, 3))


def step_weights(dt_rank: int, d_inner: int) -> tuple[Tensor, Tensor]:
    """Draw weight (d_inner, dt_rank) and bias (d_inner,) of a projection to the step.

    After softplus, the steps start log-uniform in [0.001, 0.1].
    """
    low, high = math.log(1e-3), math.log(1e-1)
    step = torch.exp(torch.rand(d_inner) * (high - low) + low).clamp(min=1e-4)
    weight = torch.empty(d_inner, dt_rank).uniform_(-(dt_rank**-0.5), dt_rank**-0.5)
    return weight, step + torch.log(-torch.expm1(-step))  # the inverse of softplus


def _step_projection(dt_rank: int, d_inner: int) -> nn.Linear:
    """Build the projection to the step; see `step_weights`."""
    projection = nn.Linear(dt_rank, d_inner)
    with torch.no_grad():
        for own, drawn in zip(projection.parameters(), step_weights(dt_rank, d_inner), strict=True):
            own.copy_(drawn)
    return projection
