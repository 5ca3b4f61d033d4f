"""Work in the background: with progress, time left and a way to stop it; errors become notes."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from napari.utils.notifications import show_error
from qtpy.QtCore import QCoreApplication, QObject, Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from vimunet.interactive.prediction import CancelledError

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)

_EXPECTED = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""Errors whose message is written for the user."""

_LONGEST_WAIT = 5.0
"""Seconds that leaving napari may wait for a task to notice that it shall end."""


def show_problem(error: BaseException) -> None:
    """Tell the user what went wrong and what to do about it, as a notification of napari."""
    if isinstance(error, MemoryError):
        show_error("There is not enough memory. Segment a smaller part, or in smaller tiles.")
    elif isinstance(error, _EXPECTED):
        show_error(str(error))
    else:
        _logger.error("Unexpected error", exc_info=error)
        show_error(
            f"Unexpected {type(error).__name__}: {error}. Your layers are as they were. "
            "Details are in the terminal in which napari was started."
        )


@dataclass(frozen=True)
class Progress:
    """How far a task is.

    Attributes:
        done: Steps done.
        total: Steps in all; 0 if that is not known.
        text: What is being done.
    """

    done: int
    total: int
    text: str


class Task(QObject):
    """A function that runs in a thread of its own, and is told there when to end.

    Signals reach the thread in which the task was made. Exactly one of `done`, `failed` and
    `stopped` is the last of them.

    Not a worker of superqt 0.9: those share as many threads as the machine has cores, so that on
    two cores a slider waits for a training and a prediction to end (seen: 3.0 s for two tasks of
    3 s), and two that overlap leave `warnings` of the whole process redirected into nothing (seen).

    Args:
        function: Called with this task. It looks at `stop` now and then; it may
            raise `CancelledError`.

    Attributes:
        stop: Set to ask it to end.
        abandoned: Whether nobody is there any more who could ask again.
    """

    _alive: ClassVar[set["Task"]] = set()
    """Tasks whose thread has not ended: it must not be the one that destroys them."""

    progressed = Signal(object)
    arrived = Signal(object)
    done = Signal(object)
    failed = Signal(object)
    stopped = Signal()

    def __init__(self, function: Callable[["Task"], Any]):
        super().__init__()
        self.stop = threading.Event()
        self.abandoned = False
        self._function = function
        self._thread = threading.Thread(target=self._run, name="vimunet", daemon=True)
        for last in (self.done, self.failed, self.stopped):
            last.connect(self._bury)

    def start(self) -> None:
        """Begin; when the application ends, so does the task."""
        application = QCoreApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self._leave)
        self._alive.add(self)
        self._thread.start()

    def abandon(self) -> None:
        """Ask the task to end for good: its window is closed."""
        self.abandoned = True
        self.stop.set()

    def report(self, done: int, total: int, text: str) -> None:
        """Say how far it is; from within the task."""
        self.progressed.emit(Progress(done, total, text))

    def hand_over(self, part: Any) -> None:
        """Give a part of the result away; from within the task."""
        self.arrived.emit(part)

    def _run(self) -> None:
        try:
            result = self._function(self)
        except CancelledError:
            self._emit(self.stopped)
        except BaseException as error:  # whatever it is, the user must know
            self._emit(self.failed, error)
        else:
            self._emit(self.done, result)

    def _emit(self, signal: Any, *values: Any) -> None:
        try:
            signal.emit(*values)
        except RuntimeError:  # napari has ended meanwhile: nobody waits for this any more
            _logger.debug("Task ended after its viewer")

    def _bury(self, _: Any = None) -> None:
        self._thread.join()  # has nothing left to do
        self._alive.discard(self)

    def _leave(self) -> None:
        self.abandon()
        self._thread.join(_LONGEST_WAIT)


@dataclass(frozen=True)
class _Calls:
    """What to call with the result, and with each part of it."""

    done: Callable[[Any], None] | None = None
    arrived: Callable[[Any], None] | None = None


