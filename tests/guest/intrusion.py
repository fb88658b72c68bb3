"""What an intruder with root in a sealed box writes, and what the host finds of it."""

from __future__ import annotations

from pathlib import Path

from conftest import Kimbox

from kimbox.image.disk import nbd, pristine, ranges
from kimbox.image.disk.view import DiskView
from kimbox.image.store import images
from kimbox.machine.folder import Machine

#: The script of the intruder.
INTRUDE = Path(__file__).with_name("intrude")


def disk_check(kimbox: Kimbox, name: str) -> tuple[str, list[str]]:
    """Returns the result of the host's check of the disk of a halted box, and the parts that differ."""
    checks = kimbox.json("audit", name, check=False)["report"]["checks"]
    (row,) = [check for check in checks if check["id"] == "disk.equal"]
    found = row["found"].partition("; put back last at ")[0]
    return row["status"], [] if found == "equal" else found.split(", ")


def has_only_persistent(machine: Machine) -> bool:
    """Whether every byte of the disk of a halted box, outside of `persistent`, is that of its image."""
    image = images.find(machine.record().image)
    assert image is not None
    with nbd.opened(image.disk, image.format) as disk:
        volume = pristine.persistent(DiskView.of(disk.read, disk.size_bytes))
        kept = volume.on_disk([(0, volume.size_bytes)])
    own = nbd.content(machine.disk, "qcow2").own
    return own == ranges.common(own, kept)
