"""Small controls that the tabs share."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from napari.utils.events import EventEmitter
from qtpy.QtCore import QObject, Qt
from qtpy.QtWidgets import QComboBox, QFormLayout, QLabel, QPushButton, QSizePolicy

from napari_vimunet._tasks import show_problem

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def guarded(function: Callable[Arguments, Result]) -> Callable[Arguments, Result | None]:
    """Show what goes wrong in a click as a notification; the viewer goes on."""

    @wraps(function)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result | None:
        try:
            return function(*arguments, **options)
        except Exception as error:  # a click must never end napari
            show_problem(error)
            return None

    return run


def connect(owner: QObject, event: EventEmitter, method: Callable[..., object]) -> None:
    """Connect a method of `owner` with an event of napari for as long as Qt keeps `owner`.

    napari would call it later too: the dock may be closed and the viewer live on.
    """
    event.connect(method)
    owner.destroyed.connect(lambda *_: event.disconnect(method))


def button(text: str, clicked: Callable[[], object], tip: str) -> QPushButton:
    """Make a button whose errors become notifications."""
    made = QPushButton(text)
    made.setToolTip(tip)
    action = guarded(clicked)
    made.clicked.connect(lambda: action())
    return made


def note(text: str = "") -> QLabel:
    """Make a text of several lines that does not widen the window."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    return label


def form() -> QFormLayout:
    """Make a compact table of names and controls, all of one width."""
    layout = QFormLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setHorizontalSpacing(8)
    layout.setVerticalSpacing(5)
    layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    layout.setLabelAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
    return layout


def choice(tip: str, *texts: str) -> QComboBox:
    """Make a list to choose from that may be narrower than its texts."""
    box = QComboBox()
    box.setToolTip(tip)
    box.addItems(texts)
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(6)
    return box
