"""The pictures of a comparison: which images to show, labels as outlines, and maps of errors.

One image is in memory at a time, and pictures have a size in bytes that they keep to.
"""

import base64
import io
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vimunet.comparison import LABELLED_OUTCOMES, PREDICTED_OUTCOMES, explain
from vimunet.comparison.sentences import number, printable, ranking, score_text
from vimunet.io.formats import read_image
from vimunet.io.names import list_images, stem
from vimunet.overlay import outlines, stretch_contrast

COLORS = {
    "found": "#1B9E77",
    "inexact": "#9BE0C4",
    "split": "#56B4E9",
    "merged": "#CC79A7",
    "missed": "#E4572E",
    "false": "#F0D442",
}
"""Of each outcome, in pictures and in bars: told apart by colour-blind eyes, too."""

MOST_METHODS = 12
"""Of how many methods pictures are shown, the best first."""

_LONGEST_SIDE = 640
_SHORTEST_SIDE = 320  # smaller images are enlarged, so that outlines stay thin
_ALL_BYTES = 5_000_000
_GOOD, _FAIR = 80, 55
_SMALLEST_SIDE = 64
_OUTLINE = np.array([1.0, 0.85, 0.2], np.float32)


class Readable(Protocol):
    """Predictions of a method: what `vimunet.bridges.predictions.open_predictions` returns."""

    def read(self, name: str, shape: Any) -> np.ndarray:
        """Return the (y, x) integer labels of an image of a shape, None if it is not known."""


@dataclass(frozen=True)
class Picture:
    """A picture to put into a page.

    Attributes:
        alt: What it shows, for who cannot see it.
        source: Its content, as a `data:` address.
        width: In pixels.
        height: In pixels.
    """

    alt: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Panel:
    """Two pictures side by side: image and labels, or the labels of a method and its errors.

    Attributes:
        title: "image and labels", or the method.
        note: What is special, or empty.
        scores: Scores of this image; None for the labels themselves.
        pictures: One or two.
    """

    title: str
    note: str
    scores: dict[str, Any] | None
    pictures: list[Picture]


