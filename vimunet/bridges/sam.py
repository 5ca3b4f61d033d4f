"""Start a UNETR from the image encoder of Segment Anything.

Takes the published weights (ViT-B, ViT-L, ViT-H) and those that were fine-tuned on microscopy
images with torch-em, which hold the whole of Segment Anything under a longer name.
"""

from pathlib import Path

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimunet.bridges.loading import Report, fit_channels, load_some, resize_grid
from vimunet.bridges.torch_file import open_weights
from vimunet.models import Network
from vimunet.models.vit import ViTEncoder

_MARK = "image_encoder."


def load_pretrained(network: Network, path: str | Path) -> Report:
    """Start the encoder of a UNETR from Segment Anything's weights, in place.

    Position embeddings are interpolated to the grid of the network, as Segment Anything itself
    does for other image sizes. The decoder keeps its weights. A network for grey images gets the
    sum of the colours' kernels.

    Args:
        network: A UNETR of `build_model`, of the size of the file, any variant.
        path: Weights of Segment Anything, or of its image encoder alone.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the network is no UNETR.
        ValueError: If the file is damaged, or its shapes are not those of the network.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, ViTEncoder):
        raise TypeError(f"`network` must be a UNETR, got a {type(network).__name__}.")
    own = network.state_dict()
    tensors, adapted, skipped = {}, {}, {}
    with open_weights(path) as weights:
        whole = any(_MARK in name for name in weights.shapes)
        for source in weights.shapes:
            if whole and _MARK not in source:
                skipped[source] = "not part of the image encoder"
                continue
            name = f"encoder.{source[source.index(_MARK) + len(_MARK) :] if whole else source}"
            if name not in own:
                skipped[source] = "the network has no such layer"
                continue
            tensor, wanted = weights.read(source), tuple(own[name].shape)
            if name == "encoder.pos_embed" and tensor.shape[1:3] != wanted[1:3]:
                tensors[name] = resize_grid(tensor[0], (wanted[1], wanted[2]), "bilinear")[None]
                adapted[name] = _how("patches", tensor.shape[1:3], wanted[1:3])
            elif ".rel_pos_" in name and tensor.shape[0] != wanted[0]:
                tensors[name] = _resize_table(tensor, wanted[0])
                adapted[name] = _how("offsets", tensor.shape[:1], wanted[:1])
            elif name == "encoder.patch_embed.proj.weight" and tensor.shape[1] != wanted[1]:
                tensors[name] = fit_channels(tensor, wanted[1], weights.path)
                adapted[name] = "summed over the colours"
            else:
                tensors[name] = tensor
        return load_some(network, weights, tensors, adapted, skipped)


def _resize_table(table: Tensor, length: int) -> Tensor:
    """Interpolate the (l, c) embeddings of l offsets to another number of offsets."""
    return F.interpolate(table.T[None], size=length, mode="linear")[0].T


def _how(what: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    sizes = (" x ".join(str(size) for size in shape) for shape in (before, after))
    return "interpolated from {} to {} ".format(*sizes) + what
