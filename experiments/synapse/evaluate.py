"""Score a model on Synapse: whole volumes, segmented slice by slice.

Writes the project's scores and the published ones of VM-UNet (`paper`) side by side.

python experiments/synapse/evaluate.py --model runs/NAME/best.safetensors --data DIR --output DIR
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import splits
from tqdm import tqdm

from vimunet.checkpoint import TrainedModel, load_model
from vimunet.data import Sample
from vimunet.data.synapse import resize
from vimunet.evaluation import Protocol, write_csv, write_json
from vimunet.prediction import segment
from vimunet.representation import Semantic
from vimunet.semantic_evaluation import evaluate_semantic, summarize_semantic


def main() -> None:
    flags = argparse.ArgumentParser(description="Score a model on Synapse.")
    flags.add_argument("--model", type=Path, required=True, help="model file")
    flags.add_argument("--data", type=Path, required=True, help="folder with TransUNet's data")
    flags.add_argument("--output", type=Path, required=True, help="folder for tables")
    flags.add_argument("--size", type=int, default=224, help="side of the slices for the network")
    options = flags.parse_args()
    volumes = splits.official(options.data, "test")
    summary = score_volumes(load_model(options.model), volumes, options.size, options.output)
    print(json.dumps(summary["scores"], indent=2))


def score_volumes(
    model: TrainedModel, volumes: list[Sample], size: int, output: Path
) -> dict[str, Any]:
    """Segment and score volumes.

    Args:
        model: Finds classes in slices.
        volumes: (z, y, x) images with classes.
        size: See `segment_volume`.
        output: Gets `fair.csv` and `paper.csv` with one row per volume, and `summary.json`.

    Returns:
        What is in `summary.json`.
    """
    if not isinstance(model.representation, Semantic):
        raise ValueError("The model must find classes, got objects.")
    protocols: tuple[Protocol, ...] = ("fair", "paper")
    rows: dict[str, list[dict[str, Any]]] = {protocol: [] for protocol in protocols}
    for volume in tqdm(volumes, unit="volume", disable=None):
        image, labels = volume.read()
        assert labels is not None
        found = segment_volume(image, model, size)
        for protocol in protocols:
            scores = evaluate_semantic(
                found, labels, num_classes=model.representation.num_classes, protocol=protocol
            )
            rows[protocol].append({"name": volume.name, **scores})
    summary: dict[str, Any] = {"info": model.info, "size": size, "scores": {}}
    for protocol in protocols:
        result = summarize_semantic(rows[protocol], protocol=protocol)
        write_csv(output / f"{protocol}.csv", result)
        kept = ("mean", "confidence", "micro", "total")
        summary["scores"][protocol] = {key: result[key] for key in kept}
    write_json(output / "summary.json", summary)
    return summary


def segment_volume(volume: np.ndarray, model: TrainedModel, size: int) -> np.ndarray:
    """Segment a volume slice by slice.

    Args:
        volume: (z, y, x) image.
        model: Finds classes in slices.
        size: Each slice is resized to this square for the network, its classes back to the
            nearest pixel, as for VM-UNet. Unit: pixels.

    Returns:
        (z, y, x) int32 classes.
    """
    shape = (volume.shape[1], volume.shape[2])
    found = [segment(resize(image, (size, size), order=3), model) for image in volume]
    return np.stack([resize(labels, shape, order=0) for labels in found])


if __name__ == "__main__":
    main()
