"""Small controls that the tabs share."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import QComboBox, QFormLayout, QLabel, QPushButton, QSizePolicy

from napari_vimunet._tasks import show_problem


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show what goes wrong in a click as a notification; the viewer goes on."""

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except Exception as error:  # a click must never end napari
            show_problem(error)
            return None

    return run


def connect(owner: QObject, event: Any, method: Callable[..., Any]) -> None:
    """Connect a method of `owner` with an event of napari for as long as Qt keeps `owner`.

    napari would call it later too: the dock may be closed and the viewer live on.
    """
    event.connect(method)
    owner.destroyed.connect(lambda *_: event.disconnect(method))


def button(text: str, clicked: Callable[[], Any], tip: str) -> QPushButton:
    """Make a button whose errors become notifications."""
    made = QPushButton(text)
    made.setToolTip(tip)
    action = guarded(clicked)
    made.clicked.connect(lambda: action())
    return made


def note(text: str = "") -> QLabel:
    """Make a text of several lines that does not widen the window."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    return label


def form() -> QFormLayout:
    """Make a compact table of names and controls, all of one width."""
    layout = QFormLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setHorizontalSpacing(8)
    layout.setVerticalSpacing(5)
    layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    layout.setLabelAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
    return layout


def choice(tip: str, *texts: str) -> QComboBox:
    """Make a list to choose from that may be narrower than its texts."""
    box = QComboBox()
    box.setToolTip(tip)
    box.addItems(texts)
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(6)
    return box


class LayerChoice(QObject):
    """A list (`box`) of the layers of one kind in the viewer; the newest is chosen by itself.

    Args:
        owner: Widget with which this ends.
        viewer: The viewer.
        kind: Class of the layers.
        tip: What the layer is for.
        empty: Text of a first entry that stands for no layer; without it, there is one only while
            the viewer has no layer of this kind.
    """

    changed = Signal()

    def __init__(self, owner: QObject, viewer: Any, kind: type, tip: str, empty: str | None = None):
        super().__init__(owner)
        self.box = choice(tip)
        self._viewer = viewer
        self._kind = kind
        self._empty = empty
        self._layers: list[Any] = []
        self.box.currentIndexChanged.connect(lambda _: self.changed.emit())
        for event in (
            viewer.layers.events.inserted,
            viewer.layers.events.removed,
            viewer.layers.events.reordered,
        ):
            connect(self, event, self._refresh)
        self._refresh()

    @property
    def layer(self) -> Any | None:
        """The chosen layer."""
        index = self.box.currentIndex() - (self._empty is not None)
        return self._layers[index] if 0 <= index < len(self._layers) else None

    def choose(self, layer: Any) -> None:
        """Choose a layer of the viewer."""
        self.box.setCurrentIndex(self._layers.index(layer) + (self._empty is not None))

    def _refresh(self, event: Any = None) -> None:
        before = self.layer
        layers: list[Any] = [x for x in self._viewer.layers if isinstance(x, self._kind)]
        new = [layer for layer in layers if layer not in self._layers]
        for layer in new:
            connect(self, layer.events.name, self._rename)
        self._layers = layers
        chosen = before if before in layers else None
        if self._empty is None and layers:
            chosen = new[-1] if new else chosen or layers[-1]
        self.box.blockSignals(True)
        self.box.clear()
        if self._empty is not None:
            self.box.addItem(self._empty)
        self.box.addItems([layer.name for layer in layers])
        if not layers and self._empty is None:
            self.box.addItem("none open")
        self.box.setEnabled(bool(layers))
        if chosen is not None:
            self.box.setCurrentIndex(layers.index(chosen) + (self._empty is not None))
        self.box.blockSignals(False)
        if self.layer is not before:
            self.changed.emit()

    def _rename(self, event: Any = None) -> None:
        for index, layer in enumerate(self._layers):
            self.box.setItemText(index + (self._empty is not None), layer.name)
