"""Changing the base of a box: a machine of its own on the real root, then a new image, or nothing.

The machine has the purpose `maintenance`; that of the box `name` is called `name-maintain`. Its disk is a new overlay
on the image of the box: the box itself is not affected, and what was changed is removed with one file.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.actions import package as packaging
from kimbox.actions import stop
from kimbox.actions import up as starting
from kimbox.actions.observe import check_owner, state
from kimbox.actions.package import Packaged, Wanted
from kimbox.actions.provenance import whole_of
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
from kimbox.lock.provenance import Provenance
from kimbox.log import log
from kimbox.machine import bootmode
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine, machine_of
from kimbox.machine.record import Purpose
from kimbox.machine.state import State
from kimbox.project.project import Project
from kimbox.render.guestfiles import grub_cfg
from kimbox.spec.layout import plan
from kimbox.spec.model import BootMode, Box

#: The record of what was changed, beside the image's disk.
RECORD = "changes.json"

#: Making every initramfs anew, in an emulated guest, in seconds.
RECONFIGURE_TIMEOUT_S = 1800.0

#: The script that runs in the guest; sent along, so that an image of any age takes this one.
RECONFIGURE = "boot/root/usr/lib/kimbox/reconfigure"


@attrs.frozen
class Committed:
    """A new image, under a name that specs can use, and what it has that the former one had not."""

    box: AddedBox
    former: str
    changes: Changes
    record: str
    size_bytes: int
    #: Files of packages that were asked for.
    packages: tuple[Path, ...] = ()
    #: Keys that packages ship, and stores of certificates: they are in the image.
    kept: tuple[Finding, ...] = ()


def begin(project: Project, timeout_s: float) -> State:
    """Boots the real root of the box's image; a machine that is there continues. Returns the state before.

    Raises what `up` raises.
    """
    box = attrs.evolve(project.box, forwards=(), scratch=None)  # these belong to the box's own machine
    boot = Choice(BootMode.MAINTAIN)
    driver = registry.first_with(lambda features: features.own_disk)  # `commit` reads its disk
    apart = attrs.evolve(project, box=box)
    return starting.up(UpRequest(apart, timeout_s=timeout_s, boot=boot, driver=driver, purpose=Purpose.MAINTENANCE))


def discard(project: Project) -> bool:
    """Removes the machine, and with it all that was changed; False if there was none."""
    machine = machine_of(project.name, Purpose.MAINTENANCE)
    check_owner(machine, project, Purpose.MAINTENANCE)
    return stop.destroy(machine)


def commit(project: Project, name: str, *, force: bool, timeout_s: float, wanted: Wanted | None = None) -> Committed:
    """Makes an image of what was changed and gives it a name; the machine is removed then.

    A machine that does not run is booted first. `force`: a name that is taken may mean another image from now on.
    `wanted`: packages to be made of the image. Raises StateError where nothing is maintained, the name is taken or a
    package is there already, GuestError where the root is not fit to be a base, ImageError where its disk cannot be
    read; what was changed is still there then.
    """
    box = project.box
    machine = machine_of(box.name, Purpose.MAINTENANCE)
    check_owner(machine, project, Purpose.MAINTENANCE)
    if not machine.exists:
        raise StateError(f"nothing of {box.name} is being maintained", hint=f"begin with `kimbox maintain {box.name}`")
    if names.find(name) and not force:
        raise StateError(f"there is a box {name} already", hint="choose another name; --force replaces it")
    sign = packaging.check(wanted) if wanted else None
    whole = whole_of(project, hashed=False)[0] if wanted else None
    begin(project, timeout_s)
    with log.step("reconfiguring the root"):
        _reconfigure(box, machine)
    stop.halt(machine)
    with machine.locked():
        if state(machine) is not State.HALTED:
            raise StateError(f"{machine.name} was started meanwhile", hint="run the same command again")
        former = images.find(machine.record().image)
        if former is None:
            raise ImageError(f"the image that {machine.name} was made from is not in the store")
        done = make_image(machine, former, name)
    stop.destroy(machine)
    if not wanted or not whole:
        return done
    with lease.shared(done.box.image):
        return attrs.evolve(done, packages=pack(wanted, whole, done, sign).files)


def pack(wanted: Wanted, whole: Provenance, done: Committed, sign: Sign | None) -> Packaged:
    """Makes packages of the image that a commit made of the base of `whole`, with the record of what was changed."""
    image = images.find(done.box.image)
    if image is None:
        raise ImageError(f"the image of {done.box.name} is gone", hint="is another `kimbox prune` running?")
    about = {"former": done.former, "changes": done.changes.as_json()}
    base = attrs.evolve(whole, image=image.key, image_sha256=image.key, stale={})  # no step runs on the base
    with rawdisk.opened(image.disk) as view:
        source = packaging.Source("base", image, image.disk, image.format, kept=done.kept, about=about, view=view)
        return packaging.write(wanted, base, source, sign)


def _reconfigure(box: Box, machine: Machine) -> None:
    """Runs the script in the guest, with GRUB's entries. Raises GuestError with its last words if it fails."""
    if not bootmode.is_maintained(machine):
        raise StateError(
            f"{machine.name} does not run on the real root", hint=f"`kimbox reload --boot maintain {machine.name}`"
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
        said = answer.stderr.strip() or answer.stdout.strip()
        raise GuestError(
            f"the root of {machine.name} is not fit to be a base: {said[-1000:]}",
            hint=f"mend it with `kimbox ssh {machine.name}`, and try again; `--discard` throws it away",
        )


def make_image(machine: Machine, former: images.Image, name: str) -> Committed:
    """Makes an image of a halted machine, cleaned, with the record beside its disk, and gives it the name."""
    work = machine.folder / "commit"
    remove_tree(work)
    work.mkdir(mode=0o700)
    try:
        with log.step("cleaning a copy"):
            packaging.clean(machine.disk, former, work)
        disk = work / "clean.raw"
        base = former.disk if former.format == "raw" else work / "image.raw"
        with rawdisk.opened(base) as built, rawdisk.opened(disk) as view:
            kept = packaging.look_through(view, f"the root of {machine.name}")
            with log.step("comparing with the former image"):
                found = changes.find(built, view, on_part=log.now)
                key = sha256_disk(disk)
        size_bytes = disk.stat().st_blocks * 512
        image = _publish(key, disk, former, found, kept, name)
    finally:
        remove_tree(work)
    return Committed(image, former.key, found, str(paths.images_dir() / key / RECORD), size_bytes, kept=kept)


def _publish(
    key: str, clean: Path, former: images.Image, found: Changes, kept: tuple[Finding, ...], name: str
) -> AddedBox:
    """Takes a finished disk into the store, and gives it its name."""
    record = found.as_json() | {"former": former.key, "image": key}

    def fill(work: Path) -> dict[str, object]:
        clean.rename(work / images.DONE / images.DISKS["raw"])
        write_json(work / images.DONE / RECORD, record)
        sync_file(work / images.DONE / images.DISKS["raw"])
        facts = {"format": "raw", "virtual_bytes": former.virtual_bytes, "former": former.key}
        return facts | {"kept_keys": [finding.as_json() for finding in kept]}

    added = AddedBox(name, key, None, f"maintained from {former.key[:12]}")
    with lease.shared(key):  # `prune` keeps the image until the name refers to it
        images.publish(key, fill)
        names.write(added)
    return added
