"""Vision transformer encoder: image -> grid of tokens, the encoder of UNETR.

Most layers attend within square windows, four of them over the whole image; positions enter as
an absolute embedding and, in every layer, as the relative offset of two tokens.
Parameter names are those of Segment Anything's image encoder.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

PATCH_SIZE = 16
MLP_RATIO = 4
NECK_CHANNELS = 256


def _relative(table: Tensor, length: int) -> Tensor:
    """Look up the embedding of each offset between two of `length` places.

    Args:
        table: (2 k - 1, c) embeddings of the offsets -(k - 1) ... k - 1; interpolated if k is
            not `length`.
        length: Number of places.

    Returns:
        (length, length, c); entry [i, j] belongs to the offset i - j.
    """
    if table.shape[0] != 2 * length - 1:
        table = F.interpolate(table.T[None], size=2 * length - 1, mode="linear")[0].T
    place = torch.arange(length, device=table.device)
    return table[place[:, None] - place[None, :] + length - 1]


class _Attention(nn.Module):
    """Multi-head self-attention with decomposed relative positions.

    The attention of query i to key j gets q_i . R_y[y_i - y_j] + q_i . R_x[x_i - x_j] on top.
    """

    def __init__(self, embed_dim: int, num_heads: int, grid: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, embed_dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, embed_dim // num_heads))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, y, x, embed_dim) to the same shape."""
        b, y, x, embed_dim = tokens.shape
        qkv = self.qkv(tokens).reshape(b, y * x, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (b, heads, y x, c)
        on_grid = q.unflatten(2, (y, x))
        rows = torch.einsum("bnyxc,yjc->bnyxj", on_grid, _relative(self.rel_pos_h, y))
        columns = torch.einsum("bnyxc,xkc->bnyxk", on_grid, _relative(self.rel_pos_w, x))
        bias = (rows[..., :, None] + columns[..., None, :]).reshape(b, -1, y * x, y * x)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(b, y, x, embed_dim))


class _Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embed_dim, MLP_RATIO * embed_dim)
        self.lin2 = nn.Linear(MLP_RATIO * embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., embed_dim) to the same shape."""
        return self.lin2(F.gelu(self.lin1(tokens)))


class _Block(nn.Module):
    """Transformer layer; `window` tokens per side, 0 to attend over the whole grid."""

    def __init__(self, embed_dim: int, num_heads: int, grid: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = _Attention(embed_dim, num_heads, window or grid)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = _Mlp(embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (b, y, x, embed_dim) to the same shape."""
        normed = self.norm1(tokens)
        attended = self._in_windows(normed) if self.window else self.attn(normed)
        tokens = tokens + attended
        return tokens + self.mlp(self.norm2(tokens))

    def _in_windows(self, tokens: Tensor) -> Tensor:
        """Attend in windows; the grid is filled up with zeros at the bottom and right."""
        w = self.window
        b, y, x, embed_dim = tokens.shape
        tokens = F.pad(tokens, (0, 0, 0, -x % w, 0, -y % w))
        rows, columns = tokens.shape[1] // w, tokens.shape[2] // w
        windows = tokens.reshape(b, rows, w, columns, w, embed_dim).transpose(2, 3)
        windows = self.attn(windows.reshape(-1, w, w, embed_dim))
        windows = windows.reshape(b, rows, columns, w, w, embed_dim).transpose(2, 3)
        return windows.reshape(b, rows * w, columns * w, embed_dim)[:, :y, :x]


class _PatchEmbed(nn.Module):
    """One token per 16 x 16 pixels."""

    def __init__(self, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, image: Tensor) -> Tensor:
        """Map (b, c, y, x) to (b, y / 16, x / 16, embed_dim)."""
        return self.proj(image).permute(0, 2, 3, 1)


class ViTEncoder(nn.Module):
    """Segment Anything's image encoder, without the neck at its end.

    Args:
        in_channels: Channels of the image.
        image_size: Pixels per side of the image that the position embeddings are stored for;
            they are interpolated to other sizes.
        embed_dim: Channels of a token.
        depth: Number of layers.
        num_heads: Attention heads; must divide `embed_dim`.
        global_layers: Indices of the layers that attend over the whole grid.
        window: Side of the windows of all other layers, in tokens.
        intermediate: Indices of the layers whose output is returned besides the last one's.
        keep_neck: Carry the parameters of the neck, unused and frozen, as published checkpoints
            do.

    Raises:
        ValueError: If `image_size` is no multiple of 16, or `embed_dim` none of `num_heads`.

    Source:
        Kirillov et al. 2023, "Segment Anything", https://arxiv.org/abs/2304.02643; Dosovitskiy
        et al. 2020, https://arxiv.org/abs/2010.11929. Deviation: linear weights and the absolute
        embedding start as a truncated normal of spread 0.02; upstream leaves torch's default
        for the weights and the embedding at zero.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        global_layers: Sequence[int],
        window: int = 14,
        intermediate: Sequence[int] = (),
        keep_neck: bool = False,
    ) -> None:
        super().__init__()
        if image_size % PATCH_SIZE or image_size <= 0:
            raise ValueError(f"`image_size` must be a multiple of {PATCH_SIZE}, got {image_size}.")
        if embed_dim % num_heads:
            raise ValueError(
                f"`embed_dim` must be a multiple of `num_heads` ({num_heads}), got {embed_dim}."
            )
        grid = image_size // PATCH_SIZE
        self.intermediate = tuple(intermediate)
        self.patch_embed = _PatchEmbed(in_channels, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim))
        self.blocks = nn.ModuleList(
            _Block(embed_dim, num_heads, grid, 0 if layer in global_layers else window)
            for layer in range(depth)
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if keep_neck:
            self.neck = nn.Sequential(
                nn.Conv2d(embed_dim, NECK_CHANNELS, kernel_size=1, bias=False),
                nn.LayerNorm(NECK_CHANNELS),
                nn.Conv2d(NECK_CHANNELS, NECK_CHANNELS, kernel_size=3, bias=False),
                nn.LayerNorm(NECK_CHANNELS),
            ).requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (b, c, y, x) to maps of (b, embed_dim, y / 16, x / 16), in the order of layers.

        The outputs of the layers in `intermediate`, then that of the last layer.
        """
        tokens = self.patch_embed(image)
        tokens = tokens + self._position(tokens.shape[1], tokens.shape[2])
        grids = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.intermediate:
                grids.append(tokens)
        return [grid.permute(0, 3, 1, 2) for grid in [*grids, tokens]]

    def _position(self, y: int, x: int) -> Tensor:
        """Return the position embedding (1, y, x, embed_dim) for a grid of y by x tokens."""
        if self.pos_embed.shape[1:3] == (y, x):
            return self.pos_embed
        stored = self.pos_embed.permute(0, 3, 1, 2)
        return F.interpolate(stored, (y, x), mode="bilinear").permute(0, 2, 3, 1)
