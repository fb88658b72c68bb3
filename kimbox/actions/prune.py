"""Removing what nothing needs any more: images of the store that no machine was made from, and leftovers."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.errors import KimboxError, StateError
from kimbox.files import locked, remove_tree
from kimbox.image.store import images, names
from kimbox.lock.git.mirror import sweep_mirrors
from kimbox.machine.folder import machines


@attrs.frozen
class Unused:
    """Something on disk that may be removed, and the space it takes."""

    path: Path
    size_bytes: int


def unused(*, packages: bool = False) -> list[Unused]:
    """Images that no machine was made from and no added box means, and logs of builds that failed. Takes no lock.

    With `packages` also the cache of packages and the lists of the archives, which are fetched again when needed.

    Raises StateError if a machine's record cannot be read: nothing says which image it needs then.
    """
    used = used_images()
    found = [images.folder(key) for key in images.stored() if key not in used]
    found += paths.images_dir().glob("*.failed.log")
    if packages:
        found += [folder for folder in (paths.packages_dir(), paths.archives_dir()) if folder.is_dir()]
    return [Unused(path, _size_bytes(path)) for path in sorted(found)]


def used_images() -> set[str]:
    """The keys of the images that machines were made from, and that added boxes mean. Raises StateError as `unused`."""
    used = {box.image for box in names.every()}
    for machine in machines():
        try:
            used.add(machine.record().image)
        except KimboxError as error:
            hint = f"`kimbox destroy {machine.name}` removes it"
            raise StateError(f"nothing is removed while a box is damaged: {error}", hint=hint) from None
    return used


def _size_bytes(path: Path) -> int:
    """The space that a file, or all files in a folder, take. Files that another process removes count as 0."""
    files = [path] if path.is_file() else [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    size_bytes = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            size_bytes += file.lstat().st_blocks * 512
    return size_bytes


def remove(items: list[Unused]) -> list[Unused]:
    """Removes what `unused` found, and returns what of it was removed.

    An image stays if a process is using or making it, or if a machine or an added box needs it by now. Lock files stay,
    empty as they are: processes that wait for a lock have its file open.
    """
    gone = [item for item in items if _remove(item.path)]
    images.sweep()
    sweep_mirrors()
    return gone


def _remove(path: Path) -> bool:
    """Removes one thing. True if it was removed as a whole."""
    if path.is_file():
        path.unlink(missing_ok=True)
        return True
    if path.parent == paths.images_dir():
        return images.remove(path.name, is_unused=lambda: path.name not in used_images())
    return path.is_dir() and _empty(path)


def _empty(folder: Path) -> bool:
    """Empties a cache: each .deb before its control fields; lists only if no process uses them. True if all is gone."""
    if folder == paths.packages_dir():
        for suffix in (".deb", ".control"):
            for file in folder.glob(f"*/*{suffix}"):
                file.unlink(missing_ok=True)
        return True
    for archive in folder.iterdir():
        with contextlib.suppress(StateError), locked(archive / "lock"):
            remove_tree(archive)
    return not any(folder.iterdir())
