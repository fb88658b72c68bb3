"""Parsers of a disk: partition tables, LVM, ext4, a snapshot's store, GRUB's environment, dpkg's database, keys."""

from __future__ import annotations

import functools
import os
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import madedisk
from fuzzing import Parser

from kimbox import run
from kimbox.image.disk import cowstore, dpkg, grubenv, partitions, sectors
from kimbox.image.disk.ext4 import content, directories, inodes, usage
from kimbox.image.disk.lvm import reader, textformat, writer
from kimbox.image.sanitize import key_formats, pkcs12, secrets
from kimbox.jobs.disk import contents, extract, pack
from kimbox.spec.layout import MIB

KIB = 1 << 10


def reads(data: bytes) -> Callable[[int, int], bytes]:
    """Returns a function that reads as pread(2) does: less at the end, and errors for impossible places and sizes."""

    def read(offset: int, size: int) -> bytes:
        if not (0 <= offset < 1 << 63 and size >= 0):
            raise OverflowError(f"offset {offset}, size {size}")
        if size > 256 * MIB:
            raise MemoryError(f"size {size}")
        return data[offset : offset + size]

    return read


def partition_seeds(_: Path) -> list[bytes]:
    mbr = sectors.mbr(madedisk.LAYOUT, "seed", bytes(512))
    protective = bytearray(mbr)
    protective[446 + 4] = partitions.TYPE_GPT
    header = bytearray(512)
    header[:8] = partitions.GPT_MAGIC
    struct.pack_into("<QII", header, 72, 2, 4, 128)
    rows = b"".join(bytes([n + 1] * 32) + struct.pack("<QQ", 34 + 8 * n, 40 + 8 * n) + bytes(80) for n in range(4))
    return [mbr, bytes(protective) + bytes(header) + rows]


def read_partitions(data: bytes, _: Path) -> None:
    partitions.entries(reads(data), madedisk.LAYOUT.size_bytes)


def lvm_seeds(_: Path) -> list[bytes]:
    data = bytearray(64 * KIB)
    base = madedisk.LAYOUT.pv.offset_bytes
    for offset, piece in writer.pieces(madedisk.LAYOUT, "seed", 0):
        data[offset - base : offset - base + len(piece)] = piece
    return [bytes(data[: 16 * KIB])]


def with_lvm_checksums(data: bytes) -> bytes:
    """Returns a physical volume with the checksums of label, header and text that fit its bytes."""
    new = bytearray(data.ljust(8 * KIB, b"\0"))
    new[512 + 16 : 512 + 20] = struct.pack("<I", reader.crc(bytes(new[512 + 20 : 1024])))
    start = struct.unpack_from("<Q", new, 512 + 32 + 72)[0]
    if 0 < start < len(new) - 1024:
        offset, count = struct.unpack_from("<QQ", new, start + 40)
        if start + offset + count <= len(new):
            text = bytes(new[start + offset : start + offset + count])
            struct.pack_into("<I", new, start + 56, reader.crc(text))
        struct.pack_into("<I", new, start, reader.crc(bytes(new[start + 4 : start + 512])))
    return bytes(new)


def read_lvm(data: bytes, _: Path) -> None:
    read = reads(data)
    group = reader.read_group(read, madedisk.LAYOUT.pv.size_bytes)
    for volume in group.volumes.values():
        reader.through(read, volume)(0, min(volume.size_bytes, 4096))


def lvm_text_seeds(_: Path) -> list[bytes]:
    folder = Path(__file__).parents[1] / "unit/image/disk/lvm/layouts"
    texts = [(folder / f"{name}.txt").read_bytes() for name in ("pieces", "snapextended", "tagged")]
    return [*texts, writer.metadata_text(madedisk.LAYOUT, "seed", 0).encode()]


def parse_lvm_text(data: bytes, _: Path) -> None:
    textformat.parse(data.decode(errors="replace"))


def read_lvm_text(data: bytes, folder: Path) -> None:
    """The same text in a metadata area: its sections, volumes and segments are read, too."""
    (pv,) = lvm_area()
    text = data[: 8 * KIB] + b"\0"
    new = bytearray(pv)
    start = struct.unpack_from("<Q", new, 512 + 32 + 72)[0]
    struct.pack_into("<QQ", new, start + 40, 512, len(text))
    new[start + 512 : start + 512 + len(text)] = text
    read_lvm(with_lvm_checksums(bytes(new)), folder)


@functools.cache
def lvm_area() -> tuple[bytes]:
    return (lvm_seeds(Path())[0],)


