"""The standard streams of kimbox, and the signals that end it, while another program uses its terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

#: Signals that end kimbox while it waits for an attached program.
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

#: Timeout until an attached program and its output have ended after what it runs was ended, in seconds.
END_S = 10.0

#: Interval of checks for a signal while output is copied, in seconds.
_POLL_S = 0.1

#: Size of a read, in bytes.
_PIECE_BYTES = 1 << 16


@contextlib.contextmanager
def signals_blocked() -> Iterator[set[int]]:
    """Blocks, in this thread, SIGCHLD and the signals that end kimbox. Returns those that are not ignored (nohup)."""
    ending = {number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*ending, signal.SIGCHLD})
    try:
        yield set(ending)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_file(fd: int) -> bool:
    """Whether a file descriptor is a file or a device, where writing may fail, and neither a terminal nor /dev/null."""
    try:
        status = os.fstat(fd)
    except OSError:  # closed
        return False
    if stat.S_ISCHR(status.st_mode):
        return not os.isatty(fd) and status.st_rdev != Path(os.devnull).stat().st_rdev
    return stat.S_ISREG(status.st_mode)


class Copy:
    """Copies the output of a program to stdout, in a thread. ssh(1) reports no error if it cannot write."""

    def __init__(self, source: IO[bytes], on_error: Callable[[], None]) -> None:
        self._source = source
        self._on_error = on_error
        #: Why stdout could not be written; None if it could.
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)  # kimbox may end before it
        self._thread.start()

    def _run(self) -> None:
        try:
            while piece := os.read(self._source.fileno(), _PIECE_BYTES):
                while piece:
                    piece = piece[os.write(1, piece) :]
        except OSError as error:
            self.error = error
            self._on_error()
            self._source.close()

    def end(self, ending: set[int], received: int) -> int:
        """Waits until all output is copied, after a signal only for END_S. Returns the signal, or 0.

        The shared ssh connection keeps the output of a command open until the guest has answered. A guest that hangs
        never does. `ending`: signals, which are blocked. `received`: one that has arrived before, or 0.
        """
        deadline = time.monotonic() + END_S
        while self._thread.is_alive() and (not received or time.monotonic() < deadline):
            self._thread.join(_POLL_S)
            if not received and (info := signal.sigtimedwait(ending, 0)):
                received, deadline = info.si_signo, time.monotonic() + END_S
        return received
