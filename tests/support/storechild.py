"""A kimbox in a process of its own, for the tests of the store. It builds the tiny image, and can kill itself.

    storechild.py POINT BUILDS KIMBOXES

POINT is a key of POINTS or any other word. Each build adds a line to the file BUILDS. A build does not finish before
KIMBOXES processes have requested the image.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tinyimage

from kimbox.errors import KimboxError
from kimbox.image import namespace, obtain
from kimbox.image.build import disk, rootfs
from kimbox.image.store import images

#: Timeout of the wait for the other processes.
BOUND_S = 20.0


def die() -> None:
    """Kills this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def dying_before(real: Callable[..., Any]) -> Callable[..., Any]:
    """Replaces a function: kills the process before the first call."""
    return lambda *_, **__: die()


def dying_after(real: Callable[..., Any], calls: int = 1) -> Callable[..., Any]:
    """Replaces a function: kills the process at the end of the given call, counted from 1."""
    done = 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal done
        value = real(*args, **options)
        done += 1
        return die() if done == calls else value

    return wrapped


#: The points at which a build can be killed: module, function, and its replacement.
POINTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "before the packages": (rootfs, "build", dying_before),
    "after the packages": (rootfs, "build", dying_after),
    "after the split": (namespace, "call", lambda real: dying_after(real, 2)),
    "in the first file system": (disk, "_make_ext4", dying_before),
    "after the first file system": (disk, "_make_ext4", dying_after),
    "after the disk": (disk, "assemble", dying_after),
    "before the facts": (images, "write_json", dying_before),
    "after the facts": (images, "write_json", dying_after),
    "in the store": (images, "failed_log", dying_before),
}


def noting(builds: Path, kimboxes: int) -> Callable[..., Path]:
    """Returns a replacement of rootfs.build that records the call, and waits for the other processes."""

    def build(*args: Any, **options: Any) -> Path:
        with builds.open("a") as file:
            file.write("built\n")
        end = time.monotonic() + BOUND_S
        while len(list(builds.parent.glob("asking-*"))) < kimboxes and time.monotonic() < end:
            time.sleep(0.01)
        return tinyimage.fill(*args, **options)

    return build


def main(point: str, builds: Path, kimboxes: int) -> None:
    """Obtains the image once and prints its key."""
    rootfs.build = noting(builds, kimboxes)  # type: ignore[assignment]
    if point in POINTS:
        module, name, change = POINTS[point]
        setattr(module, name, change(getattr(module, name)))
    (builds.parent / f"asking-{os.getpid()}").touch()
    try:
        print(obtain.ensure(tinyimage.tiny_box(builds.parent), tinyimage.LOCKED).key)
    except KimboxError as error:
        sys.exit(f"{type(error).__name__}: {error.message} ({error.hint})")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
