"""The training loop: exact continuation, honest files, safe ends, several processes."""

import csv
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("lightning_fabric")

import vimunet.training.loop
from vimunet.io.pairs import Sample
from vimunet.models import Network, build_model
from vimunet.representations import Boundaries, Distances, Semantic
from vimunet.representations.losses import dice_loss
from vimunet.segmentation.model_file import load_model
from vimunet.training.config import TrainConfig, cosine_learning_rate
from vimunet.training.crops import RandomCrops
from vimunet.training.loop import train
from vimunet.training.validation import Score, Validation


def read_discs(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :48]
    labels = np.zeros((40, 48), np.int32)
    for number, (row, column) in enumerate([(12, 12), (12, 29), (29, 20)], start=1):
        labels[(y - row) ** 2 + (x - column) ** 2 < 80] = number
    return (labels > 0) * 100 + rng.normal(0, 5, labels.shape), labels


SAMPLES = [Sample(f"discs{seed}", partial(read_discs, seed)) for seed in range(3)]


class Tiny(Network):
    """Small, and with all that makes continuing hard: running means and dropped channels."""

    in_channels, out_channels, stride = 1, 2, (2, 2)

    def __init__(self):
        super().__init__()
        self.config = {"model": "tiny", "model_args": {}}
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Dropout2d(0.3),
            nn.ReLU(),
            nn.Conv2d(6, 2, 3, padding=1),
        )

    def forward(self, image):
        return self.layers(image)


def tiny():
    torch.manual_seed(5)
    return Tiny()


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks of a few weights are slower on several threads, much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        output=tmp_path / "run",
        iterations=6,
        crop_size=16,
        batch_size=2,
        lr=1e-2,
        validation_interval=2,
        val_crops=4,
        val_images=1,
        lr_patience=0,
        workers=0,
        device="cpu",
    )


def run(config, network=None, **changes):
    network = network or tiny()
    best = train(network, Boundaries(), SAMPLES, SAMPLES[:2], replace(config, **changes))
    return network, best


def log_of(folder):
    with (Path(folder) / "log.csv").open() as file:
        return list(csv.DictReader(file))


def column(folder, name):
    return [row[name] for row in log_of(folder)]


