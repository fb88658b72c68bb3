"""kimbox up --rebuild: gives a machine a root from the present image of its spec. /persistent and listed files stay."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import attrs

from kimbox import run
from kimbox.actions import stop
from kimbox.actions.observe import check_owner, refuse_sealed, state
from kimbox.drivers import registry
from kimbox.errors import GuestError, StateError
from kimbox.files import remove_tree, size_words
from kimbox.guest.endpoint import ssh_command
from kimbox.guest.ssh import Guest
from kimbox.image import obtain
from kimbox.image.disk import carry
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine import rebuilt
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended, PlanDigests, Record
from kimbox.machine.state import State, require
from kimbox.project.plan import Plan, make_plan
from kimbox.project.project import Project
from kimbox.spec.model import Box

#: Timeout of copying files out of the guest and back, in seconds each.
COPY_TIMEOUT_S = 3600.0

#: The archiver in the guest. It keeps owners as numbers, because the new root may not have their names yet.
TAR = "sudo -n tar --numeric-owner --xattrs --acls -C /"


def is_needed(machine: Machine, project: Project) -> bool:
    """Whether a machine exists and is from another image than its spec and lock describe now.

    Raises StateError if the machine belongs to another spec, is sealed or suspended, or has no disk of kimbox; and the
    errors of `make_plan`.
    """
    with machine.locked():
        check_owner(machine, project)
        if not machine.exists:
            return False
        rebuilt.finish(machine)
        refuse_sealed(machine, "rebuild")
        registry.need_own_disk(machine, "rebuild")
        require("up", machine.name, before := state(machine))
        if before in (State.SUSPENDED, State.PAUSED):
            raise StateError(
                f"cannot rebuild {machine.name}: it is {before}, and its memory is of its present disk",
                code="wrong-state",
                hint=f"`kimbox resume {machine.name}`, then the same command again",
                fields={"name": machine.name, "state": str(before)},
            )
        return make_plan(project).image_key != machine.record().image


def rebuild(machine: Machine, project: Project) -> None:
    """Replaces the disk of a machine by one on the present image, with its volume `persistent`. The machine is halted.

    The image is built first, while the machine runs on. If the spec lists files to keep, the machine must run. The disk
    before is the snapshot `former`. A killed kimbox leaves the one disk or the other. Raises ImageError, and GuestError
    (`copy-failed`) if the guest does not give the files.
    """
    plan = make_plan(project)
    with obtain.leased(plan.box, plan.recipe, offline=project.offline) as image:
        kept = _fetch_kept(machine, plan.box) if plan.box.keep else None
        stop.halt(machine)
        with machine.locked():
            rebuilt.finish(machine)
            require("up", machine.name, before := state(machine))
            if before.running:
                raise StateError(
                    f"cannot rebuild {machine.name}: another program has started it",
                    code="wrong-state",
                    hint="run the same command again",
                    fields={"name": machine.name, "state": str(before)},
                )
            with log.step(f"replacing the root of {machine.name}"):
                _replace(machine, plan, image, kept)


def _replace(machine: Machine, plan: Plan, image: Image, kept: Path | None) -> None:
    folder = rebuilt.work(machine)
    remove_tree(folder)
    folder.mkdir(mode=0o700)
    try:
        if kept:
            kept.rename(folder / rebuilt.KEPT)
        carry.persistent(machine.disk, image.disk, image.format, folder / rebuilt.DISK, plan.box.disk.size_bytes)
        record = attrs.evolve(
            machine.record(),
            image=image.key,
            spec_digest=plan.box.digest,
            plan=PlanDigests(plan.box.digest, plan.lock.digest, plan.digest),
            installed=(),
            template=None,
            woken=False,
            ended=Ended.HALTED,
        )
        rebuilt.replace(machine, record)
    except BaseException:
        remove_tree(folder)
        raise


def _fetch_kept(machine: Machine, box: Box) -> Path:
    """Copies the files that the spec keeps from a running guest to an archive. What is missing is not an error.

    Returns the archive. It is not that of `rebuilt.kept_files` yet: no root may get it before the disk is replaced.
    """
    paths = " ".join(shlex.quote(path.lstrip("/")) for path in box.keep)
    record = machine.record()
    command = f"{TAR} {_without_mounts(record)} --one-file-system --ignore-failed-read -cf - -- {paths}"
    argv = ssh_command(machine.endpoint(record), command=command)
    new = rebuilt.kept_files(machine).with_suffix(".new")
    for point in _newly_mounted(record, box):
        log.warn(f"what {machine.name} has in {point} is not copied: the spec mounts a folder of the host there")
    with log.step(f"copying {', '.join(box.keep)} from {machine.name}"), _created(new) as handle:
        try:
            bounded = ["prlimit", f"--fsize={box.disk.size_bytes}", "--"]  # the guest could send without end
            run.run([*bounded, *argv], stdout=handle, timeout_s=COPY_TIMEOUT_S)
            os.fsync(handle)
        except run.CommandError as error:
            new.unlink()
            raise GuestError(
                f"cannot copy {', '.join(box.keep)} from {machine.name}: {error}",
                code="copy-failed",
                hint=f"the box is as it was; `kimbox exec {machine.name} -- df -h` shows its file systems",
                fields={"name": machine.name},
            ) from None
    return new


def _newly_mounted(record: Record, box: Box) -> list[str]:
    """Returns the mount points of a spec below what it keeps, where the running box has files of its own."""
    present = {mount.mount_point for mount in record.mounts}
    points = [mount.mount_point for mount in box.mounts if mount.mount_point not in present]
    return [point for point in points if any(PurePosixPath(point).is_relative_to(kept) for kept in box.keep)]


def _without_mounts(record: Record) -> str:
    """Returns options of tar that leave out the folders of the host: their content and attributes are not the guest's.

    Without them, the archive has each as an empty folder, or with its content if the spec keeps it by name. tar fails
    to write that to one that is read-only, and overwrites in another what has changed since. A `*` in a mount point
    means itself, and a mount point is no folder of that name elsewhere.
    """
    points = [shlex.quote(mount.mount_point.strip("/")) for mount in record.mounts]
    return " ".join(["--anchored", "--no-wildcards", *(f"--exclude={point}" for point in points)])


@contextlib.contextmanager
def _created(path: Path) -> Iterator[int]:
    """A new file that only this user may read, open for writing."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def restore_kept(machine: Machine) -> None:
    """Copies the kept files back into a guest that is ready, if it does not have them yet.

    Raises GuestError (`copy-failed`); the archive stays then, for the next attempt.
    """
    archive = rebuilt.kept_files(machine)
    if not archive.exists():
        return
    record = machine.record()
    with log.step(f"copying {size_words(archive.stat().st_size)} back to {machine.name}"):
        with Guest(machine.endpoint(record)) as guest:
            answer = guest.run(f"{TAR} {_without_mounts(record)} -xpf -", timeout_s=COPY_TIMEOUT_S, stdin=archive)
        if answer.code != 0:
            raise GuestError(
                f"cannot copy the kept files back to {machine.name}: {answer.stderr.strip()[-500:]}",
                code="copy-failed",
                hint=f"they are in {archive}; `kimbox up {machine.name}` copies them again",
                fields={"name": machine.name, "path": str(archive)},
            )
        archive.unlink()
