"""The dock widget: image, model and labels above, one tab for each step, progress below."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import napari
import numpy as np
from napari.layers import Image, Labels
from napari.utils.notifications import show_info
from qtpy.QtCore import QEvent, Signal
from qtpy.QtWidgets import QHBoxLayout, QMainWindow, QTabWidget, QVBoxLayout, QWidget

from napari_vimunet._controls import LayerChoice, connect, form, guarded
from napari_vimunet._correct_tab import CorrectTab
from napari_vimunet._measure_tab import MeasureTab
from napari_vimunet._models import ModelChoice
from napari_vimunet._segment_tab import SegmentTab
from napari_vimunet._tasks import TaskPanel, show_problem
from napari_vimunet._train_tab import TrainTab
from napari_vimunet._tune_tab import TuneTab
from napari_vimunet.layers import camera, place_of_labels, same_place, shown_position, visible_box
from napari_vimunet.planes import Box, Index, Planes
from napari_vimunet.segmentation import PlaneMaps
from napari_vimunet.session import Segmentation, Session


class VimunetWidget(QWidget):
    """Segment, tune, correct, train and measure; what the tabs share is here.

    Attributes:
        viewer: The viewer.
        session: What is known about the results.
        images: The image to work on.
        labels: The labels to work on.
        models: The model to segment with.
        tasks: Runs what takes long.
    """

    refreshed = Signal()
    """Labels were written, or another plane is shown."""

    def __init__(self, napari_viewer: napari.viewer.Viewer):
        super().__init__()
        # napari gives plugins a proxy; its layers would be new objects at each look.
        self.viewer: Any = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self.session = Session()
        self.images = LayerChoice(self, self.viewer, Image, "Image to work on")
        self.labels = LayerChoice(self, self.viewer, Labels, "Labels to tune, correct and measure")
        self.models = ModelChoice(self)
        self.tasks = TaskPanel()
        self._watched: Any = None

        header = form()
        header.addRow("Image", self.images.box)
        models = QHBoxLayout()
        models.addWidget(self.models.box, 1)
        models.addWidget(self.models.open_button)
        header.addRow("Model", models)
        header.addRow("Labels", self.labels.box)
        self.tabs = QTabWidget()
        self.tabs.setUsesScrollButtons(False)
        self.segment = SegmentTab(self)
        self.tune = TuneTab(self)
        self.correct = CorrectTab(self)
        self.train = TrainTab(self)
        self.measure = MeasureTab(self)
        for name in ("Segment", "Tune", "Correct", "Train", "Measure"):
            self.tabs.addTab(getattr(self, name.lower()), name)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.setSpacing(8)
        layout.addLayout(header)
        layout.addWidget(self.tabs, 1)
        layout.addWidget(self.tasks)
        self.setMinimumWidth(320)
        self.setAcceptDrops(True)

        self.tabs.currentChanged.connect(lambda _: self.say(""))
        connect(self, self.viewer.dims.events.current_step, self._show_plane)
        connect(self, self.viewer.layers.events.inserted, self._watch_edits)
        connect(self, self.viewer.layers.events.removed, self._forget)
        for layer in self.viewer.layers:
            self._connect_edits(layer)

    def result(self) -> tuple[Any, Segmentation]:
        """Give the chosen labels and where they come from.

        Raises:
            ValueError: If there are none, or they were not made by this plugin.
        """
        layer = self.labels.layer
        segmentation = self.session.segmentation(layer)
        if segmentation is None:
            what = "no labels" if layer is None else f"{layer.name}"
            raise ValueError(
                f"Labels must come from this plugin for this, got {what}. Press Segment first, or "
                "choose other labels."
            )
        return layer, segmentation

    def current_index(self, layer: Any, planes: Planes) -> Index:
        """Tell which plane of a layer is shown."""
        return planes.at(shown_position(layer, self.viewer.dims.point))

    def visible_box(self, layer: Any, shape: tuple[int, int]) -> Box:
        """Tell which part of a plane the window shows."""
        window: Any = self.window()
        canvas: Any = window.centralWidget() if isinstance(window, QMainWindow) else window
        view = camera(self.viewer)
        size = (canvas.height() / view.zoom, canvas.width() / view.zoom)
        return visible_box(layer, shape, view.center, size)

    def layer_for(self, image: Any, segmentation: Segmentation, indices: list[Index]) -> Any:
        """Find the Labels layer for a result, or make one.

        A layer of the same image, model and options is used again unless a plane of it that would
        be replaced was corrected.
        """
        for layer in self.viewer.layers:
            known = self.session.segmentation(layer)
            if (
                known is not None
                and known.fits(segmentation)
                and layer.data.shape == segmentation.labels_shape
                and not any(known.is_corrected(index, layer.data[index]) for index in indices)
            ):
                self.labels.choose(layer)
                return layer
        return self._add_labels(
            np.zeros(segmentation.labels_shape, np.int32),
            f"{image.name} ({segmentation.name})",
            place_of_labels(image, segmentation),
            segmentation,
        )

    def uncorrected(self, layer: Any, indices: list[Index]) -> Any:
        """Give a layer in which planes may be replaced: this one, or a copy if it was corrected."""
        segmentation = self.session.source(layer)
        if not any(segmentation.is_corrected(index, layer.data[index]) for index in indices):
            return layer
        data = layer.data.copy()
        for index in indices:
            data[index] = 0
        added = self.add_version(layer, data, "tuned")
        states = self.session.source(added).states
        states.update(segmentation.states)  # the others are as they were
        for index in indices:
            states[index] = states[index].emptied(data[index])
        show_info(f"Your corrections stay in {layer.name}; tuned labels are in {added.name}.")
        return added

    def add_version(self, layer: Any, data: np.ndarray, what: str) -> Any:
        """Add other labels in the place of a layer, which is hidden; give their layer.

        What is known of the layer is known of the new one too; its planes count as corrected.
        """
        known, twin = self.session.segmentation(layer), None
        if known is not None:
            states = {index: state.corrected(data[index]) for index, state in known.states.items()}
            twin = replace(known, states=states)
        added = self._add_labels(data, f"{layer.name}, {what}", same_place(layer), twin)
        if known is not None:
            self.session.maps.copy(known, self.session.source(added))
        layer.visible = False
        return added

    def _add_labels(
        self, data: np.ndarray, name: str, place: dict[str, Any], segmentation: Segmentation | None
    ) -> Any:
        for layer in self.viewer.layers:
            if self.session.segmentation(layer) is not None:
                layer.visible = False  # two results on each other cannot be read
        layer = self.viewer.add_labels(data, name=name, **place)
        if segmentation is not None:
            self.session.remember(layer, segmentation)
        self.labels.choose(layer)
        self.labels.changed.emit()  # only now it is known where they come from
        return layer

    def write(
        self, layer: Any, index: Index, maps: PlaneMaps, labels: np.ndarray, representation: Any
    ) -> None:
        """Put the labels of a plane into a layer, and keep its maps."""
        segmentation = self.session.source(layer)
        segmentation.write(index, labels, representation, layer.data)
        self.session.maps.put(segmentation, index, maps)
        layer.metadata["vimunet"] = {
            "model": segmentation.model_name,
            "thresholds": representation.config(),
        }
        layer.refresh()

    def watch(self, image: Any) -> None:
        """End the running task if this image is removed."""
        self._watched = image

    def refresh(self) -> None:
        """Let all tabs show what the labels are now."""
        self.refreshed.emit()

    def say(self, text: str) -> None:
        """Show a text below the tabs."""
        self.tasks.say(text)

    @guarded
    def _forget(self, event: Any) -> None:
        layer = event.value
        if layer is self._watched and self.tasks.running:
            self.tasks.cancel()
            show_info(f"{layer.name} was removed: stopped. Labels found so far stay.")
        self.session.forget(layer)

    def _show_plane(self, event: Any = None) -> None:
        self.refreshed.emit()

    def _watch_edits(self, event: Any) -> None:
        self._connect_edits(event.value)

    def _connect_edits(self, layer: Any) -> None:
        if isinstance(layer, Labels):
            connect(self, layer.events.paint, self._mark_edited)

    def _mark_edited(self, event: Any) -> None:
        """Remember that a plane was edited, so that nothing replaces it, even after an undo."""
        layer = event.source
        segmentation = self.session.segmentation(layer)
        if segmentation is not None:
            index = self.current_index(layer, segmentation.planes)
            state = segmentation.states.get(index)
            if state is not None:
                segmentation.states[index] = state.corrected(layer.data[index])

    def dragEnterEvent(self, event: Any) -> None:  # noqa: N802 (Qt's name)
        """Take files."""
        if event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:  # noqa: N802 (Qt's name)
        """Add dropped model files; leave other files to napari."""
        paths = [Path(url.toLocalFile()) for url in event.mimeData().urls()]
        self.drop(paths)
        event.acceptProposedAction()

    @guarded
    def drop(self, paths: list[Path]) -> None:
        """Add model files; open everything else as images."""
        for path in paths:
            if path.suffix == ".safetensors":
                self.models.add_file(path)
            elif path.suffix in (".pt", ".pth", ".ckpt"):
                show_problem(
                    ValueError(
                        f"{path.name} must be a vimunet model file (.safetensors). Convert it with "
                        f"`vimunet convert {path.name} --output {path.stem}.safetensors`."
                    )
                )
            else:
                self.viewer.open(str(path))

    def event(self, event: QEvent) -> bool:
        """Stop the tool when the dock is closed."""
        if event.type() == QEvent.Type.Hide:
            self.correct.stop_tool()
        return super().event(event)
