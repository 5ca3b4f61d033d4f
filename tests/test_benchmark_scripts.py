"""The scripts of experiments/benchmark, from files to files."""

import html
import json
import shutil
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from vimunet.bridges.nnunet import to_classes
from vimunet.datasets.splits import DATASETS
from vimunet.scores.folders import evaluate

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"
PLANS = ROOT / "tests" / "files" / "nnunet" / "plans.json"


@pytest.fixture
def load(monkeypatch):
    """Import a script of the experiments, with its folder on the path as when it is run."""

    def load(name):
        monkeypatch.syspath_prepend(str((EXPERIMENTS / name).parent))
        spec = util.spec_from_file_location(Path(name).stem, EXPERIMENTS / name)
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("published", None)


@pytest.fixture
def run(load, monkeypatch):
    """Run a script of the benchmark as from the command line."""

    def run(name, *arguments):
        script = load(f"benchmark/{name}")
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return script.main()

    return run


def discs(shape, *circles):
    """Labels 1..n of discs, each (row, column, radius); later ones on top."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.uint8)
    for number, (row, column, radius) in enumerate(circles, 1):
        labels[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = number
    return labels


def textured(labels, rng):
    """Cells as in phase contrast: as bright as the background, but not as even."""
    unevenness = np.where(labels > 0, 12, 1)
    return (100 + unevenness * rng.standard_normal(labels.shape)).astype(np.float32)


def one_to_one(found, labels):
    """Whether each labelled object has one found at IoU of at least 0.75, and none is left."""
    scores = evaluate(found, labels, threshold=0.75)
    return (scores["TP"], scores["FP"], scores["FN"]) == (labels.max(), 0, 0)


def test_textured_cells_are_found_where_they_are(tmp_path, run, rng):
    """Cells apart in one file, two that touch in the other; (y, x) and (y, x, c)."""
    apart = discs((128, 160), (25, 30, 12), (30, 110, 14), (95, 60, 12), (90, 130, 10))
    touching = discs((80, 100), (40, 32, 16), (40, 62, 16))
    images = tmp_path / "images"
    images.mkdir()
    tifffile.imwrite(images / "apart.tif", textured(apart, rng))
    grey = textured(touching, rng)
    colours = np.stack([grey, grey, grey], axis=-1)
    tifffile.imwrite(images / "touching.tif", colours, photometric="rgb")
    run("classical.py", images, "--output", tmp_path / "found")
    assert {file.name for file in (tmp_path / "found").iterdir()} == {"apart.tif", "touching.tif"}
    assert one_to_one(tifffile.imread(tmp_path / "found" / "apart.tif"), apart)
    assert one_to_one(tifffile.imread(tmp_path / "found" / "touching.tif"), touching)


def test_regions_between_dark_membranes_are_found(tmp_path, run, rng):
    """Twelve squares of 40 pixels' side, with membranes of 4 pixels between them."""
    image = rng.normal(180, 3, (120, 160)).astype(np.float32)
    for row in (40, 80):
        image[row - 2 : row + 2] = 60
    for column in (40, 80, 120):
        image[:, column - 2 : column + 2] = 60
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "section.tif", image)
    run("classical.py", tmp_path / "images", "--output", tmp_path / "found", "--neurites")
    squares = np.arange(1, 13).reshape(3, 4).repeat(40, axis=0).repeat(40, axis=1)
    assert one_to_one(tifffile.imread(tmp_path / "found" / "section.tif"), squares)


def test_sigma_decides_which_cells_are_one(tmp_path, run, rng):
    """With a blur as wide as the cells, the neck between two of them is lost."""
    (tmp_path / "images").mkdir()
    touching = discs((80, 100), (40, 36, 12), (40, 58, 12))
    tifffile.imwrite(tmp_path / "images" / "a.tif", textured(touching, rng))
    for sigma, count in (("1", 2), ("8", 1)):
        output = tmp_path / sigma
        run("classical.py", tmp_path / "images", "--output", output, "--sigma", sigma)
        assert tifffile.imread(output / "a.tif").max() == count


