"""A token encoder and a convolutional decoder: ViM-UNet and UNETR.

The encoder folds the image to a 16 times smaller grid of tokens; the decoder doubles it four
times. What joins the maps on the way up (the side path) comes from the last encoder layer, from
layers in between, from the image, or from convolutions ahead of the tokens. Parameter names follow
torch-em's UNETR class.

Source:
    Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705;
    Hatamizadeh et al. 2022, "UNETR", https://arxiv.org/abs/2103.10504, for the idea.
    Deviation: `forward` returns logits, torch-em's the sigmoid of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimunet.models.network import Network, channels_last
from vimunet.models.unet import (
    ConvBlock,
    Decoder,
    Encoder,
    InstanceNorm,
    Upsample,
)
from vimunet.models.vim import PATCH_SIZE, Mixer, VimEncoder
from vimunet.models.vit import ViTEncoder

FEATURES = (512, 256, 128, 64, 64)
"""Channels of the decoder at 1/16 (after `base`), 1/8, 1/4, 1/2 and full size, as published."""

SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Canvas:
    """The square on which the published networks see every image.

    Attributes:
        size: Height and width in pixels.
        resize_input: Scale the image so that its longest side becomes `size`, and the
            probabilities back; otherwise keep the scale and accept no larger image.
        sam_stats: Normalise RGB values in [0, 255] by Segment Anything's mean and spread.
    """

    size: int
    resize_input: bool = False
    sam_stats: bool = False

    def place(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Put an image into the top left corner of the canvas, zeros elsewhere.

        Args:
            image: (b, 1 or 3, y, x); one channel is shown three times.

        Returns:
            (b, 3, size, size) canvas, and the height and width of the image on it.
        """
        image = image.expand(-1, 3, -1, -1)
        if self.resize_input:
            y, x = image.shape[2:]
            scale = self.size / max(y, x)
            shape = (int(y * scale + 0.5), int(x * scale + 0.5))
            if shape != (y, x):
                image = F.interpolate(image, shape, mode="bilinear", antialias=True)
        if self.sam_stats:
            mean, std = image.new_tensor([SAM_MEAN, SAM_STD])[:, :, None, None]
            image = (image - mean) / std
        y, x = image.shape[2:]
        return F.pad(image, (0, self.size - x, 0, self.size - y)), (y, x)

    def take(self, logits: Tensor, placed: tuple[int, int], shape: Sequence[int]) -> Tensor:
        """Cut the image out of the canvas again, at the image's own size.

        Args:
            logits: (b, m, size, size) on the canvas.
            placed: Height and width of the image on the canvas.
            shape: Height and width of the image.

        Returns:
            (b, m, *shape) logits. After a resize, those of the resized probabilities (as in
            torch-em, which resizes behind the sigmoid), limited to -16 ... 16.
        """
        logits = logits[:, :, : placed[0], : placed[1]]
        if placed == tuple(shape):
            return logits
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return torch.logit(
            F.interpolate(logits.sigmoid(), tuple(shape), mode="bilinear"), eps=1.2e-7
        )


class _Convolution(nn.Module):
    """3 x 3 convolution under the parameter name that torch-em gives it."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.block = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=bias)

    def forward(self, maps: Tensor) -> Tensor:
        return self.block(maps)


class Deconv(nn.Module):
    """Double height and width, 3 x 3 convolution, norm, ReLU.

    Args:
        in_channels: Channels before.
        out_channels: Channels after.
        upsampling: "transposed" or "bilinear", see `Upsample`.
        batch_norm: Batch norm as published; otherwise an instance norm, which is the same in
            train and eval mode and does not tie the images of a batch together (and would take
            away again a bias of the convolution, which is left out).
    """

    def __init__(
        self, in_channels: int, out_channels: int, upsampling: str, batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.batch_norm = batch_norm
        self.block = nn.Sequential(
            Upsample(in_channels, out_channels, upsampling),
            _Convolution(out_channels, bias=batch_norm),
            nn.BatchNorm2d(out_channels) if batch_norm else InstanceNorm(),
            nn.ReLU(inplace=True),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (b, in_channels, y, x) to (b, out_channels, 2 y, 2 x)."""
        if self.training or not self.batch_norm:
            return self.block(maps)
        norm: Any = self.block[2]
        conv: Any = self.block[1].block  # outside of training, the norm is a part of its weights
        factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight = conv.weight * factor[:, None, None, None]
        bias = (conv.bias - norm.running_mean) * factor + norm.bias
        return F.relu(F.conv2d(self.block[0](maps), weight, bias, padding=1), inplace=True)