def state_of(folder):
    return torch.load(Path(folder) / "training_state.pt", weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What a run leaves behind


def test_defaults_are_the_papers():
    config = TrainConfig("run")
    assert (config.iterations, config.crop_size, config.batch_size) == (100_000, 512, 2)
    assert (config.lr, config.lr_factor, config.lr_patience) == (1e-4, 0.9, 10)
    assert config.precision == "float32"
    assert (config.optimizer, config.weight_decay, config.schedule) == ("adam", 0, "plateau")
    assert not config.rotations
    assert not config.free_rotation


def test_files_of_a_run(config):
    network = build_model("unet", features=4, depth=1)
    _, best = run(config, network, training_data="discs", licence="CC0")
    folder = Path(config.output)
    assert best == folder / "best.safetensors"
    rows = log_of(folder)
    assert [int(row["iteration"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [bool(row["val_loss"]) for row in rows] == [False, True] * 3
    assert [bool(row["val_mSA"]) for row in rows] == [False, True] * 3
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert {path.name for path in (folder / "preview").iterdir()} == {
        f"{i:07d}.png" for i in (2, 4, 6)
    }
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["crop_size"], settings["model"]) == (16, "unet")
    assert settings["train_samples"].startswith("3 from discs0 to discs2")
    assert not list(folder.rglob("*.tmp"))

    model = load_model(folder / "last.safetensors")
    assert same(model.network.state_dict(), network.state_dict())
    assert model.representation == Boundaries()
    info = load_model(best).info
    scores = {int(row["iteration"]): float(row["val_mSA"]) for row in rows if row["val_mSA"]}
    assert info["val_mSA"] == pytest.approx(max(scores.values()), abs=1e-6)
    assert (info["training_data"], info["licence"]) == ("discs", "CC0")
    assert info["config"]["lr"] == 1e-2
    assert "output" not in info["config"]  # a path of this machine is nobody's business


def test_tensorboard_has_the_same_numbers(config):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(config)
    events = accumulator.EventAccumulator(str(config.output))
    events.Reload()
    logged = [float(loss) for loss in column(config.output, "loss")]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged)
    assert [event.step for event in events.Scalars("val_loss")] == [2, 4, 6]


def test_preview_shows_image_targets_prediction_and_labels(config):
    image = pytest.importorskip("PIL.Image")
    run(config)
    shown = np.asarray(image.open(Path(config.output) / "preview" / "0000006.png").convert("RGB"))
    assert shown.shape[1] > 2 * shown.shape[0]  # 7 panels wide, 3 crops high
    colourful = (shown.max(axis=2).astype(int) - shown.min(axis=2)) > 50
    assert colourful.mean() > 0.01  # labels are in colour, all else is grey


def test_first_loss_is_the_loss_of_the_first_crops(config):
    network = tiny()
    network.layers[2].p = 0.0
    crops = RandomCrops(SAMPLES, 16, Boundaries(), seed=0)
    images, targets = (torch.stack(part) for part in zip(crops[0], crops[1], strict=True))
    expected = dice_loss(network(images).sigmoid(), targets).item()
    run(config, network, iterations=1)
    assert float(column(config.output, "loss")[0]) == pytest.approx(expected, rel=1e-6)


def test_learns_something_and_trains_in_train_mode(config):
    network = tiny().eval()  # as it comes from `load_model`
    run(config, network, iterations=40, validation_interval=40)
    losses = [float(loss) for loss in column(config.output, "loss")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert network.layers[1].num_batches_tracked == 40


def test_random_numbers_of_the_caller_are_left_alone(config):
    network = tiny()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    run(config, network, iterations=2)
    assert torch.equal(torch.rand(3), expected)


def missing_pixels():
    return np.full((32, 32), np.nan), np.ones((32, 32), int)


def test_errors_of_workers_are_told_without_their_traceback(config):
    bad = Sample("bad", missing_pixels)
    with pytest.raises(ValueError, match=r"^bad: the image contains NaN or infinite.* training\.$"):
        train(tiny(), Boundaries(), [bad], SAMPLES, replace(config, workers=1))
    assert not multiprocessing.active_children()


def test_workers_change_nothing(config, tmp_path):
    run(config, iterations=3)
    run(config, iterations=3, workers=2, output=tmp_path / "other")
    assert column(config.output, "loss") == column(tmp_path / "other", "loss")


def test_seed_changes_the_crops(config, tmp_path):
    for seed, folder in ((0, tmp_path / "first"), (1, tmp_path / "second")):
        network = tiny()
        network.layers[2].p = 0.0
        run(config, network, iterations=2, seed=seed, output=folder)
    assert column(tmp_path / "first", "loss") != column(tmp_path / "second", "loss")


def test_bf16(config):
    network, _ = run(config, precision="bfloat16")
    assert all(math.isfinite(float(loss)) for loss in column(config.output, "loss"))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


# Continuing


@pytest.mark.parametrize("stop", [2, 3])  # at a validation, and between two
def test_resumed_run_equals_the_uninterrupted_one(config, tmp_path, stop):
    whole, _ = run(config)
    parts = tmp_path / "parts"
    run(config, output=parts, iterations=stop)
    continued = Tiny()  # other weights: all must come from the file
    run(config, continued, output=parts, resume=True)
    assert column(parts, "loss") == column(config.output, "loss")
    assert column(parts, "lr") == column(config.output, "lr")
    assert same(whole.state_dict(), continued.state_dict())
    a, b = state_of(config.output), state_of(parts)
    assert a["scheduler"] == b["scheduler"]
    assert a["iteration"] == b["iteration"] == 6
    for key, value in a["optimizer"]["state"].items():
        assert same(value, b["optimizer"]["state"][key])


def test_run_that_was_killed_before_its_first_validation_goes_on(config, tmp_path):
    whole, _ = run(config)
    parts = tmp_path / "parts"

    def kill(progress):
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(tiny(), Boundaries(), SAMPLES, SAMPLES[:2], replace(config, output=parts), kill)
    assert column(parts, "iteration") == ["1"]
    continued = Tiny()  # other weights: all must come from the file
    run(config, continued, output=parts, resume=True)
    assert column(parts, "loss") == column(config.output, "loss")
    assert same(whole.state_dict(), continued.state_dict())


@pytest.mark.parametrize("torn", ["6,12", "1", "1,0.5,0.01,,,9,0."])
def test_rows_after_the_state_are_forgotten(config, torn):
    run(config, iterations=4)
    log = Path(config.output) / "log.csv"
    with log.open("a") as file:
        file.write(f"5,123,0.01,,,9,0\n{torn}")  # killed while it wrote
    run(config, resume=True)
    assert column(config.output, "iteration") == ["1", "2", "3", "4", "5", "6"]
    assert "123" not in column(config.output, "loss")


def test_best_score_survives_a_break(config, monkeypatch):
    scripted = iter([Score(1.0, {"mSA": value}) for value in (0.8, 0.5, 0.6)])
    monkeypatch.setattr(vimunet.training.loop.RunFolder, "save_preview", lambda *_: None)
    monkeypatch.setattr(Validation, "run", lambda self: (next(scripted), []))
    run(config, iterations=2)
    best = Path(config.output) / "best.safetensors"
    before = best.read_bytes()
    run(config, resume=True)
    assert best.read_bytes() == before
    assert state_of(config.output)["best"]["val_mSA"] == 0.8


def test_resume_of_a_finished_run_changes_nothing(config):
    _, best = run(config)
    before = best.read_bytes(), log_of(config.output)
    assert run(config, resume=True)[1] == best
    assert (best.read_bytes(), log_of(config.output)) == before


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"iterations": 2}, r"has done 2 of 2 iterations already. Raise `iterations` \(--iter"),
        ({"max_minutes": 1e-6}, r"has taken \d+ of 0 s already \(2 iterations\). Raise `max_m"),
    ],
)
def test_nothing_left_to_do_is_said(config, caplog, limit, message):
    run(config, iterations=2)
    assert not caplog.text
    run(config, resume=True, **limit)
    assert re.search(message, caplog.text)
    assert len(log_of(config.output)) == 2


