"""Adds an image from a path or an http(s) URL to the store. The file is a disk, or a box that contains a disk.

kimbox first copies or downloads the file and checks its digest, then reads its format. Afterwards kimbox uses the copy
in the store, never the original file.
"""

from __future__ import annotations

import errno
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kimbox import run
from kimbox.errors import ImageError
from kimbox.files import size_words, sync_file, sync_folder
from kimbox.image.formats import boxreader, compressed, sums, tarstream, wholeness
from kimbox.image.sources import beside
from kimbox.image.store import images
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.sparse import copy_sparse, write_sparse
from kimbox.spec.model import RemoteImage
from kimbox.spec.urls import is_url
from kimbox.transfer import downloads, http
from kimbox.transfer.address import Login, public_url

#: Maximum size of a disk, in bytes: a partition table of the MBR type cannot describe a larger one.
MAX_VIRTUAL_BYTES = 2 << 40

#: Limits for qemu-img when it reads the header of an untrusted file: address space in bytes, processor time in seconds
#: (prlimit(1)), and a timeout.
INFO_LIMITS = ("--as=2147483648", "--cpu=30")
INFO_TIMEOUT_S = 60.0

#: Number of bytes from the start of a file by which its format is recognized.
HEAD_BYTES = 64 << 10

_QCOW2 = b"QFI\xfb"

#: Formats that are not accepted: offset and value of the magic number, name for the field `content` of the error,
#: description for its message.
_OTHER_FORMATS = (
    (0, b"\x04\x22\x4d\x18", "lz4", "compressed with lz4: unpack it first"),
    (0, b"LZIP", "lzip", "compressed with lzip: unpack it first"),
    (0, b"\x1f\x9d", "compress", "compressed with compress: unpack it first"),
    (0, b"\x5d\0\0", "lzma", "compressed with lzma: unpack it first"),
    (0, b"PK\x03\x04", "zip", "a zip archive: unpack it first"),
    (0, b"KDMV", "vmdk", "a VMDK disk: convert it with `qemu-img convert -O qcow2`"),
    (0, b"# Disk DescriptorFile", "vmdk-descriptor", "a VMDK descriptor without its disk"),
    (64, b"\x7f\x10\xda\xbe", "vdi", "a VirtualBox disk: convert it with `qemu-img convert -O qcow2`"),
    (0, b"vhdxfile", "vhdx", "a VHDX disk: convert it with `qemu-img convert -O qcow2`"),
    (0, b"conectix", "vhd", "a VHD disk: convert it with `qemu-img convert -O qcow2`"),
    (0x8001, b"CD001", "iso", "a CD image, which cannot be booted as a disk"),
    (1080, b"\x53\xef", "ext4", "an ext4 file system without a partition table"),
    (0, b"hsqs", "squashfs", "a squashfs file system"),
    (0, b"\x7fELF", "program", "a program"),
)


def check_signature(image: Image, location: str, keys: tuple[str, ...], login: Login | None = None) -> None:
    """Raises ImageError unless one of these ssh keys has signed the box of the image, or the checksums beside its file.

    `location`: path or URL of the file. `login` as for `http.fetch`.
    """
    if images.kept_file(image, sums.NAME) is None and beside.is_signed(location, image.key, keys, login):
        return
    checksums, signature = (images.kept_file(image, name) for name in (sums.NAME, sums.SIGNATURE_NAME))
    boxreader.verify(checksums, signature, keys)


def fetch(image: RemoteImage, work: Path, keys: tuple[str, ...], login: Login | None = None) -> dict[str, Any]:
    """Fills a workspace, as `images.publish` expects it, with the disk of a file. Returns the image's facts.

    With `keys`, the file must be a box that one of these ssh keys has signed, or have signed checksums beside it.
    `login` as for `http.fetch`.

    Raises ImageError: the errors of `http.fetch` (URL) or `_copy` (path), of `boxreader.read` (box) and of `inspect`.
    """
    key = image.key
    with log.step(f"fetching the image {public_url(image.location)}"):
        if is_url(image.location):
            disk = _download(image.location, key, login)
        else:
            disk = _copy(Path(image.location), key, work / "disk")
        size_bytes = disk.stat().st_size
        box_facts: dict[str, str] = {}
        try:
            if keys and beside.is_signed(image.location, key, keys, login):
                keys = ()  # an archive need not have a signature inside
            disk, box_facts = _disk_of(disk, work, keys)
            kind, virtual_bytes = inspect(disk)
        except ImageError as error:
            http.discard(disk)
            location = public_url(image.location)
            raise ImageError(
                f"{location}: {error.message}",
                code=error.code,
                hint=error.hint,
                fields={**error.fields, "location": location},
            ) from None
        _move(disk, work / images.DONE / images.DISKS[kind])
        http.discard(disk)
    return {
        "format": kind,
        "virtual_bytes": virtual_bytes,
        "size_bytes": size_bytes,
        "location": public_url(image.location),
        **box_facts,
    }


