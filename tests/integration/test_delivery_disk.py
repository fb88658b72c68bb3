"""The disk with the manifest that a guest gets at its start: what the guest takes from it, and what it refuses."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import fakeguest
import pytest
from fakeguest import FakeGuest, box_with, delivery, needs_namespace, step

from kimbox.guest.deliverydisk import SERIAL, DeliveryDisk
from kimbox.spec.model import Probe

pytestmark = needs_namespace

guest = fakeguest.guest  # a fixture

PROVISIOND = "/usr/lib/kimbox/provisiond"


def attach(guest: FakeGuest, folder: Path, **box: Any) -> DeliveryDisk:
    """Attaches the delivery of a box to the guest, for a new start."""
    digest, archive = delivery(folder, box_with(folder, **box))
    disk = DeliveryDisk.of(digest, archive)
    guest.attach(archive, disk)
    guest.new_boot()
    return disk


def boot(guest: FakeGuest, *, code: int = 0) -> list[dict[str, Any]]:
    """Runs provisiond as a boot does, first with `--early`. Returns the events without the steps."""
    assert guest.run(PROVISIOND, "--early").ok
    if not guest.path("/run/kimbox/answered").exists():
        assert guest.run(PROVISIOND).code == code
    return [event for event in guest.events() if event["event"] != "step"]


def current(guest: FakeGuest) -> str:
    """The digest of the current manifest."""
    return guest.path("/persistent/kimbox/current").readlink().name


def test_a_new_box_takes_it_and_is_provisioned(guest: FakeGuest, tmp_path: Path) -> None:
    """With its commits. It does not wait for the host. The next boot of the same start takes nothing."""
    disk = attach(guest, tmp_path)
    assert [e["event"] for e in boot(guest)] == ["provisioning", "ready"]
    assert current(guest) == disk.digest
    assert guest.path("/home/vagrant/src/code/a").read_text() == "one\n"
    guest.new_boot()
    guest.path("/sys/block/vdb/serial").write_text("none")
    assert boot(guest) == [{"event": "ready", "manifest": disk.digest}]


def test_an_empty_manifest_is_ready_at_once(guest: FakeGuest, tmp_path: Path) -> None:
    """The early run of provisiond reports ready."""
    digest, archive = delivery(tmp_path, attrs.evolve(box_with(tmp_path), repositories=()))
    guest.attach(archive, DeliveryDisk.of(digest, archive))
    assert guest.run(PROVISIOND, "--early").ok
    assert guest.events() == [{"event": "ready", "manifest": digest}]


def test_what_comes_later_by_ssh_is_newer(guest: FakeGuest, tmp_path: Path) -> None:
    """A guest that reboots by itself keeps it, and does not go back to the disk of the start."""
    attach(guest, tmp_path)
    boot(guest)
    later, archive = delivery(tmp_path, box_with(tmp_path, step("more", "true")))
    assert guest.run("/usr/lib/kimbox/receive", later, stdin=str(archive)).ok
    guest.new_boot()
    assert boot(guest)[-1] == {"event": "ready", "manifest": later}
    disk = attach(guest, tmp_path)  # another start by the host
    assert boot(guest)[-1] == {"event": "ready", "manifest": disk.digest}


def test_a_manifest_that_has_failed_is_not_tried_again(guest: FakeGuest, tmp_path: Path) -> None:
    """An open box falls back at its next start, although the disk has the failed manifest."""
    good = attach(guest, tmp_path)
    boot(guest)
    bad = attach(guest, tmp_path, probes=(Probe("it computes", "false", "", 1),))
    assert boot(guest, code=1)[-1]["event"] == "failed"
    attach(guest, tmp_path, probes=(Probe("it computes", "false", "", 1),))
    assert boot(guest)[-1] == {"event": "ready", "manifest": good.digest, "wanted": bad.digest}


def test_a_sealed_box_goes_back_at_once(guest: FakeGuest, tmp_path: Path) -> None:
    """It restarts with its last good manifest, sealed. The next start by the host tries the manifest again."""
    good = attach(guest, tmp_path)
    boot(guest)
    guest.secure()
    for _ in range(2):
        bad = attach(guest, tmp_path, probes=(Probe("it computes", "false", "", 1),))
        guest.new_root()
        assert boot(guest, code=1) == [{"event": "provisioning", "manifest": bad.digest}]
        assert guest.path("/run/systemctl.log").read_text().splitlines()[-1] == "--no-block reboot"
        guest.new_root()
        *_, told, _, sealed = boot(guest)
        assert (told["event"], told["reason"]) == (
            "fallback",
            "probe it computes: did not hold within 1 s, last ended with status 1",
        )
        assert (sealed["event"], sealed["manifest"], sealed["wanted"]) == ("sealed", good.digest, bad.digest)


def test_a_sealed_box_takes_the_manifest_of_the_host(guest: FakeGuest, tmp_path: Path) -> None:
    """Not what a job that became root has written in its place."""
    attach(guest, tmp_path)
    boot(guest)
    guest.secure()
    attacked = guest.path("/persistent/kimbox/current/manifest.env")
    original = attacked.read_bytes()
    attacked.write_text("touch /tmp/attacked\n")
    attach(guest, tmp_path)
    guest.new_root()
    assert boot(guest)[-1]["event"] == "sealed"
    assert attacked.read_bytes() == original
    assert not guest.path("/tmp/attacked").exists()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"") -> Callable[[Path], bytes]:
    """An attack: the archive with one more member, before its end."""

    def attack(archive: Path) -> bytes:
        changed = io.BytesIO()
        with tarfile.open(archive) as old, tarfile.open(fileobj=changed, mode="w", format=tarfile.GNU_FORMAT) as new:
            for entry in old:
                if entry.name == "end":
                    added = tarfile.TarInfo(name)
                    added.type, added.linkname, added.size = kind, target, len(data)
                    new.addfile(added, io.BytesIO(data))
                new.addfile(entry, old.extractfile(entry) if entry.isreg() else None)
        return changed.getvalue()

    return attack


def cut(where: str) -> Callable[[Path], bytes]:
    """An attack: the archive ends at this place of its largest member."""

    def attack(archive: Path) -> bytes:
        with tarfile.open(archive) as members:
            largest = max(members, key=lambda member: member.size)
        return archive.read_bytes()[: getattr(largest, where)]

    return attack


NOT_WHOLE = "what the host sent is not whole"

#: What is wrong with a disk: the archive on it, and the reason that the guest reports.
HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "cut off between two members": (cut("offset"), NOT_WHOLE),
    "cut off in a member": (cut("offset_data"), NOT_WHOLE),
    "zeros": (lambda archive: bytes(10240), NOT_WHOLE),
    "no archive": (lambda archive: b"kimbox! " * 640, NOT_WHOLE),
    "a path that leaves the folder": (member("manifest/../../kimbox/secured"), NOT_WHOLE),
    "a symbolic link": (member("manifest/repositories", tarfile.SYMTYPE, "/etc/shadow"), NOT_WHOLE),
    "a hard link": (member("bundles/x", tarfile.LNKTYPE, "manifest/manifest.env"), NOT_WHOLE),
    "a pipe": (member("manifest/submodules", tarfile.FIFOTYPE), NOT_WHOLE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_changes_nothing(guest: FakeGuest, tmp_path: Path, name: str) -> None:
    """The guest refuses it with the reason, also if the host's description fits. Its own manifest stays."""
    good = attach(guest, tmp_path)
    boot(guest)
    digest, archive = delivery(tmp_path, box_with(tmp_path, step("more", "true")))
    attack, reason = HOSTILE[name]
    archive.write_bytes(attack(archive))
    guest.attach(archive, DeliveryDisk.of(digest, archive))
    guest.new_boot()
    before = sorted(path for path in guest.path("/persistent/kimbox").rglob("*") if path.name != "room")
    failed = boot(guest, code=1)[-1]
    assert (failed["kind"], failed["manifest"], failed["reason"]) == ("receive", digest, reason)
    assert current(guest) == good.digest
    assert before == sorted(path for path in guest.path("/persistent/kimbox").rglob("*") if path.name != "room")
    assert not guest.path("/persistent/kimbox/secured").exists()


