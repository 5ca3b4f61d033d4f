"""The networks of this project as trainers of nnU-Net, which finds them by `nnUNet_extTrainer`.

nnU-Net keeps its data, augmentation, losses and inference; only the network and its optimiser
are ours: AdamW with weight decay 0.01, from 1e-4 for ViM-UNet and 1e-3 for VM-UNet (the rates of
their papers), where nnU-Net's stochastic gradient descent at 1e-2 suits neither. U-Mamba and its
twin without Mamba keep nnU-Net's optimiser, as published, and take the stages and channels from
the plan. There is no deep supervision: all of these networks give one map.

`VIMUNET_NNUNET_EPOCHS`, `VIMUNET_NNUNET_ITERATIONS` and `VIMUNET_NNUNET_VAL_ITERATIONS` shorten
a run; without them it has nnU-Net's 1000 epochs of 250 and 50 iterations.
`nnUNetTrainerShort` is nnU-Net's own network under the same three variables.

    export nnUNet_extTrainer=$PWD/experiments/benchmark/nnunet_trainers
    nnUNetv2_train 501 2d 0 -tr nnUNetTrainerViMUNet

Written for nnunetv2 2.8.
"""

import os
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from vimunet.models import Network, build_model


class Padded(nn.Module):
    """A network for images of any size: zeros are added at the bottom and right, and cut off.

    nnU-Net standardises each image, so that zero is its mean.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Map (b, c, [z,] y, x) to (b, m, [z,] y, x) logits."""
        size = image.shape[2:]
        missing = [
            full - length for length, full in zip(size, self.network.padded(size), strict=True)
        ]
        padding = [pixels for behind in reversed(missing) for pixels in (0, behind)]
        return self.network(F.pad(image, padding))[(..., *(slice(length) for length in size))]


class nnUNetTrainerShort(nnUNetTrainer):  # noqa: N801
    """nnU-Net's own trainer, as long as the environment says."""

    def initialize(self) -> None:  # noqa: D102
        for variable, attribute in (
            ("VIMUNET_NNUNET_EPOCHS", "num_epochs"),
            ("VIMUNET_NNUNET_ITERATIONS", "num_iterations_per_epoch"),
            ("VIMUNET_NNUNET_VAL_ITERATIONS", "num_val_iterations_per_epoch"),
        ):
            if variable in os.environ:
                setattr(self, attribute, int(os.environ[variable]))
        super().initialize()


class _Trainer(nnUNetTrainerShort):
    """What the trainers below share; each names its network."""

    model: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    learning_rate: ClassVar[float | None] = None  # of AdamW; None for nnU-Net's optimiser

    def initialize(self) -> None:  # noqa: D102
        self.enable_deep_supervision = False
        if self.learning_rate is not None:
            self.initial_lr, self.weight_decay = self.learning_rate, 1e-2
        super().initialize()

    @classmethod
    def build_network_architecture(  # noqa: D102
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        options = cls.options | cls.planned(configuration_manager.network_arch_init_kwargs)
        return Padded(build_model(cls.model, num_input_channels, num_output_channels, **options))

    @classmethod
    def planned(cls, architecture: dict) -> dict[str, Any]:
        """Return the options of the network that nnU-Net's plan decides."""
        return {}

    def configure_optimizers(self) -> Any:  # noqa: D102
        if self.learning_rate is None:
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:  # noqa: D102
        pass

    def _do_i_compile(self) -> bool:
        return False  # nnU-Net compiles on CUDA; the scans bring compiled kernels of their own


class _Planned(_Trainer):
    """Stages and channels are those of nnU-Net's own network, with the plan's optimiser."""

    @classmethod
    def planned(cls, architecture: dict) -> dict[str, Any]:
        features = architecture["features_per_stage"]
        return {
            "strides": architecture["strides"],
            "features": features[0],
            "max_features": max(features),
        }


class nnUNetTrainerViMUNet(_Trainer):  # noqa: N801
    """ViM-UNet tiny, with skip connections.

    nnU-Net's patches are small and its runs may be short; without the image's own edges in the
    decoder, boundaries one pixel wide take much longer to learn.
    """

    model, options, learning_rate = "vim_t", {"skip_connections": True}, 1e-4


class nnUNetTrainerVMUNet(_Trainer):  # noqa: N801
    """VM-UNet, the network of the paper's experiments."""

    model, learning_rate = "vmunet", 1e-3


class nnUNetTrainerUMambaBot(_Planned):  # noqa: N801
    """U-Mamba with one Mamba layer at the bottom."""

    model = "umamba_bot"


class nnUNetTrainerUMambaEnc(_Planned):  # noqa: N801
    """U-Mamba with a Mamba layer after every second stage of the encoder."""

    model = "umamba_enc"


class nnUNetTrainerResUNet(_Planned):  # noqa: N801
    """U-Mamba's residual U-Net without Mamba, the control."""

    model = "resunet"
