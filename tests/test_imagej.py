"""Regions of ImageJ: outlines are exactly the pixels of each object, in both directions."""

import struct
import sys
import warnings
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage.draw import polygon2mask
from skimage.measure import grid_points_in_poly

from vimunet.bridges import imagej
from vimunet.bridges.imagej import outlines_of, read_rois, write_rois

TYPES = {
    "polygon": 0,
    "rectangle": 1,
    "oval": 2,
    "line": 3,
    "freehand": 7,
    "traced": 8,
    "point": 10,
}


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


def region(
    kind,
    corners=(),
    *,
    box=None,
    exact=None,
    path=(),
    position=0,
    arc=0,
    subtype=0,
    version=227,
):
    """Bytes of a region as ImageJ writes them; corners are (x, y), a box (x0, y0, x1, y1).

    Layout: RoiDecoder of ImageJ. Whole corners are 16 bit, relative to the box.
    """
    whole = [(int(x), int(y)) for x, y in corners]
    subpixel = whole != list(corners) or exact is not None
    if box is None:
        xs, ys = zip(*(whole or [(0, 0)]), strict=True)
        box = min(xs), min(ys), max(xs), max(ys)
    left, top, right, bottom = box
    data = struct.pack(
        ">4shBxhhhhH", b"Iout", version, TYPES[kind], top, left, bottom, right, len(whole)
    )
    data += struct.pack(">ffff", *(exact or (0, 0, 0, 0)))
    data += struct.pack(
        ">hi8xhhBBhii", 0, len(path), subtype, 128 * subpixel, 0, 0, arc, position, 0
    )
    assert len(data) == 64
    data += b"".join(struct.pack(">h", x - left) for x, _ in whole)
    data += b"".join(struct.pack(">h", y - top) for _, y in whole)
    if subpixel and corners:
        data += b"".join(struct.pack(">f", x) for x, _ in corners)
        data += b"".join(struct.pack(">f", y) for _, y in corners)
    return data + b"".join(struct.pack(">f", number) for number in path)


