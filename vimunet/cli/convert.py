"""`vimunet convert`: a checkpoint of another tool in, a model file out."""

import argparse
from pathlib import Path
from typing import Any

from vimunet.cli.arguments import (
    REPRESENTATIONS,
    Commands,
    add_command,
    add_model_options,
    build_representation,
    check_model_file,
    model_options,
)


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    command = add_command(
        commands, "convert", run, "turn a checkpoint of another tool into a model file"
    )
    command.add_argument(
        "checkpoint", type=Path, help="of torch-em, VM-UNet or U-Mamba, as `torch.save` wrote it"
    )
    command.add_argument("--output", type=Path, required=True, help="model file to write")
    command.add_argument(
        "--representation",
        choices=REPRESENTATIONS,
        help="what its maps mean (default for torch-em: from their number)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_model_options(command, "in_channels=3")


def run(options: argparse.Namespace) -> int:
    """Turn a checkpoint of another tool into a model file."""
    from vimunet.bridges.checkpoints import read_checkpoint
    from vimunet.checkpoint import TrainedModel, save_model
    from vimunet.representation import Semantic

    check_model_file(options.output, options.overwrite)
    found = read_checkpoint(options.checkpoint, **model_options(options.option))
    network: Any = found[0]
    report, tool = found[1:]
    if tool != "torch-em" and options.representation is None:
        raise ValueError(
            f"`--representation` must be given for a checkpoint of {tool}: it does not say what "
            "its maps mean."
        )
    name = options.representation or {1: "boundary", 2: "boundaries", 3: "distances"}.get(
        network.out_channels
    )
    if name is None:
        raise ValueError(f"A network with {network.out_channels} maps has no representation here.")
    representation = (
        Semantic.for_channels(network.out_channels)
        if name == "semantic"
        else build_representation(name)
    )
    if len(representation.channels) != network.out_channels:
        raise ValueError(
            f"`--representation {name}` has {len(representation.channels)} maps, but the network "
            f"of {options.checkpoint} has {network.out_channels}."
        )
    origin = {"converted_from": options.checkpoint.name, "tool": tool}
    normalization = {"VM-UNet": "range", "U-Mamba": "channel"}.get(tool, "image")
    model = TrainedModel(network, representation, normalization, info=origin)
    save_model(options.output, model)
    print(report)
    print(f"{network.config['model']} with {name} written to {options.output}")
    return 0
