"""Folders of images with labels: formats, axes, pairing, and what is refused."""

import pickle
import shutil
import subprocess
import sys
import warnings

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from vimunet.io import formats
from vimunet.io.formats import read_image, read_labels, read_slices
from vimunet.io.names import list_images
from vimunet.io.ome_zarr import write_ome_zarr_labels
from vimunet.io.pairs import find_pairs

GREY = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
COLOUR = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
LABELS = np.array([[0, 0, 1, 1, 0, 2, 2]] * 5, dtype=np.uint16)


@pytest.fixture
def folders(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    return images, labels


def save(path, array, **options):
    """Write an array in the format of the suffix, not with the code under test."""
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, array, **options)
    elif path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(array))
    elif path.suffix == ".bmp":
        Image.fromarray(array).save(path)
    elif path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".zarr":
        zarr.save_array(str(path), array, **options)
    else:
        with h5py.File(path, "a") as file:
            file[options.get("key", "data")] = array


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".h5", ".hdf", ".hdf5", ".zarr", ".npy"])
def test_image_comes_back_in_every_format(tmp_path, suffix, dtype):
    image = GREY.astype(dtype) * 3
    save(tmp_path / f"cell{suffix}", image)
    read = read_image(tmp_path / f"cell{suffix}")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_with_and_without_alpha(tmp_path, dtype, channels):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7, channels), dtype)
    image = image[..., 0] if channels == 1 else image
    save(tmp_path / "cell.png", image)
    expected = {1: image, 2: image[..., 0], 3: image, 4: image[..., :3]}[channels]
    read = read_image(tmp_path / "cell.png")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read.reshape(expected.shape), expected)
    assert read.ndim == (2 if channels < 3 else 3)


def test_bmp_and_jpeg(tmp_path):
    save(tmp_path / "cell.bmp", GREY)
    np.testing.assert_array_equal(read_image(tmp_path / "cell.bmp"), GREY)
    Image.fromarray(COLOUR).save(tmp_path / "cell.jpg")
    assert read_image(tmp_path / "cell.jpg").shape == (5, 7, 3)


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".h5"])
def test_big_endian_numbers_become_native(tmp_path, suffix):
    options = {"byteorder": ">"} if suffix == ".tif" else {}
    save(tmp_path / f"cell{suffix}", GREY.astype(">u2"), **options)
    read = read_image(tmp_path / f"cell{suffix}")
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, GREY)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_versions(tmp_path, version):
    zarr.save_array(str(tmp_path / "cell.zarr"), COLOUR, zarr_format=version)
    np.testing.assert_array_equal(read_image(tmp_path / "cell.zarr"), COLOUR)


def test_ome_zarr_is_read_as_it_declares_itself(tmp_path):
    image, labels = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7), np.arange(3 * 5 * 7)
    group = zarr.open_group(str(tmp_path / "images" / "cell.ome.zarr"), mode="w")
    for level in ("fine", "coarse"):
        array = group.create_array(level, shape=(1, *image.shape), dtype=image.dtype)
        array[0] = image * (level == "fine")
    axes = [{"name": name} for name in "tczyx"]
    datasets = [{"path": name, "coordinateTransformations": []} for name in ("fine", "coarse")]
    group.attrs["ome"] = {"multiscales": [{"axes": axes, "datasets": datasets}]}
    write_ome_zarr_labels(tmp_path / "labels" / "cell.ome.zarr", labels.reshape(3, 5, 7))
    expected = np.moveaxis(image, 0, -1)
    found = read_image(tmp_path / "images" / "cell.ome.zarr")
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        read_image(tmp_path / "images" / "cell.ome.zarr", "coarse"), 0 * image
    )
    samples = find_pairs(tmp_path / "images", tmp_path / "labels")
    for z, sample in enumerate(samples):
        pixels, annotated = sample.read()
        np.testing.assert_array_equal(pixels, expected[z])
        np.testing.assert_array_equal(annotated, labels.reshape(3, 5, 7)[z])
    assert len(samples) == 3


