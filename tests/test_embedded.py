"""The models that come with the package: small, documented, and good on images they never saw."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from vimunet.io.pairs import find_pairs
from vimunet.scores.folders import evaluate
from vimunet.segmentation.model_file import WEIGHTS, embedded_models, load_model
from vimunet.segmentation.predict import predict
from vimunet.segmentation.segment import segment
from vimunet.training.augmentation import resize

LEAST = {"neurites": 0.19, "nuclei": 0.48, "phase": 0.48}
"""Mean mSA on the shipped test images, a little below what the card says."""


def header(name):
    with safe_open(WEIGHTS / f"{name}.safetensors", framework="pt") as file:
        entries = {key: json.loads(value) for key, value in file.metadata().items()}
        return entries, {file.get_slice(key).get_dtype() for key in sorted(file.keys())}


def test_all_are_there():
    assert set(embedded_models()) == set(LEAST)


@pytest.mark.parametrize("name", LEAST)
def test_small_half_precision_and_fit_to_be_shipped(name):
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size <= 8e6
    entries, dtypes = header(name)
    assert dtypes <= {"F16", "I64"}
    card = (WEIGHTS / f"{name}.md").read_text()
    info = entries["info"]
    assert info["licence"].split(",")[-1].strip() in card
    assert info["commit"][:7] in card
    assert not info["commit"].endswith("-dirty")
    for word in ("python experiments/", "licence", "mSA", "robustness"):
        assert word in card, word


def scores(name, samples, precision):
    """mSA of each shipped image of the kind, those of the test first."""
    model = load_model(name)
    labelled_pixels_only = not model.representation.has_background
    found = {"test": [], "train": []}
    for split, rows in found.items():
        folder = samples / name / split
        for sample in find_pairs(folder / "images", folder / "labels"):
            image, annotated = sample.read()
            labels = model.representation.decode(predict(image, model, precision=precision))
            score = evaluate(labels, annotated, labelled_pixels_only=labelled_pixels_only)
            rows.append(score["mSA"])
    return found


def test_good_on_images_they_never_saw_and_in_bfloat16_too(samples):
    """`precision="auto"` may take bfloat16 because it changes the mean mSA by no more than .005.

    Single objects may change: one that is split elsewhere moves the score of its image by .1.
    """
    changes = []
    for name, least in LEAST.items():
        full, half = (scores(name, samples, precision) for precision in ("float32", "bfloat16"))
        assert np.mean(full["test"]) > least
        changes += [
            after - before
            for split in full
            for before, after in zip(full[split], half[split], strict=True)
        ]
    assert len(changes) == 39
    assert abs(np.mean(changes)) <= 0.005


def test_scale_makes_up_for_cells_that_are_too_small(samples):
    model = load_model("phase")
    folder = samples / "phase" / "test"
    scores = {1: [], 2: []}
    for sample in find_pairs(folder / "images", folder / "labels"):
        image, annotated = sample.read()
        small, labels = resize(np.float32(image)[None], annotated, (256, 256))
        for scale, row in scores.items():
            row.append(evaluate(segment(small[0], model, scale=scale), labels)["mSA"])
    assert np.mean(scores[2]) > np.mean(scores[1]) + 0.1
