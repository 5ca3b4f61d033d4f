"""Segment: an image becomes a Labels layer, in the background."""

from typing import Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDoubleSpinBox, QSpinBox, QToolButton, QVBoxLayout, QWidget

from napari_vimunet._controls import button, choice, form, guarded, note
from napari_vimunet._tasks import Task
from napari_vimunet.layers import full_resolution, leading_axes, same_place
from napari_vimunet.planes import Box, Index, Planes
from napari_vimunet.segmentation import PlaneMaps, PredictionOptions, predict_plane
from napari_vimunet.session import Segmentation

LARGE_PLANE = 4096**2
"""Pixels above which only the visible part is taken unless the user wants all."""

MOST_PIXELS = 10_000**2
"""Most pixels of a plane that are segmented at once: their maps must fit into memory."""


class SegmentTab(QWidget):
    """Chooses what is segmented, and does it."""

    def __init__(self, host: Any):
        super().__init__()
        self._host = host
        self.slices = choice("For stacks and time series", "current slice", "all slices")
        self.region = choice(
            "The visible part is what the window shows now, in full resolution",
            "whole image",
            "visible part",
        )
        self.channel_axis = choice("Axis of a layer that holds channels, if there is one", "none")
        self.channel = choice("Channel to segment; `all` are given to the model together")
        self.device = choice("Where the network runs; `auto` takes a GPU if there is one", "auto")
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
        self._form.addRow("Channel axis", self.channel_axis)
        self._form.addRow("Channel", self.channel)
        details = QWidget()
        rows = form()
        details.setLayout(rows)
        for name, control in (
            ("Device", self.device),
            ("Precision", self.precision),
            ("Scale", self.scale),
            ("Tile size", self.tile_size),
            ("Halo", self.halo),
        ):
            rows.addRow(name, control)
        self.advanced = QToolButton()
        self.advanced.setText("Advanced")
        self.advanced.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.advanced.setArrowType(Qt.ArrowType.RightArrow)
        self.advanced.setCheckable(True)
        self.advanced.setAutoRaise(True)
        self.advanced.setStyleSheet("QToolButton { background: transparent; border: none; }")
        self.advanced.toggled.connect(self._show_details)
        self.details = details
        details.hide()
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
        layout.addWidget(details)
        layout.addWidget(self.button)
        layout.addWidget(self.summary)
        layout.addWidget(self.maps_button)
        layout.addStretch()

        self.channel_axis.currentIndexChanged.connect(lambda _: self._list_channels())
        host.images.changed.connect(self.show_image)
        host.labels.changed.connect(self.show_summary)
        host.tasks.changed.connect(self.show_summary)
        host.models.ready.connect(self._list_devices)
        host.models.changed.connect(lambda: self.purpose.setText(host.models.purpose))
        self.show_image()
        self.show_summary()

    def _show_details(self, shown: bool) -> None:
        arrow = Qt.ArrowType.DownArrow if shown else Qt.ArrowType.RightArrow
        self.advanced.setArrowType(arrow)
        self.details.setVisible(shown)

    @guarded
    def show_image(self) -> None:
        """Offer what the chosen image has: slices, channels, a part."""
        layer = self._host.images.layer
        axes = leading_axes(layer)
        names = [str(name) for name in getattr(layer, "axis_labels", ())]
        self.channel_axis.blockSignals(True)
        self.channel_axis.clear()
        self.channel_axis.addItem("none", None)
        for axis, length in enumerate(axes):
            name = names[axis] if axis < len(names) else str(axis)
            self.channel_axis.addItem(f"axis {name} ({length})", axis)
            if name.lower() in ("c", "channel", "channels"):
                self.channel_axis.setCurrentIndex(axis + 1)
        self.channel_axis.blockSignals(False)
        self._list_channels()
        self._form.setRowVisible(self.channel_axis, bool(axes))
        if layer is not None:
            large = np.prod(full_resolution(layer).shape[len(axes) : len(axes) + 2]) > LARGE_PLANE
            self.region.setCurrentIndex(int(large))

    def _list_channels(self) -> None:
        axis = self.channel_axis.currentData()
        axes = leading_axes(self._host.images.layer)
        self.channel.clear()
        if axis is not None:
            for channel in range(axes[axis]):
                self.channel.addItem(f"channel {channel}", channel)
            self.channel.addItem(f"all {axes[axis]}", "all")
        self._form.setRowVisible(self.channel, axis is not None)
        count = int(np.prod([n for i, n in enumerate(axes) if i != axis], dtype=int))
        self.slices.setItemText(1, f"all {count} slices")
        self._form.setRowVisible(self.slices, count > 1)
        if count == 1:
            self.slices.setCurrentIndex(0)

    def _list_devices(self, found: dict[str, Any]) -> None:
        self.device.clear()
        for device in found["devices"]:
            text = f"auto ({found['auto']})" if device == "auto" else device
            self.device.addItem(text, device)

    @property
    def device_name(self) -> str:
        """The chosen device, as PyTorch calls it."""
        return str(self.device.currentData() or "auto")

    def planes(self, layer: Any) -> Planes:
        """Give the planes of an image, with the channel that is chosen."""
        channel = self.channel.currentData()
        return Planes(
            full_resolution(layer),
            layer.rgb,
            self.channel_axis.currentData(),
            "all" if channel is None else channel,
        )

    def segment(self) -> None:
        """Start to segment what is chosen."""
        host = self._host
        layer = host.images.layer
        if layer is None:
            raise ValueError(
                "An image must be open. Open one with File > Open File(s), or try one of "
                "File > Open Sample > vimunet."
            )
        planes = self.planes(layer)
        everything = self.slices.currentIndex() == 1
        indices = planes.indices() if everything else [host.current_index(layer, planes)]
        box = self._box(layer, planes)
        pixels = (box[0].stop - box[0].start) * (box[1].stop - box[1].start)
        if pixels > MOST_PIXELS:
            raise ValueError(
                f"The region must have at most {MOST_PIXELS / 1e6:.0f} megapixels, got "
                f"{pixels / 1e6:.0f}. Choose `visible part` as region and zoom in."
            )
        choice = host.models.choice
        options = PredictionOptions(
            self.tile_size.value() or None,
            self.halo.value(),
            self.device_name,
            self.precision.currentText(),
            self.scale.value(),
        )
        run = _Run(host, layer, planes, box, choice, options, indices)
        host.tasks.run("Segment", run.work, run.finish, run.show_plane)
        host.watch(layer)

    def _box(self, layer: Any, planes: Planes) -> Box:
        height, width = planes.shape
        if self.region.currentIndex() == 0:
            return slice(0, height), slice(0, width)
        return self._host.visible_box(layer, planes.shape)

    def show_maps(self) -> None:
        """Add the maps of the chosen labels as image layers."""
        host = self._host
        layer, segmentation = host.result()
        chosen = host.images.layer
        channels = segmentation.model.representation.channels
        stacks = np.zeros((len(channels), *segmentation.labels_shape), np.float32)
        for index in segmentation.states:
            maps = host.session.maps.get(segmentation, index)
            if maps is not None:
                stacks[(slice(None), *index)] = maps.maps
        for name, stack in zip(channels, stacks, strict=True):
            image = host.viewer.add_image(
                stack,
                name=f"{layer.name}: {name.replace('_', ' ')}",
                contrast_limits=(0, 1),
                blending="additive",
                colormap="inferno",
                **same_place(layer),
            )
            host.viewer.layers.move(host.viewer.layers.index(image), 0)
        host.viewer.layers.selection.active = layer
        if chosen is not None:
            host.images.choose(chosen)  # not the maps, though they are the newest images

    def show_summary(self) -> None:
        """Say what is in the chosen labels."""
        segmentation = self._host.session.segmentation(self._host.labels.layer)
        self.button.setEnabled(not self._host.tasks.running)
        self.maps_button.setEnabled(segmentation is not None and not self._host.tasks.running)
        if segmentation is None:
            self.summary.setText("")
            return
        objects = sum(state.objects for state in segmentation.states.values())
        kind = "classes" if segmentation.model.representation.labels_are_classes else "objects"
        slices = len(segmentation.states)
        where = f" in {slices} slices" if slices > 1 else ""
        self.summary.setText(f"{objects} {kind} found{where} by {segmentation.name}.")


