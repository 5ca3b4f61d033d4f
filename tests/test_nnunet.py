"""The bridge to nnU-Net: objects to classes and back, its data sets, its predictions."""

import gzip
import io
import json
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage.io import imread, imsave

from vimunet.bridges.nnunet import (
    CLASSES,
    find_predictions,
    is_prediction_folder,
    read_prediction,
    to_classes,
    to_labels,
    write_dataset,
)
from vimunet.io.formats import read_labels
from vimunet.representations.boundaries import Boundaries
from vimunet.scores.objects import mean_segmentation_accuracy

REAL = Path(__file__).parent / "files" / "nnunet"


def picture(text: str) -> np.ndarray:
    """Read digits, one row per line."""
    return np.array([[int(sign) for sign in line] for line in text.split()])


def hard(classes: np.ndarray, count: int) -> np.ndarray:
    return (classes == np.arange(count)[:, None, None]).astype(np.float32)


# --- objects to classes --------------------------------------------------------------------------

TWO_CELLS = picture("""
    00000000000
    01111122220
    01111122220
    01111122220
    01111122220
    00000000000""")


def test_fair_classes_keep_the_boundary_inside():
    assert np.array_equal(
        to_classes(TWO_CELLS),
        picture("""
            00000000000
            02222222220
            02111221120
            02111221120
            02222222220
            00000000000"""),
    )


def test_published_classes_have_it_on_both_sides():
    assert np.array_equal(
        to_classes(TWO_CELLS, protocol="published"),
        picture("""
            02222222220
            22222222222
            22111221122
            22111221122
            22222222222
            02222222220"""),
    )


def test_boundary_only():
    labels = picture("0001111 0001111 0001111 2222222 2222222")
    published = picture("0011000 0011000 2211222 2222222 0000000".replace("2", "1"))
    published[2, :2] = 1
    assert np.array_equal(to_classes(labels, "boundary", "published"), published)
    assert np.array_equal(to_classes(labels, "boundary"), published | (labels == 0))


def test_a_narrow_piece_of_interior_is_boundary():
    """A cell with a thin arm: the arm's middle would come back as an object of its own."""
    cell = np.zeros((12, 24), int)
    cell[2:10, 2:10] = 1
    cell[5, 10:12] = 1  # the neck
    cell[4:7, 12:22] = 1  # its middle row is one pixel high
    classes = to_classes(cell)
    assert (classes[3:9, 3:9] == 1).all()
    assert (classes[:, 10:][cell[:, 10:] > 0] == 2).all()
    assert to_labels(hard(classes, 3)).max() == 1
    assert to_labels(hard(to_classes(cell, protocol="published"), 3)).max() == 1


def test_an_object_keeps_its_only_interior_however_narrow():
    rod = np.zeros((7, 12), int)
    rod[2:5, 1:11] = 7
    classes = to_classes(rod)
    assert (classes[3, 2:10] == 1).all()
    assert (classes == 1).sum() == 8


def test_a_thin_object_is_interior_where_it_touches_no_other():
    thin = picture("00000000 01111000 01111220 00000220 00000000")
    classes = to_classes(thin)
    assert np.array_equal(classes, picture("00000000 01112000 01112210 00000210 00000000"))


def test_a_thin_object_between_others_keeps_its_middle():
    stripes = np.repeat([[1], [1], [1], [1], [2], [3], [3], [3], [3]], 9, axis=1)
    classes = to_classes(stripes)
    assert np.array_equal(np.argwhere(classes[4] == 1), [[4]])
    assert (classes[[3, 5]] == 2).all()


def test_every_object_has_interior_and_nothing_else_has(rng):
    for _ in range(20):
        blocks = rng.integers(0, 5, (9, 11))
        labels = np.kron(blocks, np.ones((2, 3), int)) * 1000
        classes = to_classes(labels.astype(np.uint16))
        assert set(np.unique(labels[classes == 1])) == set(np.unique(labels)) - {0}
        assert np.array_equal(classes > 0, labels > 0)


