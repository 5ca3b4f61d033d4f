"""Scores against hand-worked arrays, brute force, scikit-image, and numbers from elf.

`golden/evaluation.json` holds what elf, bioimage-py and scikit-image gave for `formula_pairs` and
`real_pairs` below; its note names their versions.
"""

import csv
import json
import logging
from dataclasses import dataclass
from itertools import permutations
from math import isnan, log2
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import adapted_rand_error, variation_of_information

from vimunet.io.tables import write_csv, write_json
from vimunet.representations import Representation, Tunable
from vimunet.scores import partitions
from vimunet.scores.folders import evaluate, evaluate_folders
from vimunet.scores.matching import Overlap
from vimunet.scores.objects import mean_segmentation_accuracy
from vimunet.scores.statistics import confidence_interval
from vimunet.training.tuning import tune_thresholds

LABELS = np.array(
    [
        [1, 1, 1, 2, 2, 2],
        [1, 1, 1, 2, 2, 2],
        [0, 0, 0, 3, 3, 3],
    ]
)
PREDICTION = np.array(
    [
        [4, 4, 4, 9, 9, 9],
        [4, 4, 0, 9, 9, 9],
        [5, 6, 0, 9, 9, 9],
    ]
)
# 4 and 1: IoU 5/6; 9 and 2: 6/9; 9 and 3: 3/9; 5 and 6 lie on background.

RIGHT_IF_ONE = ("mSA", "SA50", "SA75", "precision", "recall", "F1", "PQ", "SQ", "RQ")
untimed = settings(deadline=None, max_examples=50)  # a busy machine must not fail a test
small_labels = arrays(np.int64, (4, 5), elements=st.integers(0, 4))


# --- images for the oracles -----------------------------------------------------------------------


