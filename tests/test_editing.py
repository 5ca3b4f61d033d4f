"""Corrections by hand: what changes, and what does not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimunet.objects import editing
from vimunet.objects.editing import (
    add,
    border_objects,
    cut,
    delete,
    delete_at_border,
    merge,
    redraw,
    split,
    typical_radius,
    unused_labels,
)
from vimunet.representations import Boundaries, Distances


def disc(shape, row, column, radius):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


@pytest.fixture
def dumbbell():
    """Object 7: two discs of radius 10 that overlap; object 2 beside them."""
    labels = np.zeros((40, 60), np.int32)
    labels[disc(labels.shape, 20, 15, 10) | disc(labels.shape, 20, 32, 10)] = 7
    labels[5:35, 50:55] = 2
    return labels


def parts(labels, *numbers):
    return [labels == number for number in numbers]


# Split


@pytest.mark.parametrize("ends", [[(20, 15), (20, 32)], [(12, 12), (27, 38)], [(20, 6), (20, 27)]])
def test_split_at_the_neck_wherever_the_ends_are(dumbbell, ends):
    """The discs meet at column 23.5."""
    edit = split(dumbbell, ends[0], ends)
    assert edit.label == 8
    left, right = parts(edit.apply(dumbbell), 7, 8)
    np.testing.assert_array_equal(left | right, dumbbell == 7)
    assert 22 <= np.nonzero(left)[1].max() <= 25
    assert 22 <= np.nonzero(right)[1].min() <= 25


def test_split_keeps_the_number_at_the_first_end(dumbbell):
    edit = split(dumbbell, (20, 15), [(20, 32), (20, 15)])
    assert edit.apply(dumbbell)[20, 32] == 7
    assert edit.apply(dumbbell)[20, 15] == 8


def test_split_without_neck_is_halfway():
    labels = np.zeros((30, 50), np.uint16)
    labels[5:25, 5:45] = 3
    changed = split(labels, (15, 20), [(15, 10), (15, 20)]).apply(labels)
    expected = labels.copy()
    expected[5:25, 16:45] = 4  # column 15 is as far from both ends and goes to the first
    np.testing.assert_array_equal(changed, expected)


def test_split_of_a_bar_with_rough_outline_is_halfway(rng):
    """A bump of one pixel is no neck."""
    labels = np.zeros((40, 120), np.int32)
    for column in range(10, 110):
        labels[10 - rng.integers(2) : 30 + rng.integers(2), column] = 1
    right = split(labels, (20, 20), [(20, 20), (20, 100)]).apply(labels) == 2
    assert np.nonzero(right)[1].min() == 61


def test_split_follows_the_ridge_of_the_landscape():
    labels = np.ones((30, 60), np.int32)
    landscape = np.full(labels.shape, 0.1, np.float32)
    landscape[:, 40:42] = 0.3  # far below what would make a boundary by itself
    changed = split(labels, (15, 10), [(15, 10), (15, 50)], landscape).apply(labels)
    assert 40 <= np.nonzero(changed == 2)[1].min() <= 42
    assert (changed[:, :40] == 1).all()
    assert (changed[:, 42:] == 2).all()


def test_ridge_of_the_landscape_counts_more_than_a_neck(dumbbell):
    landscape = np.zeros(dumbbell.shape, np.float32)
    landscape[:, 29:31] = 0.4  # the neck is at 23.5
    left = split(dumbbell, (20, 15), [(20, 15), (20, 36)], landscape).apply(dumbbell) == 7
    assert 28 <= np.nonzero(left)[1].max() <= 30


def test_split_ignores_noise_in_the_landscape(dumbbell, rng):
    noise = rng.uniform(0, 0.02, dumbbell.shape).astype(np.float32)
    left = split(dumbbell, (20, 15), [(20, 15), (20, 32)], noise).apply(dumbbell) == 7
    assert 22 <= np.nonzero(left)[1].max() <= 25


def test_split_takes_ends_a_little_beside_the_object(dumbbell):
    changed = split(dumbbell, (20, 15), [(20, 1.5), (20, 44)]).apply(dumbbell)
    assert changed[20, 15] == 7
    assert changed[20, 32] == 8
    with pytest.raises(ValueError, match=r"ends in object 7, got \(20, 48\), 6 pixels beside it"):
        split(dumbbell, (20, 15), [(20, 15), (20, 48)])


def test_split_needs_two_places(dumbbell):
    with pytest.raises(ValueError, match="different pixels of object 7"):
        split(dumbbell, (20, 15), [(20, 15), (20.2, 15.3)])
    with pytest.raises(
        ValueError, match=r"`line` must have shape \(n, 2\) with n >= 2, got \(1, 2"
    ):
        split(dumbbell, (20, 15), [(20, 15)])


def test_split_of_the_background_changes_nothing(dumbbell):
    assert len(split(dumbbell, (0, 0), [(20, 15), (20, 32)])) == 0
    assert len(split(dumbbell, (-3, 900), [(20, 15), (20, 32)])) == 0


def test_split_of_an_object_in_pieces():
    """What napari's own tools leave behind: the piece without an end stays with the old number."""
    labels = np.zeros((20, 40), np.int32)
    labels[5:15, 2:8] = labels[5:15, 12:18] = labels[5:15, 30:36] = 4
    changed = split(labels, (10, 4), [(10, 4), (10, 14)]).apply(labels)
    assert (changed[5:15, 2:8] == 4).all()
    assert (changed[5:15, 12:18] == 5).all()
    assert (changed[5:15, 30:36] == 4).all()


