"""The experiments: splits that do not mix, scores, commands as they are typed, and what is kept."""

import csv
import json
import runpy
import sys
from importlib import util
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

pytest.importorskip("lightning_fabric")

from vimunet.cli import experiment
from vimunet.datasets.splits import DATASETS, find_dataset
from vimunet.datasets.synapse import resize
from vimunet.io.pairs import Sample, find_pairs
from vimunet.models import Network, build_model
from vimunet.representations import Boundaries, Distances, Semantic
from vimunet.scores.classes import dice_and_iou, evaluate_semantic
from vimunet.scores.objects import evaluate_objects
from vimunet.scores.statistics import confidence_interval, mean_defined
from vimunet.segmentation.model_file import TrainedModel, load_model, save_model
from vimunet.segmentation.predict import predict
from vimunet.segmentation.segment import segment
from vimunet.training import scoring
from vimunet.training.run_folder import code_commit

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.fixture
def load(monkeypatch):
    """Import a script of the experiments, with its folder on the path as when it is run."""

    def load(name):
        monkeypatch.syspath_prepend(str(EXPERIMENTS))
        monkeypatch.delitem(sys.modules, "keep", raising=False)
        spec = util.spec_from_file_location(Path(name).stem, EXPERIMENTS / name)
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run(monkeypatch):
    """Run a script as from the command line; give its exit code."""

    def run(name, *arguments):
        script = EXPERIMENTS / name
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        return ended.value.code

    return run


def read_rows(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def names(samples):
    return {sample.name for sample in samples}


def write_pairs(images, masks, numbers, ending=""):
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(images / f"ISIC_{i:07d}.png")
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(masks / f"ISIC_{i:07d}{ending}.png")


def parts_of(dataset, root):
    return {split: names(DATASETS[dataset].read(root, split)) for split in ("train", "val", "test")}


def test_splits_of_the_original_folders(tmp_path):
    for part, numbers in (("Training", range(90)), ("Validation", range(90, 100))):
        write_pairs(
            tmp_path / f"ISIC2018_Task1-2_{part}_Input",
            tmp_path / f"ISIC2018_Task1_{part}_GroundTruth",
            numbers,
            "_segmentation",
        )
    parts = parts_of("isic", tmp_path)
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 63,
        "val": 7,
        "test": 30,
    }
    assert len(set.union(*parts.values())) == 100  # none is in two


def test_splits_of_the_prepared_folders(tmp_path):
    write_pairs(tmp_path / "train" / "images", tmp_path / "train" / "masks", range(20))
    write_pairs(tmp_path / "val" / "images", tmp_path / "val" / "masks", range(20, 28))
    parts = parts_of("isic", tmp_path)
    assert {split: len(part) for split, part in parts.items()} == {"train": 18, "val": 2, "test": 8}
    assert parts["test"] == {f"ISIC_{i:07d}" for i in range(20, 28)}  # what is reported, no more


def test_splits_of_the_stand_in(shared_data):
    parts = parts_of("isic_sample", shared_data)
    sizes = {split: len(part) for split, part in parts.items()}
    assert sizes == {"train": 540, "val": 60, "test": 150}
    assert len(set.union(*parts.values())) == 750
    assert parts == parts_of("isic_sample", shared_data)  # always the same


def test_splits_of_synapse(tmp_path):
    read = DATASETS["synapse"].read
    (tmp_path / "train_npz").mkdir()
    for case in (5, 6, 7, 9):
        for z in range(3):
            name = f"case{case:04d}_slice{z:03d}.npz"
            np.savez(tmp_path / "train_npz" / name, image=np.zeros((4, 4)), label=np.zeros((4, 4)))
    train, val = (read(tmp_path, split) for split in ("train", "val"))
    assert {name.split("_")[0] for name in names(train)} == {"case0005", "case0006"}
    assert {name.split("_")[0] for name in names(val)} == {"case0007", "case0009"}
    assert len(train) == len(val) == 6
    for file in (tmp_path / "train_npz").glob("case000[67]*"):
        file.unlink()
    with pytest.raises(ValueError, match="must have more than 2 cases, got case0005, case0009"):
        read(tmp_path, "train")


