"""LIVECell: polygons to labels, file layouts, and the cache of label images."""

import builtins
import json
import pickle
import shutil

import numpy as np
import pytest
import tifffile
from scipy.ndimage import find_objects
from skimage.draw import polygon as draw_polygon

pytest.importorskip("pycocotools")

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from vimunet.datasets import livecell
from vimunet.datasets.livecell import livecell_samples, polygons_to_labels


def box(top, left, height, width, crowd=0, area=None):
    """A COCO annotation that covers exactly these pixels."""
    right, bottom = left + width, top + height
    return {
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        "area": height * width if area is None else area,
        "iscrowd": crowd,
    }


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    """Keep the label images that cannot lie beside the data out of the home folder."""
    folder = tmp_path / "user cache"
    monkeypatch.setattr(livecell.pooch, "os_cache", lambda name: folder / name)
    return folder


def make_data(
    root, split="train", names=("A172_1.tif", "BV2_2.tif", "BV2_10.tif"), subfolders=True
):
    part = "livecell_test_images" if split == "test" else "livecell_train_val_images"
    images, annotations = [], []
    for number, name in enumerate(names):
        folder = root / "images" / part / (name.split("_")[0] if subfolders else "")
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / name, np.full((20, 30), number, np.uint8))
        images.append({"id": 7 * number, "file_name": name, "height": 20, "width": 30})
        for place in range(number + 1):
            annotation = box(0, 10 * place, 8, 8)
            annotations.append({"id": len(annotations), "image_id": 7 * number, **annotation})
    images.append({"id": 999, "file_name": "no_cells.tif", "height": 20, "width": 30})
    file = root / "annotations" / f"livecell_coco_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return file


def test_boxes_by_hand():
    labels = polygons_to_labels([box(1, 2, 3, 4), box(5, 0, 4, 10)], (9, 11), min_size=0)
    expected = np.zeros((9, 11), int)
    expected[1:4, 2:6] = 1
    expected[5:9, 0:10] = 2
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint16


def test_larger_wins_and_crowds_lose():
    small, large = box(0, 0, 10, 10), box(0, 5, 10, 20)
    for order in ([small, large], [large, small]):
        labels = polygons_to_labels(order, (10, 30), min_size=0)
        assert labels[0, 7] == labels[0, 20] != labels[0, 0] != 0
    crowd = box(0, 5, 10, 20, crowd=1)
    labels = polygons_to_labels([small, crowd], (10, 30), min_size=0)
    assert labels[0, 7] == labels[0, 0] != labels[0, 20] != 0


def test_equal_areas_are_painted_in_their_order():
    """Each box covers the last column of the one before; odd ones are larger, so come later."""
    boxes = [box(0, 3 * i, 4, 4, area=9 + i % 2) for i in range(200)]
    labels = polygons_to_labels(boxes, (4, 601), min_size=0)
    order = [*range(0, 200, 2), *range(1, 200, 2)]
    expected = np.zeros(601, int)
    for number, i in enumerate(order, start=1):
        expected[3 * i : 3 * i + 4] = number
    np.testing.assert_array_equal(labels, np.tile(expected, (4, 1)))


def test_small_objects_go_after_painting_and_numbers_close_up():
    hidden = box(0, 0, 9, 9)  # 81 pixels, of which the larger one leaves 9
    boxes = [box(20, 0, 7, 7), hidden, box(1, 0, 9, 10), box(20, 20, 5, 10)]
    labels = polygons_to_labels(boxes, (40, 40))
    expected = np.zeros((40, 40), int)
    expected[20:25, 20:30] = 1  # 50 pixels stay, 49 go
    expected[1:10, 0:10] = 2
    np.testing.assert_array_equal(labels, expected)
    assert polygons_to_labels(boxes, (40, 40), min_size=0).max() == 4


def test_no_annotation_and_an_empty_one():
    assert polygons_to_labels([], (4, 6)).shape == (4, 6)
    outside = box(50, 50, 8, 8)
    assert not polygons_to_labels([outside], (10, 10), min_size=0).any()


