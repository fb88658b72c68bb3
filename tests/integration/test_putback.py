"""The disk of a sealed box is put back to its image on real disks: what goes, what stays, and the result of kill -9."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import threading
from pathlib import Path

import attrs
import madedisk
import pytest
from clirun import world as world
from madedisk import LAYOUT, PLACES
from makemachine import make_machine
from refused import refused

from kimbox import paths
from kimbox.actions import audit, host_audit
from kimbox.drivers.qemu import disk as disks
from kimbox.errors import ImageError
from kimbox.files import sha256_file, write_json
from kimbox.image.disk import nbd, pristine
from kimbox.image.disk.compare import parts
from kimbox.machine import bootmode
from kimbox.machine.folder import Machine
from kimbox.machine.record import PutBack, Sealed
from kimbox.run import run
from kimbox.spec.model import BootMode

MIB = 1 << 20
IMAGE = "e" * 64


#: A part of the disk -> an offset in it at which the test writes.
ATTACKED = {
    pristine.BOOT_LOADER: 440,
    pristine.LVM: LAYOUT.pv.offset_bytes + 4608,
    "LV root": LAYOUT.root.place.offset_bytes + 3 * MIB,
    "LV swap": LAYOUT.swap.place.offset_bytes + MIB if LAYOUT.swap else 0,
}


@pytest.fixture(scope="module")
def disks_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image, a disk with files on `persistent` and a used snapshot, and the content of the files."""
    folder = tmp_path_factory.mktemp("disks")
    made = folder / "image.raw"
    madedisk.make(made)
    for name, size in (("base", 2 * MIB), ("kept", 6 * MIB)):
        (folder / name).write_bytes(os.urandom(size))
    madedisk.put(made, PLACES["persistent"], "base", folder / "base")
    changed = Path(shutil.copy(made, folder / "changed.raw"))
    madedisk.put(changed, PLACES["persistent"], "kept", folder / "kept")
    madedisk.store(changed, {0: madedisk.read(changed, LAYOUT.root.place.offset_bytes, 65536)})
    return folder


@pytest.fixture
def machine(world: Path, disks_made: Path) -> Machine:
    """A halted box with files on `persistent`, and a used snapshot. Nothing else differs from its image."""
    folder = paths.images_dir() / IMAGE
    folder.mkdir(parents=True)
    for name in ("base", "kept"):
        (world / name).hardlink_to(disks_made / name)
    shutil.copy(disks_made / "image.raw", folder / "disk.raw")
    write_json(folder / "image.json", {"format": "raw", "key": IMAGE, "virtual_bytes": LAYOUT.size_bytes})
    made = make_machine()
    made.disk.unlink()
    madedisk.overlaid(folder / "disk.raw", disks_made / "changed.raw", made.disk)
    return made


def image() -> Path:
    return paths.images_dir() / IMAGE / "disk.raw"


def attack(machine: Machine, offset: int, size: int = 4096) -> None:
    """Writes to the disk of a machine as its guest does."""
    run(["qemu-io", "-f", "qcow2", "-c", f"write -P 0xa5 {offset} {size}", machine.disk])


def attack_boot(machine: Machine, folder: Path, name: str = "evil") -> None:
    """Puts a file into /boot of the disk of a machine."""
    raw = madedisk.raw_of(machine.disk, folder / "attacked.raw")
    (folder / name).write_text("evil")
    madedisk.put(raw, PLACES["boot"], name, folder / name)
    machine.disk.unlink()
    madedisk.overlaid(image(), raw, machine.disk)


def differing_offsets(machine: Machine, folder: Path) -> list[int]:
    """Returns the offsets of the pieces of 1 MiB outside `persistent` that differ between a machine and its image."""
    raw, place = madedisk.raw_of(machine.disk, folder / "shown.raw"), LAYOUT.persistent.place
    with raw.open("rb") as new, image().open("rb") as old:
        found = []
        for at in range(0, LAYOUT.size_bytes, MIB):
            if new.read(MIB) != old.read(MIB):
                found.append(at)
    return [at for at in found if not place.offset_bytes <= at < place.end_bytes]


def content(machine: Machine, folder: Path, name: str) -> bytes:
    """Returns the content of a file on `persistent`."""
    raw = madedisk.raw_of(machine.disk, folder / "shown.raw")
    assert madedisk.is_sound(raw, PLACES["persistent"])
    return madedisk.get(raw, PLACES["persistent"], name, folder / "got")


