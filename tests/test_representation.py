"""Targets against golden values and definitions; labels read from maps; the way there and back."""

import json
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.io import imread
from skimage.segmentation import find_boundaries

from vimunet.representations import REPRESENTATIONS, representation_from_config
from vimunet.representations.boundaries import Boundaries
from vimunet.representations.distances import Distances
from vimunet.representations.semantic import Semantic
from vimunet.scores.objects import mean_segmentation_accuracy

GOLDEN = json.loads((Path(__file__).parent / "golden" / "targets.json").read_text())
ONLY = Boundaries(foreground=False)
ALL = [Boundaries(), ONLY, Distances()]
ROWS, COLUMNS = np.mgrid[:48, :64]


def labels_a():
    """Two touching rectangles, an L whose centroid lies outside of it, a small rectangle."""
    labels = np.zeros((48, 64), np.uint16)
    labels[4:20, 5:21] = 1
    labels[4:20, 21:41] = 2
    labels[24:44, 6:11] = 3
    labels[39:44, 6:35] = 3
    labels[28:32, 50:55] = 4
    return labels


def labels_b():
    """A quarter disc in the corner, a cut ellipse, one id with two pieces."""
    labels = np.zeros((48, 64), np.uint16)
    labels[ROWS**2 + COLUMNS**2 < 225] = 1
    ellipse = 324 * (ROWS - 28) ** 2 + 144 * (COLUMNS - 44) ** 2 <= 46656
    labels[ellipse] = 7
    labels[ellipse & (COLUMNS >= 50)] = 9
    labels[40:47, 2:10] = 3
    labels[40:47, 14:21] = 3
    return labels


def cells(rng, shape=(200, 260), count=40, radius=18):
    """Labels of round synthetic cells that touch each other and the image border."""
    centers = rng.uniform((0, 0), shape, (count, 2))
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot(rows[..., None] - centers[:, 0], columns[..., None] - centers[:, 1])
    labels = np.where(distance.min(-1) < radius, distance.argmin(-1) + 1, 0)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    return np.where(areas[labels] < 100, 0, labels)


def iou_of_each(prediction, labels):
    """Best IoU of each object of the labels."""
    scores = {}
    for i in np.unique(labels[labels > 0]):
        inside = labels == i
        j = np.bincount(prediction[inside]).argmax()
        scores[i] = (inside & (prediction == j)).sum() / (inside | (prediction == j)).sum()
        scores[i] *= j > 0
    return scores


def soft(maps, rng):
    """Maps as a network may predict them: blurred and with smooth noise."""
    noise = ndimage.gaussian_filter(rng.standard_normal(maps.shape), (0, 2, 2))
    blurred = ndimage.gaussian_filter(maps, (0, 1, 1))
    return np.clip(blurred + 0.1 * noise / noise.std(), 0, 1).astype(np.float32)


# Targets


@pytest.mark.parametrize("image", "AB")
@pytest.mark.parametrize(
    ("name", "representation"),
    [
        ("boundary", ONLY),
        ("foreground_boundary", Boundaries()),
        ("distances_25", Distances()),
        ("distances_0", Distances(min_target_size=0)),
    ],
)
def test_targets_agree_with_golden_values(image, name, representation):
    maps = representation.encode(labels_a() if image == "A" else labels_b()).astype(np.float64)
    exact = isinstance(representation, Boundaries)
    expected = GOLDEN["targets"][f"{image}_{name}"]
    assert len(maps) == len(expected) == len(representation.channels)
    for channel, numbers in zip(maps, expected, strict=True):
        assert channel.sum() == pytest.approx(numbers["sum"], abs=0 if exact else 1e-3)
        assert (channel**2).sum() == pytest.approx(numbers["sum_squares"], abs=0 if exact else 1e-3)
        for place, value in numbers["elements"].items():
            assert channel[tuple(json.loads(place))] == pytest.approx(
                value, abs=0 if exact else 1e-5
            )


