"""ssh(1) on the user's terminal. What goes to one box shares a connection, so that only the first pays the handshake.

The connection is a ControlMaster of ssh_config(5). It lies in the folder of the box's key, which is its user's alone,
and ends when nobody has used it for `PERSIST_S` seconds, or with the box. ssh runs in that folder and names the socket
from there: the path of a socket must be short.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kimbox.errors import KimboxError
from kimbox.guest.endpoint import Endpoint, ssh_command
from kimbox.run import attached, run

#: Where the shared connection listens, in the folder of the box's key.
SOCKET = "ssh.sock"

#: How long it stays when nobody uses it. What a login settles, the user's groups say, is settled for all that share it.
PERSIST_S = 60

#: The guest is asked so often whether it is still there: one that restarted says no. It may stand still for long.
_ALIVE = {"ServerAliveInterval": "15", "ServerAliveCountMax": "1000"}

#: It answers at once, or not at all.
_ANSWER_S = 5.0

#: So often it is looked whether the connection is there, until it is.
_LOOK_S = 0.05

#: A shared connection is there within this time, or will not come.
_COMES_S = 60.0


def on_terminal(
    endpoint: Endpoint, *, command: str | None = None, words: Sequence[str] = (), terminal: bool = False
) -> int:
    """Runs ssh on kimbox's own stdin, stdout and stderr; returns its exit status.

    That is a shell, `command` (shell text), or what `words` says: options of ssh, a command of its own. With options
    it has a connection to itself: a forwarded port, say, ends with it.
    """
    if words and words[0].startswith("-"):
        return attached(ssh_command(endpoint, options=words))
    folder = endpoint.key_path.parent
    with _opened(folder) as handle, _sharing(handle) as settings:
        argv = ssh_command(endpoint, command=command, options=words, terminal=terminal, settings=settings)
        return attached(argv, cwd=folder)


@contextlib.contextmanager
def _sharing(folder: int) -> Iterator[dict[str, str]]:
    """What ssh must be told to use the shared connection, or to become it.

    Of those that find none, one becomes it, and the others do without: two that tried would complain. Where no socket
    can be made, on a disk that is full say, each has a connection to itself.
    """
    join = {"ControlPath": SOCKET, "ControlMaster": "no"}
    if _answers(folder) or not _take(folder):
        yield join
        return
    if _answers(folder):  # another has just become it
        fcntl.flock(folder, fcntl.LOCK_UN)
        yield join
        return
    _unlink(folder)
    if not _holds_sockets(folder):
        yield {"ControlPath": "none"}
        return
    over = threading.Event()
    release = threading.Thread(target=_release, args=(folder, over))
    release.start()
    try:
        yield {"ControlPath": SOCKET, "ControlMaster": "auto", "ControlPersist": str(PERSIST_S), **_ALIVE}
    finally:
        over.set()
        release.join()


def _release(folder: int, over: threading.Event) -> None:
    """Lets others at the place of the shared connection, once it is there or will not come.

    It may have come and been retired between two looks, while its ssh goes on for hours: hence the limit.
    """
    deadline = time.monotonic() + _COMES_S
    while not over.wait(_LOOK_S) and not _answers(folder) and time.monotonic() < deadline:
        pass
    fcntl.flock(folder, fcntl.LOCK_UN)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _take(folder: int) -> bool:
    """Whether the place of the shared connection is ours now: others leave it alone until the lock is released."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _place(folder: int, name: str = SOCKET) -> str:
    """The path of a socket in an open folder: it must be short (unix(7))."""
    return f"/proc/self/fd/{folder}/{name}"


def _answers(folder: int) -> bool:
    """Whether somebody listens at the shared connection's socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_S)
        return probe.connect_ex(_place(folder)) == 0


def _holds_sockets(folder: int) -> bool:
    """Whether a socket can be made in a folder. ssh ends where it cannot."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.bind(_place(folder, f"{SOCKET}.probe"))
        os.unlink(f"{SOCKET}.probe", dir_fd=folder)
        return True
    return False


def _unlink(folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET, dir_fd=folder)


def close(folder: Path) -> None:
    """Ends the shared connection, and all that uses it. It is safe to close one that is not there."""
    _tell(folder, "exit")


def retire(folder: Path) -> None:
    """Takes nobody any more into the shared connection; it ends with the last that uses it."""
    _tell(folder, "stop")


def _tell(folder: Path, word: str) -> None:
    """Has the shared connection do something that makes it give up its socket, and waits until it has."""
    if not (folder / SOCKET).is_socket():
        return
    with _opened(folder) as handle:
        told = _which(handle)
        with contextlib.suppress(KimboxError):
            argv = ["ssh", "-F", "none", f"-oControlPath={SOCKET}", "-O", word, "box"]
            if run(argv, check=False, cwd=folder, timeout_s=_ANSWER_S).ok:
                _await_gone(handle, told)
        if _take(handle) and not _answers(handle):  # it is dead
            _unlink(handle)


def _which(folder: int) -> tuple[int, int] | None:
    """Tells the shared connection's socket from another that comes after it; None where there is none."""
    try:
        found = os.stat(SOCKET, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _await_gone(folder: int, told: tuple[int, int] | None) -> None:
    """ssh says yes first, and then ends: who came between would be taken in, and cut off."""
    deadline = time.monotonic() + _ANSWER_S
    while told is not None and _which(folder) == told and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
