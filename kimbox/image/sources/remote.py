"""Brings an image that was made elsewhere into the store, from a path or an http(s) URL: a disk, or a box with a disk.

The file is copied or downloaded first, and its digest is checked. Only then is its format read. kimbox uses the copy in
the store, never the file itself.
"""

from __future__ import annotations

import contextlib
import errno
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kimbox import paths, run
from kimbox.errors import ImageError, StateError
from kimbox.files import copy_sparse, locked, size_words, sync_file, sync_folder
from kimbox.image.formats import boxreader, sums, tarstream
from kimbox.image.store import images
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.spec.model import RemoteImage
from kimbox.spec.urls import is_url
from kimbox.transfer import http

#: An unfinished download is removed if nothing was added to it for this time, in seconds.
PARTIAL_KEPT_S = 14 * 86400

#: Maximum size of a disk: a partition table of the MBR type cannot describe a larger one.
MAX_VIRTUAL_BYTES = 2 << 40

#: Limits for qemu-img when it reads the header of an untrusted file: address space in bytes, processor time in seconds
#: (prlimit(1)), and a timeout.
INFO_LIMITS = ("--as=2147483648", "--cpu=30")
INFO_TIMEOUT_S = 60.0

#: Name of the folder, beside the disk, with the small files of the box that it came in.
BOX = "box"

#: Number of bytes from the start of a file by which its format is recognized.
HEAD_BYTES = 64 << 10

_QCOW2 = b"QFI\xfb"

