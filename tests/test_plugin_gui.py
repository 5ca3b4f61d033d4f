"""The napari plugin in a real viewer: every button, and what must not go wrong.

Needs a display: `xvfb-run` gives one on Linux (`make test` uses it). Skipped without.
Times are those of the processor, so that other work on the machine does not count.
"""

import math
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from flows import Flows

import vimunet
from vimunet.interactive.prediction import CancelledError
from vimunet.objects import editing
from vimunet.representations import (
    REPRESENTATIONS,
    Boundaries,
    Distances,
    Landscape,
    Semantic,
)
from vimunet.training.fine_tuning import FineTuned, Step

pytest.importorskip("napari", reason="the plugin needs napari: pip install '.[dev]'")
# In a process of its own, which Qt ends if there is no screen or a library for it is missing.
if subprocess.run(
    [sys.executable, "-c", "from qtpy.QtWidgets import QApplication; QApplication([])"],
    capture_output=True,
).returncode:
    pytest.skip(
        "THE PLUGIN IS NOT TESTED: Qt finds no screen. With Xvfb: `xvfb-run -a python -m pytest`",
        allow_module_level=True,
    )
pytest.importorskip("pytestqt", reason="the plugin's tests need pytest-qt: pip install '.[dev]'")

import napari
from napari.utils.notifications import notification_manager
from napari_vimunet import _reader, _tasks
from napari_vimunet._correct_tab import STROKE, TOOLS
from napari_vimunet._sample_data import nuclei
from napari_vimunet._widget import VimunetWidget
from napari_vimunet._writer import save_labels
from napari_vimunet.layers import camera
from npe2 import PluginManager, PluginManifest
from qtpy.QtCore import QMimeData, QPoint, Qt, QUrl
from qtpy.QtGui import QDropEvent

MANIFEST = Path(_tasks.__file__).with_name("napari.yaml")
WAIT = 60_000
"""Most milliseconds that a test waits for something in the background."""


@pytest.fixture(scope="module", autouse=True)
def _plugin():
    """Let napari know the plugin, also where it is not installed."""
    manager = PluginManager.instance()
    manager.discover()
    if "vimunet" not in manager:
        manager.register(PluginManifest.from_file(MANIFEST))


@pytest.fixture(scope="module")
def one_viewer(qapp):
    """One viewer for most tests: to make one takes seconds."""
    viewer = napari.Viewer(show=False)
    yield viewer
    viewer.close()


@pytest.fixture
def viewer(one_viewer, qapp):
    """An empty viewer."""
    notification_manager.records.clear()
    yield one_viewer
    one_viewer.layers.clear()
    qapp.processEvents()  # napari must draw before it gets new layers, or OpenGL crashes
    one_viewer.window._qt_window.hide()


@pytest.fixture
def widget(viewer, qtbot):
    """The plugin, docked in a viewer, with its list of models filled."""
    made = VimunetWidget(viewer)
    viewer.window.add_dock_widget(made, name="vimunet")
    qtbot.waitUntil(lambda: made.workspace.models.box.isEnabled(), timeout=WAIT)
    yield made
    with suppress(RuntimeError, LookupError):  # the test has closed it already
        made.workspace.tasks.cancel()
        finish(made, qtbot)
        viewer.window.remove_dock_widget(made)
        made.deleteLater()


@pytest.fixture
def work(widget):
    """What the tabs share."""
    return widget.workspace


@pytest.fixture
def other_viewer(qapp):
    """A viewer that a test may close."""
    viewer = napari.Viewer(show=False)
    yield viewer
    with suppress(RuntimeError):  # closed already
        viewer.close()


@pytest.fixture
def cells(rng):
    """(120, 150) uint8 image of bright discs on a dark background, two of them touching."""
    rows, columns = np.mgrid[:120, :150]
    image = rng.normal(20, 2, (120, 150))
    for y, x in ((30, 30), (30, 90), (80, 40), (80, 62), (90, 120)):
        image[(rows - y) ** 2 + (columns - x) ** 2 < 12**2] += 120
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory):
    """A model file whose network takes seconds for 1024 x 1024 pixels."""
    path = tmp_path_factory.mktemp("models") / "slow.safetensors"
    torch.manual_seed(0)
    model = vimunet.TrainedModel(vimunet.build_model("vim_t").eval(), Boundaries())
    vimunet.save_model(path, model)
    return path


@pytest.fixture
def segment(widget, work, qtbot):
    """Press Segment and wait for the labels."""

    def run():
        widget.segment.button.click()
        finish(widget, qtbot)
        return work.labels.layer

    return run


def finish(widget, qtbot):
    qtbot.waitUntil(lambda: not widget.workspace.tasks.running, timeout=WAIT)


def tuned(widget, qtbot):
    """Wait until the sliders have taken effect."""
    qtbot.waitUntil(lambda: widget.tune.settled, timeout=WAIT)


def messages():
    return [str(record.message) for record in notification_manager.records]


def first_object(layer):
    """Centre of the pixels of an object, far from its border."""
    labels = np.asarray(layer.data)
    ids, areas = np.unique(labels[labels > 0], return_counts=True)
    depth = editing._depth(labels == ids[areas.argmax()])
    return np.array(np.unravel_index(depth.argmax(), depth.shape), float), ids[areas.argmax()]


# Opening


def test_opens_fast_and_without_torch():
    code = (
        "import sys, napari, napari.layers, time; start = time.process_time();"
        "import napari_vimunet._widget; seconds = time.process_time() - start;"
        "assert 'torch' not in sys.modules, 'torch'; assert seconds < 3, seconds"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, timeout=100)


def test_manifest_is_valid_and_its_parts_exist():
    manifest = PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    assert manifest.name == "vimunet"


def test_widget_is_opened_by_napari(viewer, qtbot):
    start = time.process_time()
    _, made = viewer.window.add_plugin_dock_widget("vimunet", "vimunet")
    assert time.process_time() - start < 3
    qtbot.waitUntil(lambda: made.workspace.models.box.isEnabled(), timeout=WAIT)
    assert made.workspace.viewer is viewer
    assert made.workspace.models.box.findText("nuclei") >= 0
    assert [made.tabs.tabText(i) for i in range(made.tabs.count())] == [
        "Segment",
        "Tune",
        "Correct",
        "Train",
        "Measure",
    ]


def test_without_image_each_button_says_what_to_do(widget, work):
    for press, hint in (
        (widget.segment.button, "Open Sample"),
        (widget.train.add_button, "Press Segment first"),
        (widget.correct.undo_button, "Press Segment"),
        (widget.measure.measure_button, "Press Segment"),
    ):
        notification_manager.records.clear()
        press.click()
        assert any(hint in message for message in messages()), (hint, messages())
    assert not work.tasks.running


# Segment


def test_segments_a_sample_image(viewer, widget, segment):
    viewer.open_sample("vimunet", "nuclei")
    layer = segment()
    image = nuclei()[0][0]
    expected = vimunet.segment(image, vimunet.load_model("nuclei"))
    assert layer.name == "nuclei (nuclei)"
    assert np.array_equal(layer.data, expected)
    assert f"{expected.max()} objects" in widget.segment.summary.text()
    assert layer.metadata["vimunet"]["model"] == "nuclei"


def test_segmenting_again_uses_the_same_layer(viewer, cells, segment):
    viewer.add_image(cells, name="cells")
    layer = segment()
    assert layer.data.max() >= 4
    assert segment() is layer
    assert len(viewer.layers) == 2


