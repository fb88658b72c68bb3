"""The folders of the host that a machine shares: whether they exist, and whether they are served."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import attrs

from kimbox import paths
from kimbox.errors import KimboxError, StateError
from kimbox.files import is_locked, locked, read_json, write_json
from kimbox.machine.folder import LOCK_WAIT_S, Machine, machines
from kimbox.spec.model import Mount

#: Name of a file in the home of kimbox.
SHARED = "shared-folders.json"


def lock_file(machine: Machine, number: int) -> Path:
    """Returns the file that is locked as long as the folder of that number is served."""
    return machine.folder / f"mount{number}.lock"


def is_served(machine: Machine, number: int) -> bool:
    """Whether the folder of that number in the record is served."""
    return is_locked(lock_file(machine, number))


def check_folders(name: str, mounts: tuple[Mount, ...]) -> None:
    """Raises StateError (`mount-folder-missing`) if a folder does not exist. `name` is the machine."""
    for mount in mounts:
        if not mount.location.is_dir():
            is_there = mount.location.exists()
            command = f"`mkdir -p {shlex.quote(str(mount.location))}` creates it"
            raise StateError(
                f"cannot start {name}: {mount.location} of this host, which the box has at {mount.mount_point}, "
                + ("is not a folder" if is_there else "does not exist"),
                code="mount-folder-missing",
                hint="change `mounts` in the spec" if is_there else command,
                fields={"name": name, "path": str(mount.location)},
            )


def real_folder(name: str, mount: Mount, sources: Iterable[Path] = ()) -> Path:
    """Returns the real path of a folder that the machine `name` shares. `sources`: the files of the spec, if it is new.

    Raises StateError (`mount-unsafe`) if a guest can have chosen the folder: a file of the spec, or the path of the
    folder, leads through a folder that a guest could change, and the real path leads out of that. A guest can write a
    spec with other mounts, and replace a folder by a symbolic link.
    """
    real = _real(mount.location)
    for changeable in _changeable():
        ways = (way for path in (mount.location, *sources) for way in path.parents)
        if not real.is_relative_to(changeable) and any(_real(way).is_relative_to(changeable) for way in ways):
            raise StateError(
                f"{name} does not get {real} of this host: a guest could have chosen it, because a guest can change "
                f"{changeable}",
                code="mount-unsafe",
                hint=f"check {shlex.quote(str(mount.location))} and the spec, which can get new folders where no guest "
                "can change it, or by `--set`",
                fields={"name": name, "path": str(real), "changeable": str(changeable)},
            )
    return real


@attrs.frozen
class Shared:
    """What guests were given so far: the content of shared-folders.json. It outlives the machines.

    Otherwise a guest could write a spec, or replace a folder by a link, and wait until its machine is created again.
    """

    #: The real paths of the folders that a guest could change, as long as they exist.
    writable: frozenset[str] = frozenset()
    #: The path of a spec -> the real paths of all folders that its machines got.
    given: Mapping[str, frozenset[str]] = {}

    @classmethod
    def read(cls) -> Self:
        """Raises KimboxError (`file-damaged`)."""
        path = paths.home() / SHARED
        try:
            value = read_json(path)
            given = {str(source): frozenset(map(str, folders)) for source, folders in value["given"].items()}
            return cls(frozenset(map(str, value["writable"])), given)
        except FileNotFoundError:
            return cls()
        except (KeyError, TypeError, AttributeError):
            raise KimboxError(
                f"{path} is damaged",
                code="file-damaged",
                hint="check `mounts` in your specs, then remove the file",
                fields={"path": str(path)},
            ) from None

    def has_given(self, source: Path, mount: Mount) -> bool:
        """Whether a machine of a spec has had a folder."""
        return str(_real(mount.location)) in self.given.get(str(source), ())


def remember(source: Path, mounts: tuple[Mount, ...]) -> None:
    """Notes the folders that a machine of a spec gets now. Raises StateError (`busy`), KimboxError (`file-damaged`)."""
    if not mounts:
        return
    path = paths.home() / SHARED
    with locked(path.with_suffix(".lock"), wait_s=LOCK_WAIT_S, busy="another kimbox process notes shared folders"):
        before = Shared.read()
        given = before.given.get(str(source), frozenset()) | {str(_real(mount.location)) for mount in mounts}
        writable = before.writable | {str(_real(mount.location)) for mount in mounts if mount.writable}
        now = Shared(writable, {**before.given, str(source): given})
        if now != before:
            there = sorted(folder for folder in writable if Path(folder).is_dir())
            known = {name: sorted(folders) for name, folders in now.given.items()}
            write_json(path, {"format": 1, "writable": there, "given": known}, mode=0o600)


def _changeable() -> set[Path]:
    """The real paths of the folders that guests can change, or could change before."""
    found = {Path(folder) for folder in Shared.read().writable}
    for machine in machines():
        with contextlib.suppress(KimboxError, OSError):
            found |= {_real(mount.location) for mount in machine.record().mounts if mount.writable}
    return found


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
