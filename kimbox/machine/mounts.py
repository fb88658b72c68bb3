"""The folders of the host that a machine shares: whether they exist, and whether they are served."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from kimbox.errors import KimboxError, StateError
from kimbox.filelocks import is_locked
from kimbox.machine.folder import Machine, machines
from kimbox.spec.model import Mount


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
    folder, leads through a folder that a guest could change at the last boot of its machine, and the real path leads
    out of that. A guest can write a spec with other mounts, and replace a folder by a symbolic link.
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


def _changeable() -> set[Path]:
    """The real paths of the folders that guests could change at the last boot of each machine."""
    found: set[Path] = set()
    for machine in machines():
        with contextlib.suppress(KimboxError, OSError):
            found |= {_real(mount.location) for mount in machine.record().mounts if mount.writable}
    return found


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
