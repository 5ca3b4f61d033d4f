"""Several methods on the same images: outcomes by hand, scores, problems, tables, command line."""

import csv
import json
import warnings

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import permutation_test

from vimunet.bridges.predictions import Predictions
from vimunet.comparison import (
    LABELLED_OUTCOMES,
    PREDICTED_OUTCOMES,
    compare,
    explain,
    write_tables,
)
from vimunet.comparison.outcomes import outcomes
from vimunet.comparison.report import write_report
from vimunet.comparison.scoring import sign_flip_test
from vimunet.scores.folders import evaluate, evaluate_folders
from vimunet.scores.matching import Overlap
from vimunet.scores.statistics import confidence_interval


def named(prediction, labels, **options):
    """Outcomes by number of the object, as words."""
    overlap = Overlap.between(np.array([prediction]), np.array([labels]), **options)
    labelled, predicted = outcomes(overlap)
    return (
        [LABELLED_OUTCOMES[outcome] for outcome in labelled[1:]],
        [PREDICTED_OUTCOMES[outcome] for outcome in predicted[1:]],
    )


# --- what became of each object -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "labels", "of_labels", "of_prediction"),
    [
        ([1, 1, 1, 0], [1, 1, 1, 1], ["found"], ["correct"]),
        ([0, 0, 0, 0], [1, 1, 0, 2], ["missed", "missed"], []),
        ([1, 1, 0, 2], [0, 0, 0, 0], [], ["false", "false"]),
        # three pieces of a third each: none is a match, together they are all of it
        ([1, 1, 2, 2, 3, 3], [1] * 6, ["split"], ["piece"] * 3),
        # two specks cover two of six pixels: that is no split
        ([1, 0, 2, 0, 0, 0], [1] * 6, ["inexact"], ["inexact", "inexact"]),
        # one piece matches: found, and the rest is a piece too many
        ([1, 1, 1, 1, 2, 2], [1] * 6, ["found"], ["correct", "piece"]),
        # three objects under one
        ([1] * 6, [1, 1, 2, 2, 3, 3], ["merged"] * 3, ["merger"]),
        # the large one matches, the small one was swallowed
        ([1] * 6, [1, 1, 1, 1, 2, 2], ["found", "merged"], ["correct"]),
        # much too large, much too small
        ([1] * 6, [1, 1, 0, 0, 0, 0], ["inexact"], ["inexact"]),
        ([1, 1, 0, 0, 0, 0], [1] * 6, ["inexact"], ["inexact"]),
        # they only touch: less than half of either
        ([0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0], ["missed"], ["false"]),
        # exactly half is not most
        ([0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], ["missed"], ["false"]),
    ],
)
def test_outcomes_by_hand(prediction, labels, of_labels, of_prediction):
    assert named(prediction, labels) == (of_labels, of_prediction)


def test_splits_and_merges_change_places_with_the_images():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(1, 31), 12).reshape(6, 60)
    cut = labels * 3 + rng.integers(0, 3, labels.shape)
    split, _ = outcomes(Overlap.between(cut, labels))
    _, merger = outcomes(Overlap.between(labels, cut))
    both = (split == LABELLED_OUTCOMES.index("split")) | (split == LABELLED_OUTCOMES.index("found"))
    assert np.isin(merger[1:], [PREDICTED_OUTCOMES.index(f) for f in ("merger", "correct")]).all()
    assert both[1:].all()


small_labels = arrays(np.int64, (4, 6), elements=st.integers(0, 4))


@settings(deadline=None, max_examples=100)
@given(small_labels, small_labels, st.sampled_from([0.3, 0.5, 0.8]))
def test_outcomes_agree_with_the_scores(prediction, labels, threshold):
    scores = evaluate(prediction, labels, threshold=threshold)
    labelled, predicted = outcomes(Overlap.between(prediction, labels), threshold)
    assert (labelled == 1).sum() == (predicted == 1).sum() == scores["TP"]
    assert (labelled[1:] != 1).sum() == scores["FN"]
    assert (predicted[1:] != 1).sum() == scores["FP"]
    assert labelled[0] == predicted[0] == 0
    assert (labelled[1:] > 0).all() and (predicted[1:] > 0).all()
    # matched pairs really have this IoU
    rows, columns, iou = Overlap.between(prediction, labels).matches(threshold)
    ids, objects = np.unique(prediction[prediction > 0]), np.unique(labels[labels > 0])
    for row, column, value in zip(rows, columns, iou, strict=True):
        one, two = prediction == ids[row - 1], labels == objects[column - 1]
        assert value == pytest.approx((one & two).sum() / (one | two).sum())
    assert np.unique(rows).size == rows.size and np.unique(columns).size == columns.size