def test_slices_are_predicted_again_as_they_were(viewer, widget, work, cells, segment, qtbot):
    viewer.add_image(np.stack([cells, cells[::-1]]), name="stack")
    widget.segment.slices.setCurrentIndex(1)
    first = segment()
    widget.segment.scale.setValue(2)
    second = segment()
    assert second is not first
    scales = [work.session.source(layer).options.scale for layer in (first, second)]
    assert scales == [1, 2]
    assert np.array_equal(
        second.data[0] > 0, vimunet.segment(cells, vimunet.load_model("nuclei"), scale=2) > 0
    )
    shown = int(viewer.dims.current_step[0])
    before = second.data[1 - shown].copy()
    work.session.maps.forget(work.session.source(second))
    state = work.session.source(second).states[(1 - shown,)]
    state.representation = replace(state.representation, min_size=1000)
    widget.tune.all_button.setEnabled(True)
    widget.tune.all_button.click()
    finish(widget, qtbot)
    assert np.array_equal(second.data[1 - shown], before)


def test_corrected_labels_are_never_replaced(viewer, widget, cells, segment):
    viewer.add_image(cells, name="cells")
    layer = segment()
    before = layer.data.copy()
    layer.data_setitem((np.array([0, 1]), np.array([0, 0])), 99)
    again = segment()
    assert again is not layer
    assert layer.data[0, 0] == 99
    assert not layer.visible
    assert np.array_equal(again.data, before)
    # Edited by other means than napari's tools: also found.
    again.data[5, 5] = 77
    assert segment() is not again


def test_place_scale_and_units_are_kept(viewer, widget, cells, segment):
    image = viewer.add_image(
        cells, scale=(0.5, 0.25), translate=(10, 20), units="um", axis_labels=("y", "x")
    )
    layer = segment()
    assert np.allclose(layer.scale, image.scale)
    assert np.allclose(layer.translate, image.translate)
    assert layer.units == image.units
    assert layer.axis_labels == image.axis_labels


def test_visible_part_of_a_rotated_image_lies_on_it(viewer, widget, work, cells, segment):
    image = viewer.add_image(
        np.tile(cells, (4, 4)), scale=(2, 3), translate=(5, -7), rotate=30, shear=[0.2]
    )
    camera(viewer).center = image.data_to_world((200, 300))
    camera(viewer).zoom = 2
    widget.segment.region.setCurrentIndex(1)
    layer = segment()
    (rows, columns) = work.session.source(layer).box
    assert layer.data.shape == (rows.stop - rows.start, columns.stop - columns.start)
    assert layer.data.size < image.data.size
    corner = (rows.start, columns.start)
    assert np.allclose(layer.data_to_world((0, 0)), image.data_to_world(corner))
    assert np.allclose(
        layer.data_to_world((3, 4)), image.data_to_world((rows.start + 3, columns.start + 4))
    )
    expected = vimunet.segment(image.data[rows, columns], vimunet.load_model("nuclei"))
    assert np.array_equal(layer.data, expected)


def test_stack_slice_by_slice(viewer, widget, cells, segment):
    stack = np.stack([cells, cells[::-1], np.zeros_like(cells)])
    viewer.add_image(stack, scale=(3, 1, 1))
    assert widget.segment.slices.itemText(1) == "all 3 slices"
    viewer.dims.set_current_step(0, 1)
    layer = segment()
    assert layer.data.shape == stack.shape
    assert layer.data[1].any()
    assert not layer.data[[0, 2]].any()
    widget.segment.slices.setCurrentIndex(1)
    assert segment() is layer
    first, second, empty = (set(np.unique(plane)) - {0} for plane in layer.data)
    assert first and second and not empty
    assert not first & second, "objects of different slices must have different numbers"
    model = vimunet.load_model("nuclei")
    for plane, labels in zip(stack, layer.data, strict=True):
        expected = vimunet.segment(plane, model)
        assert np.array_equal(labels > 0, expected > 0)
        assert len(np.unique(labels)) == len(np.unique(expected))


def test_channels_of_a_layer(viewer, widget, work, cells, segment):
    # (t, c, y, x): the cells are in channel 1.
    empty = np.full_like(cells, 20)
    series = np.stack([np.stack([empty, cells]), np.stack([empty, cells[:, ::-1]])])
    viewer.add_image(series, axis_labels=("t", "c", "y", "x"))
    assert work.channels.axis_box.currentData() == 1
    channels = work.channels.channel_box
    channels.setCurrentIndex(channels.findData(1))
    assert widget.segment.slices.itemText(1) == "all 2 slices"
    widget.segment.slices.setCurrentIndex(1)
    layer = segment()
    assert layer.data.shape == (2, 1, *cells.shape)
    model = vimunet.load_model("nuclei")
    assert np.array_equal(layer.data[0, 0] > 0, vimunet.segment(cells, model) > 0)
    # The labels lie on both channels.
    y, x = np.argwhere(layer.data[1, 0])[0]
    for channel in (0, 1):
        viewer.dims.set_current_step((0, 1), (1, channel))
        assert layer.get_value((1, channel, y, x), world=True) == layer.data[1, 0, y, x]


@pytest.mark.parametrize("channels", [3, 4])
def test_rgb_image(viewer, widget, cells, segment, channels):
    viewer.add_image(np.repeat(cells[..., None], channels, axis=-1), rgb=True)
    layer = segment()
    assert layer.data.shape == cells.shape
    assert layer.data.max() >= 4


def test_pyramid_is_segmented_in_full_resolution(viewer, cells, segment):
    viewer.add_image([cells, cells[::2, ::2]], multiscale=True)
    assert segment().data.shape == cells.shape


def test_maps_are_shown_on_demand(viewer, widget, work, cells, segment):
    viewer.add_image(cells, name="cells", scale=(2, 2))
    layer = segment()
    widget.segment.maps_button.click()
    maps = viewer.layers[f"{layer.name}: foreground"]
    assert np.allclose(maps.scale, layer.scale)
    expected = vimunet.predict(cells, vimunet.load_model("nuclei"))
    assert np.array_equal(maps.data, expected[0])
    assert f"{layer.name}: boundary" in viewer.layers
    assert viewer.layers.selection.active is layer
    assert work.images.layer.name == "cells", "the maps are not what to segment next"


def test_models_trained_before_are_in_the_list(viewer, qtbot, tmp_path, slow_model, monkeypatch):
    monkeypatch.setattr("napari_vimunet._models.FOLDER", tmp_path)
    (tmp_path / "models").mkdir()
    shutil.copy(slow_model, tmp_path / "models" / "mine.safetensors")
    made = VimunetWidget(viewer)
    qtbot.waitUntil(made.workspace.models.box.isEnabled, timeout=WAIT)
    made.workspace.models.box.setCurrentText("mine")
    assert made.workspace.models.choice == str(tmp_path / "models" / "mine.safetensors")
    made.deleteLater()


def test_progress_of_tiles_and_options(viewer, widget, work, cells, qtbot):
    viewer.add_image(np.tile(cells, (3, 3)))
    widget.segment.tile_size.setValue(128)
    widget.segment.halo.setValue(16)
    widget.segment.scale.setValue(1.5)
    widget.segment.precision.setCurrentText("float32")
    texts = []
    show = work.tasks._show

    def watch(progress):
        texts.append((progress.done, progress.total))
        show(progress)

    work.tasks._show = watch
    widget.segment.button.click()
    finish(widget, qtbot)
    done = [d for d, total in texts if total]
    assert done == sorted(done)
    assert done[-1] == texts[-1][1] > 4
    options = work.session.source(work.labels.layer).options
    assert (options.tile_size, options.halo, options.precision) == (128, 16, "float32")
    assert options.scale == 1.5


