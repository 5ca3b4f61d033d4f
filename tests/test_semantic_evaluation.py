"""Scores of classes: worked by hand, by the slowest loop, and by other libraries."""

import csv
import json
from itertools import product
from math import hypot, isnan, sqrt

import numpy as np
import pytest
import tifffile
from scipy.spatial import distance
from scipy.spatial.distance import directed_hausdorff

from vimunet.io.tables import write_csv, write_json
from vimunet.representations.semantic import Semantic
from vimunet.scores.classes import (
    dice_and_iou,
    evaluate_semantic,
    hausdorff_distance,
    summarize_semantic,
)
from vimunet.scores.folders import evaluate_semantic_folders
from vimunet.training.tuning import tune_thresholds as tune_threshold

LABELS = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
PREDICTION = np.array([[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]])  # TP 2, FP 2, FN 1, TN 5
EMPTY = np.zeros_like(LABELS)


def blobs(rng, shape=(30, 41), count=3):
    """A mask of a few boxes."""
    mask = np.zeros(shape, bool)
    for _ in range(count):
        corner = [rng.integers(0, length - 5) for length in shape]
        box = tuple(slice(start, start + int(rng.integers(3, 14))) for start in corner)
        mask[box] = True
    return mask


# Two classes


def test_two_classes_of_a_hand_worked_image():
    scores = evaluate_semantic(PREDICTION, LABELS)
    assert [scores[key] for key in ("TP", "FP", "FN", "TN")] == [2, 2, 1, 5]
    assert scores["Dice"] == pytest.approx(4 / 7)
    assert scores["IoU"] == pytest.approx(2 / 5)
    assert scores["mIoU"] == pytest.approx((2 / 5 + 5 / 8) / 2)
    assert scores["accuracy"] == pytest.approx(7 / 10)
    assert scores["sensitivity"] == pytest.approx(2 / 3)
    assert scores["specificity"] == pytest.approx(5 / 7)
    assert scores["HD95"] == pytest.approx(1)  # see the loop below
    assert (scores["missed"], scores["invented"]) == (0, 0)
    assert dice_and_iou(PREDICTION, LABELS) == (scores["Dice"], scores["IoU"])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_masks_and_integers_score_the_same(dtype):
    assert evaluate_semantic(PREDICTION.astype(dtype), LABELS.astype(dtype)) == evaluate_semantic(
        PREDICTION, LABELS
    )


def test_dice_and_iou_are_those_of_scipy(rng):
    for _ in range(20):
        one, two = blobs(rng), blobs(rng)
        dice, iou = dice_and_iou(one, two)
        assert dice == pytest.approx(1 - distance.dice(one.ravel(), two.ravel()))
        assert iou == pytest.approx(1 - distance.jaccard(one.ravel(), two.ravel()))
        assert dice == pytest.approx(2 * iou / (1 + iou))


def test_nothing_there_and_nothing_found_is_right():
    scores = evaluate_semantic(EMPTY, EMPTY)
    assert [scores[key] for key in ("Dice", "IoU", "mIoU", "accuracy", "specificity")] == [1] * 5
    assert scores["HD95"] == 0
    assert isnan(scores["sensitivity"])
    assert (scores["missed"], scores["invented"]) == (0, 0)


@pytest.mark.parametrize(
    ("prediction", "labels", "missed"), [(EMPTY, LABELS, 1), (LABELS, EMPTY, 0)]
)
def test_a_missed_and_an_invented_structure_are_as_wrong_as_can_be(prediction, labels, missed):
    scores = evaluate_semantic(prediction, labels, spacing=(3, 1))
    assert (scores["Dice"], scores["IoU"]) == (0, 0)
    assert scores["HD95"] == hypot(3, 4)  # from corner to corner of 2 x 5 pixels
    assert (scores["missed"], scores["invented"]) == (missed, 1 - missed)


def test_foreground_everywhere_leaves_specificity_undefined():
    full = np.ones((3, 3), int)
    scores = evaluate_semantic(full, full)
    assert isnan(scores["specificity"])
    assert (scores["mIoU"], scores["sensitivity"]) == (1, 1)


# More classes


