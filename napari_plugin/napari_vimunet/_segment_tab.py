"""Segment: an image becomes a Labels layer, in the background."""

from dataclasses import dataclass, field

import numpy as np
from napari.layers import Image, Labels
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDoubleSpinBox, QSpinBox, QToolButton, QVBoxLayout, QWidget

from napari_vimunet._controls import button, choice, form, guarded, note
from napari_vimunet._tasks import Task
from napari_vimunet._workspace import Workspace
from napari_vimunet.layers import full_resolution, leading_axes, same_place
from vimunet.axes import Box, whole
from vimunet.interactive.planes import Planes
from vimunet.interactive.prediction import PlaneMaps, PredictionOptions, predict_plane
from vimunet.interactive.session import Segmentation
from vimunet.io.image import Index
from vimunet.representations import Representation

LARGE_PLANE = 4096**2
"""Pixels above which only the visible part is taken unless the user wants all."""

MOST_PIXELS = 10_000**2
"""Most pixels of a plane that are segmented at once: their maps must fit into memory."""


class SegmentTab(QWidget):
    """Chooses what is segmented, and does it."""

    def __init__(self, workspace: Workspace):
        super().__init__()
        self._workspace = workspace
        self.slices = choice("For stacks and time series", "current slice", "all slices")
        self.region = choice(
            "The visible part is what the window shows now, in full resolution",
            "whole image",
            "visible part",
        )
        self.precision = choice(
            "`auto` takes bfloat16 where the processor computes with it: faster, labels the same "
            "but for a few pixels",
            "auto",
            "float32",
            "bfloat16",
            "float16",
        )
        self.scale = QDoubleSpinBox()
        self.scale.setRange(0.1, 10)
        self.scale.setSingleStep(0.1)
        self.scale.setValue(1)
        self.scale.setToolTip(
            "How much the network sees the image magnified: 2 where objects are half as large as "
            "those that the model was trained on. A model that learnt from your image needs 1"
        )
        self.tile_size = QSpinBox()
        self.tile_size.setRange(0, 8192)
        self.tile_size.setSingleStep(128)
        self.tile_size.setSpecialValueText("auto")
        self.tile_size.setToolTip("Side of a tile in pixels; less needs less memory")
        self.halo = QSpinBox()
        self.halo.setRange(0, 512)
        self.halo.setSingleStep(16)
        self.halo.setValue(64)
        self.halo.setToolTip("Context around a tile in pixels, which is predicted and dropped")

        self._form = form()
        self._form.addRow("Slices", self.slices)
        self._form.addRow("Region", self.region)
        self._form.addRow("Channel axis", workspace.channels.axis_box)
        self._form.addRow("Channel", workspace.channels.channel_box)
        self.details = QWidget()
        rows = form()
        self.details.setLayout(rows)
        for name, control in (
            ("Device", workspace.models.device_box),
            ("Precision", self.precision),
            ("Scale", self.scale),
            ("Tile size", self.tile_size),
            ("Halo", self.halo),
        ):
            rows.addRow(name, control)
        self.details.hide()
        self.advanced = QToolButton()
        self.advanced.setText("Advanced")
        self.advanced.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.advanced.setArrowType(Qt.ArrowType.RightArrow)
        self.advanced.setCheckable(True)
        self.advanced.setAutoRaise(True)
        self.advanced.setStyleSheet("QToolButton { background: transparent; border: none; }")
        self.advanced.toggled.connect(self._show_details)
        self.button = button("Segment", self.segment, "Find the objects of the image")
        self.button.setStyleSheet("font-weight: bold")
        self.button.setMinimumHeight(34)
        self.maps_button = button(
            "Show maps", self.show_maps, "Add what the network predicted as image layers"
        )
        self.summary = note()
        self.purpose = note()

        layout = QVBoxLayout(self)
        layout.addWidget(self.purpose)
        layout.addLayout(self._form)
        layout.addWidget(self.advanced)
        layout.addWidget(self.details)
        layout.addWidget(self.button)
        layout.addWidget(self.summary)
        layout.addWidget(self.maps_button)
        layout.addStretch()

        workspace.channels.changed.connect(self._show_slices)
        workspace.images.changed.connect(self._choose_region)
        workspace.labels.changed.connect(self.show_summary)
        workspace.tasks.changed.connect(self.show_summary)
        workspace.models.changed.connect(lambda: self.purpose.setText(workspace.models.purpose))
        self._show_slices()
        self._choose_region()
        self.show_summary()

    def _show_details(self, shown: bool) -> None:
        arrow = Qt.ArrowType.DownArrow if shown else Qt.ArrowType.RightArrow
        self.advanced.setArrowType(arrow)
        self.details.setVisible(shown)

    def _show_slices(self) -> None:
        """Offer the slices and channels that the chosen image has."""
        channels, axes = self._workspace.channels, leading_axes(self._workspace.images.layer)
        self._form.setRowVisible(channels.axis_box, bool(axes))
        self._form.setRowVisible(channels.channel_box, channels.axis is not None)
        count = int(np.prod([n for i, n in enumerate(axes) if i != channels.axis], dtype=int))
        self.slices.setItemText(1, f"all {count} slices")
        self._form.setRowVisible(self.slices, count > 1)
        if count == 1:
            self.slices.setCurrentIndex(0)

    @guarded
    def _choose_region(self) -> None:
        """Take only a part of large images, unless the user wants all."""
        image = self._workspace.images.layer
        if image is not None:
            height, width = full_resolution(image).shape[len(leading_axes(image)) :][:2]
            self.region.setCurrentIndex(int(height * width > LARGE_PLANE))

    def segment(self) -> None:
        """Start to segment what is chosen."""
        work = self._workspace
        planes, image = work.planes(), work.images.layer
        everything = self.slices.currentIndex() == 1
        indices = planes.indices() if everything else [work.shown_plane(image, planes)]
        box = whole(planes.shape)
        if self.region.currentIndex() == 1:
            box = work.visible_box(image, planes.shape)
        pixels = (box[0].stop - box[0].start) * (box[1].stop - box[1].start)
        if pixels > MOST_PIXELS:
            raise ValueError(
                f"The region must have at most {MOST_PIXELS / 1e6:.0f} megapixels, got "
                f"{pixels / 1e6:.0f}. Choose `visible part` as region and zoom in."
            )
        options = PredictionOptions(
            self.tile_size.value() or None,
            self.halo.value(),
            work.models.device,
            self.precision.currentText(),
            self.scale.value(),
        )
        run = _Run(work, image, planes, box, work.models.choice, options, indices)
        work.tasks.run("Segment", run.work, run.finish, run.show_plane)
        work.watch(image)

    def show_maps(self) -> None:
        """Add the maps of the chosen labels as image layers."""
        work = self._workspace
        layer, segmentation = work.result()
        chosen = work.images.layer
        representation = segmentation.model.representation
        channels = representation.channels
        stacks = np.zeros((len(channels), *segmentation.labels_shape), np.float32)
        for index in segmentation.states:
            maps = work.session.maps.get(segmentation, index)
            if maps is not None:
                for stack, map_ in zip(stacks, maps.maps, strict=True):
                    stack[index] = map_
        for name, stack, limits in zip(channels, stacks, representation.ranges, strict=True):
            image = work.viewer.add_image(
                stack,
                name=f"{layer.name}: {name.replace('_', ' ')}",
                contrast_limits=limits,
                blending="additive",
                colormap="inferno",
                **same_place(layer),
            )
            work.viewer.layers.move(work.viewer.layers.index(image), 0)
        work.viewer.layers.selection.active = layer
        if chosen is not None:
            work.images.choose(chosen)  # not the maps, though they are the newest images

    def show_summary(self) -> None:
        """Say what is in the chosen labels."""
        work, layer = self._workspace, self._workspace.labels.layer
        segmentation = work.session.segmentation(layer)
        self.button.setEnabled(not work.tasks.running)
        self.maps_button.setEnabled(segmentation is not None and not work.tasks.running)
        if segmentation is None:
            self.summary.setText("")
            return
        objects = sum(state.objects for state in segmentation.states.values())
        kind = "classes" if work.finds_classes(layer) else "objects"
        slices = len(segmentation.states)
        where = f" in {slices} slices" if slices > 1 else ""
        self.summary.setText(f"{objects} {kind} found{where} by {segmentation.name}.")


