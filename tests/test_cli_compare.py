"""`vimunet compare` and `vimunet convert nnunet`, from files to files."""

import argparse
import csv
import html
import json
import re
import sys

import numpy as np
import pytest
import tifffile

from vimunet.bridges.nnunet import to_classes
from vimunet.cli import compare, main
from vimunet.comparison.report import MOST_IMAGES
from vimunet.io.pairs import find_pairs


@pytest.fixture
def cells(tmp_path, samples):
    """Two shipped images with labels, and the predictions of three tools."""
    pairs = find_pairs(samples / "phase" / "test" / "images", samples / "phase" / "test" / "labels")
    for folder in ("images", "labels", "cellpose", "nnunet", "plain"):
        (tmp_path / folder).mkdir()
    for number, sample in enumerate(pairs):
        image, labels = (array[:160, :160] for array in sample.read())
        labels = labels.astype(np.uint16)
        tifffile.imwrite(tmp_path / "images" / f"{number}.tif", image)
        tifffile.imwrite(tmp_path / "labels" / f"{number}.tif", labels)
        tifffile.imwrite(
            tmp_path / "cellpose" / f"{number}_cp_masks.tif", np.roll(labels, 2, axis=1)
        )
        tifffile.imwrite(tmp_path / "nnunet" / f"{number}.tif", to_classes(labels))
        if number:
            tifffile.imwrite(tmp_path / "plain" / f"{number}.tif", labels * 0)
    classes = {"labels": {"background": 0, "interior": 1, "boundary": 2}}
    (tmp_path / "nnunet" / "dataset.json").write_text(json.dumps(classes))
    return tmp_path


def compared(folder, *options):
    methods = [f"{name}={folder / name}" for name in ("cellpose", "nnunet")]
    return main(
        ["compare", *methods, str(folder / "plain"), "--labels", str(folder / "labels")]
        + ["--output", str(folder / "out"), *options]
    )


