"""Disks of kimbox's layout with real ext4 file systems and made snapshots, written in a moment and without root."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tinyimage import DISK

from kimbox import run
from kimbox.image.disk import sectors
from kimbox.image.disk.lvm import writer
from kimbox.spec.layout import SNAPSHOT_CHUNK_BYTES, Extent, Layout, plan

LAYOUT: Layout = plan(DISK)
SEED = "made"
BLOCK = 4096

PLACES = {"boot": LAYOUT.boot, "root": LAYOUT.root.place, "persistent": LAYOUT.persistent.place}


def make(disk: Path) -> None:
    """A whole disk: partition table, LVM, three file systems, GRUB's environment, swap, an empty snapshot."""
    with disk.open("wb") as file:
        file.truncate(LAYOUT.size_bytes)
        pieces = [(0, sectors.mbr(LAYOUT, SEED, bytes(512))), *writer.pieces(LAYOUT, SEED, 0)]
        assert LAYOUT.swap
        for offset, data in [*pieces, *sectors.swap_header(LAYOUT.swap, SEED)]:
            os.pwrite(file.fileno(), data, offset)
    for name, place in PLACES.items():
        options = f"offset={place.offset_bytes},nodiscard,lazy_itable_init=1"
        size = f"{place.size_bytes // 1024}k"
        run.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E", options, "-L", f"kimbox-{name}", disk, size])
    with tempfile.NamedTemporaryFile() as block:
        block.write(b"# GRUB Environment Block\n".ljust(1024, b"#"))
        block.flush()
        for request in ("mkdir /grub", f"write {block.name} /grub/grubenv"):
            run.run(["debugfs", "-w", "-R", request, device(disk, LAYOUT.boot)])


def device(disk: Path, place: Extent) -> str:
    """How e2fsprogs name a file system in a disk."""
    return f"{disk}?offset={place.offset_bytes}"


def put(disk: Path, place: Extent, name: str, content: Path) -> None:
    """Copies a file into the top folder of a file system."""
    run.run(["debugfs", "-w", "-R", f"write {content} {name}", device(disk, place)])


def remove(disk: Path, place: Extent, name: str) -> None:
    """Removes a file, as a guest does: its blocks are free and keep what was in them."""
    run.run(["debugfs", "-w", "-R", f"rm {name}", device(disk, place)])


def get(disk: Path, place: Extent, name: str, target: Path) -> bytes:
    """The content of a file in a file system."""
    target.unlink(missing_ok=True)
    run.run(["debugfs", "-R", f"dump {name} {target}", device(disk, place)])
    return target.read_bytes()


def is_sound(disk: Path, place: Extent) -> bool:
    """Whether fsck finds nothing to mend."""
    return run.run(["e2fsck", "-fn", device(disk, place)], check=False).ok


def read(disk: Path, offset: int, size: int) -> bytes:
    """Bytes of a raw disk."""
    with disk.open("rb") as file:
        return os.pread(file.fileno(), size, offset)


def write(disk: Path, offset: int, data: bytes) -> None:
    """Puts bytes into a raw disk."""
    with disk.open("r+b") as file:
        os.pwrite(file.fileno(), data, offset)


def store(disk: Path, chunks: Mapping[int, bytes], *, valid: bool = True) -> None:
    """Writes the snapshot's store as the kernel does: header, one area, and these chunks of the origin."""
    unit, start = SNAPSHOT_CHUNK_BYTES, LAYOUT.snapshot.place.offset_bytes
    write(disk, start, struct.pack("<IIII", 0x70416E53, valid, 1, unit // 512))
    table = b"".join(struct.pack("<QQ", old, 2 + index) for index, old in enumerate(chunks))
    write(disk, start + unit, table.ljust(unit, b"\0"))
    for index, data in enumerate(chunks.values()):
        write(disk, start + (2 + index) * unit, data)


def overlaid(base: Path, changed: Path, overlay: Path) -> Path:
    """An overlay on `base` that shows what `changed` holds."""
    run.run(["qemu-img", "convert", "-O", "qcow2", "-B", base, "-F", "raw", changed, overlay])
    return overlay


def raw_of(overlay: Path, target: Path) -> Path:
    """What a guest would see of an overlay."""
    run.run(["qemu-img", "convert", "-O", "raw", overlay, target])
    return target