class EncoderDecoder(Network):
    """Token encoder and decoder; the side path upsamples the last encoder map step by step.

    Nothing finer than the token grid reaches the decoder here. Subclasses change that; they
    replace `_build_side_path` and `_side_path`.

    The batch norm of the side path is the published one. It makes an image's maps depend on
    the others of its batch in train mode, and eval mode uses running means instead.

    Args:
        encoder: (b, c, y, x) -> list of maps, the last of them (b, embed_dim, y / 16, x / 16) from
            its last layer. Which others there are is between it and the subclass.
        embed_dim: Channels of the encoder's maps.
        in_channels: Channels of the image.
        out_channels: Number of maps.
        upsampling: "transposed" or "bilinear", see `Upsample`.
        canvas: How a published network places its input; None to run at the image's own size.
        features: Channels of the decoder, see `FEATURES`.

    Raises:
        ValueError: If there is a canvas and `in_channels` is neither 1 nor 3.
    """

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int,
        in_channels: int,
        out_channels: int,
        upsampling: str = "transposed",
        canvas: Canvas | None = None,
        features: Sequence[int] = FEATURES,
    ) -> None:
        super().__init__()
        if canvas is not None and in_channels not in (1, 3):
            raise ValueError(
                f"`in_channels` must be 1 or 3 for a published variant, got {in_channels}. "
                'Use variant="default" for other images.'
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.canvas = canvas
        self.stride = (16, 16) if canvas is None else (1, 1)
        if canvas is not None and not canvas.resize_input:
            self.max_size = (canvas.size, canvas.size)

        self.features = tuple(features)
        self.encoder = encoder
        self.base = ConvBlock(embed_dim, self.features[0])
        self.decoder = Decoder(self.features[:-1], upsampling)
        channels = in_channels if canvas is None else 3
        side_channels = self._build_side_path(channels, embed_dim, upsampling)
        self.deconv_out = Upsample(self.features[-2], self.features[-1], upsampling)
        self.decoder_head = ConvBlock(self.features[-1] + side_channels, self.features[-1])
        self.out_conv = nn.Conv2d(self.features[-1], out_channels, kernel_size=1)

    def _build_side_path(self, in_channels: int, embed_dim: int, upsampling: str) -> int:
        """Create the layers of the side path; return its number of channels at full size."""
        self.deconv1: nn.Module = Deconv(embed_dim, self.features[0], upsampling)
        self.deconv2: nn.Module = Deconv(self.features[0], self.features[1], upsampling)
        self.deconv3: nn.Module = Deconv(self.features[1], self.features[2], upsampling)
        self.deconv4: nn.Module = Deconv(self.features[2], self.features[3], upsampling)
        return self.features[3]

    def _side_path(self, image: Tensor, grids: list[Tensor]) -> list[Tensor]:
        """Return the maps that join the decoder at 1/8, 1/4, 1/2 and full size."""
        eighth = self.deconv1(grids[-1])
        quarter = self.deconv2(eighth)
        half = self.deconv3(quarter)
        return [eighth, quarter, half, self.deconv4(half)]

    def forward(self, image: Tensor) -> Tensor:
        """Map (b, in_channels, y, x) to (b, out_channels, y, x) logits.

        Raises:
            ValueError: If the image's channels or size do not fit `in_channels`, `stride` and
                `max_size`. (torch-em crops an image larger than the canvas without a word.)
        """
        self.check_image(image)
        if self.canvas is None:
            return self._logits(image)
        canvas, placed = self.canvas.place(image)
        return self.canvas.take(self._logits(canvas), placed, image.shape[2:])

    def _logits(self, image: Tensor) -> Tensor:
        grids = [channels_last(grid) for grid in self.encoder(image)]
        *skips, full = self._side_path(image, grids)
        maps = self.deconv_out(self.decoder(self.base(grids[-1]), skips))
        return self.out_conv(self.decoder_head(maps, full))


class LayerSkips(EncoderDecoder):
    """UNETR's side path: three layers in between, each upsampled by its own layers, and the image.

    The encoder returns four maps. The deepest of the first three joins at 1/8, the shallowest at
    1/2, a convolution block on the image at full size.
    """

    def _build_side_path(self, in_channels: int, embed_dim: int, upsampling: str) -> int:
        widths = (embed_dim, *self.features[:3])
        self.deconv1 = Deconv(embed_dim, self.features[0], upsampling)
        self.deconv2 = nn.Sequential(*(Deconv(a, b, upsampling) for a, b in pairwise(widths[:3])))
        self.deconv3 = nn.Sequential(*(Deconv(a, b, upsampling) for a, b in pairwise(widths)))
        self.deconv4 = ConvBlock(in_channels, self.features[3])
        return self.features[3]

    def _side_path(self, image: Tensor, grids: list[Tensor]) -> list[Tensor]:
        shallow, middle, deep = grids[:3]
        return [
            self.deconv1(deep),
            self.deconv2(middle),
            self.deconv3(shallow),
            self.deconv4(image),
        ]


class ImageSkips(EncoderDecoder):
    """Our side path for ViM-UNet: two layers in between, and convolutions on the image.

    The encoder returns three maps: the second, after 2/3 of the layers, joins at 1/8, the first,
    after 1/3, at 1/4. At 1/2 and full size the image itself joins, so that the decoder can place
    edges to the pixel. There is no batch norm.
    """

    def _build_side_path(self, in_channels: int, embed_dim: int, upsampling: str) -> int:
        self.deconv1 = Deconv(embed_dim, self.features[1], upsampling, batch_norm=False)
        self.deconv2 = nn.Sequential(
            Deconv(embed_dim, self.features[2], upsampling, batch_norm=False),
            Deconv(self.features[2], self.features[2], upsampling, batch_norm=False),
        )
        full = self.features[3] // 2
        self.image_full = ConvBlock(in_channels, full)
        self.image_half = ConvBlock(full, self.features[3])
        return full

    def _side_path(self, image: Tensor, grids: list[Tensor]) -> list[Tensor]:
        full = self.image_full(image)
        half = self.image_half(F.max_pool2d(full, kernel_size=2))
        return [self.deconv1(grids[1]), self.deconv2(grids[0]), half, full]


class StemEncoder(nn.Module):
    """A UNet's encoder on the image, and Vision Mamba on its coarsest maps.

    Each token is one pixel of those maps, seen through four blocks of convolutions, each halved,
    instead of a patch of the image.

    Args:
        in_channels: Channels of the image.
        features: Channels of the convolutions at full, 1/2, 1/4 and 1/8 size.
        encoder: Takes maps of features[-1] channels at 1/16 size, with patches of one pixel.

    Attributes:
        channels: Channels of each returned map.
        strides: Pixels per cell of each returned map.
    """

    def __init__(self, in_channels: int, features: Sequence[int], encoder: VimEncoder) -> None:
        super().__init__()
        self.stem = Encoder(in_channels, features)
        self.norm = InstanceNorm()
        self.tokens = encoder
        self.channels = (*features, *encoder.channels)
        self.strides = (1, 2, 4, 8, 16)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (b, in_channels, y, x) to the maps of the convolutions, fine to coarse, and tokens.

        The i-th map is (b, channels[i], y / strides[i], x / strides[i]).
        """
        maps, skips = self.stem(channels_last(image))
        return [*skips[::-1], *self.tokens(self.norm(maps))]


class StemSkips(EncoderDecoder):
    """The side path of a UNet: the convolutions of the encoder, a `StemEncoder` of equal widths."""

    def _build_side_path(self, in_channels: int, embed_dim: int, upsampling: str) -> int:
        return self.features[-1]

    def _side_path(self, image: Tensor, grids: list[Tensor]) -> list[Tensor]:
        return grids[3::-1]


@dataclass(frozen=True)
class _Generation:
    """What changed between the three published ViM-UNets."""

    rope: bool
    class_token: Literal["front", "middle"]
    legacy_removal: bool
    average: bool
    upsampling: str


GENERATIONS = {
    "paper": _Generation(True, "front", False, False, "transposed"),
    "torch-em-0.7.5": _Generation(False, "middle", True, True, "transposed"),
    "torch-em-0.7.10": _Generation(False, "middle", True, True, "bilinear"),
}


def vim_unet(
    in_channels: int = 1,
    out_channels: int = 2,
    *,
    embed_dim: int,
    depth: int = 24,
    variant: str = "default",
    skip_connections: bool = False,
    conv_stem: bool = False,
    image_size: int | None = None,
    drop_path_rate: float = 0.1,
    features: Sequence[int] = FEATURES,
    mixer: Mixer = "mamba",
    num_classes: int = 1000,
) -> EncoderDecoder:
    """Build a ViM-UNet: bidirectional Mamba encoder, convolutional decoder.

    "default" runs at the image's own size (any multiple of 16), has no class token, and halves
    the sum of the two scan directions. The others are torch-em's three generations, faults
    included, for weights trained with it: they place the image on a square of zeros.

    - "paper": torch-em 0.7.0 to 0.7.4, the paper. Rotary position embedding, class token in
      front, directions summed.
    - "torch-em-0.7.5": to 0.7.9. No rotary embedding, class token in the middle, but the first
      token is removed instead of it, which shifts half of the grid by one token.
    - "torch-em-0.7.10": and later. The same with bilinear upsampling.

    Args:
        in_channels: Channels of the image; 1 or 3 for a published variant.
        out_channels: Number of maps.
        embed_dim: Channels of a token: 192 tiny, 384 small, 768 base.
        depth: Number of Mamba layers; 0 leaves the tokens unmixed.
        variant: "default", "paper", "torch-em-0.7.5" or "torch-em-0.7.10".
        skip_connections: Join the image and two layers in between (`ImageSkips`) instead of
            upsampling the last layer; ours, only for "default".
        conv_stem: Make the tokens of a UNet's encoder (`StemEncoder`), whose maps the decoder
            joins too (`StemSkips`); ours, only for "default", instead of `skip_connections`.
        image_size: Pixels per side of the grid that the position embedding is stored for. 512
            for "default", which interpolates it to the image; 1024 for the published variants,
            whose square it is.
        drop_path_rate: Probability of leaving out the last layer in training, less before it.
        features: Channels of the decoder at 1/16, 1/8, 1/4, 1/2 and all of the image's size, the
            last four also those of the stem; the published ones unless "default".
        mixer: What mixes the tokens: "mamba", or "convolution" at about the same cost (see
            `VimEncoder`), to tell what the scans are worth; only for "default".
        num_classes: Size of the classification head that published checkpoints carry unused.

    Raises:
        ValueError: If `variant` is unknown, or has neither skip connections nor stem, both are
            asked for, `image_size` is no multiple of 16, `features` are not five, or `depth` is
            less than 3 with skip connections.

    Source:
        Archit & Pape 2024, https://arxiv.org/abs/2404.07705, and torch-em's `get_vimunet_model`
        (the generations above; `VimEncoder` and `EncoderDecoder` say what differs in each part).
    """
    if skip_connections and depth < 3:
        raise ValueError(f"`depth` must be at least 3 for `skip_connections`, got {depth}.")
    if skip_connections and conv_stem:
        raise ValueError(
            "`skip_connections` must be False with `conv_stem`, which has its own, got True."
        )
    if variant == "default" and conv_stem:
        size, widths = image_size or 512, tuple(features)[:0:-1]
        if len(features) != len(FEATURES):
            raise ValueError(
                f"`features` must name {len(FEATURES)} numbers of channels, got {list(features)}."
            )
        if size < PATCH_SIZE or size % PATCH_SIZE:
            raise ValueError(f"`image_size` must be a multiple of {PATCH_SIZE}, got {size}.")
        stem = StemEncoder(
            in_channels,
            widths,
            VimEncoder(
                widths[-1],
                size // PATCH_SIZE,
                embed_dim,
                depth,
                drop_path_rate=drop_path_rate,
                patch_size=1,
                mixer=mixer,
            ),
        )
        return StemSkips(stem, embed_dim, in_channels, out_channels, features=features)
    if variant == "default":
        layers = (depth // 3 - 1, 2 * depth // 3 - 1) if skip_connections else ()
        encoder = VimEncoder(
            in_channels,
            image_size or 512,
            embed_dim,
            depth,
            drop_path_rate=drop_path_rate,
            intermediate=layers,
            mixer=mixer,
        )
        network = ImageSkips if skip_connections else EncoderDecoder
        return network(encoder, embed_dim, in_channels, out_channels, features=features)
    if variant not in GENERATIONS:
        raise ValueError(
            f"Unknown `variant` {variant!r}. Known: {', '.join(['default', *GENERATIONS])}."
        )
    for option, value, published in (
        ("skip_connections", skip_connections, False),
        ("conv_stem", conv_stem, False),
        ("mixer", mixer, "mamba"),
    ):
        if value != published:
            raise ValueError(
                f"`{option}` must be {published!r} for variant={variant!r}, got {value!r}. "
                'Only variant="default" has a choice.'
            )
    size = image_size or 1024
    generation = GENERATIONS[variant]
    encoder = VimEncoder(
        3,
        size,
        embed_dim,
        depth,
        rope=generation.rope,
        class_token=generation.class_token,
        legacy_removal=generation.legacy_removal,
        average=generation.average,
        drop_path_rate=drop_path_rate,
        keep_head=num_classes,
    )
    return EncoderDecoder(
        encoder, embed_dim, in_channels, out_channels, generation.upsampling, Canvas(size)
    )


def unetr(
    in_channels: int = 1,
    out_channels: int = 2,
    *,
    embed_dim: int,
    depth: int,
    num_heads: int,
    variant: str = "default",
    skip_connections: bool = False,
    upsampling: str = "transposed",
    image_size: int | None = None,
    window: int = 14,
    global_layers: Sequence[int] | None = None,
    resize_input: bool = True,
    sam_stats: bool = False,
) -> EncoderDecoder:
    """Build a UNETR: Segment Anything's image encoder from scratch, convolutional decoder.

    Args:
        in_channels: Channels of the image; 1 or 3 for the published variant.
        out_channels: Number of maps.
        embed_dim: Channels of a token.
        depth: Number of transformer layers.
        num_heads: Attention heads.
        variant: "default" runs at the image's own size (any multiple of 16). "paper" is
            torch-em's UNETR, which places the image on a square of `image_size`.
        skip_connections: Join three layers in between and the image (`LayerSkips`) instead of
            upsampling the last layer. The paper's text has them off; its table of parameters
            counts the networks that have them.
        upsampling: "transposed" or "bilinear".
        image_size: Pixels per side of the grid that the position embeddings are stored for. 512
            for "default", which interpolates them to the image; 1024 for "paper".
        window: Side of an attention window, in tokens.
        global_layers: Layers that attend over the whole image; None for the last of each quarter.
        resize_input: Scale the image to the square (see `Canvas`); only for "paper".
        sam_stats: Normalise as Segment Anything does (see `Canvas`); only for "paper".

    Raises:
        ValueError: If `variant` or `upsampling` is unknown, a size does not fit, or
            `skip_connections` meets fewer than three global layers before the last.

    Source:
        Archit & Pape 2024, https://arxiv.org/abs/2404.07705, and torch-em's UNETR;
        see `ViTEncoder` and `EncoderDecoder` for deviations.
    """
    if variant not in ("default", "paper"):
        raise ValueError(f"Unknown `variant` {variant!r}. Known: default, paper.")
    published = variant == "paper"
    size = image_size or (1024 if published else 512)
    if global_layers is None:
        global_layers = [(quarter + 1) * depth // 4 - 1 for quarter in range(4)]
    if skip_connections and len(global_layers) < 3:
        raise ValueError(
            f"`global_layers` must name at least 3 layers for skip connections, "
            f"got {list(global_layers)}."
        )
    encoder = ViTEncoder(
        3 if published else in_channels,
        size,
        embed_dim,
        depth,
        num_heads,
        global_layers,
        window,
        intermediate=sorted(global_layers)[:3] if skip_connections else (),
        keep_neck=published,
    )
    canvas = Canvas(size, resize_input, sam_stats) if published else None
    network = LayerSkips if skip_connections else EncoderDecoder
    return network(encoder, embed_dim, in_channels, out_channels, upsampling, canvas)