def test_only_persistent_stays(machine: Machine, world: Path) -> None:
    """Every byte outside is the image's, whatever the guest wrote. The report names the parts that differed."""
    for offset in ATTACKED.values():
        attack(machine, offset)
    attack_boot(machine, world)
    assert set(disks.put_back(machine, IMAGE)) == {*ATTACKED, "/boot/evil"}
    assert differing_offsets(machine, world) == []
    assert content(machine, world, "kept") == (world / "kept").read_bytes()
    assert content(machine, world, "base") == (world / "base").read_bytes()
    assert disks.put_back(machine, IMAGE) == ()
    assert content(machine, world, "kept") == (world / "kept").read_bytes()


def test_what_no_boot_of_a_box_writes_is_told(machine: Machine, world: Path) -> None:
    """The snapshot, files of `persistent` and the boot mode are no differences. Each part alone is one."""
    assert pristine.differences(machine.disk, image(), "raw") == ()
    bootmode.set_entries(machine, BootMode.KEEP)
    assert pristine.differences(machine.disk, image(), "raw") == ()
    bootmode.set_entries(machine, BootMode.MAINTAIN)
    assert pristine.differences(machine.disk, image(), "raw") == ("/boot/grub/grubenv",)
    bootmode.set_entries(machine, BootMode.RESNAP, BootMode.MAINTAIN)
    assert pristine.differences(machine.disk, image(), "raw") == ("/boot/grub/grubenv",)
    disks.put_back(machine, IMAGE)
    assert {extent.name for extent in parts(LAYOUT)} >= ATTACKED.keys()
    for part, offset in ATTACKED.items():
        attack(machine, offset, 1)
        assert pristine.differences(machine.disk, image(), "raw") == (part,)
        disks.put_back(machine, IMAGE)


def test_the_link_to_the_kernel_of_the_snapshot(machine: Machine, world: Path) -> None:
    """A boot may write it. A folder in its place is a difference."""
    for request, expected in (("symlink /linux.keep linux-6.1", ()), ("mkdir /linux.keep", ("/boot/linux.keep",))):
        disks.put_back(machine, IMAGE)
        raw = madedisk.raw_of(machine.disk, world / "linked.raw")
        run(["debugfs", "-w", "-R", request, madedisk.device(raw, PLACES["boot"])])
        machine.disk.unlink()
        madedisk.overlaid(image(), raw, machine.disk)
        assert pristine.differences(machine.disk, image(), "raw") == expected


def test_the_check_of_the_host(machine: Machine, world: Path) -> None:
    """While the box is halted, it compares the disk itself."""
    sealed = attrs.evolve(machine.record(), sealed=Sealed("w", "a.org"), put_back=PutBack("2026-11-28T17:00:00Z", ()))
    machine.write_record(sealed)
    header = {"audit": 1, "at": "2026-11-28T18:00:00Z", "boot": "", "role": "w", "site": "a.org"}
    row = {"id": "a.a", "title": "", "cis": "", "severity": "low", "status": "pass", "expected": "", "found": ""}
    lines = [header, row | {"remedy": ""}, {"end": True, "checks": 1}]
    machine.audit_log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def found() -> tuple[str, str]:
        (own,) = [check for check in audit.report(machine).report.checks if check.id == host_audit.DISK_CHECK]
        return str(own.status), own.found

    assert found() == ("pass", "equal; put back last at 2026-11-28T17:00:00Z")
    attack(machine, ATTACKED["LV root"])
    attack_boot(machine, world)
    assert found() == ("fail", "/boot/evil, LV root; put back last at 2026-11-28T17:00:00Z")
    machine.disk.write_bytes(b"no disk")
    assert found()[0] == "fail"


def test_a_guest_cannot_choose_what_stays(machine: Machine, world: Path) -> None:
    """Partition table and LVM metadata of the guest are not read: an empty table does not lose `persistent`."""
    attack(machine, 0, 512)
    attack(machine, LAYOUT.pv.offset_bytes, MIB)
    attack(machine, LAYOUT.boot.offset_bytes, MIB)
    assert set(disks.put_back(machine, IMAGE)) == {pristine.BOOT_LOADER, pristine.LVM, "/boot"}
    assert differing_offsets(machine, world) == []
    assert content(machine, world, "kept") == (world / "kept").read_bytes()