# Cut


def test_cut_along_the_line():
    labels = np.zeros((30, 60), np.int32)
    labels[5:25, 5:55] = 9
    edit = cut(labels, [(2, 20), (28, 20)])
    left, right = parts(edit.apply(labels), 10, 9)  # the larger part keeps the number
    assert edit.label == 10
    assert np.nonzero(left)[1].max() in (19, 20)
    np.testing.assert_array_equal(left | right, labels == 9)


def test_cut_by_a_diagonal_and_a_bent_line():
    labels = np.ones((50, 50), np.uint8)
    changed = cut(labels, [(-5, -5), (25, 25), (25, 60)]).apply(labels)
    assert changed[40, 10] == 1
    assert changed[10, 40] == 2
    above = changed == 2
    y, x = np.mgrid[:50, :50]
    assert not (above & (y > np.minimum(x, 25) + 1)).any()
    assert above[(y < np.minimum(x, 25) - 1)].all()


def test_line_that_ends_inside_cuts_nothing():
    labels = np.ones((30, 60), np.int32)
    edit = cut(labels, [(-2, 20), (15, 20)])
    assert len(edit) == 0
    assert edit.label is None


def test_cut_through_several_objects_and_past_others(dumbbell):
    edit = cut(dumbbell, [(20, 0), (20, 52)])  # ends inside object 2
    changed = edit.apply(dumbbell)
    assert set(np.unique(changed)) == {0, 2, 7, 8}
    assert (changed[dumbbell == 2] == 2).all()
    changed = cut(dumbbell, [(20, 0), (20, 59)]).apply(dumbbell)
    assert set(np.unique(changed)) == {0, 2, 7, 8, 9}
    assert len(np.unique(changed[:, 52])) == 3  # 0 and the halves of object 2


def test_line_twice_through_an_object_makes_three_parts():
    labels = np.zeros((30, 60), np.int32)
    labels[5:25, 5:55] = 1
    changed = cut(labels, [(0, 15), (28, 15), (28, 35), (0, 35)]).apply(labels)
    assert set(np.unique(changed)) == {0, 1, 2, 3}
    areas = np.bincount(changed.ravel())[1:]
    assert areas.sum() == 20 * 50
    assert areas.min() >= 20 * 10


def test_cut_does_not_shave():
    labels = np.zeros((30, 60), np.int32)
    labels[5:25, 5:55] = 1
    assert len(cut(labels, [(5, 0), (5, 59)])) == 0  # along the edge
    assert len(cut(labels, [(7, 4), (4, 7)])) == 0  # three pixels of a corner


# Merge


