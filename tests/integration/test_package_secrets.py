"""Files that a package must not hold, files that it keeps and lists, and the cleaning of an image from elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import attrs
import madedisk
import pytest
import tinyimage
import tinypackage
from clirun import Kimbox, error, result
from clirun import kimbox as kimbox
from clirun import world as world
from tinypackage import Made, image_of, machine_of

from kimbox import run
from kimbox.actions import packagedisk
from kimbox.files import sha256_file
from kimbox.image.disk import rawdisk
from kimbox.image.disk.ext4 import directories
from kimbox.image.sanitize import external
from kimbox.image.store import images
from kimbox.machine.record import Sealed

pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")

box, made = tinypackage.box, tinypackage.made  # fixtures

KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEYlA2K1gPQPzV0nRXFUmqw1xQDlVBQQ0cRyXXyUbHpB\n"
DIGEST = hashlib.md5(KEY.encode(), usedforsecurity=False).hexdigest()

#: A spec that takes the image of an added box.
AGAIN = """\
kimbox: 1
name: again
image: {box: old}
disk:
  size: 380MiB
  boot: 64MiB
  volumes: {root: 256MiB, persistent: 16MiB, swap: 16MiB, root_snap: 8MiB}
"""


def with_files(script: str) -> str:
    """Writes files with a key, its digest and zeros, and returns the debugfs script with their paths."""
    Path("key").write_text(KEY)
    Path("zeros").write_bytes(bytes(10_000))
    Path("sums").write_text(f"{DIGEST}  usr/share/some/test.key\n")
    return (
        script.replace("KEY", str(Path("key").resolve()))
        .replace("SUMS", str(Path("sums").resolve()))
        .replace("ZEROS", str(Path("zeros").resolve()))
    )


SHIPPED = """\
mkdir /usr
mkdir /usr/share
mkdir /usr/share/some
write KEY /usr/share/some/test.key
mkdir /var/lib/dpkg
mkdir /var/lib/dpkg/info
write SUMS /var/lib/dpkg/info/some.md5sums
"""


def test_a_key_in_the_root_is_refused(kimbox: Kimbox, box: Path) -> None:
    """The error names the file, and no package is written."""
    machine_of(box, image_of(box), with_files("write KEY /home/user/deploy\n"))
    code, out, _ = kimbox("--json", "package", "--format", "raw")
    found = error(out, "package")
    assert (1, "secret-found") == (code, found["code"]), found
    assert "/home/user/deploy: private key (PEM)" == found["fields"]["files"]
    assert "/home/user/deploy: private key (PEM)" in found["message"]
    assert "in the box" in found["hint"]
    assert not (box / "tiny.raw").exists()


def test_a_key_that_a_package_ships_stays_and_is_listed(made: Made, box: Path) -> None:
    """The result and kimbox.json list it."""
    machine_of(box, image_of(box), with_files(SHIPPED))
    kept = [{"path": "/usr/share/some/test.key", "kind": "private key (PEM)", "package": "some"}]
    assert kept == made("--format", "raw")["kept_keys"]
    about = json.loads((box / "tiny.kimbox.json").read_text())
    assert (kept, True) == (about["kept_keys"], about["cleaned"])


def test_files_that_packages_generate_are_removed(made: Made, box: Path) -> None:
    """The files of the identity table, and the links to them."""
    script = (
        "mkdir /etc/munge\nwrite KEY /etc/munge/munge.key\n"
        "mkdir /etc/ssl\nmkdir /etc/ssl/private\nmkdir /etc/ssl/certs\n"
        "write KEY /etc/ssl/private/ssl-cert-snakeoil.key\nwrite KEY /etc/ssl/certs/ssl-cert-snakeoil.pem\n"
        "symlink /etc/ssl/certs/0123abcd.0 ssl-cert-snakeoil.pem\nsymlink /etc/ssl/certs/89abcdef.0 other.pem\n"
    )
    machine_of(box, image_of(box), with_files(script))
    assert {
        "/etc/munge/munge.key",
        "/etc/ssl/certs/0123abcd.0",
        "/etc/ssl/certs/ssl-cert-snakeoil.pem",
        "/etc/ssl/private/ssl-cert-snakeoil.key",
    } == set(made("--format", "raw")["cleaned"])
    assert b"/etc/ssl/certs/89abcdef.0" in tinypackage.everything(box / "tiny.raw")


def test_a_database_is_refused_rather_than_removed(kimbox: Kimbox, box: Path) -> None:
    """kimbox cannot know whether its content is private."""
    folders = "".join(f"mkdir {f}\n" for f in ("/var/lib/mysql", "/var/lib/mysql/mysql"))
    machine_of(box, image_of(box), with_files(f"{folders}write KEY /var/lib/mysql/ibdata1\n"))
    code, out, _ = kimbox("--json", "package", "--format", "raw")
    found = error(out, "package")
    assert (1, "secret-found") == (code, found["code"])
    assert "/var/lib/mysql/ibdata1: database" == found["fields"]["files"]


def test_a_sealed_box_is_refused(kimbox: Kimbox, box: Path) -> None:
    """Its image is packaged all the same."""
    machine = machine_of(box, image_of(box), "")
    machine.write_record(attrs.evolve(machine.record(), sealed=Sealed("worker", "example.org")))
    code, out, _ = kimbox("--json", "package", "--format", "raw")
    told = error(out, "package")
    assert (5, True) == (code, "sealed as worker of example.org" in told["message"])
    assert "--unseal" in told["hint"]
    assert "--image" in told["hint"]
    code, out, _ = kimbox("--json", "package", "--format", "raw", "--image")
    assert (0, "image") == (code, result(out, "package")["from"])


# --- images from elsewhere

RUN = """\
rm /etc/machine-id
write KEY /etc/machine-id
rm /etc/hostname
write NAME /etc/hostname
write KEY /etc/ssh/ssh_host_ed25519_key
write KEY /var/log/syslog
write ZEROS /var/log/lastlog
write KEY /var/lib/kimbox/done
"""
RUN_PERSISTENT = """\
mkdir ssh
write KEY ssh/ssh_host_ed25519_key
mkdir git
mkdir git/a
write KEY git/a/b
write KEY events.jsonl
"""


def debugfs(raw: Path, start: int, script: str) -> None:
    done = run.run(["debugfs", "-w", "-f", "-", f"{raw}?offset={start}"], input=script)
    assert "rror" not in done.stderr


def used_image(image: Path, folder: Path) -> Path:
    """A copy of an image with traces of a run: in root, /persistent, snapshot, swap, unused space and grubenv."""
    raw = folder / "ran.raw"
    run.run(["cp", "--sparse=always", image, raw])
    raw.chmod(0o600)
    (folder / "name").write_text("other\n")
    names = with_files(RUN).replace("NAME", str(folder / "name"))
    with rawdisk.opened(raw) as view:
        contents = view.contents
        starts = {name: volume.start_bytes for name, volume in contents.mounted.items()}
        store_at, swap_at = contents.store.start_bytes, contents.swaps[0].start_bytes
    debugfs(raw, starts[""], f"write {folder}/name /deleted\nrm /deleted\n{names}")
    debugfs(raw, starts["/persistent"], with_files(RUN_PERSISTENT))
    (folder / "grubenv").write_bytes(b"# GRUB Environment Block\nsaved_entry=resnap\n".ljust(1024, b"#"))
    debugfs(raw, starts["/boot"], f"rm /grub/grubenv\nwrite {folder}/grubenv /grub/grubenv\n")
    with raw.open("r+b") as file:
        os.pwrite(file.fileno(), struct.pack("<IIII", 0x70416E53, 1, 1, 128), store_at)
        os.pwrite(file.fileno(), b"SECRET of the snapshot", store_at + (2 << 16))
        os.pwrite(file.fileno(), b"SECRET of memory", swap_at + (1 << 20))
    return raw


@pytest.fixture
def added(made: Made, kimbox: Kimbox, box: Path) -> Any:
    """A function that adds a disk as the box `old`, and returns the folder of a spec that uses it."""

    def add(disk: Path) -> Path:
        assert 0 == kimbox("box", "add", "--force", "old", str(disk))[0]
        folder = box / "again"
        folder.mkdir(exist_ok=True)
        (folder / "kimbox.yaml").write_text(AGAIN)
        assert 0 == kimbox("lock", "-f", str(folder / "kimbox.yaml"))[0]
        return folder

    return add


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_an_image_that_has_run_is_cleaned(added: Any, made: Made, box: Path, kind: str) -> None:
    """Every trace is removed. /persistent, snapshot and swap are as built. Equal images give equal packages."""
    image = image_of(box).disk
    raw = used_image(image, box)
    disk = raw
    if kind == "qcow2":
        disk = box / "ran.qcow2"
        run.run(["qemu-img", "convert", "-O", "qcow2", raw, disk])
    folder = added(disk)
    digest = sha256_file(disk)
    words = ("-f", str(folder / "kimbox.yaml"), "--format", "raw", "-o")
    answer = made(*words, str(box / "one"))
    assert ("image", None) == (answer["from"], answer["opaque"])
    assert [
        "/etc/hostname", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key", "/persistent/events.jsonl",
        "/persistent/git", "/persistent/ssh", "/var/lib/kimbox/done", "/var/log/syslog", "data in unused space",
        "the boot mode", "the snapshot of root",
    ] == answer["cleaned"]  # fmt: skip
    new = box / "one/again.raw"
    data = new.read_bytes()
    assert (False, False) == (b"SECRET" in data, b"PRIVATE KEY" in data)
    with rawdisk.opened(new) as view:
        assert [] == external.traces(view)
        persistent = {entry.path for entry in directories.walk(view.contents.mounted["/persistent"].file_system)}
        assert bytes(1 << 16) == view.contents.store.read(0, 1 << 16)
    assert {b"/lost+found", b"/runsecure", b"/runsetup"} == persistent
    assert bytes(10_000) == tinypackage.content(new, b"/var/log/lastlog")
    for path in (b"/etc/machine-id", b"/etc/hosts"):
        assert tinypackage.content(image, path) == tinypackage.content(new, path)
    assert b"kimbox\n" == tinypackage.content(new, b"/etc/hostname")
    at = madedisk.places_of(new)
    for offset, _ in (at.boot, at.root):
        run.run(["e2fsck", "-f", "-n", f"{new}?offset={offset}"])
    made(*words, str(box / "two"))
    assert sha256_file(new) == sha256_file(box / "two/again.raw")
    assert digest == sha256_file(disk)
    assert [] == list(image.parents[1].glob(f"{images.TEMPORARY}*"))


def test_an_image_that_has_not_run_is_unchanged(added: Any, made: Made, box: Path) -> None:
    """A package of a package has the same bytes."""
    folder = added(image_of(box).disk)
    answer = made("-f", str(folder / "kimbox.yaml"), "--format", "raw", "-o", str(box / "one"))
    # The tiny image has a host name of its own.
    assert ([], None) == ([path for path in answer["cleaned"] if path != "/etc/hostname"], answer["opaque"])
    folder = added(box / "one/again.raw")
    answer = made("-f", str(folder / "kimbox.yaml"), "--format", "raw", "-o", str(box / "two"))
    assert ([], None) == (answer["cleaned"], answer["opaque"])
    assert sha256_file(box / "one/again.raw") == sha256_file(box / "two/again.raw")


def test_a_key_in_an_image_from_elsewhere_is_refused(added: Any, kimbox: Kimbox, box: Path) -> None:
    """kimbox does not remove such a key, because it is not a trace that kimbox knows."""
    raw = box / "with-key.raw"
    run.run(["cp", "--sparse=always", image_of(box).disk, raw])
    raw.chmod(0o600)
    debugfs(raw, madedisk.places_of(raw).root[0], with_files("write KEY /etc/some.pem\n"))
    folder = added(raw)
    code, out, _ = kimbox("--json", "package", "-f", str(folder / "kimbox.yaml"), "--format", "raw")
    found = error(out, "package")
    assert (1, "secret-found") == (code, found["code"])
    assert "/etc/some.pem: private key (PEM)" == found["fields"]["files"]


def test_another_layout_is_packaged_with_a_warning(added: Any, kimbox: Kimbox, box: Path) -> None:
    """kimbox cannot clean such a disk. It prints a warning and records this in kimbox.json."""
    disk = box / "foreign.raw"
    with disk.open("wb") as file:
        file.truncate(380 << 20)
        file.write(bytes(510) + b"\x55\xaa")
    folder = added(disk)
    code, out, err = kimbox("--json", "package", "-f", str(folder / "kimbox.yaml"), "--format", "raw")
    assert (0, True) == (code, "cannot read this image" in err), err
    assert "layout" in result(out, "package")["opaque"]
    assert False is json.loads((box / "again.kimbox.json").read_text())["cleaned"]
    assert disk.read_bytes() == (box / "again.raw").read_bytes()


def test_a_damaged_image_that_has_run_is_refused(added: Any, kimbox: Kimbox, box: Path) -> None:
    """kimbox cannot remove the traces of a damaged disk, so a warning is not enough."""
    raw = used_image(image_of(box).disk, box)
    debugfs(raw, madedisk.places_of(raw).root[0], "clri /etc\n")
    folder = added(raw)
    code, out, _ = kimbox("--json", "package", "-f", str(folder / "kimbox.yaml"), "--format", "raw")
    found = error(out, "package")
    assert (1, "disk-damaged", "root") == (code, found["code"], found["fields"]["name"])
    assert not (box / "again.raw").exists()


def test_a_machine_of_an_image_that_had_run_is_cleaned_of_both(made: Made, box: Path) -> None:
    """kimbox removes the traces of the machine, and those that its image has of an earlier machine."""
    image = image_of(box)
    raw = used_image(image.disk, box)
    work = box / "copy"
    work.mkdir()
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", work / "used.qcow2"])
    foreign = attrs.evolve(image, disk=raw, facts={"format": "raw"})
    cleaned = packagedisk.clean(work / "used.qcow2", foreign, work)
    assert {"/persistent/ssh", "/etc/ssh/ssh_host_ed25519_key"} <= set(cleaned)
    with rawdisk.opened(work / "clean.raw") as view:
        assert [] == external.traces(view)
    assert b"PRIVATE KEY" not in (work / "clean.raw").read_bytes()


def test_constants_match_the_provisioner() -> None:
    """The texts of the provisioner `base`, and the files that it writes to /persistent."""
    from kimbox import paths
    from kimbox.image.inputs import provisioners

    build = (paths.provisioners_dir() / "base/build").read_text()
    hosts = (external.HOSTS % external.NO_NAME).decode().replace("\n", "\\n")
    assert f"printf '{hosts}' >/etc/hosts\n" in build
    assert f"echo {external.NO_NAME.decode()} >/etc/hostname\n" in build
    files = {file.path.encode() for name in provisioners.BASE for file in provisioners.load(name).persistent}
    assert set(external.BUILT) == files
