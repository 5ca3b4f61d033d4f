"""The dock widget: image, model and labels above, one tab for each step, progress below."""

from pathlib import Path

from napari import Viewer
from qtpy.QtCore import QEvent
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QHBoxLayout, QTabWidget, QVBoxLayout, QWidget

from napari_vimunet._controls import form, guarded
from napari_vimunet._correct_tab import CorrectTab
from napari_vimunet._measure_tab import MeasureTab
from napari_vimunet._segment_tab import SegmentTab
from napari_vimunet._tasks import show_problem
from napari_vimunet._train_tab import TrainTab
from napari_vimunet._tune_tab import TuneTab
from napari_vimunet._workspace import Workspace


class VimunetWidget(QWidget):
    """Segment, tune, correct, train and measure.

    Attributes:
        workspace: What the tabs share.
    """

    def __init__(self, napari_viewer: Viewer):
        super().__init__()
        self.workspace = work = Workspace(self, napari_viewer)
        header = form()
        header.addRow("Image", work.images.box)
        models = QHBoxLayout()
        models.addWidget(work.models.box, 1)
        models.addWidget(work.models.open_button)
        header.addRow("Model", models)
        header.addRow("Labels", work.labels.box)
        self.segment = SegmentTab(work)
        self.tune = TuneTab(work)
        self.correct = CorrectTab(work)
        self.train = TrainTab(work)
        self.measure = MeasureTab(work)
        self.tabs = QTabWidget()
        self.tabs.setUsesScrollButtons(False)
        for name in ("Segment", "Tune", "Correct", "Train", "Measure"):
            self.tabs.addTab(getattr(self, name.lower()), name)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.setSpacing(8)
        layout.addLayout(header)
        layout.addWidget(self.tabs, 1)
        layout.addWidget(work.tasks)
        self.setMinimumWidth(320)
        self.setAcceptDrops(True)
        self.tabs.currentChanged.connect(lambda _: work.say(""))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802 (Qt's name)
        """Take files."""
        if event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802 (Qt's name)
        """Add dropped model files; leave other files to napari."""
        paths = [Path(url.toLocalFile()) for url in event.mimeData().urls()]
        self.drop(paths)
        event.acceptProposedAction()

    @guarded
    def drop(self, paths: list[Path]) -> None:
        """Add model files; open everything else as images."""
        for path in paths:
            if path.suffix == ".safetensors":
                self.workspace.models.add_file(path)
            elif path.suffix in (".pt", ".pth", ".ckpt"):
                show_problem(
                    ValueError(
                        f"{path.name} must be a vimunet model file (.safetensors). Convert it with "
                        f"`vimunet convert {path.name} --output {path.stem}.safetensors`."
                    )
                )
            else:
                self.workspace.viewer.open(str(path))

    def event(self, event: QEvent) -> bool:
        """Stop the tool when the dock is closed."""
        if event.type() == QEvent.Type.Hide:
            self.correct.stop_tool()
        return super().event(event)
