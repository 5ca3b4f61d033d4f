"""What every network is, and what it asks of an image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vimunet.axes import SpatialAxes, round_up, shown


class Network(nn.Module):
    """Maps (b, c, [z,] y, x) to (b, m, [z,] y, x) logits, in train and eval mode.

    It has no activation, chooses no device, and prints nothing. A base class instead of a
    `Protocol`, because a protocol cannot say that a network is also a module of torch.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Number of maps.
        axes: Of the image: "yx", or "zyx" for volumes.
        stride: The size of an image must be divisible by it, per axis.
        max_size: Largest size of an image in pixels, per axis; None for any.
        config: Rebuilds the network: `build_model(config["model"], **config["model_args"])`.
    """

    in_channels: int
    out_channels: int
    axes: SpatialAxes = "yx"
    stride: tuple[int, ...]
    max_size: tuple[int, ...] | None = None
    config: dict[str, Any]

    def check_image(self, image: Tensor) -> None:
        """Raise if the network cannot take this image.

        Args:
            image: (b, c, [z,] y, x) input of the network.

        Raises:
            ValueError: If the number of axes or channels, or the size, does not fit.
        """
        if image.ndim != 2 + len(self.axes) or image.shape[1] != self.in_channels:
            raise ValueError(
                f"`image` must be (b, {self.in_channels}, {', '.join(self.axes)}), got "
                f"{tuple(image.shape)}."
            )
        size = tuple(image.shape[2:])
        if self.max_size is not None and any(
            length > largest for length, largest in zip(size, self.max_size, strict=True)
        ):
            raise ValueError(
                f"Image size {size} must be at most {self.max_size} for this network. "
                "Cut it into tiles, or call `predict`, which does it for you."
            )
        padded = self.padded(size)
        if size != padded:
            raise ValueError(
                f"Image size {size} must be divisible by {shown(self.stride)}. "
                f"Pad it to {padded}, or call `predict`, which pads for you."
            )

    def padded(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the smallest size that the network takes and that holds an image."""
        return tuple(
            round_up(max(length, 1), step) for length, step in zip(size, self.stride, strict=True)
        )


def channels_last(maps: Tensor) -> Tensor:
    """Store (b, c, [z,] y, x) maps channels-last on the CPU, where convolutions are faster so.

    All our layers keep the format, so that it costs one copy per network.
    """
    if maps.device.type != "cpu":
        return maps
    form = torch.channels_last if maps.ndim == 4 else torch.channels_last_3d
    return maps.contiguous(memory_format=form)
