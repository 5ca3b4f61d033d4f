"""Results of a comparison, made without `vimunet.comparison.compare`: for tests of its report."""

from dataclasses import dataclass, field

import numpy as np

from vimunet.comparison import LABELLED_OUTCOMES, PREDICTED_OUTCOMES, explain
from vimunet.comparison.scoring import sign_flip_test
from vimunet.scores.folders import evaluate
from vimunet.scores.statistics import confidence_interval, mean_defined

COUNTS = (
    *("TP", "FP", "FN", "objects", "predicted"),
    *("found", "inexact", "split", "merged", "missed", "false", "pieces", "mergers"),
)
SIZES = ((1, 60), (60, 150), (150, 100_000))


@dataclass(frozen=True)
class Arrays:
    """Predictions in memory, with the interface of files that a tool wrote."""

    images: dict[str, np.ndarray]
    tool: str = "label images"
    missing_is_empty: bool = False
    asked: list[str] = field(default_factory=list)

    def read(self, name, shape):
        self.asked.append(name)
        return self.images[name]


def outcomes_of(labels, outcomes):
    """Outcome and area of each object, from the outcome of each pixel."""
    ids, first, areas = np.unique(labels, return_index=True, return_counts=True)
    return [
        (int(outcomes.flat[place]), int(area))
        for i, place, area in zip(ids, first, areas, strict=True)
        if i
    ]


def make_result(labels, methods, ceilings=None, tools=None, seconds=None):
    """Score {method: {name: prediction}} against {name: labels}; a missing name is empty."""
    result = {
        "labels": "labels",
        "names": list(labels),
        "settings": {"threshold": 0.5, "protocol": "fair", "labelled_pixels_only": False},
        "ceilings": ceilings or {},
        "methods": {},
    }
    for method, predictions in methods.items():
        images, sizes, problems = [], [], []
        for name, truth in labels.items():
            found = predictions.get(name)
            if found is None:
                problems.append({"name": name, "problem": "no file"})
                found = np.zeros_like(truth)
            of_labelled, of_predicted = explain(found, truth)
            labelled, predicted = outcomes_of(truth, of_labelled), outcomes_of(found, of_predicted)
            kinds = [LABELLED_OUTCOMES[outcome] for outcome, _ in labelled]
            wrong = [PREDICTED_OUTCOMES[outcome] for outcome, _ in predicted]
            sizes += [(area, kind) for (_, area), kind in zip(labelled, kinds, strict=True)]
            images.append(
                {
                    "name": name,
                    **evaluate(found, truth),
                    "objects": len(labelled),
                    "predicted": len(predicted),
                    **{kind: kinds.count(kind) for kind in LABELLED_OUTCOMES[1:]},
                    "false": wrong.count("false"),
                    "pieces": wrong.count("piece"),
                    "mergers": wrong.count("merger"),
                }
            )
        keys = [key for key in images[0] if key not in ("name", "threshold", *COUNTS)]
        values = {key: np.array([image[key] for image in images], float) for key in keys}
        result["methods"][method] = {
            "folder": f"predictions/{method}",
            "tool": (tools or {}).get(method, "label images"),
            "seconds_per_image": (seconds or {}).get(method),
            "images": images,
            "mean": {key: mean_defined(values[key]) for key in keys},
            "confidence": {key: confidence_interval(values[key]) for key in keys},
            "total": {key: sum(image[key] for image in images) for key in COUNTS},
            "problems": problems,
            "by_size": [
                {
                    "area_from": low,
                    "area_to": high,
                    "objects": sum(low <= area < high for area, _ in sizes),
                    **{
                        kind: sum(low <= area < high and outcome == kind for area, outcome in sizes)
                        for kind in LABELLED_OUTCOMES[1:]
                    },
                }
                for low, high in SIZES
            ],
        }
    means = {name: method["mean"]["mSA"] for name, method in result["methods"].items()}
    result["best"] = max(means, key=means.get)
    best = result["methods"][result["best"]]["images"]
    for name, method in result["methods"].items():
        pairs = zip(method["images"], best, strict=True)
        gaps = np.array([mine["mSA"] - theirs["mSA"] for mine, theirs in pairs])
        method["against_best"] = (
            None
            if name == result["best"]
            else {
                "difference": float(gaps.mean()),
                "confidence": confidence_interval(gaps),
                "p": sign_flip_test(gaps),
                "wins": int((gaps > 0).sum()),
                "ties": int((gaps == 0).sum()),
                "losses": int((gaps < 0).sum()),
            }
        )
    return result