def test_labels_without_any_object_are_told(config, tmp_path, caplog):
    nothing = [
        Sample(sample.name, lambda read=sample.read: (read()[0], np.zeros((40, 48), np.int32)))
        for sample in SAMPLES
    ]
    settings = replace(config, iterations=1)
    train(tiny(), Boundaries(), [*nothing[:2], SAMPLES[0]], SAMPLES[:1], settings)
    assert not caplog.text
    train(tiny(), Boundaries(), nothing, nothing, replace(settings, output=tmp_path / "empty"))
    assert "No object in any of the 3 label images to train on" in caplog.text


def test_output_is_never_overwritten(config):
    run(config, iterations=1)
    with pytest.raises(ValueError, match="`output` must be an empty or a new folder, got .*run"):
        run(config)


def test_nothing_to_resume(config):
    message = r"No training state in .*run to continue from. Leave out `resume` \(--resume\) to"
    with pytest.raises(FileNotFoundError, match=message):
        run(config, resume=True)


def test_other_settings_are_named(config):
    run(config, iterations=2)
    with pytest.raises(ValueError, match=r"batch_size was 2 and is 3; lr was 0\.01 and is 0\.1\."):
        run(config, resume=True, lr=0.1, batch_size=3)
    with pytest.raises(ValueError, match="train_samples was '3 from discs0.* and is '2 from"):
        train(tiny(), Boundaries(), SAMPLES[:2], SAMPLES[:2], replace(config, resume=True))
    with pytest.raises(ValueError, match="representation was .*'min_size': 20.* and is .*99"):
        train(tiny(), Boundaries(min_size=99), SAMPLES, SAMPLES[:2], replace(config, resume=True))
    assert len(log_of(config.output)) == 2


# The best model and the learning rate


def test_scores_are_compared_by_msa_then_loss():
    assert Score(2.0, {"mSA": 0.5}).is_better_than(Score(1.0, {"mSA": 0.4}))
    assert Score(1.0, {"mSA": 0.5}).is_better_than(Score(2.0, {"mSA": 0.5}))
    assert Score(1.0).is_better_than(Score(2.0))
    assert not Score(1.0, {"mSA": 0.5}).is_better_than(Score(1.0, {"mSA": 0.5}))
    assert Score(5.0, {"mSA": 0.0}).is_better_than(Score())


