"""Boxes from elsewhere: taken apart, named, and used; and archives and disks that nobody should take."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import makevagrant
import ownhome
import pytest
from imagesite import serving
from makevagrant import archive, member, metadata
from refused import refused as refused_with
from takenimage import digest_of, fetched, leftovers, refused

from kimbox import run
from kimbox.actions import boxes, prune
from kimbox.cli import app
from kimbox.errors import ImageError, KimboxError, StateError
from kimbox.image import obtain
from kimbox.image.formats import boxwriter, sums
from kimbox.image.store import images, names
from kimbox.spec.load import load_box
from kimbox.spec.model import RemoteImage

home = ownhome.home  # a fixture


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A small disk."""
    return makevagrant.raw_disk(tmp_path / "disk.raw")


@pytest.fixture
def qcow2(raw: Path) -> bytes:
    """The same as a qcow2."""
    return makevagrant.converted(raw, "qcow2")


add = functools.partial(boxes.add, digest=None, keys=(), force=False)


def put(folder: Path, content: bytes) -> str:
    """A file with this content."""
    (folder / "x.box").write_bytes(content)
    return str(folder / "x.box")


def rejected(location: str, content: bytes) -> KimboxError:
    """The error of taking a file with this content into the store."""
    with pytest.raises(KimboxError) as caught:
        fetched(RemoteImage(location, digest_of(content)))
    return caught.value


def unsafe(reason: str) -> dict[str, str]:
    """Code and fields of the error for a member `box.img` that kimbox does not unpack."""
    return {"code": "unsafe-archive", "name": "box.img", "reason": reason}


def same(image: images.Image, raw: Path) -> None:
    """The image is that disk."""
    run.run(["qemu-img", "compare", "-f", image.format, "-F", "raw", image.disk, raw])


