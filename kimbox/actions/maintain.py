"""Changes the base of a box: boots its real root as a machine of its own, and makes a new image of that root.

The machine has the purpose `maintenance`. For the box `name` it is called `name-maintain`. Its disk is a new overlay on
the image of the box, so the box itself does not change, and `discard` removes every change with the overlay.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.actions import package as packaging
from kimbox.actions import packagedisk, stop
from kimbox.actions import up as starting
from kimbox.actions.observe import check_owner, state
from kimbox.actions.package import Packaged, PackageRequest
from kimbox.actions.packagedisk import Source
from kimbox.actions.provenance import Described, of_machine
from kimbox.actions.up import UpRequest
from kimbox.drivers import registry
from kimbox.errors import GuestError, ImageError, StateError
from kimbox.files import remove_tree, sync_file, write_json
from kimbox.guest.ssh import Guest
from kimbox.image.disk import changes, rawdisk
from kimbox.image.disk.changes import Changes
from kimbox.image.disk.compare import sha256_disk
from kimbox.image.formats.boxwriter import Sign
from kimbox.image.sanitize.secrets import Finding
from kimbox.image.store import images, lease, names
from kimbox.image.store.names import AddedBox
from kimbox.log import log
from kimbox.machine import bootmode, delivered_locks
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine, machine_of
from kimbox.machine.record import Purpose
from kimbox.machine.state import State
from kimbox.project.project import Project
from kimbox.render.guestfiles import grub_cfg
from kimbox.spec.layout import plan
from kimbox.spec.model import BootMode, Box

#: Timeout of RECONFIGURE, in seconds: it builds every initramfs, in a guest that may be emulated.
RECONFIGURE_TIMEOUT_S = 1800.0

#: Maximum length of the script's output in a message, in characters.
MAX_OUTPUT_CHARACTERS = 1000

#: Path of the script that runs in the guest. It is sent each time, so an older image uses this version, too.
RECONFIGURE = "boot/root/usr/lib/kimbox/reconfigure"


@attrs.frozen
class Committed:
    """The result of `commit`: a new image under a name that specs can use, and its changes to the former image."""

    box: AddedBox
    #: Key of the former image.
    former: str
    changes: Changes
    #: Path of the record of the changes.
    record: str
    #: The space that the disk takes on this host.
    size_bytes: int
    #: Files of the packages that were requested.
    packages: tuple[Path, ...] = ()
    #: Keys that Debian packages ship, and certificate stores: they are in the image.
    kept: tuple[Finding, ...] = ()


def begin(project: Project, timeout_s: float) -> State:
    """Boots the real root of the box's image; an existing machine continues. Returns the state before.

    Raises what `up` raises.
    """
    box = attrs.evolve(project.box, forwards=(), scratch=None)  # these are for the box's own machine
    boot = Choice(BootMode.MAINTAIN)
    driver = registry.first_with(lambda features: features.own_disk)  # `commit` reads its disk
    project = attrs.evolve(project, box=box)
    return starting.up(UpRequest(project, timeout_s=timeout_s, boot=boot, driver=driver, purpose=Purpose.MAINTENANCE))


def discard(project: Project) -> bool:
    """Removes the machine with every change; False if it does not exist."""
    machine = machine_of(project.name, Purpose.MAINTENANCE)
    check_owner(machine, project, Purpose.MAINTENANCE)
    return stop.destroy(machine)


def commit(
    project: Project, name: str, *, force: bool, timeout_s: float, request: PackageRequest | None = None
) -> Committed:
    """Makes an image of the changed root and adds it under a name; then removes the machine.

    A machine that does not run is booted first. `force`: an added box of that name is replaced. `request`: packages to
    be written of the image.

    On an error the changes are kept. Raises StateError if the box has no machine for maintenance, the name is in use or
    a package exists already; GuestError if the root cannot be a base; ImageError if its disk cannot be read.
    """
    box = project.box
    machine = machine_of(box.name, Purpose.MAINTENANCE)
    check_owner(machine, project, Purpose.MAINTENANCE)
    if not machine.exists:
        raise StateError(
            f"no maintenance of {box.name} has begun",
            code="wrong-state",
            hint=f"`kimbox maintain {box.name}` begins one",
            fields={"verb": "maintain", "name": machine.name, "state": str(State.ABSENT)},
        )
    if names.find(name) and not force:
        raise StateError(
            f"an added box {name} exists already",
            code="name-in-use",
            hint="choose another name, or replace it with --force",
            fields={"name": name},
        )
    sign = packaging.check(request) if request else None
    described = None
    if request:
        described = attrs.evolve(of_machine(machine), spec=delivered_locks.spec_of(machine))
    begin(project, timeout_s)
    with log.step("reconfiguring the root"):
        _reconfigure(box, machine)
    stop.halt(machine)
    with machine.locked():
        now = state(machine)
        if now is not State.HALTED:
            raise StateError(
                f"{machine.name} was started by another process during the commit: it is {now}, not halted",
                code="wrong-state",
                hint="run the same command again",
                fields={"verb": "maintain", "name": machine.name, "state": str(now)},
            )
        committed = make_image(machine, _former_image(machine), name)
    stop.destroy(machine)
    if not request or not described:
        return committed
    with lease.shared(committed.box.image):
        return attrs.evolve(committed, packages=pack(request, described, committed, sign).files)


def _former_image(machine: Machine) -> images.Image:
    """The image that a machine was made from. Raises ImageError if the store does not have it."""
    key = machine.record().image
    former = images.find(key)
    if former is None:
        raise ImageError(
            f"the image that {machine.name} was made from is not in the store ({key[:12]})",
            code="image-not-found",
            fields={"name": machine.name, "image": key},
        )
    return former


def pack(request: PackageRequest, described: Described, committed: Committed, sign: Sign | None) -> Packaged:
    """Writes packages of a committed image, with the record of its changes. `described` is that of the machine.

    Raises ImageError if the store does not have the image.
    """
    image = images.find(committed.box.image)
    if image is None:
        raise ImageError(
            f"the image of {committed.box.name} is not in the store ({committed.box.image[:12]})",
            code="image-not-found",
            hint="another `kimbox prune` may have removed it",
            fields={"name": committed.box.name, "image": committed.box.image},
        )
    about = {"former": committed.former, "changes": committed.changes.as_json()}
    # No step runs on the base, so none is stale.
    whole = attrs.evolve(described.provenance, name=request.box.name, image=image.key, image_sha256=image.key, stale={})
    with rawdisk.opened(image.disk) as view:
        source = Source("base", image, image.disk, image.format, kept=committed.kept, about=about, view=view)
        return packaging.write(request, attrs.evolve(described, provenance=whole), source, sign)


def _reconfigure(box: Box, machine: Machine) -> None:
    """Runs RECONFIGURE in the guest, with GRUB's entries as its input.

    Raises StateError if the guest does not run on its real root, GuestError with the end of the script's output if the
    script fails.
    """
    if not bootmode.is_maintained(machine):
        raise StateError(
            f"{machine.name} does not run on the real root",
            code="wrong-state",
            hint=f"`kimbox halt {machine.name}`, then `kimbox maintain {box.name}`, boots the real root",
            fields={"verb": "maintain", "name": machine.name, "required_boot_mode": str(BootMode.MAINTAIN)},
        )
    script = (paths.provisioners_dir() / RECONFIGURE).read_text()
    entries = machine.folder / "grub.cfg"
    entries.write_text(grub_cfg(plan(box.disk)))
    try:
        with Guest(machine.endpoint(machine.record())) as guest:
            answer = guest.run(
                f"sudo -n sh -c {shlex.quote(script)}", timeout_s=RECONFIGURE_TIMEOUT_S, on_line=log.now, stdin=entries
            )
    finally:
        entries.unlink()
    if answer.code:
        output = answer.stderr.strip() or answer.stdout.strip()
        raise GuestError(
            f"the root of {machine.name} cannot be the base of a box: {output[-MAX_OUTPUT_CHARACTERS:]}",
            code="guest-failed",
            hint=f"repair it with `kimbox ssh {machine.name}` and run the same command again; "
            f"`kimbox maintain --discard {box.name}` removes it",
            fields={"name": machine.name, "script": "reconfigure", "exit_status": str(answer.code)},
        )


def make_image(machine: Machine, former: images.Image, name: str) -> Committed:
    """Makes an image of the cleaned root of a halted machine, with the record beside its disk, and adds it as `name`.

    Raises ImageError if the root contains a key that may not leave this host.
    """
    work = machine.commit_work
    remove_tree(work)
    work.mkdir(mode=0o700)
    try:
        with log.step(f"cleaning a copy of {machine.name}"):
            packagedisk.clean(machine.disk, former, work)
        disk = work / "clean.raw"
        base = former.disk if former.format == "raw" else work / "image.raw"
        with rawdisk.opened(base) as former_view, rawdisk.opened(disk) as view:
            kept = packagedisk.scan_for_secrets(view, f"the root of {machine.name}")
            with log.step("comparing with the former image"):
                root_changes = changes.find(former_view, view, on_part=log.now)
                key, former_sha256 = sha256_disk(disk), sha256_disk(base)
        size_bytes = disk.stat().st_blocks * 512
        added = _publish(key, disk, former, former_sha256, root_changes, kept, name)
    finally:
        remove_tree(work)
    record = paths.images_dir() / key / images.CHANGES
    return Committed(added, former.key, root_changes, str(record), size_bytes, kept=kept)


def _publish(
    key: str,
    clean: Path,
    former: images.Image,
    former_sha256: str,
    root_changes: Changes,
    kept: tuple[Finding, ...],
    name: str,
) -> AddedBox:
    """Moves a finished disk into the store, and gives it its name."""
    record = root_changes.as_json() | {"former": former.key, "image": key}

    def fill(work: Path) -> dict[str, object]:
        clean.rename(work / images.DONE / images.DISKS["raw"])
        write_json(work / images.DONE / images.CHANGES, record)
        sync_file(work / images.DONE / images.DISKS["raw"])
        facts = {"format": "raw", "virtual_bytes": former.virtual_bytes, "former": former.key}
        facts |= {"former_sha256": former_sha256}
        return facts | {"kept_keys": [finding.as_json() for finding in kept]}

    added = AddedBox(name, key, None, f"maintained from {former.key[:12]}")
    with lease.shared(key):  # `prune` keeps the image until the name refers to it
        images.publish(key, fill)
        names.write(added)
    return added
