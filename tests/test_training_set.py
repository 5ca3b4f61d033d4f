"""The training set on disk: what goes in comes out, for any tool, and nothing is lost."""

import numpy as np
import pytest
import tifffile

from vimunet.io.pairs import find_pairs
from vimunet.io.training_set import TrainingSet


@pytest.fixture
def training_set(tmp_path):
    return TrainingSet(tmp_path / "set")


@pytest.fixture
def image(rng):
    return rng.integers(0, 255, (12, 17), dtype=np.uint8)


def some_labels(number=1):
    labels = np.zeros((12, 17), np.int64)
    labels[2:6, 3:9] = number
    return labels


def read(training_set, name):
    return {sample.name: sample.read for sample in training_set.samples()}[name]()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64", ">u2"])
@pytest.mark.parametrize("channels", [None, 2, 3, 4, 5])
def test_what_goes_in_comes_out(training_set, rng, dtype, channels):
    shape = (12, 17) if channels is None else (12, 17, channels)
    image = (1000 * rng.random(shape)).astype(dtype)
    assert training_set.add("cell 7.tif", image, some_labels(70_000)) == "cell_7_tif"
    assert training_set.names() == ["cell_7_tif"]
    found, labels = read(training_set, "cell_7_tif")
    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(labels, some_labels(70_000))
    (pair,) = find_pairs(training_set.folder / "images", training_set.folder / "labels")
    assert pair.read()[0].shape == image.shape


def test_files_are_plain_tiffs(training_set, image):
    training_set.add("cell", image, some_labels(), pixel_size=(0.5, 0.25))
    assert sorted(p.name for p in training_set.folder.rglob("*.tif")) == ["cell.tif"] * 2
    with tifffile.TiffFile(training_set.folder / "images" / "cell.tif") as file:
        (page,) = file.pages
        resolution = [page.tags[f"{axis}Resolution"].value for axis in "XY"]
        assert page.tags["ResolutionUnit"].value == 3  # pixels per centimetre
    assert resolution == [(40_000, 1), (20_000, 1)]
    with tifffile.TiffFile(training_set.folder / "labels" / "cell.tif") as file:
        assert file.pages[0].dtype == np.uint16


def test_new_labels_replace_the_old_which_are_kept(training_set, image):
    for number in (1, 2, 2, 3):
        assert training_set.add("cell", image, some_labels(number)) == "cell"
    assert len(training_set) == 1
    assert read(training_set, "cell")[1].max() == 3
    old = training_set.folder / "old"
    assert sorted(path.name for path in old.iterdir()) == ["cell_v1.tif", "cell_v2.tif"]
    assert [tifffile.imread(old / f"cell_v{i}.tif").max() for i in (1, 2)] == [1, 2]


def test_another_image_of_the_same_name_gets_a_number(training_set, image):
    """All layers are called "Image" in a viewer."""
    assert training_set.add("Image", image, some_labels()) == "Image"
    assert training_set.add("Image", image + 1, some_labels()) == "Image_2"
    assert training_set.add("Image", np.stack([image] * 3, axis=-1), some_labels()) == "Image_3"
    assert training_set.add("Image", image + 1, some_labels(5)) == "Image_2"
    assert training_set.names() == ["Image", "Image_2", "Image_3"]
    np.testing.assert_array_equal(read(training_set, "Image")[0], image)
    assert read(training_set, "Image_2")[1].max() == 5


def test_names_come_in_natural_order_and_may_be_anything(training_set, image):
    for shift, name in enumerate(["cell10", "cell2", "../b/c", "", "мышь"]):
        training_set.add(name, image + shift, some_labels())
    assert training_set.names() == ["b_c", "cell2", "cell10", "image", "мышь"]
    assert {path.parent.parent for path in training_set.folder.parent.rglob("*.tif")} == {
        training_set.folder
    }


def test_one_channel_is_none(training_set, image):
    training_set.add("cell", image[..., None], some_labels())
    assert read(training_set, "cell")[0].shape == (12, 17)
    assert training_set.add("cell", image[..., None], some_labels()) == "cell"


def test_empty_image_teaches_too(training_set, image):
    training_set.add("nothing", image, np.zeros((12, 17), np.uint8))
    assert read(training_set, "nothing")[1].max() == 0


def test_remove(training_set, image):
    training_set.add("a", image, some_labels())
    training_set.add("b", image + 1, some_labels())
    training_set.remove("a")
    assert training_set.names() == ["b"]
    assert len(list(training_set.folder.rglob("*.tif"))) == 2
    (training_set.folder / "labels" / "b.tif").rename(training_set.folder / "b.tif")
    assert training_set.names() == []  # an image without labels does not count
    (training_set.folder / "b.tif").rename(training_set.folder / "labels" / "b.tif")
    with pytest.raises(FileNotFoundError, match="No image 'a' in .*set. It has: b."):
        training_set.remove("a")


def test_folder_that_does_not_exist_is_empty(training_set):
    assert training_set.names() == []
    assert training_set.samples() == []
    assert not training_set.folder.exists()


def test_failed_writing_leaves_what_was_there(training_set, image, monkeypatch):
    training_set.add("cell", image, some_labels(1))

    def broken(path, *_, **__):
        path.write_bytes(b"half a fi")
        raise OSError("disk full")

    monkeypatch.setattr(tifffile, "imwrite", broken)
    for changed in (image, image + 1):
        with pytest.raises(OSError, match="disk full"):
            training_set.add("cell", changed, some_labels(2))
    assert training_set.names() == ["cell"]
    np.testing.assert_array_equal(read(training_set, "cell")[1], some_labels(1))
    assert not [path for path in training_set.folder.rglob("*") if path.suffix == ".tmp"]


def test_what_cannot_be_trained_on(training_set, image):
    labels = some_labels()
    with pytest.raises(TypeError, match="`labels` must be integers, got float64"):
        training_set.add("x", image, labels * 1.0)
    with pytest.raises(ValueError, match="`labels` must not be negative, got -1"):
        training_set.add("x", image, -labels)
    with pytest.raises(ValueError, match="`labels` must be below 2..32, got 4294967296"):
        training_set.add("x", image, labels * 2**32)
    with pytest.raises(ValueError, match=r"the same y, x, got \(12, 17\) and \(12, 16\)"):
        training_set.add("x", image, labels[:, 1:])
    with pytest.raises(ValueError, match=r"slice by slice"):
        training_set.add("x", np.stack([image] * 2), labels)
    with pytest.raises(ValueError, match="`image` contains NaN"):
        training_set.add("x", image * np.nan, labels)
    with pytest.raises(ValueError, match=r"`pixel_size` must be positive, got \(0, 1\)"):
        training_set.add("x", image, labels, (0, 1))
    assert not training_set.folder.exists()