@pytest.mark.parametrize("on_images", [{}, {"mSA": math.nan}, {"mSA": math.inf}])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_never_better(loss, on_images):
    assert not Score(loss, on_images).is_better_than(Score())
    assert not Score(loss, on_images).is_better_than(Score(9.0, {"mSA": 0.0}))
    assert Score(9.0, {"mSA": 0.0}).is_better_than(Score(loss, on_images))
    assert Score(9.0).is_better_than(Score(loss))


def test_network_that_fails_in_validation_is_never_the_best(config):
    class Broken(Tiny):
        def forward(self, image):
            return super().forward(image) * (1 if self.training else math.nan)

    _, best = run(config, Broken())
    assert best == Path(config.output) / "last.safetensors"
    assert column(config.output, "val_loss") == ["", "nan"] * 3
    assert state_of(config.output)["best"] == {"val_loss": math.inf}


def test_learning_rate_falls_when_the_loss_does_not(config, monkeypatch):
    scripted = iter([Score(1.0), Score(0.5), Score(0.6), Score(0.7), Score(0.4)])
    monkeypatch.setattr(vimunet.training.loop.RunFolder, "save_preview", lambda *_: None)
    monkeypatch.setattr(Validation, "run", lambda self: (next(scripted), []))
    run(config, iterations=9)  # the last validation, at 9, must not count
    used = [float(lr) for lr in column(config.output, "lr")]
    assert used == pytest.approx([1e-2] * 6 + [0.9e-2] * 2 + [0.81e-2])
    assert load_of_best(config) == 9


def load_of_best(config):
    from safetensors import safe_open

    with safe_open(Path(config.output) / "best.safetensors", framework="np") as file:
        return json.loads(file.metadata()["info"])["iteration"]


def test_validation_is_the_mean_over_crops_and_images(config):
    network = tiny()
    fabric = vimunet.training.loop._start_fabric(config)
    model = vimunet.training.loop.TrainedModel(network, Boundaries())
    score, preview = Validation(fabric, model, SAMPLES, 16, 4, 2, "float32").run()
    assert network.training  # again
    crops = RandomCrops(SAMPLES, 16, Boundaries(), seed=0, length=4)
    network.eval()
    with torch.no_grad():
        losses = [
            dice_loss(network(crops[i][0][None]).sigmoid(), crops[i][1][None]) for i in range(4)
        ]
    assert score.loss == pytest.approx(float(sum(losses)) / 4, rel=1e-6)
    assert 0 <= score.on_images["mSA"] <= 1
    assert len(preview) == 3
    assert torch.equal(preview[1][0], crops[1][0])


def test_perfect_maps_score_one(config):
    class Perfect(Tiny):
        """Knows the labels of the only image, and cheats."""

        def forward(self, image):
            logits = torch.from_numpy(Boundaries().encode(read_discs(0)[1])) * 20 - 10
            return logits[None] if image.shape[2:] == logits.shape[1:] else super().forward(image)

    fabric = vimunet.training.loop._start_fabric(config)
    model = vimunet.training.loop.TrainedModel(Perfect(), Boundaries())
    score, _ = Validation(fabric, model, SAMPLES[:1], 16, 1, 5, "float32").run()
    assert score.on_images["mSA"] > 0.95
    score, _ = Validation(fabric, model, SAMPLES[:1], 16, 1, 0, "float32").run()
    assert score.on_images == {}


# Classes


def read_classes(seed):
    """Discs of class 1 and 2 on background."""
    image, labels = read_discs(seed)
    return image + 50 * (labels > 1), np.minimum(labels, 2)


CLASSES = [Sample(f"classes{seed}", partial(read_classes, seed)) for seed in range(3)]


class ThreeMaps(Tiny):
    out_channels = 3

    def __init__(self):
        super().__init__()
        self.layers[-1] = nn.Conv2d(6, 3, 3, padding=1)


