"""Boxes as other programs pack them: GNU tar, bsdtar, macOS's tar, zstd and bzip2, and OVA archives."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import makevagrant
import ownhome
import pytest
from makevagrant import archive, metadata
from refused import refused
from takenimage import digest_of, leftovers
from webfolder import serving

from kimbox import run
from kimbox.actions import boxes
from kimbox.errors import ImageError
from kimbox.image.formats import export, sums, tarstream
from kimbox.image.store import images

home = ownhome.home  # a fixture

add = functools.partial(boxes.add, digest=None, keys=(), force=True)

#: What tar of macOS writes into the companion of a file: the header of AppleDouble.
APPLE_DOUBLE = b"\0\5\26\7\0\2\0\0Mac OS X        "


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A disk with holes."""
    path = tmp_path / "raw"
    with path.open("wb") as file:
        for offset in range(0, 30 << 20, 1 << 20):
            file.seek(offset)
            file.write(hashlib.shake_128(b"%d" % offset).digest(4000))
        file.seek(510)
        file.write(b"\x55\xaa")
        file.truncate(30 << 20)
    return path


@pytest.fixture
def folder(tmp_path: Path, raw: Path) -> Path:
    """A folder with the files of a box with a raw disk."""
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "metadata.json").write_bytes(metadata(format="raw")[1])
    (folder / "Vagrantfile").write_text("raise 'never run'")
    run.run(["cp", "--sparse=always", raw, folder / "box.img"])
    return folder


def check(location: Path, raw: Path) -> images.Image:
    """Adds an archive, and compares the disk in the store with the raw disk."""
    image = images.find(add("x", str(location)).image)
    assert image is not None
    run.run(["qemu-img", "compare", "-f", image.format, "-F", "raw", image.disk, raw])
    return image


#: Form -> the command that writes an archive of all files of the current folder to stdout.
TARS = {
    "gnu": ["tar", "-S", "--format=gnu", "-cf", "-"],
    "pax 0.0": ["tar", "-S", "--format=posix", "--sparse-version=0.0", "-cf", "-"],
    "pax 0.1": ["tar", "-S", "--format=posix", "--sparse-version=0.1", "-cf", "-"],
    "pax 1.0": ["tar", "-S", "--format=posix", "--sparse-version=1.0", "-cf", "-"],
    "v7": ["tar", "--format=v7", "-cf", "-"],
    "label": ["tar", "-V", "a label", "-cf", "-"],
    "bsdtar pax": ["bsdtar", "--format=pax", "-cf", "-"],
    "bsdtar gnu": ["bsdtar", "--format=gnutar", "-cf", "-"],
    "bsdtar ustar": ["bsdtar", "--format=ustar", "-cf", "-"],
}


@pytest.mark.parametrize("form", TARS)
@pytest.mark.parametrize("disk_first", [False, True])
def test_archives_of_tar(tmp_path: Path, raw: Path, folder: Path, form: str, disk_first: bool) -> None:
    """With holes and without, with the disk before and after metadata.json. The holes are holes in the store, too."""
    if not run.which(TARS[form][0]):
        pytest.skip(f"no {TARS[form][0]} here")
    names = ["./metadata.json", "./Vagrantfile", "./box.img"]
    packed = tmp_path / "x.box"
    argv = [*TARS[form], *(reversed(names) if disk_first else names)]
    argv[argv.index("-")] = str(packed)
    run.run(argv, cwd=folder)
    is_sparse = form in ("gnu", "pax 0.0", "pax 0.1", "pax 1.0", "bsdtar pax")
    assert is_sparse == (packed.stat().st_size < 2 << 20)
    image = check(packed, raw)
    assert ("raw", "libvirt") == (image.format, image.facts["provider"])
    assert image.disk.stat().st_blocks * 512 < 3 << 20


@pytest.mark.parametrize(
    "command", [["zstd", "-q", "-c"], ["zstd", "-q", "-c", "-T2"], ["bzip2", "-c"], ["xz", "-c", "-0"], ["gzip", "-c"]]
)
def test_compressed_boxes(tmp_path: Path, raw: Path, folder: Path, command: list[str]) -> None:
    """Whatever the name of the file is."""
    if not run.which(command[0]):
        pytest.skip(f"no {command[0]} here")
    run.run(["tar", "-S", "-cf", tmp_path / "x.tar", "metadata.json", "box.img"], cwd=folder)
    run.run(["sh", "-c", '"$@" >x.box', "sh", *command, "x.tar"], cwd=tmp_path)
    check(tmp_path / "x.box", raw)


