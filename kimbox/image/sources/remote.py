"""An image made elsewhere, by path or http(s) URL, into the store: copied or fetched, its digest checked, then opened.

It is never used where it lies, and nothing reads its format before its digest is known to be right.
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

#: A download that nobody went on with for so long is removed.
PARTIAL_KEPT_S = 14 * 86400

#: The largest disk an image may claim to be: where the MBR ends.
MAX_VIRTUAL_BYTES = 2 << 40

#: What qemu-img may take to read a header: address space, processor time, time.
LIMITS = ("--as=2147483648", "--cpu=30")
INFO_TIMEOUT_S = 60.0

#: Where the small files of a box are kept, beside its disk.
BOX = "box"

#: How much of a file tells what it is.
HEAD_BYTES = 64 << 10

_QCOW2 = b"QFI\xfb"

#: What an image is sometimes mistaken for: where its mark stands, the mark, its name.
_MARKS = (
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
    """A small file of the box that an image came from, or None if there was none of that name."""
    path = image.disk.parent / BOX / name
    return path.read_bytes() if path.is_file() else None


def fetch(image: RemoteImage, work: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Fills a workspace, as `images.publish` expects it, with the disk of a file. Returns the image's facts.

    With `keys`, the file has to be a box that one of these ssh keys has signed. Raises ImageError if the file cannot be
    fetched, has another digest, or holds no disk.
    """
    key = key_of(image)
    with log.step(f"fetching the image {http.plain(image.location)}"):
        if is_url(image.location):
            taken = _fetch(image.location, key)
        else:
            taken = _copy(Path(image.location), key, work / "disk")
        size_bytes = taken.stat().st_size
        more: dict[str, str] = {}
        try:
            with taken.open("rb") as file:
                is_box = tarstream.is_archive(file.read(HEAD_BYTES))
            if is_box:
                whole = taken
                taken, more = _unpack(whole, work, keys)
                http.discard(whole)
            kind, virtual_bytes = inspect(taken)
        except ImageError as error:
            http.discard(taken)
            raise ImageError(f"{http.plain(image.location)}: {error.message}", hint=error.hint) from None
        _move(taken, work / images.DONE / images.DISKS[kind])
        http.discard(taken)
    return {
        "format": kind,
        "virtual_bytes": virtual_bytes,
        "size_bytes": size_bytes,
        "location": http.plain(image.location),
        **more,
    }


def _unpack(archive: Path, work: Path, keys: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    """The disk of a box, which is removed then, and what it was made for; its small files are kept beside the disk."""
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


def _fetch(url: str, key: str) -> Path:
    """Downloads into a file that outlives a failure, so that the next try goes on from there."""
    folder = paths.downloads_dir()
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    part = folder / f"{key}.part"
    http.fetch(url, part, key)
    return part


def _sweep(folder: Path) -> None:
    """Removes downloads that were given up, unless somebody is at work on them."""
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError, StateError):
            if time.time() - part.stat().st_mtime > PARTIAL_KEPT_S:
                with locked(paths.images_dir() / f"{part.stem}.lock"):
                    http.discard(part)


def _copy(source: Path, key: str, target: Path) -> Path:
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
    reported = time.monotonic()

    def report(done: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= http.REPORT_S:
            reported = time.monotonic()
            log.now(f"{size_words(done)} of {total}")

    return report


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_sparse(source, target)


def inspect(disk: Path) -> tuple[str, int]:
    """Format (`raw` or `qcow2`) and size, as the guest will see it, of a disk. Raises ImageError if it is neither."""
    with disk.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(_QCOW2):
        return "qcow2", _qcow2_bytes(disk, head)
    if head[510:512] == b"\x55\xaa" or head[512:520] == b"EFI PART" or head[4096:4104] == b"EFI PART":
        return "raw", disk.stat().st_size
    raise ImageError(
        f"this is no disk image but {_what(head)}", hint="kimbox takes raw disks with a partition table, and qcow2"
    )


def _what(head: bytes) -> str:
    """What a file is that is no disk, in words."""
    for offset, mark, name in _MARKS:
        if head.startswith(mark, offset):
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
    """The virtual size of a qcow2. Raises ImageError if it reaches out of itself, is encrypted, damaged or absurd.

    QEMU opens what a qcow2 names, so its header is read here first (docs/interop/qcow2.txt in QEMU's sources).
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
            ["prlimit", *LIMITS, "--", run.require("qemu-img"), "info", "--output=json", "-f", "qcow2", disk],
            timeout_s=INFO_TIMEOUT_S,
        )
        info = json.loads(done.stdout)
        foreign = [k for k in ("backing-filename", "full-backing-filename", "encrypted") if info.get(k)]
        foreign += [k for k in ("data-file", "encrypt", "corrupt") if info["format-specific"]["data"].get(k)]
        if foreign or info["virtual-size"] != virtual_bytes:
            raise ImageError(f"this qcow2 is refused: qemu-img tells of {', '.join(foreign) or 'another size'}")
    except run.CommandError as error:
        raise ImageError(f"this qcow2 cannot be read: qemu-img {error.status}: {error.tail}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"qemu-img info answered with nonsense ({error})") from None
    return virtual_bytes
