"""`vimunet convert`: a checkpoint of another tool in, a model file out."""

import argparse
from pathlib import Path

from vimunet.cli.arguments import add_model_options, assignments, check_model_file
from vimunet.messages import naming


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    from vimunet.representations import REPRESENTATIONS

    command.add_argument(
        "checkpoint", type=Path, help="of torch-em, VM-UNet or U-Mamba, as `torch.save` wrote it"
    )
    command.add_argument("--output", type=Path, required=True, help="model file to write")
    command.add_argument(
        "--representation",
        choices=sorted(REPRESENTATIONS),
        help="what its maps mean (default for torch-em: from their number)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_model_options(command, "in_channels=3")


def run(options: argparse.Namespace) -> int:
    """Turn a checkpoint of another tool into a model file."""
    from vimunet.bridges.checkpoints import read_checkpoint
    from vimunet.representations import representation_for, representation_with
    from vimunet.segmentation.model_file import TrainedModel, save_model

    check_model_file(options.output, options.overwrite)
    network, report, tool = read_checkpoint(
        options.checkpoint, **assignments("--option", options.option)
    )
    maps = network.out_channels
    if options.representation is not None:
        with naming(f"`--representation` for the network of {options.checkpoint}"):
            representation = representation_with(options.representation, maps)
    elif (known := representation_for(tool, maps)) is not None:
        representation = known
    else:
        raise ValueError(
            f"`--representation` must be given for a checkpoint of {tool} with {maps} maps: it "
            "does not say what they mean."
        )
    origin = {"converted_from": options.checkpoint.name, "tool": tool}
    normalization = {"VM-UNet": "range", "U-Mamba": "channel"}.get(tool, "image")
    model = TrainedModel(network, representation, normalization, info=origin)
    save_model(options.output, model)
    print(report)
    print(f"{network.config['model']} with {representation.title} written to {options.output}")
    return 0
