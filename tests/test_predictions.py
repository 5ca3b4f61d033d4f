"""Folders of other tools: which tool wrote them, which files count, and what is in them."""

import json
import pickle
import shutil

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from vimunet.bridges.imagej import write_rois
from vimunet.bridges.predictions import open_predictions

IMAGE = np.arange(48, dtype=np.uint8).reshape(6, 8)


def labels(number=7):
    """One object, numbered so that the files of a test can be told apart."""
    found = np.zeros((6, 8), np.uint16)
    found[1:4, 2:6] = number
    return found


def put(folder, *names, number=7):
    """Write labels, or an image if the name ends in `!`, in the format of the name."""
    folder.mkdir(exist_ok=True)
    for name in names:
        path, array = folder / name.rstrip("!"), IMAGE if name.endswith("!") else labels(number)
        if path.name.endswith("_seg.npy"):
            np.save(path, {"masks": array, "filename": "/data/x.tif"})
        elif path.suffix == ".npy":
            np.save(path, array)
        elif path.suffix == ".png":
            Image.fromarray(array).save(path)
        elif path.suffix == ".jpg":
            Image.fromarray(IMAGE).save(path)
        elif path.suffix == ".h5":
            with h5py.File(path, "w") as file:
                file["labels"] = array
        elif path.suffix == ".zip":
            write_rois(path, array)
        elif path.suffix in (".txt", ".csv"):
            path.write_text("nothing")
        else:
            tifffile.imwrite(path, array)
    return folder


def found_in(folder):
    predictions = open_predictions(folder)
    return predictions.tool, {name: file.name for name, file in predictions.files.items()}


@pytest.mark.parametrize(
    ("names", "tool", "files"),
    [
        (["a.tif", "b.tif"], "label images", {"a": "a.tif", "b": "b.tif"}),
        (["a.ome.tif", "b.png", "c.npy", "d.h5"], "label images", {"a": 0, "b": 0, "c": 0, "d": 0}),
        (["a_masks.tif", "b_masks.tif"], "label images", {"a": "a_masks.tif", "b": "b_masks.tif"}),
        (
            ["a_label.tiff", "b_labels.png"],
            "label images",
            {"a": "a_label.tiff", "b": "b_labels.png"},
        ),
        (["a.tif!", "a_masks.tif"], "label images", {"a": "a_masks.tif"}),
        (["a_masks.tif", "a_mask.tif"], "label images", {"a_mask": "a_mask.tif", "a_masks": 0}),
        (["_masks.tif"], "label images", {"_masks": "_masks.tif"}),
        (["a.tif", "a.jpg", "a.txt"], "label images", {"a": "a.tif"}),
        (["cell10.tif", "cell2.tif"], "label images", {"cell2": 0, "cell10": 0}),
        (["a_cp_masks.tif"], "Cellpose", {"a": "a_cp_masks.tif"}),
        (["a_cp_masks.png", "b_cp_masks.png"], "Cellpose", {"a": 0, "b": 0}),
        (["a.ome_cp_masks.tif", "iso.27_seg.npy"], "Cellpose", {"a": 0, "iso.27": 0}),
        (
            ["a.tif!", "a_seg.npy", "a_cp_masks.tif", "a_cp_masks.png", "a_rois.zip", "b_seg.npy"],
            "Cellpose",
            {"a": "a_cp_masks.tif", "b": "b_seg.npy"},
        ),
        (["a.tif!", "b.png!", "a_cp_masks.png", "a_seg.npy"], "Cellpose", {"a": "a_cp_masks.png"}),
        (["a_cp_masks.png", "a_masks.tif", "a.tif!"], "Cellpose", {"a": "a_cp_masks.png"}),
        (
            ["a_cp_masks.png", "a_flows_cp_masks.tif!", "a_dP_cp_masks.tif!"]
            + ["a_cp_output_cp_masks.png!", "a_outlines_cp_masks.png!", "a_cp_outlines.txt"],
            "Cellpose",
            {"a": "a_cp_masks.png"},
        ),
        (["my_flows_cp_masks.tif"], "Cellpose", {"my_flows": "my_flows_cp_masks.tif"}),
        (["a.stardist.tif", "b.stardist.tif"], "StarDist", {"a": 0, "b": 0}),
        (["a.tif!", "b.tif!", "a.stardist.tif", "a.zip"], "StarDist", {"a": "a.stardist.tif"}),
        (["a.zip", "b_rois.zip", "c_RoiSet.zip"], "ImageJ ROIs", {"a": 0, "b": 0, "c": 0}),
        (["a.tif!", "a.zip", "a_rois.zip"], "ImageJ ROIs", {"a": "a_rois.zip"}),
    ],
)
def test_which_tool_and_which_files(tmp_path, names, tool, files):
    if any(name.endswith(".zip") for name in names):
        pytest.importorskip("roifile")
    folder = put(tmp_path / "found", *names)
    (folder / ".hidden.tif").write_bytes(b"")
    (folder / "deeper").mkdir()
    got_tool, got_files = found_in(folder)
    assert got_tool == tool
    assert list(got_files) == list(files)
    assert {name: file for name, file in got_files.items() if files[name]} == {
        name: file for name, file in files.items() if file
    }
    predictions = pickle.loads(pickle.dumps(open_predictions(folder)))
    for name in predictions.files:
        read = predictions.read(name, (6, 8))
        assert read.dtype.kind in "iu"
        np.testing.assert_array_equal(read, labels())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a_cp_masks.png", "b.stardist.tif"], "Cellpose: a_cp_masks.png; StarDist: b.stardist"),
        (["a_cp_masks.png", "b.zip"], "Cellpose: a_cp_masks.png; ImageJ ROIs: b.zip"),
        (["a_cp_masks.png", "b_label.tif"], "1 of Cellpose, and 1 other files .*: b_label.tif"),
        (["a.stardist.tif", "b_masks.tif"], "1 of StarDist, and 1 other files .*: b_masks.tif"),
        (["a.zip", "b.tif!"], "1 of ImageJ ROIs, and 1 other files that may be labels: b.tif"),
        (["a.tif!", "b.tif!", "a_masks.tif"], "got a_masks.tif beside a.tif, b.tif"),
        (["a.tif", "a.png", "b.png"], r"unique without their extension, got:\n  a\.png\n  a\.tif"),
    ],
)
def test_folders_that_could_mean_two_things(tmp_path, names, message):
    pytest.importorskip("roifile")
    with pytest.raises(ValueError, match=message):
        open_predictions(put(tmp_path / "found", *names))


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such folder: .*nowhere"):
        open_predictions(tmp_path / "nowhere")
    (tmp_path / "a.tif").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"No such folder: .*a\.tif"):
        open_predictions(tmp_path / "a.tif")
    for names in ([], ["a.txt"], ["a.jpg"]):
        folder = put(tmp_path / f"found{len(names)}", *names)
        with pytest.raises(FileNotFoundError, match=r"No segmentations in .*Cellpose"):
            open_predictions(folder)