@pytest.mark.parametrize("options", [[], ["--neurites"]], ids=["cells", "neurites"])
def test_nothing_is_found_in_a_uniform_image(tmp_path, run, options):
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "empty.tif", np.full((50, 60), 7, np.uint8))
    run("classical.py", tmp_path / "images", "--output", tmp_path / "found", *options)
    found = tifffile.imread(tmp_path / "found" / "empty.tif")
    assert found.shape == (50, 60)
    assert not found.any()


def test_a_stack_is_refused_and_not_averaged_over_its_columns(tmp_path, run):
    (tmp_path / "images").mkdir()
    stack = tmp_path / "images" / "stack.tif"
    tifffile.imwrite(stack, np.zeros((5, 40, 48), np.uint8), photometric="minisblack")
    with pytest.raises(ValueError, match=r"stack.tif must be \(y, x\) .* got shape \(5, 40, 48\)"):
        run("classical.py", tmp_path / "images", "--output", tmp_path / "found")
    assert not (tmp_path / "found").exists()


@pytest.fixture
def methods(tmp_path):
    """The arguments of a comparison of two methods on two images."""
    pytest.importorskip("matplotlib")
    labels = discs((64, 64), (16, 16, 8), (40, 44, 10))
    for folder, shift in (("labels", 0), ("shifted", 2), ("far", 5)):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            tifffile.imwrite(tmp_path / folder / f"{name}.tif", np.roll(labels, shift, axis=1))
    return [
        *(f"{name}={tmp_path / name}" for name in ("shifted", "far")),
        *("--labels", tmp_path / "labels", "--output", tmp_path / "comparison"),
    ]


def test_published_numbers_are_beside_the_measured_ones(tmp_path, run, methods):
    assert run("compare.py", *methods, "--published", "LIVECell distances") == 0
    for name in ("figure.svg", "report.html"):
        text = (tmp_path / "comparison" / name).read_text()
        for words in ("published, other data and training", "UNETR Huge", "0.429", "0.397"):
            assert words in text, (name, words)
        assert "U-Mamba Bot" not in text  # not published for distances
    command = "python experiments/benchmark/compare.py --published 'LIVECell distances' shifted="
    assert command in html.unescape((tmp_path / "comparison" / "report.html").read_text())
    result = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert list(result["methods"]) == ["shifted", "far"]
    assert result["best"] == "shifted"


def test_nothing_published_unless_asked_for(tmp_path, run, methods):
    assert run("compare.py", *methods) == 0
    for name in ("figure.svg", "report.html"):
        assert "UNETR" not in (tmp_path / "comparison" / name).read_text()


@pytest.mark.parametrize("text", ["CREMI distances", "LIVECell", "a b c", ""])
def test_what_is_published_is_listed(tmp_path, run, methods, text):
    known = "Known: CREMI boundaries, LIVECell boundaries, LIVECell distances."
    with pytest.raises(ValueError, match=f"^No published mSA for {text!r}. {known}$"):
        run("compare.py", *methods, "--published", text)
    assert not (tmp_path / "comparison").exists()


def added(plans):
    """The configurations that a copy of the planned file has and the original has not."""
    before, after = json.loads(PLANS.read_text()), json.loads(plans.read_text())
    configurations = after.pop("configurations")
    planned = before.pop("configurations")
    assert after == before
    assert {name: configurations.pop(name) for name in planned} == planned
    return configurations


def test_a_configuration_is_added_to_a_plan(tmp_path, run, capsys):
    """32 pixels are halved to 16, 8 and 4: four of the five stages that 64 pixels have."""
    plans = Path(shutil.copy(PLANS, tmp_path / "nnUNetPlans.json"))
    run("nnunet_plan.py", tmp_path, 32, 8)
    assert capsys.readouterr().out == "2d_32x8\n"
    configurations = added(plans)
    assert list(configurations) == ["2d_32x8"]
    configuration = configurations["2d_32x8"]
    architecture = configuration.pop("architecture")
    assert configuration == {"inherits_from": "2d", "patch_size": [32, 32], "batch_size": 8}
    sizes = architecture["arch_kwargs"]
    planned = json.loads(PLANS.read_text())["configurations"]["2d"]["architecture"]
    changed = {
        "n_stages": 4,
        "features_per_stage": [32, 64, 128, 256],
        "kernel_sizes": [[3, 3]] * 4,
        "strides": [[1, 1], [2, 2], [2, 2], [2, 2]],
        "n_conv_per_stage": [2] * 4,
        "n_conv_per_stage_decoder": [2] * 3,
    }
    assert sizes == planned["arch_kwargs"] | changed
    assert architecture == planned | {"arch_kwargs": sizes}


