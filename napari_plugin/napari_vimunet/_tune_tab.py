"""Tune: sliders for how maps are read; the network does not run again."""

from dataclasses import dataclass, replace
from pathlib import Path

from napari.layers import Labels
from numpy.typing import NDArray
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QVBoxLayout, QWidget
from superqt import QLabeledDoubleSlider, QLabeledSlider

import vimunet
from napari_vimunet._controls import button, form, guarded, note
from napari_vimunet._tasks import Task, show_problem
from napari_vimunet._workspace import Workspace
from vimunet.interactive.prediction import PlaneMaps, predict_plane
from vimunet.io.image import Index
from vimunet.representations import Representation, Tunable

Slider = QLabeledSlider | QLabeledDoubleSlider


@dataclass(frozen=True)
class _Wish:
    """A plane to be read again, and how."""

    layer: Labels
    index: Index
    maps: PlaneMaps
    representation: Representation


class TuneTab(QWidget):
    """Sliders whose effect on the shown plane is seen at once."""

    def __init__(self, workspace: Workspace):
        super().__init__()
        self._workspace = workspace
        self._tunable: tuple[Tunable, ...] = ()
        self._sliders: dict[str, Slider] = {}
        self._panel = QWidget()
        self._rows = form()
        self._panel.setLayout(self._rows)
        self._decoding: Task | None = None
        self._again = False
        self.count = note()
        self.hint = note()
        self.reset_button = button("Reset", self.reset, "Back to the thresholds of the model")
        self.all_button = button(
            "Apply to all slices", self.apply_to_all, "Use these thresholds for all slices"
        )
        self.save_button = button(
            "Save as the model's thresholds…",
            self.save,
            "Write a model file with these thresholds; the model stays as it is unless you "
            "choose its own file",
        )
        row = QHBoxLayout()
        row.addWidget(self.reset_button)
        row.addWidget(self.all_button)
        self._layout = QVBoxLayout(self)
        self._layout.addWidget(self.count)
        self._layout.addWidget(self._panel)
        self._layout.addLayout(row)
        self._layout.addWidget(self.save_button)
        self._layout.addWidget(self.hint)
        self._layout.addStretch()

        # A burst of slider steps within one frame is one wish.
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(10)
        self._soon.timeout.connect(self._decode)
        workspace.labels.changed.connect(self.show_result)
        workspace.refreshed.connect(self.show_result)
        self.show_result()

    @property
    def representation(self) -> Representation:
        """The representation of the chosen labels with what the sliders say."""
        _, segmentation = self._workspace.result()
        values = {field: slider.value() for field, slider in self._sliders.items()}
        return segmentation.model.representation.tuned(**values)

    @property
    def settled(self) -> bool:
        """Whether the labels are what the sliders say."""
        return not (self._soon.isActive() or self._decoding is not None or self._again)

    def slider(self, field: str) -> Slider:
        """Give the slider of a field, e.g. "min_size"."""
        return self._sliders[field]

    @guarded
    def show_result(self) -> None:
        """Show count and thresholds of the plane that is shown."""
        work, layer = self._workspace, self._workspace.labels.layer
        segmentation = work.session.segmentation(layer)
        state = None
        if segmentation is not None:
            state = segmentation.states.get(work.shown_plane(layer))
        for control in (self.reset_button, self.save_button, self._panel):
            control.setVisible(state is not None)
        self.all_button.setVisible(segmentation is not None and len(segmentation.states) > 1)
        if segmentation is None or state is None:
            self.count.setText("")
            self.hint.setText(
                "Segment an image first: here you then change how its maps become objects."
            )
            return
        self._show_sliders(state.representation)
        kind = "classes" if work.finds_classes(layer) else "objects"
        self.count.setText(f"<span style='font-size:18pt'>{state.objects}</span> {kind}")
        others = sum(s.representation != state.representation for s in segmentation.states.values())
        self.all_button.setEnabled(others > 0)
        wanted = work.session.thresholds(segmentation) == state.representation
        self.hint.setText(
            (f"{others} slices have other thresholds. " if others else "")
            + ("Segment uses these too." if wanted else "Segment uses those you set last.")
        )

    def _show_sliders(self, representation: Representation) -> None:
        if self._tunable != representation.tunable:
            while self._rows.rowCount():
                self._rows.removeRow(0)
            self._tunable = representation.tunable
            self._sliders = {one.field: self._make_slider(one) for one in self._tunable}
        for field, slider in self._sliders.items():
            value = getattr(representation, field)
            slider.blockSignals(True)
            slider.setMaximum(max(slider.maximum(), value))
            slider.setValue(value)
            slider.blockSignals(False)

    def _make_slider(self, tunable: Tunable) -> Slider:
        if isinstance(tunable.step, int):
            slider = QLabeledSlider(Qt.Orientation.Horizontal)
        else:
            slider = QLabeledDoubleSlider(Qt.Orientation.Horizontal)
            slider.setDecimals(2 if tunable.step < 0.1 else 1)
        slider.setRange(tunable.low, tunable.high)
        slider.setSingleStep(tunable.step)  # type: ignore[arg-type]  # superqt says only int
        slider.setToolTip(f"{tunable.hint} (`{tunable.field}`)")
        slider.valueChanged.connect(self._slide)
        self._rows.addRow(tunable.title, slider)
        return slider

    def _slide(self, _: float) -> None:
        self._soon.start()

    def reset(self) -> None:
        """Back to the thresholds of the model."""
        _, segmentation = self._workspace.result()
        self._show_sliders(segmentation.model.representation)
        self._decode()

    def _decode(self) -> None:
        """Read the maps of the shown plane again; what was asked meanwhile comes next."""
        if self._decoding is not None:
            self._again = True
            return
        try:
            self._wish = wish = self._wished()
        except ValueError as error:
            show_problem(error)
            return
        self._decoding = Task(lambda _: wish.maps.decode(wish.representation))
        self._decoding.done.connect(self._show_decoded)
        self._decoding.failed.connect(self._fail)
        self._decoding.start()

    def _wished(self) -> _Wish:
        """Say what the sliders ask for, and remember it for the next run of the network."""
        work = self._workspace
        layer, segmentation = work.result()
        representation = self.representation
        work.session.set_thresholds(segmentation, representation)
        index = work.shown_plane(layer)
        maps = work.session.maps.get(segmentation, index)
        if maps is None:
            raise ValueError(
                "The maps of this plane must be in memory to be tuned, but they were dropped "
                "to make room. Press Segment again."
            )
        return _Wish(layer, index, maps, representation)

    def _show_decoded(self, labels: NDArray) -> None:
        wish = self._wish
        self._decoding = None
        if wish.layer in self._workspace.viewer.layers:
            self._write(wish, labels)
        if self._again:
            self._again = False
            self._decode()

    @guarded
    def _write(self, wish: _Wish, labels: NDArray) -> None:
        work = self._workspace
        layer = work.uncorrected(wish.layer, [wish.index])
        work.write(layer, wish.index, wish.maps, labels, wish.representation)
        if not self._again:
            work.refresh()

    def _fail(self, error: BaseException) -> None:
        self._decoding, self._again = None, False
        show_problem(error)

    def apply_to_all(self) -> None:
        """Read all planes with the thresholds of the sliders."""
        work = self._workspace
        layer, segmentation = work.result()
        representation = self.representation
        work.session.set_thresholds(segmentation, representation)
        wanted = [i for i, s in segmentation.states.items() if s.representation != representation]
        layer = work.uncorrected(layer, wanted)
        segmentation = work.session.source(layer)
        kept = {index: work.session.maps.get(segmentation, index) for index in wanted}

        def read(task: Task) -> None:
            for number, index in enumerate(wanted):
                task.report(number, len(wanted), f"slice {number + 1} of {len(wanted)}")
                maps = kept.pop(index)
                if maps is None:
                    plane = segmentation.planes.plane(index, segmentation.box)
                    maps = predict_plane(
                        plane,
                        segmentation.model,
                        segmentation.options,
                        lambda done, total: None,
                        task.stop,
                    )
                task.hand_over((index, maps, maps.decode(representation)))

        def show(found: tuple[Index, PlaneMaps, NDArray]) -> None:
            index, maps, labels = found
            if layer not in work.viewer.layers:
                work.tasks.cancel()
            elif not segmentation.is_corrected(index, layer.data[index]):
                work.write(layer, index, maps, labels, representation)

        work.tasks.run("Apply", read, lambda _: work.refresh(), show)

    def save(self) -> None:
        """Ask for a file, and write the model with these thresholds."""
        _, segmentation = self._workspace.result()
        name = f"{segmentation.name}_tuned.safetensors"
        start = Path(segmentation.model_name).parent if "." in segmentation.model_name else Path()
        path, _ = QFileDialog.getSaveFileName(
            self, "Save the model with these thresholds", str(start / name), "*.safetensors"
        )
        if path:
            self.save_as(Path(path))

    def save_as(self, path: Path) -> None:
        """Write the model with the thresholds of the sliders, and choose it."""
        work = self._workspace
        _, segmentation = work.result()
        if path.suffix != ".safetensors":
            path = path.with_name(path.name + ".safetensors")
        model = replace(
            segmentation.model,
            representation=self.representation,
            info={**segmentation.model.info, "tuned": "by eye, in the napari plugin"},
        )
        vimunet.save_model(path, model)
        work.models.add_file(path)
        work.say(f"Saved {path}.")