def ext4_seeds(folder: Path) -> list[bytes]:
    """Small file systems with folders, a link, a file in blocks, dpkg's database, with checksums and without them."""
    tree = folder / "tree"
    for name in ("etc/deep/er", "var/lib/dpkg/info", "grub"):
        (tree / name).mkdir(parents=True)
    (tree / "etc/deep/er/file").write_bytes(b"x" * 9000)
    (tree / "etc/link").symlink_to("/" + "long" * 30)
    (tree / "etc/short").symlink_to("file")
    (tree / "grub/grubenv").write_bytes(madedisk.CREATED)
    (tree / "var/lib/dpkg/status").write_bytes(STATUS)
    (tree / "var/lib/dpkg/info/a.list").write_bytes(b"/bin/a\n/etc/a\n")
    (tree / "var/lib/dpkg/info/a.md5sums").write_bytes(b"0" * 32 + b"  usr/bin/a\n")
    seeds = []
    for kind, features in (("ext4", "^resize_inode"), ("ext4", "^metadata_csum,^64bit"), ("ext2", "^resize_inode")):
        disk = folder / "disk"
        disk.unlink(missing_ok=True)
        argv = ["mke2fs", "-q", "-F", "-t", kind, "-b", "1024", "-N", "32", "-O", features, "-d", tree, disk, "256k"]
        run.run(argv)
        seeds.append(disk.read_bytes())
    return seeds


def read_ext4(data: bytes, _: Path) -> None:
    """Reads the file system as `package`, `shrink`, `maintain` and the boot modes do."""
    read = reads(data)
    system = inodes.open_at(read)
    for entry in directories.walk(system):
        directories.shown(entry.path)
        if entry.inode.is_file:
            content.content(system, entry.inode, 64 * KIB)
            content.head(system, entry.inode, 4096)
        elif entry.inode.is_link:
            content.link_target(system, entry.inode)
    dpkg.installed(system)
    dpkg.files_of(system, ["a"])
    dpkg.digests(system, {b"/usr/bin/a"})
    list(directories.matching(system, "/etc/*/er/file"))
    list(secrets.scan_files(system, 64 * KIB))


def read_ext4_usage(data: bytes, _: Path) -> None:
    if usage.is_ext4(reads(data)):
        usage.used(reads(data), len(data))


def read_ext4_place(data: bytes, _: Path) -> None:
    inodes.locate(inodes.open_at(reads(data)), "/grub/grubenv", 1024)