def test_images_without_objects_or_without_background():
    for kind, protocol in (("boundaries", "fair"), ("boundaries", "published")):
        assert not to_classes(np.zeros((5, 6), int), kind, protocol).any()
        assert (to_classes(np.full((5, 6), 4), kind, protocol) == 1).all()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"representation": "distances"}, "Unknown `representation` 'distances'. Known: bound"),
        ({"protocol": "best"}, "Unknown protocol 'best'. Known: fair, published"),
    ],
)
def test_unknown_choices(choice, message):
    with pytest.raises(ValueError, match=message):
        to_classes(TWO_CELLS, **choice)


# --- classes to objects --------------------------------------------------------------------------


def test_fair_objects_come_back_whole():
    big = np.kron(TWO_CELLS, np.ones((5, 5), int))
    assert np.array_equal(to_labels(hard(to_classes(big), 3)), big)


def test_published_objects_lose_their_rim():
    big = np.kron(TWO_CELLS, np.ones((5, 5), int))
    back = to_labels(hard(to_classes(big, protocol="published"), 3), protocol="published")
    rimless = big.copy()
    rimless[Boundaries().encode(big)[1] > 0] = 0
    assert np.array_equal(back, rimless)


def test_probabilities_decide_between_classes():
    """Where interior and boundary share a pixel, both say that it is foreground."""
    big = np.kron(TWO_CELLS, np.ones((5, 5), int))
    classes = to_classes(big)
    unsure = hard(classes, 3)
    edge = classes == 2
    unsure[:, edge] = np.array([0.4, 0.25, 0.35])[:, None]  # background wins alone, not together
    assert np.array_equal(to_labels(unsure), big)
    assert np.array_equal(to_labels(unsure, protocol="published") > 0, classes == 1)


def test_boundary_only_grows_over_the_boundary():
    stripes = np.repeat([1, 2, 3], 12)[None].repeat(30, axis=0)
    for protocol in ("fair", "published"):
        classes = to_classes(stripes, "boundary", protocol)
        assert np.array_equal(to_labels(hard(classes, 2), protocol=protocol), stripes)


def test_classes_are_told_by_their_names():
    big = np.kron(TWO_CELLS, np.ones((5, 5), int))
    maps = hard(to_classes(big), 3)
    swapped = to_labels(maps[[0, 2, 1]], classes=("background", "cell border", "cell"))
    assert np.array_equal(swapped, big)
    pieces = to_labels(hard(big > 0, 2), classes=("background", "nucleus"))
    assert np.array_equal(pieces, big > 0)


@pytest.mark.parametrize(
    ("count", "classes"),
    [(4, None), (1, None), (3, ("background", "liver", "spleen")), (3, ("background", "border"))],
)
def test_other_classes_are_no_objects(count, classes):
    with pytest.raises(ValueError, match=r"`(classes|probabilities)` must"):
        to_labels(np.zeros((count, 4, 4), np.float32), classes=classes)


def test_perfect_classes_of_real_cells(samples):
    scores = {"fair": [], "published": []}
    for file in sorted((samples / "phase" / "test" / "labels").glob("*.tif")):
        labels = read_labels(file)
        for protocol, found in scores.items():
            back = to_labels(hard(to_classes(labels, protocol=protocol), 3), protocol=protocol)
            found.append(mean_segmentation_accuracy(back, labels))
    assert np.mean(scores["fair"]) > 0.95
    assert np.mean(scores["published"]) < np.mean(scores["fair"]) - 0.1


# --- data sets -----------------------------------------------------------------------------------


def folder_of(root: Path, arrays: dict[str, np.ndarray]) -> Path:
    root.mkdir(parents=True)
    for name, array in arrays.items():
        imsave(root / name, array, check_contrast=False)
    return root