def test_the_disk_stays_sparse(machine: Machine, world: Path) -> None:
    """The new disk has what `persistent` has beyond the image, and no snapshot of the disk."""
    attack(machine, LAYOUT.snapshot.place.offset_bytes + MIB, 20 * MIB)
    run(["qemu-img", "snapshot", "-c", "mine", machine.disk])
    disks.put_back(machine, IMAGE)
    assert machine.disk.stat().st_blocks * 512 < 9 * MIB
    assert disks.snapshots(machine) == []
    own = nbd.content(machine.disk, "qcow2").own
    place = LAYOUT.persistent.place
    assert own
    assert all(place.offset_bytes <= start < end <= place.end_bytes for start, end in own)


def test_removed_data_stays_removed(machine: Machine, world: Path) -> None:
    """Zeros that the guest wrote over data of the image on `persistent` are kept."""
    raw = madedisk.raw_of(machine.disk, world / "removed.raw")
    madedisk.remove(raw, PLACES["persistent"], "base")
    machine.disk.unlink()
    madedisk.overlaid(image(), raw, machine.disk)
    at = LAYOUT.persistent.place.end_bytes - MIB
    run(["qemu-io", "-f", "qcow2", "-c", f"write -P 7 {at} 64k", "-c", f"write -z {at} 64k", machine.disk])
    disks.put_back(machine, IMAGE)
    shown = madedisk.raw_of(machine.disk, world / "shown.raw")
    assert madedisk.is_sound(shown, PLACES["persistent"])
    assert madedisk.read(shown, at, 65536) == bytes(65536)
    listed = run(["debugfs", "-R", "ls -p /", madedisk.device(shown, PLACES["persistent"])]).stdout
    assert ("/kept/" in listed, "/base/" in listed) == (True, False)


def test_an_image_without_persistent(machine: Machine) -> None:
    """It is refused, and the disk does not change."""
    before = sha256_file(machine.disk)
    image().chmod(0o644)
    madedisk.write(image(), LAYOUT.persistent.place.offset_bytes + 1024 + 0x38, struct.pack("<H", 0))
    with refused(ImageError, "disk-layout", fault="no-persistent"):
        disks.put_back(machine, IMAGE)
    with refused(ImageError, "disk-layout", fault="no-persistent"):
        pristine.check(image(), "raw")
    assert before == sha256_file(machine.disk)
    assert not machine.new_disk.exists()


def test_an_image_that_is_gone(machine: Machine) -> None:
    """The error names the machine and the image."""
    shutil.rmtree(image().parent)
    with refused(ImageError, "image-not-found", name="tiny", image=IMAGE):
        disks.put_back(machine, IMAGE)


@attrs.frozen
class Point:
    """A call of `put_back` after which kimbox is killed."""

    owner: object
    name: str


@pytest.mark.parametrize(
    "point",
    [
        Point(pristine, "differences"),
        Point(pristine.run, "run"),  # `qemu-img create`
        Point(nbd.Disk, "write"),  # a part of the copy
        Point(nbd.Disk, "flush"),
        Point(pristine, "sync_file"),
        Point(Path, "replace"),
        Point(disks, "sync_folder"),
    ],
    ids=lambda point: point.name,
)
def test_killed_at_each_point(machine: Machine, world: Path, point: Point) -> None:
    """The disk is the old one or the new one, and has all of `persistent`. The next start completes the work."""
    attack(machine, ATTACKED["LV root"])
    child = os.fork()
    if not child:
        try:
            original = getattr(point.owner, point.name)

            def last(*args: object, **options: object) -> None:
                original(*args, **options)
                os.kill(os.getpid(), signal.SIGKILL)

            setattr(point.owner, point.name, last)
            disks.put_back(machine, IMAGE)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    is_new = point.name in ("replace", "sync_folder")
    assert (differing_offsets(machine, world) == []) is is_new
    assert content(machine, world, "kept") == (world / "kept").read_bytes()
    wait_for_lock(machine)
    disks.put_back(machine, IMAGE)
    assert not machine.new_disk.exists()
    assert differing_offsets(machine, world) == []
    assert content(machine, world, "kept") == (world / "kept").read_bytes()


def wait_for_lock(machine: Machine) -> None:
    """Waits until the qemu-nbd processes of a killed kimbox have ended: they end with their parent."""
    pause = threading.Event()
    while not run(["qemu-img", "info", machine.disk], check=False).ok:
        pause.wait(0.01)
