"""The whole way through nnU-Net as it is installed, by its own commands: run with `make nnunet`.

Crops of real images are converted, planned, trained on for some iterations with each of the
networks, predicted, and brought back as objects.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from vimunet.bridges.nnunet import (
    find_predictions,
    is_prediction_folder,
    read_prediction,
    write_dataset,
)
from vimunet.io.formats import read_labels
from vimunet.io.pairs import find_pairs

pytest.importorskip("nnunetv2", reason="needs nnU-Net: run `make nnunet`")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
DATASET = "Dataset501_Cells"
TEST_SHAPE = (64, 80)
TRAINERS = ("ViMUNet", "VMUNet", "UMambaBot", "UMambaEnc", "ResUNet")


def crops(samples: Path, split: str, folder: Path, shape: tuple[int, int], places: range) -> None:
    """Save crops along the diagonal of each phase-contrast image, with their labels."""
    pairs = find_pairs(samples / "phase" / split / "images", samples / "phase" / split / "labels")
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for sample in pairs:
        image, labels = sample.read()
        assert labels is not None
        for start in places:
            crop = slice(start, start + shape[0]), slice(start, start + shape[1])
            name = f"{sample.name}_{start}.tif"
            tifffile.imwrite(folder / "images" / name, image[crop])
            tifffile.imwrite(folder / "labels" / name, labels[crop])


def environment(root: Path) -> dict[str, str]:
    paths = [str(ROOT)]
    if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode:
        paths.insert(0, str(ROOT / "tests" / "torchvision_stub"))
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        **{name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")},
        "nnUNet_results": str(root / "nnUNet_results"),
        "nnUNet_extTrainer": str(ROOT / "experiments" / "benchmark" / "nnunet_trainers"),
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "1",
        "VIMUNET_NNUNET_EPOCHS": "1",
        "VIMUNET_NNUNET_VAL_ITERATIONS": "2",
    }


def run(root: Path, *command: str, **variables: str) -> str:
    program, *arguments = command
    done = subprocess.run(
        [str(PROGRAMS / program), *arguments],
        env=environment(root) | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def planned(tmp_path_factory, samples) -> Path:
    """Converted and preprocessed crops."""
    root = tmp_path_factory.mktemp("nnunet")
    crops(samples, "train", root / "train", (64, 64), range(0, 400, 100))
    crops(samples, "test", root / "val", (64, 64), range(100, 200, 100))
    crops(samples, "test", root / "test", TEST_SHAPE, range(200, 300, 100))
    dataset = write_dataset(
        root / "train" / "images",
        root / "train" / "labels",
        root / "nnUNet_raw",
        dataset_id=501,
        name="Cells",
        val_images=root / "val" / "images",
        val_labels=root / "val" / "labels",
        test_images=root / "test" / "images",
        preprocessed=root / "nnUNet_preprocessed",
    )
    assert dataset.folder.name == DATASET
    run(
        root,
        *("nnUNetv2_plan_and_preprocess", "-d", "501", "-c", "2d", "-npfp", "1", "-np", "1"),
        "--verify_dataset_integrity",
    )
    return root


def train_and_predict(root: Path, trainer: str, iterations: int) -> Path:
    run(
        root,
        *("nnUNetv2_train", "501", "2d", "0", "-tr", trainer, "-device", "cpu"),
        nnUNet_n_proc_DA="0",
        VIMUNET_NNUNET_ITERATIONS=str(iterations),
    )
    predictions = root / "predictions" / trainer
    run(
        root,
        *("nnUNetv2_predict", "-d", "501", "-c", "2d", "-f", "0", "-tr", trainer),
        *("-i", str(root / "nnUNet_raw" / DATASET / "imagesTs"), "-o", str(predictions)),
        *("-device", "cpu", "-npp", "1", "-nps", "1", "--save_probabilities"),
    )
    return predictions


@pytest.mark.parametrize("name", TRAINERS)
def test_our_networks_train_and_predict_in_stock_nnunet(planned, name):
    predictions = train_and_predict(planned, f"nnUNetTrainer{name}", iterations=3)

    assert is_prediction_folder(predictions)
    found = find_predictions(predictions)
    assert list(found) == ["set12_200", "set45_200"]
    for file in found.values():
        assert file.suffix == ".npz"
        assert read_prediction(file).shape == TEST_SHAPE
        assert read_prediction(file.with_suffix(".tif"), protocol="published").shape == TEST_SHAPE


def test_the_split_is_ours(planned):
    file = planned / "nnUNet_preprocessed" / DATASET / "splits_final.json"
    folds = json.loads(file.read_text())
    assert len(folds) == 5
    assert sorted(folds[0]["val"]) == ["set12_100", "set45_100"]


def test_a_short_training_learns_where_cells_are(planned):
    """After 150 iterations on small crops: Dice .66 of the objects, .52 if all were one object."""
    predictions = train_and_predict(planned, "nnUNetTrainerResUNet", iterations=150)
    learnt, everything = [], []
    for name, file in find_predictions(predictions).items():
        cells = read_labels(planned / "test" / "labels" / f"{name}.tif") > 0
        found = read_prediction(file) > 0
        learnt.append(2 * (found & cells).sum() / (found.sum() + cells.sum()))
        everything.append(2 * cells.sum() / (cells.size + cells.sum()))
    assert np.mean(learnt) > np.mean(everything) + 0.05
