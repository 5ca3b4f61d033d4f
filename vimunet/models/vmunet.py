"""VM-UNet: Vision Mamba blocks that scan an image in four directions, in the shape of a U-Net.

Tokens are kept as maps with their channels last, (b, y, x, c). Parameter names are those of the
published code, so that its checkpoints load without renaming.

Source:
    Ruan & Xiang 2024, "VM-UNet", https://arxiv.org/abs/2402.02491; the block is that of the first
    version of VMamba, Liu et al. 2024, https://arxiv.org/abs/2401.10166.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from vimunet.models.mamba import DropPath, step_weights
from vimunet.models.network import Network, channels_last
from vimunet.models.scan import Order, selective_scan, state_dtype

PATCH_SIZE = 4
ORDERS: tuple[Order, ...] = ("forward", "columns", "reverse", "columns-reverse")


class FourWayScan(nn.Module):
    """Mix the tokens of a map with four selective scans: along rows and columns, there and back.

    The tokens are projected to a signal and a gate. All scans read the same convolved signal; each
    has its own step, B, C, decay and skip:

        signal, gate = in_proj(tokens);  x = silu(conv2d(signal))
        step, B, C = x_proj[k](x);  delta = softplus(dt_projs[k](step))       for scan k of four
        y = sum over k of selective_scan(x, delta, -exp(A_logs[k]), B, C, Ds[k])
        output = out_proj(out_norm(y) * silu(gate))

    Args:
        d_model: Channels of the tokens.
        d_state: Numbers in the hidden state of one inner channel.
        expand: Inner channels per channel of the tokens.

    Source:
        Liu et al. 2024, https://arxiv.org/abs/2401.10166, version 1, section 3.2 (there called
        SS2D). The columns are read where they are; the published code copies the map.
    """

    def __init__(self, d_model: int, d_state: int = 16, expand: int = 2) -> None:
        super().__init__()
        d_inner, dt_rank, scans = expand * d_model, math.ceil(d_model / 16), len(ORDERS)
        self.d_state, self.dt_rank = d_state, dt_rank
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv2d = nn.Conv2d(d_inner, d_inner, 3, padding=1, groups=d_inner)
        self.x_proj_weight = nn.Parameter(torch.empty(scans, dt_rank + 2 * d_state, d_inner))
        weights, biases = zip(*(step_weights(dt_rank, d_inner) for _ in ORDERS), strict=True)
        self.dt_projs_weight = nn.Parameter(torch.stack(weights))
        self.dt_projs_bias = nn.Parameter(torch.stack(biases))
        rates = torch.arange(1, d_state + 1, dtype=torch.float32).log()
        self.A_logs = nn.Parameter(rates.repeat(scans * d_inner, 1))
        self.Ds = nn.Parameter(torch.ones(scans * d_inner))
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        nn.init.uniform_(self.x_proj_weight, -(d_inner**-0.5), d_inner**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix (b, y, x, d_model) tokens."""
        b, rows, columns, _ = tokens.shape
        scans = len(ORDERS)
        signal, gate = self.in_proj(tokens).chunk(2, dim=-1)
        convolved = self.conv2d(channels_last(signal.permute(0, 3, 1, 2)))
        x = functional.silu(convolved).permute(0, 2, 3, 1).reshape(b, rows * columns, -1)

        projected = functional.linear(x, self.x_proj_weight.flatten(0, 1))
        projected = projected.unflatten(-1, (scans, -1)).permute(2, 0, 1, 3)  # (k, b, l, ...)
        step, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = step.flatten(1, 2) @ self.dt_projs_weight.transpose(1, 2)  # (k, b l, d)
        dtype = state_dtype(x.dtype)
        y = selective_scan(
            x.expand(scans, -1, -1, -1),
            delta.unflatten(1, (b, rows * columns)),
            -torch.exp(self.A_logs.to(dtype)).unflatten(0, (scans, -1)),
            B,
            C,
            self.Ds.unflatten(0, (scans, -1)),
            orders=ORDERS,
            grid=(rows, columns),
            delta_bias=self.dt_projs_bias,
        )
        y = self.out_norm(y).unflatten(1, (rows, columns))
        return self.out_proj(y * functional.silu(gate))


class Block(nn.Module):
    """Add to (b, y, x, c) tokens what the scans make of their norm."""

    def __init__(self, channels: int, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(channels)
        self.self_attention = FourWayScan(channels)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, y, x, channels) to the same shape."""
        return tokens + self.drop_path(self.self_attention(self.ln_1(tokens)))


class PatchMerging(nn.Module):
    """Halve height and width: four neighbours become one token of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, y, x, channels) to (b, y / 2, x / 2, 2 * channels)."""
        b, rows, columns, channels = tokens.shape
        # The neighbours follow each other down the columns: (0, 0), (1, 0), (0, 1), (1, 1).
        pairs = tokens.reshape(b, rows // 2, 2, columns // 2, 2, channels)
        neighbours = pairs.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(neighbours))


class PatchExpand(nn.Module):
    """Enlarge height and width: each token becomes a square of tokens with fewer channels.

    Args:
        in_channels: Channels before.
        out_channels: Channels after.
        scale: Side of the square.
    """

    def __init__(self, in_channels: int, out_channels: int, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(in_channels, scale * scale * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, y, x, in_channels) to (b, scale * y, scale * x, out_channels)."""
        b, rows, columns, _ = tokens.shape
        squares = self.expand(tokens).unflatten(-1, (self.scale, self.scale, -1))
        squares = squares.permute(0, 1, 3, 2, 4, 5)
        return self.norm(squares.reshape(b, self.scale * rows, self.scale * columns, -1))


