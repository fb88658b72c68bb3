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
from kimbox.errors import ImageError, StateError
from kimbox.image import obtain
from kimbox.image.formats import boxwriter, sums
from kimbox.image.sources import remote
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
    assert b"raise 'never run'" == remote.kept_file(image, "Vagrantfile")
    assert [added] == list(names.every())


def test_the_second_format_of_libvirt(tmp_path: Path, raw: Path, qcow2: bytes) -> None:
    """The disk has the name that metadata.json gives; two disks are refused."""
    one = {"format": "qcow2", "path": "disk1.qcow2"}
    content = archive(("disk1.qcow2", qcow2), metadata(disks=[one]))
    image = images.find(add("x", put(tmp_path, content)).image)
    assert image is not None
    same(image, raw)
    two = archive(("disk1.qcow2", qcow2), ("b.qcow2", qcow2), metadata(disks=[one, one | {"path": "b.qcow2"}]))
    with pytest.raises(ImageError, match="2 disks"):
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
    for disk, reason in ((flat.encode(), "no VMDK in one piece"), (bytes(described), "cannot be")):
        with pytest.raises(ImageError, match=reason):
            add("x", put(tmp_path, archive(metadata("virtualbox"), ("a.vmdk", disk))))
        assert [] == leftovers(home)
    try:
        image = images.find(add("x", put(tmp_path, archive(metadata("virtualbox"), ("a.vmdk", bytes(child))))).image)
    except ImageError:
        return
    assert image is not None
    run.run(["qemu-img", "convert", "-O", "raw", image.disk, tmp_path / "out"])
    assert b"secret of" not in (tmp_path / "out").read_bytes()


