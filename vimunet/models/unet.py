"""Convolution blocks, the decoder that all our networks share, and the UNet, in 2D and 3D.

Parameter names follow torch-em, so that its checkpoints load without renaming.

Source:
    Ronneberger et al. 2015, "U-Net", https://arxiv.org/abs/1505.04597, in the form of torch-em's
    UNet2d: padded convolutions, and an instance norm before each of them.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimunet.axes import SPATIAL_AXES, SpatialAxes
from vimunet.models import compiled
from vimunet.models.network import Network

UPSAMPLING = ("transposed", "bilinear")

Factors = tuple[int, ...]
"""By how much each axis shrinks or grows."""

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


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
        """Join (b, c, [z,] y, x) maps along c and normalise, in the same dtype."""
        if maps[0].shape[2:].numel() == 1:
            return torch.cat(maps, dim=1) * 0
        if compiled.runs(*maps):
            return compiled.instance_norm(maps, self.relu, self.eps)
        joined = torch.cat(maps, dim=1)
        return F.instance_norm(F.relu(joined) if self.relu else joined, eps=self.eps)


class ConvBlock(nn.Module):
    """Instance norm, convolution of 3 pixels along each axis, ReLU, and the same again."""

    def __init__(self, in_channels: int, out_channels: int, ndim: int = 2) -> None:
        super().__init__()
        convolution = CONVOLUTION[ndim]
        self.block = nn.Sequential(
            InstanceNorm(),
            convolution(in_channels, out_channels, kernel_size=3, padding=1),
            nn.Identity(),  # torch-em's ReLU; here the next norm does it
            InstanceNorm(relu=True),
            convolution(out_channels, out_channels, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, *maps: Tensor) -> Tensor:
        """Map (b, c, [z,] y, x), their c adding up to in_channels, to out_channels."""
        return self.block[1:](self.block[0](*maps))


class Upsample(nn.Module):
    """Enlarge maps, and change the number of channels.

    "transposed" is a transposed convolution whose kernel and stride are the factors. "bilinear" is
    a convolution of one pixel and linear interpolation; torch-em interpolates first, which gives
    the same result (both are linear, and interpolation weights sum to one) for more work.

    Args:
        in_channels: Channels before.
        out_channels: Channels after.
        upsampling: "transposed" or "bilinear".
        factors: By how much each axis grows.

    Raises:
        ValueError: If `upsampling` is neither of the two.
    """

    def __init__(
        self, in_channels: int, out_channels: int, upsampling: str, factors: Factors = (2, 2)
    ) -> None:
        super().__init__()
        if upsampling not in UPSAMPLING:
            raise ValueError(
                f"Unknown `upsampling` {upsampling!r}. Known: {', '.join(sorted(UPSAMPLING))}."
            )
        self.transposed, self.factors = upsampling == "transposed", factors
        if self.transposed:
            transposed: Any = TRANSPOSED[len(factors)]
            self.block = transposed(in_channels, out_channels, kernel_size=factors, stride=factors)
        else:
            self.conv = CONVOLUTION[len(factors)](in_channels, out_channels, kernel_size=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (b, in_channels, [z,] y, x) to (b, out_channels, ...), each axis times its factor."""
        if self.transposed:
            return self.block(maps)
        scale = [float(factor) for factor in self.factors]
        mode = _INTERPOLATION[len(self.factors)]
        return F.interpolate(self.conv(maps), scale_factor=scale, mode=mode)