# Robust against what happens meanwhile


@pytest.fixture
def start_long_run(slow_model, rng, qtbot):
    """Starts a run that takes seconds, and comes back in the middle of its first tile."""

    def start(widget):
        image = widget.workspace.viewer.add_image(
            rng.integers(0, 255, (3, 1024, 1024), dtype=np.uint8)
        )
        widget.workspace.models.add_file(slow_model)
        widget.segment.slices.setCurrentIndex(1)
        inside = threading.Event()
        model = widget.workspace.session.load_model(str(slow_model.resolve()))
        hook = model.network.register_forward_pre_hook(lambda *_: inside.set())
        widget.segment.button.click()
        qtbot.waitUntil(inside.is_set, timeout=WAIT)
        hook.remove()
        return image

    return start


@pytest.fixture
def long_run(widget, start_long_run):
    """The image of a run in its first tile."""
    return start_long_run(widget)


def test_cancel_within_a_second(widget, work, viewer, long_run, qtbot):
    assert work.tasks.cancel_button.isEnabled()
    start = time.process_time()
    work.tasks.cancel_button.click()
    finish(widget, qtbot)
    assert time.process_time() - start < 1
    assert work.tasks.text.text() == "Cancelled"
    assert list(viewer.layers) == [long_run]
    assert widget.segment.button.isEnabled()
    assert not messages()


def test_removing_the_image_ends_the_run(widget, viewer, long_run, qtbot):
    viewer.layers.remove(long_run)
    finish(widget, qtbot)
    assert len(viewer.layers) == 0
    assert any("was removed" in message for message in messages())


def test_closing_the_viewer_ends_the_run(other_viewer, start_long_run, qtbot):
    widget = VimunetWidget(other_viewer)
    other_viewer.window.add_dock_widget(widget, name="vimunet")
    qtbot.waitUntil(lambda: widget.workspace.models.box.isEnabled(), timeout=WAIT)
    start_long_run(widget)
    task = widget.workspace.tasks._task
    other_viewer.close()
    qtbot.waitUntil(lambda: not task._thread.is_alive(), timeout=5000)


def test_closing_the_dock_ends_the_run(widget, work, viewer, long_run, qtbot):
    task = work.tasks._task
    viewer.window.remove_dock_widget(widget)
    widget.close()
    widget.deleteLater()
    qtbot.waitUntil(lambda: not task._thread.is_alive(), timeout=5000)


def test_changing_the_image_in_mid_run(widget, work, viewer, cells, qtbot):
    """The result belongs to the image that was chosen when the button was pressed."""
    first = viewer.add_image(cells, name="first")
    widget.segment.button.click()
    other = viewer.add_image(cells[:60], name="other")
    assert work.images.layer is other
    first.data = np.zeros((30, 30), np.uint8)
    finish(widget, qtbot)
    layer = viewer.layers["first (nuclei)"]
    assert np.array_equal(layer.data, vimunet.segment(cells, vimunet.load_model("nuclei")))


def test_removing_the_labels_in_mid_run(widget, viewer, cells, qtbot):
    viewer.add_image(np.stack([cells] * 6), name="stack")
    widget.segment.slices.setCurrentIndex(1)
    widget.segment.button.click()
    qtbot.waitUntil(lambda: "stack (nuclei)" in viewer.layers, timeout=WAIT)
    viewer.layers.remove("stack (nuclei)")
    finish(widget, qtbot)
    assert [layer.name for layer in viewer.layers] == ["stack"]
    assert not messages()


def test_labels_corrected_in_mid_run_stay(widget, viewer, cells, qtbot):
    viewer.add_image(np.stack([cells] * 6), name="stack")
    widget.segment.slices.setCurrentIndex(1)
    widget.segment.button.click()
    qtbot.waitUntil(lambda: "stack (nuclei)" in viewer.layers, timeout=WAIT)
    layer = viewer.layers["stack (nuclei)"]
    layer.data[5, :9, :9] = 500
    finish(widget, qtbot)
    assert (layer.data[5] == 500).sum() == 81
    assert layer.data[4].any()


def test_second_click_while_running(widget, work, long_run, qtbot):
    assert not widget.segment.button.isEnabled()
    with pytest.raises(ValueError, match="Another task is running"):
        work.tasks.run("Second", lambda task: None, lambda _: None)
    work.tasks.cancel()
    finish(widget, qtbot)


def test_broken_model_file(widget, work, viewer, cells, tmp_path, qtbot):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a model at all")
    viewer.add_image(cells)
    mine = viewer.add_labels((cells > 60).astype(int), name="mine")
    before = mine.data.copy()
    work.models.add_file(broken)
    widget.segment.button.click()
    finish(widget, qtbot)
    assert any("must be a safetensors file" in message for message in messages())
    assert np.array_equal(mine.data, before)
    assert len(viewer.layers) == 2
    broken.unlink()
    widget.segment.button.click()
    finish(widget, qtbot)
    assert any("No model" in message for message in messages())


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 50), np.uint8),
        np.ones((1, 1), np.uint16),
        np.full((3, 200), 7.0),
        np.array([[0.0, np.nan], [np.inf, 1.0]]),
        np.array([[True, False, True]]),
    ],
    ids=["zeros", "one pixel", "constant", "nan", "bool"],
)
def test_strange_images(viewer, image, segment):
    viewer.add_image(image)
    layer = segment()
    assert layer.data.shape == image.shape
    assert not messages()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((30, 30), np.nan), "finite pixels"),
        (np.ones((30, 30), np.complex64), "real numbers"),
    ],
)
def test_impossible_images(viewer, widget, image, message, qtbot):
    layer = viewer.add_image(np.zeros((30, 30)))
    layer._data = image  # napari itself refuses some of them; a file may still hold them
    widget.segment.button.click()
    finish(widget, qtbot)
    assert any(message in text for text in messages()), messages()
    assert len(viewer.layers) == 1


def test_missing_pixels_are_background(viewer, cells, segment):
    image = cells.astype(np.float32)
    image[60:, :] = np.nan
    viewer.add_image(image)
    layer = segment()
    assert layer.data[:60].max() >= 2
    assert not layer.data[60:].any()


def test_huge_lazy_image_is_read_only_where_it_is_seen(viewer, widget, work, cells, segment, qtbot):
    dask_array = pytest.importorskip("dask.array")
    read = []

    def block(block_info=None):
        place = block_info[None]["array-location"]
        read.append(tuple(start for start, _ in place))
        return np.tile(cells, (5, 4))[:500, :500]

    huge = dask_array.map_blocks(
        block, chunks=((500,) * 40, (500,) * 40), dtype=np.uint8, meta=np.zeros((0, 0), np.uint8)
    )
    small = np.zeros((2500, 2500), np.uint8)
    viewer.add_image([huge, small], multiscale=True, contrast_limits=(0, 255))
    assert widget.segment.region.currentText() == "visible part"
    viewer.window._qt_window.show()
    qtbot.waitUntil(widget.isVisible, timeout=WAIT)
    camera(viewer).center = (0, 10_000, 10_000)
    camera(viewer).zoom = 2
    read.clear()
    layer = segment()
    assert layer.data.max() > 10
    assert layer.data.size < 2000**2
    assert all(8000 < y < 12_000 and 8000 < x < 12_000 for y, x in read)
    assert 0 < len(read) < 60
    camera(viewer).zoom = 0.01
    widget.segment.button.click()
    assert any("at most 100 megapixels" in message for message in messages())
    assert not work.tasks.running


