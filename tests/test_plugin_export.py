"""Outlines for ImageJ: exactly the pixels of each object."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from napari_vimunet.export import outlines_of, write_rois
from scipy import ndimage
from skimage.measure import grid_points_in_poly


def filled(outline, shape):
    """Pixels whose centre lies in the polygon, by another road than the one that made it."""
    return grid_points_in_poly(shape, outline - 0.5)


def test_outline_by_hand():
    labels = np.zeros((5, 6), np.int32)
    labels[1, 2:4] = labels[2, 2] = 7
    ((label, outline),) = outlines_of(labels)
    assert label == 7
    assert outline.tolist() == [[1, 2], [1, 4], [2, 4], [2, 3], [3, 3], [3, 2]]


def test_pieces_holes_and_corners():
    labels = np.zeros((8, 12), np.uint8)
    labels[1:6, 1:6] = 9
    labels[3, 3] = 0  # a hole
    labels[6, 6] = 9  # meets the square at a corner only
    labels[2, 9] = 4
    found = outlines_of(labels)
    assert [label for label, _ in found] == [4, 9, 9]
    assert [len(outline) for _, outline in found] == [4, 4, 4]
    assert found[1][1].tolist() == [[1, 1], [1, 6], [6, 6], [6, 1]]
    assert found[2][1].tolist() == [[6, 6], [6, 7], [7, 7], [7, 6]]


@given(st.integers(0, 10_000), st.floats(0.3, 0.9))
def test_outlines_hold_the_pixels_of_the_objects(seed, share):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((9, 11)) < share, rng.choice([3, 70_000], (9, 11)), 0)
    drawn = {int(i): np.zeros(labels.shape, int) for i in np.unique(labels) if i}
    for label, outline in outlines_of(labels):
        drawn[label] += filled(outline, labels.shape)
        assert (np.diff(outline, axis=0) != 0).sum(axis=1).max() == 1  # along the sides of pixels
    for label, times in drawn.items():
        pieces, count = ndimage.label(labels == label)
        expected = np.zeros(labels.shape, int)
        for i in range(1, count + 1):  # what is open at a corner is no hole
            expected += ndimage.binary_fill_holes(pieces == i, np.ones((3, 3)))
        np.testing.assert_array_equal(times, expected)


def test_nothing_and_nonsense():
    assert outlines_of(np.zeros((4, 4), int)) == []
    assert len(outlines_of(np.full((1, 1), 5))) == 1
    with pytest.raises(TypeError, match="`labels` must be integers, got float64"):
        outlines_of(np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(y, x\), got \(4,\)"):
        outlines_of(np.zeros(4, int))
    with pytest.raises(ValueError, match="`labels` must not be negative, got -2"):
        outlines_of(np.full((2, 2), -2))


def test_file_for_imagej(tmp_path, rng):
    roifile = pytest.importorskip("roifile")
    labels = np.zeros((40, 50), np.int32)
    labels[3:20, 5:9] = labels[3:6, 5:30] = 12
    labels[30:33, 40:50] = 300
    labels[37:39, 1:3] = 12
    path = tmp_path / "cells.zip"
    for _ in range(2):  # an existing file is replaced
        assert write_rois(path, labels) == 3
    rois = roifile.roiread(path)
    assert [roi.name for roi in rois] == ["12", "12-2", "300"]
    assert {roi.roitype for roi in rois} == {roifile.ROI_TYPE.TRACED}
    drawn = np.zeros_like(labels)
    for roi in rois:
        outline = roi.coordinates()[:, ::-1].astype(int)
        drawn[filled(outline, labels.shape)] = int(roi.name.split("-")[0])
    np.testing.assert_array_equal(drawn, labels)
    assert [item.name for item in tmp_path.iterdir()] == ["cells.zip"]


def test_file_of_a_stack(tmp_path):
    roifile = pytest.importorskip("roifile")
    labels = np.zeros((3, 9, 9), np.int32)
    labels[0, 2:4, 2:4] = labels[2, 5:7, 5:7] = 1
    assert write_rois(tmp_path / "stack.zip", labels) == 2
    rois = roifile.roiread(tmp_path / "stack.zip")
    assert [(roi.name, roi.position) for roi in rois] == [("z0001-1", 1), ("z0003-1", 3)]


def test_file_that_cannot_be_written(tmp_path):
    pytest.importorskip("roifile")
    with pytest.raises(ValueError, match="`path` must end in .zip, got .*cells.roi"):
        write_rois(tmp_path / "cells.roi", np.ones((3, 3), int))
    with pytest.raises(ValueError, match="at least one object, got none"):
        write_rois(tmp_path / "cells.zip", np.zeros((3, 3), int))
    with pytest.raises(ValueError, match=r"\(y, x\) or \(z, y, x\), got \(3,\)"):
        write_rois(tmp_path / "cells.zip", np.ones(3, int))
    assert not list(tmp_path.iterdir())
