"""Copies what a sealed guest sends on its ports to files of limited size. It is a program of its own, beside QEMU.

A character device of QEMU writes to a file without a limit, so that a guest could fill the disk of its host. So QEMU
writes to pipes, and this program copies them at a limited rate. It ends when QEMU has ended and the pipes are empty.

    python -I -S recorder.py LIMIT DESCRIPTOR:FILE...

DESCRIPTOR is the end of a pipe for reading. The program appends to FILE, until that has LIMIT bytes, and discards what
follows. It imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import sys
import time

#: A guest that sends more than this has to wait: bytes at once, and bytes a second after that.
BURST_BYTES = 4 << 20
RATE_BYTES_S = 1 << 20

#: Maximum size of one read, which is the default size of a pipe.
READ_BYTES = 64 << 10


class Output:
    """A file of limited size at the end of a pipe."""

    def __init__(self, source: int, path: str, limit_bytes: int) -> None:
        self.source = source
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._target = os.open(path, flags, 0o600)
        self._room_bytes = limit_bytes - os.fstat(self._target).st_size

    def copy(self) -> int:
        """Copies what is in the pipe, at most READ_BYTES. Returns the number of bytes; 0 at the end of the pipe.

        If the disk of the host is full, the bytes are discarded, as QEMU does it: the guest must not wait for the host.
        """
        data = os.read(self.source, READ_BYTES)
        kept = data[: max(0, self._room_bytes)]
        with contextlib.suppress(OSError):
            while kept:
                written = os.write(self._target, kept)
                self._room_bytes -= written
                kept = kept[written:]
        return len(data)


class Allowance:
    """The bytes that may be copied now: BURST_BYTES at most, and RATE_BYTES_S more each second."""

    def __init__(self, now_s: float) -> None:
        self._bytes = float(BURST_BYTES)
        self._at_s = now_s

    def wait_s(self, count: int, now_s: float) -> float:
        """Takes `count` bytes. Returns the seconds until the next bytes may be copied."""
        self._bytes = min(BURST_BYTES, self._bytes + (now_s - self._at_s) * RATE_BYTES_S) - count
        self._at_s = now_s
        return max(0.0, -self._bytes / RATE_BYTES_S)


def record(outputs: list[Output]) -> None:
    """Copies until each pipe is at its end. The pipes take turns, so that a flood in one does not stop the others."""
    allowance = Allowance(time.monotonic())
    with selectors.DefaultSelector() as selector:
        for output in outputs:
            selector.register(output.source, selectors.EVENT_READ, output)
        while selector.get_map():
            count = 0
            for key, _ in selector.select():
                copied = key.data.copy()
                count += copied
                if not copied:
                    selector.unregister(key.fileobj)
            time.sleep(allowance.wait_s(count, time.monotonic()))


def main(arguments: list[str]) -> None:
    """Runs the program with its arguments."""
    limit_bytes = int(arguments[0])
    pairs = (argument.partition(":") for argument in arguments[1:])
    record([Output(int(descriptor), path, limit_bytes) for descriptor, _, path in pairs])


if __name__ == "__main__":
    main(sys.argv[1:])
