"""Train on a public data set and score what was trained: the scripts of `experiments/`.

`train` and `evaluate` are the whole of `experiments/NAME/train.py` and `evaluate.py`: they run
`vimunet train --dataset NAME` and `vimunet evaluate --dataset NAME`, the second of which is here.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vimunet.cli.arguments import flag
from vimunet.deprecation import warn

if TYPE_CHECKING:
    from vimunet.segmentation.model_file import TrainedModel

_OWN = ("data", "model", "output")
_OF_FOLDERS = ("predictions", "labels", "csv", "threshold", "semantic", "num_classes", "spacing")
"""Flags of `vimunet evaluate` with, and without `--dataset`."""


def train(dataset: str, arguments: Sequence[str] | None = None) -> int:
    """Train on a public data set.

    Args:
        dataset: Its name.
        arguments: Flags of `vimunet train`; None takes them from the command line.

    Returns:
        The exit code.
    """
    return _run("train", dataset, arguments)


def evaluate(dataset: str, arguments: Sequence[str] | None = None) -> int:
    """Score a model on a public data set.

    Args:
        dataset: Its name.
        arguments: Flags of `vimunet evaluate`; None takes them from the command line.

    Returns:
        The exit code.
    """
    return _run("evaluate", dataset, arguments)


def _run(command: str, dataset: str, arguments: Sequence[str] | None) -> int:
    from vimunet.cli import main

    typed = renewed(dataset, sys.argv[1:] if arguments is None else arguments)
    return main([command, "--dataset", dataset, *typed])


def renewed(dataset: str, arguments: Sequence[str]) -> list[str]:
    """Write flags that these scripts had in version 0.1 as they are called now, with a warning."""
    old = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--stand-in", "--val-images", "--start", "--representation"):
        old.add_argument(name)
    given, typed = old.parse_known_args(arguments)
    if given.stand_in is not None:
        warn("`--stand-in FOLDER`", f"`--dataset {dataset}_sample --data FOLDER`")
        typed += ["--dataset", f"{dataset}_sample", "--data", given.stand_in]
    if given.start is not None:
        warn("`--start FILE`", "`--model FILE`")
        typed += ["--model", given.start]
    if given.val_images is not None and given.val_images.isdigit():
        warn("`--val-images NUMBER`", "`--val-scored NUMBER`")
        typed += ["--val-scored", given.val_images]
    elif given.val_images is not None:
        typed += ["--val-images", given.val_images]
    if given.representation == "boundaries" and dataset == "cremi":
        warn("`--representation boundaries` of CREMI", "`--representation boundary`")
        typed += ["--representation", "boundary"]
    elif given.representation is not None:
        typed += ["--representation", given.representation]
    return typed


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `vimunet evaluate --dataset`."""
    from vimunet.datasets.splits import DATASETS

    group = command.add_argument_group("a model on a public data set")
    group.add_argument(
        "--dataset",
        choices=sorted(DATASETS),
        help="choose thresholds on its validation images, score these and its test images",
    )
    group.add_argument(
        "--data", type=Path, help="folder of the data set (default: $VIMUNET_DATA, or data/DATASET)"
    )
    group.add_argument(
        "--model",
        help="a model file, a model of the package (nuclei, ...), or a network (vim_t, unet, ...), "
        "which is that in runs/DATASET_NETWORK (default: the network of the data set's recipe)",
    )
    group.add_argument(
        "--output", type=Path, help="folder of tables and pictures (default: beside the model)"
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: auto)")


def check(options: argparse.Namespace) -> None:
    """Refuse flags of which only one of two kinds may be given."""
    foreign, wanted = (_OWN, "come") if options.dataset is None else (_OF_FOLDERS, "not come")
    for name in foreign:
        if getattr(options, name) not in (None, False):
            raise ValueError(f"`{flag(name)}` must {wanted} with --dataset.")


def run(options: argparse.Namespace) -> int:
    """Score a model on the validation and test images of a data set."""
    from vimunet.datasets.splits import DATASETS, find_dataset
    from vimunet.training.scoring import score_model

    data = DATASETS[options.dataset]
    model, beside = _model(options.model, options.dataset)
    folder = find_dataset(options.dataset, options.data)
    output = options.output or beside
    summary = score_model(
        model,
        data.read(folder, "val"),
        data.read(folder, "test"),
        output,
        kind_of=data.kind_of,
        tidied=data.tidied,
        slice_size=data.slice_size,
        device=options.device,
    )
    if options.json:
        print((output / "summary.json").read_text(), end="")
        return 0
    print(_told(summary, model.representation.score))
    print(f"\nAll scores: {output / 'scores.csv'}, {output / 'images.csv'}")
    print(f"Model with the tuned thresholds: {output / 'tuned.safetensors'}")
    return 0


def _model(name: str | None, dataset: str) -> "tuple[TrainedModel, Path]":
    """Load a model; also name the folder beside it in which its scores belong."""
    from vimunet.datasets.splits import DATASETS
    from vimunet.models import MODELS
    from vimunet.segmentation.model_file import embedded_models, load_model
    from vimunet.training.recipes import RECIPES

    name = name or RECIPES[DATASETS[dataset].recipe].model
    path = Path(name)
    if name in MODELS:
        path = Path("runs") / f"{dataset}_{name}" / "best.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"No model {path}. Run `vimunet train --dataset {dataset} --model {name}` to train "
                "it, or name another: --model."
            )
    elif not path.is_file() and name in embedded_models():
        return load_model(name), Path("runs") / f"{dataset}_{name}" / "scores"
    return load_model(path), path.parent / f"{path.stem}_scores"


def _told(summary: dict[str, Any], score: str) -> str:
    """Write the score that decides, with its confidence interval, and the best beside it."""
    from vimunet.training.scoring import score_rows

    prefix = "micro " if any(f"micro {score}" in row for row in score_rows(summary)) else ""
    name = f"{prefix}{score}"
    lines = [f"{'split':<13}{'reading':<11}{'images':>6}{name:>12}   central 95 %"]
    for row in score_rows(summary):
        value, low, high = (row[f"{name}{end}"] for end in ("", " low", " high"))
        place = f"{row['split']:<13}{row['recipe']:<11}{row['images']:>6}"
        lines.append(f"{place}{value:>12.3f}   {low:.3f}-{high:.3f}  {row['kind']}".rstrip())
    return "\n".join(lines)
