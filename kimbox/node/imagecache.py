"""The images that a node keeps, so that each one travels once: files by digest in one folder, with a bound.

An image in use is locked (shared). Images that were not used for the longest time are removed first, if the folder
becomes too large.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from kimbox.errors import ImageError, StateError
from kimbox.files import CHUNK_BYTES, need_space, remove_tree

#: The variable with the folder, which an administrator may set for all jobs (STARTER_JOB_ENVIRONMENT of HTCondor).
FOLDER_VARIABLE = "KIMBOX_NODE_CACHE"

#: Time without data after which a download fails, in seconds.
SILENCE_S = 120.0

#: Schemes of URLs that the runner reads.
SCHEMES = ("http://", "https://", "file:///")


def folder() -> Path:
    """Returns the folder of this user on this node, and makes it. Raises StateError if it is not private."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    place = Path(chosen or "/var/tmp") / f"kimbox-node-{os.geteuid()}"  # noqa: S108 - checked below
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = place.lstat()
    if place.is_symlink() or info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise StateError(
            f"{place} is a symbolic link, or other users can write to it",
            code="folder-not-private",
            hint=f"remove it, or set {FOLDER_VARIABLE} to another folder",
            fields={"path": str(place)},
        )
    return place


@contextlib.contextmanager
def leased(cache: Path, sha256: str, size_bytes: int, url: str, limit_bytes: int) -> Iterator[Path]:
    """Yields the image with that digest; it stays in the cache during the block. It is downloaded if it is missing.

    Raises ImageError (`download-failed`, `bad-digest`), and KimboxError (`no-space`).
    """
    path = cache / f"{sha256}.qcow2"
    with (cache / ".lock").open("a") as lock:  # one download at a time: jobs that start together have the same image
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _make_room(cache, limit_bytes - size_bytes)
            _download(url, sha256, size_bytes, path)
        os.utime(path)
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        yield path
    finally:
        os.close(handle)


def _make_room(cache: Path, limit_bytes: int) -> None:
    """Removes what a killed download left, and the oldest images that no job uses, until the rest has `limit_bytes`."""
    for left in cache.glob(".new-*"):
        remove_tree(left)
    images = sorted(cache.glob("*.qcow2"), key=lambda path: path.stat().st_mtime)
    total_bytes = sum(path.stat().st_size for path in images)
    for path in images:
        if total_bytes <= limit_bytes:
            return
        with path.open("rb") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            total_bytes -= path.stat().st_size
            path.unlink()


def _download(url: str, sha256: str, size_bytes: int, target: Path) -> None:
    """Downloads an image. It gets its name when its size and digest are right."""
    if not url.startswith(SCHEMES):
        raise ImageError(f"the image is at {url[:200]}, and only http, https and file are read", code="download-failed")
    need_space(target.parent, size_bytes, "the image")
    digest, count = hashlib.sha256(), 0
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as work:
        new = Path(work) / target.name
        try:
            with urllib.request.urlopen(url, timeout=SILENCE_S) as source, new.open("xb") as file:  # noqa: S310
                while count <= size_bytes and (data := source.read(CHUNK_BYTES)):
                    count += len(data)
                    digest.update(data)
                    file.write(data)
        except OSError as error:
            raise ImageError(f"{url} cannot be downloaded: {error}", code="download-failed") from None
        if count != size_bytes or digest.hexdigest() != sha256:
            raise ImageError(
                f"{url} is not the image of the job: it has another digest than {sha256}", code="bad-digest"
            )
        new.chmod(0o400)
        new.rename(target)
