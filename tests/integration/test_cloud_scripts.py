"""provisioners/base: what `cloud` takes from OpenStack, with folders and stand-ins in place of disks and servers."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import makebox
import pytest
from fakeguest import FakeGuest, can_unshare, delivery, step

from kimbox import paths
from kimbox.guest.deliverydisk import DeliveryDisk
from kimbox.spec.model import Mode, Run

pytestmark = pytest.mark.skipif(not can_unshare(), reason="this machine allows no mount namespace")

CLOUD = "/usr/lib/kimbox/cloud"
CREDENTIALS = "/run/credentials/@system"
KEY = f"ssh-ed25519 {'A' * 68}"
UUID = "5c0f3bd6-7a5c-4f0c-9b2e-0d3f1d7a1c11"

#: Metadata as Nova writes it.
METADATA: dict[str, Any] = {
    "uuid": UUID.upper(),
    "name": "Kim One",
    "hostname": "kim-one.novalocal",
    "public_keys": {"kimbox-key": f"{KEY} a comment\n"},
    "meta": {"kimbox_scratch": "/mnt/scratch"},
    "random_seed": base64.b64encode(bytes(range(256)) * 2).decode(),
    "launch_index": 0,
    "devices": [{"type": "disk", "tags": ["x"], "number": -1.5e3}, []],
    "dedicated_cpus": None,
    "text": 'a "quoted" \\ word, \u00e9 \u2713',
}

#: Stand-ins: blkid reads the label and the type from a folder, mount copies the drive, busybox is the metadata service.
TOOLS = {
    "blkid": 'case $* in *LABEL*) cat "/tmp/label/${6##*/}";; *) cat "/tmp/type/${6##*/}";; esac 2>/dev/null',
    "mount": 'for last; do :; done; cp -r /tmp/drive/. "$last"',
    "umount": ":",
    "busybox": 'for last; do :; done; cat "/tmp/service/${last##*/latest/}"',
    "modprobe": ":",
    "sleep": ":",
    "systemctl": ":",
}


@attrs.frozen
class Instance:
    """A guest, and what its cloud has for it."""

    guest: FakeGuest

    def dmi(self, product: str) -> None:
        """Sets the name of the product."""
        folder = self.guest.path("/sys/class/dmi/id")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "product_name").write_text(f"{product}\n")

    def disk(self, name: str, *, label: str = "", kind: str = "", sectors: int = 2048, serial: str = "") -> None:
        """Attaches a disk. Linux shows the serial number of a virtio disk here, and no other."""
        folder = self.guest.path(f"/sys/block/{name}")
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{sectors}\n")
        if name.startswith("vd"):
            (folder / "serial").write_text(serial)
        for what, text in {"label": label, "type": kind}.items():
            self.guest.path(f"/tmp/{what}").mkdir(exist_ok=True)
            self.guest.path(f"/tmp/{what}/{name}").write_text(text)

    def drive(self, metadata: object = METADATA, user_data: bytes | None = None) -> None:
        """Fills the config drive, which is the disk vdz."""
        self._fill(self.guest.path("/tmp/drive/openstack/latest"), metadata, user_data)
        self.disk("vdz", label="config-2")

    def service(self, metadata: object = METADATA) -> None:
        """Starts the metadata service."""
        self._fill(self.guest.path("/tmp/service"), metadata, None)

    def _fill(self, folder: Path, metadata: object, user_data: bytes | None) -> None:
        folder.mkdir(parents=True)
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        (folder / "meta_data.json").write_text(text)
        if user_data is not None:
            (folder / "user_data").write_bytes(user_data)

    def given(self, name: str) -> str | None:
        """The credential of that name; None if there is none."""
        file = self.guest.path(f"{CREDENTIALS}/kimbox.{name}")
        return file.read_text() if file.exists() else None

    def calls(self) -> list[str]:
        """The stand-ins that were called, with their arguments."""
        file = self.guest.path("/tmp/calls")
        return file.read_text().splitlines() if file.exists() else []

    def next_boot(self) -> None:
        """Empties /run."""
        shutil.rmtree(self.guest.path("/run/credentials"), ignore_errors=True)
        self.guest.new_boot()


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """A guest whose only disk has a partition; DMI says QEMU."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    guest = FakeGuest(tmp_path / "guest")
    shutil.copytree(
        paths.provisioners_dir() / "base/root/usr/lib/kimbox", guest.path("/usr/lib/kimbox"), dirs_exist_ok=True
    )
    for name, body in TOOLS.items():
        tool = guest.path(f"/usr/local/sbin/{name}")
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >>/tmp/calls\n{body}\n')
        tool.chmod(0o755)
    made = Instance(guest)
    made.dmi("Standard PC (Q35 + ICH9, 2009)")
    made.disk("vda", sectors=8 << 21)
    guest.path("/sys/block/vda/vda1").mkdir()
    return made


