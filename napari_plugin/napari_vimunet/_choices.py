"""What the tabs work on: a layer of the viewer, and a channel of an image."""

from typing import Generic, TypeVar

from napari import Viewer
from napari.layers import Image, Layer
from napari.utils.events import Event
from qtpy.QtCore import QObject, Signal

from napari_vimunet._controls import choice, connect, guarded
from napari_vimunet.layers import leading_axes

Kind = TypeVar("Kind", bound=Layer)


class LayerChoice(QObject, Generic[Kind]):
    """A list (`box`) of the layers of one kind in the viewer; the newest is chosen by itself.

    Args:
        owner: What this ends with.
        viewer: The viewer.
        kind: Class of the layers.
        tip: What the layer is for.
        empty: Text of a first entry that stands for no layer; without it, there is one only while
            the viewer has no layer of this kind.
    """

    changed = Signal()

    def __init__(
        self, owner: QObject, viewer: Viewer, kind: type[Kind], tip: str, empty: str | None = None
    ):
        super().__init__(owner)
        self.box = choice(tip)
        self._viewer = viewer
        self._kind = kind
        self._empty = empty
        self._layers: list[Kind] = []
        self.box.currentIndexChanged.connect(lambda _: self.changed.emit())
        for event in (
            viewer.layers.events.inserted,
            viewer.layers.events.removed,
            viewer.layers.events.reordered,
        ):
            connect(self, event, self._refresh)
        self._refresh()

    @property
    def layer(self) -> Kind | None:
        """The chosen layer."""
        index = self.box.currentIndex() - (self._empty is not None)
        return self._layers[index] if 0 <= index < len(self._layers) else None

    def choose(self, layer: Kind) -> None:
        """Choose a layer of the viewer."""
        self.box.setCurrentIndex(self._layers.index(layer) + (self._empty is not None))

    def _refresh(self, event: Event | None = None) -> None:
        before = self.layer
        layers = [layer for layer in self._viewer.layers if isinstance(layer, self._kind)]
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

    def _rename(self, event: Event) -> None:
        for index, layer in enumerate(self._layers):
            self.box.setItemText(index + (self._empty is not None), layer.name)


class ChannelChoice(QObject):
    """Lists of the axes (`axis_box`) and channels (`channel_box`) of the chosen image.

    Args:
        owner: What this ends with.
        images: The image.
    """

    changed = Signal()

    def __init__(self, owner: QObject, images: LayerChoice[Image]):
        super().__init__(owner)
        self._images = images
        self.axis_box = choice("Axis of a layer that holds channels, if there is one", "none")
        self.channel_box = choice("Channel to segment; `all` are given to the model together")
        self.axis_box.currentIndexChanged.connect(lambda _: self._list_channels())
        images.changed.connect(self._list_axes)
        self._list_axes()

    @property
    def axis(self) -> int | None:
        """The axis that holds channels; None if none does."""
        return self.axis_box.currentData()

    @property
    def channel(self) -> int | None:
        """The chosen channel; None for all of them together."""
        return self.channel_box.currentData()

    @guarded
    def _list_axes(self) -> None:
        layer = self._images.layer
        names = [] if layer is None else [str(name) for name in layer.axis_labels]
        self.axis_box.blockSignals(True)
        self.axis_box.clear()
        self.axis_box.addItem("none", None)
        for axis, length in enumerate(leading_axes(layer)):
            self.axis_box.addItem(f"axis {names[axis]} ({length})", axis)
            if names[axis].lower() in ("c", "channel", "channels"):
                self.axis_box.setCurrentIndex(axis + 1)
        self.axis_box.blockSignals(False)
        self._list_channels()

    def _list_channels(self) -> None:
        self.channel_box.clear()
        if self.axis is not None:
            count = leading_axes(self._images.layer)[self.axis]
            for channel in range(count):
                self.channel_box.addItem(f"channel {channel}", channel)
            self.channel_box.addItem(f"all {count}", None)
        self.changed.emit()