class Decoder(nn.Module):
    """Upsample step by step; after each step join a skip and convolve.

    A skip with more channels than the upsampled maps is cut to their number, at the centre:
    of 512 channels beside 256, channels 128 to 383 are used. Published ViM-UNet and UNETR
    checkpoints depend on it (torch-em crops all axes alike); in the UNet the numbers are equal.

    Args:
        features: Channels of the maps, coarse to fine; one more than there are steps.
        upsampling: "transposed" or "bilinear", see `Upsample`.
        factors: By how much each step enlarges each axis; None for 2 along y and x.
    """

    def __init__(
        self, features: Sequence[int], upsampling: str, factors: Sequence[Factors] | None = None
    ) -> None:
        super().__init__()
        steps = list(pairwise(features))
        factors = [(2, 2)] * len(steps) if factors is None else factors
        self.blocks = nn.ModuleList(
            ConvBlock(2 * fine, fine, len(factor))
            for (_, fine), factor in zip(steps, factors, strict=True)
        )
        self.samplers = nn.ModuleList(
            Upsample(coarse, fine, upsampling, factor)
            for (coarse, fine), factor in zip(steps, factors, strict=True)
        )

    def forward(self, maps: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Map the coarsest maps to the finest.

        Args:
            maps: (b, features[0], [z,] y, x) the coarsest maps.
            skips: One map per step i = 1, 2, ..., of its size, with at least features[i] channels.
        """
        for sampler, block, skip in zip(self.samplers, self.blocks, skips, strict=True):
            maps = sampler(maps)
            channels = maps.shape[1]
            start = (skip.shape[1] - channels) // 2
            maps = block(maps, skip[:, start : start + channels])
        return maps


class Encoder(nn.Module):
    """Convolve and shrink step by step; keep the maps before each shrinking.

    Args:
        in_channels: Channels of the image.
        features: Channels of the maps, fine to coarse.
        factors: By how much each step shrinks each axis; None for 2 along y and x.
    """

    def __init__(
        self, in_channels: int, features: Sequence[int], factors: Sequence[Factors] | None = None
    ) -> None:
        super().__init__()
        self.factors = [(2, 2)] * len(features) if factors is None else list(factors)
        channels = [in_channels, *features]
        self.blocks = nn.ModuleList(
            ConvBlock(before, after, len(factor))
            for (before, after), factor in zip(pairwise(channels), self.factors, strict=True)
        )

    def forward(self, maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map (b, c, [z,] y, x) to the coarsest maps and the skips, coarse to fine."""
        skips: list[Tensor] = []
        for block, factor in zip(self.blocks, self.factors, strict=True):
            maps = block(maps)
            skips.insert(0, maps)
            maps = _POOL[len(factor)](maps, kernel_size=factor)
        return maps, skips


class UNet(Network):
    """UNet: `depth` halvings, channels doubled at each.

    Args:
        in_channels: Channels of the image.
        out_channels: Number of maps.
        features: Channels at full resolution.
        depth: Number of halvings; the size of an image must be divisible by 2**depth.
        upsampling: "transposed" (the paper's experiments) or "bilinear" (28,941,633 parameters,
            the 28M of the paper's table).
        axes: "yx" for images, "zyx" for volumes.
        strides: Instead of `depth` halvings of each axis: by how much each step shrinks each axis,
            fine to coarse, for sections that are thicker than their pixels are wide.
            [[1, 2, 2], [2, 2, 2]] leaves z as it is at first.

    Raises:
        ValueError: If axes, strides or upsampling are unknown or do not fit each other.

    Source:
        torch-em's UNet2d and UNet3d without their final sigmoid: `forward` returns logits.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        features: int = 64,
        depth: int = 4,
        upsampling: str = "transposed",
        axes: SpatialAxes = "yx",
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if axes not in SPATIAL_AXES:
            raise ValueError(f"Unknown `axes` {axes!r}. Known: {', '.join(SPATIAL_AXES)}.")
        ndim = len(axes)
        factors = [tuple(step) for step in strides or [(2,) * ndim] * depth]
        if any(len(step) != ndim or min(step) < 1 for step in factors):
            raise ValueError(
                f"`strides` must have {ndim} whole numbers > 0 for each step, got {strides}."
            )
        self.in_channels, self.out_channels, self.axes = in_channels, out_channels, axes
        self.stride = tuple(math.prod(step[axis] for step in factors) for axis in range(ndim))
        channels = [features * 2**level for level in range(len(factors) + 1)]
        self.encoder = Encoder(in_channels, channels[:-1], factors)
        self.base = ConvBlock(channels[-2] if factors else in_channels, channels[-1], ndim)
        self.decoder = Decoder(channels[::-1], upsampling, factors[::-1])
        self.out_conv = CONVOLUTION[ndim](features, out_channels, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (b, in_channels, [z,] y, x) to (b, out_channels, [z,] y, x) logits.

        Raises:
            ValueError: If the image does not fit, see `Network.check_image`.
        """
        self.check_image(image)
        maps, skips = self.encoder(image)
        return self.out_conv(self.decoder(self.base(maps), skips))
