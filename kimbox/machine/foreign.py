"""Images that kimbox did not build, such as the cloud images of a distribution: how they are recognized, and what a box
made of one cannot do."""

from __future__ import annotations

from pathlib import Path

from kimbox.errors import StateError
from kimbox.guest import seed
from kimbox.machine import bootmode
from kimbox.machine.record import Record
from kimbox.spec.model import BootMode, Box, PackageImage

#: What a box may be asked for -> why an image that kimbox did not build does not have it.
_REASONS = {
    "boot resnap": "its root is no LVM snapshot, and its initramfs does not make one. It has the boot mode keep alone",
    "boot maintain": "it has no root below a snapshot. It has the boot mode keep alone",
    "make a template of": "no program in it stops the others and gives each clone an identity of its own",
    "run a job in": "no program in it runs the job and reports its end",
    "make scratch space for": "no program in it makes the file system at each start",
    "share folders with": "no program in it mounts them at each start",
    "run a watchdog for": "no program in it answers the watchdog",
    "connect to a network": "no program in it gives the card of the network its address",
    "set variables in": "its sessions do not read them",
    "make accounts in": "its ssh server does not read their keys",
    "make an instance of": "kimbox does not bring its programs into a guest in a cloud",
    "secure": "it cannot be put back to a known state at each start, and has none of the programs that seal it",
}


def instance(box: Box, disk: Path) -> str | None:
    """Returns a new id for what cloud-init reads; None if kimbox built the image of the box, which needs nothing.

    `disk`: a qcow2 that no process uses. The image of a `.box` or at a location may be of either kind: an image of
    kimbox has an environment of GRUB that selects the boot mode. Raises ImageError if the disk cannot be opened.
    """
    if isinstance(box.image, PackageImage) or bootmode.has_environment(disk, box.name):
        return None
    return seed.new_instance()


def refuse(name: str, what: str) -> None:
    """Raises StateError (`unsupported-by-image`). `name` is the box; `what` is a key of _REASONS."""
    raise StateError(
        f"cannot {what} {name}, because kimbox did not build its image: {_REASONS[what]}",
        code="unsupported-by-image",
        hint="use an image that kimbox builds (`image: {distribution: debian, packages: [...]}`), or remove this from "
        "the spec and the command line",
        fields={"name": name, "what": what},
    )


def check(record: Record, what: str) -> None:
    """Raises StateError (`unsupported-by-image`) if kimbox did not build the image of a machine."""
    if record.seed is not None:
        refuse(record.name, what)


def check_spec(box: Box, modes: set[BootMode]) -> None:
    """Raises StateError (`unsupported-by-image`) if a box, whose image kimbox did not build, is asked for too much.

    `modes`: the boot modes that it is to have.
    """
    for what, is_asked in (
        ("boot resnap", BootMode.RESNAP in modes),
        ("boot maintain", BootMode.MAINTAIN in modes),
        ("make a template of", box.warm),
        ("run a job in", box.job),
        ("make scratch space for", box.scratch is not None),
        ("share folders with", bool(box.mounts)),
        ("run a watchdog for", box.watchdog_s is not None),
        ("connect to a network", bool(box.networks)),
        ("set variables in", bool(box.variables)),
        ("make accounts in", bool(box.users)),
    ):
        if is_asked:
            refuse(box.name, what)
