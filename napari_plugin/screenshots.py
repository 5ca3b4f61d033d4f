"""Pictures of the plugin for its manual: each step on a sample image, in a real viewer.

`make screenshots` runs this under Xvfb. Nothing in the pictures is drawn by hand: labels are found
by the model that comes with vimunet, and corrected with the plugin's own tools.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from napari_vimunet._widget import VimunetWidget
from napari_vimunet.layers import camera
from PIL import Image
from qtpy.QtWidgets import QApplication
from skimage.measure import label, regionprops

from vimunet.datasets import SAMPLES
from vimunet.io.formats import read_image, read_labels
from vimunet.io.names import list_images

_SIZE = 1280, 780


def wait(condition: Callable[[], bool], seconds: float = 600) -> None:
    """Let the viewer work until something has happened."""
    end = time.monotonic() + seconds
    while not condition():
        QApplication.processEvents()
        time.sleep(0.005)
        if time.monotonic() > end:
            raise TimeoutError
    for _ in range(20):  # and until it is drawn
        QApplication.processEvents()
        time.sleep(0.01)


class Show:
    """A viewer with the plugin, and a camera in front of it."""

    def __init__(self, output: Path):
        self.output = output
        self.viewer: Any = napari.Viewer()
        self.viewer.window.resize(*_SIZE)
        self.widget = VimunetWidget(self.viewer)
        self.workspace = self.widget.workspace
        self.viewer.window.add_dock_widget(self.widget, name="vimunet")
        wait(self.workspace.models.box.isEnabled)

    def clear(self) -> None:
        """Remove all layers, and let napari draw before it gets new ones."""
        self.viewer.layers.clear()
        wait(lambda: True)

    def picture(self, name: str) -> None:
        """Write a picture of the whole window."""
        wait(lambda: True)
        path = self.output / f"plugin_{name}.png"
        window = self.viewer.window.screenshot(canvas_only=False, flash=False)
        Image.fromarray(window[..., :3]).save(path, optimize=True)
        print(path)

    def tab(self, name: str) -> Any:
        """Show a tab."""
        tab = getattr(self.widget, name)
        self.widget.tabs.setCurrentWidget(tab)
        wait(tab.isVisible)
        return tab

    def segment(self, image: np.ndarray, name: str, **place: Any) -> Any:
        """Press Segment for a new image."""
        self.clear()
        self.viewer.add_image(image, name=name, **place)
        self.viewer.reset_view()
        self.tab("segment").button.click()
        wait(lambda: not self.workspace.tasks.running)
        return self.workspace.labels.layer


def main(output: Path, minutes: float) -> None:
    """Make all pictures."""
    output.mkdir(parents=True, exist_ok=True)
    folder = SAMPLES / "nuclei" / "test"
    show = Show(output)
    widget, work, viewer = show.widget, show.workspace, show.viewer
    image = read_image(folder / "images" / "c04fa1a74a98.png")
    truth = read_labels(folder / "labels" / "c04fa1a74a98.tif")

    widget.segment.advanced.setChecked(True)
    layer = show.segment(image, "nuclei")
    show.picture("segment")
    widget.segment.advanced.setChecked(False)

    tune = show.tab("tune")
    tune.slider("foreground_threshold").setValue(0.25)
    tune.slider("seed_threshold").setValue(0.6)
    wait(lambda: tune.settled)
    show.picture("tune")
    tune.reset_button.click()
    wait(lambda: tune.settled)

    correct = show.tab("correct")
    first, second = _joined_pair(layer.data, truth)
    view = camera(viewer)
    center = (np.asarray(first) + second) / 2
    view.center = (*view.center[:-2], *layer.data_to_world(center))
    view.zoom = 9
    correct.buttons["split"].click()
    correct._draw([layer.data_to_world(point) for point in (first, second)])
    show.picture("correct_before")
    correct._draw([])
    correct.use(np.array([first, second], float))
    show.picture("correct_after")
    correct.stop_tool()

    train = show.tab("train")
    with tempfile.TemporaryDirectory() as temporary:
        train.folder.setText(str(Path(temporary) / "training set"))
        samples = SAMPLES / "phase" / "train"
        names = [path.stem for path in list_images(samples / "images")][:4]
        for name in names:
            show.clear()
            viewer.add_image(read_image(samples / "images" / f"{name}.png"), name=name)
            viewer.add_labels(
                read_labels(samples / "labels" / f"{name}.tif").astype(int), name="corrected"
            )
            viewer.reset_view()
            train.add_button.click()
        train.minutes.setValue(minutes)
        train.train_button.click()
        learned = lambda: not train.preview.isHidden() and len(train.plot.values) > 5  # noqa: E731
        wait(lambda: learned() or not train.tasks.running)
        show.picture("train")
        wait(lambda: not train.tasks.running)
        show.picture("trained")

    work.models.box.setCurrentIndex(work.models.box.findText("nuclei"))
    layer = show.segment(image, "nuclei", scale=(0.65, 0.65), units="um")
    viewer.add_labels(truth, name="drawn by hand", visible=False, scale=(0.65, 0.65), units="um")
    work.labels.choose(layer)
    measure = show.tab("measure")
    measure.measure_button.click()
    wait(lambda: not work.tasks.running)
    measure.truth.box.setCurrentIndex(measure.truth.box.count() - 1)
    measure.score_button.click()
    measure.table.selectRow(int(np.argmax(measure.model.columns["area_um2"])))
    show.picture("measure")
    viewer.close()


def _joined_pair(found: np.ndarray, truth: np.ndarray) -> tuple[Any, Any]:
    """Find two annotated objects that the model took for one: their centres."""
    best: tuple[int, Any, Any] = (0, (0, 0), (0, 0))
    for number in np.unique(found[found > 0]):
        pieces = label(np.where(found == number, truth, 0))
        parts = sorted(regionprops(pieces), key=lambda part: part.area)[-2:]
        if len(parts) == 2 and parts[0].area > best[0]:
            best = (int(parts[0].area), parts[0].centroid, parts[1].centroid)
    return best[1], best[2]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--minutes", type=float, default=3.0, help="of the training")
    options = parser.parse_args()
    main(options.output, options.minutes)