def test_long_lists_are_cut(tmp_path):
    names = [f"{i}.{end}" for i in range(11) for end in ("tif", "png")]
    with pytest.raises(ValueError, match=r"(?s)0\.png\n  0\.tif\n.*9\.tif\n  \.\.\. and 2 more$"):
        open_predictions(put(tmp_path / "found", *names))
    names = ["z.tif!", *(f"{i}_masks.tif" for i in range(12))]
    with pytest.raises(ValueError, match=r"0_masks.*4_masks\.tif and 7 more beside z\.tif"):
        open_predictions(put(tmp_path / "both", *names))


@pytest.mark.parametrize(
    ("names", "empty"),
    [
        (["a_cp_masks.png"], True),
        (["a_cp_masks.tif"], False),  # Cellpose writes a TIFF file without objects
        (["a_cp_masks.png", "a_seg.npy"], False),  # and a _seg.npy
        (["a.stardist.tif"], False),
        (["a.tif"], False),
    ],
)
def test_missing_files(tmp_path, names, empty):
    predictions = open_predictions(put(tmp_path / "found", *names))
    assert predictions.missing_is_empty is empty
    if empty:
        assert predictions.read("b", (3, 5)).tolist() == np.zeros((3, 5), int).tolist()
    else:
        with pytest.raises(FileNotFoundError, match=r"No segmentation of 'b' by .*Known: a\."):
            predictions.read("b", (3, 5))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_whole_numbers_of_floats_are_labels(tmp_path, dtype):
    folder = put(tmp_path / "found")
    tifffile.imwrite(folder / "a.tif", labels(300).astype(dtype))
    read = open_predictions(folder).read("a", (6, 8))
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, labels(300))


@pytest.mark.parametrize("value", [0.5, -1, np.nan, np.inf, 2.0**60])
def test_other_floats_are_no_labels(tmp_path, value):
    folder = put(tmp_path / "found")
    wrong = labels().astype(np.float32)
    wrong[0, 0] = value
    tifffile.imwrite(folder / "a.tif", wrong)
    with pytest.raises(ValueError, match=r"Labels in .*a\.tif must (be whole|not be neg)"):
        open_predictions(folder).read("a", (6, 8))