def zipped(path, *regions, names=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, data in enumerate(regions, start=1):
            archive.writestr(names[i - 1] if names else f"001_{i:03d}.roi", data)
    return path


def inside(corners, i, j):
    """Even-odd rule for the centre of pixel (i, j) of a polygon (x, y), in exact numbers."""
    row, column = Fraction(2 * i + 1, 2), Fraction(2 * j + 1, 2)
    crossed = 0
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        if (y0 <= row) != (y1 <= row):
            at = x0 + (row - y0) * Fraction(x1 - x0) / Fraction(y1 - y0)
            crossed += at < column  # a centre on the line is at the left of it
    return crossed % 2 == 1


small = st.tuples(st.integers(-4, 16), st.integers(-4, 16))


@given(st.lists(small, min_size=1, max_size=9))
def test_polygon_of_whole_corners(tmp_path_factory, corners):
    """Also those that cross themselves, lie outside in part or have their corners in one line."""
    pytest.importorskip("roifile")
    path = zipped(tmp_path_factory.mktemp("rois") / "a.zip", region("polygon", corners))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of polygons without a pixel
        labels = read_rois(path, (9, 11))
    expected = [[inside(corners, i, j) for j in range(11)] for i in range(9)]
    np.testing.assert_array_equal(labels, expected)


@given(st.integers(0, 10_000), st.integers(3, 40), st.floats(0.1, 30))
def test_polygon_of_exact_corners(tmp_path_factory, seed, count, radius):
    """Star-shaped, as StarDist's: scikit-image tells what is inside."""
    pytest.importorskip("roifile")
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    rays = radius * rng.uniform(0.3, 1, (count, 1))
    corners = rng.uniform(-2, 32, 2) + rays * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    corners = corners.astype(np.float32)
    data = region("freehand", [tuple(c) for c in corners.tolist()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = read_rois(zipped(tmp_path_factory.mktemp("rois") / "a.zip", data), (30, 31))
    expected = polygon2mask((30, 31), corners[:, ::-1].astype(float) - 0.5)
    np.testing.assert_array_equal(labels, expected)


def test_many_corners_are_filled_in_parts(tmp_path, rng, monkeypatch):
    pytest.importorskip("roifile")
    corners = [tuple(c) for c in rng.integers(0, 30, (200, 2)).tolist()]
    path = zipped(tmp_path / "a.zip", region("polygon", corners))
    whole = read_rois(path, (30, 30))
    assert 0 < whole.sum() < whole.size
    monkeypatch.setattr(imagej, "_MOST_CROSSINGS", 50)
    np.testing.assert_array_equal(read_rois(path, (30, 30)), whole)


def test_centres_on_the_outline(tmp_path):
    """As in ImageJ: outside at the left, inside at the right, inside above, outside below."""
    pytest.importorskip("roifile")
    corners = [(1.5, 1.5), (4.5, 1.5), (4.5, 3.5), (1.5, 3.5)]
    labels = read_rois(zipped(tmp_path / "a.zip", region("polygon", corners)), (6, 6))
    assert np.argwhere(labels).tolist() == [[i, j] for i in (1, 2) for j in (2, 3, 4)]


def test_rectangles(tmp_path):
    pytest.importorskip("roifile")
    path = zipped(
        tmp_path / "a.zip",
        region("rectangle", box=(2, 1, 5, 4)),
        region("rectangle", box=(0, 0, 0, 0), exact=(6.4, 1.6, 2.0, 3.0)),
        region("rectangle", box=(-3, 7, 4, 30)),
    )
    expected = np.zeros((10, 9), int)
    expected[1:4, 2:5] = 1
    expected[2:5, 6:8] = 2
    expected[7:, :4] = 3
    np.testing.assert_array_equal(read_rois(path, (10, 9)), expected)


@given(
    st.tuples(st.integers(-5, 12), st.integers(-5, 12)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, 24),
)
def test_ovals_and_round_corners(tmp_path_factory, corner, size, arc):
    pytest.importorskip("roifile")
    (x, y), (width, height) = corner, size
    box = (x, y, x + width, y + height)
    path = tmp_path_factory.mktemp("rois") / "a.zip"
    row, column = np.mgrid[:14, :15] + 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oval = read_rois(zipped(path, region("oval", box=box)), (14, 15))
        rounded = read_rois(zipped(path, region("rectangle", box=box, arc=arc)), (14, 15))
    squares = ((column - x) * 2 / width - 1) ** 2 + ((row - y) * 2 / height - 1) ** 2
    clear = np.abs(squares - 1) > 1e-9
    np.testing.assert_array_equal(oval[clear], squares[clear] <= 1)
    assert oval[~clear].all()
    within = (column > x) & (column < x + width) & (row > y) & (row < y + height)
    rx, ry = min(arc, width) / 2, min(arc, height) / 2
    for cx, sx in ((x + rx, -1), (x + width - rx, 1)):
        for cy, sy in ((y + ry, -1), (y + height - ry, 1)):
            corner = ((column - cx) * sx > 0) & ((row - cy) * sy > 0) & (arc > 0)
            far = ((column - cx) / (rx or 1)) ** 2 + ((row - cy) / (ry or 1)) ** 2 > 1 + 1e-9
            within &= ~(corner & far)
    np.testing.assert_array_equal(rounded.astype(bool), within)


def test_composite_region_has_holes_and_parts(tmp_path):
    pytest.importorskip("roifile")
    outer = [0, 1, 1, 1, 8, 1, 1, 8, 8, 1, 1, 8, 4]
    hole = [0, 3, 3, 1, 3, 6, 1, 6, 6, 1, 6, 3, 4]
    island = [0, 10, 2, 1, 12, 2, 1, 12, 4, 1, 10, 4, 4]
    path = zipped(tmp_path / "a.zip", region("rectangle", path=(*outer, *hole, *island)))
    expected = np.zeros((10, 14), int)
    expected[1:8, 1:8] = expected[2:4, 10:12] = 1
    expected[3:6, 3:6] = 0
    np.testing.assert_array_equal(read_rois(path, (10, 14)), expected)


def test_curves_of_composite_regions(tmp_path):
    """A circle of four cubic curves, as Java draws it, and a parabola of one quadratic curve."""
    pytest.importorskip("roifile")
    k, r, c = 4 / 3 * (2**0.5 - 1), 12.3, 15.2
    circle = [0, c + r, c]
    for x0, y0, x1, y1 in ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)):
        control = [x0 + k * x1, y0 + k * y1, x1 + k * x0, y1 + k * y0, x1, y1]
        circle += [3, *(c + r * number for number in control)]
    labels = read_rois(zipped(tmp_path / "a.zip", region("rectangle", path=(*circle, 4))), (31, 33))
    row, column = np.mgrid[:31, :33] + 0.5 - c
    distance = np.hypot(row, column)
    np.testing.assert_array_equal(
        labels[abs(distance - r) > 0.05], (distance < r)[abs(distance - r) > 0.05]
    )
    arch = (0, 0.2, 0.3, 2, 10.2, 40.3, 20.2, 0.3, 4)  # y = x (20 - x) / 5 from (0.2, 0.3) on
    labels = read_rois(zipped(tmp_path / "a.zip", region("rectangle", path=arch)), (22, 21))
    row, column = np.mgrid[:22, :21] + 0.5
    height = 0.3 + (column - 0.2) * (20.2 - column) / 5 - row
    clear = abs(height) > 0.05
    np.testing.assert_array_equal(labels[clear], ((height > 0) & (row > 0.3))[clear])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ((7, 1, 1), "operations 0 to 4 in its path, got 7"),
        ((float("nan"), 1, 1), "operations 0 to 4 in its path, got nan"),
        ((0, 1, 1, 3, 1, 1), "complete path"),
        ((1, 1, 1), "complete path"),
        ((4,), "complete path"),
        ((0, 1, 1, 1, float("inf"), 3, 4), "must be finite numbers"),
    ],
)
def test_broken_path(tmp_path, path, message):
    pytest.importorskip("roifile")
    file = zipped(tmp_path / "a.zip", region("rectangle", path=path))
    with pytest.raises(ValueError, match=rf"egion '001_001' of .*a.zip.*{message}"):
        read_rois(file, (9, 9))


