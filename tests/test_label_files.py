"""Label TIFF files: numbers, scale and units come back; nothing else is taken."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from vimunet.io import label_files
from vimunet.io.formats import read_labels
from vimunet.io.label_files import Place, place_of_image, read_label_tiff, write_label_tiff
from vimunet.io.ome_zarr import write_ome_zarr_labels


def test_round_trip_of_a_stack(tmp_path, rng):
    labels = rng.integers(0, 300, (3, 20, 30)).astype(np.int64)
    place = Place((2.0, 0.5, 0.25), (0.0, 10.0, -3.0), ("pixel", "micrometer", "micrometer"), "zyx")
    write_label_tiff(tmp_path / "a.tif", labels, place)
    again, found = read_label_tiff(tmp_path / "a.tif")
    assert again.dtype == np.uint16
    assert np.array_equal(again, labels)
    assert found == place._replace(axes=("z", "y", "x"))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        tags = file.pages[0].tags
        # 0.25 µm per pixel in x are 40,000 pixels per centimetre, 0.5 µm in y 20,000.
        assert np.divide(*tags["XResolution"].value) == pytest.approx(40_000)
        assert np.divide(*tags["YResolution"].value) == pytest.approx(20_000)
        assert len(file.pages) == 3


def test_mirrored_labels(tmp_path):
    place = Place((-0.5, 0.25), (0.0, 0.0), ("micrometer", "micrometer"), ("y", "x"))
    write_label_tiff(tmp_path / "a.tif", np.ones((4, 5), int), place)
    assert read_label_tiff(tmp_path / "a.tif")[1] == place
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert np.divide(*file.pages[0].tags["YResolution"].value) == pytest.approx(20_000)


def test_many_objects_need_32_bits(tmp_path):
    write_label_tiff(tmp_path / "a.tif", np.array([[0, 65_535]]))
    assert tifffile.imread(tmp_path / "a.tif").dtype == np.uint16
    write_label_tiff(tmp_path / "a.tif", np.array([[0, 65_536]]))
    assert tifffile.imread(tmp_path / "a.tif").dtype == np.uint32


def test_axes_of_length_one_are_left_out(tmp_path):
    place = Place.of(4, (1, 5, 2, 3), axes="tcyx")
    write_label_tiff(tmp_path / "a.tif", np.ones((4, 1, 5, 6), int), place)
    labels, found = read_label_tiff(tmp_path / "a.tif")
    assert labels.shape == (4, 5, 6)
    assert found.scale == (1, 2, 3)
    assert found.axes == ("t", "y", "x")


def test_names_of_many_axes_are_kept():
    assert Place.of(5, axes="ptzyx").axes == tuple("ptzyx")
    assert Place.of(5).axes == ("",) * 5


def test_large_stacks_become_bigtiff(tmp_path, monkeypatch):
    labels = np.ones((2, 10, 10), int)
    for limit in (labels.size * 2, labels.size * 2 - 1):
        monkeypatch.setattr(label_files, "LARGEST_CLASSIC", limit)
        write_label_tiff(tmp_path / "a.tif", labels)
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            assert file.is_bigtiff == (limit < labels.size * 2)
        assert np.array_equal(read_label_tiff(tmp_path / "a.tif")[0], labels)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.ones((3, 3)), TypeError, "must be integers, got float64"),
        (np.array([[-1, 2]]), ValueError, r"must lie in 0 ... 4294967295, got -1 ... 2"),
        (np.array([[0, 2**32]]), ValueError, "got 0 ... 4294967296"),
    ],
)
def test_what_is_no_label_image_is_not_written(tmp_path, labels, error, message):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((2, 2), np.uint8))
    with pytest.raises(error, match=message):
        write_label_tiff(tmp_path / "a.tif", labels)
    assert tifffile.imread(tmp_path / "a.tif").shape == (2, 2), "the old file stays"
    with pytest.raises(ValueError, match="must end in .tif or .tiff"):
        write_label_tiff(tmp_path / "a.png", np.ones((2, 2), int))


def test_files_of_others_are_not_taken(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((2, 2), np.uint8))
    with pytest.raises(ValueError, match="must be a label TIFF of vimunet"):
        read_label_tiff(tmp_path / "a.tif")


@pytest.mark.parametrize("axes", ["yx", "zyx", "tzyx"])
def test_all_commands_read_them(tmp_path, rng, axes):
    labels = rng.integers(0, 9, (2, 3, 20, 30)[-len(axes) :])
    write_label_tiff(tmp_path / "a.tif", labels, Place.of(len(axes), axes=axes))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.series[0].axes == axes.upper()
    if len(axes) < 4:
        assert np.array_equal(read_labels(tmp_path / "a.tif"), labels)


def test_place_of_images_of_other_programs(tmp_path):
    image = np.zeros((3, 20, 30), np.uint8)
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm"}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, image, metadata={"axes": "TYX", "TimeIncrement": 2.0, **sizes})
    place = Place(
        (2.0, 500.0, 0.25), (0,) * 3, ("second", "nanometer", "micrometer"), ("t", "y", "x")
    )
    assert place_of_image(path, "tyx") == place
    path = tmp_path / "a.tif"
    notes = {"axes": "ZYX", "spacing": 1.5, "unit": "um"}
    for unit in ("um", "micron", "\\u00B5m"):
        notes["unit"] = unit
        tifffile.imwrite(path, image, imagej=True, resolution=(4, 2), metadata=notes)
        place = Place((1.5, 0.5, 0.25), (0,) * 3, ("micrometer",) * 3, ("z", "y", "x"))
        assert place_of_image(path, "zyx") == place, unit
    tifffile.imwrite(path, image[0], resolution=(40_000, 20_000), resolutionunit="CENTIMETER")
    assert place_of_image(path, "yx").scale == pytest.approx((0.5, 0.25))
    assert place_of_image(path, "yx").units == ("micrometer", "micrometer")


def test_place_of_ome_zarr(tmp_path):
    path = tmp_path / "a.ome.zarr"
    labels = np.zeros((3, 20, 30), np.uint16)
    write_ome_zarr_labels(path, labels, scale=(2, 0.5, 0.25), units="micrometer", axes="zyx")
    assert place_of_image(path, "zyx").scale == (2, 0.5, 0.25)
    assert place_of_image(path, "yx").units == ("micrometer",) * 2


@pytest.mark.parametrize("options", [{}, {"resolution": (72, 72), "resolutionunit": "INCH"}])
def test_place_that_is_not_declared(tmp_path, options):
    plane = np.zeros((20, 30), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", plane, **options)
    Image.fromarray(plane).save(tmp_path / "a.png")
    for path in (tmp_path / "a.tif", tmp_path / "a.png"):
        assert place_of_image(path, "yx") == Place.of(2)