class Brightness(Network):
    """Finds what is brighter than the mean of the image."""

    in_channels, stride = 1, (1, 1)

    def __init__(self, maps=1):
        super().__init__()
        self.out_channels = maps
        self.config = {"model": "unet", "model_args": {"features": 4, "depth": 1}}

    def forward(self, image):
        """The same for the first map; there is no boundary."""
        return image if self.out_channels == 1 else (image * image.new_tensor([[[[1]], [[0]]]])) - 9


def squares(i):
    """A bright square of class 1 and a dimmer one beside it, that is background."""
    image, labels = np.zeros((20, 24)), np.zeros((20, 24), int)
    image[4:10, 3 : 8 + i] = 10
    labels[4:10, 3 : 8 + i] = 1
    image[13:16, 15:20] = 4
    return Sample(f"squares{i}", lambda: (image, labels))


def test_report_of_classes(tmp_path):
    """The numbers in the files are those of the functions, for the tuned threshold too."""
    model = TrainedModel(Brightness(), Semantic(), info={"training_data": "squares"})
    val, test = [squares(0), squares(1)], [squares(2), squares(3), squares(4)]
    summary = scoring.score_model(model, val, test, tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["test"]["tuned"]["mean"] == summary["test"]["tuned"]["mean"]
    threshold = summary["tuned"]["foreground_threshold"]
    assert threshold > 0.5  # to leave the dimmer square out
    for name, used, protocol in (
        ("default", 0.5, "fair"),
        ("tuned", threshold, "fair"),
        ("published", 0.5, "published"),
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
        if name != "published":
            assert found["mean"]["Dice"] == pytest.approx(np.mean([row["Dice"] for row in rows]))
            assert found["mean"]["HD95"] == mean_defined(np.array([row["HD95"] for row in rows]))
        kept = [
            float(row["Dice"])
            for row in read_rows(tmp_path / "images.csv")
            if (row["split"], row["recipe"]) == ("test", name)
        ]
        assert kept == pytest.approx([row["Dice"] for row in rows])
    assert summary["test"]["tuned"]["mean"]["Dice"] > summary["test"]["default"]["mean"]["Dice"]
    assert summary["test"]["ceiling"]["micro"]["Dice"] == 1
    assert len(list((tmp_path / "test").glob("*.png"))) == 3


def test_report_of_objects(tmp_path, samples):
    """The numbers are those of the functions: of each recipe, each kind, and the tidied labels."""
    model = load_model("nuclei")
    folder = samples / "nuclei" / "test"
    pictures = [cropped(sample) for sample in find_pairs(folder / "images", folder / "labels")[:4]]
    summary = scoring.score_model(
        TrainedModel(model.network, Boundaries(seed_threshold=0.9, min_size=400), info=model.info),
        pictures[:2],
        pictures[2:],
        tmp_path,
        kind_of=lambda image: "dark" if image.mean() < 60 else "bright",
        tidied=lambda labels: np.where(labels > 5, labels, 0),
    )
    default = Boundaries()
    tuned = load_model(tmp_path / "tuned.safetensors").representation
    assert summary["tuned"] == tuned.config()
    assert tuned.min_size == default.min_size  # not that of the model
    only = {"published": default.published(), "default": default, "tuned": tuned}
    for split, chosen, tidy in (
        ("val", pictures[:2], lambda labels: labels),
        ("test", pictures[2:], lambda labels: labels),
        ("test_tidied", pictures[2:], lambda labels: np.where(labels > 5, labels, 0)),
    ):
        for recipe in (*only, "ceiling"):
            scores = []
            for sample in chosen:
                image, labels = sample.read()
                labels = tidy(labels)
                maps = default.encode(labels) if recipe == "ceiling" else predict(image, model)
                scores.append(evaluate_objects(only.get(recipe, default).decode(maps), labels))
            for name in ("mSA", "SA50"):
                values = [score[name] for score in scores]
                assert summary[split][recipe]["mean"][name] == pytest.approx(np.mean(values))
                ends = summary[split][recipe]["confidence"][name]
                assert ends == pytest.approx(confidence_interval(values))
    kinds = summary["test"]["tuned"]["kinds"]
    assert sum(kind["images"] for kind in kinds.values()) == 2
    rows = read_rows(tmp_path / "scores.csv")
    assert len(rows) == 3 * 4 + sum(
        len(summary[split][recipe]["kinds"])
        for split in ("val", "test", "test_tidied")
        for recipe in (*only, "ceiling")
    )
    first = next(row for row in rows if (row["split"], row["recipe"]) == ("test", "tuned"))
    assert float(first["mSA"]) == summary["test"]["tuned"]["mean"]["mSA"]
    low, high = summary["test"]["tuned"]["confidence"]["mSA"]
    assert (float(first["mSA low"]), float(first["mSA high"])) == (low, high)


def cropped(sample):
    image, labels = sample.read()
    return Sample(sample.name, lambda: (image[:128, :128], labels[:128, :128]))


@pytest.mark.parametrize(
    "form", [Boundaries(foreground=False), Distances(), Semantic(), Semantic(4)], ids=repr
)
def test_thresholds_of_a_model_do_not_matter_to_its_scores(form):
    changed = form.tuned(**{tunable.field: tunable.high for tunable in form.tunable})
    assert changed != form or not form.tunable
    assert scoring.untuned(changed) == form


def write_volume(root, rng):
    """A volume of Synapse with a box of organ 1."""
    labels = np.zeros((3, 20, 24))
    labels[1:, 3:15, 6:18] = 1
    image = labels * 5 + rng.normal(0, 0.1, labels.shape)
    (root / "test_vol_h5").mkdir(parents=True)
    with h5py.File(root / "test_vol_h5" / "case0001.npy.h5", "w") as file:
        file["image"], file["label"] = image, labels
    return image, labels.astype(int)


def test_volumes_are_segmented_slice_by_slice_and_scored_whole(tmp_path, rng):
    model = TrainedModel(Brightness(), Semantic())
    image, labels = write_volume(tmp_path, rng)
    volumes = DATASETS["synapse"].read(tmp_path, "test")
    (predicted,) = scoring.predict_samples(model, volumes, slice_size=40)
    found = predicted.decoded(model.representation)
    assert found.shape == image.shape
    for z in range(3):
        small = segment(resize(image[z].astype(np.float32), (40, 40), order=3), model)
        np.testing.assert_array_equal(found[z], resize(small, (20, 24), order=0))
    assert dice_and_iou(found[1:], labels[1:])[0] > 0.95
    perfect = predicted.perfect(model.representation)
    for z in range(3):  # what is lost by the size alone
        again = resize(resize(labels[z], (40, 40), order=0), (20, 24), order=0)
        np.testing.assert_array_equal(perfect[z], again)
    summary = scoring.score_model(model, [squares(0)], volumes, tmp_path / "scores", slice_size=40)
    expected = evaluate_semantic(found, labels)
    assert summary["test"]["default"]["mean"]["Dice"] == pytest.approx(expected["Dice"])
    assert summary["test"]["default"]["mean"]["HD95"] == pytest.approx(expected["HD95"])
    published = evaluate_semantic(found, labels, protocol="published")
    assert summary["test"]["published"]["mean"]["mIoU"] == pytest.approx(published["mIoU"])


def test_objects_of_slices_are_not_those_of_a_volume(rng):
    volume = Sample("cube", lambda: (rng.normal(size=(3, 16, 16)), np.ones((3, 16, 16), int)))
    model = TrainedModel(Brightness(2), Boundaries())
    with pytest.raises(ValueError, match="^cube: a model of images must get images with labels"):
        list(scoring.predict_samples(model, [volume]))


def test_samples_are_changed_before_they_are_segmented_and_scored():
    model = TrainedModel(Brightness(), Semantic())

    def double(image, labels):
        return image.repeat(2, axis=0), labels.repeat(2, axis=0)

    plain, changed = (
        next(scoring.segment_samples(model, [squares(1)], change)) for change in (None, double)
    )
    assert changed.found.shape == (40, 24)
    np.testing.assert_array_equal(changed.found, plain.found.repeat(2, axis=0))
    assert changed.scores["TP"] == 2 * plain.scores["TP"]
    expected = evaluate_semantic(plain.found, plain.labels)
    assert plain.scores == expected
    unlabelled = Sample("a", lambda: (np.zeros((8, 8)), None))
    with pytest.raises(ValueError, match="^a: scoring needs labels, this sample has none"):
        list(scoring.segment_samples(model, [unlabelled]))


@pytest.mark.parametrize("dataset", ["livecell", "cremi", "isic", "synapse", *DATASETS])
def test_each_experiment_is_a_data_set_of_that_name(dataset, run, monkeypatch):
    folder = dataset.removesuffix("_sample")
    asked = []
    for command in ("train", "evaluate"):
        monkeypatch.setattr(experiment, command, lambda *call, c=command: asked.append((c, *call)))
        assert run(f"{folder}/{command}.py") is None
    assert asked == [("train", folder), ("evaluate", folder)]
    assert {file.name for file in (EXPERIMENTS / folder).glob("*.py")} >= {
        "train.py",
        "evaluate.py",
    }


SMALL = (
    *("--option", "features=4", "--option", "depth=1", "--crop-size", "32", "--batch-size", "1"),
    *("--iterations", "2", "--val-crops", "1", "--val-scored", "1", "--workers", "0"),
)


def write_livecell(root):
    """Images of two bright cells in the folders and with the annotations of LIVECell."""
    for split, count in (("train", 2), ("val", 1), ("test", 2)):
        part = "livecell_test_images" if split == "test" else "livecell_train_val_images"
        folder = root / "images" / part
        folder.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            name = f"A172_{split}_{i}.tif"
            pixels = np.full((48, 64), 40, np.uint8)
            for left in (6, 36):
                pixels[8:28, left : left + 18] = 200
                right, image = left + 18, {"image_id": i, "area": 360, "iscrowd": 0}
                corners = [left, 8, right, 8, right, 28, left, 28]
                annotations.append({"id": len(annotations), "segmentation": [corners], **image})
            tifffile.imwrite(folder / name, pixels)
            images.append({"id": i, "file_name": name, "height": 48, "width": 64})
        file = root / "annotations" / f"livecell_coco_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": annotations}))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_livecell_is_trained_on_and_scored_as_typed(tmp_path, run, monkeypatch, capsys):
    """From the folder that VIMUNET_DATA names, without a word on where anything goes."""
    pytest.importorskip("pycocotools")
    write_livecell(tmp_path / "everything" / "livecell")
    monkeypatch.setenv("VIMUNET_DATA", str(tmp_path / "everything"))
    monkeypatch.chdir(tmp_path)
    assert run("livecell/train.py", "--model", "unet", *SMALL) == 0
    model = load_model(tmp_path / "runs" / "livecell_unet" / "best.safetensors")
    assert model.network.config["model"] == "unet"
    assert model.representation == Boundaries()
    assert model.info["training_data"] == "LIVECell"
    assert model.info["licence"] == "trained on LIVECell, CC BY-NC 4.0: for non-commercial use"
    published = {"optimizer": "adam", "lr": 1e-4, "schedule": "plateau", "rotations": False}
    assert {name: model.info["config"][name] for name in published} == published
    assert model.info["config"]["train_samples"].startswith("2 from A172_train_0 to A172_train_1")

    capsys.readouterr()
    assert run("livecell/evaluate.py", "--model", "unet") == 0
    scores = tmp_path / "runs" / "livecell_unet" / "best_scores"
    rows = {(row["split"], row["recipe"]): row for row in read_rows(scores / "scores.csv")}
    assert list(rows) == [
        (split, recipe)
        for split in ("val", "test")
        for recipe in ("published", "default", "tuned", "ceiling")
    ]
    assert float(rows["test", "ceiling"]["mSA"]) == 1
    assert [row["images"] for row in rows.values()] == ["1"] * 4 + ["2"] * 4
    assert "test         ceiling         2       1.000" in capsys.readouterr().out