def test_several_outlines_and_run_lengths():
    two = box(0, 0, 3, 3)
    two["segmentation"].append(box(0, 6, 3, 3)["segmentation"][0])
    mask = np.zeros((8, 9), np.uint8, order="F")
    mask[5:8, 2:7] = 1
    code = coco_mask.encode(mask)
    counts, value = [], 0
    for pixel in mask.ravel(order="F"):  # plain run lengths: zeros first, column by column
        if pixel == value and counts:
            counts[-1] += 1
        else:
            counts.append(1)
            value = pixel
    plain = {"size": [8, 9], "counts": counts}
    for encoded in (code, plain):
        runs = {"segmentation": encoded, "area": 15, "iscrowd": 0}
        labels = polygons_to_labels([two, runs], (8, 9), min_size=0)
        expected = mask.astype(int)
        expected[0:3, 0:3] = expected[0:3, 6:9] = 2
        np.testing.assert_array_equal(labels, 2 * (expected == 1) + 1 * (expected == 2))


def test_polygons_agree_with_another_rasteriser(rng):
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 30 * (1 + 0.3 * np.sin(3 * angles))
    y, x = 45.3 + radius * np.sin(angles), 70.6 + radius * np.cos(angles)
    outline = np.stack([x, y], axis=1).ravel().tolist()
    annotation = {"segmentation": [outline], "area": 3000, "iscrowd": 0}
    painted = polygons_to_labels([annotation], (90, 130)) > 0
    expected = np.zeros((90, 130), bool)
    expected[draw_polygon(y - 0.5, x - 0.5, expected.shape)] = True
    assert (painted & expected).sum() / (painted | expected).sum() > 0.95


def test_missing_package_says_how_to_install(monkeypatch):
    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ImportError, match=r"pip install 'vimunet\[train\]'"):
        polygons_to_labels([], (4, 4))