def test_validation_of_classes_is_dice_and_iou(config):
    class Constant(ThreeMaps):
        """Finds class 1 everywhere: softmax of (0, 3, 1)."""

        def forward(self, image):
            logits = torch.tensor([0.0, 3.0, 1.0])[None, :, None, None]
            return logits.expand(len(image), 3, *image.shape[2:]) + 0 * super().forward(image)

    fabric = vimunet.training.loop._start_fabric(config)
    model = vimunet.training.loop.TrainedModel(Constant(), Semantic(3))
    score, preview = Validation(fabric, model, CLASSES, 16, 2, 3, "float32").run()
    dices, ious = [], []
    for sample in CLASSES:
        labels = sample.read()[1]
        share = (labels == 1).mean()
        dices.append(2 * share / (1 + share) / 2)  # class 2 is missed and counts 0
        ious.append(share / 2)
    assert score.on_images == pytest.approx({"Dice": np.mean(dices), "IoU": np.mean(ious)})
    expected = np.exp([0, 3, 1]) / np.exp([0, 3, 1]).sum()
    np.testing.assert_allclose(preview[0][2][:, 3, 4], expected, rtol=1e-5)  # softmax, not sigmoid


def test_run_of_classes(config, tmp_path):
    folder = Path(config.output)
    torch.manual_seed(5)
    whole = ThreeMaps()
    settings = replace(config, optimizer="adamw", schedule="cosine", free_rotation=0.5)
    best = train(whole, Semantic(3), CLASSES, CLASSES[:2], settings)
    rows = log_of(folder)
    assert list(rows[0])[3:6] == ["val_loss", "val_Dice", "val_IoU"]
    assert [bool(row["val_Dice"]) for row in rows] == [False, True] * 3
    assert state_of(folder)["best"]["val_Dice"] == pytest.approx(
        max(float(row["val_Dice"]) for row in rows if row["val_Dice"])
    )
    assert best.exists()

    torch.manual_seed(5)
    continued = ThreeMaps()
    parts = replace(settings, output=tmp_path / "parts", lr_half_period=6)
    train(continued, Semantic(3), CLASSES, CLASSES[:2], replace(parts, iterations=3))
    continued = ThreeMaps()
    train(continued, Semantic(3), CLASSES, CLASSES[:2], replace(parts, resume=True))
    assert column(tmp_path / "parts", "loss") == column(folder, "loss")
    assert column(tmp_path / "parts", "lr") == column(folder, "lr")
    assert same(whole.state_dict(), continued.state_dict())


def test_free_rotation_reaches_the_crops(config, tmp_path):
    run(config, iterations=1)
    run(config, iterations=1, free_rotation=1.0, output=tmp_path / "turned")
    assert column(config.output, "loss") != column(tmp_path / "turned", "loss")


def test_scores_of_classes_are_compared_by_dice():
    def score(loss, dice, iou):
        return Score(loss, {"Dice": dice, "IoU": iou})

    assert score(2.0, 0.5, 0.1).is_better_than(score(1.0, 0.4, 0.2))
    assert not score(2.0, 0.5, 0.9).is_better_than(score(1.0, 0.5, 0.1))
    assert not score(math.nan, math.nan, 0.9).is_better_than(Score())


# Optimizer and schedule


def test_cosine_of_the_published_recipe():
    """VM-UNet: 1e-3 in epoch 1, 1e-5 in epoch 51, 1e-3 in epoch 101 (one iteration each)."""
    config = TrainConfig("run", lr=1e-3, schedule="cosine", lr_half_period=50, iterations=300)
    rates = [cosine_learning_rate(config, i) for i in range(300)]
    assert rates[::50] == pytest.approx([1e-3, 1e-5] * 3)
    assert rates[25] == pytest.approx((1e-3 + 1e-5) / 2)
    once = [cosine_learning_rate(replace(config, lr_half_period=None), i) for i in range(300)]
    assert once == sorted(once, reverse=True)
    assert once[0] == 1e-3
    assert once[299] == pytest.approx(1e-5, rel=0.01)