def test_boundary_of_a_hand_worked_image():
    labels = np.zeros((5, 6), int)
    labels[1:4, 0:3] = 1  # touches the left border, which is no boundary
    labels[1:4, 3:5] = 2
    expected = [
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0],
    ]
    np.testing.assert_array_equal(ONLY.encode(labels)[0], expected)
    np.testing.assert_array_equal(Boundaries().encode(labels), [labels > 0, expected])


def test_boundaries_are_those_of_skimage(rng):
    for labels in (cells(rng), rng.integers(0, 4, (50, 60))):
        np.testing.assert_array_equal(
            ONLY.encode(labels)[0], find_boundaries(labels, mode="thick", connectivity=1)
        )


def slow_distances(labels, min_size):
    """The definition, object by object."""
    pieces = np.zeros(labels.shape, int)
    for i in np.unique(labels[labels > 0]):
        numbered, n = ndimage.label(labels == i, np.ones((3, 3)))
        pieces = np.where(numbered > 0, numbered + pieces.max(), pieces)
    for i in range(1, pieces.max() + 1):
        if (pieces == i).sum() < min_size:
            pieces[pieces == i] = 0
    outline = find_boundaries(pieces, mode="inner")
    maps = np.ones((3, *labels.shape))
    maps[0] = pieces > 0
    for i in np.unique(pieces[pieces > 0]):
        inside = pieces == i
        depth = np.where(inside, ndimage.distance_transform_edt(~outline), -1)
        center = np.rint(np.argwhere(inside).mean(axis=0)).astype(int)
        if not inside[tuple(center)]:
            center = np.unravel_index(depth.argmax(), depth.shape)
        rows, columns = np.indices(labels.shape)
        for channel, distance in (
            (1, np.hypot(rows - center[0], columns - center[1])),
            (2, depth.max() - depth),
        ):
            maps[channel][inside] = distance[inside] / (distance[inside].max() + 1e-7)
    return maps


@pytest.mark.parametrize("min_size", [0, 25])
def test_distances_are_those_of_the_definition(rng, min_size):
    random = ndimage.gaussian_filter(rng.standard_normal((60, 70)), 3)
    bent = np.digitize(random, np.quantile(random, [0.3, 0.5, 0.7]))  # concave, in pieces
    for labels in (cells(rng, (80, 90), 12, 12), bent, rng.integers(0, 3, (20, 20))):
        np.testing.assert_allclose(
            Distances(min_target_size=min_size).encode(labels),
            slow_distances(labels, min_size),
            atol=1e-6,
        )


def test_pieces_of_one_id_are_objects_of_their_own():
    labels = labels_b()
    split = np.where((labels == 3) & (COLUMNS > 12), 12, labels)
    np.testing.assert_array_equal(Distances().encode(labels), Distances().encode(split))


def test_a_crop_inside_one_object_is_deep_inside():
    maps = Distances().encode(np.full((20, 30), 4))
    assert (maps[0] == 1).all()
    assert maps[1, 10, 14] == pytest.approx(0)  # round half to even: 9.5 -> 10, 14.5 -> 14
    assert (maps[2] == 0).all()


def test_a_one_pixel_object_has_finite_targets():
    labels = np.zeros((8, 8), int)
    labels[3, 4] = 1
    maps = Distances(min_target_size=0).encode(labels)
    np.testing.assert_array_equal(maps[:, 3, 4], [1, 0, 0])
    assert Distances().encode(labels)[0].max() == 0


@pytest.mark.parametrize("representation", ALL, ids=lambda r: str(r.channels))
def test_target_shape_dtype_and_range(rng, representation):
    for labels in (cells(rng), np.zeros((30, 40), np.uint8), np.ones((1, 1), np.int64)):
        maps = representation.encode(labels)
        assert maps.shape == (len(representation.channels), *labels.shape)
        assert maps.dtype == np.float32
        assert maps.min() >= 0
        assert maps.max() <= 1