def test_the_planned_patch_can_have_another_batch(tmp_path, run):
    plans = Path(shutil.copy(PLANS, tmp_path / "nnUNetPlans.json"))
    run("nnunet_plan.py", tmp_path, 64, 12)
    run("nnunet_plan.py", tmp_path, 32, 12)
    configurations = added(plans)
    assert list(configurations) == ["2d_64x12", "2d_32x12"]
    planned = json.loads(PLANS.read_text())["configurations"]["2d"]["architecture"]
    assert configurations["2d_64x12"]["architecture"] == planned


def test_plans_of_residual_encoders_are_cut_too(load):
    planned = json.loads(PLANS.read_text())["configurations"]["2d"]
    sizes = planned["architecture"]["arch_kwargs"]
    del sizes["n_conv_per_stage"]
    sizes["n_blocks_per_stage"] = [1, 3, 4, 6, 6]
    found = load("benchmark/nnunet_plan.py").configuration(planned, 16, 2)
    cut = found["architecture"]["arch_kwargs"]
    assert cut["n_blocks_per_stage"] == [1, 3, 4]
    assert "n_conv_per_stage" not in cut
    assert sizes["n_blocks_per_stage"] == [1, 3, 4, 6, 6]  # what was planned stays as it is


@pytest.mark.parametrize(
    ("patch_size", "message"),
    [
        (128, r"no more than the 5 stages planned for \[64, 64\], got 128, which needs 6"),
        (36, "must be divisible by 8, for 4 stages, got 36. Take 32 or 40"),
        (4, "from 8 up, got 4"),
    ],
)
def test_patches_that_no_network_fits(tmp_path, run, patch_size, message):
    plans = Path(shutil.copy(PLANS, tmp_path / "nnUNetPlans.json"))
    with pytest.raises(ValueError, match=message):
        run("nnunet_plan.py", tmp_path, patch_size, 2)
    assert plans.read_text() == PLANS.read_text()


@pytest.fixture
def stand_in(tmp_path):
    """The folders of the stand-ins with tiny images, each of a grey value of its own."""
    livecell = "livecell_sample/images/livecell_{}_images"
    images = {
        "usiigaci/images/train": ("set01.png", "set02.png"),
        "usiigaci/images/val": ("set03.png",),
        livecell.format("train_val"): ("cell_1.tif", "cell_2.tif", "unused.tif"),
        livecell.format("test"): ("cell_3.tif",),
        "vnc_sstem/images": tuple(f"{number:02d}.tif" for number in range(17)),
        "isbi2012/images": ("00.png", "01.png"),
    }
    labels = {
        "usiigaci/labels/train": images["usiigaci/images/train"],
        "usiigaci/labels/val": images["usiigaci/images/val"],
        "livecell_sample/labels/val": ("cell_1.tif", "cell_2.tif"),
        "livecell_sample/labels/test": ("cell_3.tif",),
        "vnc_sstem/labels/instances": images["vnc_sstem/images"],
        "isbi2012/labels/instances": images["isbi2012/images"],
    }
    root = tmp_path / "data"
    greys = {}
    for folder, names in images.items():
        for name in names:
            greys[folder, Path(name).stem] = len(greys) + 1
            write(root / folder / name, np.full((24, 32), len(greys), np.uint8))
    for folder, names in labels.items():
        for number, name in enumerate(names):
            write(root / folder / name, annotated(number))
    return root, greys


