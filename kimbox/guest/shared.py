"""ssh(1) on the user's terminal. All commands to a box share a connection, so that only the first needs a handshake.

The connection is a ControlMaster (ssh_config(5)). Its socket is in the folder of the box's key, which only the user can
enter. The connection ends when the box stops, or when no command has used it for `PERSIST_S` seconds. ssh runs in that
folder and gets a relative path, because the path of a socket must be short (unix(7)).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kimbox.errors import KimboxError
from kimbox.filelocks import NO_LOCKS
from kimbox.guest import remote
from kimbox.guest.endpoint import Endpoint, ssh_command
from kimbox.run import attached, detach, run
from kimbox.streams import signals_blocked

#: Name of the shared connection's socket, in the folder of the box's key.
SOCKET = "ssh.sock"

#: How long an unused shared connection stays open, in seconds. What sshd sets at login, such as the user's groups, does
#: not change for commands that share it.
PERSIST_S = 60

#: Interval of ssh's keep-alive messages, in seconds: a guest that restarted rejects them, and the connection ends. The
#: count is high, because a guest may be suspended or slow for a long time.
_ALIVE = {"ServerAliveInterval": "15", "ServerAliveCountMax": "1000"}

#: Timeout of the shared connection's answer, in seconds.
_ANSWER_S = 5.0

#: Exit code of ssh(1) after a failed connection. A command in the guest may also exit with it.
SSH_FAILED = 255

#: Timeout of a login that shows whether the guest still answers, in seconds.
_LOGIN_S = 10

#: Interval of checks of the socket, in seconds.
_POLL_S = 0.05

#: Timeout until a new shared connection listens, and of a command that the guest answers at once, in seconds.
_START_S = 60.0


def shell(endpoint: Endpoint, words: Sequence[str] = ()) -> int:
    """Runs ssh with a shell, or with the command in `words`, on kimbox's own stdin, stdout and stderr.

    Returns its exit code. If `words` starts with an option of ssh, ssh gets its own connection: a forwarded port, for
    example, must end with this ssh.
    """
    if words and words[0].startswith("-"):
        return attached(ssh_command(endpoint, options=words))
    folder = endpoint.key_path.parent
    with _opened(folder) as handle, _sharing(handle) as settings:
        return attached(ssh_command(endpoint, options=words, settings=settings, cwd=folder), cwd=folder)


def execute(endpoint: Endpoint, command: Sequence[str], *, terminal: bool = False, no_input: bool = False) -> int:
    """Runs a command in the guest on kimbox's own stdin, stdout and stderr. Returns its exit code.

    A command killed by signal N returns 128 + N. A signal that ends kimbox ends the command and what it started.
    `terminal`: the command gets a terminal. `no_input`: its stdin is empty. Raises OSError (`filename` is `stdout`) if
    stdout cannot be written.
    """
    folder = endpoint.key_path.parent
    marked = remote.marked(command)
    with _opened(folder) as handle, _sharing(handle) as settings:
        return attached(
            ssh_command(endpoint, command=marked.text, terminal=terminal, settings=settings, cwd=folder),
            cwd=folder,
            no_input=no_input,
            on_signal=lambda number: _end(endpoint, marked.ended_by(number)),
        )


def succeeds(endpoint: Endpoint, command: str) -> bool:
    """Whether a command (shell text) ends with 0 in the guest. Its output is discarded.

    Raises CommandError (`timeout`) if it does not end within _START_S.
    """
    folder = endpoint.key_path.parent
    with _opened(folder) as handle, _sharing(handle) as settings:
        argv = ssh_command(endpoint, command=command, settings=settings, cwd=folder)
        return run(argv, check=False, cwd=folder, discards=True, timeout_s=_START_S).ok


@contextlib.contextmanager
def sharing(endpoint: Endpoint) -> Iterator[dict[str, str]]:
    """ssh settings for programs that run ssh themselves in the folder of the box's key: they share the connection."""
    with _opened(endpoint.key_path.parent) as handle, _sharing(handle) as settings:
        yield settings


