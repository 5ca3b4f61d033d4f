"""A small plot of the loss of a training."""

from typing import TYPE_CHECKING

from qtpy.QtCore import QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QVBoxLayout, QWidget

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg

_HEIGHT = 130
_SMOOTHING = 0.95
_PAUSE = 500
"""Least time between two drawings in milliseconds: the training needs the processor more."""

_FAINT, _STRONG, _TEXT = "#5a82c8", "#6eaaff", "#8a909c"


class LossPlot(QWidget):
    """The loss of each iteration (faint) and its running mean (strong).

    matplotlib takes half a second to load: it is when the plot is seen first.

    Attributes:
        values: The losses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFixedHeight(_HEIGHT)
        self.values: list[float] = []
        self._axes: Axes
        self._canvas: FigureCanvasQTAgg | None = None
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(_PAUSE)
        self._soon.timeout.connect(self._draw)

    def clear(self) -> None:
        """Begin anew."""
        self.values = []
        self._draw()

    def add(self, loss: float) -> None:
        """Add the loss of the next iteration."""
        self.values.append(loss)
        if not self._soon.isActive():
            self._soon.start()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 (Qt's name)
        """Make the canvas."""
        if self._canvas is None:
            self._make_canvas()
            self._draw()
        super().showEvent(event)

    def _make_canvas(self) -> None:
        from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
        from matplotlib.figure import Figure

        figure = Figure(facecolor="none")
        figure.subplots_adjust(left=0.13, right=0.98, top=0.95, bottom=0.3)
        self._axes = axes = figure.add_subplot(facecolor="none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_TEXT)
        axes.tick_params(colors=_TEXT, labelsize=8)
        axes.locator_params(nbins=4)
        axes.locator_params(axis="x", integer=True)
        axes.xaxis.label.set(color=_TEXT, fontsize=8)
        axes.plot([], color=_FAINT, alpha=0.5, linewidth=0.8)
        axes.plot([], color=_STRONG, linewidth=1.6)
        self._canvas = FigureCanvasQTAgg(figure)
        self._canvas.setStyleSheet("background: transparent")
        self._layout.addWidget(self._canvas)

    def _draw(self) -> None:
        if self._canvas is None:
            return
        axes, count = self._axes, len(self.values)
        for line, losses in zip(axes.lines, (self.values, running_mean(self.values)), strict=True):
            line.set_data(range(1, count + 1), losses)
        axes.relim()
        axes.autoscale_view()
        axes.set_xlabel(f"loss, {count} iterations" if count else "loss of the training")
        axes.tick_params(labelleft=count > 1, labelbottom=count > 1)
        self._canvas.draw_idle()


def running_mean(values: list[float]) -> list[float]:
    """Average with weights that fall by 5 % for each step back.

    A filter of scipy.signal would do it too, but takes seconds to load.

    Examples:
        >>> [round(mean, 3) for mean in running_mean([1.0, 1.0, 0.0])]
        [1.0, 1.0, 0.649]
    """
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + value
        weight = _SMOOTHING * weight + 1
        means.append(total / weight)
    return means
