"""Packages of a tiny box: what is in each format, what a halted machine loses, and that Vagrant takes them."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import madedisk
import pytest
import tinyimage
import tinypackage
from clirun import Kimbox, error
from clirun import kimbox as kimbox
from clirun import world as world
from makemachine import running
from tinypackage import Made, image_of, machine_of, members
from webfolder import serving

from kimbox import run
from kimbox.errors import ImageError
from kimbox.files import sha256_file
from kimbox.image.formats import export, sums
from kimbox.image.store import images, names

pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")

box, made = tinypackage.box, tinypackage.made  # fixtures


def test_every_format(made: Made, box: Path, tmp_path: Path) -> None:
    """Each holds the same disk; boxes hold what they are made of, and other formats have it beside them."""
    kinds = ["libvirt", "virtualbox", "ova", "qcow2", "raw"]
    answer = made("-o", "out", *(word for kind in kinds for word in ("--format", kind)))
    out = box / "out"
    assert ("image", "tiny") == (answer["from"], answer["name"])
    beside = ["kimbox.json", "kimbox.lock", "kimbox.yaml", "provenance.intoto.json", "sbom.cdx.json", "sbom.spdx.json"]
    packages = ["tiny-libvirt.box", "tiny-virtualbox.box", "tiny.ova", "tiny.qcow2", "tiny.raw"]
    assert sorted([*packages, "tiny.SHA256SUMS", *(f"tiny.{n}" for n in beside)]) == sorted(
        p.name for p in out.iterdir()
    )
    run.run(["sha256sum", "--check", "--strict", "tiny.SHA256SUMS"], cwd=out)
    disk = image_of(box).disk
    for name in packages[:2]:
        there = members(out / name)
        assert set(beside) < set(there)
        assert "tiny" == json.loads(there["kimbox.json"])["name"]
        assert "lock: 1" in there["kimbox.lock"].decode()
        assert "CycloneDX" == json.loads(there["sbom.cdx.json"])["bomFormat"]
        assert json.loads(there["kimbox.yaml"])["image"]["packages"] == ["one"]
    vmdk = members(out / "tiny.ova")["box-disk001.vmdk"]
    assert vmdk == members(out / "tiny-virtualbox.box")["box-disk001.vmdk"]
    (tmp_path / "x.vmdk").write_bytes(vmdk)
    run.run(["qemu-img", "check", "-f", "vmdk", tmp_path / "x.vmdk"])
    told = json.loads(run.run(["qemu-img", "info", "--output=json", out / "tiny.qcow2"]).stdout)
    assert "zstd" == told["format-specific"]["data"]["compression-type"]
    checked = json.loads(run.run(["qemu-img", "check", "--output=json", out / "tiny.qcow2"]).stdout)
    assert checked["allocated-clusters"] == checked["compressed-clusters"] > 0
    for path, kind in ((tmp_path / "x.vmdk", "vmdk"), (out / "tiny.qcow2", "qcow2"), (out / "tiny.raw", "raw")):
        run.run(["qemu-img", "compare", "-f", kind, "-F", "raw", path, disk])
    ovf = ET.fromstring(members(out / "tiny.ova")["tiny.ovf"])  # noqa: S314
    values = [node.text for node in ovf.iter() if node.tag.endswith(("ResourceSubType", "ResourceType"))]
    assert {"AHCI", "virtio", "20", "10", "17", "3", "4"} == set(values)
    assert b"SHA1(tiny.ovf)= " in members(out / "tiny.ova")["tiny.mf"]


def test_a_package_for_openstack(made: Made, box: Path) -> None:
    """The disk, and beside it what Glance needs to know: devices, size of the disk, and the key of the image."""
    made("-o", "out", "--format", "openstack")
    image, out = image_of(box), box / "out"
    run.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", out / "tiny-openstack.qcow2", image.disk])
    wanted = json.loads((out / "tiny.openstack.json").read_text())
    assert ("tiny", "qcow2", "bare", 1) == tuple(
        wanted[key] for key in ("name", "disk_format", "container_format", "min_disk")
    )
    assert ["kimbox", f"kimbox-image-{image.key}"] == wanted["tags"]
    assert ("scsi", "virtio-scsi", "virtio") == tuple(
        wanted[key] for key in ("hw_cdrom_bus", "hw_scsi_model", "hw_disk_bus")
    )
    assert "tiny.openstack.json" in (out / "tiny.SHA256SUMS").read_text()


def test_the_same_image_gives_the_same_bytes(made: Made, box: Path) -> None:
    """In every format, wherever it is written."""
    words = [word for kind in ("libvirt", "virtualbox", "ova", "qcow2", "openstack") for word in ("--format", kind)]
    one, two = (made("-o", folder, *words)["files"] for folder in ("a", "b/c"))
    for first, second in zip(one, two, strict=True):
        assert sha256_file(box / first) == sha256_file(box / second), first


def test_a_vmdk_has_no_random_identity(tmp_path: Path) -> None:
    """Whatever qemu-img has drawn, leading zeros left out or not, the same bytes come of it.

    It draws twice; what the longer one has behind the end of the shorter one stays there.
    """
    made = set()
    for drawn, behind in ((b"CID=1", b""), (b"CID=deadbeef", b""), (b"CID=d48bda", b"\0\n"), (b"CID=1", b"\0ide\n")):
        vmdk = tmp_path / "x.vmdk"
        run.run(["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized", vmdk, "4M"])
        content = vmdk.read_bytes()
        text = content[512 : 512 + 1024]
        lines = [drawn if line.startswith(b"CID=") else line for line in text.partition(b"\0")[0].split(b"\n")]
        vmdk.write_bytes(content[:512] + (b"\n".join(lines) + behind).ljust(1024, b"\0") + content[512 + 1024 :])
        export.set_identity(vmdk, "0123abcd")
        run.run(["qemu-img", "info", "-f", "vmdk", vmdk])
        assert b"\nCID=0123abcd\nparentCID=ffffffff\n" in vmdk.read_bytes()
        made.add(sha256_file(vmdk))
        vmdk.unlink()
    assert len(made) == 1


def test_the_network_card(made: Made, box: Path) -> None:
    """It is the one that VirtualBox has by itself where the kernel knows that."""
    folders = ["lib", "lib/modules", "lib/modules/6.1"] + [
        f"lib/modules/6.1/kernel{end}"
        for end in ("", "/drivers", "/drivers/net", "/drivers/net/ethernet", "/drivers/net/ethernet/intel")
    ]
    folders.append(f"{folders[-1]}/e1000")
    machine_of(box, image_of(box), "mkdir /usr\n" + "".join(f"mkdir /usr/{folder}\n" for folder in folders))
    made("--format", "virtualbox")
    description = members(box / "tiny-virtualbox.box")["box.ovf"]
    assert b"<rasd:ResourceSubType>E1000</rasd:ResourceSubType>" in description
    assert b"virtio" not in description


CHANGES = """\
mkdir /etc/kimbox
write mine /etc/changed
write secret /etc/ssh/ssh_host_rsa_key
rm /etc/machine-id
write secret /etc/machine-id
write secret /root/.bash_history
write secret /root/.netrc
mkdir /root/.docker
write secret /root/.docker/config.json
mkdir /home/user/.gnupg
write secret /home/user/.gnupg/secring.gpg
mkdir /root/.ssh
write secret /root/.ssh/authorized_keys
mkdir /home/user/.ssh
write secret /home/user/.ssh/id_rsa
write secret /var/log/syslog
mkdir /var/log/deep
mkdir /var/log/deep/er
write secret /var/log/deep/er/log
mkdir /var/log/journal
mkdir /var/log/journal/0123456789abcdef0123456789abcdef
write secret /var/log/journal/0123456789abcdef0123456789abcdef/system.journal
write secret /var/cache/apt/archives/x.deb
mkdir /var/tmp/a
mkdir /var/tmp/a/b
write secret /var/tmp/a/b/c
write secret /var/tmp/left
write secret /var/lib/kimbox/done
mkdir /var/lib/dpkg
write status /var/lib/dpkg/status
"""


def test_a_halted_machine(made: Made, box: Path, tmp_path: Path) -> None:
    """Its root is packaged as its maintainer left it, without a trace of what is of this machine alone."""
    machine = machine_of(box, image_of(box), CHANGES)
    before = sha256_file(machine.disk)
    answer = made("--format", "raw", "--format", "libvirt", "-o", "a")
    assert "machine" == answer["from"]
    assert {"/etc/machine-id", "/home/user/.ssh/id_rsa", "/var/tmp/a/b", "/var/log/deep/er/log"} < set(
        answer["cleaned"]
    )
    assert before == sha256_file(machine.disk)
    assert not (machine.folder / "package").exists()
    bom = json.loads((box / "a/tiny.sbom.cdx.json").read_text())
    assert [("one-more", "3.1")] == [(part["name"], part["version"]) for part in bom["components"]]
    assert bom == json.loads(members(box / "a/tiny-libvirt.box")["sbom.cdx.json"])
    raw = box / "a/tiny.raw"
    content = raw.read_bytes()
    assert b"SECRET" not in content
    assert b"what the maintainer wants" in content
    at = madedisk.places_of(raw)
    run.run(["e2fsck", "-f", "-n", f"tiny.raw?offset={at.root[0]}"], cwd=raw.parent)
    there = tinypackage.everything(raw)
    logs = [b"/var/log/btmp", b"/var/log/deep", b"/var/log/deep/er", b"/var/log/journal"]
    assert logs == sorted(path for path in there if path.startswith(b"/var/log/"))
    assert (b"", 0o100444) == (tinypackage.content(raw, b"/etc/machine-id"), there[b"/etc/machine-id"].inode.mode)
    assert b"/root/.bash_history" not in there
    made("--format", "raw", "--format", "libvirt", "-o", "b")
    for name in ("tiny.raw", "tiny-libvirt.box"):
        assert sha256_file(box / "a" / name) == sha256_file(box / "b" / name)
    made("--format", "raw", "--image", "-o", "c")
    assert sha256_file(box / "c/tiny.raw") == sha256_file(image_of(box).disk)


def test_a_machine_with_a_larger_disk_than_its_image(made: Made, box: Path) -> None:
    """As a spec may ask for: its package is as large as the image, and the same as without that."""
    machine = machine_of(box, image_of(box), "write mine /etc/changed")
    made("--format", "raw", "-o", "a")
    run.run(["qemu-img", "resize", "-q", machine.disk, "+1G"])
    made("--format", "raw", "-o", "b")
    assert sha256_file(box / "a/tiny.raw") == sha256_file(box / "b/tiny.raw")


def test_an_untouched_machine_is_its_image(made: Made, box: Path) -> None:
    """Cleaning changes nothing in a root that nobody maintained."""
    image = image_of(box)
    machine_of(box, image, "")
    answer = made("--format", "raw")
    assert ("machine", []) == (answer["from"], answer["cleaned"])
    told = [
        {path: (e.inode.mode, e.inode.uid, e.inode.size_bytes) for path, e in tinypackage.everything(disk).items()}
        for disk in (box / "tiny.raw", image.disk)
    ]
    assert told[0] == told[1]


def test_what_is_refused(kimbox: Kimbox, box: Path) -> None:
    """A running machine, one whose disk has another layout, what is there already, and words that mean nothing."""
    image = image_of(box)
    machine = machine_of(box, image, "")
    with running(machine):
        code, out, _ = kimbox("--json", "package")
        assert (5, True) == (code, "--image" in error(out, "package")["hint"])
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", machine.disk, "380M"])
    assert "layout" in error(kimbox("--json", "package")[1], "package")["message"]
    assert [] == [p.name for p in box.iterdir() if p.name.startswith((".tiny", "tiny"))]
    (box / "tiny-libvirt.box").write_text("mine")
    code, out, _ = kimbox("--json", "package", "--image")
    assert (5, "file-exists") == (code, error(out, "package")["code"])
    assert "mine" == (box / "tiny-libvirt.box").read_text()
    for words in (
        ["--format", "vdi"],
        ["--compress", "lzma"],
        ["--compress", "xz", "--format", "qcow2"],
        ["--version", "x y"],
        ["--catalog", "ftp://x/"],
        ["--catalog", "https://x/", "--format", "raw"],
    ):
        assert 2 == kimbox("package", *words)[0], words


def test_a_changed_bit_in_the_store(made: Made, kimbox: Kimbox, box: Path) -> None:
    """`package` and `verify` refuse the image, also for a machine that was made from it. `doctor --store` names it."""
    image = image_of(box)
    machine_of(box, image, "")
    assert (0, "good") == _store_checks(kimbox)
    image.disk.chmod(0o644)
    with image.disk.open("r+b") as disk:
        disk.seek(1 << 20)
        byte = disk.read(1)[0]
        disk.seek(1 << 20)
        disk.write(bytes([byte ^ 1]))
    for words in (["package"], ["package", "--image"], ["verify"]):
        code, out, _ = kimbox("--json", *words)
        assert (ImageError.exit_code, "image-damaged") == (code, error(out, words[0])["code"]), words
    assert [] == list(box.glob("*.box"))
    assert (ImageError.exit_code, "bad") == _store_checks(kimbox)


def _store_checks(kimbox: Kimbox) -> tuple[int, str]:
    """Exit status of `doctor --store`, and its verdict about the only image."""
    code, out, _ = kimbox("--json", "doctor", "--store")
    (check,) = json.loads(out)["result"]["checks"]
    return code, check["verdict"]


def test_signed_packages_are_added(made: Made, kimbox: Kimbox, box: Path, tmp_path: Path) -> None:
    """The signature of a package is one that `box add` verifies; the one beside it is over all files."""
    run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", tmp_path / "key"])
    answer = made("--sign", str(tmp_path / "key"))
    assert str(box / "tiny.SHA256SUMS.sig") in [str(box / f) for f in answer["files"]]
    public = (tmp_path / "key.pub").read_text().split()
    sums.verify(
        (box / "tiny.SHA256SUMS").read_bytes(), (box / "tiny.SHA256SUMS.sig").read_bytes(), (" ".join(public[:2]),)
    )
    assert 0 == kimbox("box", "add", "own/tiny", "tiny-libvirt.box", "--key", str(tmp_path / "key.pub"))[0]
    image = images.find(names.require("own/tiny").image)
    assert image is not None
    run.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", image.disk, image_of(box).disk])
    code, out, _ = kimbox("--json", "package", "--image", "-o", "x", "--sign", str(tmp_path / "none"))
    assert (1, "signing-failed") == (code, error(out, "package")["code"])
    assert not (box / "x").exists()


@pytest.mark.skipif(not run.which("vagrant"), reason="script/bootstrap test brings vagrant")
def test_real_vagrant(made: Made, box: Path, tmp_path: Path) -> None:
    """Vagrant adds the box from a catalog on a server, by its version, and refuses it where the checksum is another."""
    home = {"VAGRANT_HOME": str(tmp_path / "vagrant"), "VAGRANT_CHECKPOINT_DISABLE": "1", "VAGRANT_NO_COLOR": "1"}

    def vagrant(*words: str | Path) -> run.Completed:
        return run.run(["vagrant", "box", *words], env=home, check=False, timeout_s=120)

    with serving(box / "public") as port:
        folder = f"http://127.0.0.1:{port}"
        made("-o", "public", "--catalog", folder, "--version", "1.2.0", "--format", "libvirt", "--format", "virtualbox")
        added = vagrant("add", f"{folder}/tiny.metadata.json", "--provider", "libvirt")
        assert added.ok, added.stdout + added.stderr
        listed = vagrant("list").stdout
        assert "tiny" in listed
        assert "(libvirt, 1.2.0)" in listed
        there = next((tmp_path / "vagrant/boxes").glob("*/1.2.0/libvirt/sbom.cdx.json"))
        assert there.read_bytes() == members(box / "public/1.2.0/tiny-libvirt.box")["sbom.cdx.json"]
        catalog = box / "public/tiny.metadata.json"
        checksum = json.loads(catalog.read_text())["versions"][0]["providers"][1]["checksum"]
        catalog.write_text(catalog.read_text().replace(checksum, checksum[::-1]))
        refused = vagrant("add", f"{folder}/tiny.metadata.json", "--provider", "virtualbox")
        assert not refused.ok
        assert "checksum" in refused.stderr
        assert "virtualbox" not in vagrant("list").stdout
        made("-o", "public", "--catalog", folder, "--version", "1.3.0")
        for version in ("1.3.0", "1.2.0"):  # what was published stays
            words = ["--provider", "libvirt", "--box-version", version, "--force"]
            assert vagrant("add", f"{folder}/tiny.metadata.json", *words).ok
            assert f"(libvirt, {version})" in vagrant("list").stdout


def test_a_catalog_grows(made: Made, box: Path, kimbox: Kimbox) -> None:
    """A second version is added to the first, whose packages stay; another package of the same version is refused."""
    made("--catalog", "https://h/x", "--version", "1")
    first = (box / "1/tiny-libvirt.box").read_bytes()
    made("--catalog", "https://h/x", "--version", "2")
    catalog = json.loads((box / "tiny.metadata.json").read_text())
    places = {one["version"]: one["providers"][0]["url"] for one in catalog["versions"]}
    assert {"1": "https://h/x/1/tiny-libvirt.box", "2": "https://h/x/2/tiny-libvirt.box"} == places
    assert first == (box / "1/tiny-libvirt.box").read_bytes()
    shutil.rmtree(box / "2")
    code, out, _ = kimbox("--json", "package", "--catalog", "https://other/", "--version", "2")
    refused = error(out, "package")
    assert (5, "version-exists", "2") == (code, refused["code"], refused["fields"]["version"])
    assert "--version" in refused["hint"]
    assert not (box / "2").exists()  # nothing was made in vain