def formula_pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs (prediction, labels) made from formulas, the same on every machine."""
    y, x = np.mgrid[:60, :80]
    tiles = (y // 10) * 8 + x // 10 + 1
    cells = np.where((y % 10 < 2) | (x % 10 < 2), 0, tiles)
    noise = (y * 7919 + x * 104729 + (y * x) % 31) % 11
    ruler = np.repeat(np.arange(1, 12), 20).reshape(11, 20)  # k of 20 pixels found, k = 10 ... 20
    found = np.where(np.arange(20) < np.arange(10, 21)[:, None], ruler, 0)
    return {
        "shifted": (np.roll(cells, 1, 1), cells),
        "merged": ((cells + 1) // 2, cells),
        "split": (np.where(cells > 0, cells * 2 + x // 5 % 2, 0), cells),
        "halves": (np.where(cells > 0, cells * 2 + (x % 10 > 5), 0), cells),
        "partition": (tiles, cells),
        "partition_shifted": (np.roll(tiles, 3, 1), cells),
        "noise": (noise, (noise * 5 + x // 3) % 7),
        "ruler": (found, ruler),
        "nothing_predicted": (np.zeros_like(cells), cells),
        "nothing_labelled": (cells, np.zeros_like(cells)),
        "both_empty": (np.zeros_like(cells), np.zeros_like(cells)),
        "perfect": (cells[:, ::-1].max() + 1 - cells, cells.max() + 1 - cells),
    }


def real_pairs(shared_data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """FIB-SEM neurites segmented by gala; masks of Omnipose and others against spoilt copies."""
    pairs = {}
    neurites = shared_data / "gala_fibsem_mini" / "labels"
    truth = _stack(neurites / "test-gt.lzf.h5")
    for name in ("seg1", "seg4"):
        segmented = _stack(neurites / f"test-{name}.lzf.h5")
        pairs[f"gala_{name}"] = (segmented, truth)
        for z in (0, 13, 29, 49):
            pairs[f"gala_{name}_z{z}"] = (segmented[z], truth[z])
    masks = shared_data / "tiny_mixed" / "labels"
    spoilers = [_shifted, _eroded, _merged, _split]
    for i, file in enumerate(sorted([*masks.glob("omnipose_P*"), *masks.glob("[ns]*")])):
        labels = tifffile.imread(file).astype(np.int64)
        for spoil in (spoilers[i % 4], spoilers[(i + 1) % 4]):
            pairs[f"{file.stem}{spoil.__name__}"] = (spoil(labels), labels)
    return pairs


def _stack(path):
    with h5py.File(path) as file:
        return file["stack"][:]


def _shifted(labels):
    return np.roll(labels, (2, 3), (-2, -1))


def _eroded(labels):
    same = np.ones(labels.shape, bool)
    for axis in (-2, -1):
        for step in (1, -1):
            same &= labels == np.roll(labels, step, axis)
    return np.where(same, labels, 0)


def _merged(labels):
    return (labels + 2) // 3


def _split(labels):
    return np.where(labels > 0, labels * 2 + np.arange(labels.shape[-1]) // 9 % 2, 0)


# --- one image, worked by hand --------------------------------------------------------------------


def test_counts_and_ratios_by_hand():
    scores = evaluate(PREDICTION, LABELS)
    assert (scores["TP"], scores["FP"], scores["FN"]) == (2, 2, 1)
    assert scores["precision"] == 2 / 4
    assert scores["recall"] == 2 / 3
    assert scores["F1"] == scores["RQ"] == 4 / (4 + 2 + 1)
    assert scores["SQ"] == pytest.approx((5 / 6 + 6 / 9) / 2)
    assert scores["PQ"] == pytest.approx(0.75 * 4 / 7)


def test_segmentation_accuracy_by_hand():
    # 2 / 5 at .5 .55 .6 .65, where both pairs count; 1 / 6 at .7 .75 .8; none above
    scores = evaluate(PREDICTION, LABELS)
    assert scores["SA50"] == 2 / 5
    assert scores["SA75"] == 1 / 6
    assert scores["mSA"] == pytest.approx((4 * 2 / 5 + 3 * 1 / 6) / 10)
    assert mean_segmentation_accuracy(PREDICTION, LABELS) == scores["mSA"]


def test_counts_follow_the_threshold():
    scores = evaluate(PREDICTION, LABELS, threshold=0.7)
    assert (scores["TP"], scores["FP"], scores["FN"]) == (1, 3, 2)
    assert scores["SQ"] == pytest.approx(5 / 6)
    assert scores["mSA"] == pytest.approx(0.21)


def test_variation_of_information_by_hand():
    # Labelled pixels: 15. Object 1 (6 px) is 5 + 1 background; prediction 9 (9 px) is 6 + 3.
    scores = evaluate(PREDICTION, LABELS)
    split = -6 / 15 * (5 / 6 * log2(5 / 6) + 1 / 6 * log2(1 / 6))
    merge = -9 / 15 * (2 / 3 * log2(2 / 3) + 1 / 3 * log2(1 / 3))
    assert scores["VI_split"] == pytest.approx(split)
    assert scores["VI_merge"] == pytest.approx(merge)


def test_adapted_rand_error_by_hand():
    # Ordered pairs of labelled pixels: in both 5*4 + 6*5 + 3*2, prediction 5*4 + 9*8, labels
    # 6*5 + 6*5 + 3*2
    scores = evaluate(PREDICTION, LABELS)
    assert scores["rand_precision"] == pytest.approx(56 / 92)
    assert scores["rand_recall"] == pytest.approx(56 / 66)
    assert scores["ARE"] == pytest.approx(1 - 2 * 56 / (92 + 66))


def test_labelled_pixels_only_by_hand():
    # 5 and 6 lie outside the labels: no false positives. A prediction that fills the image is
    # as good as one that ends with the labels.
    scores = evaluate(PREDICTION, LABELS, labelled_pixels_only=True)
    assert (scores["TP"], scores["FP"], scores["FN"]) == (2, 0, 1)
    assert scores["SA50"] == 2 / 3
    filled = np.where(LABELS == 0, 1, LABELS)
    assert mean_segmentation_accuracy(filled, LABELS) < 1
    assert mean_segmentation_accuracy(filled, LABELS, labelled_pixels_only=True) == 1
    assert evaluate(filled, LABELS, labelled_pixels_only=True) == evaluate(
        np.where(LABELS == 0, 0, filled), LABELS
    )


@pytest.mark.parametrize("found", range(10, 21))
def test_iou_on_the_threshold_counts(found):
    labels = np.ones((1, 20), int)
    prediction = (np.arange(20) < found).astype(int)[None]
    thresholds_reached = min(found - 9, 10)  # 0.5 is reached by 10 of 20, 0.55 by 11, ...
    assert mean_segmentation_accuracy(prediction, labels) == pytest.approx(thresholds_reached / 10)
    assert evaluate(prediction, labels, threshold=found / 20)["TP"] == 1


def test_one_pixel_below_the_threshold_does_not_count():
    labels = np.ones((1, 200_000), np.uint8)
    prediction = labels.copy()
    prediction[0, :50_001] = 0
    assert evaluate(prediction, labels)["SA75"] == 0
    prediction[0, 50_000] = 1
    assert evaluate(prediction, labels)["SA75"] == 1


def test_two_halves_match_once():
    scores = evaluate(np.array([[1, 1, 2, 2]]), np.array([[3, 3, 3, 3]]))
    assert (scores["TP"], scores["FP"], scores["FN"]) == (1, 1, 0)


def test_matching_takes_more_pairs_before_better_ones():
    # IoU: 8-1 8/11, 8-2 1/9, 9-1 2/10. The best pair leaves 9 and 2 alone; the others are two.
    labels = np.array([[1] * 10 + [2]])
    prediction = np.array([[8] * 8 + [9] * 2 + [8]])
    best = evaluate(prediction, labels, threshold=0.15)
    assert (best["TP"], best["SQ"]) == (1, pytest.approx(8 / 11))
    most = evaluate(prediction, labels, threshold=0.1)
    assert (most["TP"], most["SQ"]) == (2, pytest.approx((1 / 9 + 2 / 10) / 2))


@untimed
@given(small_labels, small_labels, st.sampled_from([0.1, 0.2, 0.25, 0.4, 0.5, 0.6]))
def test_matching_equals_brute_force(prediction, labels, threshold):
    rows = [prediction == i for i in np.unique(prediction) if i]
    columns = [labels == i for i in np.unique(labels) if i]
    iou = [[float((a & b).sum() / (a | b).sum()) for b in columns] for a in rows]
    best = (0, 0.0)
    if rows and columns:
        if len(rows) > len(columns):
            iou = [list(column) for column in zip(*iou, strict=True)]
        for chosen in permutations(range(len(iou[0])), len(iou)):
            matched = [row[j] for row, j in zip(iou, chosen, strict=True) if row[j] >= threshold]
            best = max(best, (len(matched), round(sum(matched), 9)))
    matched = Overlap.between(prediction, labels).matches(threshold)[2]
    assert (matched.size, round(matched.sum(), 9)) == pytest.approx(best, abs=1e-8)


# --- empty images ---------------------------------------------------------------------------------


def test_nothing_predicted_where_nothing_is_labelled_is_right():
    empty = np.zeros((3, 6), int)
    scores = evaluate(empty, empty)
    assert {scores[key] for key in RIGHT_IF_ONE} == {1.0}
    assert (scores["TP"], scores["FP"], scores["FN"]) == (0, 0, 0)


def test_paper_protocol_scores_empty_images_zero():
    empty = np.zeros((3, 6), int)
    scores = evaluate(empty, empty, protocol="published")
    assert {scores[key] for key in RIGHT_IF_ONE} == {0.0}
    assert mean_segmentation_accuracy(empty, empty, protocol="published") == 0


@pytest.mark.parametrize("protocol", ["fair", "published"])
def test_one_empty_image_scores_zero(protocol):
    empty = np.zeros((3, 6), int)
    for scores in (
        evaluate(empty, LABELS, protocol=protocol),
        evaluate(LABELS, empty, protocol=protocol),
    ):
        assert {scores[key] for key in RIGHT_IF_ONE} == {0.0}


def test_pixel_scores_without_labelled_pixels_are_undefined():
    scores = evaluate(LABELS, np.zeros_like(LABELS))
    assert all(isnan(scores[key]) for key in ("VI_split", "VI_merge", "ARE", "rand_recall"))
    assert evaluate(LABELS, np.zeros_like(LABELS), labelled_pixels_only=True)["mSA"] == 1


# --- invariance -----------------------------------------------------------------------------------


@untimed
@given(small_labels, small_labels, st.permutations(range(1, 5)), st.permutations(range(1, 5)))
def test_numbers_do_not_matter(prediction, labels, predicted_ids, labelled_ids):
    huge = np.array([0, *(2**64 - i for i in predicted_ids)], np.uint64)
    other = evaluate(huge[prediction], np.array([0, *labelled_ids], np.int16)[labels])
    assert other == pytest.approx(evaluate(prediction, labels), nan_ok=True)


@untimed
@given(small_labels.filter(np.any))
def test_perfect_prediction(labels):
    scores = evaluate(labels, labels)
    assert {scores[key] for key in RIGHT_IF_ONE} == {1.0}
    assert scores["VI_split"] == scores["VI_merge"] == 0
    assert scores["ARE"] == 0 or isnan(scores["ARE"])  # nan: only objects of one pixel


@untimed
@given(small_labels, small_labels)
def test_swapped_images_swap_the_scores(prediction, labels):
    one, two = evaluate(prediction, labels), evaluate(labels, prediction)
    for here, there in [("FP", "FN"), ("precision", "recall"), ("mSA", "mSA"), ("PQ", "PQ")]:
        assert one[here] == pytest.approx(two[there])
    one, two = Overlap.between(prediction, labels), Overlap.between(labels, prediction)
    split, merge = partitions.variation_of_information(one, ignore_background=False)
    assert partitions.variation_of_information(two, ignore_background=False) == pytest.approx(
        (merge, split)
    )
    error, precision, recall = partitions.adapted_rand_error(one, ignore_background=False)
    assert partitions.adapted_rand_error(two, ignore_background=False) == pytest.approx(
        (error, recall, precision)
    )


def test_merging_costs_precision_and_splitting_costs_recall():
    merged = evaluate(np.where(LABELS == 3, 2, LABELS), LABELS)
    assert merged["rand_precision"] < 1
    assert merged["rand_recall"] == 1
    assert merged["VI_merge"] > 0
    assert merged["VI_split"] == 0
    split = evaluate(np.where((LABELS == 2) & (np.arange(6) == 3), 8, LABELS), LABELS)
    assert split["rand_precision"] == 1
    assert split["rand_recall"] < 1
    assert split["VI_merge"] == 0
    assert split["VI_split"] > 0


def test_inputs_stay_as_they_are():
    prediction, labels = PREDICTION.copy(), LABELS.copy()
    evaluate(prediction, labels, labelled_pixels_only=True)
    assert np.array_equal(prediction, PREDICTION)
    assert np.array_equal(labels, LABELS)


# --- other programs -------------------------------------------------------------------------------


@untimed
@given(small_labels, small_labels.filter(np.any))
def test_pixel_scores_equal_scikit_image(prediction, labels):
    overlap = Overlap.between(prediction, labels)
    for ignore_background, ignored in ((True, (0,)), (False, ())):
        expected = variation_of_information(labels, prediction, ignore_labels=ignored)
        found = partitions.variation_of_information(overlap, ignore_background)
        assert found == pytest.approx(expected, abs=1e-12)
        with np.errstate(invalid="ignore", divide="ignore"):
            error, precision, recall = adapted_rand_error(labels, prediction, ignore_labels=ignored)
        expected = error, recall, precision  # scikit-image gives each the other's name
        assert partitions.adapted_rand_error(overlap, ignore_background) == pytest.approx(
            expected, nan_ok=True
        )


def golden_pairs() -> dict:
    file = Path(__file__).parent / "golden" / "evaluation.json"
    return json.loads(file.read_text(encoding="utf-8"))["pairs"]


def check_against_golden(prediction, labels, golden):
    scores = evaluate(prediction, labels, protocol="published")
    assert scores["mSA"] == pytest.approx(golden["mSA"], abs=1e-12)
    assert scores["SA50"] == pytest.approx(golden["SA"][0], abs=1e-12)
    assert scores["SA75"] == pytest.approx(golden["SA"][5], abs=1e-12)
    for threshold in (0.3, 0.5, 0.75):
        at = evaluate(prediction, labels, threshold=threshold, protocol="published")
        accuracy = at["TP"] / max(at["TP"] + at["FP"] + at["FN"], 1)
        found = [at["precision"], at["recall"], at["F1"], accuracy]
        expected = golden[f"matching_{threshold}"]
        assert found == pytest.approx(
            [expected[key] for key in ("precision", "recall", "f1", "segmentation_accuracy")]
        )
    overlap = Overlap.between(prediction, labels)
    everywhere = partitions.variation_of_information(overlap, ignore_background=False)
    assert everywhere == pytest.approx(golden["VI_all"], abs=1e-10)
    assert everywhere == pytest.approx(golden["VI_all_skimage"], abs=1e-10)
    if "VI_labelled" in golden:
        found = scores["VI_split"], scores["VI_merge"]
        assert found == pytest.approx(golden["VI_labelled"], abs=1e-10)
        assert found == pytest.approx(golden["VI_labelled_skimage"], abs=1e-10)
        found = scores["ARE"], scores["rand_precision"], scores["rand_recall"]
        assert found == pytest.approx(golden["ARE_labelled_skimage"], abs=1e-10)
        # elf pairs each pixel with itself too: nearly the same
        assert scores["ARE"] == pytest.approx(golden["ARE_labelled_elf"], abs=0.02)


def check_against_stardist(prediction, labels, golden):
    for threshold, expected in golden.items():
        scores = evaluate(prediction, labels, threshold=float(threshold), protocol="published")
        found = {name: scores[name.upper()] for name in ("tp", "fp", "fn")}
        assert found == {name: expected[name] for name in found}
        for name, theirs in (
            ("precision", "precision"),
            ("recall", "recall"),
            ("F1", "f1"),
            ("SQ", "mean_matched_score"),
            ("PQ", "panoptic_quality"),
        ):
            # stardist computes with float32
            assert scores[name] == pytest.approx(expected[theirs], abs=1e-6), (name, threshold)


def stardist_pairs() -> dict:
    file = Path(__file__).parent / "golden" / "stardist_matching.json"
    return json.loads(file.read_text(encoding="utf-8"))["pairs"]


@pytest.mark.parametrize("name", formula_pairs())
def test_formulas_equal_stardist(name):
    check_against_stardist(*formula_pairs()[name], stardist_pairs()[name])


def test_real_images_equal_stardist(shared_data):
    for name, pair in real_pairs(shared_data).items():
        check_against_stardist(*pair, stardist_pairs()[name])


@pytest.mark.parametrize("name", formula_pairs())
def test_formula_images_equal_elf(name):
    check_against_golden(*formula_pairs()[name], golden_pairs()[name])


def test_real_images_equal_elf(shared_data):
    golden = golden_pairs()
    pairs = real_pairs(shared_data)
    assert pairs.keys() == golden.keys() - formula_pairs().keys()
    for name, (prediction, labels) in pairs.items():
        check_against_golden(prediction, labels, golden[name])


def test_fair_and_published_differ_only_on_exact_fractions(shared_data):
    for name, (prediction, labels) in real_pairs(shared_data).items():
        overlap = Overlap.between(prediction, labels)
        exact = any(
            overlap.matches(t)[0].size != overlap.matches(t, tolerance=-1e-12)[0].size
            for t in np.arange(50, 100, 5) / 100
        )
        fair = mean_segmentation_accuracy(prediction, labels)
        published = mean_segmentation_accuracy(prediction, labels, protocol="published")
        assert fair >= published, name
        assert exact or fair == published, name


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "error", "message"),
    [
        (LABELS[:2], ValueError, r"`prediction` must have the shape of `labels` \(3, 6\), got \(2"),
        (LABELS.T, ValueError, r"shape of `labels` \(3, 6\), got \(6, 3\)"),
        (
            LABELS > 0,
            TypeError,
            "must be integers, got bool. Give each object its own number",
        ),
        (LABELS / 2, TypeError, "`prediction` must be integers, got float64"),
        (LABELS - 1, ValueError, "`prediction` must not be negative, got -1"),
        (LABELS[:0], ValueError, r"`prediction` must have at least one pixel, got shape \(0, 6\)"),
    ],
)
def test_wrong_images_are_refused(prediction, error, message):
    with pytest.raises(error, match=message):
        evaluate(prediction, LABELS)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"`threshold` must be in \(0, 1\], got 50"):
        evaluate(LABELS, LABELS, threshold=50)
    with pytest.raises(ValueError, match="Unknown protocol 'strict'. Known: fair, published."):
        evaluate(LABELS, LABELS, protocol="strict")


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Image b predicted as above, c perfectly, in another format, and a not at all."""
    predictions, labels = tmp_path / "predictions", tmp_path / "labels"
    predictions.mkdir()
    labels.mkdir()
    for name in "cab":
        tifffile.imwrite(labels / f"{name}.tif", LABELS.astype(np.uint16))
    np.save(predictions / "c.npy", LABELS * 3)
    tifffile.imwrite(predictions / "b.ome.tif", PREDICTION.astype(np.uint16))
    return predictions, labels


