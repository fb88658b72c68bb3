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
from typing import IO, Protocol

#: Signals that end kimbox while it waits for an attached program.
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

#: Timeout until an attached program and its output have ended after what it runs was ended, in seconds.
END_S = 10.0

#: Interval of checks for a signal while something else is awaited, in seconds.
_POLL_S = 0.1

#: Timeout of a wait for the next signal while an attached program runs, in seconds.
_QUIET_S = 3600.0

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


class Program(Protocol):
    """A process that kimbox has started, as `subprocess.Popen`."""

    returncode: int

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def send_signal(self, number: int, /) -> None: ...


def wait(program: Program, ending: set[int], on_signal: Callable[[int], bool] | None) -> int:
    """Waits for an attached program, as `run.attached` describes it. Returns the signal that ended it, or 0.

    SIGCHLD and the signals in `ending` are blocked.
    """
    received = 0
    while program.poll() is None:
        info = signal.sigtimedwait({*ending, signal.SIGCHLD}, END_S if received else _QUIET_S)
        if info is None and received:
            program.kill()
        elif info is None or info.si_signo not in ending:
            continue
        elif on_signal is None and info.si_signo != signal.SIGINT:
            received = info.si_signo
            program.send_signal(received)
        elif on_signal:
            is_second, received = bool(received), info.si_signo
            if is_second or not _ends_elsewhere(on_signal, received, ending):
                program.kill()
    if not received and on_signal and was_ended(program.returncode) and (info := signal.sigtimedwait(ending, 0)):
        received = info.si_signo  # the whole process group got it, and ssh was faster
        _ends_elsewhere(on_signal, received, ending)
    return received


def _ends_elsewhere(on_signal: Callable[[int], bool], received: int, ending: set[int]) -> bool:
    """Whether `on_signal` ended what the program runs elsewhere. At another signal the answer is no, at once."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(on_signal(received)), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        if thread.is_alive() and signal.sigtimedwait(ending, 0):
            return False
    return any(answers)


def was_ended(code: int) -> bool:
    """Whether an exit code says that ssh itself was ended, or its session."""
    return code < 0 or code == 255


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
        """Waits until all output is copied; after a signal only for END_S, or until the next one. Returns it, or 0.

        The shared ssh connection keeps the output of a command open until the guest has answered. A guest that hangs
        never does. `ending`: signals, which are blocked. `received`: one that has arrived before, or 0.
        """
        deadline = time.monotonic() + END_S
        while self._thread.is_alive() and (not received or time.monotonic() < deadline):
            self._thread.join(_POLL_S)
            if info := signal.sigtimedwait(ending, 0):
                if received:
                    break
                received, deadline = info.si_signo, time.monotonic() + END_S
        return received