def choose_images(result: dict[str, Any], most: int) -> dict[str, str]:
    """Choose images that are worth a look.

    The worst, the median and the best image of the best method, and those on which the methods
    disagree most; then the next worst and the next on which they disagree, in turn.

    Args:
        result: What `vimunet.comparison.compare` returns.
        most: How many images at most, >= 0.

    Returns:
        Name of the image -> why it was chosen.
    """
    names = result["names"]
    best = printable(result["best"])
    columns = [
        [number(image["mSA"]) for image in method["images"]]
        for method in result["methods"].values()
    ]
    accuracy = [number(image["mSA"]) for image in result["methods"][result["best"]]["images"]]
    spread = {
        i: (min(scores), max(scores))
        for i, scores in enumerate(zip(*columns, strict=True))
        if len(scores) > 1 and not any(map(math.isnan, scores))
    }
    order = sorted(
        (i for i in range(len(names)) if not math.isnan(accuracy[i])), key=lambda i: accuracy[i]
    )
    if not order:
        return dict.fromkeys(names[:most], "the first images")
    worst = [(i, f"among the worst of {best}") for i in order]
    worst[0] = (order[0], f"the worst of {best}")
    disagree = [
        (i, f"methods disagree: mSA {score_text(spread[i][0])} to {score_text(spread[i][1])}")
        for i in sorted(spread, key=lambda i: spread[i][0] - spread[i][1])
        if spread[i][1] > spread[i][0]
    ]
    middle = (order[(len(order) - 1) // 2], f"the median of {best}")
    turns = itertools.chain.from_iterable(itertools.zip_longest(worst[1:], disagree[1:]))
    chosen: dict[str, str] = {}
    for pick in (worst[0], *disagree[:1], middle, (order[-1], f"the best of {best}"), *turns):
        if pick is not None and len(chosen) < most:
            chosen.setdefault(names[pick[0]], pick[1])
    return chosen


class Painter:
    """Reads the images of a comparison one by one and draws their panels.

    Args:
        result: What `vimunet.comparison.compare` returns.
        labels: The labels, read like predictions.
        predictions: Name of each method -> its predictions.
        images_folder: Folder of the images; without it, labels are drawn on black.
        count: How many images will be drawn; they share the bytes of the page.
    """

    def __init__(
        self,
        result: dict[str, Any],
        labels: Readable,
        predictions: Mapping[str, Readable],
        images_folder: str | Path | None,
        count: int,
    ):
        self._result, self._predictions = result, predictions
        self._labels = labels
        self._images = (
            {stem(file): file for file in list_images(images_folder)} if images_folder else {}
        )
        self._methods = ranking(result)[:MOST_METHODS]
        pictures = 2 * count * (1 + len(self._methods))
        self._most_bytes = _ALL_BYTES // max(1, pictures)

    def panels(self, name: str) -> Iterator[Panel]:
        """Draw the labels of an image, then what each method made of it, the best first."""
        image, note = self._image(name)
        labels = self._labels.read(name, None if image is None else image.shape[:2])
        if image is not None:
            image = _channels_last(image, labels.shape)
            if image is None:
                note = f"The image does not have the size of its labels, {labels.shape}."
        factor = -(-max(labels.shape) // _LONGEST_SIDE)
        repeat = max(1, _SHORTEST_SIDE // max(labels.shape))
        gray = (
            np.zeros((*_shrunk(labels, factor).shape, 3), np.float32)
            if image is None
            else stretch_contrast(_averaged(image, factor))
        )
        gray = _repeated(gray, repeat)
        truth = _repeated(_shrunk(labels, factor), repeat)
        count = np.unique(labels[labels > 0]).size
        plain = [] if image is None else [self._encode(gray, f"Image {name}")]
        text = f"{count} labelled objects of {name} as outlines"
        yield Panel(
            "image and labels" if plain else "labels",
            note,
            None,
            [*plain, self._encode(_outlined(gray, truth), text)],
        )
        row = self._result["names"].index(name)
        for method in self._methods:
            scores = self._result["methods"][method]
            problems = {item["name"]: item["problem"] for item in scores["problems"]}
            problem = problems.get(name, "")
            found = (
                np.zeros_like(labels)
                if problem
                else self._predictions[method].read(name, labels.shape)
            )
            of_labelled, of_predicted = explain(
                found,
                labels,
                self._result["settings"]["threshold"],
                labelled_pixels_only=self._result["settings"]["labelled_pixels_only"],
            )
            small = [
                _repeated(_shrunk(values, factor), repeat)
                for values in (found, of_labelled, of_predicted)
            ]
            outlined, errors = _outlined(gray, small[0]), _error_map(gray, truth, *small)
            yield Panel(
                method,
                f"Counted as empty: {problem}." if problem else "",
                scores["images"][row],
                [
                    self._encode(outlined, f"Objects of {method} in {name} as outlines"),
                    self._encode(errors, f"Errors of {method} in {name} in colour"),
                ],
            )

    def _image(self, name: str) -> tuple[np.ndarray | None, str]:
        if not self._images:
            return None, ""
        if name not in self._images:
            return None, "There is no image of this name."
        try:
            return read_image(self._images[name]), ""
        except (OSError, ValueError) as error:
            return None, f"The image cannot be read: {error}"

    def _encode(self, picture: NDArray[np.float32], alt: str) -> Picture:
        """Compress a picture until it keeps to its share of the bytes."""
        image = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
        quality = _GOOD
        while True:
            content = io.BytesIO()
            image.save(content, "WEBP", quality=quality, method=1)
            excess = content.tell() / self._most_bytes
            if excess <= 1 or max(image.size) <= _SMALLEST_SIDE:
                source = base64.b64encode(content.getvalue()).decode()
                return Picture(printable(alt), f"data:image/webp;base64,{source}", *image.size)
            if quality == _GOOD:
                quality = _FAIR
            else:
                scale = 0.95 * min(1.0, excess**-0.5)
                image = image.resize([max(1, round(scale * side)) for side in image.size])


def _channels_last(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return (y, x) or (y, x, c) of the shape of the labels, None if it has another."""
    if image.shape[:2] == shape and image.ndim in (2, 3):
        return image
    return np.moveaxis(image, 0, -1) if image.ndim == 3 and image.shape[1:] == shape else None


def _shrunk(values: np.ndarray, factor: int) -> np.ndarray:
    """Take one pixel of each square of `factor` x `factor` pixels."""
    return values[factor // 2 :: factor, factor // 2 :: factor]


def _averaged(image: np.ndarray, factor: int) -> np.ndarray:
    """Average squares around the pixels that `_shrunk` takes; those at the border are cut."""
    if factor == 1:
        return image
    height, width = _shrunk(image, factor).shape[:2]
    padding = [
        (0, max(0, count * factor - size))
        for count, size in zip((height, width), image.shape[:2], strict=True)
    ]
    padding += [(0, 0)] * (image.ndim - 2)
    image = np.pad(image, padding, mode="edge")[: height * factor, : width * factor]
    squares = image.reshape(height, factor, width, factor, *image.shape[2:])
    return squares.mean(axis=(1, 3), dtype=np.float32)


def _repeated(values: np.ndarray, times: int) -> np.ndarray:
    return values.repeat(times, axis=0).repeat(times, axis=1)


def _outlined(gray: NDArray[np.float32], labels: np.ndarray) -> NDArray[np.float32]:
    """Draw the outlines of labels in one colour."""
    picture = gray.copy()
    picture[outlines(labels)] = _OUTLINE
    return picture


def _error_map(
    gray: NDArray[np.float32],
    labels: np.ndarray,
    found: np.ndarray,
    of_labelled: np.ndarray,
    of_predicted: np.ndarray,
) -> NDArray[np.float32]:
    """Fill objects with the colour of what became of them, and outline the predicted ones."""
    background = [0.0, 0.0, 0.0]
    colors = np.array(
        [background, *(_rgb(COLORS[outcome]) for outcome in LABELLED_OUTCOMES[1:])], np.float32
    )
    is_false = (of_predicted == PREDICTED_OUTCOMES.index("false")) & (of_labelled == 0)
    fill = colors[of_labelled]
    fill[is_false] = _rgb(COLORS["false"])
    covered = (of_labelled > 0) | is_false
    picture = 0.55 * gray
    picture[covered] = 0.3 * picture[covered] + 0.7 * fill[covered]
    edge = outlines(labels)
    picture[edge] = fill[edge]
    edge = outlines(found)
    picture[edge] = 1.0
    return picture


def _rgb(color: str) -> list[float]:
    return [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