def test_cosine_is_what_torch_does():
    network = tiny()
    config = TrainConfig("run", lr=1e-3, schedule="cosine", lr_half_period=7)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7, eta_min=1e-5)
    for i in range(30):
        assert cosine_learning_rate(config, i) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_the_learning_rate_in_use_is_the_cosine(config):
    run(config, schedule="cosine", lr_min=1e-3)
    settings = replace(config, schedule="cosine", lr_min=1e-3)
    used = [float(lr) for lr in column(config.output, "lr")]
    assert used == pytest.approx([cosine_learning_rate(settings, i) for i in range(6)])


def test_a_longer_cosine_is_another_run(config):
    run(config, iterations=2, schedule="cosine")
    with pytest.raises(ValueError, match="lr_half_period was 2 and is 6"):
        run(config, resume=True, schedule="cosine")


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_optimizers_are_those_of_torch(config, optimizer):
    """One step of the run against one step done here."""
    trained, _ = run(config, iterations=1, optimizer=optimizer, weight_decay=0.5)
    network = tiny()
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    step = kind(network.parameters(), lr=1e-2, weight_decay=0.5)
    crops = RandomCrops(SAMPLES, 16, Boundaries(), seed=0, length=2)
    images, targets = (torch.stack(parts) for parts in zip(crops[0], crops[1], strict=True))
    torch.manual_seed(vimunet.training.loop._random_seed(0, 0, 0))
    dice_loss(network(images).sigmoid(), targets).backward()
    step.step()
    for name, value in network.named_parameters():
        torch.testing.assert_close(trained.state_dict()[name], value)


# Ends


def test_time_limit_ends_with_a_validation(config):
    run(config, iterations=1000, max_minutes=1e-9, validation_interval=500)
    rows = log_of(config.output)
    assert len(rows) == 1
    assert rows[0]["val_mSA"]
    run(config, iterations=1000, max_minutes=1e-9, validation_interval=500, resume=True)
    assert len(log_of(config.output)) == 1  # the time of the first part counts


def signal_in_iteration(monkeypatch, number, which):
    """Send this process a signal while it computes the loss of an iteration."""
    loss, calls = Boundaries.loss, []

    def loss_and_signal(self, logits, target):
        calls.extend([1] * (len(target) > 1))  # the validation looks at crops one by one
        if len(calls) == number:
            signal.raise_signal(which)
        return loss(self, logits, target)

    monkeypatch.setattr(Boundaries, "loss", loss_and_signal)


@pytest.mark.parametrize("workers", [0, 1])
def test_interrupt_saves_and_leaves(config, tmp_path, monkeypatch, workers):
    whole, _ = run(config)
    parts = tmp_path / "parts"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        signal_in_iteration(patch, 3, signal.SIGINT)
        run(config, output=parts, workers=workers)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert column(parts, "iteration") == ["1", "2", "3"]
    assert state_of(parts)["iteration"] == 3
    assert (parts / "last.safetensors").exists()
    continued, _ = run(config, output=parts, resume=True)
    assert column(parts, "loss") == column(config.output, "loss")
    assert same(whole.state_dict(), continued.state_dict())


def test_sigterm_takes_its_effect_after_saving(config, monkeypatch):
    seen = []
    before = signal.signal(
        signal.SIGTERM, lambda *_: seen.append(state_of(config.output)["iteration"])
    )
    try:
        signal_in_iteration(monkeypatch, 1, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):  # also where the handler goes on
            run(config)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [1]


def test_runs_outside_the_main_thread(config):
    done = []
    thread = threading.Thread(target=lambda: done.append(run(config, iterations=2)))
    thread.start()
    thread.join()
    assert len(done) == 1


def test_progress_tells_each_iteration(config, capfd):
    told = []
    best = train(tiny(), Boundaries(), SAMPLES, SAMPLES[:2], config, told.append)
    assert [step.iteration for step in told] == [1, 2, 3, 4, 5, 6]
    logged = [float(loss) for loss in column(config.output, "loss")]
    assert [step.loss for step in told] == pytest.approx(logged)
    assert [step.score is not None for step in told] == [False, True] * 3
    assert [len(step.preview) for step in told] == [0, 3] * 3
    image, target, maps = told[1].preview[0]
    assert (image.shape, target.shape, maps.shape) == ((1, 16, 16), (2, 16, 16), (2, 16, 16))
    seconds = [step.seconds for step in told]
    assert seconds == sorted(seconds)
    assert told[-1].seconds_left == 0
    expected = seconds[2] / 3 * 3  # half is done: as long again, but for the start
    assert 0.3 * expected < told[2].seconds_left < 1.5 * expected
    assert best.exists()
    assert capfd.readouterr().err == ""  # no bar: there may be no screen


