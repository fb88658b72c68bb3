"""Progress on stderr: nested, timed steps. Results are printed on stdout by `kimbox.cli.output`.

On a terminal, a spinner shows the current step and its duration. Elsewhere each step is a plain line, so that a log
file stays readable.

Every method may be called from any thread. A thread has steps of its own; `attach` makes a function's steps part of the
caller's step.

Any text may contain words of a server, a guest or a file. Therefore every text is cleaned here, and none is markup.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, ParamSpec, TypeVar

from kimbox.settings import settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

P = ParamSpec("P")
T = TypeVar("T")

#: The spinner, by its name in rich.
SPINNER = "dots"

#: Longest text beside the spinner: a longer one would wrap on a narrow terminal.
MAX_SPINNER_TEXT = 100


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """A piece of work that has begun."""

    name: str
    #: time.monotonic() at its start.
    started_s: float
    #: Number of steps around it.
    depth: int

    @property
    def duration_s(self) -> float:
        return time.monotonic() - self.started_s


def printable(text: str, *, keep_bytes: bool = False) -> str:
    """Makes untrusted text safe for a terminal: line breaks and tabs become blanks, unprintable characters U+FFFD.

    `keep_bytes`: bytes of file names that are not valid text (surrogates, PEP 383) stay, for a file or a pipe.
    """
    if text.isprintable():  # most text, in a hundredth of the time
        return text
    return "".join(
        c if c.isprintable() or (keep_bytes and "\udc80" <= c <= "\udcff") else " " if c in "\n\t" else "\ufffd"
        for c in text
    )


def printable_lines(text: str, *, indent: str = "", keep_bytes: bool = False) -> str:
    """Makes untrusted text of several lines safe for a terminal. Lines after the first begin with `indent`."""
    return f"\n{indent}".join(printable(line, keep_bytes=keep_bytes) for line in text.replace("\r\n", "\n").split("\n"))


class Log:
    """Writes to one stream, stderr by default. --quiet, --verbose and --no-color are read from `settings`."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        #: None: the current stderr.
        self.stream = stream
        self._console: Console | None = None
        self._status: Status | None = None
        #: Guards the stream and all that follows. Reentrant, because a closing step prints while it holds the lock.
        self._lock = threading.RLock()
        #: The open steps of all threads, in the order in which they began; the spinner shows the last one.
        self._open: list[Step] = []
        self._last_activity = ""
        #: The innermost step of this thread. A new thread starts without one.
        self._current: contextvars.ContextVar[Step | None] = contextvars.ContextVar("step", default=None)

    @property
    def _out(self) -> IO[str]:
        return self.stream or sys.stderr

    @property
    def quiet(self) -> bool:
        return settings.quiet

    @property
    def verbose(self) -> bool:
        return settings.verbose

    @property
    def _is_live(self) -> bool:
        """Whether steps are shown by a spinner."""
        return self._out.isatty() and not self.quiet and not self.verbose

    def info(self, text: str) -> None:
        """A line that --quiet hides."""
        if not self.quiet:
            self._print(self._indent() + text)

    def guest(self, line: str) -> None:
        """A line that a program in the guest wrote. --quiet hides it."""
        if not self.quiet:
            self._print(f"{self._indent()}| {line}")

    def detail(self, text: str) -> None:
        """A line that only --verbose shows."""
        if self.verbose:
            self._print(self._indent() + text)

    def warn(self, text: str) -> None:
        """A line that --quiet does not hide."""
        self._print(f"kimbox: warning: {text}")

    def now(self, text: str) -> None:
        """The current activity of the current step: shown beside the spinner until the next one, or as a detail."""
        with self._lock:
            step = self._current.get()
            if self._status and step:
                self._show(f"{step.name} [{step.duration_s:.0f} s]: {text[:MAX_SPINNER_TEXT]}")
            elif text != self._last_activity:
                self.detail(text)
            self._last_activity = text

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Names and times a piece of work. The line at its end says how long it took, and whether it failed."""
        around = self._current.get()
        step = Step(name, time.monotonic(), around.depth + 1 if around else 0)
        self._begin(step)
        token = self._current.set(step)
        try:
            yield
        except BaseException:
            self._current.reset(token)
            self._end(step, "failed after ")
            raise
        self._current.reset(token)
        self._end(step, "")

    def attach(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, for another thread: its lines and steps belong to the step in which `attach` is called."""
        around = self._current.get()

        def attached(*args: P.args, **kwargs: P.kwargs) -> T:
            token = self._current.set(around)
            try:
                return function(*args, **kwargs)
            finally:
                self._current.reset(token)

        return attached

    def _indent(self) -> str:
        step = self._current.get()
        return "  " * (step.depth + 1) if step else ""

    def _print(self, text: str) -> None:
        """Prints a text. Its further lines are indented, so that none of them looks like a message of kimbox."""
        text = printable_lines(text, indent=" " * (len(text) - len(text.lstrip(" ")) + 2))
        with self._lock:
            if self._status:
                self._status.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=self._out, flush=True)

    def _show(self, text: str) -> None:
        """Shows a text beside the spinner."""
        from rich.text import Text

        if self._status:
            self._status.update(Text(printable(text)))

    def _begin(self, step: Step) -> None:
        """Shows a step: in the spinner, or as a line."""
        with self._lock:
            self._open.append(step)
            if self._status:
                self._show(step.name)
            elif self._is_live:
                from rich.console import Console
                from rich.text import Text

                self._console = self._console or Console(file=self._out, no_color=not settings.color)
                self._status = self._console.status(Text(printable(step.name)), spinner=SPINNER)
                self._status.start()
                # Draws the first frame now. If its thread drew it while a line is printed, both could share a line.
                self._status.update(spinner=SPINNER)
            else:
                self.info(f"{step.name} ...")

    def _end(self, step: Step, outcome: str) -> None:
        """Prints how long a step took. The spinner goes on with the step before, or stops after the last one."""
        with self._lock:
            self._open.remove(step)
            if self._status and self._open:
                self._show(self._open[-1].name)
            elif self._status:
                self._status.stop()
                self._status = None
            if not self.quiet:
                self._print("  " * step.depth + f"{step.name}: {outcome}{step.duration_s:.1f} s")


#: The log of this process.
log = Log()
