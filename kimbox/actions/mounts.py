"""Mounts and unmounts the folders of the host in a guest that runs.

The memory of a guest with their devices cannot be saved. So `suspend` and `snapshot save` release them before, and
renew them afterwards.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from kimbox.drivers import registry
from kimbox.drivers.base import MountDriver
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.guest.events import printable
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.machine.mounts import Shared, real_folder, remember
from kimbox.machine.record import Purpose, Record
from kimbox.run import tail
from kimbox.spec.model import Box, Mount

#: The program in the guest.
MOUNTS = "/usr/lib/kimbox/mounts"

#: Timeout of the program, in seconds.
TIMEOUT_S = 60.0


def of_start(machine: Machine, record: Record, box: Box, *, is_job: bool) -> tuple[Mount, ...]:
    """Returns the folders that a guest gets when it boots: those of the spec if it is the machine in which users work.

    `record`: that of the last boot. Warns of what is new and outside of the spec's folder.
    Raises StateError if the box is sealed, the driver cannot share folders, or a guest can have chosen one.
    """
    if is_job or record.purpose is not Purpose.BOX or not box.mounts:
        return ()
    if record.sealed and not machine.unseal_mark.exists():
        raise StateError(
            f"cannot start {machine.name}: it is sealed, and its spec now has `mounts`",
            code="box-sealed",
            hint="remove `mounts` from the spec: a sealed box shares no folder with its host",
            fields={"name": machine.name, "verb": "start"},
        )
    registry.need_mounts(machine)
    shared, is_by_user = Shared.read(), any(text.startswith("mounts") for text in box.settings)
    for mount in box.mounts:
        is_new = mount not in record.mounts and not is_by_user and not shared.has_given(box.source, mount)
        real = real_folder(machine.name, mount, box.layers if is_new else ())
        if is_new:
            _warn_of(machine, mount, real, box)
    remember(box.source, box.mounts)
    return box.mounts


def _warn_of(machine: Machine, mount: Mount, real: Path, box: Box) -> None:
    """Warns of a folder outside of the spec's own: whoever wrote the spec could name any of this user's."""
    if not real.is_relative_to(os.path.realpath(box.source.parent)):
        access = "read and change" if mount.writable else "read"
        log.warn(f"{machine.name} can {access} the folder {real} of this host, which is not below that of its spec")


@contextlib.contextmanager
def released(machine: Machine, *, renews: bool) -> Iterator[None]:
    """Unmounts the folders and takes their devices away for the duration of the block, in a guest that runs.

    They come back after the block if `renews`, and in any case after a failure. Raises GuestError (`mount-failed`) if
    a program in the guest uses one.
    """
    record = machine.record()
    driver = registry.of(machine)
    if not record.mounts or not isinstance(driver, MountDriver):
        yield
        return
    with log.step(f"unmounting the folders of this host in {machine.name}"):
        _run(machine, "stop", "end the programs that use it, then run the same command again")
    try:
        driver.unplug_mounts(record)
        yield
    except BaseException:
        if machine.running:
            renew(machine)
        raise
    if renews:
        renew(machine)


def renew(machine: Machine) -> None:
    """Gives a guest that runs the devices of its folders, and mounts them. A failure is a warning: the guest runs."""
    record = machine.record()
    driver = registry.of(machine)
    if not record.mounts or not isinstance(driver, MountDriver):
        return
    try:
        with log.step(f"mounting the folders of this host in {machine.name}"):
            driver.plug_mounts(record)
            _run(machine, "start", f"`kimbox reload {machine.name}`")
    except (KimboxError, OSError) as error:
        hint = f"`kimbox reload {machine.name}` restarts it with them"
        log.warn(f"{machine.name} runs without the folders of this host: {error}. {hint}")


def _run(machine: Machine, verb: str, hint: str) -> None:
    """Runs the program in the guest with the verb `start` or `stop`. Raises GuestError (`mount-failed`)."""
    from kimbox.guest.ssh import Guest  # paramiko is slow to load, and few boxes have folders of the host

    with Guest(machine.endpoint(machine.record())) as guest:
        answer = guest.run(f"sudo -n {MOUNTS} {verb}", timeout_s=TIMEOUT_S)
    if answer.code != 0:
        raise GuestError(
            f"the folders of this host cannot be {'mounted' if verb == 'start' else 'unmounted'} in {machine.name}:\n"
            f"{printable(tail(answer.stderr))}",
            code="mount-failed",
            hint=hint,
            fields={"name": machine.name},
        )