@pytest.mark.parametrize("subfolders", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_samples_in_natural_order(tmp_path, split, subfolders):
    make_data(tmp_path, split, subfolders=subfolders)
    samples = livecell_samples(tmp_path, split)
    assert [sample.name for sample in samples] == ["A172_1", "BV2_2", "BV2_10"]
    for number, sample in enumerate(samples):
        image, labels = pickle.loads(pickle.dumps(sample)).read()
        assert image.shape == labels.shape == (20, 30)
        assert image.max() == number
        assert labels.max() == number + 1


@pytest.mark.parametrize("place", ["", "LIVECell", "annotations/LIVECell"])
def test_other_places_of_the_annotations(tmp_path, place):
    file = make_data(tmp_path)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    file.rename(tmp_path / place / file.name)
    assert len(livecell_samples(tmp_path, "train")) == 3
    shutil.move(tmp_path / "images" / "livecell_train_val_images", tmp_path)
    assert len(livecell_samples(tmp_path, "train")) == 3


def test_train_and_val_share_a_folder_but_no_images(tmp_path):
    make_data(tmp_path, "train", names=("A172_1.tif",))
    make_data(tmp_path, "val", names=("A172_2.tif",))
    assert [s.name for s in livecell_samples(tmp_path, "train")] == ["A172_1"]
    assert [s.name for s in livecell_samples(tmp_path, "val")] == ["A172_2"]
    assert [s.name for s in livecell_samples(tmp_path, "train")] == ["A172_1"]


def test_labels_are_painted_once(tmp_path, monkeypatch):
    make_data(tmp_path)
    first = [sample.read()[1] for sample in livecell_samples(tmp_path, "train")]
    assert (tmp_path / "labels_cache" / "train").is_dir()
    monkeypatch.setattr(livecell, "polygons_to_labels", None)
    monkeypatch.setattr(livecell.json, "loads", lambda text: json.JSONDecoder().decode(text))
    again = [sample.read()[1] for sample in livecell_samples(tmp_path, "train")]
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_cache_follows_annotations_and_smallest_size(tmp_path):
    file = make_data(tmp_path)
    assert livecell_samples(tmp_path, "train")[0].read()[1].max() == 1
    assert livecell_samples(tmp_path, "train", min_size=65)[0].read()[1].max() == 0
    content = json.loads(file.read_text())
    content["annotations"].append({"id": 77, "image_id": 0, **box(10, 10, 8, 8)})
    file.write_text(json.dumps(content))
    assert livecell_samples(tmp_path, "train")[0].read()[1].max() == 2


def test_interrupted_cache_is_made_again(tmp_path, monkeypatch):
    make_data(tmp_path)
    paint, calls = polygons_to_labels, []

    def stop_at_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return paint(*args, **kwargs)

    monkeypatch.setattr(livecell, "polygons_to_labels", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        livecell_samples(tmp_path, "train")
    assert len(livecell_samples(tmp_path, "train")) == 3
    assert not list(tmp_path.rglob("*.tmp"))


def test_read_only_data_use_the_cache_of_the_user(tmp_path, user_cache):
    root = tmp_path / "data"
    make_data(root)
    root.chmod(0o555)
    try:
        assert len(livecell_samples(root, "train")) == 3
        assert not (root / "labels_cache").exists()
        assert list(user_cache.rglob("index.json"))
        user_cache_only = livecell_samples(root, "train")[0].read()[1]
        assert user_cache_only.max() == 1
    finally:
        root.chmod(0o755)


def test_no_place_for_the_cache(tmp_path, user_cache, monkeypatch):
    make_data(tmp_path)
    monkeypatch.setattr(livecell, "_can_write", lambda folder: False)
    with pytest.raises(OSError, match="Neither .* nor .* can be written to"):
        livecell_samples(tmp_path, "train")


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="Unknown split 'valid'. Known: train, val, test"):
        livecell_samples(tmp_path, "valid")


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No livecell_coco_train.json .* `vimunet data"):
        livecell_samples(tmp_path, "train")
    make_data(tmp_path)
    (tmp_path / "images" / "livecell_train_val_images" / "BV2" / "BV2_10.tif").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images .*:\n  BV2_10.tif$"):
        livecell_samples(tmp_path, "train")
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(FileNotFoundError, match="No LIVECell images in .* `vimunet data livecell"):
        livecell_samples(tmp_path, "train")


def test_image_lost_after_the_cache_was_made(tmp_path):
    make_data(tmp_path)
    livecell_samples(tmp_path, "train")
    (tmp_path / "images" / "livecell_train_val_images" / "BV2" / "BV2_2.tif").unlink()
    with pytest.raises(FileNotFoundError, match=r"\n  BV2_2.tif$"):
        livecell_samples(tmp_path, "train")


def test_image_of_another_size(tmp_path):
    make_data(tmp_path)
    path = tmp_path / "images" / "livecell_train_val_images" / "BV2" / "BV2_2.tif"
    tifffile.imwrite(path, np.zeros((30, 20), np.uint8))
    with pytest.raises(ValueError, match=r"BV2_2.tif: \(30, 20\), annotated \(20, 30\)"):
        livecell_samples(tmp_path, "train")


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', '{"annotations": [{}]}'])
def test_file_that_is_no_coco_file(tmp_path, content):
    make_data(tmp_path).write_text(content)
    with pytest.raises(ValueError, match="livecell_coco_train.json is not a COCO file"):
        livecell_samples(tmp_path, "train")


def painted_by_hand(coco, image_id, min_size=50):
    """The slowest way to the same labels: whole masks, one after the other."""
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
    annotations.sort(key=lambda item: 1 if item["iscrowd"] else item["area"])
    labels = np.zeros((520, 704), int)
    for number, annotation in enumerate(annotations, start=1):
        labels[coco.annToMask(annotation) == 1] = number
    result, count = np.zeros_like(labels), 0
    for number in range(1, len(annotations) + 1):
        if (labels == number).sum() >= min_size:
            count += 1
            result[labels == number] = count
    return result


def test_real_images_agree_with_the_slow_way(shared_data):
    root = shared_data / "livecell_sample"
    coco = COCO(root / "annotations" / "livecell_coco_test.json")
    numbers = {item["file_name"]: item["id"] for item in coco.dataset["images"]}
    samples = livecell_samples(root, "test")
    assert len(samples) == len(numbers) == 8
    for sample in samples[2:4]:
        labels = sample.read()[1]
        np.testing.assert_array_equal(labels, painted_by_hand(coco, numbers[f"{sample.name}.tif"]))


@pytest.mark.parametrize(("split", "images", "objects"), [("val", 5, 1243), ("test", 8, 1398)])
def test_real_images(shared_data, split, images, objects):
    """Against labels painted in the other order (smaller on top), from the same polygons."""
    root = shared_data / "livecell_sample"
    samples = livecell_samples(root, split)
    assert len(samples) == images
    found = 0
    for sample in samples:
        image, labels = sample.read()
        assert image.shape == labels.shape == (520, 704)
        other = tifffile.imread(root / "labels" / split / f"{sample.name}.tif")
        assert not ((labels > 0) & (other == 0)).any()
        assert ((labels > 0) == (other > 0)).mean() > 0.9995  # less than 50 pixels: gone
        sizes, other_sizes = np.bincount(labels.ravel()), np.bincount(other.ravel())
        found += len(sizes) - 1
        ious = []
        for number, box in enumerate(find_objects(labels), start=1):
            overlap = np.bincount(other[box][labels[box] == number])
            partner = overlap.argmax()
            union = sizes[number] + other_sizes[partner] - overlap[partner]
            ious.append(overlap[partner] / union)
        assert np.median(ious) > 0.9
        assert np.mean(np.array(ious) > 0.5) > 0.97
    assert objects - 12 <= found <= objects


def test_an_image_under_two_ids_is_listed_once_with_the_first_labels(tmp_path, caplog):
    file = make_data(tmp_path)
    content = json.loads(file.read_text())
    twice = {**content["images"][2], "id": 123}  # three objects under its first id
    content["images"].append(twice)
    content["annotations"].append({"id": 50, "image_id": 123, **box(0, 0, 9, 9)})
    file.write_text(json.dumps(content))
    samples = livecell_samples(tmp_path, "train")
    assert [(s.name, s.read()[1].max()) for s in samples] == [
        ("A172_1", 1),
        ("BV2_2", 2),
        ("BV2_10", 3),
    ]
    assert "1 images of " in caplog.text
    assert "the annotations of the first are taken: BV2_10.tif." in caplog.text


@pytest.mark.parametrize("outline", [[], [[]], [[5, 5]], [[5, 5, 9, 9]], [[5, 5, 9, 9], []]])
def test_polygons_without_area_cover_nothing(outline):
    nothing = {"segmentation": outline, "area": 1, "iscrowd": 0}
    labels = polygons_to_labels([nothing, box(1, 2, 3, 4)], (9, 11), min_size=0)
    np.testing.assert_array_equal(
        labels, polygons_to_labels([box(1, 2, 3, 4)], (9, 11), min_size=0)
    )
    both = {**nothing, "segmentation": [*outline, *box(1, 2, 3, 4)["segmentation"]]}
    np.testing.assert_array_equal(polygons_to_labels([both], (9, 11), min_size=0), labels)


@pytest.mark.parametrize("outline", ["abc", {"size": [9, 11]}, [["a"] * 8], {"counts": 7}])
def test_an_outline_that_is_none_is_named(outline):
    wrong = {"id": 4711, "segmentation": outline, "area": 1, "iscrowd": 0}
    with pytest.raises(ValueError, match="The outline of annotation 4711 must be polygons or run"):
        polygons_to_labels([box(1, 2, 3, 4), wrong], (9, 11))