def test_a_file_is_not_larger_than_the_archive(guest: FakeGuest, tmp_path: Path) -> None:
    """A sparse member of 4 GiB, which takes one block of the archive, is refused."""
    digest, archive = delivery(tmp_path, box_with(tmp_path))
    with tarfile.open(archive) as members:
        end = members.getmember("end").offset
    data = archive.read_bytes()
    archive.write_bytes(data[:end] + sparse_member("bundles/big", 4 << 30) + data[end:])
    guest.attach(archive, DeliveryDisk.of(digest, archive))
    assert boot(guest, code=1)[-1]["reason"] == NOT_WHOLE
    assert not guest.path("/persistent/kimbox/current").exists()


def sparse_member(name: str, size_bytes: int) -> bytes:
    """A header of GNU tar's old sparse format: a file of this size, without data."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:410] = b"%011o\0%011o\0" % (size_bytes, 0)
    header[483:495] = b"%011o\0" % size_bytes
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


#: Changes of the description, and the reason that the guest reports.
WRONG: dict[str, tuple[Callable[[DeliveryDisk], dict[str, Any]], str]] = {
    "more than the disk has": (
        lambda d: {"size_bytes": d.size_bytes + 10240},
        f"the disk {SERIAL} has another size than its archive",
    ),
    "another archive": (lambda d: {"sha256": "0" * 64}, f"what the host put on the disk {SERIAL} is not whole"),
    "a part of the archive": (
        lambda d: {"size_bytes": d.size_bytes - 512},
        f"the disk {SERIAL} has another size than its archive",
    ),
    "a huge size": (
        lambda d: {"size_bytes": 10**30},
        "the credential /run/credentials/@system/kimbox.delivery is not valid",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_description_that_does_not_fit(guest: FakeGuest, tmp_path: Path, name: str) -> None:
    """The disk is read only within the range that the host has stated, and that range must be what it stated."""
    digest, archive = delivery(tmp_path, box_with(tmp_path))
    disk = DeliveryDisk.of(digest, archive)
    change, reason = WRONG[name]
    guest.attach(archive, attrs.evolve(disk, **change(disk)))
    assert boot(guest, code=1)[-1]["reason"] == reason
    assert not guest.path("/persistent/kimbox/current").exists()


def test_a_missing_disk(guest: FakeGuest, tmp_path: Path) -> None:
    """Only the disk with the right serial number is read."""
    attach(guest, tmp_path)
    guest.path("/sys/block/vdb/serial").write_text("other")
    assert boot(guest, code=1)[-1]["reason"] == f"the box has no disk with the serial number {SERIAL}"


def test_a_full_persistent(guest: FakeGuest, tmp_path: Path) -> None:
    """The reason is that no space is left."""
    attach(guest, tmp_path)
    ran = guest.run("sh", "-c", f"cat /dev/zero >/persistent/junk 2>/dev/null; {PROVISIOND}", mount="size=1m")
    assert ran.code == 1
    assert guest.events()[-1]["reason"] == "no space is left on /persistent"