def annotated(number):
    """Labels of the image of that number in its folder: an object in a place of its own."""
    labels = np.ones((24, 32), np.uint8)
    labels[4:16, 2 + number : 14 + number] = 2
    return labels


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array)
    else:
        Image.fromarray(array).save(path)


def grey_values(folder):
    """Name -> the one value of each image."""
    return {
        file.name.removesuffix("_0000.tif"): int(np.unique(tifffile.imread(file)).item())
        for file in folder.iterdir()
    }


def test_the_stand_in_for_livecell_is_split_as_for_our_networks(tmp_path, run, stand_in):
    root, greys = stand_in
    run("nnunet_stand_in.py", root, "--output", tmp_path / "runs")
    raw = tmp_path / "runs" / "nnUNet_raw" / "Dataset501_Phase"
    pictures = "livecell_sample/images/livecell_{}_images"
    train = {
        **{name: greys["usiigaci/images/train", name] for name in ("set01", "set02")},
        **{name: greys[pictures.format("train_val"), name] for name in ("cell_1", "cell_2")},
    }
    val = {"set03": greys["usiigaci/images/val", "set03"]}
    assert grey_values(raw / "imagesTr") == train | val
    assert grey_values(raw / "imagesTs") == {"cell_3": greys[pictures.format("test"), "cell_3"]}
    read_by_nnunet = tmp_path / "runs" / "nnUNet_preprocessed" / "Dataset501_Phase"
    folds = json.loads((read_by_nnunet / "splits_final.json").read_text())
    assert len(folds) == 5
    for fold in folds:
        assert (set(fold["train"]), set(fold["val"])) == (set(train), set(val))
    description = json.loads((raw / "dataset.json").read_text())
    assert list(description["labels"]) == ["background", "interior", "boundary"]
    for name, number in (("set01", 0), ("set02", 1), ("cell_1", 0), ("cell_2", 1), ("set03", 0)):
        found = tifffile.imread(raw / "labelsTr" / f"{name}.tif")
        np.testing.assert_array_equal(found, to_classes(annotated(number)))


def test_the_stand_in_for_cremi_is_split_as_for_our_networks(tmp_path, run, stand_in):
    root, greys = stand_in
    run("nnunet_stand_in.py", root, "--output", tmp_path / "runs")
    raw = tmp_path / "runs" / "nnUNet_raw" / "Dataset502_Neurites"
    expected = {
        part: {sample.name for sample in DATASETS["cremi_sample"].read(root, part)}
        for part in ("train", "val", "test")
    }
    assert expected["train"] == {f"{number:02d}" for number in range(13)}
    read_by_nnunet = tmp_path / "runs" / "nnUNet_preprocessed" / "Dataset502_Neurites"
    for fold in json.loads((read_by_nnunet / "splits_final.json").read_text()):
        assert {part: set(fold[part]) for part in ("train", "val")} == {
            part: expected[part] for part in ("train", "val")
        }
    assert grey_values(raw / "imagesTr") == {
        name: greys["vnc_sstem/images", name] for name in expected["train"] | expected["val"]
    }
    assert grey_values(raw / "imagesTs") == {
        name: greys["isbi2012/images", name] for name in expected["test"]
    }
    description = json.loads((raw / "dataset.json").read_text())
    assert list(description["labels"]) == ["background", "boundary"]
    for number in (0, 12, 14):
        found = tifffile.imread(raw / "labelsTr" / f"{number:02d}.tif")
        np.testing.assert_array_equal(found, to_classes(annotated(number), "boundary"))


def test_the_stand_ins_follow_the_protocol_and_relative_paths(tmp_path, run, stand_in, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("nnunet_stand_in.py", "data", "--output", "out", "--protocol", "published")
    for data_set, kind in (("Dataset501_Phase", "boundaries"), ("Dataset502_Neurites", "boundary")):
        folder = Path("out", "nnUNet_raw", data_set)
        assert (
            "protocol published" in json.loads((folder / "dataset.json").read_text())["description"]
        )
        name = "set02" if kind == "boundaries" else "01"
        np.testing.assert_array_equal(
            tifffile.imread(folder / "labelsTr" / f"{name}.tif"),
            to_classes(annotated(1), kind, "published"),
        )
