"""The networks by name, and how to build one.

Axis letters, everywhere in `vimunet`: b images, c channels, m maps, z sections, y rows,
x columns, l tokens, d inner channels, n state size.

What every network is, `Network` says (`network.py`).
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from vimunet.models.encoder_decoder import unetr, vim_unet
from vimunet.models.network import Network
from vimunet.models.swin_unetr import SwinUNETR
from vimunet.models.umamba import umamba
from vimunet.models.unet import UNet
from vimunet.models.vmunet import VMUNet

MODELS: dict[str, Callable[..., Network]] = {
    "resunet": partial(umamba, mamba="none"),
    "swin_unetr": SwinUNETR,
    "umamba_bot": partial(umamba, mamba="bottleneck"),
    "umamba_enc": partial(umamba, mamba="encoder"),
    "unet": UNet,
    "unetr_b": partial(unetr, embed_dim=768, depth=12, num_heads=12),
    "unetr_h": partial(unetr, embed_dim=1280, depth=32, num_heads=16),
    "unetr_l": partial(unetr, embed_dim=1024, depth=24, num_heads=16),
    "vim_b": partial(vim_unet, embed_dim=768),
    "vim_n": partial(
        vim_unet,
        embed_dim=128,
        depth=8,
        features=(192, 128, 64, 32, 16),
        conv_stem=True,
        drop_path_rate=0.0,
    ),
    "vim_s": partial(vim_unet, embed_dim=384),
    "vim_t": partial(vim_unet, embed_dim=192),
    "vmunet": VMUNet,
}


def build_model(name: str, in_channels: int = 1, out_channels: int = 2, **options: Any) -> Network:
    """Build a network with fresh weights.

    Args:
        name: A key of `MODELS`.
        in_channels: Channels of the image.
        out_channels: Number of maps the network predicts.
        **options: Keyword arguments of the network, for example `skip_connections=True`.

    Returns:
        The network, in train mode. Its `config` is JSON-able, and
        `build_model(config["model"], **config["model_args"])` builds the same network again.

    Raises:
        ValueError: If the name, an option or its value is unknown. The message lists the known.

    Examples:
        >>> import torch
        >>> network = build_model("unet", in_channels=3, out_channels=1, features=8)
        >>> network(torch.zeros(1, 3, 32, 48)).shape
        torch.Size([1, 1, 32, 48])
    """
    if name not in MODELS:
        raise ValueError(f"Unknown model {name!r}. Known: {', '.join(sorted(MODELS))}.")
    builder = MODELS[name]
    known = set(inspect.signature(builder).parameters) - {"in_channels", "out_channels"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"Unknown option {unknown[0]!r} of model {name!r}. Known: {', '.join(sorted(known))}."
        )
    arguments = {"in_channels": in_channels, "out_channels": out_channels, **options}
    network = builder(**arguments)
    network.config = {"model": name, "model_args": arguments}
    return network
