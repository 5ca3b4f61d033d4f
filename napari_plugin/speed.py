"""How fast the plugin answers, and how much memory it needs: the table of its manual.

    xvfb-run -a -s "-screen 0 1400x900x24" python napari_plugin/speed.py

Everything is measured in a real viewer, from the click (or the move of a slider) until the labels
are in their layer and the viewer has drawn. Without a GPU the screen is drawn by the processor.
Two times are given: that on the clock, and that of the processor. With one thread
(OMP_NUM_THREADS=1) the latter is about what the clock would show on a machine without other work.
"""

import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import QEventLoop, QTimer
from qtpy.QtWidgets import QApplication

REPEATS = 5
SIDE = 1024
_TICK = 10


def main() -> None:
    """Measure, and print a table."""
    viewer: Any = napari.Viewer()
    QApplication.processEvents()
    before = _memory()

    clock = Clock()
    from napari_vimunet._widget import VimunetWidget

    widget = VimunetWidget(viewer)
    work = widget.workspace
    viewer.window.add_dock_widget(widget, name="vimunet")
    QApplication.processEvents()
    opened = clock.read()
    _wait(work.models.box.isEnabled)
    listed = clock.read()
    import torch
    from napari_vimunet._sample_data import neurites, nuclei, phase

    print(f"{os.cpu_count()} processor cores, {torch.get_num_threads()} threads, torch", end=" ")
    print(f"{torch.__version__}, napari {napari.__version__}; median of {REPEATS}\n")
    print("| what | clock | processor |\n|---|---|---|")
    _row("plugin opens after napari", [opened])
    _row("list of models is filled (PyTorch is loaded)", [listed])

    images = {"nuclei": nuclei()[0][0], "phase": phase()[0][0], "neurites": neurites()[0][0][0]}
    tile = images["nuclei"]
    copies = -(-SIDE // min(tile.shape))
    images["nuclei, repeated"] = np.tile(tile, (copies, copies))[:SIDE, :SIDE]
    pauses: list[float] = []
    for name, image in images.items():
        viewer.layers.clear()
        QApplication.processEvents()  # napari must draw before it gets new layers
        viewer.add_image(image)
        seconds = []
        for _ in range(REPEATS + 1):
            clock = Clock()
            widget.segment.button.click()
            pauses.append(_wait(lambda: not work.tasks.running))
            seconds.append(clock.read())
        shape = " x ".join(map(str, image.shape[:2]))
        _row(f"click to labels: {name}, {shape}, first time", seconds[:1])
        _row(f"click to labels: {name}, {shape}, again", seconds[1:])
    print(f"| longest pause of the viewer meanwhile | {max(pauses):.2f} s | |")

    layer: Any = work.labels.layer
    tune = widget.tune
    slider = tune.slider("foreground_threshold")
    seconds = []
    for value in np.linspace(0.3, 0.7, REPEATS):
        clock = Clock()
        slider.setValue(float(value))
        _wait(lambda: tune.settled)
        seconds.append(clock.read())
    _row(f"slider to labels: {SIDE} x {SIDE}, {layer.data.max()} objects", seconds)

    centers = _centers(layer.data)
    strokes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "split": lambda point: np.array([point - (0, 3), point + (0, 3)]),
        "cut": lambda point: np.array([point - (40, 0), point + (40, 0)]),
        "merge": lambda point: np.array([point - (0, 90), point + (0, 90)]),
        "delete": lambda point: point[None],
        "redraw": lambda point: point + np.array([(-9, -9), (-9, 9), (9, 9), (9, -9)]),
    }
    for number, (tool, stroke) in enumerate(strokes.items()):
        seconds = []
        for point in centers[number * REPEATS : (number + 1) * REPEATS]:
            clock = Clock()
            widget.correct.edit(tool, stroke(point).astype(float))
            QApplication.processEvents()
            seconds.append(clock.read())
        _row(f"{tool}: the same image", seconds)
    seconds = []
    for point in centers[3 * REPEATS : 4 * REPEATS]:  # those that were deleted
        clock = Clock()
        widget.correct.edit("add", point[None].astype(float))
        QApplication.processEvents()
        seconds.append(clock.read())
    _row("add: the same image", seconds)
    print(f"\nMemory: napari alone {before:.0f} MB, most with plugin and model {_memory():.0f} MB")
    viewer.close()


def _wait(condition: Callable[[], bool]) -> float:
    """Let the viewer work until something has happened; give its longest pause in seconds."""
    tick = QTimer()
    tick.start(_TICK)
    longest, last = 0.0, time.perf_counter()
    while not condition():
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
        now = time.perf_counter()
        longest, last = max(longest, now - last - _TICK / 1000), now
    tick.stop()
    QApplication.processEvents()
    return longest


def _centers(labels: np.ndarray) -> np.ndarray:
    """Give a pixel well inside of each of the largest objects."""
    from vimunet.representations.watershed import depth_inside

    depth = depth_inside(labels > 0)
    largest = np.argsort(-np.bincount(labels.ravel())[1:])[: 6 * REPEATS] + 1
    inside = [np.where(labels == number, depth, 0).argmax() for number in largest]
    return np.stack(np.unravel_index(inside, labels.shape), axis=1)


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Seconds since it was made: on the clock, and of the processor (all threads together)."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Give both."""
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def _row(name: str, times: list[tuple[float, float]]) -> None:
    clock, processor = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"| {name} | {clock:.2f} s | {processor:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
