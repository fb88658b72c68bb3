"""Parsers of files from elsewhere: archives, boxes, disks in qcow2 and VMDK, catalogs, checksums, saves."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import attrs
import makevagrant
import zstandard
from fuzzing import Parser

from kimbox import run
from kimbox.errors import KimboxError
from kimbox.files import read_json
from kimbox.image.formats import boxreader, catalog, sums, tarstream
from kimbox.image.formats import compressed as packed
from kimbox.image.saves import index, manifest, packs
from kimbox.image.saves.index import CHUNK_BYTES, Chunk
from kimbox.image.saves.manifest import Base, Contents, Folder, Manifest, Stored
from kimbox.image.sources import boxcatalog, remote
from kimbox.transfer.stores.folder import FolderStore

KIB = 1 << 10

METADATA = {"provider": "libvirt", "format": "qcow2", "virtual_size": 1, "disks": [{"path": "d.img", "format": "raw"}]}
CATALOG = {
    "name": "a/b",
    "versions": [
        {"version": version, "status": "active", "providers": [
            {"name": "libvirt", "url": "c.box", "checksum_type": "sha256", "checksum": "0" * 64},
            {"name": "virtualbox", "url": "file:///c.box", "architecture": "amd64", "default_architecture": True},
        ]}
        for version in ("1.0", "1.10.beta1", "2026.1")
    ],
}  # fmt: skip


def tar(folder: Path) -> bytes:
    """A box as an archive with long names, pax records and a folder."""
    data = makevagrant.archive(
        (makevagrant.member("./", kind=tarfile.DIRTYPE), b""),
        ("metadata.json", json.dumps(METADATA).encode()),
        ("d.img", b"\0" * 600 + b"x" * 200),
        ("Vagrantfile", b"x"),
    )
    return data.rstrip(b"\0") + bytes(1024 + 512)


def tar_seeds(folder: Path) -> list[bytes]:
    seeds = [tar(folder)]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
            for name in ("n" * 150, "é", "metadata.json"):
                archive.addfile(makevagrant.member(name, 3), io.BytesIO(b"{} "))
        seeds.append(stream.getvalue()[: 8 * KIB])
    return [seed.rstrip(b"\0") + bytes(1536 + (-len(seed.rstrip(b"\0")) % 512)) for seed in seeds]


def with_tar_checksums(data: bytes) -> bytes:
    """Returns the archive with a correct checksum in every block that looks like a header."""
    new = bytearray(data)
    for at in range(0, len(new) - 511, 512):
        block = new[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            new[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(new)


def compressed(compress: Callable[[bytes], bytes]) -> Callable[[Path], list[bytes]]:
    return lambda folder: [compress(seed) for seed in tar_seeds(folder)]


def written(data: bytes, folder: Path) -> Path:
    path = folder / "file"
    path.write_bytes(data)
    return path


def read_tar(data: bytes, folder: Path) -> None:
    for member in tarstream.members(written(data, folder)):
        for _ in member.pieces():
            pass


def inside(compress: Callable[[bytes], bytes]) -> Callable[[bytes, Path], None]:
    """Returns a call for an archive that is compressed after it was changed."""
    return lambda data, folder: read_tar(compress(data), folder)


def unpack(name: str) -> Callable[[bytes, Path], None]:
    """Returns a call for a file with this compression."""

    def read(data: bytes, _: Path) -> None:
        reader = packed.opened(io.BytesIO(data), name)
        for _ in range(64):
            if not reader.read(64 * KIB):
                break

    return read


def read_box(data: bytes, folder: Path) -> None:
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    boxreader.read(written(data, folder), work)


def metadata_seeds(_: Path) -> list[bytes]:
    return [json.dumps(value).encode() for value in (METADATA, {"provider": "virtualbox"})]


def read_metadata(data: bytes, folder: Path) -> None:
    members = (("metadata.json", data), ("d.img", b"x"), ("box.img", b"x"), ("a.vmdk", b"x"))
    read_box(makevagrant.archive(*members), folder)


def sums_seeds(_: Path) -> list[bytes]:
    return [sums.text({"d.img": "0" * 64, "metadata.json": "f" * 64})]


def read_sums(data: bytes, _: Path) -> None:
    sums.parse(data)
    sums.check(data, {"d.img": "0" * 64, "metadata.json": "f" * 64})


class Refused(KimboxError):
    """A program that is not run here would have got the file."""


def _no_program(*_: object, **__: object) -> object:
    raise Refused("no program runs while a parser is tested")


def qcow2_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for options in ("compat=1.1", "compat=0.10", "compression_type=zstd"):
        run.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"{options},cluster_size=512", folder / "disk", "64K"]
        )
        seeds.append((folder / "disk").read_bytes())
    return [*seeds, bytes(510) + b"\x55\xaa", b"# Disk DescriptorFile\n", b"<html>"]


def read_disk_head(data: bytes, folder: Path) -> None:
    """The header and the tables of a disk, up to the call of qemu-img."""
    before = remote._check_with_qemu
    remote._check_with_qemu = lambda *_: None  # type: ignore[assignment]
    try:
        remote.inspect(written(data, folder))
    finally:
        remote._check_with_qemu = before


def disk_head_seeds(folder: Path) -> list[bytes]:
    return qcow2_seeds(folder)[:4]


def vmdk_seeds(folder: Path) -> list[bytes]:
    raw = makevagrant.raw_disk(folder / "raw")
    kinds = ("streamOptimized", "monolithicSparse")
    return [makevagrant.converted(raw, "vmdk", "-o", f"subformat={kind}") for kind in kinds]


def read_vmdk(data: bytes, folder: Path) -> None:
    """The header and the tables of a VMDK, up to the call of qemu-img."""
    before, run.run = run.run, lambda *_, **__: None  # type: ignore[assignment]
    try:
        boxreader.from_vmdk(written(data, folder), folder / "target")
    finally:
        run.run = before


def catalog_seeds(_: Path) -> list[bytes]:
    return [json.dumps(CATALOG).encode()]


def read_catalog(data: bytes, folder: Path) -> None:
    path = folder / "x.json"
    path.write_bytes(data)
    boxcatalog.choose(str(path), None)
    boxcatalog.choose(str(path), "1.0")


def read_own_catalog(data: bytes, folder: Path) -> None:
    """A catalog to which `package` adds a version."""
    catalog.check(written(data, folder), "a/b", "9", ["libvirt"])
    catalog.add(folder / "file", "a/b", "", "9", "https://example.org", {"libvirt": ("9/x.box", "0" * 64)})


def read_any_json(data: bytes, folder: Path) -> None:
    read_json(written(data, folder))


HEX = "a" * 64
SAVE = Manifest(
    7, "tiny", "tiny", "2026-01-31T12:00:00Z", "0.1.0", HEX, HEX, HEX, 2, 1 << 30,
    Contents(4 * CHUNK_BYTES, Stored(f"indexes/000007-{HEX}", 176), 3), Base(HEX, "raw", HEX),
    (Stored(f"packs/000005-{HEX}", 5000),),
    {name: Stored(f"files/000001-{HEX}", 10) for name in ("kimbox.yaml", "kimbox.lock", "image.json")},
    {"setup": Folder("c" * 40, Stored(f"files/000002-{HEX}", 20))}, (5, 6), 100,
)  # fmt: skip


def save_seeds(_: Path) -> list[bytes]:
    fat = attrs.evolve(SAVE, base=Base(HEX, "qcow2", HEX, SAVE.disk), cpus=None)
    return [manifest.pack_manifest(one).partition(b"\n")[2] for one in (SAVE, fat)]


def read_save(data: bytes, _: Path) -> None:
    head = b"kimbox-save 1 " + hashlib.sha256(data).hexdigest().encode() + b"\n"
    manifest.pack_manifest(manifest.parse_manifest(head + data, 7, "store"))


def index_seeds(_: Path) -> list[bytes]:
    chunks = [Chunk(0, b"1" * 32, 0, 0, 100), Chunk(1, b"2" * 32), Chunk(3, b"3" * 32, 0, 4900, 100)]
    return [index.pack_index(chunks)]


def read_index(data: bytes, _: Path) -> None:
    index.parse_index(data, 4 * CHUNK_BYTES, [5000])


def pack_seeds(_: Path) -> list[bytes]:
    return [zstandard.compress(bytes(5000) + b"x" * 192)]


def read_pack(data: bytes, folder: Path) -> None:
    name = f"packs/000001-{HEX}"
    (folder / "data").write_bytes(data)
    store = FolderStore(folder)
    store.write(name, folder / "data")
    chunk = Chunk(0, index.digest_of(bytes(5000) + b"x" * 192), 0, 0, len(data))
    list(packs.fetch(store, [Stored(name, len(data))], [chunk], 5192, lambda _: None))


WORDS = (
    b"metadata.json",
    b"../x",
    b"/etc/passwd",
    b"d.img",
    b"ustar\0",
    b"12 path=a\n",
    b"30 size=99999999999999999\n",
)

PARSERS = [
    Parser("tar", tar_seeds, read_tar, fix=with_tar_checksums, words=WORDS),
    Parser("gzip", compressed(lambda data: gzip.compress(data, mtime=0)), read_tar),
    Parser(
        "tar-in-gzip",
        tar_seeds,
        inside(lambda data: gzip.compress(data, 1, mtime=0)),
        fix=with_tar_checksums,
        words=WORDS,
    ),
    Parser("xz", compressed(lzma.compress), unpack("xz")),
    Parser("bzip2", compressed(bz2.compress), unpack("bzip2")),
    Parser("zstd", compressed(zstandard.compress), unpack("zstd")),
    Parser(
        "tar-in-xz",
        tar_seeds,
        inside(lambda data: lzma.compress(data, preset=0)),
        fix=with_tar_checksums,
        words=WORDS,
        share=0.5,
    ),
    Parser("box", lambda folder: [tar(folder)], read_box, fix=with_tar_checksums, words=WORDS, share=0.5),
    Parser("box-metadata", metadata_seeds, read_metadata, is_json=True, share=0.5),
    Parser("checksums", sums_seeds, read_sums, words=(b"0" * 64, b"  ", b"\n", b"d.img")),
    Parser("disk-head", disk_head_seeds, read_disk_head, hot=((0, 112), (500, 512))),
    Parser("vmdk-head", vmdk_seeds, read_vmdk, hot=((0, 80), (512, 1024))),
    Parser("catalog", catalog_seeds, read_catalog, is_json=True, words=(b'"versions"', b"file://", b"%00", b"http://")),
    Parser("own-catalog", catalog_seeds, read_own_catalog, is_json=True, share=0.25),
    Parser("json", catalog_seeds, read_any_json, is_json=True),
    Parser("save-manifest", save_seeds, read_save, is_json=True, words=(b"packs/000001-", b"../x"), share=0.5),
    Parser("save-index", index_seeds, read_index, hot=((0, 20),), errors=(ValueError,)),
    Parser("save-pack", pack_seeds, read_pack, hot=((0, 16),), share=0.1),
]