class TaskPanel(QWidget):
    """Runs one task at a time, and shows how far it is.

    Args:
        title: What is shown while nothing runs.
    """

    changed = Signal()
    """Something began or ended."""

    def __init__(self, title: str = "Ready"):
        super().__init__()
        self._task: Task | None = None
        self._title = ""
        self._started = 0.0
        self._calls = _Calls()
        self._keeps = False
        self.text = QLabel(title)
        self.text.setWordWrap(True)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(10)
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.clicked.connect(self.cancel)
        row = QHBoxLayout()
        row.addWidget(self.bar, 1)
        row.addWidget(self.cancel_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addLayout(row)
        layout.addWidget(self.text)
        self._show_running(False)

    @property
    def running(self) -> bool:
        """Whether a task runs, or is about to end."""
        return self._task is not None

    @property
    def _wanted(self) -> bool:
        """Whether what the task gives is still wanted."""
        return self._task is not None and (self._keeps or not self._task.stop.is_set())

    def run(
        self,
        title: str,
        function: Callable[[Task], Result],
        done: Callable[[Result], None],
        arrived: Callable[[Any], None] | None = None,
        keep: bool = False,
    ) -> None:
        """Start a task.

        Args:
            title: What it does.
            function: See `Task`.
            done: Called with the result, unless it failed or was cancelled.
            arrived: Called with each part that the task hands over, unless it was cancelled.
            keep: Take the result of a task that was told to stop, too: it ends early, but well.

        Raises:
            ValueError: If another task runs.
        """
        if self.running:
            raise ValueError(f"Another task is running ({self.text.text()}). Wait, or cancel it.")
        task = Task(function)
        self._task, self._started = task, time.monotonic()
        self._title, self._calls, self._keeps = title, _Calls(done, arrived), keep
        # Methods of this widget, not functions: Qt then calls them in the thread of the viewer.
        task.progressed.connect(self._show)
        task.arrived.connect(self._take_part)
        task.done.connect(self._finish)
        task.failed.connect(self._fail)
        task.stopped.connect(self._stopped)
        self.destroyed.connect(task.abandon)
        self.text.setText(title)
        self.bar.setRange(0, 0)
        self._show_running(True)
        self.changed.emit()
        task.start()

    def cancel(self) -> None:
        """Ask the task to end; what it did so far and handed over stays."""
        if self._task is not None:
            self._task.stop.set()
            self.cancel_button.setEnabled(False)
            self.text.setText("Cancelling…")

    def say(self, text: str) -> None:
        """Show a text until the next task."""
        if not self.running:
            self.text.setText(text)

    def show_text(self, text: str) -> None:
        """Say what the running task does."""
        if self._task is not None and not self._task.stop.is_set():
            self.text.setText(text)

    def _show(self, progress: Progress) -> None:
        if self._task is None or self._task.stop.is_set():
            return
        self.bar.setRange(0, progress.total)
        self.bar.setValue(progress.done)
        text = progress.text
        if 0 < progress.done < progress.total:
            passed = time.monotonic() - self._started
            left = passed / progress.done * (progress.total - progress.done)
            text += f", {show_seconds(left)} left"
        self.text.setText(text)

    def _take_part(self, part: Any) -> None:
        if self._wanted:
            self._call(self._calls.arrived, part)

    def _finish(self, result: Any) -> None:
        done = self._calls.done
        if not self._wanted:
            self._end("Cancelled")
            return
        self._end(f"{self._title}: {show_seconds(time.monotonic() - self._started)}")
        self._call(done, result)

    def _fail(self, error: BaseException) -> None:
        self._end(f"{self._title}: failed")
        show_problem(error)

    def _stopped(self) -> None:
        self._end("Cancelled")

    def _end(self, text: str) -> None:
        self._task, self._calls = None, _Calls()
        self.text.setText(text)
        self._show_running(False)
        self.changed.emit()

    def _call(self, function: Callable[[Any], None] | None, value: Any) -> None:
        if function is not None:
            try:
                function(value)
            except Exception as error:  # otherwise the next task could never start
                show_problem(error)

    def _show_running(self, running: bool) -> None:
        self.bar.setVisible(running)
        self.cancel_button.setVisible(running)
        self.cancel_button.setEnabled(running)


def show_seconds(seconds: float) -> str:
    """Write a duration for people.

    Examples:
        >>> show_seconds(0.347), show_seconds(41.6), show_seconds(125), show_seconds(7260)
        ('0.3 s', '42 s', '2:05 min', '2:01 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