@pytest.mark.parametrize("representation", ALL, ids=lambda r: str(r.channels))
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.uint64, ">u4"])
def test_target_does_not_depend_on_dtype_or_numbering(rng, representation, dtype):
    labels = cells(rng, (90, 100), 12)
    maps = representation.encode(labels)
    np.testing.assert_array_equal(representation.encode(labels.astype(dtype)), maps)
    new = rng.permutation(np.arange(1, 100))[: labels.max() + 1]
    new[0] = 0
    np.testing.assert_array_equal(representation.encode(new[labels].astype(dtype)), maps)


def test_huge_ids_are_encoded():
    labels = np.where(labels_a() > 0, labels_a() + np.uint64(2**63), np.uint64(0))
    for representation in ALL:
        np.testing.assert_array_equal(
            representation.encode(labels), representation.encode(labels_a())
        )


@pytest.mark.parametrize("representation", ALL, ids=lambda r: str(r.channels))
def test_bad_labels_are_named(representation):
    with pytest.raises(TypeError, match=r"`labels` must be integers, got float64. .*`skimage"):
        representation.encode(np.zeros((4, 4)))
    with pytest.raises(TypeError, match="got bool"):
        representation.encode(np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="`labels` must not be negative, got -1"):
        representation.encode(np.full((4, 4), -1))
    with pytest.raises(ValueError, match=r"axes \(y, x\) or \(z, y, x\), got shape \(2, 2, 4, 4\)"):
        representation.encode(np.zeros((2, 2, 4, 4), int))


# Labels from maps


def golden_maps():
    """Foreground, boundary, centre distance and boundary distance of eleven round cells."""
    radius = 16
    centers = np.array(
        [[12, 14], [15, 44], [14, 78], [18, 112], [44, 24], [46, 60]]
        + [[50, 98], [78, 16], [80, 50], [76, 84], [82, 114]]
    )
    r, c = np.mgrid[:96, :128]
    distances = np.sort(np.hypot(r[..., None] - centers[:, 0], c[..., None] - centers[:, 1]), -1)
    d1, d2 = distances[..., 0], distances[..., 1]
    ripple = 0.02 * np.sin(0.9 * r + 0.4 * c) * np.cos(0.3 * r - 1.1 * c)
    fg = 1 / (1 + np.exp((d1 - radius) / 1.5))
    touching, outline = np.exp(-(((d2 - d1) / 4) ** 2)) * fg, np.exp(-(((d1 - radius) / 2) ** 2))
    depth = np.clip(np.minimum((d2 - d1) / 2, radius - d1) / (radius / 2), 0, 1)
    return {
        "fg": fg,
        "boundary": np.clip(np.maximum(touching, outline) + ripple, 0, 1),
        "centre_distance": np.clip(np.minimum(1, d1 / radius) + ripple, 0, 1),
        "boundary_distance": np.clip(1 - depth + ripple, 0, 1),
    }, centers


@pytest.mark.parametrize(
    ("name", "recipe", "channels", "hard"),
    [
        ("boundaries", Boundaries().published(), ["fg", "boundary"], False),
        ("boundary_only", Boundaries(foreground=False).published(), ["boundary"], False),
        ("boundaries_hard", Boundaries().published(), ["fg", "boundary"], True),
        ("boundary_only_hard", Boundaries(foreground=False).published(), ["boundary"], True),
        (
            "distances",
            Distances().published(),
            ["fg", "centre_distance", "boundary_distance"],
            False,
        ),
        (
            "distances_smoothing_1.6",
            replace(Distances().published(), smoothing=1.6, boundary_threshold=0.5, min_size=0),
            ["fg", "centre_distance", "boundary_distance"],
            False,
        ),
    ],
)
def test_paper_recipe_agrees_with_golden_values(name, recipe, channels, hard):
    by_name, centers = golden_maps()
    for channel, total in GOLDEN["labels"]["map_sums"].items():
        assert by_name[channel].sum() == pytest.approx(total, abs=1e-3)
    maps = np.stack([by_name[channel] for channel in channels]).astype(np.float32)
    labels = recipe.decode((maps > 0.5).astype(np.float32) if hard else maps)
    areas = np.bincount(labels.ravel())
    expected = GOLDEN["labels"][name]
    assert len(areas) - 1 == len(expected["areas"])
    np.testing.assert_allclose(np.sort(areas[1:]), expected["areas"], atol=3)
    np.testing.assert_allclose(areas[labels[tuple(centers.T)]], expected["area_at_centre"], atol=3)


