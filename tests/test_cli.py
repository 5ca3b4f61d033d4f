"""The command line: files in, files out, one clean line for what goes wrong."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch

from vimunet.cli import main
from vimunet.cli.segment import _write_tiff
from vimunet.cli.train import _split
from vimunet.io.formats import read_image, read_labels
from vimunet.io.label_files import Place, read_label_tiff, write_label_tiff
from vimunet.io.pairs import Sample
from vimunet.models import build_model
from vimunet.overlay import draw_overlay
from vimunet.representations.boundaries import Boundaries
from vimunet.representations.distances import Distances
from vimunet.representations.semantic import Semantic
from vimunet.segmentation.model_file import TrainedModel, embedded_models, load_model, save_model
from vimunet.segmentation.predict import predict
from vimunet.segmentation.segment import segment

ROOT = Path(__file__).resolve().parents[1]
TINY = {"features": 4, "depth": 2}


def noisy_network(in_channels=1, out_channels=2):
    """A network whose maps differ from pixel to pixel, so that there are objects to find."""
    torch.manual_seed(1)
    network = build_model("unet", in_channels, out_channels, **TINY)
    torch.nn.init.normal_(network.out_conv.weight, std=3)
    return network


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, TrainedModel(noisy_network(), Boundaries(seed_radius=0, min_size=3)))
    return path


@pytest.fixture
def pairs(tmp_path, samples):
    """Two folders with crops of three real images and their labels."""
    for kind, write in (("images", imagecodecs.imwrite), ("labels", tifffile.imwrite)):
        read = read_image if kind == "images" else read_labels
        (tmp_path / kind).mkdir()
        files = sorted((samples / "phase" / "train" / kind).iterdir())[:3]
        for i, file in enumerate(files):
            crop = np.ascontiguousarray(read(file)[40:136, 40:120])
            write(tmp_path / kind / f"cell{i}.{'png' if kind == 'images' else 'tif'}", crop)
    return tmp_path


def run_segment(*arguments, model):
    return main(["segment", *map(str, arguments), "--model", str(model), "--device", "cpu"])


# --- segment ---------------------------------------------------------------------------------


def test_segment_writes_what_the_library_computes(pairs, model_file, capsys):
    out = pairs / "out"
    code = run_segment(
        pairs / "images", "--output", out, "--overlay", "--save-maps", model=model_file
    )
    assert code == 0
    assert "3 of 3 images segmented" in capsys.readouterr().out
    model = load_model(model_file)
    for i in range(3):
        image = read_image(pairs / "images" / f"cell{i}.png")
        expected = segment(image, model)
        assert expected.max() > 1
        with tifffile.TiffFile(out / f"cell{i}.tif") as file:
            assert file.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE
            assert file.series[0].axes == "YX"
            labels = file.asarray()
        assert labels.dtype == np.uint16
        assert (labels == expected).all()
        assert (np.unique(labels) == np.arange(labels.max() + 1)).all()
        maps = tifffile.imread(out / "maps" / f"cell{i}.tif")
        assert (maps == predict(image, model)).all()
        picture = imagecodecs.imread(out / "overlays" / f"cell{i}.png")
        assert (picture == draw_overlay(image, labels)).all()
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_one_failing_file_does_not_stop_the_others(pairs, model_file, capsys):
    (pairs / "images" / "broken.tif").write_bytes(b"II*\0 no image follows")
    np.save(pairs / "images" / "missing_pixels.npy", np.full((9, 9), np.nan))
    out = pairs / "out"
    code = run_segment(pairs / "images", pairs / "nowhere.png", "--output", out, model=model_file)
    assert code == 1
    printed = capsys.readouterr()
    assert "3 of 6 images segmented" in printed.out
    assert "broken.tif failed" in printed.err
    assert "missing_pixels.npy failed: Image contains NaN" in printed.err
    assert "nowhere.png failed: No such file" in printed.err
    assert sorted(path.name for path in out.iterdir()) == [f"cell{i}.tif" for i in range(3)]


def test_a_write_that_fails_leaves_nothing_behind(pairs, model_file, monkeypatch, capsys):
    def full(path, *ignored, **options):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    assert run_segment(pairs / "images", "--output", pairs / "out", model=model_file) == 1
    assert "No space left" in capsys.readouterr().err
    assert not [path for path in (pairs / "out").rglob("*") if path.is_file()]


def test_existing_labels_are_kept_unless_told_otherwise(pairs, model_file, capsys):
    corrected = pairs / "out" / "cell1.tif"
    corrected.parent.mkdir()
    corrected.write_bytes(b"hours of work")
    image = pairs / "images" / "cell1.png"
    assert run_segment(image, "--output", pairs / "out", model=model_file) == 2
    assert "exist already" in capsys.readouterr().err
    assert corrected.read_bytes() == b"hours of work"
    assert run_segment(image, "--output", pairs / "out", "--overwrite", model=model_file) == 0
    assert tifffile.imread(corrected).shape == (96, 80)


def test_existing_overlays_and_maps_are_kept_too(pairs, model_file, capsys):
    (pairs / "out" / "maps").mkdir(parents=True)
    (pairs / "out" / "maps" / "cell1.tif").write_bytes(b"maps")
    image = pairs / "images" / "cell1.png"
    assert run_segment(image, "--output", pairs / "out", "--save-maps", model=model_file) == 2
    assert str(pairs / "out" / "maps" / "cell1.tif") in capsys.readouterr().err


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_images_are_never_overwritten(pairs, model_file, capsys, overwrite):
    image = pairs / "images" / "only.tif"
    tifffile.imwrite(image, np.eye(20, dtype=np.uint8))
    before = image.read_bytes()
    assert run_segment(image, "--output", pairs / "images", *overwrite, model=model_file) == 2
    assert "`--output` must not be a folder of images" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_two_images_of_one_name_are_refused_before_anything_is_written(pairs, model_file, capsys):
    other = pairs / "other"
    other.mkdir()
    tifffile.imwrite(other / "Cell1.ome.tif", np.eye(20, dtype=np.uint8))
    code = run_segment(pairs / "images", other, "--output", pairs / "out", model=model_file)
    assert code == 2
    assert "must differ by more than folder and extension" in capsys.readouterr().err
    assert not (pairs / "out").exists()


def test_files_folders_and_patterns_name_each_image_once(pairs, model_file, capsys):
    images = pairs / "images"
    inputs = [images / "cell[01].png", images / "cell0.png", images]
    assert run_segment(*inputs, "--output", pairs / "out", model=model_file) == 0
    assert "3 of 3" in capsys.readouterr().out


def test_stack_is_segmented_slice_by_slice(pairs, model_file):
    slices = [read_image(pairs / "images" / f"cell{i}.png") for i in range(3)]
    tifffile.imwrite(pairs / "stack.tif", np.stack(slices), photometric="minisblack")
    out = pairs / "out"
    options = ["--output", out, "--overlay", "--save-maps"]
    assert run_segment(pairs / "stack.tif", *options, model=model_file) == 0
    with tifffile.TiffFile(out / "stack.tif") as file:
        assert file.series[0].axes == "ZYX"
        labels = file.asarray()
    model, objects = load_model(model_file), 0
    for image, found in zip(slices, labels, strict=True):
        expected = segment(image, model)
        assert (np.where(found > 0, found - objects, 0) == expected).all()
        objects += expected.max()
    assert labels.max() == objects
    assert tifffile.imread(out / "maps" / "stack.tif").shape == (3, 2, *slices[0].shape)
    assert len(list((out / "overlays" / "stack").iterdir())) == 3


def test_channel_of_a_tiff_is_chosen(pairs, model_file, capsys):
    cells = [read_image(pairs / "images" / f"cell{i}.png") for i in range(3)]
    file = pairs / "channels.ome.tif"
    tifffile.imwrite(file, np.stack(cells), metadata={"axes": "CYX"}, photometric="minisblack")
    assert run_segment(file, "--output", pairs / "out", model=model_file) == 1
    assert "`channel` must be chosen, from 0 to 2" in capsys.readouterr().err
    options = ["--channel", "2", "--overlay", "--output", pairs / "out"]
    assert run_segment(file, *options, model=model_file) == 0
    expected = segment(cells[2], load_model(model_file))
    assert np.array_equal(tifffile.imread(pairs / "out" / "channels.tif"), expected)


def test_series_of_stacks_keeps_its_axes(pairs, model_file):
    cell = read_image(pairs / "images" / "cell0.png")
    image = np.stack([cell, cell, cell[::-1]] * 2).reshape(2, 3, *cell.shape)
    file = pairs / "series.tif"
    tifffile.imwrite(file, image, imagej=True, metadata={"axes": "TZYX"})
    options = ["--stitch-threshold", "0.9", "--save-maps", "--output", pairs / "out"]
    assert run_segment(file, *options, model=model_file) == 0
    with tifffile.TiffFile(pairs / "out" / "series.tif") as labels:
        assert labels.series[0].axes == "TZYX"
        found = labels.asarray()
    assert np.array_equal(found[0, 0], found[0, 1])
    assert not np.array_equal(found[0, 0], found[1, 0])  # stacks have objects of their own
    assert np.array_equal(found[0] > 0, found[1] > 0)
    with tifffile.TiffFile(pairs / "out" / "maps" / "series.tif") as maps:
        assert (maps.series[0].axes, maps.series[0].shape) == ("TZCYX", (2, 3, 2, *cell.shape))


def test_labels_keep_the_size_of_a_pixel(pairs, model_file):
    cell = read_image(pairs / "images" / "cell0.png")
    file = pairs / "scaled.tif"
    notes = {"unit": "um", "spacing": 1.5, "axes": "ZYX"}
    tifffile.imwrite(file, np.stack([cell] * 2), imagej=True, resolution=(4, 4), metadata=notes)
    assert run_segment(file, "--output", pairs / "out", model=model_file) == 0
    place = read_label_tiff(pairs / "out" / "scaled.tif")[1]
    assert place.scale == (1.5, 0.25, 0.25)
    assert place.units == ("micrometer",) * 3


def test_overlays_of_planar_images_and_of_shorter_stacks(pairs, model_file):
    cell = read_image(pairs / "images" / "cell0.png")
    out = pairs / "out"
    options = ["--overlay", "--overwrite", "--output", out]
    for slices in (5, 2):
        np.save(pairs / "s.npy", np.stack([cell] * slices))
        assert run_segment(pairs / "s.npy", *options, model=model_file) == 0
        assert len(list((out / "overlays" / "s").iterdir())) == slices
    tifffile.imwrite(pairs / "rgb.tif", np.stack([cell] * 3), photometric="rgb", metadata=None)
    assert run_segment(pairs / "rgb.tif", *options, model=model_file) == 0
    assert read_image(out / "overlays" / "rgb.png").shape == (*cell.shape, 3)


def test_labels_are_written_before_pictures(pairs, model_file, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("vimunet.overlay.draw_overlay", broken)
    file = pairs / "images" / "cell0.png"
    out = pairs / "out"
    assert run_segment(file, "--overlay", "--output", out, model=model_file) == 1
    assert (out / "cell0.tif").exists()


def test_files_above_four_gigabytes_can_be_written(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(tifffile, "imwrite", lambda *_, **options: seen.update(options))
    small, large = np.zeros((4, 4), np.uint16), np.broadcast_to(np.uint16(0), (2**16, 2**15, 1))
    _write_tiff(tmp_path / "small.tif", small, "yx")
    assert not seen["bigtiff"]
    _write_tiff(tmp_path / "large.tif", large, "zyx")
    assert seen["bigtiff"]


def test_interrupted_folder_goes_on(pairs, model_file, capsys):
    out = pairs / "out"
    assert run_segment(pairs / "images" / "cell1.png", "--output", out, model=model_file) == 0
    corrected = np.full((8, 8), 3, np.uint16)
    tifffile.imwrite(out / "cell1.tif", corrected)
    assert run_segment(pairs / "images", "--output", out, model=model_file) == 2
    assert "go on with --skip-existing" in capsys.readouterr().err
    (out / "overlays").mkdir()
    (out / "overlays" / "cell2.png").touch()  # its labels were thrown away
    options = ["--skip-existing", "--overlay", "--output", out]
    assert run_segment(pairs / "images", *options, model=model_file) == 0
    assert (out / "overlays" / "cell2.png").stat().st_size
    said = capsys.readouterr().out
    assert "1 of 3 images have labels" in said
    assert "2 of 2 images segmented" in said
    assert np.array_equal(tifffile.imread(out / "cell1.tif"), corrected)


def test_files_that_are_left_out_are_named(pairs, model_file, capsys):
    for name in ("a.czi", "notes.txt", ".hidden"):
        (pairs / "images" / name).write_text("x")
    assert run_segment(pairs / "images", "--output", pairs / "out", model=model_file) == 0
    said = capsys.readouterr().err
    assert "left out, of unknown type: a.czi, notes.txt." in said
    assert "hidden" not in said


@pytest.mark.parametrize(
    "option",
    [("--scale", "0"), ("--test-time-augmentation", "9"), ("--halo", "-5"), ("--tile-size", "3")],
)
def test_wrong_options_are_said_once(pairs, model_file, capsys, option):
    assert run_segment(pairs / "images", "--output", pairs / "out", *option, model=model_file) == 2
    assert capsys.readouterr().err.count(f"got {option[1]}") == 1


def test_output_that_is_a_file_is_refused_at_once(pairs, model_file, capsys):
    (pairs / "out").write_text("mine")
    file = pairs / "images" / "cell0.png"
    assert run_segment(file, "--output", pairs / "out", model=model_file) == 2
    assert "`--output` must be a folder, got the file" in capsys.readouterr().err
    assert (pairs / "out").read_text() == "mine"


def test_more_objects_than_16_bits_hold(tmp_path, model_file, monkeypatch):
    labels = np.arange(256 * 258, dtype=np.int32).reshape(256, 258)
    monkeypatch.setattr(Boundaries, "decode", lambda *_: labels)
    np.save(tmp_path / "a.npy", np.zeros(labels.shape))
    assert run_segment(tmp_path / "a.npy", "--output", tmp_path / "out", model=model_file) == 0
    written = tifffile.imread(tmp_path / "out" / "a.tif")
    assert written.dtype == np.uint32
    assert (written == labels).all()


def test_options_reach_the_library(pairs, model_file):
    image = pairs / "images" / "cell0.png"
    options = ["--tile-size", "32", "--halo", "8", "--min-size", "40", "--batch-size", "2"]
    options += ["--scale", "1.5", "--test-time-augmentation", "2"]
    assert run_segment(image, "--output", pairs / "out", *options, model=model_file) == 0
    labels = tifffile.imread(pairs / "out" / "cell0.tif")
    settings = {"scale": 1.5, "test_time_augmentation": 2, "tile_size": 32, "halo": 8}
    maps = predict(read_image(image), load_model(model_file), **settings)
    assert (labels == Boundaries(seed_radius=0, min_size=40).decode(maps)).all()
    assert min(np.bincount(labels.ravel())[1:]) >= 40


# --- train, tune, evaluate -------------------------------------------------------------------


def test_train_segment_evaluate_tune(pairs, capsys):
    data = ["--images", str(pairs / "images"), "--labels", str(pairs / "labels")]
    recipe = ["--iterations", "2", "--crop-size", "32", "--seed", "3", "--device", "cpu"]
    code = main(
        ["train", *data, *recipe, "--model", "unet", "--output", str(pairs / "run")]
        + ["--option", "features=4", "--option", "depth=2", "--representation", "distances"]
    )
    assert code == 0
    assert "2 images to train on, 1 to validate on" in capsys.readouterr().out
    best = pairs / "run" / "best.safetensors"
    model = load_model(best)
    assert isinstance(model.representation, Distances)
    with_thresholds = load_model(pairs / "run" / "tuned.safetensors")
    assert len(with_thresholds.info["tuned"]["images"]) == 1
    assert model.network.config["model_args"]["features"] == 4

    tuned = pairs / "tuned.safetensors"
    assert main(["tune", *data, "--model", str(best), "--output", str(tuned)]) == 0
    printed = capsys.readouterr().out
    note = load_model(tuned).info["tuned"]
    assert f"mSA {note['mSA_before']:.4f} before, {note['mSA']:.4f} after" in printed
    assert note["mSA"] >= note["mSA_before"]
    assert note["images"] == ["cell0", "cell1", "cell2"]
    assert load_model(best).representation == model.representation

    assert run_segment(pairs / "images", "--output", pairs / "out", model=tuned) == 0
    capsys.readouterr()
    folders = ["--predictions", str(pairs / "out"), "--labels", str(pairs / "labels")]
    assert main(["evaluate", *folders, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mean"]["mSA"] == pytest.approx(note["mSA"])


def test_train_starts_from_published_weights(pairs, capsys):
    donor = build_model("vim_t", 3, 1, variant="torch-em-0.7.5", embed_dim=32, depth=2)
    state = {key: value + 1 for key, value in donor.encoder.state_dict().items()}
    torch.save({"model": state}, pairs / "vim.pth")
    code = main(
        ["train", "--images", str(pairs / "images"), "--labels", str(pairs / "labels")]
        + ["--iterations", "1", "--crop-size", "32", "--lr", "1e-12", "--device", "cpu"]
        + ["--model", "vim_t", "--option", "embed_dim=32", "--option", "depth=2"]
        + ["--pretrained", str(pairs / "vim.pth"), "--output", str(pairs / "run")]
    )
    assert code == 0
    assert "1 adapted, summed over the colours: encoder.patch_embed.proj.weight" in (
        capsys.readouterr().out
    )
    trained = load_model(pairs / "run" / "last.safetensors").network.state_dict()
    key = "layers.1.mixer.x_proj.weight"
    torch.testing.assert_close(trained[f"encoder.{key}"], state[key])


def test_train_continues_from_a_model(pairs, capsys):
    start = TrainedModel(
        noisy_network(out_channels=3),
        Distances(center_threshold=0.4),
        info={"training_data": "discs", "licence": "CC0"},
    )
    save_model(pairs / "start.safetensors", start)
    command = ["train", "--images", str(pairs / "images"), "--labels", str(pairs / "labels")]
    command += ["--iterations", "1", "--crop-size", "32", "--lr", "1e-12", "--device", "cpu"]
    command += ["--output", str(pairs / "run"), "--model", str(pairs / "start.safetensors")]

    assert main([*command, "--representation", "distances"]) == 2
    assert "`--representation` must be left out" in capsys.readouterr().err
    assert main(command) == 0
    trained = load_model(pairs / "run" / "last.safetensors")
    assert trained.representation == start.representation
    assert trained.info["training_data"].endswith("start.safetensors (discs)")
    assert trained.info["licence"] == "CC0"
    for name, tensor in start.network.state_dict().items():
        if "running" not in name and "batches" not in name:
            torch.testing.assert_close(trained.network.state_dict()[name], tensor)


def test_tune_stores_better_thresholds(pairs, tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.safetensors"
    save_model(path, TrainedModel(noisy_network(), Boundaries()))

    def too_bright(image, model, **options):
        labels = read_labels(pairs / "labels" / "cell0.tif")
        return 0.6 + 0.4 * Boundaries().encode(labels)  # nothing is below 0.6

    monkeypatch.setattr("vimunet.training.tuning.predict", too_bright)
    for name in ("cell1.png", "cell2.png"):
        (pairs / "images" / name).unlink()
        (pairs / "labels" / name).with_suffix(".tif").unlink()
    data = ["--images", str(pairs / "images"), "--labels", str(pairs / "labels")]
    options = [
        "--scale",
        "2",
        "--test-time-augmentation",
        "4",
        "--halo",
        "32",
        "--precision",
        "float32",
    ]
    assert main(["tune", *data, "--model", str(path), "--in-place", *options]) == 0
    assert "foreground_threshold: 0.5 -> 0.7" in capsys.readouterr().out
    tuned = load_model(path)
    assert tuned.representation.foreground_threshold == 0.7
    assert tuned.info["tuned"]["prediction"] == {
        "scale": 2.0,
        "tile_size": None,
        "halo": 32,
        "test_time_augmentation": 4,
        "precision": "float32",
    }


def test_tune_leaves_out_what_nobody_labelled_for_a_model_without_background(
    pairs, tmp_path, monkeypatch
):
    """As training does for the same model, without being told."""
    path = tmp_path / "model.safetensors"
    judged = {}
    monkeypatch.setattr(
        "vimunet.training.tuning.predict", lambda image, *_, **__: image[None] / 255
    )
    data = ["--images", str(pairs / "images"), "--labels", str(pairs / "labels")]
    for representation in (Boundaries(foreground=False), Distances()):
        save_model(path, TrainedModel(noisy_network(), representation))
        monkeypatch.setattr(
            "vimunet.training.tuning.tune_thresholds",
            lambda kind, *_, labelled_pixels_only, **__: (
                judged.update({kind.name: labelled_pixels_only}),
                (kind, 0.0, [{"mSA": 0.0} | dict.fromkeys(kind.threshold_grid(), 0.5)]),
            )[1],
        )
        assert main(["tune", *data, "--model", str(path), "--in-place"]) == 0
    assert judged == {"boundaries": True, "distances": False}


def test_tune_says_where_the_model_goes(pairs, model_file, capsys):
    data = ["--images", str(pairs / "images"), "--labels", str(pairs / "labels")]
    assert main(["tune", *data, "--model", str(model_file)]) == 2
    assert "either --output FILE or --in-place" in capsys.readouterr().err
    both = ["--in-place", "--output", str(pairs / "x.safetensors")]
    assert main(["tune", *data, "--model", str(model_file), *both]) == 2


def test_tune_refuses_a_place_for_the_model_before_any_work(pairs, model_file, capsys):
    data = ["--images", str(pairs / "images"), "--labels", str(pairs / "labels")]
    there = pairs / "there.safetensors"
    there.write_bytes(b"another model")
    (pairs / "folder.safetensors").mkdir()
    for output, message in (
        (there, "there.safetensors exists already. Replace it with --overwrite."),
        (pairs / "folder.safetensors", "must be a file that ends in .safetensors, got"),
        (pairs / "model.pt", "must be a file that ends in .safetensors, got"),
    ):
        nowhere = ["--images", str(pairs / "nowhere"), *data[2:]]
        assert main(["tune", *nowhere, "--model", "nuclei", "--output", str(output)]) == 2
        assert message in capsys.readouterr().err
    assert there.read_bytes() == b"another model"
    command = ["tune", *data, "--model", str(model_file), "--output", str(there)]
    assert main([*command, "--overwrite"]) == 0
    assert load_model(there).info["tuned"]["images"] == ["cell0", "cell1", "cell2"]


def test_evaluate_prints_a_table_or_json(pairs, capsys):
    predictions = pairs / "predictions"
    predictions.mkdir()
    labels = read_labels(pairs / "labels" / "cell0.tif")
    tifffile.imwrite(predictions / "cell0.tif", labels)
    tifffile.imwrite(predictions / "cell1.tif", np.zeros((96, 80), np.uint16))
    folders = ["--predictions", str(predictions), "--labels", str(pairs / "labels")]
    assert main(["evaluate", *folders, "--csv", str(pairs / "scores.csv")]) == 0
    table = capsys.readouterr().out
    assert "mean of 3" in table
    assert "cell2" in table.split("without prediction, scored as empty: ")[1]
    with (pairs / "scores.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["cell0"]["mSA"]) == 1
    assert float(rows["mean"]["mSA"]) == pytest.approx(1 / 3)

    (pairs / "scores.csv").write_text("of last week")
    assert main(["evaluate", *folders, "--csv", str(pairs / "scores.csv")]) == 2
    assert "scores.csv exists already. Replace it with --overwrite." in capsys.readouterr().err
    assert (pairs / "scores.csv").read_text() == "of last week"
    assert main(["evaluate", *folders, "--csv", str(pairs / "scores.csv"), "--overwrite"]) == 0
    assert (pairs / "scores.csv").read_text().startswith("name,mSA,")
    capsys.readouterr()

    assert main(["evaluate", *folders, "--json"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [image["mSA"] for image in result["images"]] == [1, 0, 0]
    assert result["mean"]["mSA"] == pytest.approx(1 / 3)
    assert result["missing"] == ["cell2"]


def test_scores_that_are_not_defined_are_null(pairs, capsys):
    for file in (pairs / "labels").iterdir():
        tifffile.imwrite(file, np.zeros((96, 80), np.uint16))
    folders = ["--predictions", str(pairs / "labels"), "--labels", str(pairs / "labels")]
    assert main(["evaluate", *folders, "--json", "--labelled-pixels-only"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert None in result["images"][0].values()


def sample(name):
    source = name.partition("_z")[0]
    return Sample(name, lambda: (np.zeros((4, 4)), np.ones((4, 4), int)), source=source)


def test_images_for_validation_are_chosen_by_name():
    samples = [sample(f"image{i}") for i in range(20)]
    train, validation = _split(samples)
    assert len(validation) == 3
    assert sorted(train + validation, key=samples.index) == samples
    again = _split(samples[::-1])[1]
    assert {each.name for each in again} == {each.name for each in validation}


def test_slices_of_a_stack_stay_together():
    samples = [sample(f"{stack}_z{z:03d}") for stack in "ab" for z in range(10)]
    train, validation = _split(samples)
    assert len(train) == len(validation) == 10
    assert len({each.name[0] for each in train}) == 1


def test_one_image_cannot_be_split(capsys):
    with pytest.raises(ValueError, match="At least two images .* --val-images"):
        _split([sample(f"a_z{z:03d}") for z in range(9)])


def test_validation_folders_come_in_pairs(pairs, capsys):
    data = ["--images", str(pairs / "images"), "--labels", str(pairs / "labels")]
    more = ["--val-images", str(pairs), "--model", "unet", "--output", str(pairs / "run")]
    assert main(["train", *data, *more]) == 2
    assert "must be given together" in capsys.readouterr().err
    more[0] = "--val-labels"
    assert main(["train", *data, *more]) == 2
    assert "must be given together" in capsys.readouterr().err


# --- classes ---------------------------------------------------------------------------------


@pytest.fixture
def masks(pairs):
    """The same images with masks of 0 and 255."""
    for file in (pairs / "labels").iterdir():
        tifffile.imwrite(file, np.uint8(255) * (read_labels(file) > 0))
    return pairs


def semantic_model(path, num_classes):
    representation = Semantic(num_classes)
    network = noisy_network(out_channels=len(representation.channels))
    save_model(path, TrainedModel(network, representation))
    return path


def test_train_tune_segment_evaluate_classes(masks, capsys):
    data = ["--images", str(masks / "images"), "--labels", str(masks / "labels")]
    recipe = ["--iterations", "2", "--crop-size", "32", "--device", "cpu", "--lr", "1e-3"]
    recipe += ["--optimizer", "adamw", "--weight-decay", "0.01", "--schedule", "cosine"]
    code = main(
        ["train", *data, *recipe, "--model", "unet", "--output", str(masks / "run")]
        + ["--option", "features=4", "--option", "depth=2", "--representation", "semantic"]
    )
    assert code == 0
    best = masks / "run" / "best.safetensors"
    assert load_model(best).representation == Semantic()
    assert 0 <= load_model(best).info["val_Dice"] <= 1

    tuned = masks / "tuned.safetensors"
    assert main(["tune", *data, "--model", str(best), "--output", str(tuned)]) == 0
    note = load_model(tuned).info["tuned"]
    assert f"Dice {note['Dice_before']:.4f} before, {note['Dice']:.4f}" in capsys.readouterr().out

    assert run_segment(masks / "images", "--output", masks / "out", "--overlay", model=tuned) == 0
    assert "classes besides background" in capsys.readouterr().out
    folders = ["--predictions", str(masks / "out"), "--labels", str(masks / "labels")]
    code = main(["evaluate", *folders, "--semantic", "--json", "--csv", str(masks / "scores.csv")])
    assert code == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["mean"]["Dice"] == pytest.approx(note["Dice"])
    assert result["micro_confidence"]["IoU"][0] <= result["micro"]["IoU"]
    with (masks / "scores.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["micro"]["Dice"]) == pytest.approx(result["micro"]["Dice"])
    assert main(["evaluate", *folders, "--semantic", "--spacing", "0.5"]) == 0
    table = capsys.readouterr().out
    assert "all pixels together" in table
    assert "structures missed" in table


def test_classes_of_a_stack_keep_their_numbers(pairs, tmp_path):
    """Three slices; class 2 must be 2 in each, and single pixels must stay."""
    path = semantic_model(tmp_path / "classes.safetensors", 3)
    slices = [read_image(pairs / "images" / f"cell{i}.png") for i in range(3)]
    tifffile.imwrite(pairs / "stack.tif", np.stack(slices), photometric="minisblack")
    assert run_segment(pairs / "stack.tif", "--output", pairs / "out", model=path) == 0
    found = tifffile.imread(pairs / "out" / "stack.tif")
    model = load_model(path)
    expected = np.stack([predict(image, model).argmax(axis=0) for image in slices])
    assert all((np.unique(classes) == [0, 1, 2]).all() for classes in expected)
    np.testing.assert_array_equal(found, expected)


def test_flags_for_objects_are_refused_for_classes(masks, tmp_path, capsys):
    path = semantic_model(tmp_path / "classes.safetensors", 2)
    image = masks / "images" / "cell0.png"
    code = run_segment(image, "--output", masks / "out", "--min-size", "9", model=path)
    assert code == 2
    assert "`--min-size` must be left out" in capsys.readouterr().err
    data = ["--images", str(masks / "images"), "--labels", str(masks / "labels")]
    options = ["--model", str(path), "--in-place", "--labelled-pixels-only"]
    assert main(["tune", *data, *options]) == 2
    assert "`--labelled-pixels-only` must be left out" in capsys.readouterr().err
    folders = ["evaluate", "--predictions", str(masks / "labels"), "--labels"]
    folders.append(str(masks / "labels"))
    for flags, message in (
        (["--semantic", "--threshold", "0.5"], "`--threshold` must not come with --semantic"),
        (["--semantic", "--labelled-pixels-only"], "`--labelled-pixels-only` must not come"),
        (["--num-classes", "3"], "`--num-classes` must come with --semantic"),
        (["--spacing", "2"], "`--spacing` must come with --semantic"),
    ):
        assert main([*folders, *flags]) == 2
        assert message in capsys.readouterr().err
    more = ["--model", "unet", "--output", str(masks / "run"), "--num-classes", "3"]
    assert main(["train", *data, *more]) == 2
    assert "`--num-classes` must come with semantic labels: --repr" in capsys.readouterr().err
    assert main(["train", *data, "--model", "unet", "--output", str(masks / "run")]) == 2
    assert "got only 0 and 255" in capsys.readouterr().err  # a mask is still no label image


# --- convert, data, info ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maps", "given", "expected"),
    [
        (1, [], Boundaries(foreground=False)),
        (2, [], Boundaries()),
        (3, [], Distances()),
        (3, ["--representation", "distances"], Distances()),
        (1, ["--representation", "semantic"], Semantic()),
        (4, ["--representation", "semantic"], Semantic(4)),
    ],
)
def test_convert_writes_a_model_file(tmp_path, monkeypatch, maps, given, expected, capsys):
    network = noisy_network(out_channels=maps).eval()
    asked = []
    monkeypatch.setattr(
        "vimunet.bridges.torch_em.read_checkpoint",
        lambda path, **overrides: asked.append((path.name, overrides)) or network,
    )
    torch.save(network.state_dict(), tmp_path / "best.pt")
    out = tmp_path / "new.safetensors"
    arguments = ["convert", str(tmp_path / "best.pt"), "--output", str(out), *given]
    assert main([*arguments, "--option", "in_channels=1", "--option", "kind=a b"]) == 0
    assert asked == [("best.pt", {"in_channels": 1, "kind": "a b"})]
    model = load_model(out)
    assert model.representation == expected
    image = np.eye(32)
    assert (predict(image, model) == predict(image, TrainedModel(network, expected))).all()
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_convert_refuses_maps_that_do_not_fit(tmp_path, monkeypatch, capsys):
    torch.save(noisy_network(out_channels=2).state_dict(), tmp_path / "a.pt")
    arguments = ["convert", str(tmp_path / "a.pt"), "--output", str(tmp_path / "a.safetensors")]
    assert main([*arguments, "--representation", "distances"]) == 2
    assert re.search(
        r"of .*a.pt: Representation .* must have 3 maps .*, got 2", capsys.readouterr().err
    )


def test_convert_reads_other_tools_and_reports(tmp_path, capsys):
    network = build_model("umamba_bot", 1, 2, variant="paper", features=4, image_size=32)
    state = network.state_dict()
    state["decoder.encoder.stem.0.conv1.bias"] = state["encoder.stem.0.conv1.bias"]
    torch.save({"network_weights": state}, tmp_path / "final.pth")
    out = tmp_path / "new.safetensors"
    arguments = ["convert", str(tmp_path / "final.pth"), "--output", str(out)]
    assert main(arguments) == 2
    assert "must be given for a checkpoint of U-Mamba" in capsys.readouterr().err
    assert main([*arguments, "--representation", "boundaries"]) == 0
    printed = capsys.readouterr().out
    assert f"{len(network.state_dict())} tensors loaded as they are" in printed
    assert "1 skipped, the same numbers under another name: decoder.encoder.stem" in printed
    assert "umamba_bot with foreground and boundary maps written" in printed
    model = load_model(out)
    assert (model.info["tool"], model.representation) == ("U-Mamba", Boundaries())
    assert model.normalization == "channel"


def test_state_of_a_training_is_no_checkpoint_to_convert(tmp_path, capsys):
    state = {"network": noisy_network().state_dict(), "optimizer": {}, "scheduler": {}}
    torch.save({**state, "iteration": 3, "seconds": 1.5, "best": {}}, tmp_path / "state.pt")
    output = ["--output", str(tmp_path / "new.safetensors")]
    assert main(["convert", str(tmp_path / "state.pt"), *output]) == 2
    error = capsys.readouterr().err
    assert "state.pt must be a checkpoint of another tool, got the state of a training" in error
    assert "best.safetensors or last.safetensors beside it" in error


def test_option_must_be_a_pair(tmp_path, capsys):
    arguments = ["convert", "a.pt", "--output", str(tmp_path / "a.safetensors")]
    assert main([*arguments, "--option", "in_channels"]) == 2
    assert "must have the form NAME=VALUE, got 'in_channels'" in capsys.readouterr().err


def test_data_downloads(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "vimunet.datasets.download.download",
        lambda name, directory: asked.append((name, directory)) or directory,
    )
    assert main(["data", "cremi", str(tmp_path)]) == 0
    assert asked == [("cremi", tmp_path)]
    assert str(tmp_path) in capsys.readouterr().out


def test_info_names_versions_devices_and_models(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in (f"torch   {torch.__version__}", "cpu", "vim_t", "unetr_h", "vimunet._kernels"):
        assert word in printed
    assert "partial(" not in printed


@pytest.mark.parametrize("module", ["vimunet", "vimunet.cli"])
def test_info_runs_as_a_program(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "info"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "optional packages" in done.stdout
    assert done.stderr == ""


def test_help_does_not_load_torch():
    code = (
        "import sys\nfrom vimunet.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as done:\n"
        "    print('code', done.code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.rstrip().endswith("code 0 False False")
    for command in ("info", "segment", "train", "tune", "evaluate", "convert", "data"):
        assert f"\n    {command} " in done.stdout


@pytest.mark.parametrize(
    "command", ["info", "segment", "train", "tune", "evaluate", "convert", "data"]
)
def test_each_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: vimunet {command}")


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "a.png", "--model", "no.safetensors", "--output", "out"], "No model file"),
        (["evaluate", "--predictions", "no", "--labels", "no"], "No such folder: no"),
        (["convert", "no.pt", "--output", "x.safetensors"], "No checkpoint file no.pt"),
    ],
)
def test_errors_are_one_clean_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("vimunet: error: ")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_unknown_model_name_lists_the_known(pairs, capsys):
    data = ["--images", str(pairs / "images"), "--labels", str(pairs / "labels")]
    assert main(["train", *data, "--model", "vimunet", "--output", str(pairs / "run")]) == 2
    error = capsys.readouterr().err
    assert "`--model` must be a network or a model to continue from, got 'vimunet'." in error
    assert "vim_t" in error
    assert "nuclei" in error


def test_segment_without_a_model_lists_them(pairs, capsys):
    assert main(["segment", str(pairs / "images")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vimunet: error: `--model` must be chosen.")
    for name, purpose in embedded_models().items():
        assert f"  {name:<10} {purpose}" in error


@pytest.mark.parametrize("name", embedded_models())
def test_segment_by_name(name, samples, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = next((samples / name / "test" / "images").iterdir())
    assert main(["segment", str(image), "--model", name]) == 0
    labels = tifffile.imread(tmp_path / "segmented" / f"{image.stem}.tif")
    assert (labels == segment(read_image(image), load_model(name))).all()


def test_usage_errors_and_interrupts_have_their_own_codes(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit) as done:
        main(["segment"])
    assert done.value.code == 2

    def interrupted(name, directory):
        raise KeyboardInterrupt

    monkeypatch.setattr("vimunet.datasets.download.download", interrupted)
    assert main(["data", "cremi", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("vimunet: interrupted\n")

    def diverged(name, directory):
        raise FloatingPointError("Loss must be finite, got nan.")

    monkeypatch.setattr("vimunet.datasets.download.download", diverged)
    assert main(["data", "cremi", str(tmp_path)]) == 1


def test_output_may_be_cut_off(pairs):
    folders = ["--predictions", str(pairs / "labels"), "--labels", str(pairs / "labels")]
    code = (
        "import sys\nfrom vimunet.cli import main\n"
        f"sys.exit(main(['evaluate', '--json', *{folders!r}]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert errors == ""
    assert process.returncode == 1


def test_objects_are_measured(pairs, tmp_path, capsys):
    cells = [read_image(pairs / "images" / f"cell{i}.png") for i in range(3)]
    for number in range(3):
        labels = read_labels(pairs / "labels" / f"cell{number}.tif")
        place = Place.of(2, [0.5, 0.5], None, ["micrometer"] * 2) if number else None
        write_label_tiff(pairs / "labels" / f"cell{number}.tif", labels, place)
    command = ["measure", "--labels", str(pairs / "labels"), "--csv", str(tmp_path / "a.csv")]
    assert main([*command, "--images", str(pairs / "images")]) == 0
    with (tmp_path / "a.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert f"{len(rows)} objects of 3 images" in capsys.readouterr().out
    for number, cell in enumerate(cells):
        labels = read_labels(pairs / "labels" / f"cell{number}.tif")
        mine = [row for row in rows if row["image"] == f"cell{number}"]
        assert [int(row["label"]) for row in mine] == list(np.unique(labels[labels > 0]))
        for row in mine:
            inside = labels == int(row["label"])
            assert float(row["mean_intensity"]) == pytest.approx(cell[inside].mean(), rel=1e-6)
            known, unknown = ("area_um2", "area_px2")[:: 1 if number else -1]
            assert float(row[known]) == pytest.approx(inside.sum() * (0.25 if number else 1))
            assert row[unknown] == ""
    assert main(command) == 2
    assert "exists already. Replace it with --overwrite" in capsys.readouterr().err
    (pairs / "images" / "cell1.png").unlink()
    assert main([*command, "--overwrite", "--images", str(pairs / "images")]) == 2
    assert "must have an image for all labels, lacks cell1." in capsys.readouterr().err
