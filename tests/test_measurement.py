"""Measurements against what geometry says, scores and the table on disk."""

import csv
import warnings

import numpy as np
import pytest
import tifffile

from vimunet.io.tables import write_columns as write_csv
from vimunet.objects.measurement import measure
from vimunet.scores.objects import evaluate_objects as evaluate
from vimunet.scores.objects import evaluate_stack as score


def ellipse(shape, row, column, a, b, degrees):
    """Half axes a along the direction `degrees` from the y axis towards x, b across it."""
    y, x = np.mgrid[: shape[0], : shape[1]] - np.array([row, column]).reshape(2, 1, 1)
    angle = np.radians(degrees)
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    return (along / a) ** 2 + (across / b) ** 2 <= 1


@pytest.fixture
def labels():
    labels = np.zeros((120, 160), np.uint16)
    labels[ellipse(labels.shape, 50, 60, 30, 15, 20)] = 700
    labels[ellipse(labels.shape, 80, 120, 20, 20, 0)] = 3
    labels[110:120, 0:4] = 8
    return labels


def test_ellipse_disc_and_rectangle(labels):
    table = measure(labels)
    assert table["label"].tolist() == [3, 8, 700]
    np.testing.assert_allclose(table["area_px2"], [np.pi * 400, 40, np.pi * 450], rtol=0.01)
    np.testing.assert_allclose(table["y_px"], [80, 114.5, 50], atol=0.05)
    np.testing.assert_allclose(table["x_px"], [120, 1.5, 60], atol=0.05)
    np.testing.assert_allclose(table["major_axis_px"][[0, 2]], [40, 60], rtol=0.01)
    np.testing.assert_allclose(table["minor_axis_px"][[0, 2]], [40, 30], rtol=0.01)
    assert table["orientation_degrees"][2] == pytest.approx(20, abs=0.5)
    assert table["eccentricity"][2] == pytest.approx(np.sqrt(1 - 0.5**2), rel=0.01)
    assert table["diameter_px"][0] == pytest.approx(40, rel=0.01)
    assert table["perimeter_px"][0] == pytest.approx(1.05 * np.pi * 40, rel=0.01)
    assert table["circularity"][0] == pytest.approx(0.9, abs=0.02)
    assert table["circularity"][2] < 0.8
    np.testing.assert_allclose(table["solidity"], 1, atol=0.04)
    assert table["touches_border"].tolist() == [False, True, False]


def test_hollow_object_is_not_solid():
    labels = np.ones((20, 30), np.int32)
    labels[5:, 10:20] = 0
    assert measure(labels)["solidity"][0] == pytest.approx(450 / 600)


def test_each_side_of_the_border_is_touched():
    labels = np.zeros((20, 30), np.int32)
    for number, place in enumerate([(0, 9), (9, 0), (19, 9), (9, 29), (1, 28), (18, 1)], start=1):
        labels[place] = number
    assert measure(labels)["touches_border"].tolist() == [True] * 4 + [False] * 2


def test_physical_units(labels):
    pixels, physical = measure(labels), measure(labels, spacing=0.5)
    np.testing.assert_allclose(physical["area_um2"], pixels["area_px2"] / 4)
    for name in ("y", "x", "diameter", "major_axis", "minor_axis", "perimeter"):
        np.testing.assert_allclose(physical[f"{name}_um"], pixels[f"{name}_px"] / 2)
    for name in ("y_px", "x_px", "solidity", "circularity", "eccentricity"):
        np.testing.assert_allclose(physical[name], pixels[name])


def test_pixels_that_are_not_square():
    """A disc of radius 20 whose rows are twice as high is an ellipse of half axes 40 and 20."""
    labels = ellipse((60, 60), 30, 30, 20, 20, 0).astype(np.uint8)
    table = measure(labels, spacing=(2, 1))
    assert table["area_um2"][0] == pytest.approx(np.pi * 800, rel=0.01)
    assert table["y_um"][0] == pytest.approx(60)
    assert table["major_axis_um"][0] == pytest.approx(80, rel=0.01)
    assert table["minor_axis_um"][0] == pytest.approx(40, rel=0.01)
    assert not {"perimeter_um", "circularity"} & set(table)


def test_intensities(labels, rng):
    image = rng.normal(100, 20, labels.shape)
    table = measure(labels, image)
    for row, label in enumerate(table["label"]):
        inside = image[labels == label]
        for kind in ("mean", "std", "min", "max"):
            expected = getattr(np, kind)(inside)
            assert table[f"{kind}_intensity"][row] == pytest.approx(expected), kind