def test_progress_knows_the_time_limit(config):
    told = []
    settings = replace(config, iterations=10_000_000, max_minutes=1, validation_interval=3)
    train(tiny(), Boundaries(), SAMPLES, SAMPLES[:2], settings, lambda step: told.append(step) or 1)
    assert 55 < told[0].seconds_left < 60


def test_progress_ends_the_training_and_keeps_what_was_learnt(config, tmp_path):
    whole, _ = run(config)
    parts = tmp_path / "parts"
    network = tiny()
    settings = replace(config, output=parts)
    last = train(
        network, Boundaries(), SAMPLES, SAMPLES[:2], settings, lambda step: step.iteration == 1
    )
    assert last == parts / "last.safetensors"  # it had no time to validate
    assert column(parts, "val_loss") == [""]
    assert state_of(parts)["iteration"] == 1
    continued, _ = run(config, output=parts, resume=True)
    assert column(parts, "loss") == column(config.output, "loss")
    assert same(whole.state_dict(), continued.state_dict())


def break_iteration(monkeypatch, number, damage):
    loss, calls = Boundaries.loss, []

    def broken(self, logits, target):
        value = loss(self, logits, target)
        if len(target) == 1:  # the validation looks at crops one by one
            return value
        calls.append(1)
        return damage(value, logits) if len(calls) == number else value

    monkeypatch.setattr(Boundaries, "loss", broken)


@pytest.mark.parametrize(
    "damage",
    [
        lambda loss, logits: loss * math.nan,
        lambda loss, logits: loss * math.inf,
        # finite loss, infinite gradient
        lambda loss, logits: loss + (logits.flatten()[0].detach() - logits.flatten()[0]).sqrt(),
    ],
    ids=["nan", "inf", "gradient"],
)
def test_loss_that_is_not_finite_stops_the_training(config, tmp_path, monkeypatch, damage):
    good, _ = run(config, iterations=3)
    folder = tmp_path / "broken"
    with (
        monkeypatch.context() as patch,
        pytest.raises(FloatingPointError, match=r"Iteration 4 .*\(of \w+, \w+\)"),
    ):
        break_iteration(patch, 4, damage)
        run(config, output=folder)
    state = state_of(folder)
    assert state["iteration"] == 3  # between two validations
    assert same(state["network"], good.state_dict())  # running means too
    crops = RandomCrops(SAMPLES, 16, Boundaries(), seed=0, length=8)
    with np.load(folder / "not_finite_0000004_process_0.npz") as saved:
        for place, item in enumerate((6, 7)):
            assert np.array_equal(saved["images"][place], crops[item][0])
            assert np.array_equal(saved["targets"][place], crops[item][1])
            assert saved["items"][place] == item
            assert saved["names"][place] == crops.name(item)
    continued, _ = run(config, output=folder, resume=True)
    assert all(p.isfinite().all() for p in continued.state_dict().values())


def test_processes_end_with_an_error(config, monkeypatch):
    """They obey no signal: left alone, they would keep the program from ending."""
    with pytest.raises(FloatingPointError) as error:
        break_iteration(monkeypatch, 2, lambda loss, _: loss * math.nan)
        run(config, workers=2)
    assert error.value.__traceback__ is not None  # which still holds what the training had
    assert not multiprocessing.active_children()