def test_merge_takes_the_number_met_first_and_closes_the_seam():
    labels = np.zeros((20, 40), np.int32)
    labels[5:15, 2:10] = 3
    labels[5:15, 12:20] = 1  # two pixels of background between
    labels[5:15, 20:28] = 8
    labels[5:15, 30:38] = 5
    edit = merge(labels, [(10, 24), (10, 5)])
    assert edit.label == 8
    changed = edit.apply(labels)
    assert (changed[5:15, 2:28] == 8).all()
    assert (changed[5:15, 30:38] == 5).all()
    assert (changed[:4] == 0).all()
    assert (changed[5:15, 28:30] == 0).all()


def test_merge_of_distant_objects_leaves_the_background():
    labels = np.zeros((20, 40), np.int32)
    labels[5:15, 2:10] = 3
    labels[5:15, 25:30] = 1
    changed = merge(labels, [(10, 5), (10, 27)]).apply(labels)
    np.testing.assert_array_equal(changed, np.where(labels > 0, 3, 0))


@pytest.mark.parametrize("line", [[(10, 5)], [(10, 3), (10, 8)], [(0, 0), (0, 39)], [(90, 0)]])
def test_merge_needs_two_objects(line):
    labels = np.zeros((20, 40), np.int32)
    labels[5:15, 2:10] = 3
    assert len(merge(labels, line)) == 0


# Delete and redraw


def test_delete(dumbbell):
    edit = delete(dumbbell, (20.4, 51.6))
    np.testing.assert_array_equal(edit.apply(dumbbell), np.where(dumbbell == 2, 0, dumbbell))
    assert edit.label is None
    assert len(delete(dumbbell, (0, 0))) == 0
    assert len(delete(dumbbell, (40, 0))) == 0


def test_delete_at_border():
    labels = np.zeros((20, 40), np.uint16)
    labels[0:3, 5:8] = 1
    labels[5:9, 39] = 2
    labels[1:19, 10:20] = 3
    labels[19, 0] = 60000
    np.testing.assert_array_equal(border_objects(labels), [1, 2, 60000])
    changed = delete_at_border(labels).apply(labels)
    np.testing.assert_array_equal(changed, np.where(labels == 3, 3, 0))


def test_redraw_gives_the_polygon_and_eats_nobody(dumbbell):
    edit = redraw(dumbbell, 7, [(10, 10), (10, 52), (30, 52), (30, 10)])
    changed = edit.apply(dumbbell)
    expected = np.where(dumbbell == 2, 2, 0)
    polygon = np.zeros_like(dumbbell)
    polygon[10:31, 10:53] = 7
    expected[(expected == 0) & (polygon == 7)] = 7
    np.testing.assert_array_equal(changed, expected)
    assert edit.label == 7


def test_redraw_beyond_the_image_and_as_a_new_object(dumbbell):
    changed = redraw(dumbbell, 30, [(-10, -10), (-10, 3), (3, 3), (3, -10)]).apply(dumbbell)
    assert (changed[:4, :4] == 30).all()
    assert (changed == 30).sum() == 16


def test_redraw_must_leave_something(dumbbell):
    inside = [(8, 51), (8, 53), (30, 53), (30, 51)]
    with pytest.raises(ValueError, match="pixels that no other object has, got 69 pixels, none"):
        redraw(dumbbell, 7, inside)
    with pytest.raises(ValueError, match="got 0 pixels"):
        redraw(dumbbell, 7, [(-9, -9), (-9, -5), (-5, -5)])
    with pytest.raises(ValueError, match="`label` must be an object, got 0"):
        redraw(dumbbell, 0, inside)
    with pytest.raises(ValueError, match="`label` must fit into uint8, at most 255, got 300"):
        redraw(dumbbell.astype(np.uint8), 300, inside)


def test_object_that_an_outline_means(dumbbell):
    def inside(top, left, bottom, right):
        corners = [(top, left), (top, right), (bottom, right), (bottom, left)]
        return editing.object_inside(dumbbell, corners)

    assert inside(18, 30, 23, 53) == 7  # half of the outline lies in it
    assert inside(2, 47, 30, 57) == 2  # most of it lies in the outline
    assert inside(6, 41, 23, 51) is None  # touched: 36 of 150 pixels, in an outline of 198
    assert inside(0, 0, 4, 4) is None


# Add


