"""Read networks that torch-em trained: ViM-UNet of every generation, UNETR and UNet.

A torch-em checkpoint is a pickle of the whole training set-up, which torch can only load where
torch-em, kornia, mamba_ssm and the rest are installed. `read_checkpoint` needs none of them: it
takes the weights out of the file and infers the network from their shapes.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vimunet.bridges.loading import build_from
from vimunet.bridges.torch_file import open_weights
from vimunet.models import Network

Shapes = Mapping[str, tuple[int, ...]]


def read_checkpoint(path: str | Path, **overrides: Any) -> Network:
    """Build the network of a torch-em checkpoint, with its weights.

    Generation, sizes, number of maps, upsampling and skip connections are inferred from the
    weights. What weights do not tell has the default of torch-em's training scripts: one input
    channel, and for UNETR the image scaled to the square without Segment Anything's statistics.

    Args:
        path: A `best.pt` or `latest.pt` of torch-em, or a state dict saved by `torch.save`.
        **overrides: Options of `build_model` that replace the inferred ones, for example
            `in_channels=3`, or `resize_input=False` and `sam_stats=True` for UNETR.

    Returns:
        The network in eval mode, in float32. Its `forward` gives logits; torch-em's gave the
        sigmoid of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or no checkpoint, if it holds another network, or if
            an override does not fit the weights.
    """
    with open_weights(path) as weights:
        name, options = _infer(weights.shapes, weights.path)
        return build_from(weights, name, {**options, **overrides})


def _infer(shapes: Shapes, path: Path) -> tuple[str, dict[str, Any]]:
    """Return name and options of the network that has these weights.

    Raises:
        ValueError: If it is none of ours.
    """
    upsampling = "transposed" if "decoder.samplers.0.block.weight" in shapes else "bilinear"
    try:
        out_channels = shapes["out_conv.weight"][0]
        if "encoder.cls_token" in shapes:
            name, options = _infer_vim(shapes, upsampling)
        elif "encoder.pos_embed" in shapes:
            name, options = _infer_unetr(shapes)
            options["upsampling"] = upsampling
        else:
            features, in_channels = shapes["encoder.blocks.0.block.1.weight"][:2]
            depth = _count(shapes, "encoder.blocks.")
            name = "unet"
            options = {"in_channels": in_channels, "features": features, "depth": depth}
            options["upsampling"] = upsampling
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} must hold a ViM-UNet, UNETR or UNet of torch-em, got weights named "
            f"{', '.join(sorted(shapes)[:3])}, ..."
        ) from error
    return name, {"out_channels": out_channels, **options}


def _infer_vim(shapes: Shapes, upsampling: str) -> tuple[str, dict[str, Any]]:
    embed_dim = shapes["encoder.cls_token"][-1]
    if "encoder.rope.freqs_cos" in shapes:
        variant = "paper"
    elif upsampling == "transposed":
        variant = "torch-em-0.7.5"
    else:
        variant = "torch-em-0.7.10"
    return {384: "vim_s", 768: "vim_b"}.get(embed_dim, "vim_t"), {
        "variant": variant,
        "embed_dim": embed_dim,
        "depth": _count(shapes, "encoder.layers."),
        "image_size": 16 * math.isqrt(shapes["encoder.pos_embed"][1] - 1),
        "num_classes": shapes["encoder.head.weight"][0],
        "skip_connections": _has_layer_skips(shapes),
    }


def _infer_unetr(shapes: Shapes) -> tuple[str, dict[str, Any]]:
    _, grid, _, embed_dim = shapes["encoder.pos_embed"]
    depth = _count(shapes, "encoder.blocks.")
    head = shapes["encoder.blocks.0.attn.rel_pos_h"][1]
    sides = [(shapes[f"encoder.blocks.{i}.attn.rel_pos_h"][0] + 1) // 2 for i in range(depth)]
    windows = set(sides) - {grid}
    # If a window is as large as the grid, windowed and global layers look the same and compute
    # the same; the last of each quarter are then the global ones, as in Segment Anything.
    global_layers = [i for i, side in enumerate(sides) if side == grid] if windows else None
    return {1024: "unetr_l", 1280: "unetr_h"}.get(embed_dim, "unetr_b"), {
        "variant": "paper",
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": embed_dim // head,
        "image_size": 16 * grid,
        "window": windows.pop() if windows else grid,
        "global_layers": global_layers,
        "skip_connections": _has_layer_skips(shapes),
    }


def _count(shapes: Shapes, prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})


def _has_layer_skips(shapes: Shapes) -> bool:
    return "deconv4.block.1.weight" in shapes