def cow_seeds(_: Path) -> list[bytes]:
    unit = 4 * KIB
    header = struct.pack("<IIII", cowstore.MAGIC, 1, 1, unit // 512).ljust(unit, b"\0")
    table = b"".join(struct.pack("<QQ", old, 2 + n) for n, old in enumerate((0, 5, 7))).ljust(unit, b"\0")
    full = b"".join(struct.pack("<QQ", n, 2 + n) for n in range(unit // 16))
    rest = bytes(unit * (unit // 16)) + b"".join([struct.pack("<QQ", 300, 300)]).ljust(unit, b"\0")
    return [header + table + bytes(3 * unit), header + full + rest]


def read_cow(data: bytes, _: Path) -> None:
    store = cowstore.Store.parse(reads(data), 2 * MIB, 4 * KIB, 2 * MIB)
    view = store.view(reads(bytes(2 * MIB)), reads(data))
    view(0, 64 * KIB)
    store.used(store.changed)


def grubenv_seeds(_: Path) -> list[bytes]:
    block = grubenv.changed(madedisk.CREATED, {b"saved_entry": b"keep", b"next_entry": b"resnap"})
    return [madedisk.CREATED, block]


def read_grubenv(data: bytes, _: Path) -> None:
    block = data[: grubenv.BLOCK_BYTES]
    grubenv.values(block)
    grubenv.values(grubenv.changed(block, {b"saved_entry": b"keep", b"next_entry": None}))


STATUS = (
    b"Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2.3-4~5\n"
    b"Conffiles:\n /etc/a 0123456789abcdef0123456789abcdef\n /etc/b newconffile\n\n"
    b"Package: b\nStatus: deinstall ok config-files\nVersion: 1\n\n"
)


def status_seeds(_: Path) -> list[bytes]:
    return [STATUS]


def read_status(data: bytes, _: Path) -> None:
    """The status file, without a file system around it."""
    system = SimpleNamespace(data=data)
    before = dpkg._status
    dpkg._status = lambda system: system.data  # type: ignore[assignment, attr-defined]
    try:
        dpkg.installed(system)  # type: ignore[arg-type]
        dpkg._conffiles(system, {b"/etc/a"})  # type: ignore[arg-type]
    finally:
        dpkg._status = before


def key_seeds(folder: Path) -> list[bytes]:
    """Keys of several formats, and stores with and without a key."""
    key, certificate, store = folder / "key", folder / "certificate", folder / "store"
    run.run(["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2", "-subj", "/CN=x",
             "-keyout", key, "-out", certificate])  # fmt: skip
    seeds = [
        key.read_bytes(),
        b"PuTTY-User-Key-File-3: ssh-ed25519\n",
        b"(11:private-key(3:ecc",
        b"Key: (private-key\n",
    ]
    for options in (["-in", certificate, "-nokeys"], ["-in", certificate, "-inkey", key]):
        words = ["-keypbe", "NONE", "-certpbe", "NONE", "-nomac", "-passout", "pass:"]
        run.run(["openssl", "pkcs12", "-export", *options, *words, "-out", store])
        seeds.append(store.read_bytes())
    java = struct.pack(">III", 0xFEEDFEED, 2, 1) + struct.pack(">IH1sQ", 2, 1, b"a", 0)
    seeds.append(java + struct.pack(">H5sI", 5, b"X.509", 3) + b"abc" + bytes(20))
    seeds.append(bytes([0x95, 0x01, 0x00, 4]) + bytes(300))
    return seeds


def read_key(data: bytes, _: Path) -> None:
    half = len(data) // 2
    key_formats.kind_of_content(len(data), iter([data[:half], data[half:]]))
    key_formats.kind_of_head(data)
    if pkcs12.is_pkcs12(data[:64]):
        pkcs12.holds_key(data)


def job_seeds(folder: Path) -> list[bytes]:
    """Disks of jobs from kimbox and from mke2fs, with links of both kinds, a file with holes, and a device."""
    tree = folder / "job"
    (tree / "output/deep").mkdir(parents=True)
    (tree / "run-job").write_text("#!/bin/sh\n")
    (tree / "run-job").chmod(0o755)
    (tree / "output/data").write_bytes(b"x" * 20000)
    os.link(tree / "output/data", tree / "output/deep/again")
    (tree / "output/link").symlink_to("deep/" + "../deep/" * 12)
    (tree / "output/deep/up").symlink_to("..")
    with (tree / "output/holes").open("wb") as file:
        file.truncate(300_000)
        os.pwrite(file.fileno(), b"end", 290_000)
    packed = pack.pack(tree, folder / "packed", room=pack.Room.parse("8K"))
    seeds = [packed.path.read_bytes()]
    for kind in ("ext2", "ext4"):
        run.run(["mke2fs", "-q", "-F", "-t", kind, "-b", "1024", "-N", "32", "-O", "^resize_inode,^has_journal",
                 "-d", tree, folder / kind, "256k"])  # fmt: skip
        seeds.append((folder / kind).read_bytes())
    return seeds


def extract_job(data: bytes, folder: Path) -> None:
    """Extracts a disk as `kimbox job extract` does. Nothing is created outside of the new folder, no link leads out."""
    target = folder / "in/out"
    target.parent.mkdir(exist_ok=True)
    try:
        disk = contents.read_contents(reads(data), len(data))
        extract.listing(disk)
        extract.extract(disk, target, skip_unsafe=True, limit_bytes=64 * MIB)
    finally:
        left = [path.name for path in (*folder.iterdir(), *target.parent.iterdir())]
        assert left in (["in"], ["in", "out"]), left
    root = os.fsencode(target)
    for path, folders, files in os.walk(root):
        for name in folders + files:
            full = os.path.join(path, name)  # noqa: PTH118 - the name may not be text
            info = os.lstat(full)
            assert not info.st_mode & 0o7000
            assert stat.S_IFMT(info.st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
            assert os.path.realpath(full).startswith(root)
    shutil.rmtree(target, ignore_errors=True)


JOB_HOT = ((1024, 2048), (2048, 2080), (2048, 32 << 10), (4 << 10, 5 << 10), (20 << 10, 48 << 10), (1024, 2048))
EXT4_HOT = ((1024, 2048), (1024, 2048), (2048, 2304), (2048, 12 << 10), (12 << 10, 64 << 10))

PARSERS = [
    Parser("partitions", partition_seeds, read_partitions, hot=((446, 512), (512, 620), (1024, 1536))),
    Parser(
        "lvm",
        lvm_seeds,
        read_lvm,
        fix=with_lvm_checksums,
        hot=((512, 700), (4096, 4200), (4608, 8192)),
        words=(b"= ", b"{\n", b"}\n", b"[", b"]", b'"striped"', b"segment1 {", b"stripe_count = 1", b"# "),
    ),
    Parser(
        "lvm-text",
        lvm_text_seeds,
        parse_lvm_text,
        words=(b"= ", b"{", b"}", b"[", b"]", b'"', b"#", b"a {"),
        errors=(textformat.Malformed,),
    ),
    Parser("lvm-sections", lvm_text_seeds, read_lvm_text, words=(b"{", b"}", b"[", b"]", b" = 18446744073709551615")),
    Parser("ext4", ext4_seeds, read_ext4, hot=EXT4_HOT, share=0.5),
    Parser("ext4-usage", ext4_seeds, read_ext4_usage, hot=EXT4_HOT, share=0.5),
    Parser("ext4-place", lambda folder: ext4_seeds(folder)[:2], read_ext4_place, hot=EXT4_HOT),
    Parser("job-disk", job_seeds, extract_job, hot=JOB_HOT),
    Parser("cow-store", cow_seeds, read_cow, hot=((0, 16), (4096, 4160), (4096, 8192))),
    Parser("grubenv", grubenv_seeds, read_grubenv, words=(b"saved_entry=", b"next_entry=", b"\\\n", b"#"), share=0.1),
    Parser("dpkg-status", status_seeds, read_status, words=(b"Package: ", b"Status: ", b"\n\n", b" /", b" installed")),
    Parser(
        "keys", key_seeds, read_key, words=(b"-----BEGIN ", b"PRIVATE KEY-----", b"Key: ", b"\x30\x80", b"\x30\x84")
    ),
]
