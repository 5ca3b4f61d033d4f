"""How good a trained model is: scored on images that choose thresholds, and on images that test it.

For each of these splits there are the scores with

    published  the decoding and thresholds of the publication; for classes, its definitions
    default    the project's decoding and thresholds
    tuned      the same with the thresholds that score best on the validation images
    ceiling    perfect maps, made from the labels, decoded with the project's defaults

What is measured follows from the representation, see `vimunet.scores`. Nothing is trained here.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vimunet.datasets.synapse import resize
from vimunet.io.atomic import replacing
from vimunet.io.pairs import Sample
from vimunet.io.tables import write_json, write_rows
from vimunet.overlay import draw_overlay
from vimunet.protocol import Protocol
from vimunet.representations import Representation
from vimunet.scores.classes import evaluate_semantic, summarize_semantic
from vimunet.scores.objects import evaluate_objects, summarize
from vimunet.segmentation.devices import choose_device
from vimunet.segmentation.model_file import TrainedModel, save_model
from vimunet.segmentation.predict import predict
from vimunet.segmentation.segment import segment
from vimunet.training.tuning import tune_thresholds

_RECIPES = ("published", "default", "tuned", "ceiling")

_OVERLAYS = 4
_SUMMARY = ("mean", "confidence", "micro", "micro_confidence", "total")

Change = Callable[[NDArray, NDArray], tuple[NDArray, NDArray]]
"""Makes another image and other labels of an image and its labels."""


def score_model(
    model: TrainedModel,
    val_samples: Sequence[Sample],
    test_samples: Sequence[Sample],
    output: str | Path,
    *,
    kind_of: Callable[[NDArray], str] | None = None,
    tidied: Callable[[NDArray], NDArray] | None = None,
    slice_size: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Tune the thresholds on the validation images and score both splits.

    Args:
        model: Written by a training. Its own thresholds do not matter.
        val_samples: Images with labels to choose thresholds with.
        test_samples: Images with labels to report.
        output: Gets `tuned.safetensors`; `scores.csv`, one row per split, recipe and kind;
            `images.csv`, one row per split, recipe and image; `summary.json`; and some overlays.
        kind_of: Names the kind of an image; scores are then also given for each kind.
        tidied: Makes other labels of those of a test image; they are one more split, "test_tidied".
        slice_size: See `predict_samples`.
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        What is in `summary.json`: for each split and recipe means over images and, for classes,
        scores of all pixels together, with confidence intervals.

    Raises:
        ValueError: If there are no samples, or one has no labels.
    """
    output = Path(output)
    model.network.to(choose_device(device))
    default = untuned(model.representation)
    val = list(predict_samples(model, val_samples, title="val", slice_size=slice_size))
    tuned, _, _ = tune_thresholds(
        default,
        [predicted.maps for predicted in val],
        [predicted.labels for predicted in val],
        labelled_pixels_only=not default.has_background,
        spacings=[predicted.spacing for predicted in val],
    )
    save_model(output / "tuned.safetensors", replace(model, representation=tuned))

    table = _Table({"published": default.published(), "default": default, "tuned": tuned})
    test = predict_samples(model, test_samples, title="test", slice_size=slice_size)
    splits = {"val": (val, len(val)), "test": (test, len(test_samples))}
    for split, (cases, count) in splits.items():
        step = max(1, count // _OVERLAYS)
        for number, predicted in enumerate(cases):
            kind = "" if kind_of is None else kind_of(predicted.image)
            found = table.add(split, predicted, kind)
            if number % step == 0:
                _draw_pair(output / split / f"{predicted.name}.png", predicted, found)
            if split == "test" and tidied is not None:
                table.add("test_tidied", replace(predicted, labels=tidied(predicted.labels)), kind)
    summary = {
        "network": model.network.config,
        "info": model.info,
        "labelled_pixels_only": not default.has_background,
        "tuned": tuned.config(),
        **table.summary(),
    }
    write_rows(output / "images.csv", table.rows)
    write_rows(output / "scores.csv", score_rows(summary))
    write_json(output / "summary.json", summary)
    return summary


def score_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Write the summary of `score_model` as rows: one per split, recipe and kind.

    Returns:
        The split, the recipe, the kind ("" for all images), the number of images, and each score
        with the low and high end of its confidence interval; for classes also those of all pixels
        together, "micro".
    """
    rows = []
    for split in ("val", "test", "test_tidied"):
        for recipe in _RECIPES if split in summary else ():
            whole = summary[split][recipe]
            for kind, part in {"": whole, **whole.get("kinds", {})}.items():
                row = {"split": split, "recipe": recipe, "kind": kind, "images": part["images"]}
                for prefix, means, ends in (
                    ("", "mean", "confidence"),
                    ("micro ", "micro", "micro_confidence"),
                ):
                    for name, value in part.get(means, {}).items():
                        low, high = part[ends][name]
                        row |= {
                            f"{prefix}{name}": value,
                            f"{prefix}{name} low": low,
                            f"{prefix}{name} high": high,
                        }
                rows.append(row)
    return rows


def untuned(representation: Representation) -> Representation:
    """Give the representation of the same maps that reads them with the default thresholds."""
    defaults: dict[str, Any] = {
        field.name: field.default
        for field in fields(representation)  # type: ignore[arg-type]
    }
    return representation.tuned(
        **{tunable.field: defaults[tunable.field] for tunable in representation.tunable}
    )


@dataclass(frozen=True)
class Predicted:
    """A sample and the maps that a network predicts for it.

    Attributes:
        name: Of the sample.
        image: ([z,] y, x) or with channels behind.
        labels: ([z,] y, x).
        maps: (m, [z,] y, x); of a volume that is predicted in slices, (z, m, y, x) of these.
        seconds: Time of the prediction.
        spacing: Size of a voxel along each axis.
        sliced: Whether it is predicted in slices.
    """

    name: str
    image: NDArray
    labels: NDArray
    maps: NDArray[np.float32]
    seconds: float
    spacing: tuple[float, ...] | None = None
    sliced: bool = False

    def decoded(self, representation: Representation) -> NDArray[np.int32]:
        """Read labels from the maps."""
        return self._labels(self.maps, representation)

    def perfect(self, representation: Representation) -> NDArray[np.int32]:
        """Read labels from perfect maps."""
        if not self.sliced:
            return self._labels(representation.encode(self.labels, self.spacing), representation)
        size = self.maps.shape[2:]
        slices = [resize(labels, size, order=0) for labels in self.labels]
        return self._labels([representation.encode(labels) for labels in slices], representation)

    def _labels(self, maps: Any, representation: Representation) -> NDArray[np.int32]:
        if not self.sliced:
            return representation.decode(maps, self.spacing)
        size = self.labels.shape[1:]
        return np.stack([resize(representation.decode(m), size, order=0) for m in maps])


def predict_samples(
    model: TrainedModel,
    samples: Sequence[Sample],
    *,
    title: str = "",
    slice_size: int | None = None,
) -> Iterator[Predicted]:
    """Predict the maps of samples, one after the other.

    Args:
        model: What predicts.
        samples: Images with labels.
        title: Of the bar on the screen.
        slice_size: A model of images that finds classes takes a volume slice by slice. Each is
            resized to this square for the network, and its classes back to the nearest pixel, as
            for VM-UNet. None leaves them their size. Unit: pixels.

    Raises:
        ValueError: If a sample has no labels, or is a volume whose objects are to be found in
            slices.
    """
    for sample in tqdm(samples, desc=title or None, unit="image", disable=None):
        image, labels = _read(sample)
        started = time.perf_counter()
        sliced = labels.ndim > len(model.axes)
        if sliced and not model.representation.labels_are_classes:
            raise ValueError(
                f"{sample.name}: a model of images must get images with labels, got the shape "
                f"{labels.shape}. Objects of slices are no objects of the volume."
            )
        if sliced:
            sizes = labels.shape[1:] if slice_size is None else (slice_size, slice_size)
            slices = (resize(section, sizes, order=3) for section in image)
            maps = np.stack([predict(section, model) for section in slices])
        else:
            maps = predict(image, model)
        seconds = time.perf_counter() - started
        yield Predicted(sample.name, image, labels, maps, seconds, sample.spacing, sliced)


@dataclass(frozen=True)
class Segmented:
    """A sample and what a model finds in it.

    Attributes:
        name: Of the sample.
        image: What was segmented.
        labels: What was annotated.
        found: What was found.
        scores: How well both agree, by name.
        seconds: Time of the segmentation.
    """

    name: str
    image: NDArray
    labels: NDArray
    found: NDArray[np.int32]
    scores: dict[str, float]
    seconds: float


def segment_samples(
    model: TrainedModel,
    samples: Iterable[Sample],
    change: Change | None = None,
    **options: Any,
) -> Iterator[Segmented]:
    """Segment samples as `vimunet.segment` does, and score each.

    Args:
        model: Used as it is, with its thresholds.
        samples: Images with labels.
        change: Changes image and labels before.
        **options: Keywords of `segment`.

    Raises:
        ValueError: If a sample has no labels.
    """
    for sample in samples:
        image, labels = _read(sample)
        if change is not None:
            image, labels = change(image, labels)
        started = time.perf_counter()
        found = segment(image, model, spacing=sample.spacing, **options)
        seconds = time.perf_counter() - started
        scores = _scores(model.representation, found, labels)
        yield Segmented(sample.name, image, labels, found, scores, seconds)


def _read(sample: Sample) -> tuple[NDArray, NDArray]:
    image, labels = sample.read()
    if labels is None:
        raise ValueError(f"{sample.name}: scoring needs labels, this sample has none.")
    return image, labels


def _protocol(representation: Representation, recipe: str) -> Protocol:
    """Say how scores are counted: of classes, other definitions were published."""
    classes = representation.labels_are_classes
    return "published" if classes and recipe == "published" else "fair"


def _scores(
    representation: Representation, found: NDArray, labels: NDArray, recipe: str = ""
) -> dict[str, float]:
    if representation.labels_are_classes:
        return evaluate_semantic(
            found,
            labels,
            num_classes=representation.config()["num_classes"],
            protocol=_protocol(representation, recipe),
        )
    only = not representation.has_background
    return evaluate_objects(found, labels, labelled_pixels_only=only)


class _Table:
    """The scores of all images, and what they come to."""

    def __init__(self, recipes: dict[str, Representation]):
        self.rows: list[dict[str, Any]] = []
        self._recipes = recipes
        self._seconds: dict[str, list[float]] = {}

    def add(self, split: str, predicted: Predicted, kind: str) -> NDArray[np.int32]:
        """Score a sample; return what is found with the tuned thresholds."""
        default = self._recipes["default"]
        found = {name: predicted.decoded(recipe) for name, recipe in self._recipes.items()}
        found["ceiling"] = predicted.perfect(default)
        self._seconds.setdefault(split, []).append(predicted.seconds)
        for name, labels in found.items():
            scores = _scores(default, labels, predicted.labels, name)
            place = {"split": split, "recipe": name, "kind": kind, "name": predicted.name}
            self.rows.append({**place, **scores})
        return found["tuned"]

    def summary(self) -> dict[str, Any]:
        """Average the scores of each split, recipe and kind."""
        return {
            split: {
                "images": len(seconds),
                "median_seconds_per_image": float(np.median(seconds)),
                **{recipe: self._average(split, recipe) for recipe in _RECIPES},
            }
            for split, seconds in self._seconds.items()
        }

    def _average(self, split: str, recipe: str) -> dict[str, Any]:
        chosen = [row for row in self.rows if (row["split"], row["recipe"]) == (split, recipe)]
        kinds = sorted({row["kind"] for row in chosen})
        parts = {kind: [row for row in chosen if row["kind"] == kind] for kind in kinds}
        whole = self._means(chosen, recipe)
        if kinds == [""]:
            return whole
        return whole | {"kinds": {kind: self._means(rows, recipe) for kind, rows in parts.items()}}

    def _means(self, rows: list[dict[str, Any]], recipe: str) -> dict[str, Any]:
        places = ("split", "recipe", "kind")
        images = [{k: v for k, v in row.items() if k not in places} for row in rows]
        default = self._recipes["default"]
        if default.labels_are_classes:
            result = summarize_semantic(images, protocol=_protocol(default, recipe))
        else:
            result = summarize(images)
        return {"images": len(images), **{key: result[key] for key in _SUMMARY if key in result}}


def _draw_pair(file: Path, predicted: Predicted, found: NDArray[np.int32]) -> None:
    """Write prediction (left) and annotation (right); of a volume, the section in the middle."""
    image, labels = predicted.image, predicted.labels
    if labels.ndim == 3:
        middle = len(labels) // 2
        image, found, labels = image[middle], found[middle], labels[middle]
    pair = [draw_overlay(image, drawn) for drawn in (found, labels)]
    with replacing(file) as temporary:
        temporary.write_bytes(imagecodecs.png_encode(np.concatenate(pair, axis=1)))