# Wrong arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "`iterations` must be at least 1, got 0"),
        ({"val_crops": 0}, "`val_crops` must be at least 1, got 0"),
        ({"workers": -1}, "`workers` must not be negative, got -1"),
        ({"lr": 0}, "`lr` must be positive, got 0"),
        ({"lr": math.nan}, "`lr` must be positive, got nan"),
        ({"lr_factor": 1}, "`lr_factor` must lie between 0 and 1, got 1"),
        ({"max_minutes": 0}, "`max_minutes` must be positive, got 0"),
        ({"precision": "int8"}, "Unknown precision 'int8'. Known: float32, bfloat16"),
        ({"optimizer": "sgd"}, "Unknown optimizer 'sgd'. Known: adam, adamw"),
        ({"schedule": "step"}, "Unknown schedule 'step'. Known: plateau, cosine"),
        ({"weight_decay": -1}, "`weight_decay` must be 0 or more, got -1"),
        ({"free_rotation": 2}, r"`free_rotation` must lie in \[0, 1\], got 2"),
        ({"lr_half_period": 0}, "`lr_half_period` must be at least 1, got 0"),
        ({"schedule": "cosine", "lr_min": 1}, "`lr_min` must lie between 0 and `lr` 0.0001, got 1"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig("run", **changes)


def test_what_does_not_fit_together_is_said_before_anything_is_written(config):
    with pytest.raises(ValueError, match="`network` must predict 3 maps .* got 2.*out_channels=3"):
        train(tiny(), Distances(), SAMPLES, SAMPLES, config)
    with pytest.raises(ValueError, match="`crop_size` must be divisible by 2, got 15. Use 16"):
        run(config, crop_size=15)
    with pytest.raises(ValueError, match="`val_samples` must hold at least one sample"):
        train(tiny(), Boundaries(), SAMPLES, [], config)
    limited = tiny()
    limited.max_size = (8, 8)
    with pytest.raises(ValueError, match="`crop_size` must be at most 8 for this network, got 16"):
        run(config, limited)
    assert not Path(config.output).exists()


# Several processes

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, {tests!r})
import torch

torch.set_num_threads(1)
import test_training as t
import vimunet.training.loop

folder = Path({folder!r})
seen = []
loss = t.Boundaries.loss
t.Boundaries.loss = lambda *args: (len(args[2]) > 1 and seen.append(args[2]), loss(*args))[1]
rank = int(t.os.environ["RANK"])
torch.manual_seed(100 + rank)  # other weights in each process, to be made equal
network = t.Tiny()
config = t.TrainConfig(
    output=folder / "run", iterations=4, crop_size=16, batch_size=2, lr=1e-2, val_crops=3,
    validation_interval=2, val_images=2, lr_patience=0, workers=0, device="cpu",
)
vimunet.training.loop.RunFolder.save_preview = lambda *_: None
best = t.train(network, t.Boundaries(), t.SAMPLES, t.SAMPLES[:2], replace(config, iterations=2))
best = t.train(network, t.Boundaries(), t.SAMPLES, t.SAMPLES[:2], replace(config, resume=True))
torch.save(
    {{"network": network.state_dict(), "seen": seen, "best": str(best)}}, folder / f"{{rank}}.pt"
)
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes had at the end of the same run: folder, and one dict for each."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
         str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_processes_end_with_the_same_parameters(two_processes):
    folder, (first, second) = two_processes
    assert same(first["network"], second["network"])
    assert same(first["network"], state_of(folder)["network"])
    torch.manual_seed(100)
    start = Tiny().state_dict()
    assert not torch.equal(start["layers.0.weight"], first["network"]["layers.0.weight"])


def test_processes_see_different_crops(two_processes):
    _, ends = two_processes
    crops = RandomCrops(SAMPLES, 16, Boundaries(), seed=0, length=16)
    for rank, end in enumerate(ends):
        assert len(end["seen"]) == 4
        for iteration, batch in enumerate(end["seen"]):
            for place in range(2):
                assert torch.equal(batch[place], crops[(iteration * 2 + rank) * 2 + place][1])


def test_only_the_first_process_writes(two_processes):
    folder, ends = two_processes
    assert column(folder, "iteration") == ["1", "2", "3", "4"]
    assert {end["best"] for end in ends} == {str(folder / "best.safetensors")}
    assert len(list(folder.glob("events*"))) == 2  # one for each part of the run


def test_another_number_of_processes_is_another_run(two_processes, config):
    folder, _ = two_processes
    with pytest.raises(ValueError, match="processes was 2 and is 1"):
        run(config, output=folder, resume=True, val_crops=3, val_images=2)