def test_a_large_disk_of_holes(tmp_path: Path, folder: Path) -> None:
    """1 TiB of holes takes neither time nor space. Two disks of that size exceed the limit of an archive."""
    os.truncate(folder / "box.img", 1 << 40)
    packed = tmp_path / "x.box"
    run.run(["tar", "-S", "-cf", packed, "metadata.json", "box.img"], cwd=folder)
    members = list(tarstream.members(packed))
    assert [("box.img", 1 << 40, True)] == [(m.name, m.size_bytes, m.has_holes) for m in members[1:]]
    for name in ("two", "three"):
        os.link(folder / "box.img", folder / name)
    run.run(["tar", "-S", "--hard-dereference", "-cf", packed, "metadata.json", "box.img", "two", "three"], cwd=folder)
    with refused(ImageError, "file-too-large", limit="member"):
        list(tarstream.members(packed))


def test_checksums_of_a_disk_with_holes(tmp_path: Path, raw: Path, folder: Path, home: Path) -> None:
    """SHA256SUMS has the digest of the whole disk. A box with another disk is refused."""
    names = ["metadata.json", "Vagrantfile", "box.img"]
    digests = {name: digest_of((folder / name).read_bytes()).removeprefix("sha256:") for name in names}
    for wrong in (False, True):
        digests |= {"box.img": "0" * 64} if wrong else {}
        (folder / sums.NAME).write_bytes(sums.text(digests))
        run.run(["tar", "-S", "-cf", tmp_path / "x.box", *names, sums.NAME], cwd=folder)
        if not wrong:
            check(tmp_path / "x.box", raw)
    with refused(ImageError, "checksum-mismatch", name="box.img", state="different"):
        add("y", str(tmp_path / "x.box"))
    assert [] == leftovers(home)


def test_companions_of_macos(tmp_path: Path, raw: Path) -> None:
    """kimbox ignores `._NAME` and `__MACOSX/`, also in a box with checksums, which do not list them."""
    vmdk = makevagrant.converted(raw, "vmdk", "-o", "subformat=streamOptimized")
    files = {"metadata.json": metadata("virtualbox")[1], "box.ovf": b"<Envelope/>", "box-disk1.vmdk": vmdk}
    text = sums.text({name: digest_of(data).removeprefix("sha256:") for name, data in files.items()})
    members = [pair for name, data in files.items() for pair in ((f"./._{name}", APPLE_DOUBLE), (f"./{name}", data))]
    members += [("__MACOSX/._box-disk1.vmdk", APPLE_DOUBLE), ("__MACOSX/box-disk2.vmdk", vmdk)]
    for more in ([], [(sums.NAME, text)]):
        (tmp_path / "x.box").write_bytes(archive(*members, *more))
        assert "virtualbox" == check(tmp_path / "x.box", raw).facts["provider"]


@pytest.mark.parametrize("name", ["box-sda", "disks/vda.qcow2", "./disk", "box.img"])
@pytest.mark.parametrize("disk_first", [False, True])
def test_names_of_disks(tmp_path: Path, raw: Path, name: str, disk_first: bool, home: Path) -> None:
    """The disk has any name, in any folder, with or without a suffix. Other files beside it do not matter."""
    qcow2 = makevagrant.converted(raw, "qcow2")
    members = [metadata(disks=[] if name == "box.img" else [{"path": name}]), (name, qcow2), ("box_1.img", qcow2)]
    (tmp_path / "x.box").write_bytes(archive(*(reversed(members) if disk_first else members)))
    check(tmp_path / "x.box", raw)
    assert [] == leftovers(home)


def ova(folder: Path, raw: Path, name: str = "study") -> Path:
    """An OVA, as `kimbox package` writes it."""
    content = export.Content(name, raw, "raw", raw.stat().st_size, 1, 1 << 30, "debian", "vagrant", {})
    export.write(export.Format.OVA, content, folder / f"{name}.ova", None)
    return folder / f"{name}.ova"


def test_an_ova(tmp_path: Path, raw: Path, home: Path) -> None:
    """The one that kimbox writes, and one that differs from its manifest."""
    made = ova(tmp_path, raw)
    assert "provider" not in check(made, raw).facts
    assert add("x", str(made)).provider is None
    run.run(["tar", "-xf", made], cwd=tmp_path)
    (tmp_path / "study.ovf").write_text("<Envelope/>")
    run.run(["tar", "-cf", "x.ova", "study.ovf", "study.mf", export.VMDK], cwd=tmp_path)
    with refused(ImageError, "checksum-mismatch", name="study.ovf", state="different"):
        add("y", str(tmp_path / "x.ova"))
    run.run(["tar", "-xf", made, "study.ovf"], cwd=tmp_path)
    run.run(["tar", "-cf", "x.ova", "study.ovf", "study.mf"], cwd=tmp_path)
    with refused(ImageError, "checksum-mismatch", name=export.VMDK, state="missing"):
        add("y", str(tmp_path / "x.ova"))
    run.run(["tar", "-cf", "x.ova", "study.ovf"], cwd=tmp_path)
    with refused(ImageError, "unsupported-box", disks="0"):
        add("y", str(tmp_path / "x.ova"))
    assert [] == leftovers(home)


