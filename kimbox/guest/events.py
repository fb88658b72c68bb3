"""Events that a guest sends on its virtio-serial port. QEMU writes them to a file on the host, which is read here.

They are untrusted input: a guest may be broken or hostile. Whatever it sends, there is no exception, memory is bounded,
and no control sequence reaches a terminal. A line that is not an event (schemas/events.schema.json) is ignored.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kimbox.log import printable as printable  # readers of other texts of a guest import it from here

#: Maximum length of a line, in bytes. A longer line is ignored, and not kept in memory.
MAX_LINE_BYTES = 64 << 10

#: Maximum number of bytes that a call of `Tail.read` reads. The next call reads on.
MAX_READ_BYTES = 4 << 20

#: Maximum number of fields of an event.
MAX_FIELDS = 32

#: Number of bytes at the start of the file that are compared, to detect that it was truncated and has grown again.
HEAD_BYTES = 256

#: Start of the heading of a step in the log of provisioning (provision.sh): `== step 2 of 5: provision NAME`. After
#: the output of a step that failed, the heading is repeated, with `: REASON`.
HEADING = "== step "

_NAME = re.compile(r"[a-z_]{1,32}")
_BOOT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_INT = 1 << 53


@dataclass(frozen=True, slots=True)
class Event:
    """An event. `boot` is the id of the guest's boot (or empty); `uptime_s` is the time since its kernel started."""

    name: str
    boot: str
    uptime_s: float
    fields: dict[str, str | int]

    def text(self, key: str) -> str:
        """A field as text; empty if the field is missing."""
        return str(self.fields.get(key, ""))

    def number(self, key: str) -> int | None:
        """A field as a number; None if it is missing or not a number."""
        value = self.fields.get(key)
        return value if isinstance(value, int) else None


def parse_object(raw: bytes) -> dict[str, Any] | None:
    """Parses a line of a guest as a JSON object. None if it is not one, or longer than MAX_LINE_BYTES."""
    if len(raw) > MAX_LINE_BYTES:
        return None
    try:
        value = json.loads(raw.decode("utf-8", "replace"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def parse_line(raw: bytes) -> Event | None:
    """Parses a line as an event. None if it is not one."""
    value = parse_object(raw)
    if value is None:
        return None
    name, boot, uptime = value.pop("event", None), value.pop("boot", ""), value.pop("uptime_s", None)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        return None
    if not (isinstance(boot, str) and (boot == "" or _BOOT.fullmatch(boot))):
        return None
    uptime_s = _seconds(uptime)
    if uptime_s is None or len(value) > MAX_FIELDS:
        return None
    fields = {key: _field(item) for key, item in value.items()}
    if not all(_NAME.fullmatch(key) for key in fields) or None in fields.values():
        return None
    return Event(name, boot, uptime_s, {key: item for key, item in fields.items() if item is not None})


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_INT:
        return None
    return float(value) if math.isfinite(value) else None


def _field(value: Any) -> str | int | None:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_INT:
        return value
    return None


class Tail:
    """Reads the events that were appended to a file since the last call. The file may be truncated or replaced."""

    def __init__(self, path: Path, *, offset: int = 0) -> None:
        self.path = path
        #: Number of bytes of the file that have been read.
        self.offset = offset
        self._rest = b""
        self._skipping = False
        self._head = b""
        self._inode: tuple[int, int] | None = None

    def read(self, limit_bytes: int = MAX_READ_BYTES) -> list[Event]:
        """The events in the complete new lines. Reads at most `limit_bytes`. Empty if the file is missing."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return []
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return []
            if self._was_replaced(handle):
                self.offset, self._rest, self._skipping = 0, b"", False
            self._head = os.pread(handle, HEAD_BYTES, 0)
            return self._parse(os.pread(handle, limit_bytes, self.offset))
        finally:
            os.close(handle)

    def _was_replaced(self, handle: int) -> bool:
        """Whether the file is shorter than the offset, has another start, or is another file than at the last call."""
        info = os.fstat(handle)
        before, self._inode = self._inode, (info.st_dev, info.st_ino)
        if info.st_size < self.offset or (before is not None and before != self._inode):
            return True
        return os.pread(handle, len(self._head), 0) != self._head

    def _parse(self, data: bytes) -> list[Event]:
        """The events in the complete lines of `data`. The start of an incomplete line is kept for the next call."""
        self.offset += len(data)
        *lines, rest = (self._rest + data).split(b"\n")
        if lines and self._skipping:
            lines, self._skipping = lines[1:], False
        if len(rest) > MAX_LINE_BYTES:
            rest, self._skipping = b"", True
        elif self._skipping:
            rest = b""
        self._rest = rest
        return [event for line in lines if line.strip() and (event := parse_line(line))]


def lines_of_step(log: str, kind: str, name: str) -> list[str]:
    """The lines that the last attempt of a step wrote to the log of provisioning, without its headings.

    The log also has the lines of other steps and of earlier attempts. `log` may be the end of it, without the heading.
    """
    lines, title = log.splitlines(), f": {kind} {name}"
    headings = [index for index, line in enumerate(lines) if line.startswith(HEADING)]
    if begun := [index for index in headings if lines[index].endswith(title)]:
        start = begun[-1]
        end = next((index for index in headings if index > start), len(lines))
    else:
        end = max((index for index in headings if f"{title}: " in lines[index]), default=len(lines))
        start = max((index for index in headings if index < end), default=-1)
    return lines[start + 1 : end]