#: Formats that are not accepted, for a helpful message: offset and value of their magic number, description.
_OTHER_FORMATS = (
    (0, b"\xfd7zXZ\0", "compressed with xz: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (0, b"BZh", "compressed with bzip2: unpack it first"),
    (0, b"PK\x03\x04", "a zip archive: unpack it first"),
    (0, b"KDMV", "a VMDK disk: convert it with `qemu-img convert -O qcow2`"),
    (0, b"# Disk DescriptorFile", "a VMDK description without its disk"),
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox disk: convert it with `qemu-img convert -O qcow2`"),
    (0, b"vhdxfile", "a VHDX disk: convert it with `qemu-img convert -O qcow2`"),
    (0, b"conectix", "a VHD disk: convert it with `qemu-img convert -O qcow2`"),
    (0x8001, b"CD001", "a CD image that no disk boots from"),
    (1080, b"\x53\xef", "an ext4 file system without a partition table"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"\x7fELF", "a program"),
)


def key_of(image: RemoteImage) -> str:
    """The key of the image in the store: the hex digest of the file that is fetched."""
    return image.digest.removeprefix("sha256:")


def check_signature(image: Image, keys: tuple[str, ...]) -> None:
    """Raises ImageError unless the image is that of a box which one of these ssh keys has signed."""
    checksums, signature = (kept_file(image, name) for name in (sums.NAME, sums.SIGNATURE_NAME))
    boxreader.verify(checksums, signature, keys)


def kept_file(image: Image, name: str) -> bytes | None:
    """A small file of the box that an image came in, or None if the box had no file of that name."""
    path = image.disk.parent / BOX / name
    return path.read_bytes() if path.is_file() else None


def fetch(image: RemoteImage, work: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Fills a workspace, as `images.publish` expects it, with the disk of a file. Returns the image's facts.

    With `keys`, the file has to be a box that one of these ssh keys has signed. Raises ImageError if the file cannot be
    fetched, has another digest, or holds no disk.
    """
    key = key_of(image)
    with log.step(f"fetching the image {http.without_query(image.location)}"):
        if is_url(image.location):
            disk = _download(image.location, key)
        else:
            disk = _copy(Path(image.location), key, work / "disk")
        size_bytes = disk.stat().st_size
        box_facts: dict[str, str] = {}
        try:
            with disk.open("rb") as file:
                is_box = tarstream.is_archive(file.read(HEAD_BYTES))
            if is_box:
                archive = disk
                disk, box_facts = _unpack(archive, work, keys)
                http.discard(archive)
            kind, virtual_bytes = inspect(disk)
        except ImageError as error:
            http.discard(disk)
            raise ImageError(f"{http.without_query(image.location)}: {error.message}", hint=error.hint) from None
        _move(disk, work / images.DONE / images.DISKS[kind])
        http.discard(disk)
    return {
        "format": kind,
        "virtual_bytes": virtual_bytes,
        "size_bytes": size_bytes,
        "location": http.without_query(image.location),
        **box_facts,
    }


def _unpack(archive: Path, work: Path, keys: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    """Unpacks a box. Returns its disk, and the facts that are known of a box; its small files go beside the disk.

    With `keys`, one of them has to have signed the box. Raises ImageError, and removes the archive, if it is not valid.
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
    folder = work / images.DONE / BOX
    folder.mkdir()
    for name, data in contents.files.items():
        (folder / name).write_bytes(data)
        sync_file(folder / name)
    sync_folder(folder)
    return disk, {"provider": contents.provider}


def _download(url: str, key: str) -> Path:
    """Downloads to a file that stays after a failure, so that the next attempt continues it."""
    folder = paths.downloads_dir()
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    part = folder / f"{key}.part"
    http.fetch(url, part, key)
    return part


def _sweep(folder: Path) -> None:
    """Removes downloads to which nothing was added for PARTIAL_KEPT_S, unless a process is working on them."""
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError, StateError):
            if time.time() - part.stat().st_mtime > PARTIAL_KEPT_S:
                with locked(paths.images_dir() / f"{part.stem}.lock"):
                    http.discard(part)


def _copy(source: Path, key: str, target: Path) -> Path:
    """Copies a local file and returns the copy. Raises ImageError if it cannot be read or has another digest."""
    try:
        total = size_words(source.stat().st_size)
        digest = copy_sparse(source, target, on_bytes=_reporter(total))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ImageError(
            f"the image {source} cannot be read: {error.strerror}", hint="check image: location: in the spec"
        ) from None
    if digest != f"sha256:{key}":
        raise ImageError(
            f"the image {source} is not the one that the spec names:\n  the spec: sha256:{key}\n  the image: {digest}",
            hint="it was changed, or the digest in the spec is wrong",
        )
    return target


def _reporter(total: str) -> Callable[[int], None]:
    """A function that shows, at intervals, the number of bytes done; `total` is the size in words."""
    reported = time.monotonic()

    def report(done: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= http.REPORT_S:
            reported = time.monotonic()
            log.now(f"{size_words(done)} of {total}")

    return report


def _move(source: Path, target: Path) -> None:
    """Moves a file, also from another file system."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_sparse(source, target)


def inspect(disk: Path) -> tuple[str, int]:
    """The format of a disk (`raw` or `qcow2`), and its size in bytes as the guest sees it.

    Raises ImageError if the file has another format, or is a qcow2 that is not safe to open.
    """
    with disk.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(_QCOW2):
        return "qcow2", _qcow2_bytes(disk, head)
    if head[510:512] == b"\x55\xaa" or head[512:520] == b"EFI PART" or head[4096:4104] == b"EFI PART":
        return "raw", disk.stat().st_size
    raise ImageError(
        f"this is no disk image but {_description(head)}",
        hint="kimbox takes raw disks with a partition table, and qcow2",
    )


def _description(head: bytes) -> str:
    """What a file seems to be that is not a disk, in words, from its first bytes."""
    for offset, magic, name in _OTHER_FORMATS:
        if head.startswith(magic, offset):
            return name
    start = head[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "a web page (is it the address of a page about the image?)"
    if not head.strip(b"\0"):
        return "nothing but zeros" if head else "an empty file"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return f"a text that starts with {start[:40].decode(errors='replace')!r}"
    return f"something without a partition table (it starts with {head[:8].hex(' ')})"


def _qcow2_bytes(disk: Path, head: bytes) -> int:
    """The virtual size of a qcow2, in bytes.

    QEMU opens every file that a qcow2 refers to, so its header is read here first (docs/interop/qcow2.txt in QEMU's
    sources). Raises ImageError if it refers to another file, is encrypted or damaged, or has an impossible size.
    """
    if len(head) < 104:
        raise ImageError("this qcow2 is cut off in its header")
    virtual_bytes: int
    version, backing_at, _, _, virtual_bytes, encryption = struct.unpack_from(">IQIIQI", head, 4)
    features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 else 0
    faults = {
        f"is of version {version}": version not in (2, 3),
        "has a backing file, and could show the guest any file of this machine": backing_at != 0,
        "keeps its data in another file": features & 4,
        "is encrypted": encryption != 0,
        "is marked as damaged": features & 2,
        f"claims to be a disk of {size_words(virtual_bytes)}": not 0 < virtual_bytes <= MAX_VIRTUAL_BYTES,
    }
    for fault, is_so in faults.items():
        if is_so:
            raise ImageError(f"this qcow2 {fault}", hint="make a sound one of it with `qemu-img convert -O qcow2`")
    try:
        done = run.run(
            ["prlimit", *INFO_LIMITS, "--", run.require("qemu-img"), "info", "--output=json", "-f", "qcow2", disk],
            timeout_s=INFO_TIMEOUT_S,
        )
        info = json.loads(done.stdout)
        refused = [k for k in ("backing-filename", "full-backing-filename", "encrypted") if info.get(k)]
        refused += [k for k in ("data-file", "encrypt", "corrupt") if info["format-specific"]["data"].get(k)]
        if refused or info["virtual-size"] != virtual_bytes:
            raise ImageError(f"this qcow2 is refused: qemu-img tells of {', '.join(refused) or 'another size'}")
    except run.CommandError as error:
        raise ImageError(f"this qcow2 cannot be read: qemu-img {error.status}: {error.tail}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"qemu-img info answered with nonsense ({error})") from None
    return virtual_bytes