@pytest.mark.parametrize("compress", ["", "gzip", "xz"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_box_for_libvirt(tmp_path: Path, raw: Path, qcow2: bytes, prefix: str, compress: str) -> None:
    """Its disk goes into the store under the digest of the file, and the name means it."""
    name, about = metadata()
    folder = (member("./", kind=tarfile.DIRTYPE), b"")
    content = archive(
        folder, (prefix + name, about), (f"{prefix}Vagrantfile", b"raise 'never run'"), (f"{prefix}box.img", qcow2),
        compress=compress,
    )  # fmt: skip
    added = add("owner/name", put(tmp_path, content))
    assert (digest_of(content), "libvirt") == (added.digest, added.provider)
    image = images.find(added.image)
    assert image is not None
    same(image, raw)
    assert b"raise 'never run'" == images.kept_file(image, "Vagrantfile")
    assert [added] == list(names.every())


def test_the_second_format_of_libvirt(tmp_path: Path, raw: Path, qcow2: bytes) -> None:
    """The disk has the name that metadata.json gives; two disks are refused."""
    one = {"format": "qcow2", "path": "disk1.qcow2"}
    content = archive(("disk1.qcow2", qcow2), metadata(disks=[one]))
    image = images.find(add("x", put(tmp_path, content)).image)
    assert image is not None
    same(image, raw)
    two = archive(("disk1.qcow2", qcow2), ("b.qcow2", qcow2), metadata(disks=[one, one | {"path": "b.qcow2"}]))
    with refused_with(ImageError, "unsupported-box", disks="2"):
        add("y", put(tmp_path, two))


@pytest.mark.parametrize("subformat", ["streamOptimized", "monolithicSparse"])
def test_a_box_for_virtualbox(tmp_path: Path, raw: Path, subformat: str) -> None:
    """Its VMDK is converted; metadata.json may be missing, as in the oldest boxes."""
    vmdk = makevagrant.converted(raw, "vmdk", "-o", f"subformat={subformat}")
    for about in ([metadata("virtualbox")], []):
        content = archive(*about, ("box.ovf", b"<Envelope/>"), ("box-disk001.vmdk", vmdk), compress="gzip")
        image = images.find(add(f"v{len(about)}", put(tmp_path, content)).image)
        assert image is not None
        assert ("qcow2", "virtualbox") == (image.format, image.facts["provider"])
        same(image, raw)


def test_a_vmdk_that_reaches_out_of_itself(tmp_path: Path, raw: Path, home: Path) -> None:
    """Neither an extent nor a parent of another file is opened, wherever it lies."""
    (tmp_path / "secret").write_bytes(b"the secret of this machine" * 100000)
    flat = f'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n' \
           f'RW 4096 FLAT "{tmp_path}/secret" 0\n'  # fmt: skip
    sparse = bytearray(makevagrant.converted(raw, "vmdk"))
    described = bytearray(sparse)
    struct.pack_into("<Q", described, 12, 0)  # no capacity: QEMU would read the description, wherever it is said to be
    struct.pack_into("<Q", described, 28, 1)
    described[512 : 512 + 1024] = flat.encode().ljust(1024, b"\0")
    child = bytearray(sparse)
    at = child.index(b"parentCID=ffffffff")
    child[at : at + 18] = b"parentCID=fffffffe"
    hint = f'\nparentFileNameHint="{tmp_path}/secret"\n'.encode()
    at = child.index(b"# The Disk Data Base")
    child[at : at + len(hint)] = hint
    for disk, code in ((flat.encode(), "unsupported-box"), (bytes(described), "disk-damaged")):
        with refused_with(ImageError, code, format="vmdk"):
            add("x", put(tmp_path, archive(metadata("virtualbox"), ("a.vmdk", disk))))
        assert [] == leftovers(home)
    try:
        image = images.find(add("x", put(tmp_path, archive(metadata("virtualbox"), ("a.vmdk", bytes(child))))).image)
    except ImageError:
        return
    assert image is not None
    run.run(["qemu-img", "convert", "-O", "raw", image.disk, tmp_path / "out"])
    assert b"secret of" not in (tmp_path / "out").read_bytes()


#: The error of a name that leaves the folder of the archive.
BAD_NAME = {
    "code": "unsafe-archive",
    "reason": "a name that is absolute, has `..`, or has a character that is not allowed",
}
METADATA = {"name": "metadata.json"}

#: Case -> members of an archive; the code and some fields of the error.
HOSTILE = {
    "absolute": ([("/etc/passwd", b"x")], BAD_NAME | {"name": "/etc/passwd"}),
    "above": ([("../../x", b"x")], BAD_NAME | {"name": "../../x"}),
    "inside": ([("a/../../x", b"x")], BAD_NAME | {"name": "a/../../x"}),
    "backslash": ([("..\\x", b"x")], BAD_NAME | {"name": "..\\x"}),
    "newline": ([("a\nb", b"x")], BAD_NAME | {"name": "a\nb"}),
    "symlink": ([(member("box.img", kind=tarfile.SYMTYPE, link="/etc/passwd"), b"")], unsafe("a symbolic link")),
    "hardlink": ([(member("box.img", kind=tarfile.LNKTYPE, link="/etc/passwd"), b"")], unsafe("a hard link")),
    "device": ([(member("box.img", kind=tarfile.BLKTYPE), b"")], unsafe("a device")),
    "pipe": ([(member("box.img", kind=tarfile.FIFOTYPE), b"")], unsafe("a pipe")),
    "no data": ([metadata(), (member("box.img", kind=tarfile.GNUTYPE_SPARSE), b"")],
                {"code": "not-a-disk", "content": "empty"}),
    "unknown type": ([(member("box.img", kind=b"Z"), b"")], unsafe("a member of an unknown type")),
    "arm64": ([metadata(architecture="arm64"), ("box.img", b"x")],
              {"code": "unsupported-architecture", "architecture": "arm64"}),
    "odd architecture": ([metadata(architecture={"a": 1}), ("box.img", b"x")], {"code": "unsupported-architecture"}),
    "twice": ([metadata(), metadata()], unsafe("a duplicate name") | METADATA),
    "many": ([(f"f{i}", b"") for i in range(1001)], {"code": "too-complex", "limit": "members"}),
    "not a box": ([("README", b"hello")], METADATA | {"code": "bad-box", "state": "missing"}),
    "vmware": ([metadata("vmware_desktop"), ("a.vmdk", b"x")],
               {"code": "unsupported-provider", "provider": "vmware_desktop"}),
    "no json": ([("metadata.json", b"{")], METADATA | {"code": "bad-box", "state": "invalid"}),
    "a list": ([("metadata.json", b"[]")], METADATA | {"code": "bad-box", "state": "invalid"}),
    "deep": ([("metadata.json", b"[" * 100000)], METADATA | {"code": "bad-box", "state": "invalid"}),
    "no disk": ([metadata()], {"code": "bad-box", "name": "box.img"}),
    "format": ([metadata(format="vdi"), ("box.img", b"x")], METADATA | {"code": "unsupported-box"}),
    "disks": ([metadata(disks={"a": 1}), ("box.img", b"x")], {"code": "unsupported-box", "disks": "0"}),
    "disk name": ([metadata(disks=[{"path": ["box.img"]}]), ("box.img", b"x")], METADATA | {"code": "unsupported-box"}),
    "escaping disk": ([metadata(disks=[{"path": "../x"}]), ("box.img", b"x")], {"code": "bad-box", "name": "../x"}),
    "large metadata": ([("metadata.json", b" " * (17 << 20))], METADATA | {"code": "file-too-large"}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("compress", ["", "gzip", "xz"])
def test_hostile_archives(tmp_path: Path, home: Path, name: str, compress: str) -> None:
    """Each is refused with its own error, although its digest is right. No file is left."""
    members, expected = HOSTILE[name]
    content = archive(*members, compress=compress)
    error = rejected(put(tmp_path, content), content)
    assert expected == {key: value for key, value in {**error.fields, "code": error.code}.items() if key in expected}
    assert [] == leftovers(home)
    with pytest.raises(ImageError):
        add("x", str(tmp_path / "x.box"))
    assert [] == list(names.every())


@pytest.mark.parametrize("compress", ["", "gzip", "xz"])
def test_a_text_in_place_of_a_disk(tmp_path: Path, home: Path, compress: str) -> None:
    """It is refused, with its first words in the message."""
    content = archive(metadata(), ("box.img", b"hello world\n" * 100), compress=compress)
    assert "a text that starts with" in refused(put(tmp_path, content), content)
    assert [] == leftovers(home)
    with pytest.raises(ImageError):
        add("x", str(tmp_path / "x.box"))
    assert [] == list(names.every())


def test_the_message_for_a_link(tmp_path: Path) -> None:
    """It names the member and what it is."""
    content = archive((member("box.img", kind=tarfile.SYMTYPE, link="/etc/passwd"), b""))
    message = rejected(put(tmp_path, content), content).message
    assert message.endswith("the archive is not safe to unpack: 'box.img' is a symbolic link")


def test_hostile_disks_in_a_box(tmp_path: Path, home: Path, raw: Path) -> None:
    """A qcow2 with a backing file or a data file is refused in a box as it is outside."""
    for options, reason in (
        (["-b", str(raw), "-F", "raw"], "backing file"),
        (["-o", f"data_file={tmp_path}/data,data_file_raw=on"], "another file"),
    ):
        run.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, tmp_path / "bad.qcow2", "4M"])
        content = archive(metadata(), ("box.img", (tmp_path / "bad.qcow2").read_bytes()))
        assert reason in refused(put(tmp_path, content), content)
        assert [] == leftovers(home)


def test_cut_and_damaged_archives(tmp_path: Path, home: Path, qcow2: bytes) -> None:
    """Wherever it is cut, and whatever number of a header is wrong, it is refused; nothing is left."""
    plain, packed, xz = (archive(metadata(), ("box.img", qcow2), compress=c) for c in ("", "gzip", "xz"))
    cuts = [plain[:at] for at in (512, 700, 1024, 1600, len(plain) // 2, 1024 + 512 + len(qcow2) - 1)]
    cuts += [packed[:at] for at in (12, 100, len(packed) // 2, len(packed) - 9)]
    cuts += [xz[:at] for at in (12, 100, len(xz) // 2, len(xz) - 9)]
    wrong = bytearray(plain)
    wrong[124:136] = b"77777777777\0"
    gz = bytearray(packed)
    gz[len(gz) // 2] ^= 0xFF
    xz_wrong = bytearray(xz)
    xz_wrong[len(xz) // 2] ^= 0xFF
    for content in (*cuts, bytes(wrong), bytes(gz), bytes(xz_wrong)):
        error = rejected(put(tmp_path, content), content)
        assert error.code in ("archive-damaged", "not-a-disk") or "no disk" in error.message
        assert [] == leftovers(home)


def test_numbers_that_cannot_be(tmp_path: Path) -> None:
    """A size of exabytes, and an extended header of a terabyte, are refused before the content is read."""
    huge = archive((member("box.img", 1 << 62), b""))
    error = rejected(put(tmp_path, huge), huge)
    assert ("file-too-large", "member") == (error.code, error.fields["limit"])
    endless = archive((member("x", 1 << 40, kind=tarfile.XHDTYPE), b""))
    error = rejected(put(tmp_path, endless), endless)
    assert ("file-too-large", "header") == (error.code, error.fields["limit"])


@pytest.mark.parametrize("compress", ["gzip", "xz"])
def test_a_bomb(tmp_path: Path, home: Path, compress: str) -> None:
    """A small file that unpacks to far more is refused early, although the host has enough space."""
    content = archive(("box.img", bytes(400 << 20)), compress=compress)
    assert len(content) < 1 << 20
    error = rejected(put(tmp_path, content), content)
    assert ("file-too-large", "ratio") == (error.code, error.fields["limit"])
    assert [] == leftovers(home)


def test_names(tmp_path: Path, qcow2: bytes) -> None:
    """A name is not taken over silently; the same box again is fine; removing frees the disk once nothing needs it."""
    first, second = (archive(metadata(), ("Vagrantfile", b"#" * n), ("box.img", qcow2)) for n in (1, 2))
    one = add("x", put(tmp_path, first))
    assert one == add("x", put(tmp_path, first)) == add("x", put(tmp_path, first), digest=digest_of(first))
    with pytest.raises(StateError) as caught:
        add("x", put(tmp_path, second))
    assert ("name-in-use", {"name": "x"}) == (caught.value.code, caught.value.fields)
    with refused_with(ImageError, "checksum-mismatch", actual=digest_of(second)):
        add("y", put(tmp_path, second), digest=digest_of(first).replace("a", "b"))
    two = add("x", put(tmp_path, second), force=True)
    add("z", put(tmp_path, second))
    assert [one.image] == [item.path.name for item in prune.unused()]
    assert 0 == boxes.remove(["x"])[0].freed_bytes
    assert images.find(two.image)
    assert 0 < boxes.remove(["z"])[0].freed_bytes
    assert images.find(two.image) is None
    with refused_with(StateError, "box-not-found", name="z"):
        boxes.remove(["z"])


def test_from_a_server(tmp_path: Path, qcow2: bytes) -> None:
    """With a digest or, told so, without; another content than the digest's is refused."""
    content = archive(metadata(), ("box.img", qcow2))
    with serving(content) as site:
        assert digest_of(content) == add("x", site.url).digest
        assert digest_of(content) == add("y", site.url, digest=digest_of(content)).digest
        with refused_with(ImageError, "checksum-mismatch", actual=digest_of(content)):
            add("z", site.url, digest=f"sha256:{'0' * 64}")


def test_a_spec_may_name_a_box(tmp_path: Path, qcow2: bytes) -> None:
    """Its key is the digest of the box, so that a lock tells when the name means another one."""
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: a\nimage: {box: owner/x}\n")
    box = load_box(tmp_path / "kimbox.yaml")
    with refused_with(ImageError, "box-not-found", name="owner/x"):
        obtain.key_of(box, None)
    content = archive(metadata(), ("box.img", qcow2))
    added = add("owner/x", put(tmp_path, content))
    assert digest_of(content) == f"sha256:{obtain.key_of(box, None)}"
    assert obtain.ensure(box, None).key == added.image
    prune.remove(prune.unused())
    assert obtain.ensure(box, None).disk.exists()


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Two private keys."""
    for name in ("mine", "other"):
        run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", tmp_path / name])
    return tmp_path / "mine", tmp_path / "other"


def test_signatures(tmp_path: Path, qcow2: bytes, keys: tuple[Path, Path], home: Path) -> None:
    """One of the keys must have signed the checksums, which must be those of what is there."""
    mine = keys[0]
    public = [" ".join(key.with_suffix(".pub").read_text().split()[:2]) for key in keys]
    members = {"metadata.json": metadata()[1], "box.img": qcow2}
    text = sums.text({name: digest_of(data).removeprefix("sha256:") for name, data in members.items()})
    signed = archive(*members.items(), (sums.NAME, text), (sums.SIGNATURE_NAME, sums.sign(text, mine)))
    added = add("signed", put(tmp_path, signed), keys=tuple(public))
    assert added.verified
    with refused_with(ImageError, "signature-wrong"):  # although it is in the store by now
        add("y", put(tmp_path, signed), keys=(public[1],))
    other_content = archive(*members.items(), ("more.img", b"x"), (sums.NAME, text))
    foreign = archive(*members.items(), (sums.NAME, text), (sums.SIGNATURE_NAME, sums.sign(text + b" ", mine)))
    unsigned = archive(*members.items(), (sums.NAME, text))
    plain = archive(*members.items())
    for content, code, fields in (
        (other_content, "checksum-mismatch", {"name": "more.img", "state": "unlisted"}),
        (foreign, "signature-wrong", {}),
        (unsigned, "signature-missing", {"name": sums.SIGNATURE_NAME}),
        (plain, "signature-missing", {"name": sums.NAME}),
    ):
        with refused_with(ImageError, code, **fields):
            add("y", put(tmp_path, content), keys=(public[0],))
    changed = archive(("metadata.json", metadata()[1] + b" "), ("box.img", qcow2), (sums.NAME, text))
    with refused_with(ImageError, "checksum-mismatch", name="metadata.json", state="different"):
        add("y", put(tmp_path, changed))


def kimbox_json(*words: str) -> tuple[int, dict[str, Any]]:
    """Runs a verb of kimbox; its exit status and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = app.run(["--json", *words])
    return code, json.loads(said.getvalue())


def test_the_command(tmp_path: Path, raw: Path, keys: tuple[Path, Path]) -> None:
    """add, list, remove and prune, in one documented shape; what kimbox wrote itself is taken."""
    target = tmp_path / "made.box"
    boxwriter.libvirt(raw, "raw", target)
    code, answer = kimbox_json("box", "add", "mine", str(target))
    assert (0, "mine") == (code, answer["result"]["added"]["name"])
    assert [answer["result"]["added"]] == kimbox_json("box", "list")[1]["result"]["boxes"]
    assert kimbox_json("box", "add", "x", str(target), "--key", str(keys[0].with_suffix(".pub")))[0] == 3
    assert ["mine"] == kimbox_json("box", "prune", "--dry-run")[1]["result"]["unused"]
    assert 2 == kimbox_json("box", "add", "../x", str(target))[0]
    assert 2 == kimbox_json("box", "list", "--force")[0]
    assert "mine" == kimbox_json("box", "prune", "-y")[1]["result"]["removed"][0]["name"]
    assert 5 == kimbox_json("box", "remove", "mine")[0]


def test_a_damaged_record(home: Path, tmp_path: Path, qcow2: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """It is said so, with the command that mends it. It hides no other box, and keeps none from being removed."""
    add("x", put(tmp_path, archive(metadata(), ("box.img", qcow2))))
    add("y", put(tmp_path, archive(metadata(), ("box.img", qcow2))))
    path = home / "boxes" / "x.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image": "../../x"}))
    code, answer = kimbox_json("box", "list")
    assert (0, ["y"]) == (code, [box["name"] for box in answer["result"]["boxes"]])
    assert "kimbox box remove x" in capfd.readouterr().err
    assert (0, 0) == (kimbox_json("box", "remove", "y")[0], kimbox_json("box", "remove", "x")[0])


def test_nothing_but_a_digest_is_kept_of_a_plain_disk(raw: Path) -> None:
    """A disk without a box around it may be added as well."""
    added = add("disk", str(raw))
    assert added.provider is None
    assert fetched(RemoteImage(str(raw), added.digest)).format == "raw"