def test_lazy_stack_reads_the_shown_slice_alone(viewer, cells, segment, tmp_path):
    zarr = pytest.importorskip("zarr")
    stored = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(4, *cells.shape), chunks=(1, *cells.shape), dtype="uint8"
    )
    stored[2] = cells
    viewer.add_image(stored, contrast_limits=(0, 255))
    viewer.dims.set_current_step(0, 2)
    layer = segment()
    assert layer.data[2].max() >= 4
    assert not layer.data[[0, 1, 3]].any()


# Models


def test_dropped_files(viewer, widget, work, slow_model, tmp_path, cells, qtbot):
    def drop(path):
        data = QMimeData()
        data.setUrls([QUrl.fromLocalFile(str(path))])
        widget.dropEvent(
            QDropEvent(
                QPoint(5, 5),
                Qt.DropAction.CopyAction,
                data,
                Qt.MouseButton.LeftButton,
                Qt.KeyboardModifier.NoModifier,
            )
        )

    drop(slow_model)
    assert work.models.choice == str(slow_model.resolve())
    assert work.models.box.currentText() == "slow"
    drop(tmp_path / "old.pt")
    assert any("vimunet convert" in message for message in messages())
    assert work.models.choice == str(slow_model.resolve())


# Tune


def test_sliders_read_the_maps_again(viewer, widget, cells, segment, qtbot):
    viewer.add_image(cells)
    layer = segment()
    model = vimunet.load_model("nuclei")
    maps = vimunet.predict(cells, model)
    widget.tune.slider("min_size").setValue(400)
    widget.tune.slider("foreground_threshold").setValue(0.8)
    tuned(widget, qtbot)
    representation = widget.tune.representation
    assert representation.min_size == 400
    assert representation.foreground_threshold == 0.8
    expected = representation.decode(maps)
    assert not np.array_equal(expected, model.representation.decode(maps))
    assert np.array_equal(layer.data, expected)
    assert f">{expected.max()}<" in widget.tune.count.text()
    # The next run uses them too.
    assert np.array_equal(segment().data, expected)
    widget.tune.reset_button.click()
    tuned(widget, qtbot)
    assert np.array_equal(layer.data, model.representation.decode(maps))


def test_tuning_keeps_corrections(viewer, widget, work, cells, segment, qtbot):
    viewer.add_image(cells)
    layer = segment()
    widget.correct.edit("delete", first_object(layer)[0][None])
    corrected = layer.data.copy()
    layer.undo()
    layer.redo()
    widget.tune.slider("foreground_threshold").setValue(0.7)
    tuned(widget, qtbot)
    other = work.labels.layer
    assert other is not layer
    assert np.array_equal(layer.data, corrected)
    assert any("Your corrections stay" in message for message in messages())
    widget.tune.slider("foreground_threshold").setValue(0.6)
    tuned(widget, qtbot)
    assert work.labels.layer is other, "one copy is enough"
    assert np.array_equal(layer.data, corrected)


def test_thresholds_for_all_slices(viewer, widget, work, cells, segment, qtbot):
    viewer.add_image(np.stack([cells, cells[::-1]]))
    widget.segment.slices.setCurrentIndex(1)
    layer = segment()
    widget.tune.slider("min_size").setValue(1000)
    tuned(widget, qtbot)
    assert not layer.data[int(viewer.dims.current_step[0])].any()
    assert layer.data.any()
    assert "1 slices have other" in widget.tune.hint.text()
    work.session.maps.forget(work.session.source(layer))  # predicted again where dropped
    widget.tune.all_button.click()
    finish(widget, qtbot)
    assert not layer.data.any()


def test_maps_are_fetched_in_the_thread_of_the_viewer(
    viewer, widget, work, cells, segment, qtbot, monkeypatch
):
    viewer.add_image(np.stack([cells] * 3))
    widget.segment.slices.setCurrentIndex(1)
    segment()
    widget.tune.slider("min_size").setValue(1000)
    tuned(widget, qtbot)
    get, threads = work.session.maps.get, []

    def watched(*plane):
        threads.append(threading.current_thread())
        return get(*plane)

    monkeypatch.setattr(work.session.maps, "get", watched)
    widget.tune.all_button.click()
    finish(widget, qtbot)
    assert threads == [threading.main_thread()] * 2


def test_looking_at_a_slice_sets_no_thresholds(viewer, widget, work, cells, segment, qtbot):
    viewer.add_image(np.stack([cells, cells[::-1]]))
    viewer.dims.set_current_step(0, 0)
    widget.segment.slices.setCurrentIndex(1)
    source = work.session.source(segment())
    widget.tune.slider("min_size").setValue(300)
    tuned(widget, qtbot)
    assert "Segment uses these too" in widget.tune.hint.text()
    viewer.dims.set_current_step(0, 1)
    assert widget.tune.slider("min_size").value() != 300
    assert "Segment uses those you set last" in widget.tune.hint.text()
    assert work.session.thresholds(source).min_size == 300
    widget.tune.all_button.click()
    finish(widget, qtbot)
    assert work.session.thresholds(source) == source.model.representation


def test_model_file_that_changed_brings_its_thresholds(
    viewer, widget, work, cells, segment, qtbot, tmp_path
):
    path = tmp_path / "mine.safetensors"
    model = vimunet.load_model("nuclei")
    vimunet.save_model(path, model)
    work.models.add_file(path)
    viewer.add_image(cells)
    layer = segment()
    widget.tune.slider("min_size").setValue(5)
    tuned(widget, qtbot)
    improved = replace(model.representation, min_size=10_000)
    vimunet.save_model(path, replace(model, representation=improved))
    assert not segment().data.any()
    work.labels.choose(layer)
    widget.tune.slider("min_size").setValue(6)  # of the model that was
    tuned(widget, qtbot)
    torch.manual_seed(0)
    other = vimunet.TrainedModel(vimunet.build_model("unet", 1, 3).eval(), Distances())
    vimunet.save_model(path, other)
    assert work.session.source(segment()).model.representation == Distances()
    assert not messages()


def test_any_representation_has_its_sliders_maps_and_corrections(
    viewer, widget, work, cells, segment, qtbot, tmp_path, monkeypatch
):
    monkeypatch.setitem(REPRESENTATIONS, "flows", Flows)
    network = vimunet.build_model("unet", features=4, depth=1, out_channels=2).eval()
    path = tmp_path / "flows.safetensors"
    vimunet.save_model(path, vimunet.TrainedModel(network, Flows()))
    viewer.add_image(cells, name="cells")
    work.models.add_file(path)
    layer = segment()
    maps = vimunet.predict(cells, vimunet.load_model(path))
    assert np.array_equal(layer.data, Flows().decode(maps))
    tune = widget.tune
    titles = [tune._rows.labelForField(tune.slider(f)).text() for f in ("threshold", "min_size")]
    assert titles == ["Least flow", "Smallest object"]
    assert tune._rows.rowCount() == 2
    threshold = round(float(np.percentile(np.linalg.norm(maps, axis=0), 80)), 2)
    tune.slider("threshold").setValue(threshold)
    tune.slider("min_size").setValue(3)
    tuned(widget, qtbot)
    wanted = Flows(threshold=threshold, min_size=3)
    assert tune.representation == wanted
    assert np.array_equal(layer.data, wanted.decode(maps))
    assert 0 < np.count_nonzero(layer.data) < layer.data.size
    widget.segment.maps_button.click()
    for name in ("flow y", "flow x"):
        assert viewer.layers[f"{layer.name}: {name}"].contrast_limits == [-1, 1]
    seen = np.zeros(cells.shape, np.float32)
    place = np.argwhere(layer.data == 0)[0]
    seen[tuple(place)] = 1
    monkeypatch.setattr(Flows, "landscape", lambda *_: Landscape(None, seen))
    widget.correct.edit("add", place[None].astype(float))
    assert (layer.data == layer.data.max()).sum() < 9, "as far as the landscape says"
    # Another model, other sliders.
    work.models.box.setCurrentText("nuclei")
    segment()
    assert "foreground_threshold" in tune._sliders
    assert not messages()