def test_folders_pair_by_name_and_miss_nothing(folders, caplog):
    with caplog.at_level(logging.WARNING):
        result = evaluate_folders(*folders)
    by_name = {scores.pop("name"): scores for scores in result["images"]}
    assert list(by_name) == ["a", "b", "c"]
    assert by_name["a"] == evaluate(np.zeros_like(LABELS), LABELS)
    assert by_name["b"] == evaluate(PREDICTION, LABELS)
    assert by_name["c"] == evaluate(LABELS, LABELS)
    assert result["mean"]["mSA"] == pytest.approx((0 + 0.21 + 1) / 3)
    assert result["total"] == {"TP": 0 + 2 + 3, "FP": 2, "FN": 3 + 1}
    assert result["missing"] == ["a"]
    assert result["extra"] == []
    assert "No prediction, scored as empty: a" in caplog.text


def test_folders_say_what_was_not_scored(folders, caplog):
    tifffile.imwrite(folders[0] / "z.tif", PREDICTION.astype(np.uint16))
    with caplog.at_level(logging.WARNING):
        result = evaluate_folders(*folders)
    assert result["extra"] == ["z"]
    assert "Prediction without labels, not scored: z" in caplog.text


def test_folders_pass_the_options_on(folders):
    options = {"threshold": 0.7, "protocol": "published", "labelled_pixels_only": True}
    result = evaluate_folders(*folders, **options)
    assert result["settings"] == options
    expected = {"name": "b", **evaluate(PREDICTION, LABELS, **options)}
    assert result["images"][1] == expected


