"""Read U-Mamba checkpoints: Bot, Enc, and the same network without Mamba.

A checkpoint of U-Mamba is one of nnU-Net: weights, plans and optimizer in one pickle. The plan is
read from it where there is one; otherwise it is inferred from the weights. Each weight of the
encoder and of some blocks is stored two to four times; the copies are compared and dropped.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vimunet.bridges.loading import Report, build_from
from vimunet.bridges.torch_file import Weights, open_weights
from vimunet.models import Network

Shapes = Mapping[str, tuple[int, ...]]
_COPY = "the same numbers under another name"


def read_checkpoint(path: str | Path, **overrides: Any) -> tuple[Network, Report]:
    """Build the network of a two-dimensional U-Mamba checkpoint, with its weights.

    Args:
        path: A `checkpoint_best.pth` or `checkpoint_final.pth` of U-Mamba, or a state dict saved by
            `torch.save`.
        **overrides: Options of `build_model` that replace the inferred ones. A bare state dict of
            U-Mamba Enc tells the number of pixels of its patches, but not their height and width:
            they are taken to be square unless `image_size=(y, x)` is given.

    Returns:
        The network in eval mode, in float32, and what became of each tensor of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, if it holds another network or copies that differ, or if
            an override does not fit the weights.
    """
    with open_weights(path) as weights:
        names, copies = _without_copies(weights)
        try:
            name, options = _infer({key: weights.shapes[names[key]] for key in names})
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{weights.path} must hold a two-dimensional U-Mamba, got weights named "
                f"{', '.join(sorted(weights.shapes)[:3])}, ..."
            ) from error
        options.update(_planned(weights.other, len(options["strides"])))
        network = build_from(weights, name, {**options, **overrides}, names)
    skipped = dict.fromkeys(copies, _COPY)
    return network, Report(weights.path, loaded=list(names), skipped=skipped)


def _without_copies(weights: Weights) -> tuple[dict[str, str], list[str]]:
    """Return the name in the file of each tensor of the network, and the names of copies."""
    names: dict[str, str] = {}
    copies = []
    # The shortest names first: those without `decoder.` and `all_modules.` become ours.
    for key in sorted(weights.shapes, key=len):
        own = key.removeprefix("decoder.") if key.startswith("decoder.encoder.") else key
        own = re.sub(r"\.all_modules\.([01])\.", lambda m: (".conv.", ".norm.")[int(m[1])], own)
        if own not in names:
            names[own] = key
        elif weights.same(names[own], key):
            copies.append(key)
        else:
            raise ValueError(
                f"Copies of one weight in {weights.path} must be equal, but `{key}` is not "
                f"`{names[own]}`."
            )
    return names, copies


def _infer(shapes: Shapes) -> tuple[str, dict[str, Any]]:
    stages = len({key.split(".")[2] for key in shapes if key.startswith("encoder.stages.")})
    first = shapes["encoder.stem.0.conv1.weight"]
    widths = [shapes[f"encoder.stages.{stage}.0.conv1.weight"][0] for stage in range(stages)]
    if len(first) != 4 or stages < 2:
        raise ValueError
    side = 4 * 2 ** (stages - 1)
    name = "resunet"
    if "mamba_layer.norm.weight" in shapes:
        name = "umamba_bot"
    for stage, width in enumerate(widths):
        layer = shapes.get(f"encoder.mamba_layers.{stage}.norm.weight")
        if layer is not None:
            name = "umamba_enc"
        if layer is not None and layer != (
            width,
        ):  # channels are tokens: the layer sees all pixels
            side = math.isqrt(layer[0]) * 2**stage
    return name, {
        "variant": "paper",
        "in_channels": first[1],
        "out_channels": shapes["decoder.seg_layers.0.weight"][0],
        "image_size": side,
        "strides": [[1, 1], *[[2, 2]] * (stages - 1)],
        "features": widths[0],
        "max_features": widths[-1],
    }


def _planned(content: Mapping[Any, Any], stages: int) -> dict[str, Any]:
    """Return size and strides of the plan in a checkpoint, nothing if there is none that fits."""
    found: Any = content
    for key in ("init_args", "plans", "configurations", "2d"):
        found = found.get(key) if isinstance(found, dict) else None
    options = {}
    if isinstance(found, dict):
        patch: Any = found.get("patch_size")
        strides: Any = found.get("pool_op_kernel_sizes")
        if _is_pair(patch):
            options["image_size"] = list(patch)
        listed = isinstance(strides, list) and len(strides) == stages
        if listed and all(_is_pair(stride) for stride in strides):
            options["strides"] = [list(stride) for stride in strides]
    return options


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(number) is int and 0 < number < 2**20 for number in value)
    )
