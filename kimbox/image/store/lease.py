"""Leases on images: a process that uses an image holds a shared lease, one that removes it the exclusive lease.

A lease on an image is needed until a machine's record or the name of an added box refers to the image: `prune` reads
those, and keeps what they refer to.

A lease is a flock(2) on images/<key>.lease. The kernel releases it when the process ends, even by kill -9; programs
that the process starts do not inherit it. The empty file stays, because processes that wait for it have it open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from kimbox import paths
from kimbox.errors import StateError

#: Maximum wait for a process that removes the image: it reads the record of every machine and renames one folder.
WAIT_S = 30.0

#: Between two attempts to get a lease.
POLL_S = 0.01


@contextlib.contextmanager
def shared(key: str) -> Iterator[None]:
    """Keeps an image in the store while the block runs. The image may also be one that is about to be made.

    Any number of processes may hold it at the same time. Raises StateError if the image is being removed for longer
    than WAIT_S.
    """
    with _held(key, fcntl.LOCK_SH, wait_s=WAIT_S, busy=f"another kimbox is removing the image {key[:12]}"):
        yield


@contextlib.contextmanager
def exclusive(key: str) -> Iterator[None]:
    """Keeps every other process from using an image while the block runs. Raises StateError at once if one uses it."""
    with _held(key, fcntl.LOCK_EX, wait_s=0, busy=f"another kimbox is using the image {key[:12]}"):
        yield


@contextlib.contextmanager
def _held(key: str, operation: int, *, wait_s: float, busy: str) -> Iterator[None]:
    path = paths.images_dir() / f"{key}.lease"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        _lock(handle, operation, wait_s=wait_s, busy=busy)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough while a fork of this process has not called exec
    finally:
        os.close(handle)


def _lock(handle: int, operation: int, *, wait_s: float, busy: str) -> None:
    """Takes the lock within `wait_s` seconds, or raises StateError with `busy`."""
    end = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(handle, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise StateError(busy, hint="wait until it has finished, then run the same command again") from None
        time.sleep(POLL_S)
