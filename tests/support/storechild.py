"""A kimbox of its own for the tests of the store: makes the tiny image, and dies on the way if it is told to.

    storechild.py POINT BUILDS KIMBOXES

Notes each build with a line in BUILDS, and does not finish one before so many KIMBOXES have asked for it.
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

#: Waiting for the others.
BOUND_S = 20.0


def die() -> None:
    """As kill -9 does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def dying_before(real: Callable[..., Any]) -> Callable[..., Any]:
    """Never does what it should."""
    return lambda *_, **__: die()


def dying_after(real: Callable[..., Any], calls: int = 1) -> Callable[..., Any]:
    """Does it, and dies at the end of that many calls."""
    done = 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal done
        value = real(*args, **options)
        done += 1
        return die() if done == calls else value

    return wrapped


#: Where a build may be cut: what is replaced, and by what.
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
    """The tiny root, with a note, once the others are here."""

    def build(*args: Any, **options: Any) -> Path:
        with builds.open("a") as file:
            file.write("built\n")
        end = time.monotonic() + BOUND_S
        while len(list(builds.parent.glob("asking-*"))) < kimboxes and time.monotonic() < end:
            time.sleep(0.01)
        return tinyimage.fill(*args, **options)

    return build


def main(point: str, builds: Path, kimboxes: int) -> None:
    """One `ensure`."""
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