@pytest.mark.parametrize("representation", ALL, ids=lambda r: str(r.channels))
def test_default_finds_the_same_cells_in_golden_maps(representation):
    by_name, centers = golden_maps()
    names = {"foreground": "fg", "center_distance": "centre_distance"}
    maps = np.stack([by_name[names.get(c, c)] for c in representation.channels])
    labels = representation.decode(maps.astype(np.float32))
    assert len(set(labels[tuple(centers.T)]) - {0}) == len(centers)


@pytest.mark.parametrize("representation", [Boundaries(), Distances()], ids=lambda r: r.name)
def test_round_trip_of_synthetic_cells(rng, representation):
    for _ in range(3):
        labels = cells(rng)
        decoded = representation.decode(representation.encode(labels))
        assert decoded.max() == len(np.unique(labels)) - 1
        assert min(iou_of_each(decoded, labels).values()) >= 0.9


def test_round_trip_without_foreground_map(rng):
    labels = cells(rng, count=25, radius=150)  # no background left
    assert labels.all()
    decoded = ONLY.decode(ONLY.encode(labels))
    assert decoded.all()
    assert min(iou_of_each(decoded, labels).values()) >= 0.9


@pytest.mark.parametrize("representation", [Boundaries(), Distances()], ids=lambda r: r.name)
def test_noisy_maps_are_read_at_least_as_well_as_by_the_paper(rng, representation):
    scores = []
    for _ in range(4):
        labels = cells(rng, count=60, radius=14)
        maps = soft(representation.encode(labels), rng)
        scores.append(
            [
                mean_segmentation_accuracy(recipe.decode(maps), labels)
                for recipe in (representation, representation.published())
            ]
        )
    default, paper = np.mean(scores, axis=0)
    assert default >= paper


@pytest.mark.parametrize(
    ("representation", "values", "looser"),
    [
        (Boundaries(min_size=0), (0.9, 0.3), {"seed_threshold": 0.5}),
        (Boundaries(min_size=0), (0.4, 0.0), {"foreground_threshold": 0.3, "seed_threshold": 0.3}),
        (replace(ONLY, min_size=0), (0.6,), {"seed_threshold": 0.3}),
        (Distances(min_size=0), (0.9, 0.55, 0.1), {"center_threshold": 0.6}),
        (Distances(min_size=0), (0.9, 0.1, 0.65), {"boundary_threshold": 0.7}),
        (Distances(min_size=0), (0.4, 0.1, 0.1), {"foreground_threshold": 0.3}),
    ],
)
def test_each_threshold_decides(representation, values, looser):
    background = (0, 1) if "foreground" in representation.channels else (1,)
    background = background if len(values) < 3 else (0, 1, 1)
    maps = np.empty((len(values), 24, 24), np.float32)
    for channel, outside, inside in zip(maps, background, values, strict=True):
        channel[:] = outside
        channel[6:18, 6:18] = inside
    loose = replace(representation, **looser)
    tight = replace(representation, **{field: 0.65 for field in looser if "seed" in field})
    assert tight.decode(maps).max() == 0
    np.testing.assert_array_equal(loose.decode(maps)[8:16, 8:16], 1)


def test_distances_are_smoothed_both():
    maps = np.zeros((3, 24, 24), np.float32)
    maps[0] = 1
    maps[1:, :, 12] = 1  # a line one pixel wide between two halves
    for channel in (1, 2):
        broken = maps.copy()
        broken[3 - channel] = 0
        assert Distances(smoothing=0).decode(broken).max() == 2
        assert Distances(smoothing=3).decode(broken).max() == 1