def test_classes_are_counted_and_scored_as_classes(
    viewer, widget, work, cells, segment, tmp_path, qtbot
):
    network = vimunet.build_model("unet", features=4, depth=1, out_channels=4).eval()
    path = tmp_path / "tissue.safetensors"
    vimunet.save_model(path, vimunet.TrainedModel(network, Semantic(num_classes=4)))
    viewer.add_image(cells, name="cells")
    work.models.add_file(path)
    layer = segment()
    found = len(objects(layer))
    assert f"{found} classes found by tissue" in widget.segment.summary.text()
    assert f">{found}</span> classes" in widget.tune.count.text()
    assert widget.tune._rows.rowCount() == 0, "nothing to tune where the largest map wins"
    widget.tabs.setCurrentWidget(widget.correct)
    viewer.window._qt_window.show()
    qtbot.waitUntil(widget.correct.isVisible, timeout=WAIT)
    assert f">{found}</span> classes in" in widget.correct.count.text()
    widget.measure.truth.choose(viewer.add_labels(layer.data.copy(), name="truth"))
    work.labels.choose(layer)
    widget.measure.score_button.click()
    assert "Dice 1.000" in widget.measure.result.text()
    widget.correct.stitch_button.click()
    assert "are classes" in messages()[-1]


def test_models_of_volumes_say_where_to_use_them(
    viewer, widget, work, train, cells, tmp_path, qtbot
):
    network = vimunet.build_model("unet", axes="zyx", features=4, depth=1).eval()
    path = tmp_path / "volumes.safetensors"
    vimunet.save_model(path, vimunet.TrainedModel(network, Boundaries()))
    viewer.add_image(np.stack([cells, cells]))
    work.models.add_file(path)
    widget.segment.button.click()
    finish(widget, qtbot)
    train.train()
    qtbot.waitUntil(lambda: not train.tasks.running, timeout=WAIT)
    assert len(messages()) == 2
    assert all("`vimunet segment`" in message for message in messages())
    assert len(viewer.layers) == 1


def test_thresholds_are_saved_with_the_model(
    viewer, widget, work, cells, segment, qtbot, tmp_path, monkeypatch
):
    viewer.add_image(cells)
    segment()
    widget.tune.slider("seed_threshold").setValue(0.35)
    tuned(widget, qtbot)
    path = tmp_path / "mine.safetensors"
    monkeypatch.setattr(
        "napari_vimunet._tune_tab.QFileDialog.getSaveFileName", lambda *_: (str(path), "")
    )
    widget.tune.save_button.click()
    saved = vimunet.load_model(path)
    assert saved.representation.seed_threshold == 0.35
    assert work.models.choice == str(path)
    assert saved.representation != vimunet.load_model("nuclei").representation


# Correct


@pytest.fixture
def drawn(viewer, widget, qtbot):
    """A Labels layer drawn by the user, not by the plugin; the Correct tab is shown."""
    labels = np.zeros((60, 80), np.int32)
    labels[10:30, 10:50] = 3
    labels[40:55, 10:25] = 5
    labels[40:55, 26:40] = 6
    labels[0:6, 70:80] = 9
    layer = viewer.add_labels(labels, scale=(2, 2), translate=(100, 50), name="drawn")
    viewer.window._qt_window.show()
    widget.tabs.setCurrentWidget(widget.correct)
    qtbot.waitUntil(widget.correct.isVisible, timeout=WAIT)
    return layer


def use_mouse(viewer, layer, points):
    """Press at the first of (n, 2) points, move along the others, release."""
    from napari.utils._proxies import ReadOnlyWrapper
    from napari.utils.interactions import (
        mouse_move_callbacks,
        mouse_press_callbacks,
        mouse_release_callbacks,
    )

    class Event:
        def __init__(self, kind, point):
            self.type = kind
            self.position = tuple(layer.data_to_world(point))
            self.button, self.buttons, self.handled = 1, [1], False
            self.modifiers, self.is_dragging = (), kind == "mouse_move"
            self.view_direction, self.dims_displayed = None, [0, 1]
            self.pos = np.zeros(2)

    mouse_press_callbacks(layer, ReadOnlyWrapper(Event("mouse_press", points[0])))
    for point in points[1:]:
        mouse_move_callbacks(layer, ReadOnlyWrapper(Event("mouse_move", point)))
    mouse_release_callbacks(layer, ReadOnlyWrapper(Event("mouse_release", points[-1])))


def objects(layer):
    return set(np.unique(layer.data)) - {0}


def test_each_tool_with_the_mouse_and_undo(viewer, widget, drawn):
    correct = widget.correct
    start = drawn.data.copy()
    strokes = {
        "split": ([(20, 15), (20, 45)], 5),
        "cut": ([(5, 30), (20, 30), (35, 30)], 5),
        "merge": ([(47, 15), (47, 25), (47, 35)], 3),
        "delete": ([(20, 20)], 3),
        "redraw": ([(8, 8), (8, 40), (32, 40), (32, 8)], 4),
        "add": ([(30, 65)], 5),
    }
    for name, (points, count) in strokes.items():
        correct.buttons[name].click()
        assert correct.tool == name
        assert (STROKE in viewer.layers) == TOOLS[name].draws
        assert viewer.layers.selection.active is drawn
        assert not drawn.mouse_pan
        use_mouse(viewer, drawn, points)
        assert len(objects(drawn)) == count, name
        assert f"{count}</span> objects" in correct.count.text()
        changed = drawn.data.copy()
        correct.undo_button.click()
        assert np.array_equal(drawn.data, start), name
        correct.redo_button.click()
        assert np.array_equal(drawn.data, changed), name
        drawn.undo()
        correct.buttons[name].click()
        assert correct.tool is None
        assert STROKE not in viewer.layers
        assert drawn.mouse_pan
    assert not messages()


def test_split_by_two_clicks(viewer, widget, drawn):
    widget.correct.buttons["split"].click()
    use_mouse(viewer, drawn, [(20, 15)])
    assert "other half" in widget.correct.hint.text()
    use_mouse(viewer, drawn, [(20, 45)])
    assert len(objects(drawn)) == 5
    # Without neck the border is halfway between the clicks.
    assert drawn.data[20, 28] != drawn.data[20, 32]


def test_border_objects_are_deleted_and_come_back(widget, drawn):
    widget.correct.border_button.click()
    assert objects(drawn) == {3, 5, 6}
    widget.correct.undo_button.click()
    assert objects(drawn) == {3, 5, 6, 9}


def test_keys_take_and_leave_tools(viewer, widget, drawn, qtbot):
    def keys():
        return {str(key): function for key, function in viewer.keymap.items()}

    for name, tool in TOOLS.items():
        keys()[tool.key](viewer)
        assert widget.correct.tool == name
        assert widget.correct.buttons[name].isChecked()
    keys()["A"](viewer)
    assert widget.correct.tool is None
    widget.tabs.setCurrentWidget(widget.segment)
    assert not {tool.key for tool in TOOLS.values()} & keys().keys()


def test_napari_own_tools_take_over(viewer, widget, drawn):
    widget.correct.buttons["delete"].click()
    drawn.mode = "paint"
    assert widget.correct.tool is None
    drawn.paint((35, 60), 7)
    assert 7 in objects(drawn)
    widget.correct.buttons["delete"].click()
    use_mouse(viewer, drawn, [(35, 60)])
    assert 7 not in objects(drawn)


