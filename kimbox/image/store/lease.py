"""Leases on images and templates. A process that uses an image holds a shared lease, one that removes it the exclusive
lease. What follows is true for templates, too.

A process needs the lease until the record of a machine or of an added box refers to the image. `prune` reads these
records, and keeps the images that they refer to.

A lease is a flock(2) on images/<key>.lease. The kernel releases it when the process ends, also after SIGKILL. Programs
that the process starts do not inherit it. The empty file is kept, because processes that wait for it have it open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from kimbox import paths
from kimbox.errors import StateError
from kimbox.filelocks import flock

#: Maximum time to wait for a process that removes the image, in seconds. That process reads the record of every machine
#: and renames one folder.
WAIT_S = 30.0

#: Kinds of what has a lease -> function that returns the folder of its store.
IMAGE, TEMPLATE = "image", "template"
FOLDERS = {IMAGE: paths.images_dir, TEMPLATE: paths.templates_dir}

#: Time between two attempts to get a lease, in seconds.
POLL_S = 0.01


@contextlib.contextmanager
def shared(key: str, kind: str = IMAGE) -> Iterator[None]:
    """Keeps an image in the store while the block runs. The image need not exist yet. `kind`: what has the key.

    Several processes may hold a shared lease at the same time. Raises StateError (`busy`, field `use`: `removing`) if
    another process holds the exclusive lease for longer than WAIT_S.
    """
    with _held(key, kind, fcntl.LOCK_SH, wait_s=WAIT_S, other_use="removing"):
        yield


@contextlib.contextmanager
def exclusive(key: str, kind: str = IMAGE) -> Iterator[None]:
    """Prevents every other process from using an image while the block runs. `kind`: what has the key.

    Raises StateError (`busy`, field `use`: `using`) immediately if another process uses or removes the image.
    """
    with _held(key, kind, fcntl.LOCK_EX, wait_s=0, other_use="using"):
        yield


@contextlib.contextmanager
def _held(key: str, kind: str, operation: int, *, wait_s: float, other_use: str) -> Iterator[None]:
    """Holds the lease on an image. `other_use` is what another process does with the image if the lease is busy."""
    path = FOLDERS[kind]() / f"{key}.lease"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _lock(handle, path, operation, wait_s=wait_s, other_use=f"{other_use} the {kind}")
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # a fork that has not called exec yet still has the file open
    finally:
        os.close(handle)


def _lock(handle: int, path: Path, operation: int, *, wait_s: float, other_use: str) -> None:
    """Acquires the lock within `wait_s` seconds, or raises StateError (`busy`)."""
    end = time.monotonic() + wait_s
    while True:
        try:
            return flock(handle, operation, path)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise StateError(
                    f"another kimbox process is {other_use} {path.stem[:12]}",
                    code="busy",
                    hint="wait until it ends, then run the same command again",
                    fields={path.parent.name.removesuffix("s"): path.stem, "use": other_use.split()[0]},
                ) from None
        time.sleep(POLL_S)
