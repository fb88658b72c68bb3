"""The folder of downloads, complete and in progress.

downloads/<sha256>.part       a file whose digest is known, which becomes an image of the store
downloads/url-<id>.part       a file whose digest is not known before it is complete; <id> is made from its URL
downloads/catalog-<pid>.part  a catalog of boxes, while a process reads it

A process that works on NAME.part holds the lock images/NAME.lock, which is also the lock of the image <sha256>.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from kimbox import paths
from kimbox.errors import KimboxError, StateError
from kimbox.files import is_locked, locked, read_json
from kimbox.transfer import http

#: An unfinished download is removed if nothing was added to it for this time, in seconds.
PARTIAL_KEPT_S = 14 * 86400

#: Maximum time to wait for another process that downloads the same URL, in seconds.
WAIT_S = 3600.0


def folder() -> Path:
    """The folder of downloads, which only this user can enter: a download may need a password. Creates it."""
    path = paths.downloads_dir()
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def part_of_key(key: str) -> Path:
    """The download of the file with this digest, as hex digits."""
    return paths.downloads_dir() / f"{key}.part"


def part_of_url(url: str) -> Path:
    """The download of a URL (without user name and password) whose digest is not known."""
    return paths.downloads_dir() / f"url-{http.identity(url)}.part"


def lock_file(part: Path) -> Path:
    """The lock file of a download."""
    return paths.images_dir() / f"{part.stem}.lock"


@contextlib.contextmanager
def for_url(url: str) -> Iterator[Path]:
    """The download of a URL, for this process alone while the block runs. Raises StateError (`busy`) after WAIT_S."""
    part = part_of_url(url)
    with locked(lock_file(part), wait_s=WAIT_S, busy="another kimbox process downloads the same URL"):
        folder()
        yield part


def adopt(url: str, key: str) -> Path:
    """The download of the file with this digest. It continues a download of the URL whose digest was not known."""
    folder()
    part, from_url = part_of_key(key), part_of_url(url)
    if from_url.exists() and not part.exists():
        with contextlib.suppress(FileNotFoundError, StateError), locked(lock_file(from_url)):
            http.state_file(from_url).replace(http.state_file(part))
            from_url.replace(part)
    return part


def finished(url: str, key: str) -> None:
    """Removes the downloads of a file that is in the store, for example of one that was downloaded a second time."""
    for part in (part_of_key(key), part_of_url(url)):
        if part.exists():
            remove(part)


def unused() -> list[Path]:
    """The downloads that no process works on, sorted by name."""
    found = paths.downloads_dir().glob("*.part")
    return sorted(part for part in found if part.is_file() and not is_locked(lock_file(part)))


def location(part: Path) -> str | None:
    """The public part of the URL of a download, or None if it is not known."""
    try:
        value = read_json(http.state_file(part)).get("location")
    except (OSError, KimboxError):
        return None
    return value if isinstance(value, str) else None


def remove(part: Path) -> bool:
    """Removes a download, unless a process works on it. Returns whether it was removed."""
    try:
        with locked(lock_file(part)):
            http.discard(part)
    except StateError:
        return False
    return True


def sweep() -> None:
    """Removes downloads that are unchanged for PARTIAL_KEPT_S, unless a process works on them."""
    for part in unused():
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > PARTIAL_KEPT_S:
                remove(part)
