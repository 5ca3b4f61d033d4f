"""The list of models: those that come with vimunet, and files; and the devices to run them on."""

from pathlib import Path

from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import QFileDialog, QPushButton

from napari_vimunet._controls import button, choice
from napari_vimunet._tasks import Task, show_problem
from vimunet.interactive.models import Available, find_available

FOLDER = Path.home() / "vimunet"
"""Where training images and models go unless the user chooses another folder."""

_FIRST = "nuclei"
_FILTER = "Models (*.safetensors)"


class ModelChoice(QObject):
    """A list (`box`) of models, a button (`open_button`) that adds a file, a list of devices.

    It begins with the models that come with vimunet and those that were trained in `FOLDER`.
    PyTorch takes seconds to load. That happens in the background, after which the lists are filled.

    Attributes:
        box: The models.
        device_box: The devices.
    """

    changed = Signal()

    def __init__(self, owner: QObject):
        super().__init__(owner)
        self.box = choice("Model: one that comes with vimunet, or a file")
        self.box.addItem("loading PyTorch…")
        self.box.setEnabled(False)
        self.device_box = choice(
            "Where the network runs; `auto` takes a GPU if there is one", "auto"
        )
        self.open_button: QPushButton = button(
            "Open…", self._open, "Add a model file (.safetensors); you can also drop it here"
        )
        self._files: list[str] = []
        self._loading = Task(lambda _: find_available())
        self._loading.done.connect(self._fill)
        self._loading.failed.connect(self._fail)
        self._loading.start()

    @property
    def choice(self) -> str:
        """Name of an embedded model, or path of a file.

        Raises:
            ValueError: If the list is not filled yet, or there is no model.
        """
        chosen = self.box.currentData()
        if chosen is None:
            raise ValueError(
                "A model must be chosen. Wait until the list of models is filled, or press Open… "
                "and take a model file (.safetensors)."
            )
        return str(chosen)

    @property
    def purpose(self) -> str:
        """What the chosen model is for, or where it is."""
        return str(self.box.currentData(Qt.ItemDataRole.ToolTipRole) or "")

    @property
    def device(self) -> str:
        """The chosen device, as PyTorch calls it."""
        return str(self.device_box.currentData() or "auto")

    def add_file(self, path: str | Path) -> None:
        """Add a file to the list and choose it."""
        path = str(Path(path).resolve())
        if path not in self._files:
            self._files.append(path)
            self._add(Path(path).stem, path, path)
        self.box.setCurrentIndex(self.box.findData(path))

    def _add(self, name: str, chosen: str, tip: str) -> None:
        if not self.box.isEnabled():  # its only entry stands for none
            self.box.clear()
            self.box.setEnabled(True)
        self.box.addItem(name, chosen)
        self.box.setItemData(self.box.count() - 1, tip, Qt.ItemDataRole.ToolTipRole)

    def _fill(self, found: Available) -> None:
        self.box.blockSignals(True)
        chosen = self.box.currentData()
        if not self._files:
            self.box.clear()
            self.box.addItem("none: press Open…")
        for name, purpose in found.models.items():
            self._add(name, name, purpose)
        for path in sorted((FOLDER / "models").glob("*.safetensors")):
            if str(path) not in self._files:
                self._files.append(str(path))
                self._add(path.stem, str(path), str(path))
        first = self.box.findData(_FIRST if chosen is None else chosen)
        self.box.setCurrentIndex(max(0, first))
        self.box.blockSignals(False)
        self.box.currentIndexChanged.connect(lambda _: self.changed.emit())
        self.device_box.clear()
        for device in found.devices:
            text = f"auto ({found.fastest})" if device == "auto" else device
            self.device_box.addItem(text, device)
        self.changed.emit()

    def _fail(self, error: BaseException) -> None:
        show_problem(error)

    def _open(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self.box, "Open a model", "", _FILTER)
        if path:
            self.add_file(path)
