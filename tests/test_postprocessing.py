"""Markers, flooding and size filter on arrays that can be checked by eye, and against scipy."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import watershed

from vimunet.representations.watershed import (
    connected_components,
    depth_inside,
    find_markers,
    find_networks,
    largest_per_label,
    remove_small,
    seeded_watershed,
    smooth,
)


@pytest.fixture
def blobs(rng):
    """Smooth random heights in [0, 1] without plateaus."""
    heights = ndimage.gaussian_filter(rng.standard_normal((120, 150)), 4)
    return ((heights - heights.min()) / np.ptp(heights)).astype(np.float32)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int32, np.uint64, ">u2"])
def test_components_of_every_integer_type(dtype):
    image = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]]).astype(dtype)
    eight = [[1, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 0], [3, 3, 0, 4]]
    four = [[1, 0, 0, 2], [0, 3, 0, 2], [0, 0, 0, 0], [4, 4, 0, 5]]
    np.testing.assert_array_equal(connected_components(image), eight)
    np.testing.assert_array_equal(connected_components(image, connectivity=1), four)


@pytest.mark.parametrize("connectivity", [1, 2])
def test_components_agree_with_skimage(rng, connectivity):
    image = rng.integers(0, 3, (40, 50))
    np.testing.assert_array_equal(
        connected_components(image, connectivity), label(image, connectivity=connectivity)
    )


def test_depth_agrees_with_scipy(rng):
    mask = rng.random((30, 40)) < 0.9
    np.testing.assert_allclose(depth_inside(mask), ndimage.distance_transform_edt(mask), rtol=1e-6)


def test_depth_without_outside_is_infinite():
    assert np.isinf(depth_inside(np.ones((3, 4), bool))).all()


def test_largest_per_label():
    labels = np.array([[0, 1, 1], [3, 3, 0]])
    values = np.array([[5.0, 1.0, 2.0], [0.5, 0.25, 4.0]])
    np.testing.assert_array_equal(largest_per_label(labels, values, 3), [5, 2, 0, 0.5])


def test_smoothing_agrees_with_scipy(blobs):
    for sigma in (0.5, 1.0, 1.6, 3.0):
        expected = ndimage.gaussian_filter(blobs, sigma, mode="mirror", truncate=3)
        np.testing.assert_allclose(smooth(blobs, sigma), expected, atol=5e-7)
    assert smooth(blobs, 0) is blobs


def test_markers_need_room_for_a_circle():
    mask = np.zeros((12, 20), bool)
    mask[1:3, 1:18] = True  # 2 wide: depth 1
    mask[5:10, 2:7] = True  # 5 wide: depth 3
    mask[5:8, 10:13] = True  # 3 wide: depth 2
    expected = {0: 3, 1: 3, 1.5: 2, 2: 2, 2.5: 1, 3: 1, 3.5: 0}
    assert {r: find_markers(mask, r).max() for r in expected} == expected
    np.testing.assert_array_equal(find_markers(mask, 2.5) > 0, ndimage.binary_opening(
        mask, np.ones((5, 5))
    ))  # fmt: skip


def test_a_mask_without_outside_is_one_marker():
    np.testing.assert_array_equal(find_markers(np.ones((4, 5), bool), 3), np.ones((4, 5)))
    assert not find_networks(np.ones((4, 5), np.int32), 12).any()


def test_networks_are_told_from_cells():
    markers = np.zeros((60, 90), np.int32)
    rows, columns = np.mgrid[:60, :90]
    markers[(rows - 10) ** 2 + (columns - 10) ** 2 < 64] = 1  # disc
    markers[22:26, 5:45] = 2  # rod, 4 x 40: 1.3 * 10
    for line in (32, 40, 48, 56):  # grid of lines, 3 wide
        markers[line : line + 3, 2:80] = 3
    for line in (2, 20, 40, 60, 78):
        markers[32:59, line : line + 3] = 3
    np.testing.assert_array_equal(find_networks(markers, 15), [False, False, False, True])
    np.testing.assert_array_equal(find_networks(markers, 8), [False, False, True, True])
    np.testing.assert_array_equal(find_networks(np.zeros((3, 3), np.int32), 8), [False])


def test_plateau_is_shared_by_distance():
    markers = np.zeros((9, 9), int)
    markers[4, 1], markers[4, 7] = 1, 2
    labels = seeded_watershed(np.zeros((9, 9)), markers, np.ones((9, 9), bool))
    np.testing.assert_array_equal(labels, np.tile([1] * 5 + [2] * 4, (9, 1)))


def test_flooding_stops_at_the_ridge_and_the_mask():
    heights = np.array([[0.0, 0.1, 0.9, 0.2, 0.0, 0.3, 0.1]])
    markers = np.array([[5, 0, 0, 0, 9, 0, 0]])
    mask = np.array([[True, True, True, True, True, False, True]])
    labels = seeded_watershed(heights, markers, mask)
    np.testing.assert_array_equal(labels[0, [0, 1, 3, 4, 5, 6]], [5, 5, 9, 9, 0, 0])


def test_water_does_not_cross_corners():
    mask = np.eye(2, dtype=bool)
    labels = seeded_watershed(np.zeros((2, 2)), np.array([[3, 0], [0, 0]]), mask)
    np.testing.assert_array_equal(labels, [[3, 0], [0, 0]])


@pytest.mark.parametrize("hard", [False, True])
def test_flooding_agrees_with_skimage(blobs, hard):
    markers = connected_components(blobs < 0.4)
    mask = blobs < 0.8
    heights = (blobs > 0.45).astype(np.float32) if hard else blobs
    expected = watershed(heights, markers=markers, mask=mask)
    labels = seeded_watershed(heights, markers, mask)
    assert expected.max() > 5
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.int32


def test_markers_outside_the_mask_are_ignored(blobs):
    mask = blobs < 0.3
    labels = seeded_watershed(blobs, connected_components(blobs < 0.5), mask)
    assert (labels[~mask] == 0).all()
    assert (labels[mask] > 0).all()


def test_small_objects_go_and_the_numbers_close_up():
    labels = np.array([[4, 4, 4, 0], [9, 9, 0, 2], [7, 7, 7, 7]])
    expected = {
        0: [[2, 2, 2, 0], [4, 4, 0, 1], [3, 3, 3, 3]],
        2: [[1, 1, 1, 0], [3, 3, 0, 0], [2, 2, 2, 2]],
        4: [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
        5: np.zeros((3, 4)),
    }
    for min_size, result in expected.items():
        filtered = remove_small(labels, min_size)
        np.testing.assert_array_equal(filtered, result)
        np.testing.assert_array_equal(remove_small(filtered, min_size), filtered)
        assert filtered.dtype == np.int32


@pytest.mark.parametrize("zero", [0, 10**18])
def test_huge_ids_are_renumbered(zero):
    labels = np.array([[zero, 10**18, 2**40, 2**40]], np.uint64)
    expected = [[0, 2, 1, 1]] if zero == 0 else [[2, 2, 1, 1]]
    np.testing.assert_array_equal(remove_small(labels), expected)


def test_remove_small_of_nothing_and_of_negative_labels():
    assert remove_small(np.zeros((0, 4), np.int64)).shape == (0, 4)
    with pytest.raises(ValueError, match="`labels` must not be negative, got -3"):
        remove_small(np.array([[0, -3]]))


def test_no_function_changes_its_input(blobs):
    mask, markers = blobs < 0.8, connected_components(blobs < 0.4)
    inputs = [blobs, mask, markers]
    copies = [array.copy() for array in inputs]
    smooth(blobs, 1)
    depth_inside(mask)
    find_markers(mask, 3)
    find_networks(markers, 3)
    seeded_watershed(blobs, markers, mask)
    remove_small(markers, 20)
    for array, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