def test_files_without_labels(tmp_path):
    folder = put(tmp_path / "found", "a.tif", "b.tif", "c.png", "d.npy", "f.tif")
    predictions = open_predictions(folder)
    tifffile.imwrite(folder / "a.tif", np.zeros((6, 8, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(folder / "f.tif", np.zeros((6, 8, 3), np.float32), photometric="rgb")
    (folder / "b.tif").write_bytes((folder / "b.tif").read_bytes()[:100])
    (folder / "c.png").write_bytes(b"")
    np.save(folder / "d.npy", np.array([1, None], object))
    for name, message in [
        ("a", "colours of shape"),
        ("b", r"b\.tif"),
        ("c", r"c\.png"),
        ("d", r"d\.npy"),
        ("f", "colours of shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            predictions.read(name, (6, 8))
    (folder / "d.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"No such file: .*d\.npy"):
        predictions.read("d", (6, 8))


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.npy", "a_seg.npy", "a.h5"])
def test_cut_off_anywhere(tmp_path, name):
    folder = put(tmp_path / "found", name)
    predictions = open_predictions(folder)
    whole = (folder / name).read_bytes()
    for cut in range(0, len(whole), 1 + len(whole) // 200):
        (folder / name).write_bytes(whole[:cut])
        try:
            predictions.read("a", (6, 8))
        except ValueError as error:
            assert name in str(error)
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=name):
        predictions.read("a", (6, 8))


def test_shape_is_told_to_regions_only(tmp_path):
    pytest.importorskip("roifile")
    predictions = open_predictions(put(tmp_path / "rois", "a.zip"))
    assert predictions.read("a", (5, 10)).shape == (5, 10)
    predictions = open_predictions(put(tmp_path / "labels", "a.tif"))
    assert predictions.read("a", (5, 10)).shape == (6, 8)


def test_nnunet(tmp_path):
    """Interior and boundary of two objects that touch; the rest is `test_bridge_nnunet`'s."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    classes = np.zeros((20, 31), np.uint8)
    classes[2:18, 2:29] = 2
    classes[4:16, 4:14] = classes[4:16, 17:27] = 1
    Image.fromarray(classes).save(folder / "a.png")
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "interior": 1, "boundary": 2}})
    )
    predictions = open_predictions(folder)
    assert (predictions.tool, list(predictions.files)) == ("nnU-Net", ["a"])
    read = predictions.read("a", (20, 31))
    assert len(np.unique(read)) == 3
    assert read[8, 8] != read[8, 22]
    np.testing.assert_array_equal(read > 0, classes > 0)
    with pytest.raises(ValueError, match="protocol"):
        open_predictions(folder, protocol="unknown").read("a", (20, 31))


def test_real_files_of_several_tools(shared_data, tmp_path):
    real = shared_data / "tiny_mixed" / "labels"
    for tool, pattern in [("Cellpose", "*_cp_masks.tif"), ("label images", "neurips_*_label.tiff")]:
        folder = tmp_path / tool
        folder.mkdir()
        for file in real.glob(pattern):
            shutil.copy(file, folder)
        predictions = open_predictions(folder)
        assert predictions.tool == tool
        assert len(predictions.files) == len(list(folder.iterdir())) > 2
        ending = pattern.rpartition("*")[2]
        for name, file in predictions.files.items():
            assert file.name == name + ending
            np.testing.assert_array_equal(
                predictions.read(name, (0, 0)), tifffile.imread(file).squeeze()
            )
    (tmp_path / "stardist").mkdir()
    shutil.copy(real / "stardist_mask2d.tif", tmp_path / "stardist" / "img2d.stardist.tif")
    predictions = open_predictions(tmp_path / "stardist")
    assert (predictions.tool, list(predictions.files)) == ("StarDist", ["img2d"])
    assert len(np.unique(predictions.read("img2d", (512, 512)))) == 126
    with pytest.raises(ValueError, match=r"got 7 of Cellpose, and 5 other files .*: neurips_cell"):
        open_predictions(real)


@pytest.mark.parametrize("text", ["{", "[]", '{"labels": {"background": 0, "cell": [1, 2]}}'])
def test_classes_are_not_taken_for_objects_when_their_description_is_damaged(tmp_path, text):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 4), np.uint8))
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match="dataset.json"):
        open_predictions(tmp_path)