def test_huge_and_strange_numbers(tmp_path):
    pytest.importorskip("roifile")
    huge = [(-3e38, -3e38), (3e38, -3e38), (3e38, 3e38), (-3e38, 3e38)]
    data = bytearray(region("polygon", [(0.5, 0.5)] * 4))
    data[-32:] = b"".join(struct.pack(">f", v) for axis in (0, 1) for v in [c[axis] for c in huge])
    assert read_rois(zipped(tmp_path / "a.zip", bytes(data)), (5, 4)).tolist() == [[1] * 4] * 5
    data[-4:] = struct.pack(">f", float("nan"))
    with pytest.raises(ValueError, match="Coordinates of region '001_001' of .* must be finite"):
        read_rois(zipped(tmp_path / "a.zip", bytes(data)), (5, 4))
    for exact in ((1, 1, -3, 2), (1, 1, float("nan"), 2)):
        with pytest.raises(ValueError, match="must have a height and a width of at least 0, got 2"):
            read_rois(zipped(tmp_path / "a.zip", region("rectangle", exact=exact)), (5, 4))


def test_later_regions_are_on_top_and_losses_are_told(tmp_path):
    pytest.importorskip("roifile")
    first, second = region("rectangle", box=(1, 1, 5, 5)), region("rectangle", box=(3, 3, 8, 8))
    expected = np.zeros((9, 9), int)
    expected[1:5, 1:5] = 1
    expected[3:8, 3:8] = 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_rois(zipped(tmp_path / "a.zip", first, second), (9, 9))
    np.testing.assert_array_equal(read, expected)
    inner = region("rectangle", box=(4, 4, 6, 6))
    with pytest.warns(UserWarning, match=r"1 of 2 .* lost, because later .* them: '001_001'\.$"):
        read = read_rois(zipped(tmp_path / "a.zip", inner, second), (9, 9))
    assert np.unique(read).tolist() == [0, 2]