def test_intensities_of_channels_and_stacks(labels, rng):
    image = rng.normal(100, 20, (2, *labels.shape, 3))
    stack = np.stack([labels, np.where(labels == 3, 0, labels)])
    table = measure(stack, image, axes="tyx")
    assert table["t"].tolist() == [0, 0, 0, 1, 1]
    assert table["label"].tolist() == [3, 8, 700, 8, 700]
    assert table["mean_intensity_c2"][3] == pytest.approx(image[1, ..., 2][labels == 8].mean())
    one = measure(labels, image[0, ..., 1])
    np.testing.assert_allclose(table["max_intensity_c1"][:3], one["max_intensity"])
    assert len({len(column) for column in table.values()}) == 1


def test_one_pixel_and_nothing():
    labels = np.zeros((5, 6), np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = measure(labels, labels)
        labels[2, 3] = 9
        table = measure(labels, labels)
    assert {len(column) for column in empty.values()} == {0}
    assert list(empty) == list(table)
    assert table["area_px2"] == 1
    assert (table["y_px"], table["x_px"]) == (2, 3)
    assert np.isnan(table["circularity"])
    assert np.isnan(table["orientation_degrees"])


def test_wrong_input(labels):
    with pytest.raises(TypeError, match="`labels` must be integers, got bool"):
        measure(labels > 0)
    with pytest.raises(ValueError, match=r"`labels` must have the axes \(y, x\)"):
        measure(labels[0])
    with pytest.raises(ValueError, match=r"shape of `labels` \(120, 160\), got \(120, 159\)"):
        measure(labels, np.zeros((120, 159)))
    with pytest.raises(ValueError, match="at most one more axis"):
        measure(labels, np.zeros((120, 160, 2, 2)))
    with pytest.raises(ValueError, match=r"`spacing` must be positive, got \(0, 1\)"):
        measure(labels, spacing=(0, 1))


def test_score_by_hand():
    truth = np.array([[1, 1, 0, 2], [1, 1, 0, 2]])
    labels = np.array([[5, 5, 0, 0], [5, 0, 0, 0]])
    assert score(labels, truth)["mSA"] == pytest.approx(0.3)  # 3 of 4 pixels: at 6 of 10, 1 of 2
    assert score(labels, truth) == pytest.approx(evaluate(labels, truth), nan_ok=True)


def test_score_of_a_stack_takes_each_slice_by_itself():
    truth = np.array([[[1, 1, 0, 2], [1, 1, 0, 2]]] * 2)
    labels = truth.copy()
    labels[1] = 3 - labels[0]  # other numbers, and 3 on the background
    labels[1][truth[1] == 0] = 0
    assert score(labels, truth)["mSA"] == 1
    labels[1] = 0
    scores = score(labels, truth)
    assert scores["mSA"] == 0.5
    assert (scores["TP"], scores["FN"]) == (2, 2)
    assert scores["threshold"] == 0.5
    with pytest.raises(ValueError, match="must have the shape"):
        score(labels, truth[:1])


def test_table_on_disk(labels, tmp_path):
    table = measure(labels, spacing=0.5)
    table["circularity"][1] = np.nan
    path = tmp_path / "new folder" / "objects.csv"
    for _ in range(2):  # an existing file is replaced
        write_csv(path, table)
    assert path.read_bytes().startswith(b"\xef\xbb\xbflabel,area_um2,")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["3", "8", "700"]
    assert [float(row["area_um2"]) for row in rows] == pytest.approx(table["area_um2"], rel=1e-6)
    assert rows[1]["circularity"] == ""
    assert rows[1]["touches_border"] == "True"
    with pytest.raises(ValueError, match="shorter"):
        write_csv(path, {"a": [1, 2], "b": [1]})
    assert len(path.read_text(encoding="utf-8-sig").splitlines()) == 4
    assert [item.name for item in path.parent.iterdir()] == ["objects.csv"]


def test_labels_in_memory_and_an_image_on_disk(labels, tmp_path, rng):
    image = rng.integers(0, 255, labels.shape, np.uint8)
    size = {"PhysicalSizeY": 0.5, "PhysicalSizeX": 0.5}
    tifffile.imwrite(tmp_path / "a.ome.tif", image, metadata={"axes": "YX", **size})
    found = measure(labels, tmp_path / "a.ome.tif")
    expected = measure(labels, image, spacing=0.5)
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
