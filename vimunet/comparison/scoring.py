"""The scores of folders of predictions, from whatever tools, against one folder of labels."""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimunet.bridges.predictions import Predictions, open_predictions
from vimunet.comparison.outcomes import LABELLED_OUTCOMES, PREDICTED_OUTCOMES, outcomes
from vimunet.io.formats import read_image
from vimunet.io.names import list_images, natural_key, stem
from vimunet.io.tables import write_json, write_rows
from vimunet.messages import some_of
from vimunet.protocol import Protocol, checked_protocol
from vimunet.representations.watershed import connected_components
from vimunet.scores.folders import check_names
from vimunet.scores.matching import Overlap
from vimunet.scores.objects import mean_segmentation_accuracy, scores_of, summarize
from vimunet.scores.statistics import confidence_interval

NOTHING_FOUND = "no file: nothing was found"
"""The problem of an image for which a tool rightly wrote no file."""

_WRONG = {"false": "false", "pieces": "piece", "mergers": "merger"}
_COUNTS = ("TP", "FP", "FN", "objects", "predicted", *LABELLED_OUTCOMES[1:], *_WRONG)

_SIZE_CLASSES = 5
_MOST_EXACT, _FLIPS = 12, 10_000
_MOST_FOR_CEILINGS = 40
_FEW_IDS, _MANY_PIECES = 2, 10


