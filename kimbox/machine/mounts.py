"""The folders of the host that a machine shares: whether they exist, and whether they are served."""

from __future__ import annotations

import shlex
from pathlib import Path

from kimbox.errors import StateError
from kimbox.filelocks import is_locked
from kimbox.machine.folder import Machine
from kimbox.spec.model import Mount


def lock_file(machine: Machine, number: int) -> Path:
    """Returns the file that is locked as long as the folder of that number is served."""
    return machine.folder / f"mount{number}.lock"


def is_served(machine: Machine, number: int) -> bool:
    """Whether the folder of that number in the record is served."""
    return is_locked(lock_file(machine, number))


def check(name: str, mounts: tuple[Mount, ...]) -> None:
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