def test_membranes_between_cells_become_background():
    labels = np.zeros((160, 160), int)
    for i in range(16):  # cells 30 wide, membranes 10 wide
        labels[40 * (i // 4) + 5 : 40 * (i // 4) + 35, 40 * (i % 4) + 5 : 40 * (i % 4) + 35] = i + 1
    maps = ONLY.encode(labels)
    decoded = ONLY.decode(maps)
    assert decoded.max() == 16
    assert (decoded[36:44, 36:44] == 0).all()
    assert replace(ONLY, max_elongation=0).decode(maps).max() == 17
    with_foreground = np.concatenate([np.ones_like(maps), maps])
    assert Boundaries().decode(with_foreground).max() == 17


def test_a_narrow_neck_does_not_split_an_object():
    labels = np.zeros((40, 60), int)
    labels[10:30, 5:25] = 1
    labels[19:21, 25:31] = 1  # 2 wide: boundary only
    labels[17:22, 31:35] = 1  # a knob: 4 x 5, inside 2 x 3
    maps = Boundaries().encode(labels)
    assert Boundaries().decode(maps).max() == 1
    assert replace(Boundaries().published(), min_size=0).decode(maps).max() == 2


def test_small_nuclei_survive_but_not_in_the_paper():
    labels = np.zeros((20, 20), int)
    labels[4:9, 4:9] = 1
    labels[12:17, 11:16] = 2
    decoded = Boundaries().decode(Boundaries().encode(labels))
    np.testing.assert_array_equal(decoded, labels)
    assert Boundaries().published().decode(Boundaries().encode(labels)).max() == 0


@pytest.mark.parametrize("representation", ALL, ids=lambda r: str(r.channels))
def test_labels_contract(rng, representation):
    maps = soft(representation.encode(cells(rng)), rng)
    before = maps.copy()
    labels = representation.decode(maps)
    assert labels.shape == maps.shape[1:]
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.unique(labels[labels > 0]), np.arange(1, labels.max() + 1))
    np.testing.assert_array_equal(maps, before)
    np.testing.assert_array_equal(representation.decode(maps), labels)
    half = representation.decode(maps.astype(np.float16))
    assert (half > 0).mean() == pytest.approx((labels > 0).mean(), abs=0.01)


@pytest.mark.parametrize("representation", ALL, ids=lambda r: str(r.channels))
def test_second_round_trip_changes_little(rng, representation):
    once = representation.decode(representation.encode(cells(rng, count=25, radius=150)))
    twice = representation.decode(representation.encode(once))
    assert mean_segmentation_accuracy(twice, once) > 0.99


def test_background_gives_no_labels():
    for representation in (Boundaries(), Distances()):
        labels = representation.decode(representation.encode(np.zeros((30, 40), np.uint8)))
        np.testing.assert_array_equal(labels, np.zeros((30, 40)))


def test_one_object_that_fills_the_image_is_found():
    for representation in ALL:
        labels = representation.decode(representation.encode(np.full((30, 40), 7)))
        np.testing.assert_array_equal(labels, np.ones((30, 40)))


@pytest.mark.parametrize("representation", ALL, ids=lambda r: str(r.channels))
def test_bad_maps_are_named(representation):
    count = len(representation.channels)
    good = np.full((count, 8, 8), 0.5, np.float32)
    with pytest.raises(ValueError, match=rf"shape \({count}, \[z,\] y, x\) for .*boundary.*, got"):
        representation.decode(good[:, 0])
    with pytest.raises(ValueError, match=rf"got \({count + 1}, 8, 8\)"):
        representation.decode(np.ones((count + 1, 8, 8), np.float32))
    with pytest.raises(TypeError, match="floating point, got int64"):
        representation.decode(np.zeros((count, 8, 8), np.int64))
    for value, message in [(np.nan, "NaN"), (1.5, r"\[0.5, 1.5\]"), (-3.0, "activation")]:
        bad = good.copy()
        bad[-1, 3, 3] = value
        with pytest.raises(ValueError, match=message):
            representation.decode(bad)


# Configuration


@pytest.mark.parametrize(
    "representation",
    [
        *ALL,
        Boundaries().published(),
        Boundaries(foreground=False).published(),
        Distances().published(),
        Semantic(foreground_threshold=0.3),
        Semantic(9),
    ],
)
def test_configuration_survives_json(representation):
    config = json.loads(json.dumps(representation.config(), allow_nan=False))
    assert representation_from_config(config) == representation


def test_missing_fields_take_their_default():
    assert representation_from_config({"name": "distances"}) == Distances()


def test_unknown_names_and_fields_are_named():
    with pytest.raises(ValueError, match="Unknown representation 'edges'. Known: boundaries, dist"):
        representation_from_config({"name": "edges"})
    with pytest.raises(ValueError, match="Unknown representation None"):
        representation_from_config({})
    with pytest.raises(ValueError, match="Unknown field 'sigma' of .* Known: boundary_threshold"):
        representation_from_config({"name": "distances", "sigma": 2})


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (kind, field.name)
        for kind in (Boundaries, Distances, Semantic)
        for field in fields(kind)
        if field.name not in ("foreground", "num_classes")
    ],
)
def test_fields_out_of_range_are_named(kind, field):
    for value in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"`{field}` must .* got {value}"):
            kind(**{field: value})
    if field.endswith("threshold"):
        with pytest.raises(ValueError, match=f"`{field}` must lie in"):
            kind(**{field: 1.01})


