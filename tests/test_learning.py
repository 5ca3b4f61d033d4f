"""The whole road on one synthetic image: a network must learn it until its labels come out."""

import numpy as np
import pytest
import torch

pytest.importorskip("lightning_fabric")

from vimunet import load_model, segment
from vimunet.io.pairs import Sample
from vimunet.models import build_model
from vimunet.representations.boundaries import Boundaries
from vimunet.representations.distances import Distances
from vimunet.representations.semantic import Semantic
from vimunet.scores.classes import dice_and_iou, evaluate_semantic
from vimunet.scores.objects import mean_segmentation_accuracy
from vimunet.training.config import TrainConfig
from vimunet.training.loop import train


def touching_discs():
    """(64, 64) noisy image of 7 discs, in two groups that touch, and its labels."""
    y, x = np.mgrid[:64, :64]
    labels = np.zeros((64, 64), np.int32)
    centers = [(14, 12), (14, 31), (14, 50), (33, 21), (33, 40), (52, 12), (52, 48)]
    for number, (row, column) in enumerate(centers, start=1):
        labels[((y - row) ** 2 + (x - column) ** 2 < 92) & (labels == 0)] = number
    noise = np.random.default_rng(0).normal(0, 8, labels.shape)
    return (20 + 100 * (labels > 0) + noise).astype(np.float32), labels


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks are slower on several threads, much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "options", "representation", "iterations", "lr"),
    [
        ("unet", {"features": 16, "depth": 2}, Boundaries(), 60, 3e-3),
        ("unet", {"features": 16, "depth": 2}, Distances(), 100, 3e-3),
        ("vim_t", {"embed_dim": 32, "depth": 4, "skip_connections": True}, Boundaries(), 40, 1e-3),
        ("vim_n", {"depth": 3}, Boundaries(), 40, 3e-3),
    ],
    ids=["unet-boundaries", "unet-distances", "vim-boundaries", "stem-boundaries"],
)
def test_one_image_is_learnt(name, options, representation, iterations, lr, tmp_path):
    image, labels = touching_discs()
    samples = [Sample("discs", touching_discs)]
    torch.manual_seed(0)
    network = build_model(name, out_channels=len(representation.channels), **options)
    config = TrainConfig(
        output=tmp_path / "run",
        iterations=iterations,
        crop_size=64,
        batch_size=1,
        lr=lr,
        validation_interval=20,
        val_crops=1,
        workers=0,
        device="cpu",
    )
    untrained = representation.decode(np.full((len(representation.channels), 64, 64), 0.5, "f4"))
    assert mean_segmentation_accuracy(untrained, labels) < 0.1
    best = train(network, representation, samples, samples, config)
    found = segment(image, load_model(best))
    assert mean_segmentation_accuracy(found, labels) > 0.9


def discs_and_rings():
    """(64, 64) noisy image and classes: 1 for bright discs, 2 for the dark rings around them."""
    image, labels = touching_discs()
    y, x = np.mgrid[:64, :64]
    classes = (labels > 0).astype(np.int32)
    near = np.min([np.hypot(y - r, x - c) for r, c in [(14, 12), (33, 40), (52, 12)]], axis=0)
    classes[(near > 5) & (classes == 1) & (near < 9.6)] = 2
    return np.where(classes == 2, image - 70, image), classes


@pytest.mark.parametrize("num_classes", [2, 3])
def test_classes_are_learnt(num_classes, tmp_path):
    def read():
        image, classes = discs_and_rings()
        return image, np.minimum(classes, num_classes - 1)

    image, classes = read()
    representation = Semantic(num_classes)
    samples = [Sample("discs", read)]
    torch.manual_seed(0)
    maps = len(representation.channels)
    network = build_model("unet", out_channels=maps, features=8, depth=2)
    config = TrainConfig(
        output=tmp_path / "run",
        iterations=60,
        crop_size=64,
        batch_size=1,
        lr=1e-2,
        optimizer="adamw",
        schedule="cosine",
        validation_interval=20,
        val_crops=1,
        workers=0,
        device="cpu",
    )
    best = train(network, representation, samples, samples, config)
    found = segment(image, load_model(best), precision="float32")
    assert dice_and_iou(found, classes, num_classes)[0] > 0.9
    scores = evaluate_semantic(found, classes, num_classes=num_classes)
    assert scores["missed"] == 0
    assert load_model(best).info["val_Dice"] == pytest.approx(scores["Dice"])