class _Run:
    """One press of the button: what it works on stays the same whatever the user does meanwhile."""

    def __init__(
        self,
        host: Any,
        image: Any,
        planes: Planes,
        box: Box,
        choice: str,
        options: PredictionOptions,
        indices: list[Index],
    ):
        self._host = host
        self._image = image
        self._planes = planes
        self._box = box
        self._choice = choice
        self._options = options
        self._indices = indices
        self._layer: Any = None
        self._kept: list[Index] = []

    def work(self, task: Task) -> None:
        """Predict and decode plane after plane; runs in the background."""
        session = self._host.session
        task.report(0, 0, "Loading the model")
        model = session.load_model(self._choice)
        segmentation = Segmentation(self._planes, self._box, self._choice, model, self._options)
        representation = session.thresholds(segmentation)
        count = len(self._indices)
        for number, index in enumerate(self._indices):

            def show(done: int, total: int, number: int = number) -> None:
                where = f"slice {number + 1} of {count}, " if count > 1 else ""
                task.report(number * total + done, count * total, f"{where}tile {done} of {total}")

            plane = self._planes.plane(index, self._box)
            maps = predict_plane(plane, model, self._options, show, task.stop)
            labels = maps.decode(representation)
            task.hand_over((segmentation, index, maps, labels, representation))

    def show_plane(self, found: tuple[Segmentation, Index, PlaneMaps, Any, Any]) -> None:
        """Write the labels of a plane into the layer."""
        segmentation, index, maps, labels, representation = found
        host = self._host
        if self._layer is None:
            self._layer = host.layer_for(self._image, segmentation, self._indices)
        layer = self._layer
        if layer not in host.viewer.layers:
            host.tasks.cancel()
            return
        segmentation = host.session.source(layer)
        if segmentation.is_corrected(index, layer.data[index]):
            self._kept.append(index)
            return
        host.write(layer, index, maps, labels, representation)

    def finish(self, _: None) -> None:
        """Say what was not replaced."""
        if self._kept:
            self._host.say(
                f"{len(self._kept)} slices were corrected meanwhile and stay as they are."
            )
        self._host.refresh()