def test_keys_in_zarr_groups_and_hdf5(tmp_path):
    group = zarr.open_group(str(tmp_path / "cell.zarr"), mode="w")
    group.create_array("raw/s0", data=GREY)
    group.create_array("raw/s1", data=GREY[::2, ::2])
    np.testing.assert_array_equal(read_image(tmp_path / "cell.zarr", "raw/s0"), GREY)
    with pytest.raises(ValueError, match=r"a key is needed.*raw/s0 \(5, 7\), raw/s1 \(3, 4\)"):
        read_image(tmp_path / "cell.zarr")
    save(tmp_path / "cell.h5", GREY, key="volumes/raw")
    np.testing.assert_array_equal(read_image(tmp_path / "cell.h5"), GREY)
    np.testing.assert_array_equal(read_image(tmp_path / "cell.h5", "/volumes/raw"), GREY)
    with pytest.raises(ValueError, match=r"no data set 'image'. .*volumes/raw \(5, 7\)"):
        read_image(tmp_path / "cell.h5", "image")
    save(tmp_path / "cell.tif", GREY)
    with pytest.raises(ValueError, match="`key` is for HDF5, Zarr and N5"):
        read_image(tmp_path / "cell.tif", "raw")


def test_n5_names_the_missing_package(tmp_path, monkeypatch):
    (tmp_path / "cell.n5").mkdir()
    monkeypatch.setitem(sys.modules, "z5py", None)
    with pytest.raises(ImportError, match=r"pip install 'vimunet\[n5\]'"):
        read_image(tmp_path / "cell.n5")


def test_n5(tmp_path):
    z5py = pytest.importorskip("z5py")
    with z5py.File(str(tmp_path / "cell.n5"), "w") as file:
        file.create_dataset("raw/s0", data=GREY, chunks=(4, 4))
    np.testing.assert_array_equal(read_image(tmp_path / "cell.n5", "raw/s0"), GREY)


