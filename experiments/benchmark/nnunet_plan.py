"""Add a configuration with another patch and batch size to nnU-Net's plan.

nnU-Net plans for a GPU of 8 GB: patches of whole images, a dozen in a batch. The added
configuration, for example `2d_256x2`, uses the same preprocessed images and as many stages as
nnU-Net's rule gives for its patch.

    python experiments/benchmark/nnunet_plan.py nnUNet_preprocessed/Dataset501_Phase 256 2
"""

import argparse
import json
from pathlib import Path

from vimunet.io.atomic import replacing
from vimunet.models.umamba import plan_strides

_PER_STAGE = ("features_per_stage", "kernel_sizes", "n_conv_per_stage", "n_blocks_per_stage")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("folder", type=Path, help="folder with nnUNetPlans.json")
    flags.add_argument("patch_size", type=int, help="pixels per side")
    flags.add_argument("batch_size", type=int)
    options = flags.parse_args()
    file = options.folder / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    name = f"2d_{options.patch_size}x{options.batch_size}"
    plans["configurations"][name] = configuration(
        plans["configurations"]["2d"], options.patch_size, options.batch_size
    )
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(plans, indent=4))
    print(name)


def configuration(planned: dict, patch_size: int, batch_size: int) -> dict:
    """Return what differs from the configuration "2d", cut to the stages of a smaller patch."""
    strides = [list(stride) for stride in plan_strides(patch_size)]
    architecture = json.loads(json.dumps(planned["architecture"]))
    sizes = architecture["arch_kwargs"]
    if len(strides) > sizes["n_stages"]:
        raise ValueError(
            f"`patch_size` must need no more than the {sizes['n_stages']} stages planned for "
            f"{planned['patch_size']}, got {patch_size}, which needs {len(strides)}."
        )
    if patch_size % (unit := 2 ** (len(strides) - 1)):
        smaller = patch_size // unit * unit
        raise ValueError(
            f"`patch_size` must be divisible by {unit}, for {len(strides)} stages, got "
            f"{patch_size}. Take {smaller} or {smaller + unit}."
        )
    for key in _PER_STAGE:
        if key in sizes:
            sizes[key] = sizes[key][: len(strides)]
    sizes["n_conv_per_stage_decoder"] = sizes["n_conv_per_stage_decoder"][: len(strides) - 1]
    sizes["strides"], sizes["n_stages"] = strides, len(strides)
    return {
        "inherits_from": "2d",
        "patch_size": [patch_size, patch_size],
        "batch_size": batch_size,
        "architecture": architecture,
    }


if __name__ == "__main__":
    main()
