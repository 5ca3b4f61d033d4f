"""A small plot of the loss of a training; Qt alone, nothing else to install."""

from typing import Any

from qtpy.QtCore import QPointF, QRectF, Qt
from qtpy.QtGui import QColor, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import QWidget

_MARGIN = 34
_SMOOTHING = 0.95
_FAINT, _STRONG, _TEXT = QColor(90, 130, 200, 110), QColor(110, 170, 255), QColor(160, 165, 175)


class LossPlot(QWidget):
    """The loss of each iteration (faint) and its running mean (strong)."""

    def __init__(self) -> None:
        super().__init__()
        self.setMinimumHeight(110)
        self.values: list[float] = []

    def clear(self) -> None:
        """Begin anew."""
        self.values = []
        self.update()

    def add(self, loss: float) -> None:
        """Add the loss of the next iteration."""
        self.values.append(loss)
        self.update()

    def paintEvent(self, event: Any) -> None:  # noqa: N802 (Qt's name)
        """Draw it."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area = QRectF(_MARGIN, 4, self.width() - _MARGIN - 4, self.height() - 24)
        painter.setPen(QPen(_TEXT, 1))
        painter.drawLine(area.bottomLeft(), area.bottomRight())
        painter.drawLine(area.bottomLeft(), area.topLeft())
        count = len(self.values)
        bottom = QRectF(area.left(), area.bottom() + 2, area.width(), 18)
        if count < 2:
            painter.drawText(bottom, Qt.AlignmentFlag.AlignCenter, "loss of the training")
            return
        low, high = min(self.values), max(self.values)
        spread = high - low or 1.0

        def curve(values: list[float]) -> QPolygonF:
            return QPolygonF(
                [
                    QPointF(
                        area.left() + i / (count - 1) * area.width(),
                        area.bottom() - (value - low) / spread * area.height(),
                    )
                    for i, value in enumerate(values)
                ]
            )

        painter.setPen(QPen(_FAINT, 1))
        painter.drawPolyline(curve(self.values))
        painter.setPen(QPen(_STRONG, 2))
        painter.drawPolyline(curve(running_mean(self.values)))
        painter.setPen(QPen(_TEXT, 1))
        right = Qt.AlignmentFlag.AlignRight
        painter.drawText(QRectF(0, area.top() - 4, _MARGIN - 4, 16), right, f"{high:.2f}")
        painter.drawText(QRectF(0, area.bottom() - 12, _MARGIN - 4, 16), right, f"{low:.2f}")
        painter.drawText(bottom, Qt.AlignmentFlag.AlignCenter, f"loss, {count} iterations")


def running_mean(values: list[float]) -> list[float]:
    """Average with weights that fall by 5 % for each step back.

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
