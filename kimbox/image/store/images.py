"""The image store: one folder for each image, named by its key. An image is there completely or not at all.

images/<key>/disk.raw      the disk (or disk.qcow2), sparse, never written again
images/<key>/image.json    what it is
images/<key>/build.log     how it was made, if it was made here
images/<key>.lease         locked by the processes that use the image, or by the one that removes it: see `lease`
images/<key>.lock          locked by the process that makes the image
images/<key>.failed.log    the log of the last build, if that failed
images/.tmp-<key>/         an image that is being made, readable by this user alone; see `sweep`
images/.tmp-gone-<key>/    an image that is being removed
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from kimbox import __version__, paths
from kimbox.errors import ImageError, KimboxError, StateError
from kimbox.files import is_full, locked, read_json, sync_folder, write_json
from kimbox.image import namespace
from kimbox.image.store import lease

FACTS = "image.json"

#: File name of the disk for each format, as QEMU names formats.
DISKS = {"raw": "disk.raw", "qcow2": "disk.qcow2"}

#: Prefix of the folders that work is done in, and the subfolder that becomes the image.
TEMPORARY = ".tmp-"
DONE = "done"

#: Prefix of images that were taken out of the store, and whose files are being removed.
GONE = f"{TEMPORARY}gone-"

#: Maximum wait for another process that makes the same image.
BUILD_WAIT_S = 3600.0

#: Hint of errors about a full file system.
ROOM_HINT = "make room, or let $KIMBOX_HOME name a folder on a larger disk; then run the same command again"


@attrs.frozen
class Image:
    """An image that is ready to use."""

    key: str
    disk: Path
    #: `raw` or `qcow2`, as QEMU names it.
    format: str
    facts: dict[str, Any]

    @property
    def virtual_bytes(self) -> int:
        """The size of the disk that a guest sees; no overlay may be smaller."""
        return int(self.facts.get("virtual_bytes", 0))


def folder(key: str) -> Path:
    """The folder of an image, whether it exists or not."""
    return paths.images_dir() / key


def failed_log(key: str) -> Path:
    """The log of the last build of an image, if that build failed."""
    return paths.images_dir() / f"{key}.failed.log"


def find(key: str) -> Image | None:
    """The image with that key, or None if the store does not have it. Raises ImageError if it is damaged."""
    place = folder(key)
    if not place.exists():
        return None
    try:
        facts = read_json(place / FACTS)
        kind = facts.get("format")
        if kind not in DISKS or facts.get("key") != key:
            raise KimboxError(f"{FACTS} does not describe this image")
        (place / DISKS[kind]).stat()
    except (OSError, KimboxError) as error:
        raise ImageError(
            f"the image {key[:12]} in the store is damaged: {error}",
            hint=f"destroy the boxes made from it, then remove the folder {place}",
        ) from None
    return Image(key, place / DISKS[kind], kind, facts)


def stored() -> list[str]:
    """The keys of all images in the store, in order."""
    places = paths.images_dir().glob("*")
    return sorted(p.name for p in places if not p.name.startswith(TEMPORARY) and (p / FACTS).is_file())


@contextlib.contextmanager
def workspace(name: str, *, busy: str) -> Iterator[Path]:
    """An empty folder in the store for work on an image, readable by this user alone; removed at the end of the block.

    One process at a time has the workspace `name`. Another waits for it, up to BUILD_WAIT_S, then raises StateError
    with the message `busy`. `sweep` removes the folder of a process that was killed.
    """
    work = paths.images_dir() / f"{TEMPORARY}{name}"
    with locked(_lock_file(name), wait_s=BUILD_WAIT_S, busy=busy):
        namespace.remove(work)
        work.mkdir(mode=0o700)  # files in it may hold the passwords of proxies and mirrors
        try:
            yield work
        finally:
            namespace.remove(work)


def publish(key: str, fill: Callable[[Path], dict[str, Any]]) -> Image:
    """Makes an image and puts it into the store, unless another process has done so meanwhile. Returns the image.

    `fill` gets a workspace. It puts the finished disk, synced, into the subfolder DONE under a name of DISKS, and
    returns the image's facts, `format` among them. The image appears in the store completely or not at all.

    The caller holds a shared lease if it uses the image afterwards. Raises ImageError if the file system is full.
    """
    try:
        with workspace(key, busy="another kimbox is making this image") as work:
            if found := find(key):
                return found
            (work / DONE).mkdir()
            _move_in(key, work / DONE, fill(work))
            made = find(key)
    except OSError as error:
        if not is_full(error):
            raise
        raise no_space() from None
    if not made:
        raise ImageError("the image was made and is not in the store", hint="was it removed by another program?")
    return made


def no_space() -> ImageError:
    """The error of a store whose file system is full."""
    return ImageError(f"no space is left for the image in {paths.images_dir()}", hint=ROOM_HINT)


def _move_in(key: str, done: Path, facts: dict[str, Any]) -> None:
    """Makes a finished folder the image `key`, in one rename."""
    write_json(done / FACTS, facts | {"kimbox": __version__, "key": key})
    (done / DISKS[facts["format"]]).chmod(0o444)
    sync_folder(done)
    done.rename(folder(key))
    sync_folder(paths.images_dir())
    failed_log(key).unlink(missing_ok=True)


def remove(key: str, *, is_unused: Callable[[], bool]) -> bool:
    """Removes an image from the store. Returns False, and removes nothing, if it is in use or not there.

    `is_unused` is called while no other process can begin to use the image, and returns whether it may be removed.
    """
    gone = paths.images_dir() / f"{GONE}{key}"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lease.exclusive(key))
            held.enter_context(locked(_lock_file(key)))
        except StateError:
            return False
        if not folder(key).is_dir() or not is_unused():
            return False
        namespace.remove(gone)  # of a removal that was interrupted
        folder(key).rename(gone)
    namespace.remove(gone)
    return True


def sweep() -> None:
    """Removes the folders that killed processes left: workspaces that no process has locked, and removed images."""
    for left in paths.images_dir().glob(f"{TEMPORARY}*"):
        if left.name.startswith(GONE):
            namespace.remove(left)
            continue
        with contextlib.suppress(StateError), locked(_lock_file(left.name.removeprefix(TEMPORARY))):
            namespace.remove(left)


def _lock_file(name: str) -> Path:
    """The file that is locked while the image, or the workspace, `name` is being made."""
    return paths.images_dir() / f"{name}.lock"