class _PatchEmbedding(nn.Module):
    """Project patches of 4 x 4 pixels to tokens: (b, c, y, x) -> (b, y / 4, x / 4, embed_dim)."""

    def __init__(self, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, PATCH_SIZE, stride=PATCH_SIZE)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class _Stage(nn.Module):
    """Blocks at one resolution, before them an upsampling or behind them a downsampling."""

    def __init__(
        self,
        channels: int,
        rates: Sequence[float],
        upsample: PatchExpand | None = None,
        downsample: PatchMerging | None = None,
    ) -> None:
        super().__init__()
        self.upsample, self.downsample = upsample, downsample
        self.blocks = nn.ModuleList(Block(channels, rate) for rate in rates)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.upsample is not None:
            tokens = self.upsample(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens if self.downsample is None else self.downsample(tokens)


class _Layers(nn.Module):
    """All layers of the network, under the names of the published code."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embed_dim: int,
        depths: Sequence[int],
        decoder_depths: Sequence[int],
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        widths = [embed_dim * 2**stage for stage in range(len(depths))]
        self.patch_embed = _PatchEmbedding(in_channels, embed_dim)
        rates = _drop_path_rates(0, drop_path_rate, depths)
        self.layers = nn.ModuleList(
            _Stage(width, rate, downsample=PatchMerging(width) if width < widths[-1] else None)
            for width, rate in zip(widths, rates, strict=True)
        )
        rates = _drop_path_rates(drop_path_rate, 0, decoder_depths)
        self.layers_up = nn.ModuleList(
            _Stage(width, rate, upsample=PatchExpand(2 * width, width) if stage else None)
            for stage, (width, rate) in enumerate(zip(widths[::-1], rates, strict=True))
        )
        self.final_up = PatchExpand(embed_dim, embed_dim // PATCH_SIZE, scale=PATCH_SIZE)
        self.final_conv = nn.Conv2d(embed_dim // PATCH_SIZE, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (b, c, y, x) to (b, out_channels, y, x) logits."""
        tokens = self.patch_embed(image)
        inputs = []
        for stage in self.layers:
            inputs.append(tokens)
            tokens = stage(tokens)
        # What entered the first stage joins nowhere, as published.
        for index, stage in enumerate(self.layers_up):
            tokens = stage(tokens + inputs[-index] if index else tokens)
        return self.final_conv(self.final_up(tokens).permute(0, 3, 1, 2))


class VMUNet(Network):
    """VM-UNet: four stages of Vision Mamba blocks down to 1/32 of the size, and four up again.

    The maps of the encoder are added to those of the decoder, not concatenated. An image of one
    channel is shown to the network three times, as published, so that weights trained on colour
    images serve grey ones too.

    Args:
        in_channels: Channels of the image.
        out_channels: Number of maps.
        embed_dim: Channels at 1/4 of the size, doubled at each stage.
        depths: Blocks of each encoder stage, fine to coarse.
        decoder_depths: Blocks of each decoder stage, coarse to fine. The paper's experiments use
            (2, 2, 2, 2) and (2, 2, 2, 1); (2, 2, 9, 2) and (2, 9, 2, 2) is the larger network.
        drop_path_rate: Probability of leaving out the blocks at the bottom in training, less the
            further from it.

    Raises:
        ValueError: If encoder and decoder have another number of stages than 4, or `embed_dim`
            is no multiple of 4.

    Source:
        Ruan & Xiang 2024, https://arxiv.org/abs/2402.02491. Deviations: the published code applies
        the sigmoid itself if there is one map; here `forward` returns logits.
    """

    stride = (32, 32)

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        decoder_depths: Sequence[int] = (2, 2, 2, 1),
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        for name, value in (("depths", depths), ("decoder_depths", decoder_depths)):
            if len(value) != 4:
                raise ValueError(f"`{name}` must name 4 stages, got {list(value)}.")
        if embed_dim % PATCH_SIZE or embed_dim <= 0:
            raise ValueError(f"`embed_dim` must be a multiple of {PATCH_SIZE}, got {embed_dim}.")
        self.in_channels, self.out_channels = in_channels, out_channels
        shown = 3 if in_channels == 1 else in_channels
        self.vmunet = _Layers(
            shown, out_channels, embed_dim, depths, decoder_depths, drop_path_rate
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Map (b, in_channels, y, x) to (b, out_channels, y, x) logits.

        Raises:
            ValueError: If y or x is not divisible by `stride`.
        """
        self.check_image(image)
        return self.vmunet(image.expand(-1, 3, -1, -1) if self.in_channels == 1 else image)


def _drop_path_rates(first: float, last: float, depths: Sequence[int]) -> list[list[float]]:
    """Return one rate per block, stage by stage, evenly spaced from `first` to `last`."""
    steps = max(sum(depths) - 1, 1)
    ends = list(accumulate(depths, initial=0))
    return [
        [(first * (steps - block) + last * block) / steps for block in range(*stage)]
        for stage in pairwise(ends)
    ]
