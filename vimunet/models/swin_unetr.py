"""Swin UNETR: MONAI's implementation behind the interface of our networks."""

from typing import Any

from torch import Tensor, nn

from vimunet.models.network import Network
from vimunet.models.unet import InstanceNorm


class SwinUNETR(Network):
    """Swin UNETR: windowed transformer encoder, convolutional decoder with skip connections.

    Args:
        in_channels: Channels of the image.
        out_channels: Number of maps.
        features: Channels at half resolution; a multiple of 12.
        drop_path_rate: Probability of leaving out the last layer in training, less before it.

    Raises:
        ImportError: If MONAI is not installed.

    Source:
        Hatamizadeh et al. 2022, https://arxiv.org/abs/2201.01266, by the code of MONAI in its
        two-dimensional form. Deviation: the instance norms are ours, which have no parameters
        either, take maps of one pixel and are faster on the CPU.
    """

    stride = (32, 32)

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        features: int = 48,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        try:
            from monai.networks import nets
        except ImportError as error:
            raise ImportError(
                "Model 'swin_unetr' needs MONAI. Install it with `pip install 'vimunet[monai]'`."
            ) from error
        if features % 12 or features <= 0:
            raise ValueError(f"`features` must be a multiple of 12, got {features}.")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.swin: Any = nets.SwinUNETR(
            in_channels=in_channels,
            out_channels=out_channels,
            feature_size=features,
            dropout_path_rate=drop_path_rate,
            spatial_dims=2,
        )
        for module in list(self.swin.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.InstanceNorm2d):
                    setattr(module, name, InstanceNorm())

    def forward(self, image: Tensor) -> Tensor:
        """Map (b, in_channels, y, x) to (b, out_channels, y, x) logits.

        Raises:
            ValueError: If y or x is not divisible by `stride`.
        """
        self.check_image(image)
        return self.swin(image)