def test_channels_that_a_tiff_declares_come_last(tmp_path):
    planes = np.random.default_rng(0).integers(0, 9, (2, 5, 7), np.uint16)
    save(tmp_path / "cell.tif", planes, imagej=True, metadata={"axes": "CYX"})
    np.testing.assert_array_equal(read_image(tmp_path / "cell.tif"), np.moveaxis(planes, 0, -1))
    save(tmp_path / "stack.tif", planes, imagej=True, metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(read_image(tmp_path / "stack.tif"), planes)


def written(path, image, **options):
    tifffile.imwrite(path, image, **options)
    return path


@pytest.mark.parametrize(
    ("shape", "in_channels", "expected", "stack"),
    [
        ((30, 40), 1, (30, 40), ""),
        ((30, 40, 3), 1, (30, 40, 3), ""),
        ((30, 40, 5), 5, (30, 40, 5), ""),
        ((5, 30, 40), 5, (30, 40, 5), ""),
        ((5, 30, 40), 1, (5, 30, 40), "z"),
        ((1, 30, 40), 1, (30, 40), ""),
        ((2, 30, 40, 3), 1, (2, 30, 40, 3), "z"),
        ((2, 6, 30, 40), 1, (2, 6, 30, 40), "tz"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_without_declared_axes_their_lengths_tell(
    tmp_path, shape, in_channels, expected, stack, suffix
):
    image = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    if suffix == ".npy":
        np.save(path := tmp_path / "image.npy", image)
    else:
        path = written(tmp_path / "image.tif", image)
    pixels, axes = read_slices(path, in_channels=in_channels)
    assert (pixels.shape, axes) == (expected, stack)
    source = image.squeeze()
    assert np.array_equal(
        pixels, source if pixels.shape == source.shape else source.transpose(1, 2, 0)
    )


@pytest.mark.parametrize("slices", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_plain_stacks_of_any_length_are_stacks(tmp_path, rng, slices, dtype):
    image = rng.integers(0, 99, (slices, 30, 40)).astype(dtype)
    path = written(tmp_path / "stack.tif", image, photometric="minisblack")
    pixels, axes = read_slices(path)
    assert axes == "z"
    assert np.array_equal(pixels, image)


@pytest.mark.parametrize("options", [{}, {"metadata": None}], ids=["tifffile", "others"])
def test_planes_that_are_declared_colours_are_colours(tmp_path, rng, options):
    image = rng.integers(0, 99, (3, 30, 40), dtype=np.uint8)
    path = written(tmp_path / "a.tif", image, photometric="rgb", planarconfig="separate", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels, axes = read_slices(path)
    assert axes == ""
    assert np.array_equal(pixels, image.transpose(1, 2, 0))
    told = [str(warning.message) for warning in caught]
    expected = [f"{path} declares that its 3 planes are colours, and is read so."]
    assert [text.split(" If")[0] for text in told] == ([] if options else expected)
    pixels, axes = read_slices(path, axes="zyx")
    assert axes == "z"
    assert np.array_equal(pixels, image)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_declared_channels_must_be_chosen(tmp_path, rng, count):
    image = rng.integers(0, 99, (count, 30, 40), dtype=np.uint8)
    path = written(
        tmp_path / "a.ome.tif", image, metadata={"axes": "CYX"}, photometric="minisblack"
    )
    with pytest.raises(
        ValueError, match=rf"must be chosen, from 0 to {count - 1}: the model takes 1"
    ):
        read_slices(path)
    pixels, axes = read_slices(path, channel=1)
    assert axes == ""
    assert np.array_equal(pixels, image[1])
    pixels, axes = read_slices(path, in_channels=count)
    assert np.array_equal(pixels, image.transpose(1, 2, 0))
    with pytest.raises(ValueError, match=rf"must be from 0 to {count - 1} .*, got {count}"):
        read_slices(path, channel=count)


def test_series_of_stacks_with_channels(tmp_path, rng):
    image = rng.integers(0, 99, (2, 3, 4, 30, 40), dtype=np.uint16)
    path = written(tmp_path / "a.tif", image, imagej=True, metadata={"axes": "TZCYX"})
    pixels, axes = read_slices(path, channel=2)
    assert axes == "tz"
    assert np.array_equal(pixels, image[:, :, 2])


def test_colours_may_be_chosen_and_grey_has_none(tmp_path, rng):
    image = rng.integers(0, 99, (30, 40, 4), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert np.array_equal(read_slices(tmp_path / "a.png", channel=2)[0], image[:, :, 2])
    with pytest.raises(ValueError, match="must be from 0 to 2"):  # alpha is none
        read_slices(tmp_path / "a.png", channel=3)
    path = written(tmp_path / "grey.tif", image[:, :, 0])
    with pytest.raises(
        ValueError, match="`channel` is for images with channels, .*grey.tif has none"
    ):
        read_slices(path, channel=0)


def test_pages_written_one_by_one_are_a_stack(tmp_path, rng):
    image = rng.integers(0, 99, (4, 30, 40), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for plane in image:
            file.write(plane, compression="zlib")
    pixels, axes = read_slices(tmp_path / "a.tif")
    assert axes == "z"
    assert np.array_equal(pixels, image)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(image[0])
        file.write(image[0, ::2, ::2])  # a thumbnail
    assert np.array_equal(read_image(tmp_path / "b.tif"), image[0])


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"byteorder": ">"}])
def test_slices_of_a_tiff_with_channels_are_read_alone(folders, rng, options, monkeypatch):
    image = rng.integers(0, 999, (6, 2, 30, 40)).astype(np.uint16)
    labels = rng.integers(0, 9, (6, 30, 40)).astype(np.uint16)
    axes = {"metadata": {"axes": "ZCYX"}, "photometric": "minisblack"}
    tifffile.imwrite(folders[0] / "a.ome.tif", image, **axes, **options)
    tifffile.imwrite(folders[1] / "a.tif", labels, photometric="minisblack", **options)
    samples = find_pairs(*folders)
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", None)  # would read all of it
    pixels, found = samples[4].read()
    assert np.array_equal(pixels, image[4].transpose(1, 2, 0))
    assert np.array_equal(found, labels[4])
    assert pixels.dtype == np.uint16


def test_alpha_of_a_tiff_is_dropped_but_a_fourth_channel_is_not(tmp_path):
    image = np.random.default_rng(0).integers(0, 9, (5, 7, 4), np.uint8)
    save(tmp_path / "rgba.tif", image, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.tif"), image[..., :3])
    save(tmp_path / "four.tif", image, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read_image(tmp_path / "four.tif"), image)


def test_axes_of_length_one_are_dropped(tmp_path):
    save(tmp_path / "cell.npy", GREY[None, None, :, :, None])
    np.testing.assert_array_equal(read_image(tmp_path / "cell.npy"), GREY)
    save(tmp_path / "line.npy", GREY[None, :1])
    assert read_image(tmp_path / "line.npy").shape == (1, 7)


def test_label_palette_gives_indices_and_image_palette_colours(tmp_path):
    picture = Image.fromarray(LABELS.astype(np.uint8), mode=None).convert("P")
    picture.putdata([int(value) for value in LABELS.ravel()])
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "cell.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "cell.png"), LABELS)
    assert read_image(tmp_path / "cell.png")[0, 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint32", "int64", "uint64"])
def test_labels_keep_their_integer_dtype(tmp_path, dtype):
    save(tmp_path / "cell.h5", LABELS.astype(dtype))
    labels = read_labels(tmp_path / "cell.h5")
    assert labels.dtype == dtype
    np.testing.assert_array_equal(labels, LABELS)


def test_whole_numbers_in_floating_point_are_labels(tmp_path):
    save(tmp_path / "cell.npy", LABELS.astype(np.float32))
    labels = read_labels(tmp_path / "cell.npy")
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, LABELS)


def test_series_of_volumes_of_labels(tmp_path, rng):
    labels = rng.integers(0, 9, (2, 3, 5, 7), np.uint8)
    save(tmp_path / "cell.npy", labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "cell.npy"), labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            LABELS + np.float32(0.5),
            "got float32 from 0.5 to .* with others among them",
        ),
        (np.full((5, 7), np.nan, np.float32), "got float32 from nan"),
        (LABELS.astype(complex), "whole numbers, got complex128"),
        (LABELS > 0, "mask of true and false.*skimage.measure.label"),
        (COLOUR, "got colours of shape .5, 7, 3."),
        (LABELS.astype(np.int16) - 1, "not be negative, got -1"),
        (np.uint8(255) * (LABELS > 0), "got only 0 and 255. A mask has one object"),
        (np.uint16(255) * (LABELS > 0), "got only 0 and 255. A mask has one object"),
        (np.int32(65535) * (LABELS > 0), "got only 0 and 65535. A mask has one object"),
        (np.zeros((2, 2, 3, 5, 7), np.uint8), r"shape \(2, 2, 3, 5, 7\)"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, message):
    save(tmp_path / "cell.npy", labels)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "cell.npy")


def test_labels_in_jpeg(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "cell.jpg")
    with pytest.raises(ValueError, match="must not be JPEG"):
        read_labels(tmp_path / "cell.jpg")


def test_unknown_type_and_missing_file(tmp_path):
    (tmp_path / "cell.czi").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Unknown file type '.czi' .* Known: .tif"):
        read_image(tmp_path / "cell.czi")
    with pytest.raises(FileNotFoundError, match="No such file"):
        read_image(tmp_path / "cell.tif")


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("channels", ["", "last", "first", "middle"])
def test_labels_decide_what_the_axes_mean(folders, rng, channels, stacked):
    images, labels = folders
    depth = (4,) if stacked else ()
    truth = rng.integers(0, 255, (*depth, 5, 7, 2), np.uint8)
    stored = {
        "": truth[..., 0],
        "last": truth,
        "first": np.moveaxis(truth, -1, 0),
        "middle": np.moveaxis(truth, -1, 1),
    }[channels]
    marks = rng.integers(0, 9, (*depth, 5, 7), np.uint16)
    save(images / "cell.npy", stored)
    save(labels / "cell.npy", marks)
    samples = find_pairs(images, labels)
    expected = truth[..., 0] if channels == "" else truth
    if not stacked:
        expected, marks = expected[None], marks[None]
    names = [f"cell_z{z:03d}" for z in range(4)] if stacked else ["cell"]
    assert [sample.name for sample in samples] == names
    for z, sample in enumerate(samples):
        image, read = sample.read()
        np.testing.assert_array_equal(image, expected[z])
        np.testing.assert_array_equal(read, marks[z])


@pytest.mark.filterwarnings("ignore:.*are stored as RGB:DeprecationWarning")
@pytest.mark.parametrize("slices", [3, 4, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_stack_is_read_slice_by_slice(folders, rng, slices, dtype, monkeypatch):
    """Stacks of 3 and 4 slices look like colours to tifffile, which writes them by default."""
    images, labels = folders
    stack = rng.integers(0, 255, (slices, 5, 7), dtype)
    marks = rng.integers(0, 9, (slices, 5, 7), dtype)
    save(images / "cell.tif", stack)
    save(labels / "cell.tif", marks)
    samples = find_pairs(images, labels)
    assert len(samples) == slices
    if slices == 6:
        monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", None)  # the whole file
    for z, sample in enumerate(samples):
        image, read = sample.read()
        np.testing.assert_array_equal(image, stack[z])
        np.testing.assert_array_equal(read, marks[z])


def test_names_pair_in_natural_order_across_formats(folders):
    images, labels = folders
    for number, (image_end, label_end) in enumerate(
        [(".ome.tif", ".png"), (".TIF", ".npy"), (".png", ".tif"), (".h5", ".zarr")], start=8
    ):
        save(images / f"cell{number}.x{image_end.lower()}", GREY + number)
        if image_end.isupper():
            (images / f"cell{number}.x.tif").rename(images / f"cell{number}.x.TIF")
        save(labels / f"cell{number}.x{label_end}", LABELS)
    save(images / ".hidden.tif", GREY)
    (images / "README.md").write_text("not an image")
    samples = find_pairs(images, labels)
    assert [sample.name for sample in samples] == ["cell8.x", "cell9.x", "cell10.x", "cell11.x"]
    for number, sample in enumerate(samples, start=8):
        image, marks = pickle.loads(pickle.dumps(sample)).read()
        np.testing.assert_array_equal(image, GREY + number)
        np.testing.assert_array_equal(marks, LABELS)


@pytest.mark.parametrize("stacked", [False, True])
def test_one_channel_of_pairs(folders, rng, stacked):
    labels = rng.integers(0, 9, (6, 30, 40)[not stacked :]).astype(np.uint16)
    image = rng.integers(0, 999, (*labels.shape[:-2], 3, 30, 40)).astype(np.uint16)
    axes = {"metadata": {"axes": "ZCYX"[not stacked :]}, "photometric": "minisblack"}
    tifffile.imwrite(folders[0] / "a.ome.tif", image, **axes)
    tifffile.imwrite(folders[1] / "a.tif", labels, photometric="minisblack")
    with pytest.raises(
        ValueError, match="`channel` must be chosen, from 0 to 2: the model takes 1"
    ):
        find_pairs(*folders, in_channels=1)
    with pytest.raises(ValueError, match="`channel` must be from 0 to 2"):
        find_pairs(*folders, channel=3)
    assert find_pairs(*folders, in_channels=3)[-1].read()[0].shape == (30, 40, 3)
    pixels, found = find_pairs(*folders, in_channels=1, channel=1)[-1].read()
    assert np.array_equal(pixels, image[-1, 1] if stacked else image[1])
    assert np.array_equal(found, labels[-1] if stacked else labels)
    tifffile.imwrite(folders[0] / "a.ome.tif", image[..., 0, :, :], photometric="minisblack")
    with pytest.raises(ValueError, match="`channel` is for images with channels"):
        find_pairs(*folders, channel=0)


def test_one_folder_of_hdf5_files_with_two_keys(folders):
    images, _ = folders
    save(images / "cell.h5", GREY, key="raw")
    save(images / "cell.h5", LABELS, key="labels")
    (sample,) = find_pairs(images, images, image_key="raw", label_key="labels")
    np.testing.assert_array_equal(sample.read()[1], LABELS)
    with pytest.raises(ValueError, match="must be two folders"):
        find_pairs(images, images, image_key="raw", label_key="raw")


def test_same_folder_twice(folders):
    images, _ = folders
    save(images / "cell.tif", GREY)
    with pytest.raises(ValueError, match="must be two folders, got .* for both"):
        find_pairs(images, images / ".." / "images")


def test_unpaired_names_are_listed_on_both_sides(folders):
    images, labels = folders
    for name in ("both", "only_image", "another_image"):
        save(images / f"{name}.tif", GREY)
    for name in ("both", "only_labels"):
        save(labels / f"{name}.png", LABELS)
    with pytest.raises(ValueError, match="same name") as caught:
        find_pairs(images, labels)
    message = str(caught.value)
    assert f"Images without labels in {labels}:\n  another_image.tif\n  only_image.tif" in message
    assert f"Labels without an image in {images}:\n  only_labels.png" in message
    assert "both" not in message.replace("both sides", "")


def test_long_lists_are_cut(folders):
    images, labels = folders
    for number in range(30):
        save(images / f"cell{number}.npy", GREY)
    save(labels / "other.npy", LABELS)
    with pytest.raises(ValueError, match=r"cell19.npy\n  ... and 10 more"):
        find_pairs(images, labels)


def test_name_in_two_formats(folders):
    images, labels = folders
    for name in ("a.tif", "a.png", "b.tif"):
        save(images / name, GREY)
    save(labels / "a.tif", LABELS)
    with pytest.raises(ValueError, match=r"must be unique .*:\n  a.png\n  a.tif$"):
        find_pairs(images, labels)


def test_empty_and_missing_folders(folders, tmp_path):
    images, labels = folders
    (images / "notes.txt").write_text("")
    save(labels / "a.tif", LABELS)
    with pytest.raises(FileNotFoundError, match=r"No files of type .tif.* in .*images"):
        find_pairs(images, labels)
    with pytest.raises(FileNotFoundError, match="No such folder"):
        list_images(tmp_path / "nothing")


def test_all_bad_pairs_are_listed_together(folders):
    images, labels = folders
    for name in ("shape", "floats", "mask", "colours", "good"):
        save(images / f"{name}.tif", GREY)
    (images / "broken.tif").write_bytes(b"not a TIFF file")
    save(images / "key.h5", GREY, key="raw")
    save(images / "key.h5", GREY, key="more")
    save(labels / "shape.tif", LABELS[:4])
    save(labels / "floats.tif", LABELS.astype(np.complex64))
    save(labels / "mask.tif", LABELS > 0)
    save(labels / "colours.png", COLOUR)
    for name in ("good", "broken", "key"):
        save(labels / f"{name}.tif", LABELS)
    with pytest.raises(ValueError, match="6 of 7 pairs cannot be used") as caught:
        find_pairs(images, labels)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 6
    for words in (
        ("Cannot read", "broken.tif"),
        ("colours.png", "got colours"),
        ("floats.tif", "got complex64"),
        ("key.h5", "a key is needed. Data sets in this file: more (5, 7), raw (5, 7)"),
        ("mask.tif", "mask of true and false"),
        ("shape.tif", "(5, 7) does not fit the labels (4, 7)"),
    ):
        assert any(all(word in line for word in words) for line in lines), words


def test_complex_images_are_refused(folders):
    images, labels = folders
    save(images / "cell.npy", GREY.astype(np.complex64))
    save(labels / "cell.npy", LABELS)
    with pytest.raises(ValueError, match="must hold numbers, got complex64"):
        find_pairs(images, labels)


def test_importing_needs_no_optional_package():
    code = (
        "import sys; import vimunet.io.formats; "
        "print([n for n in ('z5py', 'pycocotools', 'torch', 'matplotlib') if n in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.strip() == "[]", output.stderr


def test_real_files_of_many_kinds(shared_data):
    mixed = shared_data / "tiny_mixed"
    for path in list_images(mixed / "images"):
        image = read_image(path)
        assert image.ndim in (2, 3)
        assert image.shape[-1] != 4
        assert image.dtype.kind in "uf"
    labels = read_labels(mixed / "labels" / "neurips_cell_00528_label.tiff")
    assert len(np.unique(labels)) - 1 == 44  # the README of the data set


def test_real_folders_pair(shared_data, tmp_path):
    nuclei = shared_data / "dsb2018_fixed"
    samples = find_pairs(nuclei / "images", nuclei / "labels")
    assert len(samples) == 604
    image, labels = samples[0].read()
    assert image.shape == (256, 256, 3)
    assert image.dtype == np.uint8
    with Image.open(nuclei / "images" / f"{samples[0].name}.png") as picture:
        np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))
    np.testing.assert_array_equal(
        labels, tifffile.imread(nuclei / "labels" / f"{samples[0].name}.tif")
    )


def test_real_stack_of_colours_and_volume(shared_data, folders):
    images, labels = folders
    stack = shared_data / "tiny_mixed"
    for source, target in ((stack / "images", images), (stack / "labels", labels)):
        for path in source.glob("stardist_*3d*"):
            shutil.copyfile(path, target / "volume.tif")
    samples = find_pairs(images, labels)
    assert len(samples) == tifffile.imread(images / "volume.tif").shape[0]
    np.testing.assert_array_equal(samples[5].read()[0], tifffile.imread(images / "volume.tif")[5])


def test_suffix_lists_agree_with_the_readers():
    assert set(formats.LABEL_SUFFIXES) < set(formats.IMAGE_SUFFIXES)


# Masks


def test_masks_become_classes_where_they_are_asked_for(tmp_path):
    mask = LABELS > 0
    save(tmp_path / "bool.npy", mask)
    save(tmp_path / "bytes.tif", np.uint8(255) * mask)
    Image.fromarray(mask).save(tmp_path / "bits.png")
    save(tmp_path / "classes.tif", LABELS)
    for name in ("bool.npy", "bytes.tif", "bits.png"):
        read = read_labels(tmp_path / name, masks=True)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, mask)
    np.testing.assert_array_equal(read_labels(tmp_path / "classes.tif", masks=True), LABELS)
    between = np.uint8([[0, 128, 255]])
    save(tmp_path / "between.tif", between)
    np.testing.assert_array_equal(read_labels(tmp_path / "between.tif", masks=True), between)


def test_pairs_with_masks(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    save(tmp_path / "images" / "a.tif", GREY)
    save(tmp_path / "labels" / "a.tif", np.uint8(255) * (LABELS > 0))
    save(tmp_path / "images" / "b.tif", GREY)
    save(tmp_path / "labels" / "b.npy", LABELS > 0)
    samples = find_pairs(tmp_path / "images", tmp_path / "labels", masks=True)
    assert len(samples) == 2
    for sample in samples:
        np.testing.assert_array_equal(sample.read()[1], LABELS > 0)
    with pytest.raises(ValueError, match="mask of true and false"):
        find_pairs(tmp_path / "images", tmp_path / "labels")