def test_a_machine_elsewhere_starts_no_program(instance: Instance) -> None:
    """Neither a large disk nor one with a serial number makes it a cloud: nothing is read, and nothing is given."""
    assert 1 == instance.guest.run(CLOUD).code
    assert [] == instance.calls()
    assert instance.given("hostname") is None


def test_the_config_drive(instance: Instance) -> None:
    """Host name, key, id and place of the scratch space are given; the ephemeral disk is named, and no other."""
    instance.drive()
    instance.disk("vdb", serial="0b0c1f4e-a-volume")
    instance.disk("vdc", kind="ext4", label="data")
    instance.disk("vdd", kind="vfat", label="ephemeral0", sectors=1 << 24)
    done = instance.guest.run(CLOUD)
    assert (0, "") == (done.code, done.stderr)
    assert ("kim-one\n", f"{KEY}\n", "/mnt/scratch\n") == tuple(
        instance.given(name) for name in ("hostname", "authorized_key", "scratch")
    )
    assert f"{UUID}\n" == instance.guest.path("/persistent/kimbox/instance").read_text()
    assert "/dev/vdd\n" == instance.guest.path("/run/kimbox/scratch.disk").read_text()
    assert "systemctl --no-block start kimbox-scratch.service" in instance.calls()
    assert [] == [call for call in instance.calls() if call.startswith("busybox")]
    assert [] == list(instance.guest.path("/run/kimbox/cloud").glob("*_data*"))  # they have the seed
    assert 0o700 == instance.guest.path(CREDENTIALS).stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("name", "label", "is_taken"), [("vdb", "", True), ("sdb", "", False), ("sdb", "ephemeral0", True)]
)
def test_an_empty_disk(instance: Instance, name: str, label: str, is_taken: bool) -> None:
    """It is scratch space if it is no volume, which may have data all the same: a SCSI disk does not show that here."""
    instance.drive()
    instance.disk(name, label=label, sectors=1 << 24)
    assert 0 == instance.guest.run(CLOUD).code
    assert is_taken == instance.guest.path("/run/kimbox/scratch.disk").exists()


def test_the_metadata_service(instance: Instance) -> None:
    """It is asked where DMI says OpenStack and there is no config drive; else the network is not used."""
    instance.service()
    assert 1 == instance.guest.run(CLOUD).code
    instance.dmi("OpenStack Nova")
    assert 0 == instance.guest.run(CLOUD).code
    assert "kim-one\n" == instance.given("hostname")
    asked = [call.split()[-1] for call in instance.calls() if call.startswith("busybox")]
    assert [f"http://169.254.169.254/openstack/latest/{name}" for name in ("meta_data.json", "user_data")] == asked


def test_a_cloud_that_does_not_answer(instance: Instance) -> None:
    """The attempts have an end, and the box starts with its own settings."""
    instance.dmi("OpenStack Compute")
    assert 1 == instance.guest.run(CLOUD).code
    assert 20 == len([call for call in instance.calls() if call.startswith("busybox")])


def test_the_seed(instance: Instance) -> None:
    """It is decoded as a whole, whatever the length of its last group."""
    values = "/usr/lib/kimbox/cloud-values"
    for size in (0, 1, 2, 3, 44, 45, 46, 512):
        seed = bytes(255 - n % 256 for n in range(size))
        file = instance.guest.path("/tmp/metadata")
        file.write_text(json.dumps({"random_seed": base64.b64encode(seed).decode()}))
        command = f"{values} /tmp /tmp/uuid </tmp/metadata | base64 -w 0"
        assert base64.b64encode(seed).decode() == instance.guest.run("sh", "-c", command).stdout


@pytest.mark.parametrize(
    "metadata",
    [
        "", "[]", "{", '{"a": }', '{"a": "b}', '{"a": 1} x', '{"a": "\x01"}', '{"a": "\\x"}', "[" * 1000,
        '{"a":' * 1000, '{"a": tru}', "{" + '"a": 1,' * (1 << 18) + '"b": 2}',
    ],
)  # fmt: skip
def test_metadata_that_is_not_valid(instance: Instance, metadata: str) -> None:
    """Nothing is given."""
    instance.drive(metadata)
    assert 1 == instance.guest.run(CLOUD).code
    assert [None, None] == [instance.given(name) for name in ("hostname", "authorized_key")]


