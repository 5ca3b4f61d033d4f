"""U-Mamba: a residual U-Net with a Mamba layer at its bottom or in its encoder, and without any.

The network is planned from the size of the images, as nnU-Net plans its own: how often height and
width are halved, and with how many channels. The Mamba block itself is in `mamba.py`.
Parameter names are those of the published code, without its duplicates.

Source:
    Ma, Li & Wang 2024, "U-Mamba", https://arxiv.org/abs/2401.04722, in the two-dimensional form of
    its code (the text describes transposed convolutions; the code repeats pixels and convolves);
    Isensee et al. 2021, "nnU-Net", https://doi.org/10.1038/s41592-020-01008-z, for the plan.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimunet.models.mamba import Mamba
from vimunet.models.network import Network, channels_last
from vimunet.models.scan import state_dtype
from vimunet.models.unet import InstanceNorm

SMALLEST = 4  # pixels that height and width keep at the bottom of the network
Stride = tuple[int, int]


def plan_strides(image_size: int | Sequence[int]) -> list[Stride]:
    """Return how each stage of the network divides height and width.

    An axis is halved as long as 4 pixels are left. Both axes are halved together; once only one of
    them is long enough, it goes on alone while it has at least 12 pixels.

    Args:
        image_size: Pixels per side, or (y, x).

    Returns:
        One (y, x) per stage, each 1 or 2; the first is (1, 1).

    Raises:
        ValueError: If a size is smaller than 8, so that nothing could be halved.

    Source:
        nnU-Net's planner for two axes of the same pixel size.

    Examples:
        >>> plan_strides(64)
        [(1, 1), (2, 2), (2, 2), (2, 2), (2, 2)]
        >>> plan_strides((16, 48))
        [(1, 1), (2, 2), (2, 2), (1, 2)]
    """
    sizes = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
    if len(sizes) != 2 or min(sizes) < 2 * SMALLEST:
        raise ValueError(
            f"`image_size` must be one or two numbers from {2 * SMALLEST} up, got {image_size}."
        )
    strides: list[Stride] = [(1, 1)]
    while True:
        y, x = (size >= 2 * SMALLEST for size in sizes)
        if not (y or x) or (y != x and max(sizes) < 3 * SMALLEST):
            return strides
        strides.append((1 + y, 1 + x))
        sizes = [-(-size // stride) for size, stride in zip(sizes, strides[-1], strict=True)]


class AffineInstanceNorm(InstanceNorm):
    """Instance norm, then a learnt scale and shift for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, *maps: Tensor) -> Tensor:
        """Join (b, c, y, x) maps along c, normalise, scale and shift; the dtype stays the same."""
        normalized = super().forward(*maps)
        scale, shift = (p.to(normalized.dtype)[:, None, None] for p in (self.weight, self.bias))
        return torch.addcmul(shift, normalized, scale)


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a 1 x 1 convolution; the first of each may have a stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: Stride = (1, 1)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm1 = AffineInstanceNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = AffineInstanceNorm(out_channels)
        self.conv3 = nn.Conv2d(in_channels, out_channels, 1)
        self.stride = stride

    def forward(self, maps: Tensor) -> Tensor:
        update = self.norm2(self.conv2(F.leaky_relu(self.norm1(self.conv1(maps)))))
        # Pixels are left out before the 1 x 1 convolution: as part of it, its backward pass on the
        # CPU writes outside of its memory (torch 2.13, channels-last, 8 channels to 16).
        kept = channels_last(maps[:, :, :: self.stride[0], :: self.stride[1]])
        return F.leaky_relu(update + self.conv3(kept))


class _ConvNorm(nn.Module):
    """A 3 x 3 convolution and its norm, under the names of the published code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = AffineInstanceNorm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.conv(maps))


class _IdentityBlock(nn.Module):
    """Two 3 x 3 convolutions beside the unchanged maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(channels)
        self.conv2 = _ConvNorm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        return F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(maps))) + maps)


def _blocks(in_channels: int, channels: int, count: int, stride: Stride = (1, 1)) -> nn.Sequential:
    return nn.Sequential(
        _ResidualBlock(in_channels, channels, stride),
        *(_IdentityBlock(channels) for _ in range(count - 1)),
    )


