"""Convolution blocks, the decoder that all our networks share, and the UNet.

Parameter names follow torch-em, so that its checkpoints load without renaming.

Source:
    Ronneberger et al. 2015, "U-Net", https://arxiv.org/abs/1505.04597, in the form of torch-em's
    UNet2d: padded convolutions, and an instance norm before each of them.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimunet.models import compiled

UPSAMPLING = ("transposed", "bilinear")


def check_image(image: Tensor, channels: int, stride: int, max_size: int | None = None) -> None:
    """Raise if a network cannot take this image.

    Args:
        image: (b, c, y, x) input of the network.
        channels: Number of channels c that the network takes.
        stride: Number that y and x must be divisible by.
        max_size: Largest y and x, in pixels; None for any.

    Raises:
        ValueError: If the number of axes or channels, or the size, does not fit.
    """
    if image.ndim != 4 or image.shape[1] != channels:
        raise ValueError(f"`image` must be (b, {channels}, y, x), got {tuple(image.shape)}.")
    y, x = image.shape[2:]
    if max_size is not None and max(y, x) > max_size:
        raise ValueError(
            f"Image size ({y}, {x}) must be at most ({max_size}, {max_size}) for this network. "
            "Cut it into tiles, or call `predict`, which does it for you."
        )
    if y % stride or x % stride or min(y, x) == 0:
        padded = tuple(max(-(-size // stride), 1) * stride for size in (y, x))
        raise ValueError(
            f"Image size ({y}, {x}) must be divisible by {stride}. "
            f"Pad it to {padded}, or call `predict`, which pads for you."
        )


def channels_last(maps: Tensor) -> Tensor:
    """Store (b, c, y, x) maps channels-last on the CPU, where convolutions are faster so.

    All our layers keep the format, so that it costs one copy per network.
    """
    if maps.device.type != "cpu":
        return maps
    return maps.contiguous(memory_format=torch.channels_last)


class InstanceNorm(nn.Module):
    """Give each channel of each image zero mean and unit variance; no parameters.

    The variance is the biased one, with 1e-5 added. A map of one pixel becomes zero.

    Args:
        relu: Apply a ReLU before, in the same pass over memory.
    """

    eps = 1e-5

    def __init__(self, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu

    def forward(self, *maps: Tensor) -> Tensor:
        """Join (b, c, y, x) maps along c and normalise: (b, sum of c, y, x), of the same dtype."""
        if maps[0].shape[2:].numel() == 1:
            return torch.cat(maps, dim=1) * 0
        if compiled.runs(*maps):
            return compiled.instance_norm(maps, self.relu, self.eps)
        joined = torch.cat(maps, dim=1)
        return F.instance_norm(F.relu(joined) if self.relu else joined, eps=self.eps)


class ConvBlock(nn.Module):
    """Instance norm, 3 x 3 convolution, ReLU, and the same again."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            InstanceNorm(),
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.Identity(),  # torch-em's ReLU; here the next norm does it
            InstanceNorm(relu=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, *maps: Tensor) -> Tensor:
        """Map (b, c, y, x), their c adding up to in_channels, to (b, out_channels, y, x)."""
        return self.block[1:](self.block[0](*maps))


class Upsample(nn.Module):
    """Double height and width, and change the number of channels.

    "transposed" is a 2 x 2 transposed convolution with stride 2. "bilinear" is a 1 x 1
    convolution and bilinear interpolation; torch-em interpolates first, which gives the same
    result (both are linear, and interpolation weights sum to one) for four times the work.

    Raises:
        ValueError: If `upsampling` is neither of the two.
    """

    def __init__(self, in_channels: int, out_channels: int, upsampling: str) -> None:
        super().__init__()
        if upsampling not in UPSAMPLING:
            raise ValueError(
                f"Unknown `upsampling` {upsampling!r}. Known: {', '.join(sorted(UPSAMPLING))}."
            )
        self.transposed = upsampling == "transposed"
        if self.transposed:
            self.block = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (b, in_channels, y, x) to (b, out_channels, 2 y, 2 x)."""
        if self.transposed:
            return self.block(maps)
        return F.interpolate(self.conv(maps), scale_factor=2, mode="bilinear")


class Decoder(nn.Module):
    """Upsample step by step; after each step join a skip and convolve.

    A skip with more channels than the upsampled maps is cut to their number, at the centre:
    of 512 channels beside 256, channels 128 to 383 are used. Published ViM-UNet and UNETR
    checkpoints depend on it (torch-em crops all axes alike); in the UNet the numbers are equal.

    Args:
        features: Channels of the maps, coarse to fine; one more than there are steps.
        upsampling: "transposed" or "bilinear", see `Upsample`.
    """

    def __init__(self, features: Sequence[int], upsampling: str) -> None:
        super().__init__()
        steps = list(pairwise(features))
        self.blocks = nn.ModuleList(ConvBlock(2 * fine, fine) for _, fine in steps)
        self.samplers = nn.ModuleList(Upsample(coarse, fine, upsampling) for coarse, fine in steps)

    def forward(self, maps: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Map (b, features[0], y, x) to (b, features[-1], y * 2**steps, x * 2**steps).

        Args:
            maps: (b, features[0], y, x) the coarsest maps.
            skips: One (b, c, y * 2**i, x * 2**i) per step i = 1, 2, ..., c >= features[i].
        """
        for sampler, block, skip in zip(self.samplers, self.blocks, skips, strict=True):
            maps = sampler(maps)
            channels = maps.shape[1]
            start = (skip.shape[1] - channels) // 2
            maps = block(maps, skip[:, start : start + channels])
        return maps


class Encoder(nn.Module):
    """Convolve and halve step by step; keep the maps before each halving.

    Args:
        in_channels: Channels of the image.
        features: Channels of the maps, fine to coarse.
    """

    def __init__(self, in_channels: int, features: Sequence[int]) -> None:
        super().__init__()
        channels = [in_channels, *features]
        self.blocks = nn.ModuleList(
            ConvBlock(before, after) for before, after in pairwise(channels)
        )

    def forward(self, maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map (b, c, y, x) to the coarsest maps and the skips, coarse to fine."""
        skips: list[Tensor] = []
        for block in self.blocks:
            maps = block(maps)
            skips.insert(0, maps)
            maps = F.max_pool2d(maps, kernel_size=2)
        return maps, skips


class UNet(nn.Module):
    """UNet: `depth` halvings, channels doubled at each.

    Args:
        in_channels: Channels of the image.
        out_channels: Number of maps.
        features: Channels at full resolution.
        depth: Number of halvings; image height and width must be divisible by 2**depth.
        upsampling: "transposed" (the paper's experiments) or "bilinear" (28,941,633 parameters,
            the 28M of the paper's table).

    Source:
        torch-em's UNet2d without its final sigmoid: `forward` returns logits.
    """

    max_size: int | None = None

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        features: int = 64,
        depth: int = 4,
        upsampling: str = "transposed",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = 2**depth
        channels = [features * 2**level for level in range(depth + 1)]
        self.encoder = Encoder(in_channels, channels[:-1])
        self.base = ConvBlock(channels[-2] if depth else in_channels, channels[-1])
        self.decoder = Decoder(channels[::-1], upsampling)
        self.out_conv = nn.Conv2d(features, out_channels, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (b, in_channels, y, x) to (b, out_channels, y, x) logits.

        Raises:
            ValueError: If y or x is not divisible by `stride`.
        """
        check_image(image, self.in_channels, self.stride)
        maps, skips = self.encoder(image)
        return self.out_conv(self.decoder(self.base(maps), skips))