@pytest.mark.parametrize(
    "changes",
    [
        {"hostname": "a;b", "name": ""},
        {"hostname": "-a", "name": ""},
        {"hostname": ["a"], "name": {}},
        {"public_keys": {"k": 'command="id" ssh-ed25519 AAAA'}},
        {"public_keys": {"k": f"ssh-ed25519 {'B' * 9000}"}},
        {"public_keys": ["ssh-ed25519 AAAA"]},
        {"meta": {"kimbox_scratch": "/mnt/../etc"}},
        {"meta": {"kimbox_scratch": "mnt"}},
        {"meta": {"kimbox_scratch": "/mnt scratch"}},
        {"uuid": "../../etc/passwd"},
    ],
)
def test_values_of_another_form(instance: Instance, changes: dict[str, Any]) -> None:
    """A value that is not what it should be is left out, and the others are taken."""
    instance.drive(METADATA | changes)
    assert 0 == instance.guest.run(CLOUD).code
    all_of_them = {
        "hostname": instance.given("hostname"),
        "public_keys": instance.given("authorized_key"),
        "meta": instance.given("scratch"),
        "uuid": ((file := instance.guest.path("/persistent/kimbox/instance")).exists() and file.read_text()) or None,
    }
    assert [next(iter(changes))] == [name for name, value in all_of_them.items() if value is None]


def test_the_name_of_the_box_comes_first(instance: Instance) -> None:
    """The name of the instance has a random part, because a project may have several boxes of a name."""
    instance.drive(METADATA | {"meta": {"kimbox_hostname": "tiny"}})
    assert 0 == instance.guest.run(CLOUD).code
    assert "tiny\n" == instance.given("hostname")


def test_a_key_is_one_line(instance: Instance) -> None:
    """What follows it, such as a second key with options, does not reach the account."""
    instance.drive(METADATA | {"public_keys": {"k": f'{KEY}\ncommand="id" {KEY}'}})
    assert 0 == instance.guest.run(CLOUD).code
    assert f"{KEY}\n" == instance.given("authorized_key")


def test_another_instance_has_another_host_key(instance: Instance) -> None:
    """The key stays over boots of one instance; a copy of the disk in another one makes its own."""
    key = instance.guest.path("/persistent/ssh/ssh_host_ed25519_key")
    key.parent.mkdir(parents=True)
    key.write_text("first")
    instance.drive()
    for _ in range(2):
        assert 0 == instance.guest.run(CLOUD).code
        assert key.exists()
        instance.next_boot()
    shutil.rmtree(instance.guest.path("/tmp/drive"))
    shutil.rmtree(instance.guest.path("/sys/block/vdz"))
    instance.drive(METADATA | {"uuid": UUID.replace("5", "6")})
    assert 0 == instance.guest.run(CLOUD).code
    assert not key.exists()


@pytest.mark.parametrize("is_sealed", [False, True])
def test_user_data(instance: Instance, tmp_path: Path, is_sealed: bool) -> None:
    """A manifest from kimbox is taken, and once: not by a sealed box. The box is provisioned by it."""
    guest = instance.guest
    box = makebox.make_box(tmp_path, provision=(step("mark", "touch /var/lib/marked", mode=Mode.SYSTEM, run=Run.ONCE),))
    digest, archive = delivery(tmp_path, box)
    line = f"#kimbox-manifest {DeliveryDisk.of(digest, archive).credential()}\n"
    instance.drive(user_data=line.encode() + archive.read_bytes())
    if is_sealed:
        guest.path("/run/kimbox").mkdir()
        guest.path("/run/kimbox/closed").touch()
    assert 0 == guest.run(CLOUD).code
    assert (None if is_sealed else line.split(" ", 1)[1].rstrip()) == instance.given("delivery")
    if not is_sealed:
        assert 0 == guest.run("/usr/lib/kimbox/provisiond").code, guest.log()
        assert "ready" == guest.events()[-1]["event"]
    assert is_sealed != guest.path("/var/lib/marked").exists()


@pytest.mark.parametrize("user_data", [b"", b"#!/bin/sh\ntouch /tmp/ran\n", b"#cloud-config\n{}", bytes(100)])
def test_other_user_data(instance: Instance, user_data: bytes) -> None:
    """It is not run, and not kept."""
    instance.drive(user_data=user_data)
    assert 0 == instance.guest.run(CLOUD).code
    assert instance.given("delivery") is None
    assert not instance.guest.path("/tmp/ran").exists()
    assert not instance.guest.path("/run/kimbox/delivery").exists()
