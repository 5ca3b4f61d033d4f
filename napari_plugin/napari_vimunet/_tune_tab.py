"""Tune: sliders for how maps are read; the network does not run again."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QVBoxLayout, QWidget
from superqt import QLabeledDoubleSlider, QLabeledSlider

import vimunet
from napari_vimunet._controls import button, form, guarded, note
from napari_vimunet._tasks import Task, show_problem
from napari_vimunet.planes import Index
from napari_vimunet.segmentation import predict_plane


class Knob(NamedTuple):
    """A slider: its name, range, step, and what it does."""

    name: str
    low: float
    high: float
    step: float
    tip: str


KNOBS = {
    "foreground_threshold": Knob(
        "Foreground", 0, 1, 0.01, "Lower: more and larger objects. Higher: only what is certain"
    ),
    "seed_threshold": Knob(
        "Separation", 0, 1, 0.01, "Higher: touching objects are split sooner. Lower: joined sooner"
    ),
    "center_threshold": Knob(
        "Centre", 0, 1, 0.01, "Lower: an object starts closer to its centre, more are split"
    ),
    "boundary_threshold": Knob(
        "Depth", 0, 1, 0.01, "Lower: an object starts deeper inside, thin ones are lost"
    ),
    "smoothing": Knob("Smoothing", 0, 5, 0.1, "Blurs the maps: fewer splits. In pixels"),
    "seed_radius": Knob(
        "Core radius", 0, 20, 0.5, "Cores that are thinner start no object: fewer splits. In pixels"
    ),
    "max_elongation": Knob(
        "Elongation", 0, 50, 0.5, "What is longer is membrane, not a cell. 0 switches this off"
    ),
    "min_size": Knob("Smallest object", 0, 1000, 1, "Smaller objects are dropped. In pixels"),
}
"""For each field of a representation that can be tuned by looking."""


class TuneTab(QWidget):
    """Sliders whose effect on the shown plane is seen at once."""

    def __init__(self, host: Any):
        super().__init__()
        self._host = host
        self._sliders: dict[str, Any] = {}
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
        host.labels.changed.connect(self.show_result)
        host.refreshed.connect(self.show_result)
        self.show_result()

    @property
    def representation(self) -> Any:
        """The representation of the chosen labels with what the sliders say."""
        _, segmentation = self._host.result()
        values = {name: slider.value() for name, slider in self._sliders.items()}
        return replace(segmentation.model.representation, **values)

    def slider(self, field: str) -> Any:
        """Give the slider of a field, e.g. "min_size"."""
        return self._sliders[field]

    @guarded
    def show_result(self) -> None:
        """Show count and thresholds of the plane that is shown."""
        host = self._host
        segmentation = host.session.segmentation(host.labels.layer)
        state = None
        if segmentation is not None:
            index = host.current_index(host.labels.layer, segmentation.planes)
            state = segmentation.states.get(index)
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
        kind = "classes" if state.representation.labels_are_classes else "objects"
        self.count.setText(f"<span style='font-size:18pt'>{state.objects}</span> {kind}")
        others = sum(s.representation != state.representation for s in segmentation.states.values())
        self.all_button.setEnabled(others > 0)
        wanted = host.session.thresholds(segmentation) == state.representation
        self.hint.setText(
            (f"{others} slices have other thresholds. " if others else "")
            + ("Segment uses these too." if wanted else "Segment uses those you set last.")
        )

    def _show_sliders(self, representation: Any) -> None:
        names = [field.name for field in fields(representation) if field.name in KNOBS]
        if representation.name == "boundaries":
            unused = "max_elongation" if representation.foreground else "foreground_threshold"
            names.remove(unused)
        if representation.labels_are_classes and representation.num_classes > 2:
            names = []
        if list(self._sliders) != names:
            while self._rows.rowCount():
                self._rows.removeRow(0)
            self._sliders = {name: self._make_slider(name) for name in names}
        for name, slider in self._sliders.items():
            value = getattr(representation, name)
            slider.blockSignals(True)
            slider.setMaximum(max(slider.maximum(), value))
            slider.setValue(value)
            slider.blockSignals(False)

    def _make_slider(self, name: str) -> Any:
        knob = KNOBS[name]
        whole = isinstance(knob.step, int)
        kind: Any = QLabeledSlider if whole else QLabeledDoubleSlider
        slider = kind(Qt.Orientation.Horizontal)
        if not whole:
            slider.setDecimals(2 if knob.step < 0.1 else 1)
        slider.setRange(knob.low, knob.high)
        slider.setSingleStep(knob.step)
        slider.setToolTip(f"{knob.tip} (`{name}`)")
        slider.valueChanged.connect(self._slide)
        self._rows.addRow(knob.name, slider)
        return slider

    def _slide(self, _: float) -> None:
        self._soon.start()

    def reset(self) -> None:
        """Back to the thresholds of the model."""
        _, segmentation = self._host.result()
        self._show_sliders(segmentation.model.representation)
        self._decode()

    def _decode(self) -> None:
        """Read the maps of the shown plane again; what was asked meanwhile comes next."""
        if self._decoding is not None:
            self._again = True
            return
        try:
            layer, segmentation = self._host.result()
            representation = self.representation
            self._host.session.set_thresholds(segmentation, representation)
            index = self._host.current_index(layer, segmentation.planes)
            maps = self._host.session.maps.get(segmentation, index)
            if maps is None:
                raise ValueError(
                    "The maps of this plane must be in memory to be tuned, but they were dropped "
                    "to make room. Press Segment again."
                )
        except ValueError as error:
            show_problem(error)
            return
        self._wish = (layer, index, maps, representation)
        self._decoding = Task(lambda task: maps.decode(representation))
        self._decoding.done.connect(self._show_decoded)
        self._decoding.failed.connect(self._fail)
        self._decoding.start()

    def _show_decoded(self, labels: Any) -> None:
        layer, index, maps, representation = self._wish
        self._decoding = None
        if layer in self._host.viewer.layers:
            guarded(self._write)(layer, index, maps, labels, representation)
        if self._again:
            self._again = False
            self._decode()

    def _write(self, layer: Any, index: Index, maps: Any, labels: Any, representation: Any) -> None:
        layer = self._host.uncorrected(layer, [index])
        self._host.write(layer, index, maps, labels, representation)
        if not self._again:
            self._host.refresh()

    def _fail(self, error: BaseException) -> None:
        self._decoding, self._again = None, False
        show_problem(error)

    def apply_to_all(self) -> None:
        """Read all planes with the thresholds of the sliders."""
        host = self._host
        layer, segmentation = host.result()
        representation = self.representation
        host.session.set_thresholds(segmentation, representation)
        wanted = [i for i, s in segmentation.states.items() if s.representation != representation]
        layer = host.uncorrected(layer, wanted)
        segmentation = host.session.source(layer)
        kept = {index: host.session.maps.get(segmentation, index) for index in wanted}

        def work(task: Task) -> None:
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

        def show(found: Any) -> None:
            index, maps, labels = found
            if layer not in host.viewer.layers:
                host.tasks.cancel()
            elif not segmentation.is_corrected(index, layer.data[index]):
                host.write(layer, index, maps, labels, representation)

        host.tasks.run("Apply", work, lambda _: host.refresh(), show)

    def save(self) -> None:
        """Ask for a file, and write the model with these thresholds."""
        _, segmentation = self._host.result()
        name = f"{segmentation.name}_tuned.safetensors"
        start = Path(segmentation.model_name).parent if "." in segmentation.model_name else Path()
        path, _ = QFileDialog.getSaveFileName(
            self, "Save the model with these thresholds", str(start / name), "*.safetensors"
        )
        if path:
            self.save_as(Path(path))

    def save_as(self, path: Path) -> None:
        """Write the model with the thresholds of the sliders, and choose it."""
        _, segmentation = self._host.result()
        if path.suffix != ".safetensors":
            path = path.with_name(path.name + ".safetensors")
        model = replace(
            segmentation.model,
            representation=self.representation,
            info={**segmentation.model.info, "tuned": "by eye, in the napari plugin"},
        )
        vimunet.save_model(path, model)
        self._host.models.add_file(path)
        self._host.say(f"Saved {path}.")
