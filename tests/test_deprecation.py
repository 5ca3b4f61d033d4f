"""What worked with version 0.1 works, and says what it is called now."""

import csv
import importlib
import json
import re
import shutil
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from test_training import read_discs

from vimunet.cli import main, parse
from vimunet.deprecation import MODULES
from vimunet.io.pairs import Sample
from vimunet.models import build_model
from vimunet.representations import Boundaries, Distances
from vimunet.scores.folders import evaluate
from vimunet.segmentation.model_file import load_model
from vimunet.segmentation.predict import predict
from vimunet.segmentation.segment import segment
from vimunet.training.config import TrainConfig
from vimunet.training.loop import train

OLD_RUN = Path(__file__).parent / "files" / "run_of_0.1"
"""Three of six iterations that version 0.1.0 did, and the losses of the others."""

LOSSES = [1.09626663, 1.0792892, 0.796871603, 0.705875397, 0.639276087, 0.59242785]
VALIDATION_LOSSES = {4: 0.952637553, 6: 0.938713431}

NAMES = {
    "checkpoint": ("TrainedModel", "embedded_models", "load_model", "save_model"),
    "data": ("Sample", "find_pairs"),
    "data.augmentation": ("clear_out", "degrade", "resize"),
    "data.crops": ("RandomCrops", "normalize", "rotate", "to_channels"),
    "data.cremi": ("cremi_samples", "slice_labels"),
    "data.download": ("RemoteFile", "download"),
    "data.folder": ("find_pairs", "list_images", "read_image", "read_labels", "read_slices"),
    "data.isic": ("isic_samples", "lesion_samples"),
    "data.livecell": ("livecell_samples", "polygons_to_labels"),
    "data.synapse": ("synapse_slices", "synapse_volumes"),
    "evaluation": ("confidence_interval", "evaluate", "evaluate_folders", "tune_thresholds"),
    "files": ("replacing",),
    "label_files": ("place_of_image", "read_label_tiff", "write_label_tiff"),
    "losses": ("ce_dice_loss", "dice_distance_loss", "dice_loss"),
    "matching": ("Overlap", "ratio", "renumbered"),
    "measurement": ("measure",),
    "postprocessing": ("find_markers", "remove_small", "seeded_watershed"),
    "prediction": ("normalize", "predict", "segment", "tile_slices"),
    "representation": ("Boundaries", "Distances", "Semantic"),
    "semantic_evaluation": ("evaluate_semantic", "evaluate_semantic_folders"),
    "stitching": ("stitch_slices",),
    "training": ("Progress", "TrainConfig", "cosine_learning_rate", "train"),
    "training_files": ("RunFolder",),
    "validation": ("Score", "Validation"),
    "volumes": ("read_ome_zarr", "write_ome_zarr_labels"),
}
"""What scripts imported from the modules of version 0.1."""


def said(caught):
    return [str(each.message) for each in caught if each.category is FutureWarning]