def test_stand_ins_are_made_of_several_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("VIMUNET_DATA", str(tmp_path))
    for name in ("livecell", "livecell_sample"):  # the second is a part of the stand-in
        (tmp_path / name).mkdir()
    assert find_dataset("livecell") == tmp_path / "livecell"
    assert find_dataset("livecell_sample") == find_dataset("cremi") == tmp_path


def test_data_that_is_missing_can_be_fetched(tmp_path, run, monkeypatch, capsys):
    monkeypatch.delenv("VIMUNET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run("livecell/train.py", "--model", "vim_s") == 2
    message = capsys.readouterr().err
    assert "No folder data/livecell with LIVECell." in message
    assert "Run `vimunet data livecell data/livecell` to fetch it" in message
    assert run("cremi/train.py") == 2
    assert "Run `vimunet data cremi data/cremi` to fetch it" in capsys.readouterr().err
    assert run("livecell/evaluate.py", "--model", "nuclei") == 2
    assert "Run `vimunet data livecell data/livecell` to fetch it" in capsys.readouterr().err
    assert run("livecell/evaluate.py") == 2
    message = capsys.readouterr().err
    assert "No model runs/livecell_vim_t/best.safetensors. Run `vimunet train --dataset" in message
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dataset", "typed", "meant", "warning"),
    [
        (
            "cremi",
            ["--stand-in", "D", "--lr", "0.1"],
            ["--lr", "0.1", "--dataset", "cremi_sample", "--data", "D"],
            "`--stand-in FOLDER` is now `--dataset cremi_sample --data FOLDER`",
        ),
        ("isic", ["--val-images=5"], ["--val-scored", "5"], "is now `--val-scored NUMBER`"),
        (
            "phase",
            ["--model", "vim_n", "--start", "a.safetensors"],
            ["--model", "vim_n", "--model", "a.safetensors"],
            "`--start FILE` is now `--model FILE`",
        ),
        (
            "cremi",
            ["--representation", "boundaries"],
            ["--representation", "boundary"],
            "of CREMI is now `--representation boundary`",
        ),
    ],
)
def test_old_flags_mean_what_they_meant(dataset, typed, meant, warning):
    with pytest.warns(FutureWarning, match=warning):
        assert experiment.renewed(dataset, typed) == meant