def open_early(endpoint: Endpoint) -> None:
    """Starts to open the shared connection, so that the first command need not wait for the handshake. Does not wait.

    Does nothing if there is one, if another process opens it, or if no socket can be created. The connection is that of
    other commands: it ends after PERSIST_S seconds without a command, or when the box stops. A handshake that takes
    longer than _START_S is ended.
    """
    _begin(endpoint, _START_S)


def opens(endpoint: Endpoint, timeout_s: float) -> bool | None:
    """Opens the shared connection as `open_early`, and waits, for `timeout_s` seconds at most, which must not be 0.

    Returns whether it opened; None if it does nothing.
    """
    code_of = _begin(endpoint, timeout_s)
    if code_of is None:
        return None
    while (code := code_of()) is None:
        time.sleep(_POLL_S)
    return code == 0


def _begin(endpoint: Endpoint, timeout_s: float) -> Callable[[], int | None] | None:
    """Starts what `open_early` describes. It ends after `timeout_s` seconds without a login (0: never).

    Returns a function that returns its exit code; None if it does nothing.
    """
    folder = endpoint.key_path.parent
    with _opened(folder) as handle:
        if _answers(handle) or not _lock(handle):
            return None
        _unlink(handle)
        if not _can_bind(handle):
            return None
        settings = {"ControlPath": SOCKET, "ControlMaster": "yes", "ControlPersist": str(PERSIST_S), **_ALIVE}
        argv = ssh_command(endpoint, options=["-N"], settings=settings, cwd=folder)
        # timeout(1) inherits the locked folder, and ends when ssh has logged in and continues in the background. ssh
        # itself closes all files that it inherits.
        return detach(["timeout", f"{timeout_s:g}", *argv], log=Path(os.devnull), pass_fds=[handle], cwd=folder)


def _end(endpoint: Endpoint, command: str) -> bool:
    """Runs a command that ends another command in the guest. Returns whether that was found.

    If the other command has reached the limit of processes, the shared connection cannot start one more.
    """
    for path, timeout_s in ((SOCKET, remote.END_TIMEOUT_S), ("none", remote.END_AFTER_LOGIN_TIMEOUT_S)):
        with contextlib.suppress(KimboxError, OSError):
            code = _run(endpoint, command, path, timeout_s)
            if code in (remote.ENDED, remote.NOT_FOUND):
                return code == remote.ENDED
    return False


def answers(endpoint: Endpoint) -> bool:
    """Whether a login works now, over a connection of its own."""
    options = ["-oBatchMode=yes", f"-oConnectTimeout={_LOGIN_S}", f"-oServerAliveInterval={_LOGIN_S}"]
    folder = endpoint.key_path.parent
    argv = ssh_command(endpoint, command="true", options=options, cwd=folder)
    return run(argv, check=False, cwd=folder, discards=True).code != SSH_FAILED


def can_start(endpoint: Endpoint) -> bool:
    """Whether the shared connection can start a program. It cannot after its programs reach the limit of processes."""
    with contextlib.suppress(KimboxError):
        return _run(endpoint, "exec true", SOCKET, _START_S) == 0
    return False


def _run(endpoint: Endpoint, command: str, socket_path: str, timeout_s: float) -> int:
    """Runs a command in an existing shared connection, or in one of its own. Returns its exit code."""
    folder = endpoint.key_path.parent
    settings = {"ControlPath": socket_path, "ControlMaster": "no"}
    argv = ssh_command(endpoint, command=command, settings=settings, cwd=folder)
    return run(argv, check=False, cwd=folder, discards=True, timeout_s=timeout_s).code


