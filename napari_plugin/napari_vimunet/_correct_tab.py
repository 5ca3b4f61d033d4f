"""Correct: tools for the mouse that split, cut, merge, delete, redraw and add objects."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from napari.layers import Labels, Shapes
from napari.utils.events import Event
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QGridLayout,
    QHBoxLayout,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_vimunet._controls import button, connect, guarded, note
from napari_vimunet._tasks import Task
from napari_vimunet._workspace import Workspace
from napari_vimunet.layers import camera
from vimunet.io.image import Index
from vimunet.objects import editing
from vimunet.representations import Landscape
from vimunet.segmentation.stitching import stitch_slices


class Tool(NamedTuple):
    """A tool: its name on the button, its key, whether it draws, and how it is used."""

    name: str
    key: str
    draws: bool
    hint: str


TOOLS = {
    "split": Tool(
        "Split",
        "S",
        True,
        "Click into one half of an object, then into the other; or drag from half to half.",
    ),
    "cut": Tool("Cut", "C", True, "Drag a line along the border that is missing."),
    "merge": Tool("Merge", "G", True, "Drag over all parts of an object; they become one."),
    "delete": Tool("Delete", "D", False, "Click an object to delete it."),
    "redraw": Tool("Redraw", "R", True, "Drag around an object: it gets this outline."),
    "add": Tool("Add", "A", False, "Click into an object that was missed."),
}

_CLICK = 3.0
"""The mouse may move so far during a click, in pixels of the labels."""

STROKE = "vimunet stroke"
"""Name of the layer that shows what is being drawn while a tool is chosen."""


class CorrectTab(QWidget):
    """The tools, and what they do to the chosen labels; each step can be undone."""

    def __init__(self, workspace: Workspace):
        super().__init__()
        self._workspace = workspace
        self._tool: str | None = None
        self._layer: Labels | None = None
        self._stroke: Shapes | None = None
        self._first: NDArray[np.float64] | None = None
        self.buttons: dict[str, QPushButton] = {}
        grid = QGridLayout()
        grid.setSpacing(4)
        for number, (name, tool) in enumerate(TOOLS.items()):
            made = QPushButton(f"{tool.name}  [{tool.key}]")
            made.setCheckable(True)
            made.setToolTip(tool.hint)
            made.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # keys go on to the image
            made.setMinimumHeight(30)
            made.clicked.connect(lambda _, name=name: self.toggle(name))
            grid.addWidget(made, number // 3, number % 3)
            self.buttons[name] = made
        self.hint = note()
        self.hint.setMinimumHeight(48)
        self.hint.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.undo_button = button("Undo", self.undo, "Undo the last correction (Ctrl+Z)")
        self.redo_button = button("Redo", self.redo, "Do it again (Ctrl+Shift+Z)")
        self.border_button = button(
            "Delete at border", self.delete_at_border, "Delete all objects cut off by the border"
        )
        for made in (self.undo_button, self.redo_button, self.border_button):
            made.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        row = QHBoxLayout()
        row.addWidget(self.undo_button)
        row.addWidget(self.redo_button)
        row.addWidget(self.border_button)
        self.overlap = QDoubleSpinBox()
        self.overlap.setRange(0.05, 1)
        self.overlap.setSingleStep(0.05)
        self.overlap.setValue(0.2)
        self.overlap.setPrefix("overlap ≥ ")
        self.overlap.setToolTip(
            "Intersection over union from which objects of neighbouring slices are one"
        )
        self.stitch_button = button(
            "Stitch slices",
            self.stitch,
            "Let objects go on from slice to slice, in a new layer. The last axis before y and x "
            "is followed: z of a volume, or time",
        )
        self.slices = QWidget()
        stitching = QHBoxLayout(self.slices)
        stitching.setContentsMargins(0, 0, 0, 0)
        stitching.addWidget(self.stitch_button, 1)
        stitching.addWidget(self.overlap, 1)
        self.count = note()
        layout = QVBoxLayout(self)
        layout.addWidget(self.count)
        layout.addLayout(grid)
        layout.addWidget(self.hint)
        layout.addLayout(row)
        layout.addWidget(self.slices)
        layout.addStretch()
        workspace.labels.changed.connect(self.stop_tool)
        workspace.labels.changed.connect(self.show_count)
        workspace.refreshed.connect(self.show_count)
        connect(self, workspace.viewer.layers.events.removed, self._forget)
        self._show_tool()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 (Qt's name)
        """Listen to the keys of the tools as long as they are seen."""
        for name, tool in TOOLS.items():
            self._workspace.viewer.bind_key(
                tool.key, lambda _, name=name: self.toggle(name), overwrite=True
            )
        self.show_count()
        super().showEvent(event)

    def hideEvent(self, event: QHideEvent) -> None:  # noqa: N802 (Qt's name)
        """Leave the keys and the mouse to others."""
        for tool in TOOLS.values():
            self._workspace.viewer.bind_key(tool.key, None)
        self.stop_tool()
        super().hideEvent(event)

    @property
    def tool(self) -> str | None:
        """Name of the tool that the mouse is now."""
        return self._tool

    @guarded
    def toggle(self, name: str) -> None:
        """Take a tool, or put it away if it is the one in use."""
        other = name != self._tool
        self.stop_tool()
        if not other:
            return
        try:
            layer = self._editable()
        except ValueError:
            self._show_tool()
            raise
        self._tool, self._layer = name, layer
        if TOOLS[name].draws:
            self._stroke = self._workspace.viewer.add_shapes(
                ndim=2,
                name=STROKE,
                edge_color="yellow",
                face_color="transparent",
                units=layer.units[-2:],
                axis_labels=layer.axis_labels[-2:],
            )
        self._workspace.viewer.layers.selection.active = layer
        layer.mode = "pan_zoom"
        layer.mouse_pan = False
        layer.mouse_drag_callbacks.append(self._drag)
        layer.events.mode.connect(self._stop_for_mode)
        self._show_tool()

    def stop_tool(self) -> None:
        """Give the mouse back to napari."""
        layer, stroke = self._layer, self._stroke
        if layer is None:
            return
        self._tool = self._layer = self._stroke = self._first = None
        layer.events.mode.disconnect(self._stop_for_mode)
        if self._drag in layer.mouse_drag_callbacks:
            layer.mouse_drag_callbacks.remove(self._drag)
        layer.mouse_pan = layer.mode == "pan_zoom"
        if stroke is not None and stroke in self._workspace.viewer.layers:
            self._workspace.viewer.layers.remove(stroke)
        if layer in self._workspace.viewer.layers:
            self._workspace.viewer.layers.selection.active = layer
        self._show_tool()

    def _stop_for_mode(self, event: Event) -> None:
        """Make room for napari's own tools."""
        if self._layer is not None and self._layer.mode != "pan_zoom":
            self.stop_tool()

    def _forget(self, event: Event) -> None:
        if event.value is self._layer:
            self.stop_tool()
        elif event.value is self._stroke:
            self._stroke = None

    def _show_tool(self) -> None:
        for name, made in self.buttons.items():
            made.setChecked(name == self._tool)
        if self._tool is None:
            self.hint.setText("Choose a tool, or use napari's brush: both can be undone.")
        else:
            tool = TOOLS[self._tool]
            self.hint.setText(f"{tool.hint} {tool.key} ends the tool.")

    def _drag(self, layer: Labels, event: Event) -> Iterator[None]:
        """Follow the mouse from pressing to releasing its button."""
        if event.button != 1 or self._tool is None:
            return
        points, shown = [self._point(layer, event)], [np.asarray(event.position[-2:])]
        yield
        while event.type == "mouse_move":
            points.append(self._point(layer, event))
            shown.append(np.asarray(event.position[-2:]))
            self._draw(shown)
            yield
        self._draw([])
        self.use(np.array(points))

    @staticmethod
    def _point(layer: Labels, event: Event) -> NDArray[np.float64]:
        return np.asarray(layer.world_to_data(event.position))[-2:]

    def _draw(self, points: list[NDArray[np.float64]]) -> None:
        if self._stroke is None:
            return
        self._stroke.data = []
        if len(points) > 1:
            closed = self._tool == "redraw"
            self._stroke.add(
                [np.array([*points, points[0]] if closed else points)],
                shape_type="path",
                edge_width=2.5 / camera(self._workspace.viewer).zoom,
            )

    @guarded
    def use(self, points: NDArray[np.float64]) -> None:
        """Use the tool.

        Args:
            points: (n, 2) where the mouse was from pressing to releasing, in pixels of the labels.
        """
        tool = self._tool
        if tool is None:
            return
        reach = np.abs(points - points[0]).max()
        if tool == "split" and reach < _CLICK:
            if self._first is None:
                self._first = points[0]
                self.hint.setText("Now click into the other half.")
                return
            points = np.array([self._first, points[0]])
        elif TOOLS[tool].draws and reach < _CLICK:
            self.hint.setText(f"Hold the button down. {TOOLS[tool].hint}")
            return
        self._first = None
        self._show_tool()
        self.edit(tool, points)

    def edit(self, tool: str, points: NDArray[np.float64]) -> int:
        """Change the shown plane of the chosen labels, in a way that can be undone.

        Args:
            tool: One of `TOOLS`.
            points: (n, 2) what was clicked or drawn, in pixels of the labels.

        Returns:
            Number of pixels that changed.
        """
        layer = self._editable()
        index = self._workspace.shown_plane(layer)
        labels = layer.data[index]
        seen = self._landscape(layer, index)
        if tool == "split":
            edit = editing.split(labels, points[0], points, seen.heights, layer.data)
        elif tool == "cut":
            edit = editing.cut(labels, points, layer.data)
        elif tool == "merge":
            edit = editing.merge(labels, points)
        elif tool == "delete":
            edit = editing.delete(labels, points[0])
        elif tool == "redraw":
            edit = self._redraw(labels, points, layer.data)
        else:
            edit = editing.add(labels, points[0], seen.heights, seen.foreground, stack=layer.data)
        return self._apply(layer, index, edit, TOOLS[tool].name)

    def _redraw(
        self, labels: NDArray, outline: NDArray[np.float64], stack: NDArray
    ) -> editing.Edit:
        """Give the outline to the object that fills most of it, or to a new one."""
        label = editing.object_inside(labels, outline)
        if label is None:
            (label,) = editing.unused_labels(stack, 1)
        return editing.redraw(labels, label, outline)

    def _apply(self, layer: Labels, index: Index, edit: editing.Edit, name: str) -> int:
        if len(edit) == 0:
            self._workspace.say(f"{name}: no object there, nothing changed.")
            return 0
        rows, columns = edit.indices
        leading = tuple(np.full(len(rows), place) for place in index)
        layer.data_setitem((*leading, rows, columns), edit.values)
        if edit.label is not None:
            layer.selected_label = edit.label
        self._workspace.say(f"{name}: {len(edit)} pixels changed.")
        self.show_count()
        return len(edit)

    def delete_at_border(self) -> None:
        """Delete all objects of the shown plane that touch its border."""
        layer = self._editable()
        index = self._workspace.shown_plane(layer)
        self._apply(layer, index, editing.delete_at_border(layer.data[index]), "Delete")

    def undo(self) -> None:
        """Undo the last correction of the chosen labels."""
        self._editable().undo()
        self.show_count()

    def redo(self) -> None:
        """Do what was undone again."""
        self._editable().redo()
        self.show_count()

    def stitch(self) -> None:
        """Make objects of a stack of those of its slices, in a new layer."""
        work, layer = self._workspace, self._in_memory()
        if work.finds_classes(layer):
            raise ValueError(f"Labels must be objects to be stitched, {layer.name} are classes.")
        labels, threshold = layer.data.copy(), self.overlap.value()
        lengths = [length for length in labels.shape[:-2] if length > 1]

        def join(_: Task) -> NDArray[np.int32]:
            stacks = labels.reshape(*lengths, *labels.shape[-2:])
            return stitch_slices(stacks, threshold).astype(np.int32).reshape(labels.shape)

        def finish(stitched: NDArray[np.int32]) -> None:
            added = work.add_version(layer, stitched, "stitched")
            work.say(f"Stitched: {stitched.max()} objects in {added.name}.")

        work.tasks.run("Stitch", join, finish)

    @guarded
    def show_count(self) -> None:
        """Say how many objects the shown plane has now, and offer what its stack can have."""
        work, layer = self._workspace, self._workspace.labels.layer
        self.slices.setVisible(layer is not None and any(n > 1 for n in layer.data.shape[:-2]))
        if not self.isVisible() or layer is None or not isinstance(layer.data, np.ndarray):
            self.count.setText("")
            return
        labels = layer.data[work.shown_plane(layer)]
        count = len(np.unique(labels[labels > 0]))
        kind = "classes" if work.finds_classes(layer) else "objects"
        self.count.setText(f"<span style='font-size:18pt'>{count}</span> {kind} in {layer.name}")

    def _in_memory(self) -> Labels:
        layer = self._workspace.labels.layer
        if layer is None:
            raise ValueError(
                "Labels must be there to be corrected. Press Segment, or make a Labels layer."
            )
        if layer.multiscale or not isinstance(layer.data, np.ndarray):
            kind = "a pyramid" if layer.multiscale else type(layer.data).__name__
            raise ValueError(
                f"Labels must be in memory to be corrected, but {layer.name} is {kind}. Make a "
                "copy that is: viewer.add_labels(numpy.asarray(layer.data))."
            )
        return layer

    def _editable(self) -> Labels:
        layer = self._in_memory()
        if self._workspace.viewer.dims.ndisplay != 2:
            raise ValueError("The view must be two-dimensional to correct. Press Ctrl+Y.")
        return layer

    def _landscape(self, layer: Labels, index: Index) -> Landscape:
        """What the network saw there, as far as it is known."""
        session = self._workspace.session
        segmentation = session.segmentation(layer)
        maps = None if segmentation is None else session.maps.get(segmentation, index)
        if segmentation is None or maps is None or maps.maps.shape[1:] != layer.data.shape[-2:]:
            return Landscape()
        return segmentation.model.representation.landscape(maps.maps)