def test_new_flags_stay_as_they_are(recwarn):
    typed = ["--zoom", "0.5", "2", "--val-images", "folder", "--representation", "boundaries"]
    assert experiment.renewed("livecell", typed) == typed
    assert not recwarn.list


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "phase", "--labels", "x"], "`--labels` must not come with --dataset"),
        (["--labels", "x", "--model", "y"], "`--model` must come with --dataset"),
        ([], "Give --predictions and --labels, or a model and a public data set"),
    ],
)
def test_flags_that_do_not_go_together(arguments, message, capsys):
    from vimunet.cli import main

    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err


def train_isic(shared_data, output, *arguments):
    """Run the command of the ISIC experiment on real images, with a small UNet."""
    data = ["--dataset", "isic_sample", "--data", str(shared_data), "--output", str(output)]
    small = ["--model", "unet", "--option", "features=8"]
    assert experiment.train("isic", [*data, *small, *arguments]) == 0
    return json.loads((output / "config.json").read_text())


def test_the_defaults_are_the_published_recipe(shared_data, tmp_path, capsys):
    small = ["--crop-size", "32", "--batch-size", "1", "--iterations", "1", "--val-scored", "1"]
    settings = train_isic(shared_data, tmp_path / "run", *small)
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
def test_lesions_are_learnt_in_a_few_iterations(shared_data, tmp_path):
    """Far better than calling every pixel a lesion."""
    small = ["--crop-size", "128", "--batch-size", "4", "--iterations", "60", "--val-scored", "8"]
    train_isic(shared_data, tmp_path / "run", *small)
    model = load_model(tmp_path / "run" / "best.safetensors")
    val = DATASETS["isic_sample"].read(shared_data, "val")
    chosen = [val[i * len(val) // 8].read()[1] for i in range(8)]
    everything = np.mean([dice_and_iou(np.ones_like(labels), labels)[0] for labels in chosen])
    assert model.info["val_Dice"] > everything + 0.1


def test_kept_runs_have_a_row_for_all_that_was_scored(tmp_path, load, monkeypatch):
    """In tables that hold other runs already; kept again, a run replaces itself."""
    keep = load("keep.py")
    run, results = tmp_path / "run", tmp_path / "results"
    config = {"model": "unet", "seed": 3, "representation": {"name": "semantic"}, "zoom": [1, 2]}
    origin = {"training_data": "Usiigaci", "licence": "MIT", "version": "1", "commit": "a" * 40}
    info = {**origin, "iteration": 50, "config": config}
    model = TrainedModel(Brightness(), Semantic(), info=info)
    scoring.score_model(model, [squares(0)], [squares(1), squares(2)], run)
    lines = [f"{i},{1 / i},0.1,," for i in range(1, 76)]
    (run / "log.csv").write_text("\n".join(["iteration,loss,lr,val_loss,val_Dice", *lines]))
    other = {"experiment": "e", "run": "before", "seed": 1, "extra": "x"}
    keep.put_rows(results / "runs.csv", [other])
    for _ in range(2):
        arguments = ["name", "--run", run, "--scores", run, "--experiment", "e"]
        monkeypatch.setattr(
            sys, "argv", ["keep.py", *map(str, arguments), "--results", str(results)]
        )
        keep.main()
    first, second = read_rows(results / "runs.csv")
    assert (first["run"], first["extra"], first["zoom"]) == ("before", "x", "")
    assert (second["run"], second["data"], second["seed"]) == ("name", "phase", "3")
    assert json.loads(second["zoom"]) == [1, 2]
    assert second["commit"] == "a" * 40
    rows = read_rows(results / "class_scores.csv")
    assert [(row["split"], row["recipe"]) for row in rows] == [
        (split, recipe)
        for split in ("val", "test")
        for recipe in ("published", "default", "tuned", "ceiling")
    ]
    summary = json.loads((run / "summary.json").read_text())
    assert float(rows[6]["micro IoU"]) == pytest.approx(summary["test"]["tuned"]["micro"]["IoU"])
    assert rows[0]["representation"] == "semantic"
    images = read_rows(results / "class_images.csv")
    assert [row["image"] for row in images] == ["squares0", "squares1", "squares2"]
    logs = read_rows(results / "training_logs.csv")
    assert [row["iteration"] for row in logs] == ["25", "50", "75"]
    assert float(logs[1]["loss"]) == 0.02


def test_the_boundary_alone_has_a_name_of_its_own(load):
    keep = load("keep.py")
    assert keep.name_of(Boundaries(foreground=False).config()) == "boundary"
    assert keep.name_of(Boundaries().config()) == "boundaries"
    assert keep.name_of(Semantic(9).config()) == "semantic"


def test_all_that_is_kept_can_be_read(load):
    """Each run has its settings and its scores; the images are those that are in the scores."""
    keep = load("keep.py")
    tables = {file.stem: read_rows(file) for file in keep.RESULTS.glob("*.csv")}
    runs = {(row["experiment"], row["run"]) for row in tables["runs"]}
    assert len(runs) == len(tables["runs"])
    scored = [*tables["scores"], *tables["class_scores"]]
    assert {(row["experiment"], row["run"]) for row in scored} == runs
    for table in ("images", "class_images"):
        counts = {}
        for row in tables[table]:
            place = (row["experiment"], row["run"], row["split"], row["recipe"])
            counts[place] = counts.get(place, 0) + 1
        for row in scored:
            place = (row["experiment"], row["run"], row["split"], row["recipe"])
            if not row["kind"] and place in counts:
                assert counts.pop(place) == int(row["images"])
        assert not counts
    assert {(row["experiment"], row["run"]) for row in tables["training_logs"]} < runs


def test_ceilings_of_every_representation(tmp_path, load, monkeypatch, samples):
    """A table with a row for each that there is; those without background only of EM."""
    script = load("ceilings.py")
    folders = {"nuclei": ["nuclei/test/labels"], "EM": ["neurites/test/labels"]}
    monkeypatch.setattr(script, "FOLDERS", folders)
    monkeypatch.setattr(script, "read_labels", lambda file: tifffile.imread(file)[:96, :96])
    table = tmp_path / "ceilings.csv"
    arguments = ["ceilings.py", "--data", str(samples), "--output", str(table)]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    rows = {(row["data_set"], row["representation"]): row for row in read_rows(table)}
    assert {name for data, name in rows if data == "nuclei"} >= {"boundaries", "distances"}
    assert ("nuclei", "boundary") not in rows
    row = rows["EM", "boundary"]
    form = Boundaries(foreground=False)
    scores = {"default": [], "published": []}
    for file in sorted((samples / "neurites" / "test" / "labels").glob("*")):
        labels = tifffile.imread(file)[:96, :96]
        for name, way in (("default", form), ("published", form.published())):
            found = way.decode(way.encode(labels))
            score = evaluate_objects(found, labels, labelled_pixels_only=True)["mSA"]
            scores[name].append(score)
    for name, values in scores.items():
        assert float(row[name]) == pytest.approx(np.mean(values), abs=1e-4)
    assert row["images"] == "3"
    assert row["commit"] == code_commit()


def test_shipped_models_are_small_enough(tmp_path, load):
    ship = load("ship.py").ship
    network = build_model("unet", features=4, depth=1)
    file = tmp_path / "tuned.safetensors"
    save_model(file, TrainedModel(network, Boundaries(), info={"licence": "MIT"}))
    shipped = load_model(ship(file, tmp_path / "small.safetensors", "to try"))
    assert shipped.info == {"licence": "MIT", "purpose": "to try"}
