"""A representation that nobody knew of goes through all of it: a file, and a line in the registry.

Its maps are signed vectors, which turn with the image and are no probabilities.
"""

import csv
import json

import numpy as np
import pytest
import tifffile
import torch
from flows import Flows
from PIL import Image

from vimunet.axes import turns
from vimunet.cli import main
from vimunet.representations import (
    REPRESENTATIONS,
    Representation,
    build_representation,
    representation_from_config,
    turned_vectors,
)
from vimunet.scores.folders import evaluate
from vimunet.segmentation.model_file import TrainedModel, load_model
from vimunet.segmentation.predict import predict
from vimunet.segmentation.segment import segment


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The one line that a new representation needs."""
    REPRESENTATIONS["flows"] = Flows
    yield
    del REPRESENTATIONS["flows"]


def cells(seed, shape=(96, 112)):
    """Ellipses with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    labels = np.zeros(shape, np.uint16)
    for number, place in enumerate(np.ndindex(4, 4), start=1):
        center = (np.array(place) + 0.5) * (24, 28) + rng.uniform(-3, 3, 2)
        radii = rng.uniform(6, 10, 2)
        distance = ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2
        labels[(distance < 1) & (labels == 0)] = number
    return (90 + 60 * (labels > 0) + rng.normal(0, 8, shape)).astype(np.uint8), labels


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("cells")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    for seed in range(5):
        image, labels = cells(seed)
        Image.fromarray(image).save(root / "images" / f"cell{seed}.png")
        tifffile.imwrite(root / "labels" / f"cell{seed}.tif", labels)
    return root


@pytest.fixture(scope="module")
def trained(folders):
    command = ["train", "--images", str(folders / "images"), "--labels", str(folders / "labels")]
    command += ["--model", "unet", "--option", "features=8", "--option", "depth=3"]
    command += ["--representation", "flows", "--representation-option", "min_size=10"]
    command += ["--iterations", "120", "--crop-size", "64", "--batch-size", "2", "--lr", "0.003"]
    command += ["--rotations", "--validation-interval", "60", "--val-crops", "2"]
    command += ["--workers", "0", "--device", "cpu", "--output", str(folders / "run")]
    assert main(command) == 0
    return folders / "run"


@pytest.mark.parametrize("axes", ["yx", "zyx"])
def test_maps_of_a_turned_image_are_the_turned_maps(axes):
    representation = Flows(ndim=len(axes))
    labels = np.zeros((6, 9, 9)[-len(axes) :], int)
    labels[..., 1:5, 2:8] = 1
    labels[..., 6:8, 1:3] = 2
    maps = representation.encode(labels)
    for turn in turns(axes):
        expected = representation.encode(turn(labels))
        np.testing.assert_allclose(representation.turned(maps, turn), expected, atol=1e-6)
        as_tensor = representation.turned(torch.from_numpy(maps), turn)
        np.testing.assert_allclose(as_tensor.numpy(), expected, atol=1e-6)
        back = turned_vectors(turned_vectors(maps, turn), turn.inverse)
        np.testing.assert_array_equal(back, maps)
    moved = [np.abs(turn(maps) - representation.turned(maps, turn)).max() for turn in turns(axes)]
    assert sum(moved[1:]) > len(moved) - 2  # pixels that only move would point the wrong way


@pytest.mark.parametrize("ndim", [2, 3])
def test_round_trip(ndim):
    labels = cells(0)[1]
    if ndim == 3:
        labels = np.where(np.abs(np.arange(13) - 6)[:, None, None] < 5, labels, 0)
    representation = Flows(ndim=ndim)
    found = representation.decode(representation.encode(labels))
    assert evaluate(found, labels)["SA75"] == 1


def test_it_is_known_by_name():
    assert build_representation("flows", min_size=3) == Flows(min_size=3)
    assert representation_from_config(json.loads(json.dumps(Flows(3).config()))) == Flows(3)
    with pytest.raises(ValueError, match=r"`maps` must lie in \[-1, 1\], got \[.*of flow_x"):
        Flows().decode(np.stack([np.zeros((4, 4)), np.full((4, 4), 1.5)]))


def test_training_learns_it(trained):
    with (trained / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["val_mSA"]) > 0.4
    assert load_model(trained / "best.safetensors").representation == Flows(min_size=10)
    shown = np.asarray(Image.open(trained / "preview" / "0000120.png"))
    assert shown.std() > 10


def test_tiles_and_positions(trained):
    """Turned vectors average to what they are; were they only moved, they would cancel out."""
    model = load_model(trained / "best.safetensors")
    image, labels = cells(7)
    whole = predict(image, model, device="cpu", precision="float32")
    assert whole.min() < -0.5
    tiled = predict(image, model, device="cpu", precision="float32", tile_size=48, halo=24)
    assert np.abs(tiled - whole).mean() < 0.1  # instance norms see the tile
    turned = predict(image, model, device="cpu", test_time_augmentation=8)
    assert np.abs(turned - whole).mean() < 0.25

    class OnlyMoved(Flows):
        turned = Representation.turned

    moved = TrainedModel(model.network, OnlyMoved(min_size=10))
    cancelled = predict(image, moved, device="cpu", test_time_augmentation=8)
    assert np.abs(cancelled).mean() < 0.5 * np.abs(turned).mean()
    once, mean = (
        evaluate(segment(image, model, device="cpu", test_time_augmentation=views), labels)["mSA"]
        for views in (1, 8)
    )
    assert once > 0.4
    assert mean > once - 0.05


def test_maps_of_a_magnified_image_keep_their_sign(trained):
    model = load_model(trained / "best.safetensors")
    image, labels = cells(8)
    small = image[::2, ::2]
    maps = predict(small, model, device="cpu", scale=2)
    assert maps.shape == (2, *small.shape)
    assert maps.min() < -0.5


def test_commands(trained, folders, capsys):
    model = folders / "tuned.safetensors"
    data = ["--images", str(folders / "images"), "--labels", str(folders / "labels")]
    command = ["tune", *data, "--model", str(trained / "best.safetensors"), "--device", "cpu"]
    assert main([*command, "--output", str(model)]) == 0
    assert "threshold: 0.5 -> " in capsys.readouterr().out
    assert load_model(model).info["tuned"]["mSA"] > 0.4
    image = folders / "images" / "cell0.png"
    command = ["segment", str(image), "--model", str(model), "--device", "cpu", "--output"]
    for name, options in (("all", []), ("large", ["--set", "min_size=150"])):
        assert main([*command, str(folders / name), *options, "--save-maps", "--overlay"]) == 0
    found = {name: tifffile.imread(folders / name / "cell0.tif") for name in ("all", "large")}
    assert found["all"].max() > found["large"].max()
    assert np.bincount(found["large"].ravel())[1:].min() >= 150
    assert tifffile.imread(folders / "all" / "maps" / "cell0.tif").min() < -0.5
    assert main([*command, str(folders / "x"), "--set", "seed_radius=3"]) == 2
    error = capsys.readouterr().err
    assert "Unknown field 'seed_radius' of representation 'flows'. Known: threshold, min" in error
    folders_of = ["--predictions", str(folders / "all"), "--labels", str(folders / "labels")]
    assert main(["evaluate", *folders_of, "--json"]) == 0
