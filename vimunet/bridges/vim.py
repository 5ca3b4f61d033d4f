"""Start a ViM-UNet from Vision Mamba's ImageNet weights.

The position embedding of the file is interpolated to the grid of the network; its class token is
taken out first, from the place where the file has it.
"""

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vimunet.bridges.loading import Report, fit_channels, load_some, resize_grid
from vimunet.bridges.torch_file import open_weights
from vimunet.models import Network
from vimunet.models.encoder_decoder import StemEncoder
from vimunet.models.vim import VimEncoder

_PREFIX = "encoder."


def load_pretrained(
    network: Network,
    path: str | Path,
    class_token: Literal["front", "middle", None] = "middle",
) -> Report:
    """Start the encoder of a ViM-UNet from Vision Mamba's ImageNet weights, in place.

    The decoder keeps its weights. A network for grey images gets the sum of the colours' kernels.

    Args:
        network: A ViM-UNet of `build_model`, any variant.
        path: Weights as published, of images of any size.
        class_token: Where the file has its class token; "front" is used for weights with rotary
            embedding, whatever is given.

    Returns:
        What became of each tensor. Notes say where the network differs from the one that the
        weights were trained in: weights with rotary embedding belong to `variant="paper"`, those
        with the class token in the middle to the other variants.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the network is no ViM-UNet, or one with `conv_stem`.
        ValueError: If the file is damaged, or its shapes are not those of the network.
    """
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, StemEncoder):
        raise TypeError(
            "`network` must be a ViM-UNet whose tokens are patches of the image, got one with "
            "`conv_stem`, such as vim_n. Use vim_t, vim_s or vim_b, or start from fresh weights."
        )
    if not isinstance(encoder, VimEncoder):
        raise TypeError(f"`network` must be a ViM-UNet, got a {type(network).__name__}.")
    own = network.state_dict()
    tensors, adapted, skipped, notes = {}, {}, {}, []
    with open_weights(path) as weights:
        rotary = any(name.startswith("rope.") for name in weights.shapes)
        if rotary:
            class_token = "front"
        if "cls_token" not in weights.shapes:
            class_token = None
        for name in weights.shapes:
            target = _PREFIX + name
            if name.startswith("rope."):
                skipped[name] = "a table that the network computes itself"
            elif target not in own:
                skipped[name] = "the network has no such layer"
            elif name.startswith("head.") and own[target].shape != weights.shapes[name]:
                skipped[name] = "a head for other classes"
            else:
                tensors[target] = weights.read(name)
        position, kernel = f"{_PREFIX}pos_embed", f"{_PREFIX}patch_embed.proj.weight"
        if position in tensors:
            tensors[position], how = _positions(tensors[position], class_token, encoder)
            if how:
                adapted[position] = how
        if kernel in tensors and encoder.in_channels != tensors[kernel].shape[1]:
            tensors[kernel] = fit_channels(tensors[kernel], encoder.in_channels, weights.path)
            adapted[kernel] = "summed over the colours"
        if rotary != (encoder.rope is not None):
            notes.append(
                f"trained {'with' if rotary else 'without'} rotary embedding, "
                f"the network has {'one' if encoder.rope is not None else 'none'}"
            )
        if rotary == encoder.average:
            notes.append(
                f"trained with the {'sum' if rotary else 'mean'} of both directions, "
                f"the network takes their {'mean' if encoder.average else 'sum'}"
            )
        return load_some(network, weights, tensors, adapted, skipped, notes)


def _positions(
    stored: Tensor, class_token: Literal["front", "middle", None], encoder: VimEncoder
) -> tuple[Tensor, str]:
    """Fit a position embedding to the grid and the class token of an encoder.

    Args:
        stored: (1, l, c) embedding of a square grid, with one row for the class token, if any.
        class_token: Where that row is.
        encoder: Where the embedding goes to.

    Returns:
        (1, l', c), and what was done, empty if nothing.
    """
    rows = stored[0]
    patches = len(rows) - (class_token is not None)
    side, grid = math.isqrt(patches), encoder.grid
    if side * side != patches:
        raise ValueError(
            f"`pos_embed` must have a row for each patch of a square"
            f"{' and one for the class token' if class_token else ''}, got {len(rows)} rows. "
            "Say where the class token is with `class_token`."
        )
    special = rows[:0]
    if class_token is not None:
        at = {"front": 0, "middle": patches // 2}[class_token]
        special = rows[at : at + 1]
        rows = torch.cat([rows[:at], rows[at + 1 :]])
    done = []
    if side != grid:
        rows = resize_grid(rows.unflatten(0, (side, side)), (grid, grid), "bicubic").flatten(0, 1)
        done.append(f"interpolated from {side} x {side} to {grid} x {grid} patches")
    own = encoder.class_index
    if own is not None:
        if class_token is None:
            special = encoder.pos_embed[0, own : own + 1].detach().cpu()
            done.append("the class token keeps the position it had")
        rows = torch.cat([rows[:own], special, rows[own:]])
    elif class_token is not None:
        done.append("without the row of the class token")
    return rows[None], ", ".join(done)
