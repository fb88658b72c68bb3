"""The image store: one folder for each image, named by its key. The store has an image completely or not at all.

images/<key>/disk.raw      the disk (or disk.qcow2), sparse, read-only
images/<key>/image.json    facts about the image: format, sizes, origin
images/<key>/packages.json the locked packages, if kimbox built the image
images/<key>/changes.json  the changes to the former image, if a maintainer made the image
images/<key>/build.log     the log of the build, if kimbox built the image
images/<key>.lease         locked by processes that use the image, or by the process that removes it: see `lease`
images/<key>.lock          locked by the process that creates the image
images/<key>.failed.log    the log of the last build, if it failed
images/.tmp-<key>/         an image that is being created, readable only by this user; see `sweep`
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
from kimbox.files import is_locked, locked, ran_out_of_space, read_json, space_error, sync_folder, write_json
from kimbox.image import namespace
from kimbox.image.store import dates, digest, lease

#: Names of the files with facts, with the locked packages of a built image, and with the changes of a maintained image.
FACTS = dates.FACTS
PACKAGES = dates.PACKAGES
CHANGES = "changes.json"

#: Folder with the small files of an added box.
BOX_FOLDER = dates.BOX_FOLDER

#: Maximum number of images in a chain of maintained images.
MAX_CHAIN = dates.MAX_CHAIN

#: Fact with the digest of the disk at the time when the image was stored, as `digest.disk_digest` returns it.
DIGEST = "disk_digest"

#: File name of the disk for each format, as QEMU names formats.
DISKS = {"raw": "disk.raw", "qcow2": "disk.qcow2"}

#: Prefix of the names of workspaces, and the subfolder of a workspace that becomes the image.
TEMPORARY = ".tmp-"
DONE = "done"

#: Prefix of the folders of images that are removed from the store and whose files are being deleted.
GONE = f"{TEMPORARY}gone-"

#: Maximum time to wait for another process that creates the same image, in seconds.
BUILD_WAIT_S = 3600.0

#: Hint of errors about a full file system.
ROOM_HINT = "free some space, or set KIMBOX_HOME to a folder on a larger disk; then run the same command again"


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
        """The size of the disk as the guest sees it, in bytes; an overlay must not be smaller."""
        return int(self.facts.get("virtual_bytes", 0))


def folder(key: str) -> Path:
    """The folder of an image, whether it exists or not."""
    return paths.images_dir() / key


def failed_log(key: str) -> Path:
    """The path of the log of the last build of an image. The file exists if that build failed."""
    return paths.images_dir() / f"{key}.failed.log"


def find(key: str) -> Image | None:
    """The image with that key, or None if it is not in the store. Raises ImageError (`image-damaged`)."""
    place = folder(key)
    if not place.exists():
        return None
    try:
        facts = read_json(place / FACTS)
        kind = facts.get("format")
        if kind not in DISKS or facts.get("key") != key:
            raise KimboxError(f"{FACTS} describes another image", code="file-damaged")
        (place / DISKS[kind]).stat()
    except (OSError, KimboxError) as error:
        raise _damaged(key, str(error)) from None
    return Image(key, place / DISKS[kind], kind, facts)


def kept_file(image: Image, name: str) -> bytes | None:
    """A small file of the box that contained the image, or None if the box had no file of that name."""
    path = image.disk.parent / BOX_FOLDER / name
    return path.read_bytes() if path.is_file() else None


def check(image: Image, *, on_bytes: Callable[[int], None] = lambda _: None) -> bool:
    """Compares the disk of an image with its digest. Returns False if an older kimbox stored it without a digest.

    Raises ImageError (`image-damaged`). `on_bytes` as for `digest.disk_digest`.
    """
    expected = image.facts.get(DIGEST)
    if expected is None:
        return False
    try:
        if digest.disk_digest(image.disk, on_bytes=on_bytes) == expected:
            return True
    except OSError as error:
        raise _damaged(image.key, f"its disk cannot be read: {error.strerror}") from None
    raise _damaged(image.key, "its disk has changed since kimbox stored it")


def _damaged(key: str, problem: str) -> ImageError:
    place = folder(key)
    return ImageError(
        f"the image {key[:12]} in the store is damaged: {problem}",
        code="image-damaged",
        hint=f"destroy the boxes that use it (`kimbox destroy NAME`), then remove the folder {place}",
        fields={"image": key, "path": str(place)},
    )


def stored() -> list[str]:
    """The keys of all images in the store, in order."""
    places = paths.images_dir().glob("*")
    return sorted(p.name for p in places if not p.name.startswith(TEMPORARY) and (p / FACTS).is_file())


@contextlib.contextmanager
def workspace(name: str, *, busy: str) -> Iterator[Path]:
    """An empty folder in the store, readable only by this user. It is removed at the end of the block.

    Only one process at a time has the workspace `name`. Another process waits up to BUILD_WAIT_S, then raises
    StateError (`busy`) with the message `busy`. `sweep` removes the workspace of a process that was killed.
    """
    work = paths.images_dir() / f"{TEMPORARY}{name}"
    with locked(_lock_file(name), wait_s=BUILD_WAIT_S, busy=busy):
        namespace.remove(work)
        work.mkdir(mode=0o700)  # its files may contain the passwords of proxies and mirrors
        try:
            yield work
        finally:
            namespace.remove(work)


def publish(key: str, fill: Callable[[Path], dict[str, Any]]) -> Image:
    """Creates an image in the store, unless another process created it meanwhile. Returns the image.

    `fill` gets a workspace. It writes the disk, synced, to the subfolder DONE under a name of DISKS. It returns the
    facts of the image, which include `format`. The image appears in the store completely or not at all. What killed
    processes left in the store is removed first.

    A caller that uses the image afterwards holds a shared lease.

    Raises ImageError: `no-space`; `image-not-found` if another program removes the image at once. Raises StateError
    (`busy`) as `workspace` does. The errors of `fill` pass.
    """
    sweep()
    try:
        with workspace(key, busy="another kimbox process is creating this image") as work:
            if image := find(key):
                return image
            (work / DONE).mkdir()
            _move_in(key, work / DONE, fill(work))
            image = find(key)
    except (OSError, KimboxError) as error:
        if not ran_out_of_space(error) or {"log", "free_bytes"} & getattr(error, "fields", {}).keys():
            raise
        raise no_space() from None
    if not image:
        raise ImageError(
            f"the image {key[:12]} was created, but another program removed it from the store",
            code="image-not-found",
            hint="run the same command again",
            fields={"image": key},
        )
    return image


def no_space() -> ImageError:
    """The error for a store whose file system is full, after the workspace was removed."""
    error = space_error(paths.images_dir(), "the image")
    return ImageError(error.message, code=error.code, hint=error.hint, fields=error.fields)


def _move_in(key: str, done: Path, facts: dict[str, Any]) -> None:
    """Renames a finished folder to that of the image `key`."""
    disk = done / DISKS[facts["format"]]
    write_json(done / FACTS, facts | {"kimbox": __version__, "key": key, DIGEST: digest.disk_digest(disk)})
    disk.chmod(0o444)
    sync_folder(done)
    done.rename(folder(key))
    sync_folder(paths.images_dir())
    failed_log(key).unlink(missing_ok=True)


def remove(key: str, *, is_unused: Callable[[], bool]) -> bool:
    """Removes an image from the store. Returns False, and removes nothing, if the image is in use or does not exist.

    `is_unused` returns whether the image may be removed. While it runs, no other process can start to use the image.
    """
    removed_folder = paths.images_dir() / f"{GONE}{key}"
    with contextlib.ExitStack() as locks:
        try:
            locks.enter_context(lease.exclusive(key))
            locks.enter_context(locked(_lock_file(key)))
        except StateError:
            return False
        if not folder(key).is_dir() or not is_unused():
            return False
        namespace.remove(removed_folder)  # an earlier removal was interrupted
        folder(key).rename(removed_folder)
    namespace.remove(removed_folder)
    return True


def remains() -> list[Path]:
    """The folders that `sweep` deletes, in order."""
    found = sorted(paths.images_dir().glob(f"{TEMPORARY}*"))
    return [path for path in found if path.name.startswith(GONE) or not is_locked(_lock_of(path))]


def sweep() -> None:
    """Deletes folders that killed processes left: workspaces that no process has locked, and removed images."""
    for leftover in paths.images_dir().glob(f"{TEMPORARY}*"):
        if leftover.name.startswith(GONE):
            namespace.remove(leftover)
            continue
        with contextlib.suppress(StateError), locked(_lock_of(leftover)):
            namespace.remove(leftover)


def _lock_of(work: Path) -> Path:
    """The lock file of a workspace."""
    return _lock_file(work.name.removeprefix(TEMPORARY))


def _lock_file(name: str) -> Path:
    """The lock file of the image or workspace `name`, locked while a process works on it."""
    return paths.images_dir() / f"{name}.lock"
