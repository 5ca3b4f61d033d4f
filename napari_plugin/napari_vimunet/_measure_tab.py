"""Measure: a table of the objects, linked with the viewer; scores; files for other programs."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Labels
from napari.utils.events import Event
from qtpy.QtCore import (
    QAbstractTableModel,
    QItemSelection,
    QModelIndex,
    QPersistentModelIndex,
    QSortFilterProxyModel,
    Qt,
)
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHBoxLayout,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from napari_vimunet._choices import LayerChoice
from napari_vimunet._controls import button, choice, connect, form, guarded, note
from napari_vimunet._tasks import Task
from napari_vimunet._workspace import Workspace
from napari_vimunet.layers import camera, micrometres, part_of
from vimunet.interactive.measuring import measure_planes
from vimunet.io.image import Index
from vimunet.io.tables import write_columns
from vimunet.scores import SCORES
from vimunet.scores.objects import evaluate_stack

if TYPE_CHECKING:
    from vimunet.objects.measurement import Table

_ROLE_OF_VALUE = Qt.ItemDataRole.UserRole

_Cell = QModelIndex | QPersistentModelIndex


class TableModel(QAbstractTableModel):
    """Columns of numbers for Qt.

    Attributes:
        columns: Name -> (n,) values.
    """

    def __init__(self, owner: QWidget):
        super().__init__(owner)
        self.columns: Table = {}
        self._names: list[str] = []

    def show(self, columns: "Table") -> None:
        """Show other columns."""
        self.beginResetModel()
        self.columns, self._names = columns, list(columns)
        self.endResetModel()

    def rowCount(self, parent: _Cell | None = None) -> int:  # noqa: N802 (Qt's name)
        """Give the number of objects."""
        return len(self.columns[self._names[0]]) if self._names else 0

    def columnCount(self, parent: _Cell | None = None) -> int:  # noqa: N802 (Qt's name)
        """Give the number of columns."""
        return len(self._names)

    def headerData(  # noqa: N802 (Qt's name)
        self, section: int, orientation: Qt.Orientation, role: int = 0
    ) -> str | None:
        """Give the name of a column."""
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return self._names[section].replace("_", " ")
        return None

    def data(self, index: _Cell, role: int = 0) -> str | float | None:
        """Give a number, as text to show or as it is to sort."""
        value = self.columns[self._names[index.column()]][index.row()].item()
        if role == _ROLE_OF_VALUE:
            return value
        if role == Qt.ItemDataRole.DisplayRole:
            return f"{value:.4g}" if isinstance(value, float) else str(value)
        return None


class MeasureTab(QWidget):
    """Table, scores and files of the chosen labels."""

    def __init__(self, workspace: Workspace):
        super().__init__()
        self._workspace = workspace
        self._layer: Labels | None = None
        self._index: Index = ()
        self.slices = choice("Which slices of a stack are measured", "shown slice", "all slices")
        self.measure_button = button(
            "Measure", self.measure, "Area, position, shape and intensity of each object"
        )
        self.csv_button = button("Save table…", self.save_table, "Save the table as CSV")
        self.model = TableModel(self)
        self._sorted = QSortFilterProxyModel(self)
        self._sorted.setSourceModel(self.model)
        self._sorted.setSortRole(_ROLE_OF_VALUE)
        self.table = QTableView()
        self.table.setModel(self._sorted)
        self.table.setSortingEnabled(True)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(22)
        self.table.setMinimumHeight(150)
        self.table.setToolTip("Click a row to see the object; click an object to see its row")
        self.table.selectionModel().selectionChanged.connect(self._show_object)
        self.hint = note("Press Measure.")
        self.truth = LayerChoice(
            self, workspace.viewer, Labels, "Labels to compare with, drawn by hand for example", "…"
        )
        self.score_button = button(
            "Score", self.score, "How well the chosen labels agree with these"
        )
        self.result = note()
        self.save_button = button(
            "Save labels…",
            self.save_labels,
            "As label TIFF, OME-Zarr, or ROIs for ImageJ",
        )

        row = QHBoxLayout()
        row.addWidget(self.slices)
        row.addWidget(self.measure_button, 1)
        row.addWidget(self.csv_button)
        compare = QHBoxLayout()
        compare.addWidget(self.truth.box, 1)
        compare.addWidget(self.score_button)
        rows = form()
        rows.addRow("Truth", compare)
        layout = QVBoxLayout(self)
        layout.addLayout(row)
        layout.addWidget(self.table, 1)
        layout.addWidget(self.hint)
        layout.addLayout(rows)
        layout.addWidget(self.result)
        layout.addWidget(self.save_button)
        workspace.labels.changed.connect(self._show_labels)
        connect(self, workspace.viewer.layers.events.removed, self._forget)
        self._show_labels()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 (Qt's name)
        """Listen to clicks on objects as long as the table is seen."""
        self._listen(self._layer)
        super().showEvent(event)

    def hideEvent(self, event: QHideEvent) -> None:  # noqa: N802 (Qt's name)
        """Leave the mouse to others."""
        self._listen(None)
        super().hideEvent(event)

    @guarded
    def _show_labels(self) -> None:
        layer = self._workspace.labels.layer
        slices = layer is not None and int(np.prod(layer.data.shape[:-2], dtype=int)) > 1
        self.slices.setVisible(slices)
        if layer is not self._layer:
            self._set_layer(layer)

    def _set_layer(self, layer: Labels | None) -> None:
        self._listen(None)
        if self._layer is not None:
            self._layer.events.paint.disconnect(self._say_outdated)
        self._layer = layer
        if layer is not None:
            layer.events.paint.connect(self._say_outdated)
        self.model.show({})
        self.hint.setText("Press Measure.")
        self.result.setText("")
        self._show_buttons()
        if self.isVisible():
            self._listen(layer)

    def _show_buttons(self) -> None:
        self.csv_button.setEnabled(self.model.rowCount() > 0)

    def _forget(self, event: Event) -> None:
        if event.value is self._layer:
            self._set_layer(None)

    def _listen(self, layer: Labels | None) -> None:
        """Follow clicks into `layer`, and into no other."""
        for known in self._workspace.viewer.layers:
            if self._click in known.mouse_drag_callbacks:
                known.mouse_drag_callbacks.remove(self._click)
        if layer is not None:
            layer.mouse_drag_callbacks.append(self._click)

    def _say_outdated(self, event: Event) -> None:
        if self.model.rowCount():
            self.hint.setText("The labels were edited since: press Measure again.")

    def _chosen(self) -> Labels:
        layer = self._workspace.labels.layer
        if layer is None:
            raise ValueError("Labels must be there to be measured. Press Segment first.")
        return layer

    def _planes(self, layer: Labels) -> list[Index]:
        """Say which planes are wanted."""
        if self.slices.currentIndex() == 1:
            return list(np.ndindex(*layer.data.shape[:-2]))
        return [self._workspace.shown_plane(layer)]

    def measure(self) -> None:
        """Measure the objects, in the background."""
        work, layer = self._workspace, self._chosen()
        image, planes, box = work.images.layer, None, None
        if image is not None and image.ndim == layer.ndim:
            planes, box = work.planes(), part_of(layer, image)
        indices, spacing = self._planes(layer), micrometres(layer)

        def measured(task: Task) -> "Table":
            def tell(done: int, total: int) -> None:
                task.report(done, total, f"slice {done + 1} of {total}")

            return measure_planes(layer.data, indices, planes, box, spacing, tell, task.stop)

        def show(table: "Table") -> None:
            if layer is not self._layer:
                return
            self._index = indices[0]
            self.model.show(table)
            self.table.resizeColumnsToContents()
            self.table.sortByColumn(0, Qt.SortOrder.AscendingOrder)
            self._show_buttons()
            what = "" if box is not None else ", without intensities: the image does not fit"
            self.hint.setText(f"{self.model.rowCount()} objects{what}.")

        work.tasks.run("Measure", measured, show)

    def save_table(self) -> None:
        """Ask for a file, and write the table."""
        name = f"{self._chosen().name}.csv"
        path, _ = QFileDialog.getSaveFileName(self, "Save the table", name, "*.csv")
        if path:
            path = str(Path(path).with_suffix(".csv"))
            write_columns(path, self.model.columns)
            self._workspace.say(f"Saved {path}.")

    def score(self) -> None:
        """Compare the shown slice, or all, with the truth."""
        layer, truth = self._chosen(), self.truth.layer
        if truth is None or truth is layer:
            raise ValueError("Other labels must be chosen as truth to be compared with.")
        if layer.data.shape[-2:] != truth.data.shape[-2:]:
            raise ValueError(
                f"Truth must have the size of the labels {layer.data.shape[-2:]}, got "
                f"{truth.data.shape[-2:]}. Segment the whole image to compare."
            )
        if self.slices.currentIndex() == 1 and layer.data.ndim > 2:
            shape = (-1, *layer.data.shape[-2:])
            pair = [np.asarray(one.data).reshape(shape) for one in (layer, truth)]
        else:
            shown = self._workspace.shown_plane
            pair = [np.asarray(one.data[shown(one)]) for one in (layer, truth)]
        if self._workspace.finds_classes(layer):
            source = self._workspace.session.source(layer)
            score = SCORES[source.model.representation.score]
            values = zip(score.names, score.measure(pair[0], pair[1], False), strict=True)
            self.result.setText(", ".join(f"<b>{name} {value:.3f}</b>" for name, value in values))
            return
        found = evaluate_stack(*pair)
        self.result.setText(
            f"<b>mSA {found['mSA']:.3f}</b>, SA50 {found['SA50']:.3f}, "
            f"precision {found['precision']:.3f}, recall {found['recall']:.3f}: "
            f"{found['TP']:.0f} found, {found['FN']:.0f} missed, {found['FP']:.0f} too many."
        )

    def save_labels(self) -> None:
        """Ask for a file, and write the labels."""
        from napari_vimunet._writer import FILTERS, save_labels  # loads all formats

        layer = self._chosen()
        path, kind = QFileDialog.getSaveFileName(
            self, "Save the labels", f"{layer.name}_labels.tif", ";;".join(FILTERS)
        )
        if path:
            saved = save_labels(path, layer, kind)
            self._workspace.say(f"Saved {saved}.")

    @guarded
    def _show_object(self, selected: QItemSelection, deselected: QItemSelection) -> None:
        """Go to the object of the selected row."""
        rows = self.table.selectionModel().selectedRows()
        layer = self._layer
        if not rows or layer is None:
            return
        row = self._sorted.mapToSource(rows[0]).row()
        columns = self.model.columns
        layer.selected_label = int(columns["label"][row])
        index = list(self._index)
        for axis in range(len(index)):
            for name in ("slice", f"slice_{axis}"):
                if name in columns:
                    index[axis] = int(columns[name][row])
        self._workspace.go_to(
            np.asarray(layer.data_to_world((*index, columns["y_px"][row], columns["x_px"][row])))
        )

    def _click(self, layer: Labels, event: Event) -> Iterator[None]:
        """Select the row of the object that was clicked, not dragged."""
        start = np.asarray(event.position)
        yield
        while event.type == "mouse_move":
            yield
        moved = np.abs(np.asarray(event.position) - start).max()
        if moved * camera(self._workspace.viewer).zoom < 4 and layer.mode == "pan_zoom":
            value = layer.get_value(event.position, world=True)
            self._select(int(value or 0))

    @guarded
    def _select(self, label: int) -> None:
        layer = self._layer
        if layer is None or not label or "label" not in self.model.columns:
            return
        for row in np.flatnonzero(self.model.columns["label"] == label):
            index = self._sorted.mapFromSource(self.model.index(int(row), 0))
            selection = self.table.selectionModel()
            blocked = selection.blockSignals(True)
            self.table.selectRow(index.row())
            selection.blockSignals(blocked)
            self.table.scrollTo(index)
            self.table.viewport().update()
            layer.selected_label = label
            return
