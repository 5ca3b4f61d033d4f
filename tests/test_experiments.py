"""The experiments on classes: splits that do not mix, reports, and a short real training."""

import json
import sys
from functools import partial
from importlib import util
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from torch import nn

pytest.importorskip("lightning_fabric")

from vimunet.checkpoint import TrainedModel, load_model, save_model
from vimunet.data import Sample
from vimunet.data.synapse import resize
from vimunet.evaluation import mean_defined
from vimunet.models import build_model
from vimunet.prediction import predict, segment
from vimunet.representation import Boundaries, Semantic
from vimunet.semantic_evaluation import dice_and_iou, evaluate_semantic

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.fixture
def load(monkeypatch):
    """Import a file of the experiments as it imports itself: with its folders on the path."""

    def load(name):
        path = EXPERIMENTS / name
        for folder in (EXPERIMENTS, path.parent):
            monkeypatch.syspath_prepend(str(folder))
        for module in ("splits", "report", "recipe", "semantic_report"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        spec = util.spec_from_file_location(path.stem, path)
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def names(samples):
    return {sample.name for sample in samples}


def write_pairs(images, masks, numbers, ending=""):
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(images / f"ISIC_{i:07d}.png")
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(masks / f"ISIC_{i:07d}{ending}.png")


def test_splits_of_the_original_folders(tmp_path, load):
    splits = load("isic/splits.py")
    for part, numbers in (("Training", range(90)), ("Validation", range(90, 100))):
        write_pairs(
            tmp_path / f"ISIC2018_Task1-2_{part}_Input",
            tmp_path / f"ISIC2018_Task1_{part}_GroundTruth",
            numbers,
            "_segmentation",
        )
    parts = {split: names(splits.official(tmp_path, split)) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 63,
        "val": 7,
        "test": 30,
    }
    assert len(set.union(*parts.values())) == 100  # none is in two


def test_splits_of_the_prepared_folders(tmp_path, load):
    splits = load("isic/splits.py")
    write_pairs(tmp_path / "train" / "images", tmp_path / "train" / "masks", range(20))
    write_pairs(tmp_path / "val" / "images", tmp_path / "val" / "masks", range(20, 28))
    parts = {split: names(splits.official(tmp_path, split)) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 18, "val": 2, "test": 8}
    assert parts["test"] == {f"ISIC_{i:07d}" for i in range(20, 28)}  # what is reported, no more


def test_splits_of_the_stand_in(shared_data, load):
    splits = load("isic/splits.py")
    parts = {
        split: names(splits.stand_in(shared_data, split)) for split in ("train", "val", "test")
    }
    sizes = {split: len(part) for split, part in parts.items()}
    assert sizes == {"train": 540, "val": 60, "test": 150}
    assert len(set.union(*parts.values())) == 750
    assert parts == {s: names(splits.stand_in(shared_data, s)) for s in parts}  # always the same


class Brightness(nn.Module):
    """Finds what is brighter than the mean of the image."""

    in_channels, out_channels, stride, max_size = 1, 1, 1, None

    def __init__(self):
        super().__init__()
        self.config = {"model": "unet", "model_args": {"features": 4, "depth": 1}}

    def forward(self, image):
        return image


def squares(i):
    """A bright square of class 1 and a dimmer one beside it, that is background."""
    image, labels = np.zeros((20, 24)), np.zeros((20, 24), int)
    image[4:10, 3 : 8 + i] = 10
    labels[4:10, 3 : 8 + i] = 1
    image[13:16, 15:20] = 4
    return Sample(f"squares{i}", lambda: (image, labels))


def test_report_of_classes(tmp_path, load, monkeypatch):
    """The numbers in the files are those of the functions, for the tuned threshold too."""
    report = load("semantic_report.py")
    model = TrainedModel(Brightness(), Semantic(), info={"training_data": "squares"})
    monkeypatch.setattr(report, "load_model", lambda path: model)
    val, test = [squares(0), squares(1)], [squares(2), squares(3), squares(4)]
    summary = report.score_model(Path("any.safetensors"), val, test, tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["test"]["tuned"]["mean"] == summary["test"]["tuned"]["mean"]
    threshold = summary["tuned"]["foreground_threshold"]
    assert threshold > 0.5  # to leave the dimmer square out
    for name, used, protocol in (
        ("default", 0.5, "fair"),
        ("tuned", threshold, "fair"),
        ("paper", 0.5, "paper"),
    ):
        rows = [
            evaluate_semantic(
                predict(sample.read()[0], model)[0] >= used, sample.read()[1], protocol=protocol
            )
            for sample in test
        ]
        found = summary["test"][name]
        pixels = {key: sum(row[key] for row in rows) for key in ("TP", "FP", "FN")}
        assert found["micro"]["IoU"] == pytest.approx(pixels["TP"] / sum(pixels.values()))
        if name != "paper":
            assert found["mean"]["Dice"] == pytest.approx(np.mean([row["Dice"] for row in rows]))
            assert found["mean"]["HD95"] == mean_defined(np.array([row["HD95"] for row in rows]))
    assert summary["test"]["tuned"]["mean"]["Dice"] > summary["test"]["default"]["mean"]["Dice"]
    assert (tmp_path / "test_tuned.csv").exists()
    assert len(list((tmp_path / "test").glob("*.png"))) == 3


def test_a_report_of_classes_refuses_objects(tmp_path, load):
    network = build_model("unet", out_channels=2, features=4, depth=1)
    save_model(tmp_path / "objects.safetensors", TrainedModel(network, Boundaries()))
    with pytest.raises(ValueError, match="must find classes, got objects"):
        load("semantic_report.py").score_model(tmp_path / "objects.safetensors", [], [], tmp_path)
    network = build_model("unet", out_channels=1, features=4, depth=1)
    save_model(tmp_path / "classes.safetensors", TrainedModel(network, Semantic()))
    with pytest.raises(ValueError, match="must find objects, got classes"):
        load("report.py").score_model(tmp_path / "classes.safetensors", [], [], tmp_path)


def test_volumes_are_segmented_slice_by_slice_and_scored_whole(tmp_path, load, rng):
    evaluate = load("synapse/evaluate.py")
    model = TrainedModel(Brightness(), Semantic())
    (tmp_path / "test_vol_h5").mkdir()
    labels = np.zeros((3, 20, 24))
    labels[1:, 5:15, 6:18] = 1
    image = labels * 5 + rng.normal(0, 0.1, labels.shape)
    with h5py.File(tmp_path / "test_vol_h5" / "case0001.npy.h5", "w") as file:
        file["image"], file["label"] = image, labels
    found = evaluate.segment_volume(image, model, 40)
    assert found.shape == image.shape
    for z in range(3):
        small = segment(resize(image[z], (40, 40), order=3), model)
        np.testing.assert_array_equal(found[z], resize(small, (20, 24), order=0))
    assert dice_and_iou(found[1:], labels[1:].astype(int))[0] > 0.95
    volumes = load("synapse/splits.py").official(tmp_path, "test")
    summary = evaluate.score_volumes(model, volumes, 40, tmp_path / "scores")
    read = volumes[0].read()
    expected = evaluate_semantic(evaluate.segment_volume(read[0], model, 40), read[1])
    assert summary["scores"]["fair"]["mean"]["Dice"] == pytest.approx(expected["Dice"])
    assert (tmp_path / "scores" / "paper.csv").exists()


def test_splits_of_synapse(tmp_path, load):
    splits = load("synapse/splits.py")
    (tmp_path / "train_npz").mkdir()
    for case in (5, 6, 7, 9):
        for z in range(3):
            name = f"case{case:04d}_slice{z:03d}.npz"
            np.savez(tmp_path / "train_npz" / name, image=np.zeros((4, 4)), label=np.zeros((4, 4)))
    train, val = (splits.official(tmp_path, split) for split in ("train", "val"))
    assert {name.split("_")[0] for name in names(train)} == {"case0005", "case0006"}
    assert {name.split("_")[0] for name in names(val)} == {"case0007", "case0009"}
    assert len(train) == len(val) == 6
    for file in (tmp_path / "train_npz").glob("case000[67]*"):
        file.unlink()
    with pytest.raises(ValueError, match="must have more than 2 cases, got case0005, case0009"):
        splits.official(tmp_path, "train")


def train_isic(load, monkeypatch, shared_data, output, *arguments):
    """Run the command of the ISIC experiment on real images, with a small UNet."""
    module = load("isic/train.py")
    small = partial(build_model, features=8)
    monkeypatch.setattr(sys.modules["recipe"], "build_model", small)
    command = ["train.py", "--stand-in", str(shared_data), "--model", "unet"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(output), *arguments])
    module.main()
    return json.loads((output / "config.json").read_text())


def test_the_defaults_are_the_published_recipe(load, monkeypatch, shared_data, tmp_path, capsys):
    small = ["--crop-size", "32", "--batch-size", "1", "--iterations", "1", "--val-images", "1"]
    settings = train_isic(load, monkeypatch, shared_data, tmp_path / "run", *small)
    recipe = {
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "schedule": "cosine",
        "lr": 1e-3,
        "lr_min": 1e-5,
        "free_rotation": 0.5,
    }
    assert {key: settings[key] for key in recipe} == recipe
    assert settings["model_args"]["in_channels"] == 3
    assert settings["representation"] == Semantic().config()
    assert settings["train_samples"].startswith("540 from ")
    assert "Best model: " in capsys.readouterr().out
    model = load_model(tmp_path / "run" / "best.safetensors")
    assert "CC BY-NC 4.0" in model.info["licence"]


@pytest.mark.slow
def test_lesions_are_learnt_in_a_few_iterations(load, monkeypatch, shared_data, tmp_path):
    """Far better than calling every pixel a lesion."""
    small = ["--crop-size", "128", "--batch-size", "4", "--iterations", "60", "--val-images", "8"]
    train_isic(load, monkeypatch, shared_data, tmp_path / "run", *small)
    model = load_model(tmp_path / "run" / "best.safetensors")
    val = load("isic/splits.py").stand_in(shared_data, "val")
    chosen = [val[i * len(val) // 8].read()[1] for i in range(8)]
    everything = np.mean([dice_and_iou(np.ones_like(labels), labels)[0] for labels in chosen])
    assert model.info["val_Dice"] > everything + 0.1
