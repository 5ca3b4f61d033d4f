"""What the tabs share: what is chosen and shown in the viewer, and the layers of the results."""

from dataclasses import replace
from typing import Any

import numpy as np
from napari import Viewer
from napari.layers import Image, Labels, Layer
from napari.utils.events import Event
from napari.utils.notifications import show_info
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QMainWindow, QWidget

from napari_vimunet._choices import ChannelChoice, LayerChoice
from napari_vimunet._controls import connect, guarded
from napari_vimunet._models import ModelChoice
from napari_vimunet._tasks import TaskPanel
from napari_vimunet.layers import (
    camera,
    full_resolution,
    micrometres,
    place_of_labels,
    same_place,
    shown_position,
    visible_box,
)
from vimunet.axes import Box
from vimunet.interactive.planes import Planes, nearest_plane
from vimunet.interactive.prediction import PlaneMaps
from vimunet.interactive.session import Segmentation, Session
from vimunet.io.image import Index
from vimunet.representations import Representation


class Workspace(QObject):
    """The viewer with what was chosen and found in it; tabs talk to this, not to each other.

    Args:
        owner: The widget that shows all of it.
        viewer: The viewer, or napari's proxy of it.

    Attributes:
        viewer: The viewer.
        session: What is known about the results.
        images: The image to work on.
        channels: Which of its channels.
        labels: The labels to work on.
        models: The model to segment with, and where it runs.
        tasks: Runs what takes long.
    """

    refreshed = Signal()
    """Labels were written, or another plane is shown."""

    def __init__(self, owner: QWidget, viewer: Viewer):
        super().__init__(owner)
        # napari gives plugins a proxy; its layers would be new objects at each look.
        self.viewer: Viewer = getattr(viewer, "__wrapped__", viewer)
        self.session = Session()
        self.images = LayerChoice(self, self.viewer, Image, "Image to work on")
        self.channels = ChannelChoice(self, self.images)
        self.labels = LayerChoice(self, self.viewer, Labels, "Labels to tune, correct and measure")
        self.models = ModelChoice(self)
        self.tasks = TaskPanel()
        self._owner = owner
        self._watched: Image | None = None
        connect(self, self.viewer.dims.events.current_step, self._show_plane)
        connect(self, self.viewer.layers.events.inserted, self._watch_edits)
        connect(self, self.viewer.layers.events.removed, self._forget)
        for layer in self.viewer.layers:
            self._connect_edits(layer)

    def planes(self) -> Planes:
        """Give the planes of the chosen image, with the chosen channel.

        Raises:
            ValueError: If no image is open.
        """
        image = self.images.layer
        if image is None:
            raise ValueError(
                "An image must be open. Open one with File > Open File(s), or try one of "
                "File > Open Sample > vimunet."
            )
        return Planes(
            full_resolution(image),
            image.rgb,
            self.channels.axis,
            self.channels.channel,
            micrometres(image),
        )

    def shown_plane(self, layer: Layer, planes: Planes | None = None) -> Index:
        """Tell which plane of a layer is shown; of an image, say which planes it has."""
        lengths = layer.data.shape[:-2] if planes is None else planes.leading
        return nearest_plane(shown_position(layer, self.viewer.dims.point), lengths)

    def visible_box(self, layer: Image, shape: tuple[int, int]) -> Box:
        """Tell which part of a plane the window shows."""
        window = self._owner.window()
        central = window.centralWidget() if isinstance(window, QMainWindow) else None
        canvas, view = central or window, camera(self.viewer)
        size = (canvas.height() / view.zoom, canvas.width() / view.zoom)
        return visible_box(layer, shape, view.center, size)

    def go_to(self, world: NDArray[np.float64]) -> None:
        """Show a point in the middle of the view.

        Args:
            world: (..., y, x) its coordinates along the last axes of the viewer.
        """
        for axis, place in enumerate(world[:-2]):
            self.viewer.dims.set_point(axis + self.viewer.dims.ndim - len(world), place)
        view = camera(self.viewer)
        view.center = (*view.center[:-2], world[-2], world[-1])

    def result(self) -> tuple[Labels, Segmentation]:
        """Give the chosen labels and where they come from.

        Raises:
            ValueError: If there are none, or they were not made by this plugin.
        """
        layer = self.labels.layer
        segmentation = self.session.segmentation(layer)
        if layer is None or segmentation is None:
            what = "no labels" if layer is None else f"{layer.name}"
            raise ValueError(
                f"Labels must come from this plugin for this, got {what}. Press Segment first, or "
                "choose other labels."
            )
        return layer, segmentation

    def finds_classes(self, layer: Labels | None) -> bool:
        """Tell whether the values of labels are known to be classes, not objects."""
        segmentation = self.session.segmentation(layer)
        return segmentation is not None and segmentation.model.representation.labels_are_classes

    def layer_for(self, image: Image, segmentation: Segmentation, indices: list[Index]) -> Labels:
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

    def uncorrected(self, layer: Labels, indices: list[Index]) -> Labels:
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

    def add_version(self, layer: Labels, data: NDArray[Any], what: str) -> Labels:
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

    def write(
        self,
        layer: Labels,
        index: Index,
        maps: PlaneMaps,
        labels: NDArray[np.int32],
        representation: Representation,
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

    def watch(self, image: Image) -> None:
        """End the running task if this image is removed."""
        self._watched = image

    def refresh(self) -> None:
        """Let all tabs show what the labels are now."""
        self.refreshed.emit()

    def say(self, text: str) -> None:
        """Show a text below the tabs."""
        self.tasks.say(text)

    def _add_labels(
        self,
        data: NDArray[Any],
        name: str,
        place: dict[str, Any],
        segmentation: Segmentation | None,
    ) -> Labels:
        for layer in self.viewer.layers:
            if self.session.segmentation(layer) is not None:
                layer.visible = False  # two results on each other cannot be read
        layer = self.viewer.add_labels(data, name=name, **place)
        if segmentation is not None:
            self.session.remember(layer, segmentation)
        self.labels.choose(layer)
        self.labels.changed.emit()  # only now it is known where they come from
        return layer

    @guarded
    def _forget(self, event: Event) -> None:
        layer = event.value
        if self._watched is not None and layer is self._watched and self.tasks.running:
            self.tasks.cancel()
            show_info(f"{layer.name} was removed: stopped. Labels found so far stay.")
        self.session.forget(layer)

    def _show_plane(self, event: Event) -> None:
        self.refreshed.emit()

    def _watch_edits(self, event: Event) -> None:
        self._connect_edits(event.value)

    def _connect_edits(self, layer: Layer) -> None:
        if isinstance(layer, Labels):
            connect(self, layer.events.paint, self._mark_edited)

    def _mark_edited(self, event: Event) -> None:
        """Remember that a plane was edited, so that nothing replaces it, even after an undo."""
        layer = event.source
        segmentation = self.session.segmentation(layer)
        if segmentation is not None:
            index = self.shown_plane(layer)
            state = segmentation.states.get(index)
            if state is not None:
                segmentation.states[index] = state.corrected(layer.data[index])