def test_foreground_must_be_a_bool():
    with pytest.raises(TypeError, match="`foreground` must be True or False, got 1"):
        Boundaries(foreground=1)


@pytest.mark.parametrize("representation", ALL, ids=lambda r: str(r.channels))
def test_threshold_grid_names_fields_and_is_small(representation):
    grid = representation.threshold_grid()
    for field, values in grid.items():
        for value in values:
            assert getattr(replace(representation, **{field: value}), field) == value
    assert 10 <= np.prod([len(values) for values in grid.values()]) <= 30


def test_names_and_channels():
    assert {name: kind().name for name, kind in REPRESENTATIONS.items()} == {
        "boundaries": "boundaries",
        "boundary": "boundaries",
        "distances": "distances",
        "semantic": "semantic",
    }
    assert Boundaries().channels == ("foreground", "boundary")
    assert ONLY.channels == ("boundary",)
    assert Distances().channels == ("foreground", "center_distance", "boundary_distance")


# Classes


def test_foreground_of_a_hand_worked_image():
    labels = np.array([[0, 1, 1], [0, 0, 1]])
    for given in (labels, labels.astype(np.uint8), labels == 1):
        maps = Semantic().encode(given)
        assert maps.dtype == np.float32
        np.testing.assert_array_equal(maps, labels[None])


def test_one_map_per_class_of_a_hand_worked_image():
    expected = [[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 1], [0, 0]], [[0, 0], [1, 0]]]
    np.testing.assert_array_equal(Semantic(4).encode(np.array([[0, 2], [3, 1]])), expected)


@pytest.mark.parametrize("num_classes", [2, 3, 9])
def test_classes_survive_the_round_trip(rng, num_classes):
    """Single pixels and gaps in the numbering included: nothing is removed or renumbered."""
    labels = rng.integers(0, num_classes, (37, 23)).astype(np.uint8)
    labels[labels == 1] = num_classes - 1
    representation = Semantic(num_classes)
    maps = representation.encode(labels)
    assert maps.shape == (len(representation.channels), 37, 23)
    found = representation.decode(maps)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, labels)