def maps_of(cell, strength=1.0):
    """Foreground and boundary that a network might give for one cell, blurred."""
    from vimunet.representations.boundaries import Boundaries
    from vimunet.representations.watershed import smooth

    maps = Boundaries().encode(cell.astype(np.int32)) * np.float32(strength)
    return [smooth(one, 1.0) for one in maps]


@pytest.mark.parametrize("strength", [1.0, 0.3])  # 0.3: what the thresholds would miss
def test_add_finds_the_cell_under_the_click(strength):
    labels = np.zeros((80, 80), np.int32)
    labels[60:75, 60:75] = 4
    cell = disc(labels.shape, 30, 30, 12)
    foreground, boundary = maps_of(cell, strength)
    edit = add(labels, (26, 33), boundary, foreground, radius=30)
    found = edit.apply(labels) == 5
    assert edit.label == 5
    assert (found & cell).sum() / (found | cell).sum() > 0.9
    alone = add(labels, (26, 33), boundary, radius=30).apply(labels) == 5
    assert (alone & cell).sum() / (alone | cell).sum() > 0.7


def test_add_leaves_existing_objects_alone():
    labels = np.zeros((60, 60), np.int32)
    labels[:, :28] = 1
    cell = disc(labels.shape, 30, 30, 12)
    foreground, boundary = maps_of(cell)
    edit = add(labels, (30, 35), boundary, foreground)
    assert (labels[edit.indices] == 0).all()
    assert (edit.apply(labels) == 2).sum() > 0.9 * (cell & (labels == 0)).sum()


def test_add_ends_at_the_ridge_before_another_object():
    labels = np.zeros((40, 60), np.int32)
    labels[:, 30:] = 1
    landscape = np.zeros(labels.shape, np.float32)
    landscape[:, 19:22] = 0.5, 0.9, 0.5
    added = add(labels, (20, 12), landscape, radius=50).apply(labels) == 2
    assert np.nonzero(added)[1].max() in (19, 20, 21)


def test_add_without_maps_is_a_disc_of_typical_size():
    labels = np.zeros((200, 200), np.int32)
    for number, column in enumerate((40, 100, 160), start=1):
        labels[disc(labels.shape, 40, column, 14)] = number
    assert typical_radius(labels) == pytest.approx(14, abs=0.2)
    expected = disc(labels.shape, 120, 100, 14)
    nothing = np.zeros(labels.shape, np.float32)
    for maps in ((None, None), (nothing, nothing)):
        added = add(labels, (120, 100), *maps).apply(labels) == 4
        assert (added & expected).sum() / (added | expected).sum() > 0.9
    smaller = add(labels, (120, 100), radius=10).apply(labels) == 4
    assert np.nonzero(smaller)[0].min() in (115, 116)


def test_add_at_the_corner_fills_holes_and_closes_nothing_else():
    labels = np.zeros((50, 50), np.int32)
    foreground = np.zeros(labels.shape, np.float32)
    foreground[:20, :20] = 0.9
    foreground[8:10, 8:10] = 0  # a hole
    changed = add(labels, (0, 0), None, foreground, radius=40).apply(labels)
    np.testing.assert_array_equal(changed == 1, foreground_square(labels.shape))


def foreground_square(shape):
    square = np.zeros(shape, bool)
    square[:20, :20] = True
    return square


def test_add_on_an_object_or_outside_changes_nothing(dumbbell):
    assert len(add(dumbbell, (20, 15))) == 0
    assert len(add(dumbbell, (-1, 15))) == 0
    with pytest.raises(ValueError, match="`radius` must be positive, got 0"):
        add(dumbbell, (0, 0), radius=0)
    with pytest.raises(ValueError, match=r"`landscape` must have the shape of `labels` \(40, 60\)"):
        add(dumbbell, (0, 0), np.zeros((3, 3)))


# What all have in common