def test_three_classes_of_a_hand_worked_image():
    labels = np.array([[1, 1, 2, 2], [0, 0, 0, 0]])
    prediction = np.array([[1, 1, 2, 1], [0, 0, 2, 0]])
    scores = evaluate_semantic(prediction, labels, num_classes=3)
    assert [scores[f"{name}_1"] for name in ("TP", "FP", "FN")] == [2, 1, 0]
    assert [scores[f"{name}_2"] for name in ("TP", "FP", "FN")] == [1, 1, 1]
    assert [scores[f"{name}_0"] for name in ("TP", "FP", "FN")] == [3, 0, 1]
    assert (scores["Dice_1"], scores["Dice_2"]) == (4 / 5, 2 / 4)
    assert scores["Dice"] == pytest.approx((4 / 5 + 2 / 4) / 2)
    assert scores["IoU"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert scores["mIoU"] == pytest.approx((3 / 4 + 2 / 3 + 1 / 3) / 3)
    assert scores["accuracy"] == pytest.approx(6 / 8)
    assert scores["sensitivity"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["specificity"] == pytest.approx((5 / 6 + 5 / 6) / 2)
    assert scores["HD95"] == pytest.approx((scores["HD95_1"] + scores["HD95_2"]) / 2)


def test_an_absent_class_is_not_judged_a_missed_one_is():
    labels = np.array([[1, 1, 0, 0]])
    right = evaluate_semantic(labels, labels, num_classes=4)
    assert (right["Dice"], right["HD95"]) == (1, 0)
    assert isnan(right["Dice_2"])
    assert isnan(right["HD95_3"])
    both = np.array([[1, 1, 2, 0]])
    missed = evaluate_semantic(labels, both, num_classes=4)
    assert (missed["Dice"], missed["missed"], missed["invented"]) == (0.5, 1, 0)
    assert (missed["HD95_2"], missed["HD95"]) == (3, 1.5)
    invented = evaluate_semantic(both, labels, num_classes=4)
    assert (invented["Dice"], invented["missed"], invented["invented"]) == (0.5, 0, 1)


def test_scores_follow_the_classes_when_they_are_renamed(rng):
    labels, prediction = rng.integers(0, 4, (2, 12, 13))
    new = np.array([0, 3, 1, 2])
    one = evaluate_semantic(prediction, labels, num_classes=4)
    two = evaluate_semantic(new[prediction], new[labels], num_classes=4)
    for key in ("Dice", "IoU", "mIoU", "accuracy", "sensitivity", "specificity", "HD95"):
        assert one[key] == pytest.approx(two[key])
    assert one["Dice_1"] == two["Dice_3"]
    perfect = evaluate_semantic(labels, labels, num_classes=4)
    assert {perfect[key] for key in ("Dice", "IoU", "mIoU", "accuracy", "sensitivity")} == {1}


# The distance of outlines


def slow_hausdorff(one, two, spacing, percentile, pooled):
    """By the definition, pixel by pixel."""

    def outline(mask):
        pixels = []
        for place in product(*map(range, mask.shape)):
            neighbours = [
                tuple(np.array(place) + step * np.eye(mask.ndim, dtype=int)[axis])
                for axis in range(mask.ndim)
                for step in (-1, 1)
            ]
            inside = [
                all(0 <= i < n for i, n in zip(p, mask.shape, strict=True)) and mask[p]
                for p in neighbours
            ]
            if mask[place] and not all(inside):
                pixels.append(np.array(place) * spacing)
        return pixels

    outlines = [outline(one), outline(two)]
    distances = [
        [min(sqrt(((a - b) ** 2).sum()) for b in other) for a in own]
        for own, other in (outlines, outlines[::-1])
    ]
    if pooled:
        return np.percentile(sum(distances, []), percentile)
    return max(np.percentile(each, percentile) for each in distances)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("percentile", [95, 100])
def test_distance_is_that_of_the_definition(rng, pooled, percentile):
    for spacing, shape in [((1, 1), (14, 17)), ((2.5, 0.4), (14, 17)), ((3, 1, 1), (5, 9, 8))]:
        one, two = (
            blobs(rng, shape, 2) if len(shape) == 2 else rng.random(shape) < 0.1 for _ in "ab"
        )
        found = hausdorff_distance(one, two, spacing=spacing, percentile=percentile, pooled=pooled)
        slow = slow_hausdorff(one, two, np.array(spacing), percentile, pooled)
        assert found == pytest.approx(slow)


def test_distance_of_two_hand_worked_squares():
    one, two = np.zeros((2, 20, 20), bool)
    one[2:7, 2:7] = True
    two[2:7, 5:10] = True
    assert hausdorff_distance(one, two, percentile=100) == 3
    assert hausdorff_distance(one, two, percentile=100, spacing=(1, 0.5)) == 1.5
    assert hausdorff_distance(one, two, percentile=100, spacing=2) == 6
    stray = one.copy()
    stray[19, 19] = True  # the last of 17 pixels of the outline; 15/16 of the way is 93.75 %
    assert hausdorff_distance(stray, one, percentile=100) == hypot(13, 13)
    assert hausdorff_distance(stray, one, percentile=93) == 0
    assert hausdorff_distance(stray, one, percentile=96, pooled=True) == 0  # 1 of 33


def test_largest_distance_of_boxes_apart_is_scipys(rng):
    """Of whole masks, which for boxes side by side is that of their outlines."""
    for _ in range(10):
        one, two = np.zeros((2, 30, 60), bool)
        one[5 : rng.integers(7, 25), 5 : rng.integers(7, 25)] = True
        two[rng.integers(2, 15) : 20, 30 : rng.integers(35, 55)] = True
        places = [np.argwhere(mask) for mask in (one, two)]
        whole = max(directed_hausdorff(*places)[0], directed_hausdorff(*places[::-1])[0])
        assert hausdorff_distance(one, two, percentile=100) == pytest.approx(whole)


@pytest.mark.parametrize("shape", [(30, 41), (12, 20, 17)])
def test_distance_is_medpys_and_monais(rng, shape):
    medpy = pytest.importorskip("medpy.metric.binary")
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    for spacing in ((1.0,) * len(shape), (2.0, 0.5, 0.7)[: len(shape)]):
        for _ in range(10):
            one, two = blobs(rng, shape), blobs(rng, shape)
            pooled = hausdorff_distance(one, two, spacing=spacing, pooled=True)
            assert pooled == pytest.approx(medpy.hd95(one, two, voxelspacing=spacing))
            larger = monai.compute_hausdorff_distance(
                torch.from_numpy(one)[None, None],
                torch.from_numpy(two)[None, None],
                include_background=True,
                percentile=95,
                spacing=list(spacing),
            ).item()
            assert hausdorff_distance(one, two, spacing=spacing) == pytest.approx(larger, rel=1e-5)


def test_overlap_is_medpys_and_monais(rng):
    medpy = pytest.importorskip("medpy.metric.binary")
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    for _ in range(10):
        one, two = blobs(rng), blobs(rng)
        scores = evaluate_semantic(one, two)
        assert scores["Dice"] == pytest.approx(medpy.dc(one, two))
        assert scores["IoU"] == pytest.approx(medpy.jc(one, two))
        assert scores["sensitivity"] == pytest.approx(medpy.sensitivity(one, two))
        assert scores["specificity"] == pytest.approx(medpy.specificity(one, two))
        classes = rng.integers(0, 4, (2, 1, 9, 9))
        onehot = [torch.from_numpy(np.stack([c == i for i in range(4)], axis=1)) for c in classes]
        expected = monai.compute_iou(*onehot, include_background=True)[0].tolist()
        scores = evaluate_semantic(classes[0, 0], classes[1, 0], num_classes=4)
        assert [scores[f"IoU_{i}"] for i in (1, 2, 3)] == pytest.approx(expected[1:], rel=1e-5)
        assert scores["mIoU"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_empty_masks_have_the_diagonal():
    full, empty = np.ones((4, 5), bool), np.zeros((4, 5), bool)
    assert hausdorff_distance(empty, full) == hausdorff_distance(full, empty) == 5
    assert hausdorff_distance(empty, full, spacing=(2, 1)) == hypot(6, 4)
    assert hausdorff_distance(empty, empty) == 0
    assert hausdorff_distance(np.array([[0]]), np.array([[1]]), spacing=0.5) == 0.5


# As published


def test_published_definitions_of_two_classes():
    scores = evaluate_semantic(PREDICTION, LABELS, protocol="published")
    assert scores["mIoU"] == scores["IoU"] == pytest.approx(2 / 5)  # no mean over classes
    assert scores["Dice"] == pytest.approx(4 / 7)
    assert scores["HD95"] == hausdorff_distance(PREDICTION, LABELS, pooled=True)
    full = np.ones((2, 2), int)
    assert evaluate_semantic(full, full, protocol="published")["specificity"] == 0


@pytest.mark.parametrize(
    ("prediction", "labels", "dice", "hd95"),
    [
        (LABELS, EMPTY, 1, 0),  # invented: the best Dice
        (EMPTY, LABELS, 0, 0),  # missed: the best distance
        (EMPTY, EMPTY, 0, 0),
    ],
)
def test_published_scores_of_what_is_missed_or_invented(prediction, labels, dice, hd95):
    scores = evaluate_semantic(prediction, labels, protocol="published")
    assert (scores["Dice"], scores["HD95"]) == (dice, hd95)
    several = evaluate_semantic(2 * prediction, 2 * labels, num_classes=4, protocol="published")
    assert (several["Dice_2"], several["HD95_2"]) == (dice, hd95)
    assert several["Dice"] == pytest.approx(dice / 3)  # absent classes count, as 0


def test_published_scores_are_medpys(rng):
    medpy = pytest.importorskip("medpy.metric.binary")
    volumes = rng.integers(0, 3, (2, 6, 9, 9))
    scores = evaluate_semantic(*volumes, num_classes=4, protocol="published")
    dice = [medpy.dc(volumes[0] == i, volumes[1] == i) for i in (1, 2)]
    hd95 = [medpy.hd95(volumes[0] == i, volumes[1] == i) for i in (1, 2)]
    assert scores["Dice"] == pytest.approx(sum(dice) / 3)
    assert scores["HD95"] == pytest.approx(sum(hd95) / 3)


def test_published_scores_of_isic_are_of_all_pixels():
    """DSC = 2 IoU / (1 + IoU): the published pair 81.35 and 89.71 fulfils it, means would not."""
    iou, dice = 0.8135, 0.8971
    assert 2 * iou / (1 + iou) == pytest.approx(dice, abs=1e-4)
    images = [
        {"name": name, **evaluate_semantic(prediction, labels, protocol="published")}
        for name, prediction, labels in [("a", PREDICTION, LABELS), ("b", EMPTY, LABELS)]
    ]
    micro = summarize_semantic(images, protocol="published")["micro"]
    assert micro["mIoU"] == pytest.approx(2 / (2 + 2 + 1 + 3))
    assert micro["Dice"] == pytest.approx(2 * micro["mIoU"] / (1 + micro["mIoU"]))
    assert micro["accuracy"] == pytest.approx((2 + 5 + 7) / 20)
    nothing = [{"name": "c", **evaluate_semantic(LABELS, EMPTY, protocol="published")}]
    assert summarize_semantic(nothing, protocol="published")["micro"]["Dice"] == 0


# Many images


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("protocol", ["fair", "published"])
def test_micro_is_the_score_of_one_large_image(rng, num_classes, protocol):
    predictions, labels = rng.integers(0, num_classes, (2, 5, 8, 9))
    options = {"num_classes": num_classes, "protocol": protocol}
    images = [
        {"name": str(i), **evaluate_semantic(predictions[i], labels[i], **options)}
        for i in range(5)
    ]
    result = summarize_semantic(images, protocol=protocol)
    whole = evaluate_semantic(np.concatenate(predictions), np.concatenate(labels), **options)
    for key, value in result["micro"].items():
        assert value == pytest.approx(whole[key])
    assert result["mean"]["Dice"] == pytest.approx(np.mean([image["Dice"] for image in images]))
    for key, value in result["micro"].items():
        low, high = result["micro_confidence"][key]
        assert low <= value <= high
        assert low < high
    keys = ["TP", "FP"] if num_classes == 2 else ["TP_0", "FN_3"]
    assert [result["total"][key] for key in keys] == [whole[key] for key in keys]


def test_intervals_are_those_of_images_drawn_again():
    right, wrong = evaluate_semantic(LABELS, LABELS), evaluate_semantic(EMPTY, LABELS)
    images = [{"name": "right", **right}, {"name": "wrong", **wrong}]
    result = summarize_semantic(images)
    # Of two images both are drawn twice in a quarter of the samples each.
    assert result["confidence"]["Dice"] == result["micro_confidence"]["Dice"] == [0, 1]
    alone = summarize_semantic(images[:1])
    assert alone["micro_confidence"]["IoU"] == [1, 1]
    assert result["total"]["missed"] == 1


@pytest.fixture
def folders(tmp_path):
    """Labels as masks of 0 and 255, predictions as classes; one prediction is missing."""
    for kind in ("predictions", "labels"):
        (tmp_path / kind).mkdir()
    tifffile.imwrite(tmp_path / "labels" / "a.tif", (LABELS * 255).astype(np.uint8))
    tifffile.imwrite(tmp_path / "labels" / "b.tif", (LABELS * 255).astype(np.uint8))
    tifffile.imwrite(tmp_path / "predictions" / "a.tif", PREDICTION.astype(np.uint16))
    tifffile.imwrite(tmp_path / "predictions" / "c.tif", PREDICTION.astype(np.uint16))
    return tmp_path / "predictions", tmp_path / "labels"


def test_folders_of_masks_and_classes(folders, caplog):
    result = evaluate_semantic_folders(*folders, spacing=2.0)
    first, second = result["images"]
    assert first == {"name": "a", **evaluate_semantic(PREDICTION, LABELS, spacing=2.0)}
    assert second == {"name": "b", **evaluate_semantic(EMPTY, LABELS, spacing=2.0)}
    assert (result["missing"], result["extra"]) == (["b"], ["c"])
    assert "No prediction, scored as empty: b" in caplog.text
    assert result["settings"] == {"num_classes": 2, "spacing": 2.0, "protocol": "fair"}
    assert result["mean"]["Dice"] == pytest.approx(2 / 7)


def test_tables_of_folders(folders, tmp_path):
    result = evaluate_semantic_folders(*folders)
    write_json(tmp_path / "scores.json", result)
    read = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert read["micro"] == result["micro"]
    write_csv(tmp_path / "scores.csv", result)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["a", "b", "mean", "low", "high", "micro", "micro low", "micro high"]
    assert float(rows["micro"]["IoU"]) == result["micro"]["IoU"] == 2 / 8
    assert float(rows["micro high"]["IoU"]) == result["micro_confidence"]["IoU"][1]
    assert rows["micro"]["HD95"] == ""
    assert rows["a"]["TP"] == "2"


def test_a_file_that_is_wrong_is_named(folders):
    with pytest.raises(ValueError, match=r"a.tif: `prediction` must have|a.tif: .*same shape"):
        tifffile.imwrite(folders[0] / "a.tif", np.zeros((3, 3), np.uint8))
        evaluate_semantic_folders(*folders)
    tifffile.imwrite(folders[0] / "a.tif", 3 * LABELS.astype(np.uint8))
    with pytest.raises(ValueError, match=r"a.tif: `prediction` must be classes in 0 ... 1, got 0"):
        evaluate_semantic_folders(*folders)


# The threshold


def test_tuning_finds_the_best_threshold():
    labels = [np.array([[1, 1, 0, 0]]), np.array([[1, 0, 0, 0]])]
    maps = [np.array([[[0.9, 0.75, 0.65, 0.1]]], "f4"), np.array([[[0.8, 0.6, 0.2, 0.1]]], "f4")]
    best, score, table = tune_threshold(Semantic(), maps, labels)
    assert best == Semantic(foreground_threshold=0.7)
    assert score == 1
    assert table[0] == {
        "foreground_threshold": 0.5,
        "Dice": pytest.approx((2 * 2 / 5 + 2 * 1 / 3) / 2),
    }
    assert len(table) == 9
    flat = [np.array([[[1, 1, 0, 0]]], "f4")]
    start = Semantic(foreground_threshold=0.45)
    assert tune_threshold(start, flat, labels[:1])[0] == start  # no gain, no change


def test_with_more_classes_there_is_nothing_to_tune():
    maps, labels = [Semantic(3).encode(np.array([[0, 1, 2]]))], [np.array([[0, 1, 2]])]
    best, score, table = tune_threshold(Semantic(3), maps, labels)
    assert (best, score, len(table)) == (Semantic(3), 1, 1)


def test_tuning_refuses_unpaired_images():
    with pytest.raises(ValueError, match="same number of images, at least one, got 0 and 0"):
        tune_threshold(Semantic(), [], [])


# Wrong arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 1}, ValueError, "`num_classes` must be at least 2, got 1"),
        ({"protocol": "best"}, ValueError, "Unknown protocol 'best'. Known: fair, published"),
        ({"spacing": 0}, ValueError, "`spacing` must be one or 2 numbers > 0, got 0"),
        ({"spacing": (1, 1, 1)}, ValueError, "`spacing` must be one or 2 numbers"),
        (
            {"spacing": 2, "protocol": "published"},
            ValueError,
            'must be 1 with protocol "published", got 2',
        ),
        ({"labels": LABELS[:1]}, ValueError, r"same shape .*got \(2, 5\) and \(1, 5\)"),
        ({"labels": LABELS + 1}, ValueError, "`labels` must be classes in 0 ... 1, got 1 to 2"),
        ({"labels": -LABELS}, ValueError, "`labels` must be classes in 0 ... 1, got -1 to 0"),
        ({"labels": LABELS / 2}, TypeError, "`labels` must be of an integer type or a mask"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        evaluate_semantic(**{"prediction": PREDICTION, "labels": LABELS, **options})


def test_wrong_arguments_of_the_distance_are_named():
    with pytest.raises(ValueError, match=r"same shape with at least one pixel, got \(2,\)"):
        hausdorff_distance(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match=r"`percentile` must lie in \[0, 100\], got 101"):
        hausdorff_distance(np.ones(3), np.ones(3), percentile=101)
