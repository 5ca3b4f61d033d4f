"""Scores of arrays, of files, and of two folders of files that are paired by name."""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vimunet.axes import PerAxis
from vimunet.io.formats import read_labels
from vimunet.io.names import by_name, list_images
from vimunet.messages import some_of
from vimunet.protocol import Protocol, checked_protocol
from vimunet.scores.classes import check_options, evaluate_semantic, summarize_semantic
from vimunet.scores.objects import evaluate_objects, summarize

_log = logging.getLogger(__name__)


def evaluate(
    prediction: ArrayLike | str | Path,
    labels: ArrayLike | str | Path,
    *,
    num_classes: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score predicted labels against annotated ones: arrays, files, or folders of files.

    Args:
        prediction: Labels of any shape, the path of a label file, or a folder of them.
        labels: The same kind, annotated.
        num_classes: Number of classes, background included, where labels are classes; None where
            they number objects.
        **options: Keywords of `evaluate_objects` (`threshold`, `protocol`,
            `labelled_pixels_only`), or of `evaluate_semantic` (`spacing`, `protocol`).

    Returns:
        The scores by name, see `evaluate_objects` and `evaluate_semantic`; for folders the tables
        of `evaluate_folders` and `evaluate_semantic_folders`.

    Raises:
        FileNotFoundError: If a file or folder does not exist.
        TypeError: If labels are no labels.
        ValueError: If shapes differ, or an option is out of range.

    Examples:
        One of two objects is found in 3 of its 4 pixels:

        >>> labels = np.array([[1, 1, 0, 2], [1, 1, 0, 2]])
        >>> prediction = np.array([[5, 5, 0, 0], [5, 0, 0, 0]])
        >>> scores = evaluate(prediction, labels)
        >>> scores["TP"], scores["FN"], scores["SA50"], scores["SQ"], scores["mSA"]
        (1, 1, 0.5, 0.75, 0.3)
    """
    paths = [given for given in (prediction, labels) if isinstance(given, str | Path)]
    if paths and all(Path(path).is_dir() and not _is_image(path) for path in paths):
        if num_classes is None:
            return evaluate_folders(*paths, **options)
        return evaluate_semantic_folders(*paths, num_classes=num_classes, **options)
    masks = num_classes is not None
    pair = [
        read_labels(given, masks=masks) if isinstance(given, str | Path) else np.asarray(given)
        for given in (prediction, labels)
    ]
    if num_classes is None:
        return evaluate_objects(*pair, **options)
    return evaluate_semantic(*pair, num_classes=num_classes, **options)


def _is_image(path: str | Path) -> bool:
    return Path(path).suffix.lower() in (".zarr", ".n5")


def evaluate_folders(
    predictions: str | Path,
    labels: str | Path,
    *,
    threshold: float = 0.5,
    protocol: Protocol = "fair",
    labelled_pixels_only: bool = False,
) -> dict[str, Any]:
    """Score all label images of a folder against those of the same name in another.

    Files are paired by name without extension, one pair is in memory at a time. An image of
    `labels` without a prediction is scored as an empty prediction, with a warning.

    Args:
        predictions: Folder of predicted label images.
        labels: Folder of annotated label images.
        threshold: As in `evaluate_objects`.
        protocol: As in `evaluate_objects`.
        labelled_pixels_only: As in `evaluate_objects`.

    Returns:
        `images`, `mean`, `total` and `confidence` of `summarize`; `missing` and `extra`, the
        names without a prediction and without labels; `settings`, the three options. For
        `write_json` and `write_csv`.

    Raises:
        FileNotFoundError: If a folder does not exist or holds no images.
        ValueError: If two files of a folder differ only in their extension, the folders have no
            name in common, or the shapes of a pair differ. The message names the file.
    """
    settings: dict[str, Any] = {
        "threshold": threshold,
        "protocol": checked_protocol(protocol),
        "labelled_pixels_only": labelled_pixels_only,
    }
    score = partial(evaluate_objects, **settings)
    return _score_files(predictions, labels, score, summarize, settings, masks=False)


def evaluate_semantic_folders(
    predictions: str | Path,
    labels: str | Path,
    *,
    num_classes: int = 2,
    spacing: PerAxis[float] = 1.0,
    protocol: Protocol = "fair",
) -> dict[str, Any]:
    """Score all images of classes in a folder against those of the same name in another.

    As `evaluate_folders`; an image without a prediction is scored as background throughout. Masks
    (true and false, or 0 and 255) count as class 1.

    Args:
        predictions: Folder of predicted classes.
        labels: Folder of annotated classes.
        num_classes: As in `evaluate_semantic`.
        spacing: As in `evaluate_semantic`.
        protocol: As in `evaluate_semantic`.

    Returns:
        What `summarize_semantic` gives; `missing` and `extra`, the names without a prediction and
        without labels; `settings`, the three options. For `write_json` and `write_csv`.

    Raises:
        FileNotFoundError: If a folder does not exist or holds no images.
        ValueError: As in `evaluate_folders`, or if a value is no class.
    """
    protocol = check_options(num_classes, protocol)
    settings: dict[str, Any] = {
        "num_classes": num_classes,
        "spacing": spacing,
        "protocol": protocol,
    }
    score = partial(evaluate_semantic, **settings)
    summary = partial(summarize_semantic, protocol=protocol)
    return _score_files(predictions, labels, score, summary, settings, masks=True)


def _score_files(
    predictions: str | Path,
    labels: str | Path,
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    summary: Callable[[list[dict[str, Any]]], dict[str, Any]],
    settings: dict[str, Any],
    masks: bool,
) -> dict[str, Any]:
    """Score the pairs of two folders, one after the other."""
    pairs, missing, extra = pair_by_name(predictions, labels)
    images = []
    for name, found, file in pairs:
        reference = read_labels(file, masks=masks)
        prediction = np.zeros_like(reference) if found is None else read_labels(found, masks=masks)
        try:
            scores = score(prediction, reference)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{found or file}: {error}") from error
        images.append({"name": name, **scores})
    return {**summary(images), "missing": missing, "extra": extra, "settings": settings}


def pair_by_name(
    predictions: str | Path, labels: str | Path
) -> tuple[list[tuple[str, Path | None, Path]], list[str], list[str]]:
    """Pair the images of two folders by name without extension.

    Args:
        predictions: Folder of predicted images.
        labels: Folder of annotated images.

    Returns:
        Name, prediction (None if there is none) and labels of each file of `labels`; the names
        without a prediction, and those without labels. A warning tells both.

    Raises:
        FileNotFoundError: If a folder does not exist or holds no images.
        ValueError: If two files of a folder differ only in their extension, or the two folders
            have no name in common.
    """
    predicted_files = by_name(list_images(predictions))
    labelled_files = by_name(list_images(labels))
    check_names(predictions, predicted_files, labels, labelled_files)
    missing = sorted(labelled_files.keys() - predicted_files.keys())
    extra = sorted(predicted_files.keys() - labelled_files.keys())
    if missing:
        _log.warning("No prediction, scored as empty: %s", ", ".join(missing))
    if extra:
        _log.warning("Prediction without labels, not scored: %s", ", ".join(extra))
    pairs = [(name, predicted_files.get(name), file) for name, file in labelled_files.items()]
    return pairs, missing, extra


def check_names(
    predictions: str | Path, predicted: Iterable[str], labels: str | Path, labelled: Iterable[str]
) -> None:
    """Refuse a folder of predictions if none has the name of a label image."""
    if not set(predicted) & set(labelled):
        raise ValueError(
            f"{predictions} must hold predictions for the images of {labels}, got "
            f"{some_of(predicted)} and there {some_of(labelled)}. "
            "Names must be equal, without the extension."
        )