def test_clicks_on_nothing_change_nothing(viewer, widget, work, drawn):
    before = drawn.data.copy()
    for name in ("delete", "split", "cut", "merge"):
        widget.correct.buttons[name].click()
        use_mouse(viewer, drawn, [(58, 70), (58, 78)] if TOOLS[name].draws else [(58, 70)])
        assert "nothing changed" in work.tasks.text.text()
        use_mouse(viewer, drawn, [(-40, -40), (-90, -90)])
    assert np.array_equal(drawn.data, before)


def test_tool_ends_with_its_layer(viewer, widget, drawn):
    widget.correct.buttons["cut"].click()
    viewer.layers.remove(drawn)
    assert widget.correct.tool is None
    assert STROKE not in viewer.layers


def test_lazy_labels_say_how_to_be_corrected(viewer, widget, drawn):
    dask_array = pytest.importorskip("dask.array")
    viewer.add_labels(dask_array.zeros((60, 80), dtype=np.int32), name="lazy")
    widget.correct.buttons["cut"].click()
    assert any("must be in memory" in message for message in messages())
    assert widget.correct.tool is None
    assert not widget.correct.buttons["cut"].isChecked()


def test_new_objects_of_a_stack_have_numbers_of_their_own(viewer, widget, drawn):
    stack = np.stack([drawn.data, drawn.data + 20 * (drawn.data > 0)])
    layer = viewer.add_labels(stack, name="stack")
    viewer.dims.set_current_step(0, 0)
    widget.correct.edit("split", np.array([(20, 15), (20, 45)]))
    assert set(np.unique(layer.data[0])) == {0, 3, 5, 6, 9, 30}
    assert np.array_equal(layer.data[1], stack[1])


def test_numbers_of_a_full_stack_are_free_in_all_slices(viewer, widget, drawn):
    others = np.arange(256, dtype=np.uint8)
    others[100] = 0
    stack = np.stack([drawn.data, np.resize(others, drawn.data.shape)]).astype(np.uint8)
    layer = viewer.add_labels(stack.copy(), name="stack")
    viewer.dims.set_current_step(0, 0)
    widget.correct.edit("split", np.array([(20, 15), (20, 45)]))
    assert objects(layer) == set(range(1, 256))
    assert set(np.unique(layer.data[0])) == {0, 3, 5, 6, 9, 100}
    with pytest.raises(ValueError, match="must have room for 1 more objects"):
        widget.correct.edit("add", np.array([(35.0, 60.0)]))


def test_slices_are_stitched_in_a_new_layer(viewer, widget, work, cells, segment, qtbot):
    correct = widget.correct
    apart = cells[:60]  # those that touch may be one in one slice and two in the next
    image = np.stack([apart, np.roll(apart, 3, axis=1), np.zeros_like(apart), apart])[:, None]
    viewer.add_image(image, name="volume", scale=(5, 1, 2, 2))
    widget.segment.slices.setCurrentIndex(1)
    layer = segment()
    widget.tabs.setCurrentWidget(correct)
    before = layer.data.copy()
    assert len(objects(layer)) == 6
    correct.stitch_button.click()
    finish(widget, qtbot)
    stitched = work.labels.layer
    assert stitched.name == "volume (nuclei), stitched"
    assert "Stitched: 4 objects" in work.tasks.text.text()
    assert len(objects(stitched)) == 4  # the empty slice ends them
    assert stitched.data[0, 0, 30, 30] == stitched.data[1, 0, 30, 33] != stitched.data[3, 0, 30, 30]
    assert np.array_equal(stitched.data > 0, before > 0)
    assert tuple(stitched.scale) == (5, 1, 2, 2)
    assert (layer.visible, stitched.visible) == (False, True)
    assert np.array_equal(layer.data, before)
    source = work.session.source(stitched)
    assert work.session.maps.get(source, (1, 0)) is not None  # so that splits follow the maps
    correct.overlap.setValue(0.9)
    work.labels.choose(layer)
    correct.stitch_button.click()
    finish(widget, qtbot)
    assert len(objects(work.labels.layer)) == 6
    assert not messages()


def test_stitched_slices_count_as_corrected(viewer, widget, work, cells, segment, qtbot):
    apart = cells[:60]
    viewer.add_image(np.stack([apart, np.roll(apart, 3, axis=1)]), name="volume")
    viewer.dims.set_current_step(0, 0)
    widget.segment.slices.setCurrentIndex(1)
    segment()
    widget.correct.stitch_button.click()
    finish(widget, qtbot)
    stitched = work.labels.layer
    before = stitched.data.copy()
    assert np.array_equal(*(np.unique(plane) for plane in before)), "all go on"
    for threshold in (0.6, 0.7):  # also once the slice is tuned
        widget.tune.slider("foreground_threshold").setValue(threshold)
        tuned(widget, qtbot)
        layer = work.labels.layer
        assert layer.name == "volume (nuclei), stitched, tuned"
        first, second = (set(np.unique(plane)) - {0} for plane in layer.data)
        assert first and not first & second, "they are no longer one"
    assert np.array_equal(stitched.data, before)
    assert np.array_equal(layer.data[1], before[1])


def test_stitching_is_offered_for_stacks_alone(viewer, widget, drawn):
    assert not widget.correct.slices.isVisible()
    layer = viewer.add_labels(np.stack([drawn.data, drawn.data]), name="stack")
    assert widget.correct.slices.isVisible()
    viewer.layers.remove(layer)
    assert not widget.correct.slices.isVisible()
    viewer.layers.remove(drawn)
    widget.correct.stitch_button.click()
    assert "Labels must be there to be corrected" in messages()[-1]


def test_redrawing_does_not_take_a_neighbour(viewer, widget, drawn):
    before = drawn.data.copy()
    # Mostly background, a corner of object 3: a new object.
    widget.correct.edit("redraw", np.array([(26, 46), (26, 70), (38, 70), (38, 46)]))
    assert len(objects(drawn)) == 5
    assert np.array_equal(drawn.data[before > 0], before[before > 0])