def test_compare_says_at_once_that_matplotlib_is_missing(cells, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    for name in ("vimunet.comparison.figure", "vimunet.comparison.report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert compared(cells) != 0
    assert "pip install 'vimunet[benchmark]'" in capsys.readouterr().err
    assert not (cells / "out").exists()


def test_regions_that_others_cover_are_told(cells, capsys):
    roifile = pytest.importorskip("roifile")
    square = np.array([[20, 20], [40, 20], [40, 40], [20, 40]])
    (cells / "imagej").mkdir()
    for number in range(2):
        regions = [roifile.ImagejRoi.frompoints(square + i, name=f"cell {i}") for i in range(2)]
        regions.append(roifile.ImagejRoi.frompoints(square * 2 - 30, name="large"))
        roifile.roiwrite(cells / "imagej" / f"{number}.zip", regions)
    out = ["--labels", str(cells / "labels"), "--output", str(cells / "out")]
    assert main(["compare", str(cells / "imagej"), *out]) == 0
    told = (
        "2 of 3 regions in .*1.zip are lost, because later regions cover them: 'cell 0', 'cell 1'"
    )
    assert re.search(f"imagej: 1: {told}", capsys.readouterr().out)
    assert re.search(told, html.unescape((cells / "out" / "report.html").read_text()))


def test_gallery_is_as_large_as_the_report_makes_it():
    options = argparse.ArgumentParser()
    compare.add_arguments(options)
    assert options.get_default("gallery") == MOST_IMAGES


def test_compare_reads_all_tools_and_writes_everything(cells, capsys):
    code = compared(cells, "--images", str(cells / "images"), "--seconds", "nnunet=0.5")
    assert code == 1  # a file of `plain` is missing
    out = cells / "out"
    assert {file.name for file in out.iterdir()} == {
        "comparison.json",
        "figure.png",
        "figure.svg",
        "images.csv",
        "methods.csv",
        "report.html",
    }
    result = json.loads((out / "comparison.json").read_text())
    tools = {name: method["tool"] for name, method in result["methods"].items()}
    assert tools == {"cellpose": "Cellpose", "nnunet": "nnU-Net", "plain": "label images"}
    assert result["best"] == "nnunet"
    # perfect classes reach the ceiling of the way that they were made
    ceiling = result["ceilings"]["nnU-Net's classes"]["mSA"]
    assert result["methods"]["nnunet"]["mean"]["mSA"] == pytest.approx(ceiling)
    assert result["methods"]["nnunet"]["seconds_per_image"] == 0.5
    assert ceiling > result["ceilings"]["nnU-Net's classes, as published"]["mSA"] + 0.1
    printed = capsys.readouterr().out
    assert "plain: no file; scored as empty: 0" in printed
    assert str(out / "report.html") in printed
    with (out / "images.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6


def test_protocol_paper_reads_classes_as_published(cells):
    assert compared(cells, "--protocol", "published", "--gallery", "0") == 1
    result = json.loads((cells / "out" / "comparison.json").read_text())
    fair = result["ceilings"]["nnU-Net's classes"]["mSA"]
    assert result["methods"]["nnunet"]["mean"]["mSA"] < fair - 0.1


def test_no_other_file_is_replaced_by_a_comparison(cells, capsys):
    (cells / "out").mkdir()
    (cells / "out" / "images.csv").write_text("mine")
    assert compared(cells, "--gallery", "0") == 2
    assert "images.csv exists already" in capsys.readouterr().err
    assert (cells / "out" / "images.csv").read_text() == "mine"


def test_an_earlier_comparison_is_not_replaced_by_chance(cells, capsys):
    assert compared(cells, "--gallery", "0") == 1
    before = (cells / "out" / "report.html").stat().st_mtime_ns
    assert compared(cells, "--gallery", "0") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (cells / "out" / "report.html").stat().st_mtime_ns == before
    assert compared(cells, "--gallery", "0", "--overwrite") == 1
    assert (cells / "out" / "report.html").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=one", "a=cellpose"], "different names, got 'a'"),
        (["=one"], "different names, got ''"),
        (["a=missing"], "predictions of 'a': missing does not exist"),
        (["a=labels/1.tif"], "is no folder"),
        (["a=labels"], "must not be the folder of labels"),
        (["a=one", "--images", "nosuch"], "No such folder: nosuch"),
        (["a=one", "--gallery", "-1"], "`--gallery` must not be negative, got -1"),
        (["a=one", "--output", "one"], "`--output` must be a folder of its own"),
        (["a=one", "--seconds", "a=inf"], "NAME=SECONDS, got 'a=inf'"),
        (["a=one", "--seconds", "5"], "NAME=SECONDS, got '5'"),
        (["a=one", "--seconds", "a=fast"], "NAME=SECONDS, got 'a=fast'"),
        (["a=one", "--seconds", "b=1"], "`seconds` must name methods"),
    ],
)
def test_wrong_arguments_of_compare(cells, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(cells)
    (cells / "plain").rename(cells / "one")
    assert main(["compare", *arguments, "--labels", "labels"]) == 2
    assert message in capsys.readouterr().err
    assert not (cells / "comparison").exists()


def test_convert_nnunet_writes_a_data_set(cells, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    folders = ["--images", str(cells / "images"), "--labels", str(cells / "labels")]
    target = ["--output", str(cells / "raw"), "--id", "7", "--name", "Cells"]
    assert main(["convert", "nnunet", *folders, *target, "--test-images", folders[1]]) == 0
    dataset = cells / "raw" / "Dataset007_Cells"
    assert len(list((dataset / "labelsTr").iterdir())) == 2
    assert len(list((dataset / "imagesTs").iterdir())) == 2
    assert "2 images to train on, 0 to validate, 2 to predict" in capsys.readouterr().out
    assert main(["convert", "nnunet", *folders, *target]) == 2
    assert str(dataset) in capsys.readouterr().err


def test_convert_still_takes_checkpoints(tmp_path, capsys):
    missing = tmp_path / "nnunet"
    assert main(["convert", str(missing), "--output", str(tmp_path / "model.safetensors")]) == 2
    assert str(missing) in capsys.readouterr().err


def test_ceilings_of_nnunet_are_only_shown_for_its_classes(cells):
    arguments = ["compare", str(cells / "cellpose"), "--labels", str(cells / "labels")]
    assert main([*arguments, "--output", str(cells / "out"), "--gallery", "0"]) == 0
    result = json.loads((cells / "out" / "comparison.json").read_text())
    assert list(result["ceilings"]) == ["foreground and boundary maps", "distance maps"]
