"""Shows the events and the output of a provisioning on the terminal while the guest sends them.

They arrive through two ports, so either may be read before what was written earlier to the other. The output has a
heading for each step. A step is announced when its event and its heading were read, so that output stays below its own
step.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kimbox.files import size_words
from kimbox.guest.events import Event, printable
from kimbox.log import log

#: Maximum size of the output that is read at once, in bytes.
PIECE_BYTES = 1 << 20

#: If more output than this is left at the end of a wait, only its end is shown, in bytes.
MAX_REST_BYTES = 4 << 20

#: Size of the end that is shown then, in bytes.
END_BYTES = 64 << 10

#: Timeout until heading and event of a step must both have arrived, in seconds. If /persistent is full, there is no
#: heading. A line of a program that looks like a heading has no event.
HEADING_TIMEOUT_S = 2.0

#: The heading of a step in the output. Its reason follows if the step failed.
_HEADING = re.compile(r"== step \d{1,9} of \d{1,9}: ")

#: What is shown of an event `kept`, by its status. The reason follows.
KEPT = {
    "unsaved": "the box keeps no root for the next resnap",
    "refused": "the box provisions a new root: the kept one was not put back",
    "dropped": "the box restarts with a new root: the kept one does not fit",
}

#: Maximum length of a reason from the guest in a message, in characters.
MAX_REASON = 500


class Output:
    """Reads the lines of a file that another program writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        #: The line that is not complete yet.
        self._rest = b""

    def size_bytes(self) -> int:
        """Returns the present size of the file."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def skip(self) -> None:
        """Skips the present content of the file."""
        with contextlib.suppress(OSError):
            self._offset = self.path.stat().st_size

    def show_new(self, show: Callable[[str], None]) -> bool:
        """Passes each new complete line to `show`. A file that has become shorter is read from its beginning.

        At most PIECE_BYTES are read. Returns whether anything was read.
        """
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset, self._rest = 0, b""
                file.seek(self._offset)
                data = file.read(PIECE_BYTES)
        except OSError:
            return False
        self._offset += len(data)
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-PIECE_BYTES:]
        for line in lines:
            show(_text(line))
        return bool(data)

    def skip_to_end(self) -> int:
        """If more than MAX_REST_BYTES are left, skips all but whole lines at the end. Returns the bytes left out."""
        start = self._offset
        end = self.size_bytes()
        if end - start <= MAX_REST_BYTES:
            return 0
        with self.path.open("rb") as file:
            file.seek(end - END_BYTES)
            self._offset = end - END_BYTES + file.read(END_BYTES).find(b"\n") + 1
        self._rest = b""
        return self._offset - start

    def has_line(self, text: str) -> bool:
        """Whether the output that is not shown yet has this line. At most MAX_REST_BYTES are read."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            return text.encode() in (line.rstrip(b"\r") for line in file.read(MAX_REST_BYTES).split(b"\n"))

    def show_end(self, show: Callable[[str], None]) -> None:
        """Passes all lines until the present end to `show`, also an incomplete one."""
        end = self.size_bytes()
        while self._offset < end and self.show_new(show):
            pass
        if self._rest:
            show(_text(self._rest))
            self._rest = b""


def _text(line: bytes) -> str:
    return printable(line.decode("utf-8", "replace").rstrip("\r"))


class Progress:
    """Shows events and output of one machine. `digest` is that of the manifest that the host sends, if it is known."""

    def __init__(self, output: Path, name: str, digest: str = "") -> None:
        self._output = Output(output)
        self._name = name
        self._digest = digest
        #: Steps that are not announced yet: the text, and until when its heading is expected.
        self._pending: list[tuple[str, float]] = []
        self._announced = ""
        #: A heading without an event and the lines that were read after it, and until when that event is expected.
        self._held: list[str] = []
        self._held_until = 0.0
        #: Whether a fallback of the guest is shown. If the host sends a manifest anyway, the one before has no effect.
        self.shows_fallback = True

    def size_bytes(self) -> int:
        """Returns the size of the output so far."""
        return self._output.size_bytes()

    def skip(self) -> None:
        """Skips the present output."""
        self._output.skip()

    def show(self, events: Sequence[Event]) -> None:
        """Shows new events, and the new output."""
        for event in events:
            self._show(event)
        if self._held:
            is_late = time.monotonic() > self._held_until
            if is_late or self._is_pending(self._held[0]):
                self._show_held(waits=not is_late)
        # Output that arrives late is followed by the heading, which is late with it.
        if not self._held and self._output.show_new(self._show_line) and self._pending:
            heading, expected_until = self._pending[0]
            self._pending[0] = heading, max(expected_until, time.monotonic() + HEADING_TIMEOUT_S)
        while self._pending and time.monotonic() > self._pending[0][1]:
            self._announce()

    def finish(self) -> None:
        """Shows the output until its end. If much is left, shows its end, and says how much was left out."""
        self._show_held(waits=False)
        if left_out := self._output.skip_to_end():
            log.info(f"{size_words(left_out)} of output left out: `kimbox logs {self._name}` shows all of it")
            while self._pending and not self._output.has_line(f"== {self._pending[0][0]}"):
                self._announce()  # its heading is in the part that was left out, and so the rest is of this step
        self._output.show_end(lambda line: self._show_line(line, waits=False))
        while self._pending:
            self._announce()

    def _announce(self) -> None:
        self._announced, _ = self._pending.pop(0)
        log.info(self._announced)

    def _is_pending(self, line: str) -> bool:
        """Whether a line is the heading of a step that is not announced yet."""
        return any(line == f"== {pending}" for pending, _ in self._pending)

    def _show_held(self, *, waits: bool) -> None:
        """Shows the lines that were held back. `waits` as for `_show_line`."""
        held, self._held = self._held, []
        for line in held:
            self._show_line(line, waits=waits)

    def _show_line(self, line: str, *, waits: bool = True) -> None:
        """Shows a line of the output. The heading of a step announces it; the line of its failure is left out.

        `waits`: a heading without an event is held back, with all lines after it.
        """
        if self._held:
            self._held.append(line)
        elif self._is_pending(line):
            self._announce()
            while line != f"== {self._announced}":
                self._announce()
        elif self._announced and line.startswith(f"== {self._announced}: "):
            pass
        elif waits and _HEADING.match(line):
            self._held, self._held_until = [line], time.monotonic() + HEADING_TIMEOUT_S
        else:
            log.guest(line)

    def _show(self, event: Event) -> None:
        """Shows an event as a progress line or a warning."""
        if event.name == "step" and event.text("status") == "running":
            heading = f"step {event.number('n')} of {event.number('of')}: {event.text('kind')} {event.text('name')}"
            self._pending.append((heading, time.monotonic() + HEADING_TIMEOUT_S))
        elif event.name == "snapshot":
            log.warn(f"the snapshot of root is {event.number('percent')} % full")
        elif event.name == "kept" and event.text("status") in KEPT:
            log.info(f"{KEPT[event.text('status')]}: {event.text('reason')[:MAX_REASON]}")
        elif event.name == "grown" and event.text("reason"):
            log.warn(f"the disk is larger, and not all of it is in use: {event.text('reason')[:MAX_REASON]}")
        elif event.name == "died":
            log.warn(f"the boot before this one ended early: {event.text('reason')[:MAX_REASON]}")
        elif (
            event.name == "fallback"
            and self.shows_fallback
            and (not self._digest or event.text("wanted") in (self._digest, ""))
        ):
            log.warn("the manifest failed: the box falls back to its last good manifest")
        else:
            log.detail(f"guest: {event.name}")