def test_corrections_are_fast(viewer, widget, rng, qtbot):
    """More than 500 objects in 1024 x 1024 pixels: each edit takes less than 0.2 s."""
    rows, columns = np.mgrid[:1024, :1024]
    labels = ((rows // 40) * 26 + columns // 40 + 1) * ((rows % 40 < 34) & (columns % 40 < 34))
    viewer.add_labels(labels.astype(np.int32))
    assert labels.max() > 500
    for tool, points in {
        "split": [(497, 483), (497, 510)],
        "cut": [(436, 457), (478, 457)],
        "merge": [(577, 497), (577, 537)],
        "delete": [(657, 657)],
        "redraw": [(722, 722), (722, 750), (750, 750), (750, 722)],
        "add": [(517, 597)],
    }.items():
        start = time.process_time()
        assert widget.correct.edit(tool, np.array(points, float)) > 0, tool
        assert time.process_time() - start < 0.2, tool


# Train


@pytest.fixture
def train(widget, tmp_path):
    """The Train tab with an empty training set in a folder of its own."""
    widget.train.folder.setText(str(tmp_path / "set"))
    widget.train.show_set()
    return widget.train


def test_corrected_images_become_a_training_set(viewer, widget, train, cells, segment, tmp_path):
    viewer.add_image(cells, name="cells", scale=(0.5, 0.5), units="um")
    layer = segment()
    assert not train.train_button.isEnabled()
    widget.correct.edit("delete", first_object(layer)[0][None])
    train.add_button.click()
    assert [train.names.item(i).text() for i in range(train.names.count())] == ["cells"]
    assert train.train_button.isEnabled()
    assert np.array_equal(tifffile.imread(tmp_path / "set" / "images" / "cells.tif"), cells)
    stored = tifffile.imread(tmp_path / "set" / "labels" / "cells.tif")
    assert np.array_equal(stored, layer.data)
    train.names.item(0).setSelected(True)
    train.remove_button.click()
    assert train.names.count() == 0
    assert not messages()


def test_only_the_shown_part_is_added(viewer, widget, work, train, cells, segment, tmp_path):
    viewer.add_image(np.stack([np.zeros((480, 600), np.uint8), np.tile(cells, (4, 4))]))
    viewer.dims.set_current_step(0, 1)
    widget.segment.region.setCurrentIndex(1)
    camera(viewer).center = (240, 300)
    camera(viewer).zoom = 0.5
    layer = segment()
    train.add_button.click()
    (image,) = (tmp_path / "set" / "images").iterdir()
    assert image.stem == "Image_1"
    rows, columns = work.session.source(layer).box
    assert np.array_equal(tifffile.imread(image), np.tile(cells, (4, 4))[rows, columns])
    work.labels.choose(viewer.add_labels(np.ones((480, 600), int), translate=(7.5, 0)))
    train.add_button.click()
    assert any("must lie on the pixels" in message for message in messages())


def test_training_in_the_background(viewer, widget, work, train, cells, segment, qtbot):
    """The model learns while the viewer goes on; the new one is in the list with its scores."""
    viewer.add_image(cells, name="cells")
    segment()
    train.add_button.click()
    train.minutes.setDecimals(2)
    train.minutes.setMinimum(0.01)
    train.minutes.setValue(0.02)
    train.train_button.click()
    assert not train.train_button.isEnabled()
    assert widget.segment.button.isEnabled(), "segmenting goes on meanwhile"
    qtbot.waitUntil(lambda: not train.tasks.running, timeout=5 * WAIT)
    assert not messages()
    assert len(train.plot.values) > 0
    assert not train.preview.pixmap().isNull()
    assert "before" in train.result.text()
    work.models.box.setCurrentIndex(work.models.box.count() - 1)
    assert work.models.choice.endswith(".safetensors")
    segment()
    assert work.session.source(work.labels.layer).model_name == work.models.choice


def test_training_has_a_network_of_its_own(work, train, long_run, qtbot, monkeypatch):
    """Neither Cancel of Segment nor its device may reach what learns."""
    given = []

    def fine_tune(model, *_, **__):
        given.append(model.network)
        raise CancelledError

    monkeypatch.setattr("vimunet.training.fine_tuning.fine_tune", fine_tune)
    train.train()
    qtbot.waitUntil(lambda: not train.tasks.running, timeout=WAIT)
    assert work.tasks.running, "segmented meanwhile"
    assert given[0] is not work.session.load_model(work.models.choice).network
    assert not any(module._forward_pre_hooks for module in given[0].modules())


@pytest.mark.parametrize(
    ("phase", "phases"),
    [("before", ["before"]), ("training", ["before", "training", "after", "saved"])],
)
def test_closing_the_dock_ends_the_training(
    viewer, widget, train, qtbot, monkeypatch, phase, phases
):
    """What was learnt is saved, but nothing goes on unseen."""
    seen, inside = [], threading.Event()

    def fine_tune(*_, progress, **__):
        for name in ("before", "training", "after"):
            seen.append(name)
            for _ in range(2 if name == "before" != phase else 1000):
                if name == phase:
                    inside.set()
                if progress(Step(name, 1, None, 1.0, 1.0)):
                    break
                time.sleep(0.01)
        seen.append("saved")

    monkeypatch.setattr("vimunet.training.fine_tuning.fine_tune", fine_tune)
    train.train()
    task = train.tasks._task
    qtbot.waitUntil(inside.is_set, timeout=WAIT)
    viewer.window.remove_dock_widget(widget)
    widget.close()
    widget.deleteLater()
    qtbot.waitUntil(lambda: not task._thread.is_alive(), timeout=5000)
    assert seen == phases


def test_only_a_better_model_is_chosen(work, train, slow_model, tmp_path):
    for name, before, after, chosen in (
        ("worse", 0.6, 0.5, False),
        ("better", 0.5, 0.6, True),
        ("stopped", math.nan, math.nan, True),
    ):
        path = tmp_path / f"{name}.safetensors"
        shutil.copy(slow_model, path)
        work.models.box.setCurrentText("nuclei")
        train._finish(FineTuned(path, ("a",), ("b",), True, "mSA", before, after, 9, 1.0))
        assert work.models.box.findText(name) > 0
        assert (work.models.choice == str(path)) == chosen
        assert ("it is worse" in train.result.text()) == (not chosen)


def test_loss_is_plotted_while_it_is_seen(viewer, widget, train, qtbot):
    for loss in (1.0, 0.5, 0.25):
        train.plot.add(loss)
    assert train.plot._canvas is None, "matplotlib is loaded when it is seen first"
    viewer.window._qt_window.show()
    widget.tabs.setCurrentWidget(train)
    qtbot.waitUntil(lambda: train.plot._canvas is not None, timeout=WAIT)
    train.plot.add(0.125)
    qtbot.waitUntil(lambda: not train.plot._soon.isActive(), timeout=WAIT)
    axes = train.plot._axes
    faint, strong = axes.lines
    assert list(faint.get_ydata()) == [1, 0.5, 0.25, 0.125]
    assert 0.125 < strong.get_ydata()[-1] < 1
    assert axes.get_xlabel() == "loss, 4 iterations"
    train.plot.clear()
    assert not len(faint.get_ydata())


def test_stopped_training_keeps_what_was_learned(viewer, work, train, cells, segment, qtbot):
    viewer.add_image(cells, name="cells")
    segment()
    train.add_button.click()
    train.minutes.setValue(30)
    train.train_button.click()
    qtbot.waitUntil(lambda: len(train.plot.values) > 1, timeout=5 * WAIT)
    start = time.process_time()
    train.tasks.cancel_button.click()
    qtbot.waitUntil(lambda: not train.tasks.running, timeout=WAIT)
    assert time.process_time() - start < 10
    assert train.result.text()
    vimunet.load_model(work.models.box.itemData(work.models.box.count() - 1))


# Measure


def test_table_is_linked_with_the_viewer(viewer, widget, work, drawn, qtbot, tmp_path, monkeypatch):
    viewer.add_image(np.full((60, 80), 7, np.uint8), scale=(2, 2), translate=(100, 50))
    work.labels.choose(drawn)
    for layer in viewer.layers:
        layer.units = "um"
    notification_manager.records.clear()
    measure = widget.measure
    widget.tabs.setCurrentWidget(measure)
    measure.measure_button.click()
    finish(widget, qtbot)
    columns = measure.model.columns
    assert columns["label"].tolist() == [3, 5, 6, 9]
    assert columns["area_um2"].tolist() == [800 * 4, 225 * 4, 210 * 4, 60 * 4]
    assert (columns["mean_intensity"] == 7).all()
    # A row shows its object.
    measure.table.selectRow(1)
    assert drawn.selected_label == 5
    assert np.allclose(camera(viewer).center[-2:], drawn.data_to_world((47, 17)))
    # A click on an object shows its row, also when the table is sorted otherwise.
    measure.table.sortByColumn(1, Qt.SortOrder.DescendingOrder)
    use_mouse(viewer, drawn, [(3, 75)])
    (row,) = measure.table.selectionModel().selectedRows()
    assert row.data() == "9"
    path = tmp_path / "table"
    monkeypatch.setattr(
        "napari_vimunet._measure_tab.QFileDialog.getSaveFileName", lambda *_: (str(path), "")
    )
    measure.csv_button.click()
    text = path.with_suffix(".csv").read_text(encoding="utf-8-sig")
    assert text.splitlines()[0].split(",")[:2] == ["label", "area_um2"]
    assert len(text.splitlines()) == 5
    widget.correct.edit("delete", np.array([(20.0, 20.0)]))
    assert "edited since" in measure.hint.text()
    assert not messages()


def test_other_units_of_length_are_measured_in_micrometres(viewer, widget, work, drawn, qtbot):
    image = viewer.add_image(np.ones((60, 80)), scale=(2, 2), translate=(100, 50))
    for layer in (image, drawn):
        layer.units = "nm"
    work.labels.choose(drawn)
    widget.measure.measure_button.click()
    finish(widget, qtbot)
    columns = widget.measure.model.columns
    assert np.allclose(columns["area_um2"], [800 * 4e-6, 225 * 4e-6, 210 * 4e-6, 60 * 4e-6])
    assert columns["y_px"][1] == pytest.approx(47)


def test_without_unit_pixels_are_measured(widget, drawn, qtbot):
    assert tuple(drawn.scale) == (2, 2)
    widget.measure.measure_button.click()
    finish(widget, qtbot)
    assert widget.measure.model.columns["area_px2"].tolist() == [800, 225, 210, 60]


def test_mirrored_images(viewer, widget, train, cells, segment, qtbot):
    viewer.add_image(cells, scale=(-0.5, 0.5), units="um")
    layer = segment()
    widget.measure.measure_button.click()
    finish(widget, qtbot)
    assert widget.measure.model.columns["area_um2"].sum() == np.count_nonzero(layer.data) / 4
    train.add_button.click()
    assert train.names.count() == 1
    assert not messages()


def test_measures_and_scores_all_slices(viewer, widget, work, drawn, qtbot):
    labels = np.stack([drawn.data, np.where(drawn.data == 9, 0, drawn.data)])
    truth = viewer.add_labels(np.stack([drawn.data, drawn.data]), name="truth")
    layer = viewer.add_labels(labels, name="found")
    assert work.labels.layer is layer
    measure = widget.measure
    measure.slices.setCurrentIndex(1)
    measure.measure_button.click()
    finish(widget, qtbot)
    assert measure.model.columns["slice"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    measure.table.selectRow(6)
    assert viewer.dims.current_step[0] == 1
    measure.score_button.click()
    assert any("must be chosen as truth" in message for message in messages())
    measure.truth.choose(truth)
    measure.score_button.click()
    assert "7 found, 1 missed, 0 too many" in measure.result.text()


def test_labels_saved_and_opened_again(viewer, widget, cells, segment, tmp_path, monkeypatch):
    viewer.add_image(cells, name="cells", scale=(0.5, 0.25), translate=(3, 4), units="um")
    layer = segment()
    path = tmp_path / "cells_labels.tif"
    monkeypatch.setattr(
        "napari_vimunet._measure_tab.QFileDialog.getSaveFileName", lambda *_: (str(path), "")
    )
    widget.measure.save_button.click()
    (again,) = viewer.open(path, plugin="vimunet")
    assert again.name.startswith("cells")
    assert np.array_equal(again.data, layer.data)
    assert np.allclose(again.scale, layer.scale)
    assert np.allclose(again.translate, layer.translate)
    assert again.units == layer.units
    with tifffile.TiffFile(path) as file:
        width, unit = file.pages[0].tags["XResolution"].value, file.pages[0].tags["ResolutionUnit"]
    assert width[0] / width[1] == pytest.approx(1e4 / 0.25)
    assert unit.value == 3
    # napari's own File > Save uses the same writer.
    other = tmp_path / "other_labels.tif"
    assert layer.save(str(other), plugin="vimunet") == [str(other)]
    assert np.array_equal(tifffile.imread(other), layer.data)


def test_ome_zarr_and_rois(viewer, widget, cells, segment, tmp_path, monkeypatch):
    roifile = pytest.importorskip("roifile")
    viewer.add_image(np.stack([cells] * 2), name="cells", scale=(3, 0.5, 0.5), units="um")
    layer = segment()
    names = iter(
        [
            (str(tmp_path / "cells_labels"), "OME-Zarr (*.ome.zarr)"),
            (str(tmp_path / "cells"), "ImageJ ROIs (*.zip)"),
        ]
    )
    monkeypatch.setattr(
        "napari_vimunet._measure_tab.QFileDialog.getSaveFileName", lambda *_: next(names)
    )
    widget.measure.save_button.click()
    widget.measure.save_button.click()
    assert not messages()
    (again,) = viewer.open(tmp_path / "cells_labels.ome.zarr", plugin="vimunet")
    assert np.array_equal(again.data, layer.data)
    assert np.allclose(again.scale, layer.scale)
    assert again.units == layer.units
    outlines = roifile.roiread(tmp_path / "cells.zip")
    assert len(outlines) == len(np.unique(layer.data)) - 1


@pytest.mark.parametrize("ending", [".tif", ".ome.zarr", ".zip"])
def test_saving_again_replaces_the_file(viewer, drawn, tmp_path, ending):
    if ending == ".zip":
        pytest.importorskip("roifile")
    path = tmp_path / f"drawn_labels{ending}"
    save_labels(path, drawn)
    drawn.data = np.where(drawn.data == 9, 0, drawn.data)
    save_labels(path, drawn)
    assert drawn.save(str(path), plugin="vimunet") == [str(path)]
    if ending != ".zip":
        (again,) = viewer.open(path, plugin="vimunet")
        assert np.array_equal(again.data, drawn.data)


def test_saving_replaces_no_folder_of_other_files(drawn, tmp_path):
    (tmp_path / "a.ome.zarr").mkdir()
    (tmp_path / "a.ome.zarr" / "thesis.txt").write_text("unique")
    with pytest.raises(FileExistsError):
        save_labels(tmp_path / "a.ome.zarr", drawn)
    assert (tmp_path / "a.ome.zarr" / "thesis.txt").exists()


def test_reader_leaves_other_files_alone(tmp_path):
    tifffile.imwrite(tmp_path / "their_labels.tif", np.ones((5, 5), np.uint8))
    assert _reader.get_reader(str(tmp_path / "their_labels.tif")) is None
    assert _reader.get_reader(str(tmp_path)) is None
    assert _reader.get_reader([str(tmp_path / "a_labels.tif")]) is None


# Tasks


def test_unexpected_errors_become_notes(widget, work, qtbot, caplog):
    def fail(task):
        raise KeyError("a bug")

    work.tasks.run("Try", fail, lambda _: None)
    finish(widget, qtbot)
    assert any("Unexpected KeyError" in message for message in messages())
    assert "a bug" in caplog.text

    def fail_later(_):
        raise ZeroDivisionError("another")

    work.tasks.run("Try", lambda task: None, fail_later)
    finish(widget, qtbot)
    assert any("Unexpected ZeroDivisionError" in message for message in messages())


def test_time_left_is_shown(work):
    work.tasks._task = _tasks.Task(lambda task: None)
    work.tasks._started = time.monotonic() - 10
    work.tasks._show(_tasks.Progress(1, 4, "tile 1 of 4"))
    assert work.tasks.text.text() == "tile 1 of 4, 30 s left"
    work.tasks._task = None
