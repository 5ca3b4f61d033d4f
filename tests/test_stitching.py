"""Objects across blocks and slices: partners, numbers, stacks."""

import numpy as np
import pytest
from skimage.measure import label

from vimunet.segmentation.stitching import joined_numbers, partners, stitch_slices


def test_partners_by_hand():
    #           1 has 4 pixels, 2 has 3, 3 has 1; 5 has 3, 6 has 4
    one = np.array([1, 1, 1, 1, 2, 2, 2, 0, 3])
    other = np.array([0, 5, 5, 5, 6, 6, 6, 6, 0])  # IoU 3/4 and 3/4
    assert partners([(one, other)], 0.75).tolist() == [[1, 5], [2, 6]]
    assert partners([(one, other)], 0.76).tolist() == []
    assert partners([(one, np.zeros_like(one))], 0.1).shape == (0, 2)


def test_ids_may_be_large_have_gaps_and_no_background():
    one = np.array([[10**9, 10**9], [7, 7]], np.uint64)
    other = np.array([[3, 3], [2**40, 2**40]])
    assert partners([(one, other)], 1).tolist() == [[7, 2**40], [10**9, 3]]


def test_one_object_has_one_partner():
    one = np.array([1, 1, 1, 1, 1])
    other = np.array([1, 1, 1, 2, 2])
    assert partners([(one, other)], 0.1).tolist() == [[1, 1]]


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1])
def test_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match=rf"must be in \(0, 1\], got {threshold}"):
        partners([(np.ones(3, int), np.ones(3, int))], threshold)


def test_numbers_of_joined_blocks():
    pairs = [(0, 2, np.array([[2, 1]])), (2, 3, np.array([[1, 1], [3, 2]]))]
    tables = joined_numbers([2, 0, 3, 2], pairs)
    assert [table.tolist() for table in tables] == [[0, 1, 2], [0], [0, 2, 3, 4], [0, 2, 4]]
    assert [table.tolist() for table in joined_numbers([], [])] == []


def test_columns_that_never_branch_are_connected_components(rng):
    """Where nothing splits or merges, an oracle is at hand: connected pixels of a binary volume."""
    volume = np.zeros((6, 60, 60), bool)
    for y in range(5, 60, 10):
        for x in range(5, 60, 10):
            begin, end = np.sort(rng.integers(0, 7, 2))
            volume[begin:end, y - 3 : y + 3, x - 3 : x + 3] = True
    planes = np.stack([label(plane) for plane in volume])
    stitched = stitch_slices(planes, 0.9)
    expected = label(volume)
    assert stitched.max() == expected.max() > 10
    pairs = np.unique(np.stack([stitched.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == expected.max() + 1  # each object of one is one of the other


def test_an_object_that_moves_is_followed_until_it_is_missing():
    planes = np.zeros((5, 1, 12), int)
    for z, start in enumerate((0, 1, 2, None, 2)):
        if start is not None:
            planes[z, 0, start : start + 4] = 1
    assert stitch_slices(planes, 0.6).max(axis=(1, 2)).tolist() == [1, 1, 1, 0, 2]  # IoU 3/5
    assert stitch_slices(planes, 0.61).max(axis=(1, 2)).tolist() == [1, 2, 3, 0, 4]
    assert stitch_slices(planes, None).max(axis=(1, 2)).tolist() == [1, 2, 3, 0, 4]


def test_several_stacks_with_any_numbers():
    planes = np.zeros((2, 2, 1, 4), int)
    planes[0, :, 0, :2] = 7, 5
    planes[0, 1, 0, 3] = 90
    planes[1, :, 0, :2] = 5
    stitched = stitch_slices(planes, 0.5)  # the last slice of a stack never meets the next stack
    assert stitched[:, :, 0].tolist() == [[[2, 1, 0, 0], [2, 1, 0, 3]], [[4, 4, 0, 0]] * 2]
    assert stitched.dtype == np.int64
    assert stitch_slices(np.zeros((0, 3, 4), int), 0.5).shape == (0, 3, 4)
