"""Other people's code to measure against, from their own packages: torch-em and mambapy.

torch-em's networks need torch alone, but `import torch_em` loads torchvision, kornia and elf for
everything else that is in it (6.5 GB installed). So it is installed without its dependencies, and
its networks are imported past the `__init__` files: the packages `torch_em` and `torch_em.model`
are made but not run. The code of the networks is theirs, unchanged.
"""

import importlib
import importlib.util
import sys
from importlib import metadata
from typing import Any

from torch import Tensor, nn

_MISSING = "{} is needed to compare with: run `make bench`, which installs it."


def torch_em_networks(module: str) -> Any:
    """Import one module of `torch_em.model`, for example "unet".

    Raises:
        ImportError: If torch-em is not installed.
    """
    for package in ("torch_em", "torch_em.model"):
        if package not in sys.modules:
            spec = importlib.util.find_spec(package)
            if spec is None:
                raise ImportError(_MISSING.format("torch-em"))
            sys.modules[package] = importlib.util.module_from_spec(spec)  # nothing is run
    return importlib.import_module(f"torch_em.model.{module}")


def torch_em_unet(in_channels: int = 1, out_channels: int = 2, features: int = 64) -> nn.Module:
    """Build torch-em's UNet2d, in eval mode, without final activation."""
    unet = torch_em_networks("unet").UNet2d(in_channels, out_channels, initial_features=features)
    return unet.eval()


def torch_em_unetr(encoder: nn.Module, out_channels: int = 2) -> Any:
    """Build torch-em's UNETR around an encoder, in eval mode, as the first ViM-UNet had it.

    Without skip connections and with transposed convolutions.

    Args:
        encoder: Has the attributes `embed_dim`, `in_chans` and `img_size`.
        out_channels: Number of maps.
    """
    unetr = torch_em_networks("unetr").UNETR(
        img_size=encoder.img_size,
        encoder=encoder,
        out_channels=out_channels,
        resize_input=False,
        use_skip_connection=False,
        use_conv_transpose=True,
    )
    return unetr.eval()


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Run mambapy's parallel scan; arguments as in `selective_scan_reference`.

    Raises:
        ImportError: If mambapy is not installed.
    """
    try:
        from mambapy.mamba import MambaBlock
    except ImportError as error:
        raise ImportError(_MISSING.format("mambapy")) from error
    return MambaBlock.selective_scan(None, u, delta, A, B, C, D)


def version(package: str) -> str:
    """Return the version of an installed package."""
    return metadata.version(package)
