"""Train: corrected images are collected in a folder, and the model learns from them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtGui import QImage, QPixmap, QShowEvent
from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_vimunet._controls import button, form, guarded, note
from napari_vimunet._loss_plot import LossPlot
from napari_vimunet._models import FOLDER
from napari_vimunet._tasks import Task, TaskPanel, show_seconds
from napari_vimunet._workspace import Workspace
from napari_vimunet.layers import part_of
from vimunet.interactive.models import load_plane_model
from vimunet.interactive.prediction import CancelledError
from vimunet.overlay import draw_overlay

if TYPE_CHECKING:
    from vimunet.io.training_set import TrainingSet
    from vimunet.training.fine_tuning import FineTuned, Preview, Step

_MOST_CROPS = 2
_GAP = 8
_SCROLL_BAR = 18  # takes its room as soon as the pictures are there


class _Pair(NamedTuple):
    """An image with its labels, and the size (y, x) of a pixel in µm if it is known."""

    name: str
    image: NDArray[Any]
    labels: NDArray[Any]
    spacing: tuple[float, float] | None


class TrainTab(QWidget):
    """The training set, the training, and what came of it."""

    def __init__(self, workspace: Workspace):
        super().__init__()
        self._workspace = workspace
        self.folder = QLineEdit(str(FOLDER / "training set"))
        self.folder.setToolTip(
            "Plain TIFF files in `images` and `labels`: nothing is locked in, other tools can "
            "read them"
        )
        self.folder.editingFinished.connect(self.show_set)
        choose = button("…", self._choose_folder, "Choose the folder of the training set")
        choose.setFixedWidth(28)
        self.names = QListWidget()
        self.names.setMaximumHeight(84)
        self.names.setToolTip("Images of the training set")
        self.add_button = button(
            "Add shown image",
            self.add,
            "Copy the shown image with its corrected labels into the training set",
        )
        self.remove_button = button(
            "Remove", self.remove, "Take the selected images out of the training set"
        )
        self.minutes = QDoubleSpinBox()
        self.minutes.setRange(0.1, 600)
        self.minutes.setDecimals(1)
        self.minutes.setValue(5)
        self.minutes.setSuffix(" min")
        self.minutes.setToolTip("More images deserve more time; you can stop at any time")
        self.train_button = button(
            "Train",
            self.train,
            "Let a copy of the chosen model learn from the training set, in the background",
        )
        self.train_button.setStyleSheet("font-weight: bold")
        self.plot = LossPlot()
        self.preview = QLabel()
        self.preview.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.preview.setToolTip("A piece of a training image: drawn by you, and as found now")
        self.preview.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.preview.hide()
        self.caption = note("Pieces of your images: as you drew them (left), as found now (right)")
        self.caption.hide()
        self.result = note()
        self.tasks = TaskPanel("")
        self.tasks.cancel_button.setText("Stop")
        self.tasks.cancel_button.setToolTip("End now; what was learned so far is kept")
        self.tasks.changed.connect(self._show_buttons)

        inside = QWidget()
        layout = QVBoxLayout(inside)
        layout.setContentsMargins(0, 0, 0, 0)
        folder = QHBoxLayout()
        folder.addWidget(self.folder, 1)
        folder.addWidget(choose)
        buttons = QHBoxLayout()
        buttons.addWidget(self.add_button, 1)
        buttons.addWidget(self.remove_button)
        rows = form()
        rows.addRow("Folder", folder)
        layout.addLayout(rows)
        layout.addWidget(self.names)
        layout.addLayout(buttons)
        start = QHBoxLayout()
        start.addWidget(self.minutes)
        start.addWidget(self.train_button, 1)
        layout.addLayout(start)
        layout.addWidget(self.tasks)
        layout.addWidget(self.plot)
        layout.addWidget(self.result)
        layout.addWidget(self.caption)
        layout.addWidget(self.preview)
        layout.addStretch()
        scroll = QScrollArea()  # a plot and pictures: more than a small screen has room for
        scroll.setWidget(inside)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        outer = QVBoxLayout(self)
        outer.addWidget(scroll)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 (Qt's name)
        """Read the folder again: files may have been added by other means."""
        self.show_set()
        super().showEvent(event)

    @property
    def set_folder(self) -> Path:
        """Folder of the training set."""
        return Path(self.folder.text()).expanduser()

    @property
    def training_set(self) -> "TrainingSet":
        """What is in it."""
        from vimunet.io.training_set import TrainingSet  # loads all formats

        return TrainingSet(self.set_folder)

    @guarded
    def show_set(self) -> None:
        """List the images of the training set."""
        self.names.clear()
        if self.set_folder.is_dir():
            self.names.addItems(self.training_set.names())
        self._show_buttons()

    def _show_buttons(self) -> None:
        self.train_button.setEnabled(self.names.count() > 0 and not self.tasks.running)
        self.remove_button.setEnabled(self.names.count() > 0 and not self.tasks.running)
        if not self.names.count() and not self.tasks.running:
            self.tasks.say("Correct an image, then add it here. Three images are a good start.")

    def _choose_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Training set", str(self.set_folder))
        if folder:
            self.folder.setText(folder)
            self.show_set()

    def add(self) -> None:
        """Copy the shown plane of image and labels into the training set."""
        pair = self._shown_pair()
        stored = self.training_set.add(pair.name, pair.image, pair.labels, pixel_size=pair.spacing)
        self.show_set()
        self.tasks.say(f"Added as {stored}.")

    def _shown_pair(self) -> _Pair:
        """Read the shown plane, cut to the part that the labels cover."""
        work = self._workspace
        layer, image = work.labels.layer, work.images.layer
        if layer is None or image is None:
            raise ValueError(
                "An image and labels must be chosen above to be added. Press Segment first."
            )
        planes = work.planes()
        index = work.shown_plane(image, planes)
        name = image.name
        if len(planes.indices()) > 1:
            name += "_" + "_".join(str(place) for place in index)
        pixels = planes.plane(index, part_of(layer, image)).read()
        return _Pair(name, pixels, np.asarray(layer.data[work.shown_plane(layer)]), planes.spacing)

    def remove(self) -> None:
        """Take the selected images out of the training set."""
        names = [item.text() for item in self.names.selectedItems()]
        if not names:
            raise ValueError("An image must be selected in the list to be removed.")
        for name in names:
            self.training_set.remove(name)
        self.show_set()

    def train(self) -> None:
        """Start the training."""
        models = self._workspace.models
        choice, device = models.choice, models.device
        folder, minutes = self.set_folder, self.minutes.value()
        self.plot.clear()
        self.result.setText("")

        def learn(task: Task) -> "FineTuned":
            from vimunet.training.fine_tuning import fine_tune  # loads PyTorch and Lightning

            ended: set[str] = set()

            def show(step: "Step") -> bool:
                if task.abandoned and step.phase == "before":
                    raise CancelledError  # nothing was learnt yet
                if task.stop.is_set():  # each press of Stop ends one phase
                    task.stop.clear()
                    ended.add(step.phase)
                task.hand_over(step)
                return task.abandoned or step.phase in ended

            task.report(0, 0, "Loading the model")
            # Not that of the session, which may segment meanwhile, also on another device.
            model = load_plane_model(choice)
            output = folder.parent / "models"
            return fine_tune(model, folder, output, minutes, progress=show, device=device)

        self.tasks.run("Training", learn, self._finish, self._show_step, keep=True)

    def _show_step(self, step: "Step") -> None:
        texts = {
            "before": "Scoring the model as it is",
            "training": f"Iteration {step.iteration}",
            "after": "Scoring what was learned",
        }
        text = texts[step.phase]
        self.tasks.cancel_button.setEnabled(True)
        if step.phase == "training":
            text += f", {show_seconds(step.seconds_left)} left"
            total = step.seconds + step.seconds_left
            self.tasks.bar.setRange(0, max(round(total), 1))
            self.tasks.bar.setValue(round(step.seconds))
        else:
            self.tasks.bar.setRange(0, 0)
        self.tasks.show_text(text)
        if step.loss is not None:
            self.plot.add(step.loss)
        if step.preview:
            self._show_preview(step.preview)

    def _show_preview(self, crops: Sequence["Preview"]) -> None:
        """Show pieces of training images: drawn by the user (left) and found (right)."""
        rows = [
            np.concatenate([draw_overlay(crop.image, crop.labels), gap, found], axis=1)
            for crop in crops[:_MOST_CROPS]
            for found in [draw_overlay(crop.image, crop.found)]
            for gap in [np.zeros((len(found), _GAP, 3), np.uint8)]
        ]
        picture = np.ascontiguousarray(np.concatenate(rows))
        height, width = picture.shape[:2]
        image = QImage(picture.data, width, height, 3 * width, QImage.Format.Format_RGB888)
        self.preview.setPixmap(
            QPixmap.fromImage(image).scaledToWidth(
                self.plot.width() - _SCROLL_BAR, Qt.TransformationMode.SmoothTransformation
            )
        )
        self.preview.show()
        self.caption.show()

    def _finish(self, found: "FineTuned") -> None:
        """Put the new model into the list, and say whether it is better."""
        models = self._workspace.models
        before = models.box.currentIndex()
        models.add_file(found.path)
        text = f"<b>{found.path.stem}</b> is chosen above now."
        if found.after < found.before:
            models.box.setCurrentIndex(before)
            text = (
                f"<b>{found.path.stem}</b> is in the list above, but not chosen: it is worse. "
                "Train longer, or with more images."
            )
        if math.isnan(found.before) or math.isnan(found.after):
            text += " It was stopped before it was scored."
        else:
            kind = "not used for the training" if found.held_out else "which it was trained on"
            text += (
                f"<br>{found.score} on {', '.join(found.scored_on)} ({kind}): "
                f"<b>{found.before:.2f}</b> before, <b>{found.after:.2f}</b> after."
            )
        self.result.setText(text)