@pytest.fixture
def cells(tmp_path, rng):
    """Folders of two grey images for training, one for validation and one to predict."""
    labels = np.kron(TWO_CELLS, np.ones((3, 3), int)).astype(np.uint16)

    def images(*names: str) -> dict[str, np.ndarray]:
        return {name: rng.integers(0, 255, labels.shape).astype(np.uint8) for name in names}

    return {
        "images": folder_of(tmp_path / "images", images("a.ome.tif", "b 2.png")),
        "labels": folder_of(tmp_path / "labels", {"a.tif": labels, "b 2.tif": labels}),
        "val_images": folder_of(tmp_path / "val", images("c.png")),
        "val_labels": folder_of(tmp_path / "val_labels", {"c.png": labels.astype(np.uint8)}),
        "test_images": folder_of(tmp_path / "test", images("d.png")),
    }


@pytest.fixture(autouse=True)
def _no_nnunet(monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_data_set(cells, tmp_path):
    done = write_dataset(
        **cells,
        output=tmp_path / "raw",
        dataset_id=7,
        name="My-cells_2",
        preprocessed=tmp_path / "pre",
    )
    folder = tmp_path / "raw" / "Dataset007_My-cells_2"
    assert done.folder == folder
    assert (done.train, done.val, done.test) == (("a", "b 2"), ("c",), ("d",))
    assert files_in(folder) == [
        "dataset.json",
        *(f"imagesTr/{name}_0000.tif" for name in ("a", "b 2", "c")),
        "imagesTs/d_0000.tif",
        *(f"labelsTr/{name}.tif" for name in ("a", "b 2", "c")),
        "splits_final.json",
    ]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    description = json.loads((folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "image"}
    assert description["labels"] == {"background": 0, "interior": 1, "boundary": 2}
    assert description["numTraining"] == 3
    assert description["file_ending"] == ".tif"
    split = json.loads((folder / "splits_final.json").read_text())
    assert split == [{"train": ["a", "b 2"], "val": ["c"]}] * 5
    where_nnunet_looks = tmp_path / "pre" / folder.name / "splits_final.json"
    assert done.split == where_nnunet_looks
    assert json.loads(where_nnunet_looks.read_text()) == split
    for name, source in (("b 2", "images"), ("d", "test_images")):
        kind = "imagesTs" if name == "d" else "imagesTr"
        stored = imread(folder / kind / f"{name}_0000.tif")
        assert np.array_equal(stored, imread(cells[source] / f"{name}.png"))
    labels = imread(cells["val_labels"] / "c.png")
    stored = imread(folder / "labelsTr" / "c.tif")
    assert stored.dtype == np.uint8
    assert np.array_equal(stored, to_classes(labels))


def test_published_classes_of_neurites(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    done = write_dataset(
        cells["images"],
        cells["labels"],
        tmp_path,
        dataset_id=999,
        name="EM",
        representation="boundary",
        protocol="published",
        channel_names=["noNorm"],
    )
    assert (done.val, done.test, done.split) == ((), (), None)
    assert not (tmp_path / "pre").exists()
    assert not (done.folder / "splits_final.json").exists()
    description = json.loads((done.folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "boundary": 1}
    assert description["channel_names"] == {"0": "noNorm"}
    labels = imread(cells["labels"] / "a.tif")
    stored = imread(done.folder / "labelsTr" / "a.tif")
    assert np.array_equal(stored, to_classes(labels, "boundary", "published"))


def test_channels(cells, tmp_path, rng):
    shape = imread(cells["labels"] / "a.tif").shape
    colour = rng.integers(0, 255, (*shape, 3)).astype(np.uint8)
    images = folder_of(tmp_path / "colour", {"a.png": colour, "b 2.png": colour})
    test = folder_of(tmp_path / "colour_test", {"d.png": colour})
    done = write_dataset(
        images, cells["labels"], tmp_path, dataset_id=1, name="C", test_images=test
    )
    assert np.array_equal(imread(done.folder / "imagesTr" / "a_0000.tif"), colour)
    assert np.array_equal(imread(done.folder / "imagesTs" / "d_0000.tif"), colour)
    description = json.loads((done.folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "red", "1": "green", "2": "blue"}

    (tmp_path / "two").mkdir()
    for name in ("a", "b 2"):
        tifffile.imwrite(tmp_path / "two" / f"{name}.tif", np.moveaxis(colour[..., :2], 2, 0) / 7)
    done = write_dataset(tmp_path / "two", cells["labels"], tmp_path, dataset_id=2, name="Two")
    for channel in (0, 1):
        stored = imread(done.folder / "imagesTr" / f"a_000{channel}.tif")
        assert stored.dtype == np.float32
        assert np.allclose(stored, colour[..., channel] / 7)

    with pytest.raises(ValueError, match="Test images must have the 2 channels"):
        write_dataset(
            tmp_path / "two",
            *(cells["labels"], tmp_path),
            dataset_id=3,
            name="Three",
            test_images=test,
        )
    with pytest.raises(ValueError, match="Test images must have the 1 channel of"):
        write_dataset(
            cells["images"],
            *(cells["labels"], tmp_path),
            dataset_id=3,
            name="Three",
            test_images=test,
        )
    imsave(images / "a.png", colour[..., 0], check_contrast=False)
    with pytest.raises(ValueError, match="same number of channels, got 1 in 'a' and 3 in 'b 2'"):
        write_dataset(images, cells["labels"], tmp_path, dataset_id=3, name="Three")
    assert not list(tmp_path.glob("*Dataset003*"))


def test_stacks_become_slices(cells, tmp_path):
    labels = imread(cells["labels"] / "a.tif")
    for name, array in (("images", labels.astype(np.uint8)), ("labels", labels)):
        (tmp_path / "stack" / name).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "stack" / name / "s.tif", np.stack([array] * 5))
    done = write_dataset(
        tmp_path / "stack" / "images",
        tmp_path / "stack" / "labels",
        tmp_path,
        dataset_id=1,
        name="S",
        test_images=tmp_path / "stack" / "images",
    )
    assert done.train == done.test == tuple(f"s_z{z:03d}" for z in range(5))
    assert imread(done.folder / "imagesTs" / "s_z004_0000.tif").shape == labels.shape


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset_id": 0}, "`dataset_id` must be a whole number from 1 to 999, got 0"),
        ({"dataset_id": 1000}, "`dataset_id` must be a whole number from 1 to 999, got 1000"),
        ({"dataset_id": "5"}, "`dataset_id` must be a whole number"),
        ({"name": "../x"}, "`name` must consist of letters"),
        ({"name": ""}, "`name` must consist of letters"),
        ({"name": "two words"}, "`name` must consist of letters"),
        ({"protocol": "new"}, "Unknown protocol 'new'"),
        ({"representation": "maps"}, "Unknown `representation` 'maps'"),
        ({"channel_names": ["a", "b"]}, r"`channel_names` must name 1 channel, got \['a', 'b'\]"),
        ({"val_labels": None}, "`val_images` and `val_labels` must be given together"),
    ],
)
def test_bad_arguments_write_nothing(cells, tmp_path, wrong, message):
    arguments = {**cells, "dataset_id": 5, "name": "Cells", **wrong}
    with pytest.raises(ValueError, match=message):
        write_dataset(output=tmp_path / "raw", **arguments)
    assert not list(tmp_path.glob("raw/*"))


def test_training_and_validation_need_different_names(cells, tmp_path):
    cells |= {"val_images": cells["images"], "val_labels": cells["labels"]}
    with pytest.raises(ValueError, match="different names, got 'a', 'b 2' in both"):
        write_dataset(output=tmp_path / "raw", dataset_id=5, name="Cells", **cells)


def test_missing_pixels(cells, tmp_path):
    image = np.ones(imread(cells["labels"] / "a.tif").shape, np.float32)
    image[3, 4] = np.nan
    tifffile.imwrite(cells["images"] / "a.ome.tif", image)
    with pytest.raises(ValueError, match="Image 'a' contains NaN"):
        write_dataset(cells["images"], cells["labels"], tmp_path / "r", dataset_id=5, name="C")
    assert not list((tmp_path / "r").iterdir())


def test_nothing_is_overwritten_unasked(cells, tmp_path):
    arguments = {**cells, "output": tmp_path / "raw", "preprocessed": tmp_path / "pre"}
    first = write_dataset(**arguments, dataset_id=5, name="Cells")
    before = files_in(first.folder)
    with pytest.raises(FileExistsError, match="Dataset005_Cells exists"):
        write_dataset(**arguments, dataset_id=5, name="Cells")
    with pytest.raises(FileExistsError, match="number of a data set must be free"):
        write_dataset(**arguments, dataset_id=5, name="Other", overwrite=True)
    assert files_in(first.folder) == before

    without = {**arguments, "val_images": None, "val_labels": None, "test_images": None}
    second = write_dataset(**without, dataset_id=5, name="Cells", overwrite=True)
    assert "imagesTs/d_0000.tif" not in files_in(second.folder)
    assert first.split is not None
    assert not first.split.exists()

    (second.folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"does not write, such as notes\.txt"):
        write_dataset(**arguments, dataset_id=5, name="Cells", overwrite=True)


def test_a_failed_replacement_leaves_the_old_data_set(cells, tmp_path):
    arguments = {**cells, "output": tmp_path / "raw", "dataset_id": 5, "name": "Cells"}
    folder = write_dataset(**arguments).folder
    before = {name: (folder / name).read_bytes() for name in files_in(folder)}
    (cells["test_images"] / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        write_dataset(**arguments, overwrite=True)
    assert {name: (folder / name).read_bytes() for name in files_in(folder)} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


# --- predictions ---------------------------------------------------------------------------------


def test_files_of_nnunet_itself():
    """Written by nnunetv2 2.8.1 after three iterations on the phase-contrast samples."""
    assert is_prediction_folder(REAL)
    found = find_predictions(REAL)
    assert found == {"set45_200": REAL / "set45_200.npz"}
    with np.load(found["set45_200"]) as arrays:
        stored = arrays["probabilities"]
    classes = tifffile.imread(REAL / "set45_200.tif")
    assert stored.shape == (3, 1, *classes.shape) == (3, 1, 64, 80)
    fair = read_prediction(found["set45_200"])
    assert np.array_equal(fair, Boundaries().decode([stored[1:, 0].sum(axis=0), stored[2, 0]]))
    assert fair.max() > 0
    paper = read_prediction(found["set45_200"], protocol="published")
    assert np.array_equal(paper, read_prediction(REAL / "set45_200.tif", protocol="published"))
    assert not (paper[classes != 1]).any()


@pytest.fixture
def predicted(tmp_path):
    """A folder as nnU-Net writes it, with the classes of two big cells, not square."""
    folder = tmp_path / "predicted"
    folder.mkdir()
    classes = to_classes(np.kron(TWO_CELLS, np.ones((5, 5), int)))
    np.savez_compressed(folder / "cell_10.npz", probabilities=hard(classes, 3)[:, None])
    for name in ("cell_10", "cell_2"):
        tifffile.imwrite(folder / f"{name}.tif", classes)
        (folder / f"{name}.pkl").write_bytes(pickle.dumps({"spacing": (999, 1, 1)}))
    labels = {name: i for i, name in enumerate(CLASSES["boundaries"])}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    for name in ("plans.json", "predict_from_raw_data_args.json"):
        (folder / name).write_text("{}")
    return folder


BIG = np.kron(TWO_CELLS, np.ones((5, 5), int))


def test_predictions_are_found(predicted):
    assert is_prediction_folder(predicted)
    assert {name: file.name for name, file in find_predictions(predicted).items()} == {
        "cell_2": "cell_2.tif",
        "cell_10": "cell_10.npz",
    }
    assert list(find_predictions(predicted)) == ["cell_2", "cell_10"]
    for file in find_predictions(predicted).values():
        assert np.array_equal(read_prediction(file), BIG)


def test_the_validation_of_a_training_is_found(predicted, tmp_path):
    validation = tmp_path / "trained" / "fold_0" / "validation"
    validation.mkdir(parents=True)
    shutil.move(predicted / "dataset.json", tmp_path / "trained" / "dataset.json")
    shutil.move(predicted / "cell_2.tif", validation / "cell_2.tif")
    (validation / "summary.json").write_text("{}")
    assert is_prediction_folder(validation)
    assert list(find_predictions(validation)) == ["cell_2"]


def test_other_folders_are_none(predicted, tmp_path, samples):
    assert not is_prediction_folder(samples / "phase" / "test" / "labels")
    assert not is_prediction_folder(tmp_path / "nowhere")
    (predicted / "dataset.json").unlink()
    assert is_prediction_folder(predicted)  # by its probabilities
    (predicted / "cell_10.npz").write_bytes(b"PK")
    assert not is_prediction_folder(predicted)
    np.savez(predicted / "cell_10.npz", masks=np.zeros(3))
    assert not is_prediction_folder(predicted)
    with pytest.raises(FileNotFoundError, match="No such folder"):
        find_predictions(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="No such file"):
        read_prediction(predicted / "cell_3.npz")


def test_the_label_file_tells_the_order_of_axes(predicted):
    file = predicted / "cell_10.npz"
    turned = hard(to_classes(BIG), 3).swapaxes(1, 2)[:, None]
    np.savez_compressed(file, probabilities=turned)
    assert np.array_equal(read_prediction(file), BIG)
    (predicted / "cell_10.tif").unlink()
    assert np.array_equal(read_prediction(file), BIG.T)


def test_probabilities_of_another_run(predicted):
    tifffile.imwrite(predicted / "cell_10.tif", np.zeros(BIG.shape, np.uint8))
    with pytest.raises(ValueError, match=r"cell_10\.npz .*are not those of cell_10\.tif"):
        read_prediction(predicted / "cell_10.npz")
    tifffile.imwrite(predicted / "cell_10.tif", np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError, match=r"are not those of cell_10\.tif"):
        read_prediction(predicted / "cell_10.npz")


def npy(shape: str, dtype: str = "<f4", data: bytes = b"") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def archive(content: bytes, name: str = "probabilities.npy") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(name, content)
    return file.getvalue()


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return archive(file.getvalue())


GOOD = hard(to_classes(BIG), 3)[:, None]
NOT_FINITE = np.where(GOOD == 1, np.nan, GOOD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a zip"),
        (b"PK\x03\x04" + bytes(100), "not a zip"),
        (saved(GOOD)[:-200], "not a zip"),
        (archive(b"", "other.npy"), "no item named"),
        (archive(b"nonsense"), "magic"),
        (archive(npy("(3, 1, 1000000, 1000000)")), "bytes cannot hold an array"),
        (archive(npy("(3, 1, 99999999999, 99999999999)")), "bytes cannot hold an array"),
        (archive(npy("(3, 1, 5, 5)", data=bytes(40))), "is no prediction of nnU-Net"),
        (archive(npy("(3, 1, -5, -5)", data=bytes(300))), "is no prediction of nnU-Net"),
        (archive(npy("(3, 1, 0, 5)")), "bytes cannot hold an array"),
        (archive(npy("(3, 1, 5, 5)", "|O", pickle.dumps([1]))), "must be floats"),
        (saved(GOOD.astype(np.uint8)), "must be floats of shape"),
        (saved(GOOD[0, 0]), "must be floats of shape"),
        (saved(np.concatenate([GOOD, GOOD], axis=1)), "must be floats of shape"),
        (saved(NOT_FINITE), r"must lie in \[0, 1\]"),
        (saved(GOOD * 3 - 1), r"must lie in \[0, 1\]"),
        (saved(GOOD[:2]), "one map per class, background, interior, boundary, got 2 maps"),
    ],
)
def test_broken_and_hostile_probabilities(predicted, content, message):
    file = predicted / "cell_2.npz"
    (predicted / "cell_2.tif").unlink()
    file.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=rf"cell_2\.npz is no prediction of nnU-Net: .*{message}|"
        rf"cell_2\.npz {message}",
    ):
        read_prediction(file)


def test_a_flipped_byte_in_packed_probabilities(predicted):
    file = predicted / "cell_10.npz"
    content = bytearray(file.read_bytes())
    content[200:260] = bytes(60)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"cell_10\.npz is no prediction"):
        read_prediction(file)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((5, 6), 3, np.uint8), "classes must be numbered 0 to 2, got 3"),
        (np.full((5, 6), 1.5, np.float32), "whole numbers"),
        (np.zeros((4, 5, 6), np.uint8), r"classes must have shape \(y, x\)"),
        (np.full((5, 6), -1, np.int16), "negative"),
    ],
)
def test_broken_classes(predicted, array, message):
    tifffile.imwrite(predicted / "cell_2.tif", array)
    with pytest.raises(ValueError, match=rf"cell_2\.tif is no prediction of nnU-Net: .*{message}"):
        read_prediction(predicted / "cell_2.tif")


