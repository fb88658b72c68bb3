"""Locks on files, with flock(2). The kernel releases a lock when the process that holds it ends, also after SIGKILL."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from kimbox.errors import KimboxError, StateError

#: Minimum time to try to acquire a lock, in seconds. `is_locked` holds a lock for a moment, which must not count.
LOCK_PATIENCE_S = 0.2

#: Permissions of a lock file. Another user who can open it could hold its lock forever.
MODE = 0o600

#: Interval between two attempts to acquire a lock, in seconds.
_POLL_S = 0.05

#: Errors of flock(2) on a file system without locks: Lustre without `-o flock`, NFS without lockd, some FUSE drivers.
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float = 0, busy: str = "another kimbox process uses it") -> Iterator[None]:
    """Holds an exclusive lock on the file `path`, which is created if necessary. The kernel releases it if kimbox dies.

    Waits up to `wait_s` seconds (negative: without a limit), then raises StateError (`busy`) with the message `busy`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + max(wait_s, LOCK_PATIENCE_S)
    while (handle := _locked_handle(path)) is None:
        if wait_s >= 0 and time.monotonic() > deadline:
            hint = "wait until it ends; `kimbox status` shows what runs"
            raise StateError(busy, code="busy", hint=hint, fields={"path": str(path)})
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # a fork that has not called exec yet still has the file open
        os.close(handle)


def _locked_handle(path: Path) -> int | None:
    """A file descriptor that holds the lock of `path`; None if another process holds it, or has just removed the file.

    Raises KimboxError (`no-file-locks`).
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, MODE)
    try:
        if os.fstat(handle).st_mode & 0o077:  # an older kimbox created it
            with contextlib.suppress(OSError):
                os.fchmod(handle, MODE)
        flock(handle, fcntl.LOCK_EX, path)
        if os.fstat(handle).st_nlink:
            return handle
    except BlockingIOError:
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def flock(handle: int, operation: int, path: Path) -> None:
    """Acquires a lock (flock(2)) of the open file or folder `path` without waiting. BlockingIOError: it is not free.

    Raises KimboxError (`no-file-locks`) if the file system has no locks.
    """
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise KimboxError(
            f"the file system of {path.parent} has no file locks (flock: {error.strerror}), and kimbox needs them",
            code="no-file-locks",
            hint="set KIMBOX_HOME to a folder on a file system with locks, such as a local disk; "
            "for files outside of it, use another folder",
            fields={"path": str(path)},
        ) from None


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock (flock(2)) of `path`. Holds a shared lock itself for a moment."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        flock(handle, fcntl.LOCK_SH, path)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