@contextlib.contextmanager
def _sharing(folder: int) -> Iterator[dict[str, str]]:
    """ssh settings to use the shared connection of a folder, or to become its master.

    If there is no shared connection, the process that gets the lock becomes the master, because ssh prints an error if
    there are two masters. Others wait until it listens: a handshake of each would take longer, and many at the same
    time are more than an emulated guest answers within its login timeout. If no socket can be created (the disk is
    full, for example), every ssh gets its own connection.
    """
    if not _becomes_master(folder):
        yield {"ControlPath": SOCKET, "ControlMaster": "no"}
        return
    _unlink(folder)
    if not _can_bind(folder):
        yield {"ControlPath": "none"}
        return
    ssh_ended = threading.Event()
    release = threading.Thread(target=_release, args=(folder, ssh_ended))
    with signals_blocked():  # the thread inherits this: signals are for the thread that waits for ssh
        release.start()
    try:
        yield {"ControlPath": SOCKET, "ControlMaster": "auto", "ControlPersist": str(PERSIST_S), **_ALIVE}
    finally:
        ssh_ended.set()
        release.join()


def _becomes_master(folder: int) -> bool:
    """Locks a folder without a shared connection. False if there is one, or if none listens after _START_S."""
    deadline = time.monotonic() + _START_S
    while not _answers(folder):
        if _lock(folder):
            if not _answers(folder):
                return True
            fcntl.flock(folder, fcntl.LOCK_UN)  # another process became the master before the lock was acquired
            return False
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return False


def _release(folder: int, ssh_ended: threading.Event) -> None:
    """Releases the lock of a folder when the new shared connection listens, its ssh ended, or _START_S have passed.

    The timeout is necessary: the connection may have been retired between two checks, while its ssh runs for hours.
    """
    deadline = time.monotonic() + _START_S
    while not ssh_ended.wait(_POLL_S) and not _answers(folder) and time.monotonic() < deadline:
        pass
    fcntl.flock(folder, fcntl.LOCK_UN)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A file descriptor of a folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(folder: int) -> bool:
    """Locks a folder, so that no other process creates or removes its socket. False if another process has the lock."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError) or error.errno in NO_LOCKS:  # each ssh has its own connection then
            return False
        raise
    return True


def _socket_path(folder: int, name: str = SOCKET) -> str:
    """A short path of a socket in an open folder (unix(7) limits the length)."""
    return f"/proc/self/fd/{folder}/{name}"


def _answers(folder: int) -> bool:
    """Whether a process listens at the socket of the shared connection."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_S)
        # EAGAIN: so many connections wait at the socket that its queue is full
        return probe.connect_ex(_socket_path(folder)) in (0, errno.EAGAIN)


def _can_bind(folder: int) -> bool:
    """Whether a socket can be created in a folder. ssh exits with an error if it cannot."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.bind(_socket_path(folder, f"{SOCKET}.probe"))
        os.unlink(f"{SOCKET}.probe", dir_fd=folder)
        return True
    return False


def _unlink(folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET, dir_fd=folder)


def close(folder: Path) -> None:
    """Ends the shared connection and all commands that use it. Does nothing if there is none."""
    _control(folder, "exit")


def retire(folder: Path) -> None:
    """Makes the shared connection accept no new command. It ends when the last command that uses it ends."""
    _control(folder, "stop")


def _control(folder: Path, command: str) -> None:
    """Sends a control command (`ssh -O`) after which the master removes its socket, and waits until it is removed."""
    if not (folder / SOCKET).is_socket():
        return
    with _opened(folder) as handle:
        old = _socket_id(handle)
        with contextlib.suppress(KimboxError):
            argv = ["ssh", "-F", "none", f"-oControlPath={SOCKET}", "-O", command, "box"]
            if run(argv, check=False, cwd=folder, timeout_s=_ANSWER_S).ok:
                _wait_until_removed(handle, old)
        if _lock(handle) and not _answers(handle):  # the socket of a dead process
            _unlink(handle)


def _socket_id(folder: int) -> tuple[int, int] | None:
    """Identifies the socket: a later socket of the same name has another id. None if there is no socket."""
    try:
        info = os.stat(SOCKET, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return info.st_ino, info.st_mtime_ns


def _wait_until_removed(folder: int, old: tuple[int, int] | None) -> None:
    """Waits until the socket `old` is removed. ssh answers before that; a command that joined then would be cut off."""
    deadline = time.monotonic() + _ANSWER_S
    while old is not None and _socket_id(folder) == old and time.monotonic() < deadline:
        time.sleep(_POLL_S)
