"""Fine-tuning: what it learns, what it tells, how it ends, what it leaves behind."""

import json
import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("lightning_fabric")

from vimunet.io.training_set import TrainingSet
from vimunet.models import build_model
from vimunet.representations.boundaries import Boundaries
from vimunet.representations.semantic import Semantic
from vimunet.segmentation.model_file import TrainedModel, load_model
from vimunet.training import fine_tuning
from vimunet.training.fine_tuning import fine_tune, score_image


def discs(seed):
    """Bright discs that do not touch, on dark ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :80]
    labels = np.zeros((64, 80), np.int32)
    for number in range(12):
        row, column = np.array((11 + 20 * (number // 4), 11 + 19 * (number % 4)))
        dy, dx = rng.uniform(-2, 2, 2)
        labels[(y - row - dy) ** 2 + (x - column - dx) ** 2 < rng.uniform(36, 64)] = number + 1
    return ((labels > 0) * 100 + rng.normal(0, 3, labels.shape)).astype(np.float32), labels


@pytest.fixture
def folder(tmp_path):
    training_set = TrainingSet(tmp_path / "set")
    for seed in range(3):
        training_set.add(f"discs{seed}", *discs(seed))
    return training_set.folder


@pytest.fixture
def model():
    torch.manual_seed(3)
    network = build_model("unet", features=4, depth=2).eval()
    thresholds = Boundaries(seed_threshold=0.4, min_size=10)
    return TrainedModel(network, thresholds, info={"licence": "CC0"})


QUICK = {"crop_size": 32, "iterations": 6, "lr": 1e-2, "validation_interval": 6}


def test_learns_from_corrections(folder, model, tmp_path):
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    settings = {"crop_size": 64, "lr": 2e-2, "iterations": 60, "augment": False}
    settings["validation_interval"] = 60
    result = fine_tune(model, folder, tmp_path / "models", **settings)
    new = load_model(result.path)
    assert result.after > result.before + 0.3
    unseen = [discs(seed) for seed in (20, 21, 22)]
    old_score, new_score = (np.mean([score_image(m, *one) for one in unseen]) for m in (model, new))
    assert new_score > old_score + 0.3
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, weights[name])
    assert not model.network.training
    assert not any(parameter.requires_grad is False for parameter in model.network.parameters())


def test_what_it_leaves_behind(folder, model, tmp_path):
    result = fine_tune(model, folder, tmp_path / "models", name="mine", **QUICK)
    assert result.path == tmp_path / "models" / "mine.safetensors"
    assert result.trained_on == result.scored_on == ("discs0", "discs1", "discs2")
    assert not result.held_out
    assert result.iterations == 6
    new = load_model(result.path)
    assert new.representation == model.representation
    assert new.info["trained_on"] == ["discs0", "discs1", "discs2"]
    assert new.info["mSA"] == {"before": result.before, "after": result.after}
    assert new.info["licence"] == "CC0"
    assert new.info["started_from"] == model.info
    images = [TrainingSet(folder).samples()[i].read() for i in range(3)]
    assert result.after == pytest.approx(np.mean([score_image(new, *one) for one in images]))
    assert result.before == pytest.approx(np.mean([score_image(model, *one) for one in images]))
    record = tmp_path / "models" / "mine_training"
    assert len((record / "log.csv").read_text().splitlines()) == 7
    assert not list(record.glob("*.safetensors"))
    assert not list(record.glob("*.pt"))
    assert list((record / "preview").iterdir())


def test_no_model_is_replaced(folder, model, tmp_path):
    first, second = (fine_tune(model, folder, tmp_path, name="m", **QUICK).path for _ in range(2))
    assert (first.name, second.name) == ("m.safetensors", "m_2.safetensors")
    assert fine_tune(model, folder, tmp_path, **QUICK).path.name.startswith("set_20")


def test_fourth_image_is_held_out(folder, model, tmp_path):
    TrainingSet(folder).add("more", *discs(9))
    result = fine_tune(model, folder, tmp_path / "models", **QUICK)
    assert result.held_out
    assert result.trained_on == ("discs0", "discs1", "discs2")
    assert result.scored_on == ("more",)
    assert result.before == pytest.approx(score_image(model, *discs(9)))
    settings = json.loads(next(result.path.parent.glob("*_training/config.json")).read_text())
    assert settings["train_samples"].startswith("3 from discs0 to discs2")
    assert settings["val_samples"].startswith("1 from more")


def test_tells_each_step(folder, model, tmp_path):
    steps = []
    settings = {"crop_size": 32, "iterations": 20}
    fine_tune(model, folder, tmp_path / "models", progress=steps.append, **settings)
    phases = [(step.phase, step.iteration) for step in steps]
    training = [("training", i) for i in range(1, 21)]
    assert phases == [("before", i) for i in (1, 2, 3)] + training + [
        ("after", i) for i in (1, 2, 3)
    ]
    losses = [step.loss for step in steps[3:23]]
    assert all(math.isfinite(loss) for loss in losses)
    assert steps[0].loss is None
    seconds = [step.seconds for step in steps]
    assert seconds == sorted(seconds)
    assert [steps[i].seconds_left for i in (2, 22, -1)] == [0, 0, 0]
    assert steps[0].seconds_left > 0
    with_preview = [step for step in steps if step.preview]
    assert len(with_preview) == 10
    preview = with_preview[-1].preview[0]
    assert preview.image.shape == (32, 32, 3)
    assert preview.labels.shape == preview.found.shape == (32, 32)
    assert 0 <= preview.image.min() <= preview.image.max() <= 1
    assert preview.image[preview.labels > 0].mean() > preview.image[preview.labels == 0].mean()


def test_ends_at_once_and_keeps_what_was_learnt(folder, model, tmp_path):
    seen = []

    def stop(step):
        seen.append(step)
        return step.phase == "training" and step.iteration == 2

    settings = {**QUICK, "iterations": 1000}
    result = fine_tune(model, folder, tmp_path / "models", progress=stop, **settings)
    assert result.iterations == 2
    assert math.isfinite(result.after)
    assert [step.phase for step in seen[-4:]] == ["training", "after", "after", "after"]
    changed = load_model(result.path).network.state_dict()
    assert not all(torch.equal(changed[k], v) for k, v in model.network.state_dict().items())


def test_impatient_user_gets_the_model_without_scores(folder, model, tmp_path):
    result = fine_tune(model, folder, tmp_path / "models", progress=lambda _: True, **QUICK)
    assert result.iterations == 1
    assert math.isnan(result.before)
    assert math.isnan(result.after)
    assert load_model(result.path).info["mSA"] == {}


def test_time_decides_the_number_of_steps(folder, model, tmp_path, monkeypatch):
    timed = []

    def pace(*arguments):
        timed.append(measured_pace(*arguments))
        return 0.5

    measured_pace = fine_tuning._seconds_per_step
    monkeypatch.setattr(fine_tuning, "_seconds_per_step", pace)
    settings = {"crop_size": 32, "validation_interval": 100}
    result = fine_tune(model, folder, tmp_path / "models", minutes=0.1, **settings)
    assert result.iterations == 12  # 6 s of 0.5 s each
    assert 0 < timed[0] < 5
    record = next((tmp_path / "models").glob("*_training"))
    rates = [float(row.split(",")[2]) for row in (record / "log.csv").read_text().splitlines()[1:]]
    assert rates[-1] < 0.1 * rates[0]
    assert rates == sorted(rates, reverse=True)


def test_never_takes_longer_than_asked(folder, model, tmp_path, monkeypatch):
    """Should the machine become slower than it was."""
    monkeypatch.setattr(fine_tuning, "_seconds_per_step", lambda *_: 1e-9)
    started = time.perf_counter()
    result = fine_tune(
        model, folder, tmp_path / "models", minutes=0.01, crop_size=32, validation_interval=10**9
    )
    assert 1 <= result.iterations < 10_000
    assert time.perf_counter() - started < 30


def test_runs_beside_a_window(folder, model, tmp_path):
    """In a thread, as the viewer runs it, and without any process of its own."""
    results = []
    thread = threading.Thread(
        target=lambda: results.append(fine_tune(model, folder, tmp_path / "models", **QUICK))
    )
    thread.start()
    thread.join()
    assert results[0].path.exists()
    settings = json.loads(next((tmp_path / "models").glob("*_training/config.json")).read_text())
    assert settings["workers"] == 0


def test_crops_fit_the_network():
    class Network:
        axes = "yx"
        max_size = None
        stride = (16, 16)

    assert fine_tuning._crop_size(Network) == (256, 256)
    Network.max_size = (100, 48)
    assert fine_tuning._crop_size(Network) == (96, 48)
    Network.axes, Network.stride, Network.max_size = "zyx", (1, 16, 16), None
    assert fine_tuning._crop_size(Network) == (64, 64, 64)


@pytest.mark.parametrize("normalization", ["channel", "range"])
def test_classes_and_other_normalizations(model, tmp_path, normalization):
    network = build_model("unet", features=4, depth=1, out_channels=1)
    classes = TrainedModel(network, Semantic(), normalization=normalization)
    training_set = TrainingSet(tmp_path / "set")
    image, labels = discs(0)
    training_set.add("mask", image, (labels > 0).astype(np.uint8))
    result = fine_tune(classes, training_set.folder, tmp_path / "models", **QUICK)
    assert result.score == "Dice"
    new = load_model(result.path)
    assert new.normalization == normalization
    assert new.info["Dice"] == {"before": result.before, "after": result.after}


def test_what_cannot_be_fine_tuned(folder, model, tmp_path):
    with pytest.raises(ValueError, match="at least one image with labels, got none in .*nowhere"):
        fine_tune(model, tmp_path / "nowhere", tmp_path / "models")
    with pytest.raises(ValueError, match="`minutes` must be positive, got 0"):
        fine_tune(model, folder, tmp_path / "models", minutes=0)
    assert not (tmp_path / "models").exists()


def test_size_of_pixels_stays_that_of_the_model(folder, model, tmp_path):
    result = fine_tune(replace(model, spacing=(0.5, 0.25)), folder, tmp_path / "models", **QUICK)
    assert load_model(result.path).spacing == (0.5, 0.25)