@pytest.mark.parametrize("old", NAMES)
def test_old_modules_give_what_they_gave(old):
    if old in MODULES:
        sys.modules.pop(f"vimunet.{old}", None)  # else it has said so already
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = importlib.import_module(f"vimunet.{old}")
        for name in NAMES[old]:
            assert getattr(module, name).__module__ != f"vimunet.{old}"
    told = said(caught)
    assert told
    assert re.search(
        rf"vimunet\.{re.escape(old)}\b.* is now `vimunet\..*until version 0\.3", told[0]
    )
    with pytest.raises(AttributeError, match=f"module 'vimunet.{old}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_every_old_module_is_tried():
    assert NAMES.keys() == MODULES.keys() | {"training"}


@pytest.mark.parametrize("kind", [Boundaries, Distances])
def test_recipe_of_the_paper(kind):
    with pytest.warns(FutureWarning, match=rf"`{kind.__name__}.paper\(\)` is now .*published\(\)"):
        assert kind.paper() == kind().published()


def test_keywords_and_values(samples):
    image = tifffile.imread(samples / "nuclei" / "test" / "labels" / "28d33efef218.tif")[:64, :64]
    model = load_model("nuclei")
    for function in (predict, segment):
        with pytest.warns(FutureWarning, match="`symmetries` of `predict` is now `test_time_augm"):
            found = function(image, model, symmetries=2)
        np.testing.assert_array_equal(found, function(image, model, test_time_augmentation=2))
    labels = np.array([[0, 1]])
    with pytest.warns(FutureWarning, match="protocol 'paper' is now 'published'"):
        assert evaluate(labels, labels, protocol="paper")["mSA"] == 1
    with pytest.warns(FutureWarning, match="precision 'bf16' is now 'bfloat16'"):
        assert TrainConfig("run", precision="bf16").precision == "bfloat16"


@pytest.mark.parametrize(
    ("typed", "old", "field", "value"),
    [
        (
            "segment a.png --model nuclei --symmetries 4",
            "--symmetries",
            "test_time_augmentation",
            4,
        ),
        ("evaluate --predictions a --labels b --protocol paper", "paper", "protocol", "published"),
        (
            "train --images a --labels b --output c --model unet --precision bf16",
            "bf16",
            "precision",
            "bfloat16",
        ),
        ("compare a --labels b --output c --protocol paper", "paper", "protocol", "published"),
    ],
)
def test_flags_of_commands(typed, old, field, value):
    with pytest.warns(FutureWarning, match=f"{old}.* is now"):
        options = parse(typed.split())
    assert getattr(options, field) == value


def test_commands_say_it_on_the_screen_without_a_place_in_the_code(samples, tmp_path, capsys):
    image = samples / "nuclei" / "test" / "images" / "28d33efef218.png"
    command = ["segment", str(image), "--model", "nuclei", "--output", str(tmp_path)]
    assert main([*command, "--symmetries", "1"]) == 0
    error = capsys.readouterr().err
    assert "`--symmetries` is now `--test-time-augmentation`; the old name works" in error
    assert ".py" not in error


SAMPLES = [Sample(f"discs{seed}", partial(read_discs, seed)) for seed in range(3)]


def resume(folder, **changes):
    settings = {
        "iterations": 6,
        "crop_size": 16,
        "batch_size": 2,
        "lr": 1e-2,
        "validation_interval": 2,
        "val_crops": 4,
        "val_images": 1,
        "workers": 0,
        "device": "cpu",
    }
    network = build_model("unet", features=4, depth=1)
    config = TrainConfig(folder, resume=True, **settings | changes)
    return train(network, Boundaries(), SAMPLES, SAMPLES[:2], config)


def test_run_of_the_old_version_goes_on_as_it_would_have(tmp_path):
    folder = shutil.copytree(OLD_RUN, tmp_path / "run")
    resume(folder)
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == pytest.approx(LOSSES, rel=1e-4)
    validated = {int(r["iteration"]): float(r["val_loss"]) for r in rows[3:] if r["val_loss"]}
    assert validated == pytest.approx(VALIDATION_LOSSES, rel=1e-3)


def test_settings_of_an_old_run_have_their_old_values(tmp_path):
    folder = shutil.copytree(OLD_RUN, tmp_path / "run")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "precision": "bf16"}))
    with pytest.raises(ValueError, match="precision was 'bfloat16' and is 'float32'"):
        resume(folder)
    with pytest.raises(ValueError, match="normalization was 'image' and is 'channel'"):
        resume(folder, normalization="channel", precision="bfloat16")
    resume(folder, iterations=3, precision="bfloat16")


def test_model_file_of_the_old_version():
    model = load_model(OLD_RUN / "best.safetensors")
    assert (model.representation, model.axes, model.spacing) == (Boundaries(), "yx", None)
    assert model.info["version"] == "0.1.0"
    assert predict(np.eye(32), model).shape == (2, 32, 32)