@pytest.mark.parametrize("line", ["SHA512(study.ovf)= " + "0" * 128, "SHA256(study.ovf)= x", "", "\0\xff" * 1000])
def test_a_manifest_with_other_digests(tmp_path: Path, raw: Path, line: str) -> None:
    """kimbox compares SHA-1, which OVF 1 has, and SHA-256."""
    vmdk = makevagrant.converted(raw, "vmdk", "-o", "subformat=streamOptimized")
    content = archive(("study.ovf", b"<Envelope/>"), ("study.mf", line.encode()), ("a.vmdk", vmdk))
    (tmp_path / "x.ova").write_bytes(content)
    check(tmp_path / "x.ova", raw)


@pytest.mark.parametrize("line", ["SHA1(study.ovf)= " + "0" * 40, "SHA256(a.vmdk)=" + "0" * 64, "SHA1(no)=" + "0" * 40])
def test_a_manifest_that_differs(tmp_path: Path, raw: Path, line: str) -> None:
    """A description, a disk, and a file that the archive lacks."""
    vmdk = makevagrant.converted(raw, "vmdk", "-o", "subformat=streamOptimized")
    content = archive(("study.ovf", b"<Envelope/>"), ("study.mf", line.encode()), ("a.vmdk", vmdk))
    (tmp_path / "x.ova").write_bytes(content)
    with refused(ImageError, "checksum-mismatch"):
        add("x", str(tmp_path / "x.ova"))


@pytest.mark.parametrize("name", ["amd64", "x86_64", "unknown", None, ""])
def test_the_architecture_of_a_box(tmp_path: Path, raw: Path, name: str | None) -> None:
    """Names of the architecture of kimbox's boxes, and no name."""
    content = archive(metadata(architecture=name), ("box.img", makevagrant.converted(raw, "qcow2")))
    (tmp_path / "x.box").write_bytes(content)
    check(tmp_path / "x.box", raw)


@pytest.mark.parametrize("kind", ["qcow2", "raw", "ova"])
@pytest.mark.parametrize("sums_name", ["study.SHA256SUMS", "SHA256SUMS"])
def test_signed_checksums_beside_a_file(tmp_path: Path, raw: Path, kind: str, sums_name: str, home: Path) -> None:
    """As `kimbox package --sign` writes them, from a folder and from a server. Everything else is refused."""
    folder = tmp_path / "pub"
    folder.mkdir()
    for name in ("mine", "other"):
        run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", tmp_path / name])
    mine, other = (" ".join((tmp_path / f"{name}.pub").read_text().split()[:2]) for name in ("mine", "other"))
    file = folder / f"study.{kind}"
    if kind == "ova":
        ova(folder, raw)
    else:
        file.write_bytes(raw.read_bytes() if kind == "raw" else makevagrant.converted(raw, kind))
    with refused(ImageError, "signature-missing"):
        add("x", str(file), keys=(mine,))
    text = sums.text({"other.txt": "0" * 64, file.name: digest_of(file.read_bytes()).removeprefix("sha256:")})
    (folder / sums_name).write_bytes(text)
    with refused(ImageError, "signature-missing"):
        add("x", str(file), keys=(mine,))
    (folder / f"{sums_name}.sig").write_bytes(sums.sign(text, tmp_path / "mine"))
    with refused(ImageError, "signature-wrong"):
        add("x", str(file), keys=(other,))
    added = add("x", str(file), keys=(other, mine))
    assert added.verified
    with serving(folder) as port:
        url = f"http://127.0.0.1:{port}/{file.name}?token=x"
        assert added.digest == add("y", url, keys=(mine,)).digest  # in the store already
        boxes.remove(["x", "y"])
        assert added.digest == add("y", url, keys=(mine,)).digest
        boxes.remove(["y"])
    with file.open("r+b") as target:
        target.seek(-100, os.SEEK_END)
        target.write(b"changed")
    with refused(ImageError, "checksum-mismatch", name=file.name):
        add("x", str(file), keys=(mine,))
    assert [] == leftovers(home)
