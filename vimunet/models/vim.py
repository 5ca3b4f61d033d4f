"""The Vision Mamba encoder: an image becomes tokens, tokens are mixed, tokens become a feature map.

It builds every published generation of ViM-UNet's encoder as well as our default; which of them is
which is written in `encoder_decoder.py`. It neither pads images nor knows of decoders.
Axis letters: b images, c channels, y rows, x columns, l tokens.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vimunet.models.mamba import BidirectionalMamba, DropPath, RMSNorm
from vimunet.models.scan import state_dtype

PATCH_SIZE = 16
Mixer = Literal["mamba", "convolution"]
KERNEL_SIZE = 13
"""Side of the kernel of `GatedConvolution`, in tokens."""

_PRETRAINING_GRID = 14  # side of the token grid (224 / 16) in which rotary positions are measured


class VimEncoder(nn.Module):
    """Encode an image with Vision Mamba: square patches, then layers of mixed tokens.

    The patches, in row-major order, are projected to tokens, a learnt position is added, and each
    layer adds to a running sum r (the residual, kept in float32) what it makes of it:

        r = tokens + position
        r = r + mixer(norm(r))     for each layer; while training, layer i of m is left out for an
                                   image with probability drop_path_rate * i / (m - 1)
        output = norm_f(r)

    Without class token and rotary embedding, the image may have any height and width divisible by
    `patch_size`: the positions, learnt for `image_size`, are interpolated to its grid. With either
    of them, as in the published networks, the image must be `image_size` square.

    Args:
        in_channels: Channels of the image.
        image_size: Side of the image the positions are learnt for, in pixels (of what `forward`
            takes); divisible by `patch_size`.
        embed_dim: Channels of the tokens.
        depth: Number of layers.
        rope: Rotate all tokens by their position before each layer. The sum r is rotated, so turns
            accumulate from layer to layer.
        class_token: Where a learnt extra token is put: "front", "middle" (before patch l // 2), or
            None for no such token.
        mixer: What mixes the tokens of a layer: "mamba", two scans (`BidirectionalMamba`), or
            "convolution", each token and those around it (`GatedConvolution`), at about the same
            cost: it tells what the scans are worth. Needs a whole grid, so no class token.
        legacy_removal: Take out token 0 instead of the class token at the end. With a class token
            in the middle, the first half of the map then shows its right neighbours' content.
        average: Halve the sum of the two scan directions in each layer.
        drop_path_rate: Probability to leave out the last layer for an image while training.
        keep_head: Number of classes of an unused, frozen classification head, for checkpoints that
            contain one; None for no head.
        intermediate: Layers (from 0, ascending, without the last) after which to return a map too.
        patch_size: Side of a patch in pixels.

    Attributes:
        grid: Side of the grid of tokens the positions are learnt for.
        channels: Channels of each returned map.
        strides: Pixels per cell of each returned map.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Zhu et al. 2024, "Vision Mamba", https://arxiv.org/abs/2401.09417, and ViM-UNet, Archit &
        Pape 2024, https://arxiv.org/abs/2404.07705. Names of parameters and the arithmetic are
        those of the published code (torch-em 0.7.0 to 0.7.4: rope, class token in front, no
        average; from 0.7.5: class token in the middle, legacy_removal, average). Deviations: the
        rotation acts on the sum r + layer output instead of on both, which is the same; the
        published code has no interpolation of positions and no class-free variant in use; the
        class token is removed where it was put unless `legacy_removal`. Initialisation as in
        torch-em 0.7.5, except for the steps of the scan (see `BidirectionalMamba`).
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        embed_dim: int,
        depth: int,
        rope: bool = False,
        class_token: Literal["front", "middle"] | None = None,
        legacy_removal: bool = False,
        average: bool = True,
        drop_path_rate: float = 0.1,
        keep_head: int | None = None,
        intermediate: tuple[int, ...] = (),
        patch_size: int = PATCH_SIZE,
        mixer: Mixer = "mamba",
    ) -> None:
        super().__init__()
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(f"`image_size` must be a multiple of {patch_size}, got {image_size}.")
        if class_token not in ("front", "middle", None):
            raise ValueError(
                f"`class_token` must be 'front', 'middle' or None, got {class_token!r}."
            )
        if legacy_removal and class_token is None:
            raise ValueError("`legacy_removal` must be False without a class token, got True.")
        if mixer not in get_args(Mixer):
            raise ValueError(
                f"Unknown `mixer` {mixer!r}. Known: {', '.join(sorted(get_args(Mixer)))}."
            )
        if mixer == "convolution" and class_token is not None:
            raise ValueError(f"`mixer` must be 'mamba' with a class token, got {mixer!r}.")
        if rope and embed_dim % 4:
            raise ValueError(f"`embed_dim` must be divisible by 4 for `rope`, got {embed_dim}.")
        if list(intermediate) != sorted(set(intermediate) & set(range(depth - 1))):
            raise ValueError(
                f"`intermediate` must be ascending layers from 0 to {depth - 2}, "
                f"got {tuple(intermediate)}."
            )
        self.in_channels, self.image_size, self.average = in_channels, image_size, average
        self.intermediate = tuple(intermediate)
        self.channels = (embed_dim,) * (len(intermediate) + 1)
        self.patch_size = patch_size
        self.strides = (patch_size,) * (len(intermediate) + 1)

        self.grid = image_size // patch_size
        patches = self.grid * self.grid
        self.class_index = {"front": 0, "middle": patches // 2, None: None}[class_token]
        self.removed_index = 0 if legacy_removal else self.class_index
        special = 0 if class_token is None else 1
        if class_token is not None:
            self.cls_token = nn.Parameter(_truncated_normal(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(_truncated_normal(1, patches + special, embed_dim))
        self.patch_embed = _PatchEmbedding(in_channels, embed_dim, patch_size)
        self.rope = _RotaryEmbedding(self.grid, embed_dim) if rope else None
        if keep_head is not None:
            self.head = nn.Linear(embed_dim, keep_head).requires_grad_(False)
        self.layers = nn.ModuleList(
            _Layer(embed_dim, depth, average, drop_path_rate * i / max(depth - 1, 1), mixer)
            for i in range(depth)
        )
        self.norm_f = RMSNorm(embed_dim)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode a batch of images.

        Args:
            image: (b, c, y, x) image, standardised; y and x divisible by `patch_size`, and both
                equal to `image_size` with a class token or rotary embedding.

        Returns:
            Maps of (b, embed_dim, y / patch_size, x / patch_size): after the layers in
            `intermediate`, then after the last. Each is normalised as its reader sees it: an
            intermediate one by the norm of the next layer, the last by `norm_f`.

        Raises:
            ValueError: If the image has another number of channels or a size that does not fit.
        """
        self._check_size(image)
        tokens = self.patch_embed(image)
        height, width = (side // self.patch_size for side in image.shape[-2:])
        if self.class_index is not None:
            token = self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype)
            i = self.class_index
            tokens = torch.cat([tokens[:, :i], token, tokens[:, i:]], dim=1)
        residual = tokens.to(state_dtype(tokens.dtype)) + self._positions(height, width)

        maps = []
        for i, layer in enumerate(self.layers):
            if self.rope is not None:
                residual = self.rope(residual, self.class_index)
            normalized, update = layer(residual, width)
            if i - 1 in self.intermediate:
                maps.append(self._fold(normalized, height, width))
            residual = residual + update
        return [*maps, self._fold(self.norm_f(residual), height, width)]

    def _check_size(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"`image` must have shape (b, {self.in_channels}, y, x), got {tuple(image.shape)}."
            )
        size, full = tuple(image.shape[-2:]), (self.image_size, self.image_size)
        if (self.class_index is not None or self.rope is not None) and size != full:
            raise ValueError(
                f"Image size {size} must be {full} for an encoder with class token or rotary "
                f"embedding. Pad it with zeros at the bottom and right."
            )
        padded = tuple(math.ceil(side / self.patch_size) * self.patch_size for side in size)
        if size != padded:
            raise ValueError(
                f"Image size {size} must be divisible by {self.patch_size}. Pad it to {padded}, "
                "or call `predict`, which pads for you."
            )

    def _positions(self, height: int, width: int) -> Tensor:
        """Return the position embedding (1, l, embed_dim) of a grid of height x width tokens."""
        if self.class_index is not None or (height, width) == (self.grid, self.grid):
            return self.pos_embed
        positions = self.pos_embed.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        positions = functional.interpolate(
            positions, (height, width), mode="bicubic", align_corners=False
        )
        return positions.flatten(2).transpose(1, 2)

    def _fold(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Remove the class token and fold (b, l, c) tokens to (b, c, height, width)."""
        if self.removed_index is not None:
            i = self.removed_index
            tokens = torch.cat([tokens[:, :i], tokens[:, i + 1 :]], dim=1)
        return tokens.transpose(1, 2).unflatten(2, (height, width)).contiguous()


class GatedConvolution(nn.Module):
    """Mix each token with those around it: a Mamba layer whose scans are a convolution of the grid.

        signal, gate = in_proj(tokens)
        output = out_proj(silu(conv(signal)) * silu(gate))      conv: each channel by itself

    Projections, gate and inner channels are those of `BidirectionalMamba`; what is taken out is the
    state, and with it all that is farther away than the kernel reaches.

    Args:
        d_model: Channels of the tokens.
        kernel_size: Side of the kernel, in tokens; odd.
        expand: Inner channels per channel of the tokens.

    Source:
        Yu & Wang 2024, "MambaOut", https://arxiv.org/abs/2405.07992, the gated CNN block, which
        asks the same question. Deviations: all inner channels are convolved, not a part of them,
        and the SiLU is where Mamba has it, behind the convolution too, instead of a GELU.
    """

    def __init__(self, d_model: int, kernel_size: int = KERNEL_SIZE, expand: int = 2) -> None:
        super().__init__()
        d_inner = expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv2d = nn.Conv2d(
            d_inner, d_inner, kernel_size, padding=kernel_size // 2, groups=d_inner
        )
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, tokens: Tensor, columns: int) -> Tensor:
        """Mix the tokens.

        Args:
            tokens: (b, l, d_model) tokens of a grid, row by row.
            columns: Columns of the grid, in tokens; l is a multiple of it.

        Returns:
            (b, l, d_model) mixed tokens.
        """
        signal, gate = self.in_proj(tokens).chunk(2, dim=-1)
        grid = signal.unflatten(1, (-1, columns)).movedim(-1, 1)  # channels-last in memory
        mixed = functional.silu(self.conv2d(grid)).movedim(1, -1).flatten(1, 2)
        return self.out_proj(mixed * functional.silu(gate))


class _Layer(nn.Module):
    """One layer: norm, mixer, stochastic depth."""

    def __init__(
        self, embed_dim: int, depth: int, average: bool, drop_path_rate: float, mixer: Mixer
    ) -> None:
        super().__init__()
        self.folded = mixer == "convolution"
        self.mixer: nn.Module = (
            GatedConvolution(embed_dim)
            if self.folded
            else BidirectionalMamba(embed_dim, average=average)
        )
        self.norm = RMSNorm(embed_dim)
        self.drop_path = DropPath(drop_path_rate)
        with torch.no_grad():  # the sum over all layers then starts with the spread of one
            self.mixer.out_proj.weight /= math.sqrt(depth)  # type: ignore[union-attr, operator]

    def forward(self, residual: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """Return the normalised residual and what to add to the residual, all (b, l, embed_dim).

        Args:
            residual: (b, l, embed_dim).
            columns: Columns of the grid of tokens.
        """
        normalized = self.norm(residual)
        grid = (columns,) if self.folded else ()
        return normalized, self.drop_path(self.mixer(normalized, *grid))


class _PatchEmbedding(nn.Module):
    """Project square patches to tokens: (b, c, y, x) -> (b, l, embed_dim), row-major."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        weight = self.proj.weight
        with torch.no_grad():  # LeCun: the output has the spread of the input
            weight.copy_(_truncated_normal(*weight.shape, std=weight[0].numel() ** -0.5))
        self.proj.bias = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens of an image."""
        return self.proj(image).flatten(2).transpose(1, 2).contiguous()


class _RotaryEmbedding(nn.Module):
    """Rotate pairs of channels of a token by angles that grow with its row and its column.

    The first half of the channels turns with the row, the second with the column. Pair j of a half
    of h channels turns by 10000^(-2j / h) radians per step, where the whole grid is 14 steps long,
    whatever its number of tokens.

    Args:
        grid: Side of the square grid of tokens.
        channels: Channels of the tokens.

    Source:
        Su et al. 2021, https://arxiv.org/abs/2104.09864, in the two-dimensional form of EVA-02,
        Fang et al. 2023, https://arxiv.org/abs/2303.11331. The tables are float32 buffers that
        belong to the state dict, as in the first published ViM-UNet.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, grid: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        frequencies = 1.0 / 10000.0 ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
        positions = torch.arange(grid, dtype=torch.float32) / grid * _PRETRAINING_GRID
        angles = torch.outer(positions, frequencies).repeat_interleave(2, dim=1)  # (grid, half)
        rows = angles[:, None].expand(grid, grid, half)
        columns = angles[None, :].expand(grid, grid, half)
        angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def forward(self, tokens: Tensor, skip: int | None) -> Tensor:
        """Rotate (b, l, channels) tokens, all but the one at index `skip`."""
        cos, sin = self.freqs_cos, self.freqs_sin
        if skip is not None:
            cos = torch.cat([cos[:skip], torch.ones_like(cos[:1]), cos[skip:]])
            sin = torch.cat([sin[:skip], torch.zeros_like(sin[:1]), sin[skip:]])
        even, odd = tokens[..., 0::2], tokens[..., 1::2]
        turned = torch.stack([-odd, even], dim=-1).flatten(-2)
        return tokens * cos + turned * sin


def _truncated_normal(*shape: int, std: float = 0.02) -> Tensor:
    """Draw from a normal distribution cut at two standard deviations, with the given `std`."""
    # Cutting reduces the spread to 0.8796 of that of the uncut normal.
    return nn.init.trunc_normal_(torch.empty(shape), std=1.0, a=-2.0, b=2.0) * (std / 0.87962566)