def _disk_of(file: Path, work: Path, keys: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    """The disk in a file, which is a disk, a compressed disk or a box, and facts about the box.

    Removes the file, unless it is the disk itself. Raises the errors of `_unpack` and `compressed.pieces`.
    """
    with file.open("rb") as source:
        is_box = tarstream.is_archive(source)
        source.seek(0)
        if not is_box and not compressed.compression_of(source.read(HEAD_BYTES)):
            return file, {}
        if not is_box:
            source.seek(0)
            disk = work / "unpacked"
            log.now("unpacking the disk")
            with disk.open("xb") as target:
                for piece in compressed.pieces(source, MAX_VIRTUAL_BYTES):
                    write_sparse(target, piece)
                target.truncate()
    found = _unpack(file, work, keys) if is_box else (disk, {})
    http.discard(file)
    return found


def _unpack(archive: Path, work: Path, keys: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    """Unpacks a box. Returns its disk and facts about the box. Writes its small files to `images.BOX_FOLDER`.

    With `keys`, one of them must have signed the box. Raises ImageError, and removes the archive, if it is not valid.
    """
    try:
        contents = boxreader.read(archive, work, keys)
        disk = contents.disk
        if contents.format == "vmdk":
            disk = work / "converted"
            log.now("converting the VMDK")
            boxreader.from_vmdk(contents.disk, disk)
            contents.disk.unlink()
    except ImageError:
        http.discard(archive)
        raise
    folder = work / images.DONE / images.BOX_FOLDER
    folder.mkdir()
    for name, data in contents.files.items():
        (folder / name).write_bytes(data)
        sync_file(folder / name)
    sync_folder(folder)
    return disk, {"provider": contents.provider} if contents.provider else {}


def _download(url: str, key: str, login: Login | None) -> Path:
    """Downloads to a file that is kept after a failure, so that the next call continues the download."""
    downloads.sweep()
    part = downloads.adopt(url, key)
    http.fetch(url, part, key, login=login)
    return part


def _copy(source: Path, key: str, target: Path) -> Path:
    """Copies a local file and returns the copy.

    Raises ImageError: `file-not-found`, `file-unreadable`, `checksum-mismatch`. The errors of `copy_sparse` pass.
    """
    try:
        total = size_words(source.stat().st_size)
        digest = copy_sparse(source, target, on_bytes=_reporter(total))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ImageError(
            f"the image {source} cannot be read: {error.strerror}",
            code="file-not-found" if isinstance(error, FileNotFoundError) else "file-unreadable",
            hint="check the path (in a spec: `image: location:`)",
            fields={"path": str(source)},
        ) from None
    if digest != f"sha256:{key}":
        raise ImageError(
            f"the image {source} has another digest than expected:\n  expected: sha256:{key}\n  the file: {digest}",
            code="checksum-mismatch",
            hint="the image was changed, or the expected digest is wrong",
            fields={"path": str(source), "expected": f"sha256:{key}", "actual": digest},
        )
    return target


def _reporter(total: str) -> Callable[[int], None]:
    """A function that shows the number of bytes done, at most every `http.REPORT_S` seconds; `total` is for display."""
    reported = time.monotonic()

    def report(done_bytes: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= http.REPORT_S:
            reported = time.monotonic()
            log.now(f"{size_words(done_bytes)} of {total}")

    return report


def _move(source: Path, target: Path) -> None:
    """Moves a file, also to another file system."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_sparse(source, target)


def inspect(disk: Path) -> tuple[str, int]:
    """The format of a disk (`raw` or `qcow2`), and its size in bytes as the guest sees it.

    Raises ImageError: `not-a-disk` if the file has another format (the field `content` names it), `disk-damaged` if a
    raw disk is shorter than its partitions, and the errors of `_qcow2_bytes`.
    """
    with disk.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(_QCOW2):
        return "qcow2", _qcow2_bytes(disk, head)
    if head[510:512] == b"\x55\xaa" or head[512:520] == b"EFI PART" or head[4096:4104] == b"EFI PART":
        with disk.open("rb") as file:
            wholeness.check_raw(file)
        return "raw", disk.stat().st_size
    content, description = _describe(head)
    raise ImageError(
        f"not a disk image: the file is {description}",
        code="not-a-disk",
        hint="kimbox reads raw disks with a partition table, and qcow2",
        fields={"content": content},
    )


def _describe(head: bytes) -> tuple[str, str]:
    """The content of a file that is not a disk, from its first bytes: a name and a description for a message."""
    for offset, magic, name, description in _OTHER_FORMATS:
        if head.startswith(magic, offset):
            return name, description
    start = head[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "html", "a web page; the URL may be that of a page about the image"
    if not head:
        return "empty", "empty"
    if not head.strip(b"\0"):
        return "zeros", "full of zeros, at least at its start"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return "text", f"a text that starts with {start[:40].decode(errors='replace')!r}"
    return "unknown", f"of an unknown format without a partition table (it starts with {head[:8].hex(' ')})"


def _qcow2_bytes(disk: Path, head: bytes) -> int:
    """The virtual size of a qcow2, in bytes.

    QEMU opens every file that a qcow2 refers to. Therefore kimbox reads the header first (docs/interop/qcow2.txt in
    QEMU's sources).

    Raises ImageError: `unsafe-disk` if it refers to another file, is encrypted or damaged, or has an impossible size
    (the field `fault` says which); `unexpected-output` if the output of qemu-img cannot be read.
    """
    if len(head) < 104:
        raise ImageError("the qcow2 ends within its header", code="unsafe-disk", fields={"fault": "truncated"})
    virtual_bytes: int
    version, backing_offset, _, _, virtual_bytes, encryption = struct.unpack_from(">IQIIQI", head, 4)
    features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 else 0
    size = f"has a size of {virtual_bytes} bytes, the limit is {size_words(MAX_VIRTUAL_BYTES)}"
    for is_faulty, fault, description in (
        (version not in (2, 3), "version", f"has the unknown version {version}"),
        (backing_offset != 0, "backing-file", "has a backing file, which could be any file of this machine"),
        (features & 4, "data-file", "stores its data in another file"),
        (encryption != 0, "encrypted", "is encrypted"),
        (features & 2, "damaged", "is marked as damaged"),
        (not 0 < virtual_bytes <= MAX_VIRTUAL_BYTES, "size", size),
    ):
        if is_faulty:
            raise ImageError(
                f"the qcow2 {description}",
                code="unsafe-disk",
                hint="convert the original disk with `qemu-img convert -O qcow2`",
                fields={"fault": fault},
            )
    with disk.open("rb") as file:
        wholeness.check_qcow2(file)
    _check_with_qemu(disk, virtual_bytes)
    return virtual_bytes


def _check_with_qemu(disk: Path, virtual_bytes: int) -> None:
    """Compares qemu-img's description of a qcow2 with the header that kimbox read. Raises as `_qcow2_bytes` does."""
    try:
        done = run.run(
            ["prlimit", *INFO_LIMITS, "--", run.require("qemu-img"), "info", "--output=json", "-f", "qcow2", disk],
            timeout_s=INFO_TIMEOUT_S,
        )
        info = json.loads(done.stdout)
        refused = [k for k in ("backing-filename", "full-backing-filename", "encrypted") if info.get(k)]
        refused += [k for k in ("data-file", "encrypt", "corrupt") if info["format-specific"]["data"].get(k)]
        if refused or info["virtual-size"] != virtual_bytes:
            faults = ", ".join(refused) or "another size"
            raise ImageError(
                f"the qcow2 is refused: `qemu-img info` reports {faults}", code="unsafe-disk", fields={"fault": faults}
            )
    except run.CommandError as error:
        raise ImageError(
            f"the qcow2 cannot be read: qemu-img {error.status}: {error.tail}",
            code="unsafe-disk",
            fields={"fault": "unreadable"},
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"unexpected output of `qemu-img info` ({error})", code="unexpected-output") from None
