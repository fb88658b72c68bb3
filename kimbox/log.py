"""What the user sees while kimbox works: nested, timed steps on stderr; results alone go to stdout.

On a terminal a spinner shows the step and its time; elsewhere each step is a plain line, so that a log stays readable.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


class Log:
    """Where progress goes. `quiet` leaves only warnings; `verbose` adds details and the output of programs."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream or sys.stderr
        self.quiet = False
        self.verbose = False
        self.color = True
        self._console: Console | None = None
        self._status: Status | None = None
        self._steps: list[tuple[str, float]] = []
        self._doing = ""

    def configure(self, *, quiet: bool = False, verbose: bool = False, color: bool = True) -> None:
        """Set once, from the command line."""
        self.quiet, self.verbose, self.color = quiet, verbose, color

    @property
    def _live(self) -> bool:
        return self.stream.isatty() and not self.quiet and not self.verbose

    def _print(self, text: str) -> None:
        if self._status:
            self._status.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def info(self, text: str) -> None:
        """Something worth a line."""
        if not self.quiet:
            self._print("  " * len(self._steps) + text)

    def guest(self, line: str) -> None:
        """A line that a program in the guest wrote."""
        if not self.quiet:
            self._print("  " * len(self._steps) + "| " + line)

    def detail(self, text: str) -> None:
        """Something worth a line only with --verbose."""
        if self.verbose:
            self._print("  " * len(self._steps) + text)

    def warn(self, text: str) -> None:
        """Something the user should know even when quiet."""
        self._print(f"kimbox: warning: {text}")

    def now(self, text: str) -> None:
        """What the current step is doing just now: shown beside the spinner, gone with the next."""
        if self._status and self._steps:
            name, started = self._steps[-1]
            self._status.update(f"{name} [{time.monotonic() - started:.0f} s]: {text[:100]}")
        elif text != self._doing:
            self.detail(text)
        self._doing = text

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Names and times a piece of work; the line at its end tells how long it took."""
        started = time.monotonic()
        depth = len(self._steps)
        outer = self._open_status(name)
        if not self._status:
            self.info(f"{name} ...")
        self._steps.append((name, started))
        try:
            yield
        except BaseException:
            self._steps.pop()
            self._close_status(outer)
            if not self.quiet:
                self._print("  " * depth + f"{name}: failed after {time.monotonic() - started:.1f} s")
            raise
        self._steps.pop()
        self._close_status(outer)
        if not self.quiet:
            self._print("  " * depth + f"{name}: {time.monotonic() - started:.1f} s")

    def _open_status(self, name: str) -> bool:
        """Starts the spinner if this is the outermost step on a terminal; True if it did."""
        if not self._live:
            return False
        if self._status:
            self._status.update(name)
            return False
        from rich.console import Console

        self._console = self._console or Console(file=self.stream, no_color=not self.color)
        self._status = self._console.status(name)
        self._status.start()
        return True

    def _close_status(self, opened_here: bool) -> None:
        if opened_here and self._status:
            self._status.stop()
            self._status = None
        elif self._status and self._steps:
            self._status.update(self._steps[-1][0])


#: The one log of this process.
log = Log()
