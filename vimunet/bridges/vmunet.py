"""Read VM-UNet checkpoints, and start a VM-UNet from VMamba's ImageNet weights.

The published network starts with the weights of VMamba-S, in its first version, in the encoder and
once more, stage by stage in reverse, in the decoder. Current VMamba weights have other shapes.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vimunet.bridges.loading import Report, build_from, load_some
from vimunet.bridges.torch_file import open_weights
from vimunet.models import Network
from vimunet.models.vmunet import VMUNet

Shapes = Mapping[str, tuple[int, ...]]
# Names of later versions of VMamba's code, and those of the first.
_RENAMED = {
    r"^patch_embed\.0\.": "patch_embed.proj.",
    r"^patch_embed\.2\.": "patch_embed.norm.",
    r"(blocks\.\d+)\.norm\.": r"\1.ln_1.",
    r"(blocks\.\d+)\.op\.": r"\1.self_attention.",
    r"downsample\.1\.": "downsample.norm.",
    r"downsample\.2\.": "downsample.reduction.",
    r"^classifier\.": "",
}


def read_checkpoint(path: str | Path, **overrides: Any) -> tuple[Network, Report]:
    """Build the network of a VM-UNet checkpoint, with its weights.

    Args:
        path: A `best.pth` or `latest.pth` of VM-UNet, or a state dict saved by `torch.save`.
        **overrides: Options of `build_model` that replace the inferred ones: `in_channels=1` for
            weights that were trained on grey images (the published network shows them three times).

    Returns:
        The network in eval mode, in float32, and what became of each tensor of the file. Its
        `forward` gives logits; with one map, the published network gave the sigmoid of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, if it holds another network, or if an override does not
            fit the weights.
    """
    with open_weights(path) as weights:
        counters = [
            name for name in weights.shapes if name.endswith((".total_ops", ".total_params"))
        ]
        names = {name: name for name in weights.shapes if name not in counters}
        try:
            options = _infer(weights.shapes)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{weights.path} must hold a VM-UNet, got weights named "
                f"{', '.join(sorted(weights.shapes)[:3])}, ..."
            ) from error
        network = build_from(weights, "vmunet", {**options, **overrides}, names)
    skipped = dict.fromkeys(counters, "a count of operations, not a weight")
    return network, Report(weights.path, loaded=list(names), skipped=skipped)


def load_pretrained(network: Network, path: str | Path, decoder: bool = True) -> Report:
    """Start a VM-UNet from VMamba's ImageNet weights, in place.

    Args:
        network: A VM-UNet of `build_model`.
        path: Weights of VMamba in its first version ("v0", no MLP in its blocks), as published.
        decoder: Put the blocks into the decoder too, as the paper does; those of the encoder's
            stages 0 to 3 go to the decoder's stages 3 to 0.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the network is no VM-UNet.
        ValueError: If the file is damaged, or its shapes are not those of the network.
    """
    if not isinstance(network, VMUNet):
        raise TypeError(f"`network` must be a VM-UNet, got a {type(network).__name__}.")
    own = network.state_dict()
    tensors, skipped = {}, {}
    with open_weights(path) as weights:
        for source in weights.shapes:
            name = source
            for pattern, replacement in _RENAMED.items():
                name = re.sub(pattern, replacement, name)
            targets = [f"vmunet.{name}"]
            stage = re.match(r"layers\.(\d)\.blocks\.", name)
            if stage and decoder:
                targets.append(f"vmunet.layers_up.{3 - int(stage[1])}.{name[len('layers.0.') :]}")
            targets = [target for target in targets if target in own]
            if not targets:
                skipped[source] = "the network has no such layer"
            for target in targets:
                tensors[target] = weights.read(source)
        return load_some(network, weights, tensors, {}, skipped)


def _infer(shapes: Shapes) -> dict[str, Any]:
    embed_dim, in_channels, _, _ = shapes["vmunet.patch_embed.proj.weight"]
    return {
        "in_channels": in_channels,
        "out_channels": shapes["vmunet.final_conv.weight"][0],
        "embed_dim": embed_dim,
        "depths": _depths(shapes, "vmunet.layers"),
        "decoder_depths": _depths(shapes, "vmunet.layers_up"),
    }


def _depths(shapes: Shapes, prefix: str) -> list[int]:
    """Return the number of blocks of each of four stages."""
    return [
        len({name.split(".")[4] for name in shapes if name.startswith(f"{prefix}.{stage}.blocks.")})
        for stage in range(4)
    ]