def test_landscape_of_maps():
    maps = np.arange(3.0)[:, None, None]
    for representation, expected in (
        (Boundaries(), (1, 0)),
        (Distances(), (2, 0)),
        (Boundaries(foreground=False), (0, None)),
    ):
        seen = representation.landscape(maps[: len(representation.channels)])
        assert (seen.heights, seen.foreground) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_type_of_the_labels_is_kept_and_nothing_changed_in_place(dumbbell, dtype):
    labels = dumbbell.astype(dtype)
    labels.flags.writeable = False
    edits = [
        split(labels, (20, 15), [(20, 15), (20, 32)]),
        cut(labels, [(20, 0), (20, 59)]),
        merge(labels, [(20, 30), (20, 52)]),
        delete(labels, (20, 15)),
        redraw(labels, 2, [(0, 0), (9, 0), (9, 9)]),
        add(labels, (3, 3)),
        delete_at_border(labels),
    ]
    for edit in edits:
        assert edit.values.dtype == dtype
        assert edit.apply(labels).dtype == dtype
        assert len(edit) == len(edit.indices[0]) == len(edit.indices[1])
        assert len(set(zip(*map(list, edit.indices), strict=True))) == len(edit)


def test_new_numbers():
    assert unused_labels(np.array([[0, 5]]), 2) == [6, 7]
    full = np.arange(256, dtype=np.uint8).reshape(16, 16)
    with pytest.raises(ValueError, match="room for 1 more objects, but uint8 ends at 255"):
        unused_labels(full, 1)
    full[0, 3] = full[0, 9] = 0
    assert unused_labels(full, 2) == [3, 9]
    assert unused_labels(np.array([[-4, -1]]), 1) == [1]
    assert unused_labels(np.array([[1, 2, 255]], np.uint8), 3) == [3, 4, 5]


def test_new_numbers_are_free_in_all_slices(dumbbell):
    stack = np.stack([dumbbell, np.full_like(dumbbell, 98)])
    assert split(dumbbell, (20, 15), [(20, 15), (20, 32)], stack=stack).label == 99
    assert add(dumbbell, (3, 3), stack=stack).label == 99
    both = cut(dumbbell, [(20, 0), (20, 59)], stack)
    assert set(both.values) == {99, 100}


def test_wrong_labels():
    with pytest.raises(TypeError, match="`labels` must be integers, got float64"):
        delete(np.zeros((3, 3)), (0, 0))
    with pytest.raises(ValueError, match=r"one slice of shape \(y, x\), got \(2, 3, 3\)"):
        delete(np.zeros((2, 3, 3), int), (0, 0))


def test_one_pixel_image():
    labels = np.ones((1, 1), np.int32)
    assert delete(labels, (0, 0)).apply(labels) == 0
    assert len(cut(labels, [(-1, 0), (1, 0)])) == 0
    assert add(labels * 0, (0, 0)).apply(labels * 0) == 1
    assert delete_at_border(labels).apply(labels) == 0


point = st.tuples(st.floats(-10, 50), st.floats(-10, 70))


@given(st.integers(0, 10_000), point, st.lists(point, min_size=3, max_size=6))
def test_no_correction_touches_what_it_does_not_concern(seed, position, line):
    """Random blobs, any click and any line: other objects keep each of their pixels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 60), np.int32)
    for number in range(1, 8):
        labels[disc(labels.shape, *rng.uniform(0, (40, 60)), rng.uniform(2, 10))] = number
    landscape = rng.uniform(0, 1, labels.shape).astype(np.float32)
    concerned = {int(i) for i in np.unique(labels[editing._stroke(line, labels.shape)])}
    here = editing._label_at(labels, position)

    changed = add(labels, position, landscape).apply(labels)
    assert (changed[labels > 0] == labels[labels > 0]).all()
    assert (changed != labels).any() == (here == 0)
    changed = cut(labels, line).apply(labels)
    assert ((changed > 0) == (labels > 0)).all()
    assert all((changed[labels == i] == i).all() for i in range(8) if i not in concerned)
    changed = merge(labels, line).apply(labels)
    assert all((changed[labels == i] == i).all() for i in range(1, 8) if i not in concerned)
    assert len({int(i) for i in np.unique(changed[labels > 0])} & concerned) <= 1
    for heights in (None, landscape):
        try:
            changed = split(labels, position, [position, line[0]], heights).apply(labels)
        except ValueError:
            continue
        assert ((changed > 0) == (labels > 0)).all()
        assert (
            changed[(labels > 0) & (labels != here)] == labels[(labels > 0) & (labels != here)]
        ).all()
        if here:
            assert (changed == 8).any()
            assert (changed == here).any()