def test_channels_and_activation_of_classes():
    assert Semantic().channels == ("foreground",)
    assert Semantic(3).channels == ("background", "class_1", "class_2")
    assert Semantic.for_maps(1) == Semantic()
    assert Semantic.for_maps(5) == Semantic(5)
    for count in (0, 2):
        with pytest.raises(ValueError, match=f"must have 1 map or at least 3, got {count}"):
            Semantic.for_maps(count)
    assert [kind.labels_are_classes for kind in (Boundaries, Distances, Semantic)] == [0, 0, 1]
    logits = torch.tensor([[[[0.0]], [[2.0]], [[-1.0]]]])
    torch.testing.assert_close(Semantic(3).activate(logits), logits.softmax(dim=1))
    for representation in (*ALL, Semantic()):
        torch.testing.assert_close(representation.activate(logits), logits.sigmoid())


def test_threshold_decides_between_two_classes():
    maps = np.array([[[0.1, 0.3, 0.5, 0.7]]], np.float32)
    np.testing.assert_array_equal(Semantic().decode(maps), [[0, 0, 1, 1]])
    np.testing.assert_array_equal(Semantic(foreground_threshold=0.2).decode(maps), [[0, 1, 1, 1]])
    assert set(Semantic().threshold_grid()) == {"foreground_threshold"}


def test_largest_map_decides_between_more():
    maps = np.array([[[0.3, 0.2, 0.4]], [[0.4, 0.3, 0.4]], [[0.3, 0.5, 0.2]]], np.float32)
    for threshold in (0.1, 0.9):
        representation = Semantic(3, foreground_threshold=threshold)
        np.testing.assert_array_equal(representation.decode(maps), [[1, 2, 0]])
    assert Semantic(3).threshold_grid() == {}


def test_labels_that_are_no_classes_are_named():
    with pytest.raises(ValueError, match="must be classes below 2, got 255. Set `num_classes`"):
        Semantic().encode(np.array([[0, 255]], np.uint8))
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        Semantic(4).encode(np.array([[0, -1]]))
    with pytest.raises(TypeError, match="must be integers, got float64"):
        Semantic().encode(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="`num_classes` must be at least 2.*got 1"):
        Semantic(1)
    with pytest.raises(TypeError, match="`num_classes` must be a whole number, got 2.0"):
        Semantic(2.0)
    with pytest.raises(
        ValueError, match=r"shape \(3, \[z,\] y, x\) for background, class_1, class_2, got"
    ):
        Semantic(3).decode(np.ones((1, 4, 4), np.float32))


# Real labels: the mSA of perfect maps

REAL = {
    "nuclei": ["dsb2018_fixed/labels/*.tif"],
    "livecell": ["livecell_sample/labels/val/*.tif", "livecell_sample/labels/test/*.tif"],
    "phase": ["usiigaci/labels/train/*.png", "usiigaci/labels/val/*.png"],
    "em": ["vnc_sstem/labels/instances/*.tif"],
}


def ceiling(folder, data_set, representation, step):
    files = sorted(chain.from_iterable(folder.glob(pattern) for pattern in REAL[data_set]))[::step]
    assert files
    scores = []
    for file in files:
        labels = imread(file).astype(np.int64)
        decoded = representation.decode(representation.encode(labels))
        if not getattr(representation, "foreground", True):
            decoded = np.where(labels == 0, 0, decoded)  # judged on labelled pixels only
        scores.append(mean_segmentation_accuracy(decoded, labels))
    return np.mean(scores)


CEILINGS = [
    ("nuclei", Boundaries(), 0.97, 40),
    ("livecell", Boundaries(), 0.97, 4),
    ("phase", Boundaries(), 0.97, 8),
    ("nuclei", Distances(), 0.95, 40),
    ("livecell", Distances(), 0.95, 4),
    ("phase", Distances(), 0.95, 8),
    ("em", ONLY, 0.95, 6),
]


@pytest.mark.parametrize(("data_set", "representation", "least", "step"), CEILINGS)
def test_ceiling_of_some_real_labels(shared_data, data_set, representation, least, step):
    assert ceiling(shared_data, data_set, representation, step) >= least - 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("data_set", "representation", "least", "step"), CEILINGS)
def test_ceiling_of_all_real_labels(shared_data, data_set, representation, least, step):
    assert ceiling(shared_data, data_set, representation, 1) >= least
