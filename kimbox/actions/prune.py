"""Removing what nothing uses any more: images of the store that no machine was made from, and leftovers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.errors import KimboxError, StateError
from kimbox.files import locked, remove_tree
from kimbox.image import namespace
from kimbox.image.store import names
from kimbox.image.store.images import FACTS, TEMPORARY
from kimbox.lock.git.mirror import sweep_mirrors
from kimbox.machine import ports
from kimbox.machine.folder import machines

#: Prefix of images that were taken out of the store.
GONE = f"{TEMPORARY}gone-"


@attrs.frozen
class Unused:
    """Something on disk that may go, and the space it takes."""

    path: Path
    size_bytes: int


def unused(*, packages: bool = False) -> list[Unused]:
    """Images that no machine was made from and no added box means, and logs of builds that failed. Takes no lock.

    With `packages` also the cache of packages and the lists of the archives, which are fetched again when needed.

    Raises StateError if a machine's record cannot be read: its image cannot be told then.
    """
    images = paths.images_dir()
    used = set()
    for machine in machines():
        try:
            used.add(machine.record().image)
        except KimboxError as error:
            hint = f"`kimbox destroy {machine.name}` removes it"
            raise StateError(f"nothing is removed while a box is damaged: {error}", hint=hint) from None
    used |= {box.image for box in names.every()}
    found = [folder for folder in images.glob("*") if (folder / FACTS).is_file() and folder.name not in used]
    found = [folder for folder in found if not folder.name.startswith(TEMPORARY)]
    found += images.glob("*.failed.log")
    if packages:
        found += [folder for folder in (paths.packages_dir(), paths.archives_dir()) if folder.is_dir()]
    return [Unused(path, _size_bytes(path)) for path in sorted(found)]


def _size_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


def remove(items: list[Unused]) -> list[Unused]:
    """Removes what `unused` found, and returns what of it went.

    An image stays that is being made again, or that a machine has been made from meanwhile: machines are made under
    the lock that is held here. Files of locks stay, empty as they are: whoever waits for one holds it open.
    """
    with ports.allotting():
        still = {item.path for item in unused(packages=True)}
        gone = [item for item in items if item.path in still and _take(item.path)]
    with contextlib.suppress(FileNotFoundError):
        for left in paths.images_dir().glob(f"{GONE}*"):
            namespace.remove(left)
    sweep_mirrors()
    return gone


def _take(path: Path) -> bool:
    """Takes something out of the store in one step; True if it is gone."""
    if path.is_file():
        path.unlink(missing_ok=True)
        return True
    if path.parent != paths.images_dir():
        return _empty(path)
    with contextlib.suppress(StateError, FileNotFoundError), locked(path.with_name(f"{path.name}.lock"), wait_s=0):
        path.rename(path.with_name(f"{GONE}{path.name}"))
        return True
    return False


def _empty(folder: Path) -> bool:
    """Removes a cache: a .deb before its control fields; lists only where nobody asks them. True if all went."""
    if folder == paths.packages_dir():
        for suffix in (".deb", ".control"):
            for file in folder.glob(f"*/*{suffix}"):
                file.unlink(missing_ok=True)
        return True
    for archive in folder.iterdir():
        with contextlib.suppress(StateError), locked(archive / "lock"):
            remove_tree(archive)
    return not any(folder.iterdir())
