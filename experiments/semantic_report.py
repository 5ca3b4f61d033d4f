"""Score a model of classes on validation and test images.

For each split the table has the scores with

    paper    the published definitions of VM-UNet, threshold 0.5: of all pixels together
    default  the project's definitions, threshold 0.5
    tuned    the same with the threshold that scores best on the validation images

Perfect maps reach 1: reading classes from maps loses nothing.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import report
from report import Split, draw_pairs, predict_samples

from vimunet.checkpoint import load_model, save_model
from vimunet.data import Sample
from vimunet.evaluation import Protocol, write_csv, write_json
from vimunet.representation import Semantic
from vimunet.semantic_evaluation import evaluate_semantic, summarize_semantic, tune_threshold


def main(description: str, official: Split, stand_in: Split) -> None:
    """Read the command line, score, write and print; see `report.main`."""
    report.main(description, official, stand_in, score_model)


def score_model(
    model_file: Path, val_samples: list[Sample], test_samples: list[Sample], output: Path
) -> dict[str, Any]:
    """Tune the threshold on the validation images and score both splits.

    Args:
        model_file: Written by a training.
        val_samples: Images with classes to choose the threshold with.
        test_samples: Images with classes to report.
        output: Gets `tuned.safetensors`, `SPLIT_RECIPE.csv` with one row per image,
            `summary.json` and a few overlays.

    Returns:
        What is in `summary.json`: for each split and recipe means over images and scores of all
        pixels together, with confidence intervals.
    """
    model = load_model(model_file)
    if not isinstance(model.representation, Semantic):
        raise ValueError(f"{model_file} must find classes, got objects. See report.py.")
    default = Semantic(model.representation.num_classes)
    summary: dict[str, Any] = {
        "model": model_file.name,
        "network": model.network.config,  # type: ignore[union-attr]
        "info": model.info,
    }
    tuned = default
    for split, samples in (("val", val_samples), ("test", test_samples)):
        images, maps, labels, seconds = predict_samples(model, samples, split)
        if split == "val":
            tuned, _, _ = tune_threshold(default, maps, labels)
            summary["tuned"] = tuned.config()
            save_model(output / "tuned.safetensors", replace(model, representation=tuned))
        results: dict[str, Any] = {"median_seconds_per_image": seconds}
        for name, recipe in (("paper", default), ("default", default), ("tuned", tuned)):
            protocol: Protocol = "paper" if name == "paper" else "fair"
            rows = [
                {
                    "name": sample.name,
                    **evaluate_semantic(
                        recipe.decode(image_maps),
                        truth,
                        num_classes=recipe.num_classes,
                        protocol=protocol,
                    ),
                }
                for sample, image_maps, truth in zip(samples, maps, labels, strict=True)
            ]
            scores = summarize_semantic(rows, protocol=protocol)
            write_csv(output / f"{split}_{name}.csv", scores)
            kept = ("micro", "micro_confidence") + (
                () if name == "paper" else ("mean", "confidence", "total")
            )
            results[name] = {key: scores[key] for key in kept}
        summary[split] = {"images": len(samples), **results}
        found = [tuned.decode(image_maps) for image_maps in maps]
        draw_pairs(output / split, samples, images, found, labels)
    write_json(output / "summary.json", summary)
    return summary