def test_truncated_classes(predicted):
    file = predicted / "cell_2.tif"
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"cell_2\.tif"):
        read_prediction(file)


@pytest.mark.parametrize(
    "description",
    ["{", "[1, 2]", "{}", '{"labels": {"background": 0, "all": [1, 2]}}', '{"labels": {"a": 1}}'],
)
def test_broken_descriptions(predicted, description):
    (predicted / "dataset.json").write_text(description)
    with pytest.raises(ValueError, match=r"cell_2\.tif is no prediction of nnU-Net"):
        read_prediction(predicted / "cell_2.tif")


def test_the_ignore_label_is_no_class(predicted):
    labels = {"background": 0, "interior": 1, "boundary": 2, "ignore": 3}
    (predicted / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert np.array_equal(read_prediction(predicted / "cell_10.npz"), BIG)


def nifti(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """A NIfTI-1 file of uint8 written field by field; x is the fastest axis."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    dims = (array.T.shape if shape is None else shape) + (1,)
    struct.pack_into("<8h", header, 40, len(dims), *dims, *[1] * (7 - len(dims)))
    struct.pack_into("<hh", header, 70, 2, 8)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    return bytes(header) + array.astype(np.uint8).tobytes()


def test_nifti(predicted):
    pytest.importorskip("nibabel")
    file = predicted / "cell_3.nii.gz"
    file.write_bytes(gzip.compress(nifti(to_classes(BIG))))
    assert find_predictions(predicted)["cell_3"] == file
    assert np.array_equal(read_prediction(file), BIG)
    file.write_bytes(gzip.compress(nifti(to_classes(BIG)))[:-60])
    with pytest.raises(ValueError, match=r"cell_3\.nii\.gz is no prediction"):
        read_prediction(file)
    file.write_bytes(gzip.compress(nifti(to_classes(BIG), shape=(30000, 30000))))
    with pytest.raises(ValueError, match="bytes cannot hold an array"):
        read_prediction(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"cell_3\.nii\.gz is no prediction"):
        read_prediction(file)


def test_nifti_without_nibabel(predicted, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    (predicted / "cell_3.nii.gz").write_bytes(b"")
    with pytest.raises(ImportError, match=r"pip install 'vimunet\[benchmark\]'"):
        read_prediction(predicted / "cell_3.nii.gz")