def test_regions_that_cannot_be_labels(tmp_path):
    pytest.importorskip("roifile")
    cell = region("rectangle", box=(1, 1, 5, 5))
    others = [
        region("point", [(2, 2)]),
        region("line", exact=(1, 1, 4, 4)),
        region("rectangle", box=(1, 1, 5, 5), subtype=1) + bytes(20),
        region("rectangle", box=(40, 40, 44, 44)),
        region("polygon", [(1, 1), (1, 1), (1, 1)]),
    ]
    path = zipped(tmp_path / "a.zip", *others, cell)
    with pytest.warns(UserWarning) as caught:
        labels = read_rois(path, (9, 9))
    assert sorted(str(warning.message).split("a.zip ")[1] for warning in caught) == [
        "are left out, because they have no area (LINE): '001_002'.",
        "are left out, because they have no area (POINT): '001_001'.",
        "are left out, because they have no area (RECT): '001_003'.",
        "have no pixel in an image of shape (9, 9): '001_004', '001_005'.",
    ]
    assert np.unique(labels).tolist() == [0, 6]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["12", "12-2", "300"], [12, 12, 300]),
        (["z0001-4", "z0002-4", "z0002-4-2"], [4, 4, 4]),
        (["1234-1567", "1234-1890", "1500-1500"], [1, 2, 3]),  # ImageJ's own: y and x
        (["0012-0034", "0012-0035"], [1, 2]),
        (["5", "5"], [1, 2]),
        (["5", "5-1"], [1, 2]),
        (["5", "5-3"], [1, 2]),
        (["nucleus", "7"], [1, 2]),
        (["3000000000"], [3_000_000_000]),
        ([], []),
    ],
)
def test_names_tell_labels_only_if_all_do(names, numbers):
    assert imagej._numbers(names) == numbers