def test_explain_paints_each_object_with_its_outcome():
    labels = np.array([[9, 9, 9, 0, 4, 4, 0], [9, 9, 9, 0, 4, 4, 0]])
    prediction = np.array([[3, 3, 3, 0, 0, 0, 8], [3, 3, 3, 0, 0, 0, 8]])
    labelled, predicted = explain(prediction, labels)
    assert labelled.tolist() == [[1, 1, 1, 0, 5, 5, 0]] * 2
    assert predicted.tolist() == [[1, 1, 1, 0, 0, 0, 5]] * 2


def test_explain_leaves_out_what_is_not_labelled():
    labels = np.array([[0, 0, 1, 1, 1]])
    prediction = np.array([[2, 2, 3, 3, 3]])
    _, predicted = explain(prediction, labels, labelled_pixels_only=True)
    assert predicted.tolist() == [[0, 0, 1, 1, 1]]
    _, predicted = explain(prediction, labels)
    assert predicted.tolist() == [[5, 5, 1, 1, 1]]


# --- folders --------------------------------------------------------------------------------------


def cells(seed):
    """(40, 60) labels: discs of different size on a grid."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :60]
    labels = np.zeros((40, 60), np.uint16)
    for number in range(24):
        row, column = 5 + 10 * (number // 6), 5 + 10 * (number % 6)
        labels[np.hypot(y - row, x - column) < rng.uniform(2, 5)] = number + 1
    return labels


@pytest.fixture
def folders(tmp_path):
    """Five images; `good` is shifted by one pixel, `bad` has merged pairs."""
    for seed in range(5):
        labels = cells(seed)
        for folder, image in (
            ("labels", labels),
            ("good", np.roll(labels, 1, axis=1)),
            ("bad", (labels + 1) // 2),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / folder / f"cell{seed * 5}.tif", image)
    return tmp_path


def test_scores_are_those_of_evaluate_folders(folders):
    result = compare(folders / "labels", {m: folders / m for m in ("good", "bad")})
    assert result["names"] == ["cell0", "cell5", "cell10", "cell15", "cell20"]
    assert result["best"] == "good"
    for name, method in result["methods"].items():
        alone = evaluate_folders(folders / name, folders / "labels")
        for row, expected in zip(method["images"], alone["images"], strict=True):
            assert {key: row[key] for key in expected} == expected
            assert sum(row[outcome] for outcome in LABELLED_OUTCOMES[1:]) == row["objects"] == 24
        for key, mean in alone["mean"].items():
            assert method["mean"][key] == mean
            assert method["confidence"][key] == alone["confidence"][key]
        assert method["problems"] == method["extra"] == []
    assert result["methods"]["good"]["total"]["objects"] == 5 * 24
    assert result["methods"]["bad"]["total"]["merged"] >= 60
    assert result["methods"]["good"]["total"]["merged"] == 0


def test_methods_are_compared_image_by_image(folders):
    result = compare(folders / "labels", {m: folders / m for m in ("bad", "good")})
    assert result["methods"]["good"]["against_best"] is None
    against = result["methods"]["bad"]["against_best"]
    good, bad = (
        np.array([row["mSA"] for row in result["methods"][m]["images"]]) for m in ("good", "bad")
    )
    assert against["difference"] == pytest.approx((bad - good).mean())
    assert (against["wins"], against["ties"], against["losses"]) == (0, 0, 5)
    low, high = against["confidence"]
    assert (bad - good).min() <= low < against["difference"] < high <= (bad - good).max()
    assert [low, high] == confidence_interval(bad - good)
    assert against["p"] == 2 / 2**5  # the same sign five times


def test_signs_are_flipped():
    assert sign_flip_test(np.array([0.1])) == 1
    assert sign_flip_test(np.zeros(8)) == 1
    # signs flipped, -.1 and .3 have the means .1, .2, -.2, -.1: all at least as far from 0 as .1
    assert sign_flip_test(np.array([-0.1, 0.3])) == 1
    assert sign_flip_test(np.array([0.2, 0.3])) == 0.5
    rng = np.random.default_rng(1)
    unlike = [sign_flip_test(rng.normal(size=8)) < 0.05 for _ in range(400)]
    assert 0.02 < np.mean(unlike) < 0.08  # one in twenty
    many = rng.normal(0.3, 1, size=60)
    assert sign_flip_test(many) == pytest.approx(p_by_scipy(many), abs=0.02)


def p_by_scipy(differences):
    """The same test by scipy."""
    return permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999
    ).pvalue


def test_equal_scores_are_ties(folders):
    for file in (folders / "good").iterdir():
        (folders / "bad" / file.name).write_bytes(file.read_bytes())
    result = compare(folders / "labels", {m: folders / m for m in ("bad", "good")})
    (against,) = filter(None, (m["against_best"] for m in result["methods"].values()))
    assert (against["wins"], against["ties"], against["losses"]) == (0, 5, 0)
    assert against["difference"] == 0 and against["confidence"] == [0, 0]


def test_size_classes_hold_all_objects_and_the_same_ones(folders):
    result = compare(folders / "labels", {m: folders / m for m in ("good", "bad")})
    good, bad = (result["methods"][m]["by_size"] for m in ("good", "bad"))
    edges = [(row["area_from"], row["area_to"], row["objects"]) for row in good]
    assert edges == [(row["area_from"], row["area_to"], row["objects"]) for row in bad]
    areas = np.concatenate([np.bincount(cells(seed).ravel())[1:] for seed in range(5)])
    assert sum(row["objects"] for row in good) == areas.size
    assert good[0]["area_from"] == areas.min() and good[-1]["area_to"] == areas.max()
    for row in good:
        inside = (areas >= row["area_from"]) & (areas <= row["area_to"])
        assert row["objects"] == inside.sum()
        assert sum(row[outcome] for outcome in LABELLED_OUTCOMES[1:]) == row["objects"]
    # one pixel off hurts the small ones most
    assert good[0]["found"] / good[0]["objects"] < good[-1]["found"] / good[-1]["objects"]


def test_what_a_reader_says_is_kept_and_changes_no_score(folders, monkeypatch):
    plain = compare(folders / "labels", {"good": folders / "good"})["methods"]["good"]
    read = Predictions.read

    def talking(self, name, size):
        if name == "cell5":
            warnings.warn("2 of 9 regions are <lost>.", stacklevel=2)
        return read(self, name, size)

    monkeypatch.setattr(Predictions, "read", talking)
    result = compare(folders / "labels", {"good": folders / "good"})
    told = result["methods"]["good"]
    assert plain["notes"] == []
    assert told["notes"] == [{"name": "cell5", "note": "2 of 9 regions are <lost>."}]
    assert told["images"] == plain["images"]
    assert told["problems"] == []
    write_report(result, folders / "report.html")
    page = (folders / "report.html").read_text()
    assert "<b>good</b>: 2 of 9 regions are &lt;lost&gt;. (1): cell5</li>" in page
    assert "count as if nothing had been found" not in page


def test_what_cannot_be_scored_counts_as_empty_and_is_told(folders):
    (folders / "bad" / "cell0.tif").unlink()
    tifffile.imwrite(folders / "bad" / "cell5.tif", np.zeros((10, 10), np.uint16))
    whole = (folders / "bad" / "cell10.tif").read_bytes()
    (folders / "bad" / "cell10.tif").write_bytes(whole[: len(whole) // 2])
    tifffile.imwrite(folders / "bad" / "other.tif", cells(0))
    result = compare(folders / "labels", {"bad": folders / "bad"})["methods"]["bad"]
    problems = {entry["name"]: entry["problem"] for entry in result["problems"]}
    assert problems.keys() == {"cell0", "cell5", "cell10"}
    assert problems["cell0"] == "no file"
    assert problems["cell5"] == "shape (10, 10) instead of (40, 60)"
    assert "cannot be read" in problems["cell10"] and "cell10.tif" in problems["cell10"]
    assert result["extra"] == ["other"]
    assert [row["mSA"] for row in result["images"][:3]] == [0, 0, 0]
    assert [row["missed"] for row in result["images"][:3]] == [24] * 3
    assert result["mean"]["mSA"] < max(row["mSA"] for row in result["images"]) / 2


def test_images_without_objects(tmp_path):
    for folder, value in (("labels", 0), ("nothing", 0), ("something", 1)):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", np.full((5, 5), value, np.uint8))
    result = compare(tmp_path / "labels", {m: tmp_path / m for m in ("nothing", "something")})
    assert result["best"] == "nothing"
    assert result["methods"]["nothing"]["mean"]["mSA"] == 1
    assert result["methods"]["something"]["total"]["false"] == 1
    assert result["methods"]["something"]["by_size"] == []


def test_ceilings_and_seconds_are_passed_on(folders):
    result = compare(
        folders / "labels",
        {"good": folders / "good"},
        seconds={"good": 0.25},
        ceilings={"itself": lambda labels: labels, "nothing": np.zeros_like},
    )
    assert result["methods"]["good"]["seconds_per_image"] == 0.25
    assert result["ceilings"]["itself"] == {"mSA": 1.0, "confidence": [1.0, 1.0], "images": 5}
    assert result["ceilings"]["nothing"]["mSA"] == 0


def test_labelled_pixels_only(folders):
    filled = np.where(cells(0) == 0, 1, cells(0))
    tifffile.imwrite(folders / "good" / "cell0.tif", filled)
    options = {"labels": folders / "labels", "methods": {"good": folders / "good"}}
    everywhere = compare(**options)["methods"]["good"]["images"][0]["mSA"]
    labelled = compare(**options, labelled_pixels_only=True)["methods"]["good"]["images"][0]
    assert everywhere < 1
    assert labelled["mSA"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {}}, "`methods` must name at least one folder"),
        ({"seconds": {"goood": 1.0}}, r"`seconds` must name methods \(good\), got goood"),
        ({"threshold": 0.0}, "`threshold`"),
        ({"protocol": "easy"}, "Unknown protocol"),
    ],
)
def test_bad_options(folders, change, message):
    options = {"labels": folders / "labels", "methods": {"good": folders / "good"}, **change}
    with pytest.raises(ValueError, match=message):
        compare(**options)


def test_methods_that_have_nothing_in_common_with_the_labels_are_refused(folders):
    (folders / "else").mkdir()
    for file in (folders / "good").iterdir():
        (folders / "else" / f"pred_{file.name}").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"pred_cell0.*there cell0, .*cell15, cell20\."):
        compare(folders / "labels", {"good": folders / "good", "else": folders / "else"})


@pytest.mark.parametrize("wrong", ["labels", "good"])
def test_classes_are_not_scored_as_objects(folders, wrong):
    for file in (folders / wrong).iterdir():
        labels = tifffile.imread(file)
        tifffile.imwrite(file, np.where(labels, 1 + labels % 2, 0).astype(np.uint8))
    with pytest.raises(ValueError, match=f"{wrong} must number objects, got no number above 2"):
        compare(folders / "labels", {"good": folders / "good"})


def test_labels_are_no_method(folders):
    with pytest.raises(ValueError, match="'good' must not be the folder of labels"):
        compare(folders / "labels", {"good": folders / "labels"})


def test_stacks_are_refused(folders):
    tifffile.imwrite(folders / "labels" / "cell5.tif", np.ones((3, 20, 20), np.uint16))
    with pytest.raises(ValueError, match=r"\(3, 20, 20\) of .*cell5.tif.* slices"):
        compare(folders / "labels", {"good": folders / "good"})


def test_ceilings_follow_the_protocol(tmp_path):
    for folder in ("labels", "nothing"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", np.zeros((5, 5), np.uint8))
    for protocol, expected in (("fair", 1), ("published", 0)):
        result = compare(
            tmp_path / "labels",
            {"nothing": tmp_path / "nothing"},
            protocol=protocol,
            ceilings={"itself": lambda labels: labels},
        )
        assert result["ceilings"]["itself"]["mSA"] == expected
        assert result["methods"]["nothing"]["mean"]["mSA"] == expected


def test_labels_that_cannot_be_read_stop_the_comparison(folders):
    tifffile.imwrite(folders / "labels" / "cell0.tif", np.zeros((4, 4), np.complex64))
    with pytest.raises(ValueError, match="cell0"):
        compare(folders / "labels", {"good": folders / "good"})


# --- tables ---------------------------------------------------------------------------------------


def test_tables_hold_the_result(folders):
    (folders / "bad" / "cell0.tif").unlink()
    result = compare(folders / "labels", {m: folders / m for m in ("good", "bad")})
    write_tables(folders / "out", result)
    assert json.loads((folders / "out" / "comparison.json").read_text())["best"] == "good"
    with (folders / "out" / "methods.csv").open() as file:
        methods = {row["method"]: row for row in csv.DictReader(file)}
    assert float(methods["bad"]["mSA"]) == result["methods"]["bad"]["mean"]["mSA"]
    assert float(methods["bad"]["mSA high"]) == result["methods"]["bad"]["confidence"]["mSA"][1]
    assert methods["bad"]["problems"] == "1" and methods["good"]["problems"] == "0"
    assert methods["bad"]["losses"] == "5" and methods["good"]["losses"] == ""
    with (folders / "out" / "images.csv").open() as file:
        images = list(csv.DictReader(file))
    assert len(images) == 10
    assert [(row["method"], row["image"]) for row in images][5] == ("bad", "cell0")
    assert images[5]["problem"] == "no file" and images[0]["problem"] == ""