class MambaLayer(nn.Module):
    """Norm and Mamba block on a map, in float32 under autocast too.

    The tokens are the pixels in row-major order. With `tokens_are_channels`, the roles are
    swapped: each channel is a token, and the pixels of the map are its numbers.

    Args:
        d_model: Channels of a token: those of the map, or its number of pixels.
        tokens_are_channels: Swap the roles. The map must then have `d_model` pixels.
        residual: Add the result to the map instead of replacing it.
    """

    def __init__(self, d_model: int, tokens_are_channels: bool, residual: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.mamba = Mamba(d_model)
        self.tokens_are_channels, self.residual = tokens_are_channels, residual

    def forward(self, maps: Tensor) -> Tensor:
        """Map (b, c, y, x) to the same shape."""
        tokens = maps.flatten(2).to(state_dtype(maps.dtype))
        with torch.autocast(maps.device.type, enabled=False):
            if self.tokens_are_channels:
                mixed = self.mamba(self.norm(tokens))
            else:
                mixed = self.mamba(self.norm(tokens.transpose(1, 2))).transpose(1, 2)
        mixed = channels_last(mixed.unflatten(2, maps.shape[2:]).to(maps.dtype))
        return maps + mixed if self.residual else mixed


class _Encoder(nn.Module):
    """Stem at full resolution, then one stage per entry of `strides`."""

    def __init__(
        self,
        in_channels: int,
        features: Sequence[int],
        strides: Sequence[Stride],
        counts: Sequence[int],
        layers: dict[int, MambaLayer],
    ) -> None:
        super().__init__()
        self.stem = _blocks(in_channels, features[0], counts[0])
        self.stages = nn.ModuleList(
            _blocks(before, after, count, stride)
            for before, after, count, stride in zip(
                [features[0], *features[:-1]], features, counts, strides, strict=True
            )
        )
        if layers:
            self.mamba_layers = nn.ModuleList(
                layers.get(stage, nn.Identity()) for stage in range(len(features))
            )

    def forward(self, maps: Tensor) -> list[Tensor]:
        """Return the maps of all stages, fine to coarse."""
        maps = self.stem(maps)
        found = []
        for index, stage in enumerate(self.stages):
            maps = stage(maps)
            if hasattr(self, "mamba_layers"):
                maps = self.mamba_layers[index](maps)
            found.append(maps)
        return found


class _Upsample(nn.Module):
    """Repeat pixels and change the number of channels.

    The 1 x 1 convolution comes first, the published code repeats first: the result is the same.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Stride) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.stride = stride

    def forward(self, maps: Tensor) -> Tensor:
        scale = [float(factor) for factor in self.stride]
        return F.interpolate(self.conv(maps), scale_factor=scale, mode="nearest")


class _Decoder(nn.Module):
    """Upsample, join the encoder's maps and convolve, stage by stage; then a 1 x 1 convolution.

    `keep_heads` carries the convolutions that give coarse logits too, as published checkpoints do;
    they are unused and frozen.
    """

    def __init__(
        self,
        features: Sequence[int],
        strides: Sequence[Stride],
        counts: Sequence[int],
        out_channels: int,
        last_skip: bool,
        keep_heads: bool,
    ) -> None:
        super().__init__()
        coarse_to_fine = features[::-1]
        self.upsample_layers = nn.ModuleList(
            _Upsample(before, after, stride)
            for (before, after), stride in zip(
                pairwise(coarse_to_fine), strides[:0:-1], strict=True
            )
        )
        skips = [*coarse_to_fine[1:-1], features[0] if last_skip else 0]
        self.stages = nn.ModuleList(
            _blocks(channels + skip, channels, count)
            for channels, skip, count in zip(coarse_to_fine[1:], skips, counts, strict=True)
        )
        self.last_skip = last_skip
        heads = coarse_to_fine[1:] if keep_heads else coarse_to_fine[-1:]
        self.seg_layers = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in heads)
        self.seg_layers[:-1].requires_grad_(False)

    def forward(self, found: Sequence[Tensor]) -> Tensor:
        """Map the encoder's maps, fine to coarse, to logits at full resolution."""
        maps = found[-1]
        steps = zip(self.upsample_layers, self.stages, found[-2::-1], strict=True)
        for index, (upsample, stage, skip) in enumerate(steps, start=1):
            maps = upsample(maps)
            if self.last_skip or index < len(self.stages):
                maps = torch.cat([maps, skip], dim=1)
            maps = stage(maps)
        return self.seg_layers[-1](maps)


class UMamba(Network):
    """Residual U-Net with Mamba layers; see `umamba`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        mamba: Literal["bottleneck", "encoder", "none"],
        image_size: Sequence[int],
        strides: Sequence[Stride],
        features: int,
        max_features: int,
        residual: bool,
        last_skip: bool,
        channel_tokens: bool,
        keep_heads: bool,
    ) -> None:
        super().__init__()
        stages = len(strides)
        widths = [min(features * 2**stage, max_features) for stage in range(stages)]
        halvings = [math.prod(stride[axis] for stride in strides) for axis in range(2)]
        padded = tuple(-(-s // h) * h for s, h in zip(image_size, halvings, strict=True))
        self.in_channels, self.out_channels = in_channels, out_channels

        layers = {}
        tied = False
        sizes = padded
        for stage, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            sizes = tuple(s // factor for s, factor in zip(sizes, stride, strict=True))
            pixels = math.prod(sizes)
            if mamba == "encoder" and stage % 2 != stages % 2:
                swap = channel_tokens and pixels <= width
                layers[stage] = MambaLayer(pixels if swap else width, swap, residual)
                tied = tied or swap
        self.fixed_size = padded if tied else None
        self.stride = (1, 1) if tied else tuple(halvings)
        self.max_size = padded if tied else None

        encoder_counts = [2 if stage < math.ceil(stages / 2) else 1 for stage in range(stages)]
        decoder_counts = [2 if step < math.ceil(stages / 2) else 1 for step in range(stages - 1)]
        self.encoder = _Encoder(in_channels, widths, strides, encoder_counts, layers)
        if mamba == "bottleneck":
            self.mamba_layer = MambaLayer(widths[-1], False, residual)
        self.decoder = _Decoder(
            widths, strides, decoder_counts, out_channels, last_skip, keep_heads
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Map (b, in_channels, y, x) to (b, out_channels, y, x) logits.

        Raises:
            ValueError: If the image's channels or size do not fit `in_channels`, `stride` and
                `max_size`.
        """
        self.check_image(image)
        y, x = image.shape[2:]
        if self.fixed_size is not None:
            image = F.pad(image, (0, self.fixed_size[1] - x, 0, self.fixed_size[0] - y))
        found = self.encoder(channels_last(image))
        if hasattr(self, "mamba_layer"):
            found[-1] = self.mamba_layer(found[-1])
        return self.decoder(found)[:, :, :y, :x]


def umamba(
    in_channels: int = 1,
    out_channels: int = 2,
    *,
    mamba: Literal["bottleneck", "encoder", "none"],
    variant: str = "default",
    image_size: int | Sequence[int] = 512,
    strides: Sequence[Sequence[int]] | None = None,
    features: int = 32,
    max_features: int = 512,
    residual: bool | None = None,
    last_skip: bool | None = None,
) -> UMamba:
    """Build a U-Mamba: nnU-Net with residual blocks and Mamba layers.

    A plan of s stages has `features` channels at full resolution, doubled at each stage up to
    `max_features`. The first half of the stages has two blocks, the others one.

    "default" runs at any size that is a multiple of its stride, adds what a Mamba layer finds to
    the maps, and joins the encoder's maps at full resolution. "paper" is the published network for
    weights trained with it: the result of a Mamba layer replaces the maps, and the maps at full
    resolution do not reach the decoder. With `mamba="encoder"` it also lets the channels of small
    maps be the tokens, which ties the weights to `image_size`: smaller images are padded with
    zeros at the bottom and right, larger ones must be cut into tiles.

    Args:
        in_channels: Channels of the image.
        out_channels: Number of maps.
        mamba: "bottleneck" for one layer on the coarsest maps (U-Mamba Bot), "encoder" for a layer
            after every second stage, the last one included (U-Mamba Enc), "none" for the same
            network without.
        variant: "default" or "paper".
        image_size: Side, or (y, x), in pixels, of the images that the network is planned for; see
            `plan_strides`.
        strides: The plan itself, one (y, x) per stage, instead of that of `image_size`.
        features: Channels at full resolution.
        max_features: Most channels of a stage.
        residual: Add the result of a Mamba layer to its input; None as `variant` says.
        last_skip: Join the encoder's maps at full resolution; None as `variant` says.

    Raises:
        ValueError: If `variant` or `mamba` is unknown, or `image_size` too small.

    Source:
        Ma, Li & Wang 2024, https://arxiv.org/abs/2401.04722. Deviation of "paper": the coarse
        logits of deep supervision are not computed.
    """
    if variant not in ("default", "paper"):
        raise ValueError(f"Unknown `variant` {variant!r}. Known: default, paper.")
    if mamba not in ("bottleneck", "encoder", "none"):
        raise ValueError(f"Unknown `mamba` {mamba!r}. Known: bottleneck, encoder, none.")
    published = variant == "paper"
    planned = plan_strides(image_size) if strides is None else [(y, x) for y, x in strides]
    return UMamba(
        in_channels,
        out_channels,
        mamba=mamba,
        image_size=[image_size] * 2 if isinstance(image_size, int) else image_size,
        strides=planned,
        features=features,
        max_features=max_features,
        residual=not published if residual is None else residual,
        last_skip=not published if last_skip is None else last_skip,
        channel_tokens=published,
        keep_heads=published,
    )