@given(st.integers(0, 10_000), st.floats(0.3, 1), st.sampled_from([(9, 11), (3, 7, 8), (1, 1)]))
def test_labels_come_back(tmp_path_factory, seed, share, shape):
    pytest.importorskip("roifile")
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(shape) < share, rng.choice([3, 8, 70_000], shape), 0)
    labels.flat[0] = 3_000_000_000
    expected = np.zeros_like(labels)
    for z in np.ndindex(shape[:-2]):
        for label in np.unique(labels[z])[1 if (labels[z] == 0).any() else 0 :]:
            pieces, count = ndimage.label(labels[z] == label)
            for i in range(1, count + 1):  # holes are filled
                expected[z][ndimage.binary_fill_holes(pieces == i, np.ones((3, 3)))] = label
    path = tmp_path_factory.mktemp("rois") / "a.zip"
    write_rois(path, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of objects in the holes of others
        np.testing.assert_array_equal(read_rois(path, shape), expected)


def test_real_labels_come_back(shared_data, tmp_path):
    pytest.importorskip("roifile")
    labels = tifffile.imread(shared_data / "tiny_mixed" / "labels" / "stardist_mask2d.tif")
    write_rois(tmp_path / "a.zip", labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_rois(tmp_path / "a.zip", labels.shape), labels)


def test_files_of_roifile(tmp_path):
    roifile = pytest.importorskip("roifile")
    exact = np.array([[1.2, 1.4], [7.6, 2.2], [6.9, 8.8], [2.3, 7.1]])
    rois = [
        roifile.ImagejRoi.frompoints(exact, name="exact"),
        roifile.ImagejRoi.frompoints([[10, 2], [14, 2], [14, 5], [10, 5]], name="whole"),
    ]
    roifile.roiwrite(tmp_path / "a.zip", rois)
    expected = polygon2mask((12, 16), exact[:, ::-1] - 0.5).astype(int)
    expected[2:5, 10:14] = 2
    np.testing.assert_array_equal(read_rois(tmp_path / "a.zip", (12, 16)), expected)
    rois[0].tofile(tmp_path / "one.roi")
    np.testing.assert_array_equal(read_rois(tmp_path / "one.roi", (12, 16)), expected == 1)


def test_slices(tmp_path):
    pytest.importorskip("roifile")
    first, third = (region("rectangle", box=(1, 1, 3, 3), position=z) for z in (1, 3))
    anywhere = region("rectangle", box=(4, 4, 6, 6))
    read = read_rois(zipped(tmp_path / "a.zip", third, anywhere), (7, 7))
    assert np.unique(read).tolist() == [0, 1, 2]
    path = zipped(tmp_path / "a.zip", first, third)
    with pytest.raises(ValueError, match=r"one slice to fit `shape` \(7, 7\), got slices 1, 3\."):
        read_rois(path, (7, 7))
    read = read_rois(path, (3, 7, 7))
    assert [np.unique(plane).tolist() for plane in read] == [[0, 1], [0], [0, 2]]
    with pytest.raises(ValueError, match="'001_002' of .* one of 2 slices, got slice 3"):
        read_rois(path, (2, 7, 7))
    with pytest.raises(ValueError, match="'001_001' of .* one of 2 slices, got slice 0"):
        read_rois(zipped(tmp_path / "a.zip", anywhere), (2, 7, 7))
    with pytest.raises(ValueError, match=r"`shape` must be \(y, x\) or \(z, y, x\), got \(7,\)"):
        read_rois(path, (7,))


def test_empty_zip_and_other_content(tmp_path):
    pytest.importorskip("roifile")
    assert not read_rois(zipped(tmp_path / "a.zip"), (3, 4)).any()
    cell = region("rectangle", box=(1, 1, 3, 3))
    names = ["folder/7.roi", "__MACOSX/folder/._7.roi", "readme.txt"]
    read = read_rois(zipped(tmp_path / "a.zip", cell, b"finder", b"hello", names=names), (4, 4))
    assert np.unique(read).tolist() == [0, 7]
    with pytest.raises(ValueError, match=r"a zip file of regions \(.roi\), got 'data.pkl'"):
        read_rois(zipped(tmp_path / "a.zip", b"1", names=["data.pkl"]), (4, 4))
    with pytest.raises(FileNotFoundError, match=r"No such file: .*nothing.zip"):
        read_rois(tmp_path / "nothing.zip", (4, 4))


def test_damaged_files(tmp_path):
    """Cut off anywhere, or with any byte changed: labels or a ValueError, never anything else."""
    pytest.importorskip("roifile")
    corners = [(1, 1), (6, 1), (6.5, 7), (1, 7)]
    data = region("polygon", corners)
    whole = zipped(tmp_path / "a.zip", data).read_bytes()
    failed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cut in range(len(whole)):
            (tmp_path / "cut.zip").write_bytes(whole[:cut])
            with pytest.raises(ValueError, match=r"cut\.zip must be an undamaged zip file"):
                read_rois(tmp_path / "cut.zip", (9, 9))
        for cut in range(len(data)):
            (tmp_path / "cut.roi").write_bytes(data[:cut])
            with pytest.raises(ValueError, match=r"Region 'cut' of .*cut\.roi cannot be read"):
                read_rois(tmp_path / "cut.roi", (9, 9))
        for place in range(len(data)):
            for value in (0, 1, 127, 128, 255):
                changed = data[:place] + bytes([value]) + data[place + 1 :]
                (tmp_path / "odd.roi").write_bytes(changed)
                try:
                    read_rois(tmp_path / "odd.roi", (9, 9))
                except ValueError as error:
                    assert "odd.roi" in str(error)
                    failed += 1
    assert failed > 20
    for place in range(0, len(whole), 7):
        changed = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
        (tmp_path / "odd.zip").write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_rois(tmp_path / "odd.zip", (9, 9))
            except ValueError as error:
                assert "odd.zip" in str(error)


def test_zip_bombs(tmp_path, monkeypatch):
    pytest.importorskip("roifile")
    bomb = zipped(tmp_path / "a.zip", bytes(imagej.MAX_ROI_BYTES + 1))
    assert bomb.stat().st_size < 2**16
    with pytest.raises(ValueError, match=r"a\.zip must .* region '001_001.roi' of 16777217 bytes"):
        read_rois(bomb, (4, 4))
    monkeypatch.setattr(imagej, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ValueError, match=r"1002 bytes of regions, more than 1000"):
        read_rois(zipped(tmp_path / "a.zip", bytes(501), bytes(501)), (4, 4))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("1.roi", region("rectangle", box=(1, 1, 3, 3)))
    with pytest.raises(ValueError, match=r"'1.roi' in an unusual compression"):
        read_rois(tmp_path / "a.zip", (4, 4))
    monkeypatch.setattr(imagej, "MAX_ROI_BYTES", 63)
    (tmp_path / "b.roi").write_bytes(region("rectangle", box=(1, 1, 3, 3)))
    with pytest.raises(ValueError, match=r"must not have more than 63 bytes, got .*b\.roi"):
        read_rois(tmp_path / "b.roi", (4, 4))


def test_without_roifile(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", region("rectangle", box=(1, 1, 3, 3)))
    monkeypatch.setitem(sys.modules, "roifile", None)
    for use in (
        lambda: read_rois(path, (4, 4)),
        lambda: write_rois(tmp_path / "b.zip", np.ones((3, 3), int)),
    ):
        with pytest.raises(ImportError, match=r"need roifile.*pip install 'vimunet\[benchmark\]'"):
            use()