HOSTILE = {
    "absolute": ([("/etc/passwd", b"x")], "leads elsewhere"),
    "above": ([("../../x", b"x")], "leads elsewhere"),
    "inside": ([("a/../../x", b"x")], "leads elsewhere"),
    "backslash": ([("..\\x", b"x")], "leads elsewhere"),
    "newline": ([("a\nb", b"x")], "leads elsewhere"),
    "symlink": ([(member("box.img", kind=tarfile.SYMTYPE, link="/etc/passwd"), b"")], "a symbolic link"),
    "hardlink": ([(member("box.img", kind=tarfile.LNKTYPE, link="/etc/passwd"), b"")], "a hard link"),
    "device": ([(member("box.img", kind=tarfile.BLKTYPE), b"")], "a device"),
    "pipe": ([(member("box.img", kind=tarfile.FIFOTYPE), b"")], "a pipe"),
    "sparse": ([(member("box.img", kind=tarfile.GNUTYPE_SPARSE), b"")], "a file with holes"),
    "twice": ([metadata(), metadata()], "twice"),
    "many": ([(f"f{i}", b"") for i in range(1001)], "more than 1000"),
    "not a box": ([("README", b"hello")], "no metadata.json"),
    "vmware": ([metadata("vmware_desktop"), ("a.vmdk", b"x")], "for 'vmware_desktop'"),
    "no json": ([("metadata.json", b"{")], "no JSON object"),
    "a list": ([("metadata.json", b"[]")], "no JSON object"),
    "deep": ([("metadata.json", b"[" * 100000)], "no JSON object"),
    "no disk": ([metadata()], "no 'box.img'"),
    "format": ([metadata(format="vdi"), ("box.img", b"x")], "names no disk"),
    "disks": ([metadata(disks={"a": 1}), ("box.img", b"x")], "0 disks"),
    "disk name": ([metadata(disks=[{"path": ["box.img"]}]), ("box.img", b"x")], "names no disk"),
    "escaping disk": ([metadata(disks=[{"path": "../x"}]), ("box.img", b"x")], "no '../x'"),
    "text disk": ([metadata(), ("box.img", b"hello world\n" * 100)], "a text that starts with"),
    "large metadata": ([("metadata.json", b" " * (17 << 20))], "has 17"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("compress", ["", "gzip", "xz"])
def test_hostile_archives(tmp_path: Path, home: Path, name: str, compress: str) -> None:
    """Each is refused with the reason, and leaves nothing; the digest being right does not help."""
    members, reason = HOSTILE[name]
    content = archive(*members, compress=compress)
    assert reason in refused(put(tmp_path, content), content)
    assert [] == leftovers(home)
    with pytest.raises(ImageError):
        add("x", str(tmp_path / "x.box"))
    assert [] == list(names.every())


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
        said = refused(put(tmp_path, content), content)
        assert "cut off" in said or "damaged" in said or "not a disk" in said or "no disk" in said
        assert [] == leftovers(home)


def test_numbers_that_cannot_be(tmp_path: Path) -> None:
    """A size of exabytes, and an extended header without end, are refused before anything is taken in."""
    huge = archive((member("box.img", 1 << 62), b""))
    assert "claims to have" in refused(put(tmp_path, huge), huge)
    endless = archive((member("x", 1 << 40, kind=tarfile.XHDTYPE), b""))
    assert "header without end" in refused(put(tmp_path, endless), endless)


@pytest.mark.parametrize("compress", ["gzip", "xz"])
def test_a_bomb(tmp_path: Path, home: Path, compress: str) -> None:
    """A small file that unpacks to far more is given up early, though the host has the room."""
    content = archive(("box.img", bytes(400 << 20)), compress=compress)
    assert len(content) < 1 << 20
    assert "a bomb" in refused(put(tmp_path, content), content)
    assert [] == leftovers(home)


def test_names(tmp_path: Path, qcow2: bytes) -> None:
    """A name is not taken over silently; the same box again is fine; removing frees the disk once nothing needs it."""
    first, second = (archive(metadata(), ("Vagrantfile", b"#" * n), ("box.img", qcow2)) for n in (1, 2))
    one = add("x", put(tmp_path, first))
    assert one == add("x", put(tmp_path, first)) == add("x", put(tmp_path, first), digest=digest_of(first))
    with pytest.raises(StateError, match="another one"):
        add("x", put(tmp_path, second))
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
    with pytest.raises(ImageError, match="not by one of the keys"):  # although it is in the store by now
        add("y", put(tmp_path, signed), keys=(public[1],))
    other_content = archive(*members.items(), ("more.img", b"x"), (sums.NAME, text))
    foreign = archive(*members.items(), (sums.NAME, text), (sums.SIGNATURE_NAME, sums.sign(text + b" ", mine)))
    unsigned = archive(*members.items(), (sums.NAME, text))
    plain = archive(*members.items())
    for content, reason in (
        (other_content, "does not name 'more.img'"),
        (foreign, "not by one of the keys"),
        (unsigned, "no signature"),
        (plain, "has no SHA256SUMS"),
    ):
        with pytest.raises(ImageError, match=reason):
            add("y", put(tmp_path, content), keys=(public[0],))
    changed = archive(("metadata.json", metadata()[1] + b" "), ("box.img", qcow2), (sums.NAME, text))
    with pytest.raises(ImageError, match="is not what SHA256SUMS says"):
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
    assert kimbox_json("box", "add", "x", str(target), "--key", str(keys[0].with_suffix(".pub")))[0] == 1
    assert ["mine"] == kimbox_json("box", "prune", "--dry-run")[1]["result"]["unused"]
    assert 2 == kimbox_json("box", "add", "../x", str(target))[0]
    assert 2 == kimbox_json("box", "list", "--force")[0]
    assert "mine" == kimbox_json("box", "prune", "-y")[1]["result"]["removed"][0]["name"]
    assert 5 == kimbox_json("box", "remove", "mine")[0]


def test_a_damaged_record(home: Path, tmp_path: Path, qcow2: bytes) -> None:
    """It is said so, with the command that mends it."""
    add("x", put(tmp_path, archive(metadata(), ("box.img", qcow2))))
    path = home / "boxes" / "x.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image": "../../x"}))
    code, answer = kimbox_json("box", "list")
    assert (1, True) == (code, "kimbox box remove x" in answer["error"]["hint"])
    assert 0 == kimbox_json("box", "remove", "x")[0]


def test_nothing_but_a_digest_is_kept_of_a_plain_disk(raw: Path) -> None:
    """A disk without a box around it may be added as well."""
    added = add("disk", str(raw))
    assert added.provider is None
    assert fetched(RemoteImage(str(raw), added.digest)).format == "raw"
