"""Read the weights of other tools, whichever tool it is.

Nothing in a file is ever executed, and every reader says what became of each tensor.
"""

from pathlib import Path
from typing import Any

from vimunet.bridges import sam, torch_em, umamba, vim, vmunet
from vimunet.bridges.loading import Report
from vimunet.bridges.torch_file import open_weights
from vimunet.models import Network
from vimunet.models.encoder_decoder import EncoderDecoder
from vimunet.models.vit import ViTEncoder
from vimunet.models.vmunet import VMUNet


def read_checkpoint(path: str | Path, **overrides: Any) -> tuple[Network, Report, str]:
    """Build the network of another tool's checkpoint, whichever tool it is.

    Args:
        path: A checkpoint of torch-em, VM-UNet or U-Mamba.
        **overrides: Options of `build_model` that replace the inferred ones.

    Returns:
        The network in eval mode, what became of each tensor, and the name of the tool.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of these, damaged, or does not fit the overrides.
    """
    with open_weights(path) as weights:
        names = list(weights.shapes)
    if any(name.startswith("vmunet.") for name in names):
        return *vmunet.read_checkpoint(path, **overrides), "VM-UNet"
    if any(name.startswith("encoder.stem.0.") for name in names):
        return *umamba.read_checkpoint(path, **overrides), "U-Mamba"
    network = torch_em.read_checkpoint(path, **overrides)
    return network, Report(Path(path), loaded=names), "torch-em"


def load_pretrained(network: Network, path: str | Path) -> Report:
    """Start a network from weights of its kind, in place.

    ViM-UNet takes Vision Mamba's ImageNet weights, VM-UNet those of VMamba, UNETR the image encoder
    of Segment Anything.

    Args:
        network: From `build_model`.
        path: The weights, as published.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the network is a ViM-UNet with `conv_stem`, such as vim_n.
        ValueError: If the network is of another kind, the file damaged, or its shapes do not fit.
    """
    if isinstance(network, VMUNet):
        return vmunet.load_pretrained(network, path)
    if isinstance(network, EncoderDecoder):
        reader = sam if isinstance(network.encoder, ViTEncoder) else vim
        return reader.load_pretrained(network, path)
    raise ValueError(
        f"`network` must be a ViM-UNet, VM-UNet or UNETR to start from published weights, "
        f"got a {type(network).__name__}."
    )
