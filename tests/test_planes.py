"""Planes that are read lazily, predictions that can be stopped, and what is known of results."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import vimunet
from vimunet.interactive.measuring import measure_planes
from vimunet.interactive.planes import Planes
from vimunet.interactive.prediction import (
    CancelledError,
    PlaneMaps,
    PredictionOptions,
    interruptible,
    predict_plane,
)
from vimunet.interactive.session import MapCache, Segmentation, Session
from vimunet.representations.boundaries import Boundaries

WHOLE = (slice(0, 4), slice(0, 5))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return vimunet.TrainedModel(vimunet.build_model("unet", features=4).eval(), Boundaries())


@pytest.fixture
def segmentation(model):
    planes = Planes(np.zeros((3, 4, 5)))
    return Segmentation(planes, WHOLE, "mine.safetensors", model, PredictionOptions())


def test_planes_of_a_series_with_channels():
    data = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    planes = Planes(data, channel_axis=1, channel=2)
    assert planes.leading == (2, 1)
    assert planes.labels_shape == (2, 1, 4, 5)
    assert planes.indices() == [(0, 0), (1, 0)]
    assert np.array_equal(planes.plane((1, 0))[WHOLE], data[1, 2])
    part = planes.plane((1, 0), (slice(1, 3), slice(2, 5)))
    assert part.shape == (2, 3)
    assert np.array_equal(part[slice(0, 2), slice(1, 3)], data[1, 2, 1:3, 3:5])
    together = Planes(data, channel_axis=1).plane((0, 0))
    assert together.shape == (4, 5, 3)
    assert np.array_equal(together[WHOLE], np.moveaxis(data[0], 0, -1))


def test_position_becomes_the_nearest_plane():
    planes = Planes(np.zeros((4, 2, 6, 6)), channel_axis=1)
    assert planes.at((2.4, 1.0)) == (2, 0)
    assert planes.at((2.6, 0.0)) == (3, 0)
    assert planes.at((-7.0, 5.0)) == (0, 0)


def test_colours_are_no_planes():
    planes = Planes(np.zeros((4, 5, 3)), rgb=True)
    assert planes.indices() == [()]
    assert planes.plane(()).shape == (4, 5, 3)


def test_opacity_is_no_colour(rng):
    data = rng.integers(0, 255, (2, 4, 5, 4), dtype=np.uint8)
    plane = Planes(data, rgb=True).plane((1,))
    assert plane.shape == (4, 5, 3)
    assert np.array_equal(plane[WHOLE], data[1, ..., :3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": np.zeros(5)}, r"axes \(y, x\), got shape \(5,\)"),
        ({"data": np.zeros((3, 0))}, r"at least one pixel .* got shape \(3, 0\)"),
        ({"data": np.zeros((3, 4, 5)), "channel_axis": 1}, "one of the 1 axes .* got 1"),
        (
            {"data": np.zeros((3, 4, 5)), "channel_axis": 0, "channel": 3},
            "from 0 to 2 for `image`, got 3",
        ),
    ],
)
def test_what_has_no_planes_says_so(options, message):
    with pytest.raises(ValueError, match=message):
        Planes(**options)


def test_missing_pixels_are_read_as_the_mean_of_the_others():
    image = np.array([[1.0, np.nan, 3.0], [np.inf, 8.0, 4.0]], np.float32)
    plane = Planes(image).plane(())
    missing = plane.fill_missing()
    assert np.array_equal(missing, ~np.isfinite(image))
    assert np.array_equal(plane[slice(0, 2), slice(0, 3)], [[1, 4, 3], [4, 8, 4]])
    assert Planes(np.ones((2, 2))).plane(()).fill_missing() is None
    assert Planes(np.ones((2, 2), int)).plane(()).fill_missing() is None
    with pytest.raises(ValueError, match="finite pixels"):
        Planes(np.full((2, 2), np.nan)).plane(()).fill_missing()


@pytest.mark.parametrize("scale", [1, 1.5])
def test_prediction_is_that_of_vimunet(model, rng, scale):
    image = rng.normal(size=(40, 50)).astype(np.float32)
    options = PredictionOptions(scale=scale)
    maps = predict_plane(
        Planes(image).plane(()), model, options, lambda *_: None, threading.Event()
    )
    assert np.array_equal(maps.maps, vimunet.predict(image, model, scale=scale))
    assert maps.missing is None


def test_prediction_ends_within_the_network(model, rng):
    stop = threading.Event()
    layers = []
    for module in model.network.modules():
        module.register_forward_pre_hook(lambda module, _: (layers.append(module), stop.set()))
    with pytest.raises(CancelledError):
        predict_plane(
            Planes(rng.normal(size=(40, 50))).plane(()),
            model,
            PredictionOptions(),
            lambda *_: None,
            stop,
        )
    assert len(layers) <= 2, "only the first layer was asked"
    stop.clear()
    with interruptible(model.network, stop):
        pass
    assert all(len(module._forward_pre_hooks) == 1 for module in model.network.modules())


def test_spacing_reaches_the_labels():
    """Cores count in pixels along x: here, two rows are as wide as one column."""
    maps = np.zeros((2, 9, 9), np.float32)
    maps[0, 2:7, 1:8] = 1
    representation = Boundaries(seed_radius=2.0, min_size=0)
    for spacing, count in ((None, 1), ((1.0, 1.0), 1), ((0.25, 1.0), 0)):
        found = PlaneMaps(maps, spacing=spacing).decode(representation)
        assert found.max() == count, spacing
        plane = Planes(np.zeros((9, 9)), spacing=spacing).plane(())
        assert plane.spacing == spacing
    planes = [Planes(maps, spacing=spacing) for spacing in (None, (1.0, 1.0), (1.0, 1.0))]
    assert planes[1].is_like(planes[2])
    assert not planes[0].is_like(planes[1])


def test_models_of_volumes_say_where_to_use_them(tmp_path):
    network = vimunet.build_model("unet", axes="zyx", features=4, depth=1).eval()
    path = tmp_path / "volumes.safetensors"
    vimunet.save_model(path, vimunet.TrainedModel(network, Boundaries()))
    with pytest.raises(ValueError, match=r"segments volumes.*`vimunet segment`"):
        Session().load_model(str(path))


def test_measures_planes(rng):
    labels = np.zeros((2, 1, 6, 8), np.int32)
    labels[0, 0, 1:4, 1:4], labels[1, 0, 2:4, 2:6] = 3, 5
    image = Planes(rng.normal(size=(2, 3, 10, 12)), channel_axis=1, channel=2)
    told, box = [], (slice(2, 8), slice(3, 11))
    table = measure_planes(
        labels,
        [(0, 0), (1, 0)],
        image,
        box,
        (0.5, 0.5),
        lambda *step: told.append(step),
        threading.Event(),
    )
    assert list(table)[:3] == ["slice_0", "label", "area_um2"]
    assert table["slice_0"].tolist() == [0, 1]
    assert table["area_um2"].tolist() == [9 / 4, 8 / 4]
    expected = image.data[0, 2, 3:6, 4:7].mean()
    assert table["mean_intensity"][0] == pytest.approx(expected)
    assert told == [(0, 2), (1, 2)]
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        measure_planes(labels, [(0, 0)], None, None, None, lambda *_: None, stop)


def test_objects_of_planes_have_numbers_of_their_own(segmentation):
    data = np.zeros(segmentation.labels_shape, np.int32)
    found = np.zeros((4, 5), np.int32)
    found[0, :3] = 1, 2, 3
    for index in ((0,), (2,)):
        segmentation.write(index, found, Boundaries(), data)
    assert data[0, 0].tolist() == [1, 2, 3, 0, 0]
    assert data[2, 0].tolist() == [4, 5, 6, 0, 0]
    # Fewer objects keep their numbers, more get new ones.
    segmentation.write((0,), np.where(found == 3, 0, found), Boundaries(), data)
    assert data[0, 0].tolist() == [1, 2, 0, 0, 0]
    found[0, 3] = 4
    segmentation.write((0,), found, Boundaries(), data)
    assert data[0, 0].tolist() == [7, 8, 9, 10, 0]
    assert [segmentation.states[index].objects for index in ((0,), (2,))] == [4, 3]


def test_numbers_that_an_edit_took_are_not_given_again(segmentation):
    data = np.zeros(segmentation.labels_shape, np.int32)
    found = np.zeros((4, 5), np.int32)
    found[0, :3] = 1, 2, 3
    for index in ((0,), (2,)):
        segmentation.write(index, found, Boundaries(), data)
    segmentation.write((2,), np.where(found == 3, 0, found), Boundaries(), data)
    data[0, 3, 3] = data.max() + 1
    segmentation.states[(0,)] = segmentation.states[(0,)].corrected(data[0])
    segmentation.write((2,), found, Boundaries(), data)
    assert not set(data[0].ravel()) & set(data[2].ravel()) - {0}
    # Nor are those of planes that hold the objects of others.
    data[1] = data[0]
    twin = replace(segmentation, states={(i,): segmentation.states[(0,)] for i in (0, 1)})
    twin.states[(1,)] = twin.states[(1,)].emptied(np.zeros_like(data[1]))
    twin.write((1,), found, Boundaries(), data)
    assert not set(data[0].ravel()) & set(data[1].ravel()) - {0}


def test_corrections_are_noticed(segmentation):
    data = np.zeros(segmentation.labels_shape, np.int32)
    assert not segmentation.is_corrected((1,), data[1])
    data[1, 0, 0] = 5
    assert segmentation.is_corrected((1,), data[1]), "not ours"
    segmentation.write((1,), data[1], Boundaries(), data)
    assert not segmentation.is_corrected((1,), data[1])
    data[1, 3, 3] = 1
    assert segmentation.is_corrected((1,), data[1])


def test_maps_used_longest_ago_are_dropped_first(segmentation):
    maps = [PlaneMaps(np.zeros((2, 10, 10), np.float32), None) for _ in range(3)]
    assert maps[0].nbytes == 800
    cache = MapCache(limit=1600)
    cache.put(segmentation, (0,), maps[0])
    cache.put(segmentation, (1,), maps[1])
    assert cache.get(segmentation, (0,)) is maps[0]
    cache.put(segmentation, (2,), maps[2])
    assert cache.get(segmentation, (1,)) is None
    assert cache.get(segmentation, (0,)) is maps[0]
    assert cache.nbytes == 1600
    cache.forget(segmentation)
    assert cache.nbytes == 0


def test_maps_of_a_copy_need_no_memory(segmentation, model):
    twin = Segmentation(segmentation.planes, WHOLE, "other", model, PredictionOptions())
    cache = MapCache(limit=800)
    cache.put(segmentation, (0,), PlaneMaps(np.zeros((2, 10, 10), np.float32), None))
    cache.copy(segmentation, twin)
    assert cache.nbytes == 800
    assert cache.get(twin, (0,)) is cache.get(segmentation, (0,))


def test_model_files_are_read_again_when_they_change(model, tmp_path):
    path = tmp_path / "mine.safetensors"
    vimunet.save_model(path, model)
    session = Session()
    first = session.load_model(str(path))
    assert session.load_model(str(path)) is first
    changed = vimunet.TrainedModel(model.network, Boundaries(min_size=77))
    vimunet.save_model(path, changed)
    assert session.load_model(str(path)).representation.min_size == 77
