"""Score a trained model on validation and test images: with whose thresholds, and how near the top.

For each split the table has the mSA with

    paper    the paper's decoding and thresholds
    default  the project's decoding and thresholds
    tuned    the project's decoding with the thresholds that score best on the validation images
    ceiling  perfect maps, made from the labels, decoded with the project's defaults
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
from tqdm import tqdm

from vimunet.checkpoint import TrainedModel, load_model, save_model
from vimunet.data import Sample
from vimunet.evaluation import evaluate, summarize, tune_thresholds, write_csv, write_json
from vimunet.files import replacing
from vimunet.overlay import draw_overlay
from vimunet.prediction import predict
from vimunet.representation import Boundaries, Semantic

Split = Callable[[Path, Literal["train", "val", "test"]], list[Sample]]
Score = Callable[[Path, list[Sample], list[Sample], Path], dict[str, Any]]
_OVERLAYS = 4


def main(
    description: str, official: Split, stand_in: Split | None, score: Score | None = None
) -> None:
    """Read the command line, score, write and print.

    Args:
        description: What the command is for.
        official: Reads a split of the original data set.
        stand_in: Reads a split of the stand-in, if there is one.
        score: Scores a model file on validation and test images; `score_model` if None.
    """
    flags = argparse.ArgumentParser(description=description)
    flags.add_argument("--model", type=Path, required=True, help="model file")
    data = flags.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=Path, help="folder with the original data set")
    if stand_in is not None:
        data.add_argument("--stand-in", type=Path, help="folder with the small stand-in data sets")
    flags.add_argument("--output", type=Path, required=True, help="folder for tables and pictures")
    options = flags.parse_args()
    if stand_in is None or options.data is not None:
        root, read = options.data, official
    else:
        root, read = options.stand_in, stand_in
    samples = read(root, "val"), read(root, "test")
    summary = (score or score_model)(options.model, *samples, options.output)
    print(json.dumps(summary, indent=2))


def score_model(
    model_file: Path,
    val_samples: list[Sample],
    test_samples: list[Sample],
    output: Path,
    kind_of: Callable[[np.ndarray], str] | None = None,
) -> dict[str, Any]:
    """Tune the thresholds on the validation images and score both splits.

    Args:
        model_file: Written by a training.
        val_samples: Images with labels to choose thresholds with.
        test_samples: Images with labels to report.
        output: Gets `tuned.safetensors`, `SPLIT_RECIPE.csv` with one row per image,
            `summary.json` and a few overlays.
        kind_of: Names the kind of an image; means are then also given for each kind.

    Returns:
        What is in `summary.json`: mean mSA, SA50 and confidence interval per split and recipe.
    """
    model = load_model(model_file)
    if isinstance(model.representation, Semantic):
        raise ValueError(f"{model_file} must find objects, got classes. See semantic_report.py.")
    kind = type(model.representation)
    form = (
        {"foreground": model.representation.foreground}
        if isinstance(model.representation, Boundaries)
        else {}
    )
    default, paper = kind(**form), kind.paper(**form)
    labelled_pixels_only = not default.has_background

    summary: dict[str, Any] = {
        "model": model_file.name,
        "network": model.network.config,  # type: ignore[union-attr]
        "info": model.info,
        "labelled_pixels_only": labelled_pixels_only,
    }
    tuned = default
    for split, samples in (("val", val_samples), ("test", test_samples)):
        images, maps, labels, seconds = predict_samples(model, samples, split)
        if split == "val":
            tuned, _, _ = tune_thresholds(
                default, maps, labels, labelled_pixels_only=labelled_pixels_only
            )
            summary["tuned"] = tuned.config()
            save_model(output / "tuned.safetensors", replace(model, representation=tuned))
        recipes = {"paper": paper, "default": default, "tuned": tuned}
        predictions = {
            name: [recipe.decode(image_maps) for image_maps in maps]
            for name, recipe in recipes.items()
        }
        predictions["ceiling"] = [default.decode(default.encode(truth)) for truth in labels]
        results: dict[str, Any] = {"median_seconds_per_image": seconds}
        for name, predicted in predictions.items():
            rows = [
                {
                    "name": sample.name,
                    **evaluate(found, truth, labelled_pixels_only=labelled_pixels_only),
                }
                for sample, found, truth in zip(samples, predicted, labels, strict=True)
            ]
            scores = summarize(rows)
            write_csv(output / f"{split}_{name}.csv", scores)
            results[name] = _means(scores)
            if kind_of is not None:
                kinds = [kind_of(image) for image in images]
                results[name]["kinds"] = {
                    kind: _means(
                        summarize([r for r, k in zip(rows, kinds, strict=True) if k == kind])
                    )
                    for kind in sorted(set(kinds))
                }
        summary[split] = {"images": len(samples), **results}
        draw_pairs(output / split, samples, images, predictions["tuned"], labels)
    write_json(output / "summary.json", summary)
    return summary


def predict_samples(
    model: TrainedModel, samples: list[Sample], name: str
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], float]:
    """Predict the maps of annotated images.

    Returns:
        Images, maps and labels, one of each per sample, and the median of the seconds.
    """
    images, maps, labels, seconds = [], [], [], []
    for sample in tqdm(samples, desc=name, disable=None):
        image, annotated = sample.read()
        assert annotated is not None  # the splits only hold samples with labels
        started = time.perf_counter()
        maps.append(predict(image, model))
        seconds.append(time.perf_counter() - started)
        images.append(image)
        labels.append(annotated)
    return images, maps, labels, statistics.median(seconds)


def _means(scores: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": len(scores["images"]),
        "mSA": scores["mean"]["mSA"],
        "SA50": scores["mean"]["SA50"],
        "mSA_confidence": scores["confidence"]["mSA"],
    }


def draw_pairs(
    folder: Path,
    samples: list[Sample],
    images: list[np.ndarray],
    predictions: list[np.ndarray],
    labels: list[np.ndarray],
) -> None:
    """Write prediction (left) and annotation (right) of some images."""
    step = max(1, len(samples) // _OVERLAYS)
    for i in range(0, len(samples), step):
        pair = [draw_overlay(images[i], found) for found in (predictions[i], labels[i])]
        with replacing(folder / f"{samples[i].name}.png") as temporary:
            temporary.write_bytes(imagecodecs.png_encode(np.concatenate(pair, axis=1)))
