"""Makes an image of a maintained machine's disk: real file systems, no guest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import boxarchive
import clirun
import madedisk
import pytest
from madedisk import LAYOUT, PLACES
from makemachine import make_machine
from refused import refused

from kimbox import paths, run
from kimbox.actions import maintain
from kimbox.actions import package as packaging
from kimbox.actions.package import PackageRequest
from kimbox.actions.provenance import Described
from kimbox.errors import ImageError
from kimbox.files import write_json
from kimbox.image.disk.compare import sha256_disk
from kimbox.image.formats import sums
from kimbox.image.formats.export import Format
from kimbox.image.store import images, names
from kimbox.lock.apt.packages import LockedPackage, LockedPackages
from kimbox.lock.lockfile import Lock
from kimbox.lock.provenance.inputs import Provenance
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.spec.load import load_box

world = clirun.world  # a fixture

FORMER = "e" * 64
ROOT, PERSISTENT = PLACES["root"], PLACES["persistent"]


def write(disk: Path, name: str, folder: Path, text: str) -> None:
    """Writes a file to the root of a disk."""
    (folder / "text").write_text(text)
    madedisk.put(disk, ROOT, name, folder / "text")


@pytest.fixture
def machine(world: Path) -> Machine:
    """A halted machine: a file and a history were added to its root, and a secret to its /persistent."""
    folder = paths.images_dir() / FORMER
    folder.mkdir(parents=True)
    image = folder / "disk.raw"
    madedisk.make(image)
    for name in ("/etc", "/root", "/var", "/var/lib", "/var/lib/dpkg"):
        run.run(["debugfs", "-w", "-R", f"mkdir {name}", madedisk.device(image, ROOT)])
    write(image, "/var/lib/dpkg/status", world, "Package: a\nStatus: install ok installed\nVersion: 1\n\n")
    write_json(folder / "image.json", {"format": "raw", "key": FORMER, "virtual_bytes": LAYOUT.size_bytes})
    disk = Path(shutil.copy(image, world / "changed.raw"))
    write(disk, "/etc/by-hand", world, "by hand")
    write(disk, "/root/.bash_history", world, "SECRET-OF-SOMEBODY")
    madedisk.put(disk, PERSISTENT, "secret", world / "text")
    made = make_machine("tiny-maintain")
    made.disk.unlink()
    madedisk.overlaid(image, disk, made.disk)
    return made


def test_an_image_its_record_and_its_name(machine: Machine, world: Path) -> None:
    """The image and the record have the change. Neither has data of the machine. A second image is the same."""
    former = images.find(FORMER)
    assert former
    committed = maintain.make_image(machine, former, "new")
    assert ("/etc/by-hand",) == committed.changes.added
    assert () == committed.changes.removed + committed.changes.changed
    record = json.loads(Path(committed.record).read_text())
    assert (["/etc/by-hand"], FORMER, committed.box.image) == (
        record["files"]["added"],
        record["former"],
        record["image"],
    )
    assert committed.box == names.find("new")
    image = images.find(committed.box.image)
    assert image
    assert b"by hand" == madedisk.get(image.disk, ROOT, "/etc/by-hand", world / "got")
    assert b"SECRET-OF-SOMEBODY" not in image.disk.read_bytes()
    assert all(madedisk.is_sound(image.disk, place) for place in PLACES.values())
    assert committed.box == maintain.make_image(machine, former, "new").box
    assert not (machine.folder / "commit").exists()


def test_a_package_of_the_image(machine: Machine, world: Path) -> None:
    """It has the new disk, the record of the changes, and an SBOM of the installed packages."""
    former = images.find(FORMER)
    assert former
    committed = maintain.make_image(machine, former, "new")
    (world / "kimbox.yaml").write_text("kimbox: 1\nname: tiny\nimage: {distribution: debian, packages: [aa]}\n")
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", world / "key"])
    project = Project(load_box(world / "kimbox.yaml"))
    request = PackageRequest(project, (Format.LIBVIRT,), world / "out", key=world / "key")
    locked = LockedPackages("0" * 64, "2026-01-01T00:00:00Z", (), {"a": LockedPackage("1", "", "1" * 64)})
    provenance = Provenance("tiny", Lock("9" * 64, FORMER, {}, locked), FORMER)
    packaged = maintain.pack(request, Described(provenance, "", b"{}\n"), committed, packaging.check(request))
    sums_file, signature = world / "out/tiny.SHA256SUMS", world / "out/tiny.SHA256SUMS.sig"
    beside = world / "out/tiny.provenance.intoto.json"
    assert [world / "out/tiny-libvirt.box", beside, sums_file, signature] == list(packaged.files)
    public = " ".join((world / "key.pub").read_text().split()[:2])
    sums.verify(sums_file.read_bytes(), signature.read_bytes(), (public,))
    with boxarchive.opened(packaged.files[0]) as archive:
        about, bom = (json.load(archive.extractfile(name)) for name in ("kimbox.json", "sbom.cdx.json"))  # type: ignore[arg-type]
        archive.extract("box.img", world, filter="data")
    assert ("base", FORMER, committed.box.image) == (about["from"], about["former"], about["image"])
    assert ["/etc/by-hand"] == about["changes"]["files"]["added"]
    base, package = sorted(bom["components"], key=lambda part: str(part["bom-ref"]))
    assert ("a", "1", 1) == (package["name"], package["version"], len(package["hashes"]))
    assert {"kimbox:image": FORMER} == {p["name"]: p["value"] for p in base["properties"]}
    assert sha256_disk(former.disk) == base["hashes"][0]["content"]
    assert ["file /etc/by-hand"] == about["unpinned"]
    image = images.find(committed.box.image)
    assert image
    run.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", world / "box.img", image.disk])


def test_a_key_of_the_maintainer_is_refused(machine: Machine, world: Path) -> None:
    """The message names its file. No box is added, and the machine does not change."""
    former, disk = images.find(FORMER), world / "changed.raw"
    assert former
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", world / "key"])
    write(disk, "/etc/site.key", world, (world / "key").read_text())
    machine.disk.unlink()
    madedisk.overlaid(former.disk, disk, machine.disk)
    with pytest.raises(ImageError, match=r"/etc/site\.key"):
        maintain.make_image(machine, former, "new")
    assert names.find("new") is None
    assert machine.disk.exists()


def test_a_full_disk_while_the_record_is_written(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves no image and no added box, and the machine does not change."""
    former = images.find(FORMER)
    assert former

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(maintain, "write_json", full)
    with refused(ImageError, "no-space"):
        maintain.make_image(machine, former, "new")
    assert names.find("new") is None
    assert [FORMER] == [path.name for path in paths.images_dir().iterdir() if len(path.name) == 64]
    assert machine.disk.exists()