def test_folders_name_the_file_of_another_shape(folders):
    tifffile.imwrite(folders[0] / "a.tif", PREDICTION[:2].astype(np.uint16))
    with pytest.raises(ValueError, match=r"predictions.a\.tif: `prediction` must have the shape"):
        evaluate_folders(*folders)


def test_folders_refuse_two_files_of_one_name(folders):
    np.save(folders[0] / "b.npy", PREDICTION)
    with pytest.raises(ValueError, match="must be unique without their extension"):
        evaluate_folders(*folders)


def test_names_of_files_are_those_of_their_segmentation(folders):
    """`vimunet segment a.OME.tif` writes a.tif."""
    predictions, labels = folders
    (labels / "a.tif").rename(labels / "a.OME.tif")
    tifffile.imwrite(predictions / "a.tif", LABELS.astype(np.uint16))
    result = evaluate_folders(predictions, labels)
    assert [image["name"] for image in result["images"]] == ["a", "b", "c"]
    assert result["images"][0]["mSA"] == 1


def test_folders_without_a_common_name_are_refused(folders, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "a_seg.npy", LABELS)
    with pytest.raises(
        ValueError, match=r"other must hold predictions .*, got a_seg and there a, b"
    ):
        evaluate_folders(other, folders[1])


def test_folders_must_exist(folders):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate_folders(folders[0] / "nowhere", folders[1])