def compare(
    labels: str | Path,
    methods: Mapping[str, str | Path],
    *,
    images: str | Path | None = None,
    threshold: float = 0.5,
    protocol: Protocol = "fair",
    labelled_pixels_only: bool = False,
    seconds: Mapping[str, float] | None = None,
    ceilings: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score several methods on the same images.

    Images are scored one by one, so that only one is in memory at a time. A prediction that is
    missing, cannot be read or has another size counts as empty and is listed under `problems`:
    nothing is left out for one method that counts for another.

    Args:
        labels: Folder of annotated labels, of any tool that `open_predictions` reads.
        methods: Name of each method -> its folder of predictions, of any tool.
        images: Folder of the images; needed where outlines (ImageJ ROIs) are the labels.
        threshold: IoU in (0, 1] for counts, F1, PQ and outcomes.
        protocol: "fair", or "published": nnU-Net's classes are read, and matches counted, as they
            were in the paper.
        labelled_pixels_only: As in `vimunet.evaluate`; for EM labels that leave out boundaries.
        seconds: Seconds per image of a method, where known; they are only passed on.
        ceilings: Title -> what turns labels into the labels that perfect maps would give. They
            are scored on at most 40 of the images, drawn at random, always the same ones.
        progress: Called with the number of images done and of all.

    Returns:
        `names` of the images, `settings`, `best` (the method with the highest mean mSA),
        `ceilings` (mSA and confidence interval) and `methods`. Of each method: folder, tool,
        seconds_per_image; `images`, one row of scores and counts of outcomes each; `mean`,
        `confidence` and `total` over images; `by_size`, the outcomes of small to large objects, in
        five classes of equally many; `problems`; `notes`, what a reader had to say about a file
        that it read; `extra`, predictions without labels;
        `against_best`: mean difference of mSA to the best method on the same images, its
        confidence interval, p of `sign_flip_test`, and on how many images it wins, ties and loses.

    Raises:
        FileNotFoundError: If a folder does not exist or has nothing in it.
        ValueError: If there is no method, one is the folder of labels or has no image in common
            with it, `seconds` names an unknown one, labels cannot be read or are no images
            (y, x), or labels or predictions look like classes instead of objects.
    """
    protocol = checked_protocol(protocol)
    if not methods:
        raise ValueError("`methods` must name at least one folder of predictions.")
    if not 0 < threshold <= 1:
        raise ValueError(f"`threshold` must be in (0, 1], got {threshold}.")
    seconds = dict(seconds or {})
    if unknown := sorted(seconds.keys() - methods.keys()):
        raise ValueError(
            f"`seconds` must name methods ({', '.join(methods)}), got {', '.join(unknown)}."
        )
    truth = open_predictions(labels)
    names = list(truth.files)
    for method, folder in methods.items():
        if Path(folder).resolve() == Path(labels).resolve():
            raise ValueError(f"Method {method!r} must not be the folder of labels, {labels}.")
    shapes = _shapes(images, names) if truth.tool == "ImageJ ROIs" else {}
    scorers = {
        name: _Scorer(open_predictions(folder, protocol=protocol), protocol, threshold)
        for name, folder in methods.items()
    }
    for method, scorer in scorers.items():
        check_names(methods[method], scorer.predictions.files, labels, names)
    highest: dict[str, list[float]] = {title: [] for title in ceilings or {}}
    numbering = _Numbering()
    drawn = np.random.default_rng(0).permutation(len(names))[:_MOST_FOR_CEILINGS]
    for number, name in enumerate(names):
        annotated = truth.read(name, shapes.get(name, (0, 0)))
        if annotated.ndim != 2:
            raise ValueError(
                f"Labels must be images (y, x), got shape {annotated.shape} of {truth.files[name]}."
                " Compare the slices of a stack as images of their own."
            )
        numbering.see(annotated)
        for scorer in scorers.values():
            scorer.add(name, annotated, labelled_pixels_only)
        if number in drawn:
            for title, perfect in (ceilings or {}).items():
                highest[title].append(
                    mean_segmentation_accuracy(
                        perfect(annotated),
                        annotated,
                        protocol=protocol,
                        labelled_pixels_only=labelled_pixels_only,
                    )
                )
        if progress is not None:
            progress(number + 1, len(names))

    numbering.check(labels)
    for method, scorer in scorers.items():
        scorer.numbering.check(methods[method])
    accuracies = {name: scorer.column("mSA") for name, scorer in scorers.items()}
    best = max(accuracies, key=lambda name: accuracies[name].mean())
    areas = np.concatenate(next(iter(scorers.values())).areas)
    classes = _size_classes(areas)
    results = {
        name: {
            "folder": str(methods[name]),
            "tool": scorer.predictions.tool,
            "seconds_per_image": seconds.get(name),
            **summarize(scorer.rows, _COUNTS),
            "problems": scorer.problems,
            "notes": scorer.notes,
            "extra": sorted(scorer.predictions.files.keys() - set(names), key=natural_key),
            "against_best": None if name == best else _against(accuracies[name], accuracies[best]),
            "by_size": _by_size(areas, np.concatenate(scorer.outcomes), classes),
        }
        for name, scorer in scorers.items()
    }
    return {
        "labels": str(labels),
        "names": names,
        "settings": {
            "threshold": threshold,
            "protocol": protocol,
            "labelled_pixels_only": labelled_pixels_only,
        },
        "best": best,
        "ceilings": {
            title: {
                "mSA": float(np.mean(scores)),
                "confidence": confidence_interval(scores),
                "images": len(scores),
            }
            for title, scores in highest.items()
        },
        "methods": results,
    }


class _Numbering:
    """Whether label images number objects, or hold classes or masks instead."""

    def __init__(self) -> None:
        self.largest = self.ids = self.pieces = 0

    def see(self, labels: np.ndarray) -> None:
        """Take one more image into account."""
        self.largest = max(self.largest, int(labels.max(initial=0)))
        if self.largest <= _FEW_IDS:
            self.ids += np.setdiff1d(labels, 0).size
            self.pieces += int(connected_components(labels).max(initial=0))

    def check(self, folder: str | Path) -> None:
        """Raise if no number is larger than that of a class and each is in many places."""
        if self.largest <= _FEW_IDS and self.pieces > _MANY_PIECES * self.ids:
            raise ValueError(
                f"{folder} must number objects, got no number above {self.largest} but "
                f"{self.pieces} separate pieces: these look like classes or masks. Leave "
                "nnU-Net's dataset.json beside its predictions, or number the pieces with "
                "`skimage.measure.label`."
            )


class _Scorer:
    """The scores of one method, image by image."""

    def __init__(self, predictions: Predictions, protocol: Protocol, threshold: float):
        self.predictions, self.protocol, self.threshold = predictions, protocol, threshold
        self.rows: list[dict[str, Any]] = []
        self.problems: list[dict[str, str]] = []
        self.notes: list[dict[str, str]] = []
        self.outcomes: list[NDArray[np.uint8]] = []
        self.areas: list[NDArray[np.int64]] = []
        self.numbering = _Numbering()

    def add(self, name: str, labels: np.ndarray, labelled_pixels_only: bool) -> None:
        """Score the prediction for one image; if it cannot be used, as empty."""
        prediction, problem = self._read(name, labels.shape)
        if problem is None:
            try:
                overlap = Overlap.between(prediction, labels, labelled_pixels_only)
            except (TypeError, ValueError) as error:
                problem = f"cannot be scored: {error}"
            else:
                self.numbering.see(prediction)
        if problem is not None:
            self.problems.append({"name": name, "problem": problem})
            overlap = Overlap.between(np.zeros_like(labels), labels, labelled_pixels_only)
        labelled, predicted = (values[1:] for values in outcomes(overlap, self.threshold))
        of_labelled = np.bincount(labelled, minlength=len(LABELLED_OUTCOMES)).tolist()
        of_predicted = np.bincount(predicted, minlength=len(PREDICTED_OUTCOMES)).tolist()
        self.outcomes.append(labelled)
        areas = np.bincount(overlap.labelled, overlap.pixels, labelled.size + 1)[1:]
        self.areas.append(areas.astype(np.int64))
        self.rows.append(
            {
                "name": name,
                **scores_of(overlap, self.threshold, self.protocol),
                "objects": labelled.size,
                "predicted": predicted.size,
                **dict(zip(LABELLED_OUTCOMES[1:], of_labelled[1:], strict=True)),
                **{
                    column: of_predicted[PREDICTED_OUTCOMES.index(outcome)]
                    for column, outcome in _WRONG.items()
                },
            }
        )

    def _read(self, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, str | None]:
        nothing = np.zeros(shape, np.uint8)
        if name not in self.predictions.files:
            return nothing, NOTHING_FOUND if self.predictions.missing_is_empty else "no file"
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", UserWarning)
                prediction = self.predictions.read(name, (shape[-2], shape[-1]))
            self.notes += [{"name": name, "note": str(warning.message)} for warning in told]
        except (OSError, ValueError, TypeError) as error:
            return nothing, f"cannot be read: {error}"
        if prediction.shape != shape:
            return nothing, f"shape {prediction.shape} instead of {shape}"
        return prediction, None

    def column(self, key: str) -> NDArray[np.float64]:
        """(n,) one score of all images."""
        return np.array([row[key] for row in self.rows], float)


def _against(accuracies: NDArray[np.float64], best: NDArray[np.float64]) -> dict[str, Any]:
    """Compare with the best method on the same images."""
    differences = accuracies - best
    return {
        "difference": float(differences.mean()),
        "confidence": confidence_interval(differences),
        "p": sign_flip_test(differences),
        "wins": int((differences > 0).sum()),
        "ties": int((differences == 0).sum()),
        "losses": int((differences < 0).sum()),
    }


def sign_flip_test(differences: NDArray[np.float64]) -> float:
    """Test whether paired differences could as well have had the other sign.

    Args:
        differences: (n,) of two methods on the same images.

    Returns:
        Two-sided p: the share of all choices of signs that give a mean at least as far from 0. All
        2^n choices are tried for up to 12 images, 10,000 random ones for more.

    Source:
        Fisher's randomisation test for paired samples.

    Examples:
        >>> sign_flip_test(np.array([0.1, 0.2, 0.1, 0.3, 0.2, 0.1]))
        0.03125
    """
    count = differences.size
    if count <= _MOST_EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=count)))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(_FLIPS, count))
        signs[0] = 1
    means = np.abs(signs @ differences)
    return float(np.mean(means >= means[0] - 1e-12))


def _size_classes(areas: NDArray[np.int64]) -> list[int]:
    """Borders between classes of equally many objects; each class ends below the next border."""
    if not areas.size:
        return []
    borders = np.quantile(areas, np.linspace(0, 1, _SIZE_CLASSES + 1), method="closest_observation")
    borders[-1] += 1
    return np.unique(borders).astype(int).tolist()


def _by_size(
    areas: NDArray[np.int64], objects: NDArray[np.uint8], borders: Sequence[int]
) -> list[dict[str, int]]:
    rows = []
    for low, high in itertools.pairwise(borders):
        inside = objects[(areas >= low) & (areas < high)]
        counts = np.bincount(inside, minlength=len(LABELLED_OUTCOMES)).tolist()
        rows.append(
            {
                "area_from": low,
                "area_to": high - 1,
                "objects": inside.size,
                **dict(zip(LABELLED_OUTCOMES[1:], counts[1:], strict=True)),
            }
        )
    return rows


def _shapes(images: str | Path | None, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Height and width of the images, which outlines do not tell."""
    if images is None:
        raise ValueError("`images` must be given if the labels are outlines (ImageJ ROIs).")
    files = {stem(file): file for file in list_images(images)}
    if missing := [name for name in names if name not in files]:
        raise ValueError(f"{images} must have an image for all labels, lacks {some_of(missing)}.")
    shapes = {}
    for name in names:
        shape = read_image(files[name]).shape
        if len(shape) not in (2, 3) or shape[2:] > (4,):
            raise ValueError(
                f"{files[name]} must have shape (y, x) or (y, x, c) to tell the size of its "
                f"labels, got {shape}."
            )
        shapes[name] = shape[0], shape[1]
    return shapes


def write_tables(folder: str | Path, result: dict[str, Any]) -> None:
    """Write `comparison.json`, `methods.csv` and `images.csv`, each completely or not at all.

    Args:
        folder: Is made if need be.
        result: Of `compare`.
    """
    folder = Path(folder)
    methods, images = [], []
    for name, method in result["methods"].items():
        row: dict[str, Any] = {"method": name, "tool": method["tool"]}
        for key, mean in method["mean"].items():
            low, high = method["confidence"][key]
            row |= {key: mean, f"{key} low": low, f"{key} high": high}
        against = method["against_best"] or {}
        methods.append(
            row
            | method["total"]
            | {
                "seconds_per_image": method["seconds_per_image"],
                "problems": len(method["problems"]),
                "mSA minus best": against.get("difference", 0.0),
                "p": against.get("p"),
                "wins": against.get("wins"),
                "ties": against.get("ties"),
                "losses": against.get("losses"),
            }
        )
        problems = {entry["name"]: entry["problem"] for entry in method["problems"]}
        images += [
            {"method": name, "image": row["name"], **row, "problem": problems.get(row["name"])}
            for row in method["images"]
        ]
    for row in images:
        del row["name"]
    write_rows(folder / "methods.csv", methods)
    write_rows(folder / "images.csv", images)
    write_json(folder / "comparison.json", result)