@dataclass(frozen=True)
class _Found:
    """The labels of a plane, and where they come from."""

    segmentation: Segmentation
    index: Index
    maps: PlaneMaps
    labels: NDArray[np.int32]
    representation: Representation


@dataclass
class _Run:
    """One press of the button: what it works on stays the same whatever the user does meanwhile."""

    workspace: Workspace
    image: Image
    planes: Planes
    box: Box
    choice: str
    options: PredictionOptions
    indices: list[Index]
    layer: Labels | None = None
    kept: list[Index] = field(default_factory=list)

    def work(self, task: Task) -> None:
        """Predict and decode plane after plane; runs in the background."""
        session = self.workspace.session
        task.report(0, 0, "Loading the model")
        model = session.load_model(self.choice)
        segmentation = Segmentation(self.planes, self.box, self.choice, model, self.options)
        representation = session.thresholds(segmentation)
        count = len(self.indices)
        for number, index in enumerate(self.indices):

            def show(done: int, total: int, number: int = number) -> None:
                where = f"slice {number + 1} of {count}, " if count > 1 else ""
                task.report(number * total + done, count * total, f"{where}tile {done} of {total}")

            plane = self.planes.plane(index, self.box)
            maps = predict_plane(plane, model, self.options, show, task.stop)
            labels = maps.decode(representation)
            task.hand_over(_Found(segmentation, index, maps, labels, representation))

    def show_plane(self, found: _Found) -> None:
        """Write the labels of a plane into the layer."""
        work = self.workspace
        if self.layer is None:
            self.layer = work.layer_for(self.image, found.segmentation, self.indices)
        if self.layer not in work.viewer.layers:
            work.tasks.cancel()
            return
        segmentation = work.session.source(self.layer)
        if segmentation.is_corrected(found.index, self.layer.data[found.index]):
            self.kept.append(found.index)
            return
        work.write(self.layer, found.index, found.maps, found.labels, found.representation)

    def finish(self, _: None) -> None:
        """Say what was not replaced."""
        if self.kept:
            self.workspace.say(
                f"{len(self.kept)} slices were corrected meanwhile and stay as they are."
            )
        self.workspace.refresh()