def test_undefined_scores_stay_out_of_the_mean(folders):
    tifffile.imwrite(folders[1] / "a.tif", np.zeros((3, 6), np.uint16))
    mean = evaluate_folders(*folders)["mean"]
    assert mean["mSA"] == pytest.approx((1 + 0.21 + 1) / 3)
    assert mean["ARE"] == pytest.approx(evaluate(PREDICTION, LABELS)["ARE"] / 2)


def test_json_file(folders, tmp_path):
    tifffile.imwrite(folders[1] / "a.tif", np.zeros((3, 6), np.uint16))
    result = evaluate_folders(*folders)
    write_json(tmp_path / "new" / "scores.json", result)
    text = (tmp_path / "new" / "scores.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["images"][0]["name"] == "a"
    assert read["images"][0]["ARE"] is None
    assert read["images"][1]["SA75"] == 1 / 6
    assert read["mean"] == result["mean"]


def test_csv_file(folders, tmp_path):
    result = evaluate_folders(*folders)
    write_csv(tmp_path / "scores.csv", result)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["a", "b", "c", "mean", "low", "high"]
    assert float(rows["b"]["SA75"]) == 1 / 6
    assert rows["b"]["TP"] == "2"
    assert float(rows["mean"]["mSA"]) == result["mean"]["mSA"]
    assert float(rows["high"]["mSA"]) == result["confidence"]["mSA"][1]


def test_interrupted_writing_keeps_the_old_file(folders, tmp_path, monkeypatch):
    result = evaluate_folders(*folders)
    target = tmp_path / "scores.json"
    target.write_text("old", encoding="utf-8")

    def full_disk(self, text, **_):
        with self.open("w") as file:
            file.write(text[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_json(target, result)
    assert target.read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "labels",
        "predictions",
        "scores.json",
    ]


def test_confidence_interval():
    assert confidence_interval([0.4, 0.4, float("nan"), 0.4]) == pytest.approx([0.4, 0.4])
    assert confidence_interval([0.0, 1.0]) == [0, 1]  # both drawn twice in 1/4 of the samples
    assert all(isnan(end) for end in confidence_interval([float("nan")]))
    scores = np.arange(100) / 99
    error = scores.std() / 10  # of the mean of 100 independent scores
    low, high = confidence_interval(scores)
    assert low == pytest.approx(0.5 - 1.96 * error, abs=0.01)
    assert high == pytest.approx(0.5 + 1.96 * error, abs=0.01)
    assert confidence_interval(scores) == [low, high]


# --- thresholds -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps(Representation):
    """One object where the map exceeds `low` left and `high` right of the middle."""

    low: float = 0.5
    high: float = 0.5

    name = title = "steps"
    channels = ("object",)
    tunable = (
        Tunable("low", "Left", "", 0, 1, 0.1, grid=(0.1, 0.3, 0.5)),
        Tunable("high", "Right", "", 0, 1, 0.1, grid=(0.3, 0.5, 0.7)),
    )
    encode = loss = None

    def decode(self, maps, spacing=None):
        left = np.arange(maps.shape[2]) < maps.shape[2] // 2
        return np.where(left, maps[0] > self.low, 2 * (maps[0] > self.high))


def test_tuning_finds_the_best_thresholds():
    labels = np.array([[0, 1, 1, 0, 2, 2]])
    maps = np.array([[[0.2, 0.4, 0.9, 0.6, 0.8, 0.9]]], np.float32)
    best, score, table = tune_thresholds(Steps(), [maps, maps], [labels, labels])
    assert best == Steps(low=0.3, high=0.7)
    assert score == 1
    assert len(table) == 9
    assert table[0] == {
        "low": 0.5,
        "high": 0.5,
        "mSA": mean_segmentation_accuracy(Steps().decode(maps), labels),
    }
    assert {"low": 0.3, "high": 0.7, "mSA": 1.0} in table


def test_tuning_changes_nothing_without_gain():
    labels = np.array([[0, 1, 1, 0, 2, 2]])
    perfect = np.array([[[0, 1, 1, 0, 1, 1]]], np.float32)
    start = Steps(low=0.4)  # not in the grid
    best, score, table = tune_thresholds(start, [perfect], [labels])
    assert best == start
    assert score == 1
    assert len(table) == 4 * 3
    high = np.array([[[0, 1, 1, 0.6, 1, 1]]], np.float32)  # only `high` must move
    assert tune_thresholds(start, [high], [labels])[0] == Steps(low=0.4, high=0.7)


def test_tuning_moves_as_few_thresholds_as_possible():
    class Picky(Steps):
        def decode(self, maps, spacing=None):
            return LABELS * ((self.low, self.high) in ((0.1, 0.3), (0.3, 0.5)))

    best, score, _ = tune_thresholds(Picky(), [np.zeros((1, 3, 6))], [LABELS])
    assert best == Picky(low=0.3)
    assert score == 1


def test_tuning_scores_the_mean_over_images():
    labels = np.array([[0, 1, 1, 0, 2, 2]])
    weak = np.array([[[0, 0.2, 0.2, 0, 1, 1]]], np.float32)
    noisy = np.array([[[0.4, 1, 1, 0, 1, 1]]], np.float32)
    best, score, _ = tune_thresholds(Steps(), [weak, noisy], [labels, labels])
    # low = .1 finds the weak object and makes the noisy one a third too large (IoU 2/3)
    assert best == Steps(low=0.1)
    assert score == pytest.approx((1 + (4 * 1 + 6 * 1 / 3) / 10) / 2)


def test_tuning_refuses_unpaired_images():
    with pytest.raises(ValueError, match="same number of images, at least one, got 0 and 0"):
        tune_thresholds(Steps(), [], [])
    with pytest.raises(ValueError, match="got 1 and 2"):
        tune_thresholds(Steps(), [np.zeros((1, 1, 6))], [LABELS, LABELS])
