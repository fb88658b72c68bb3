"""Writes the MBR with GRUB's boot code, GRUB's core image and the swap header. Pure."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

from kimbox.errors import ImageError
from kimbox.image.disk.derived import derived_uuid
from kimbox.spec.layout import SECTOR_BYTES, Layout, LogicalVolume

#: Partition types of an MBR.
TYPE_LINUX = 0x83
TYPE_LVM = 0x8E

#: Size of the boot code in the MBR, in bytes. The disk signature and the partition table follow.
BOOT_CODE_BYTES = 440

#: Offsets in boot.img that grub-bios-setup(8) patches (GRUB, include/grub/i386/pc/boot.h).
GRUB_KERNEL_SECTOR = 0x5C
GRUB_BOOT_DRIVE = 0x64
GRUB_DRIVE_CHECK = 0x66

#: Cylinder/head/sector of a partition beyond the range of such addresses.
CHS_BEYOND = b"\xfe\xff\xff"

#: Maximum number of sectors of a partition: an MBR has 32 bits for it.
MAX_SECTORS = (1 << 32) - 1

#: Size of the swap header, in bytes, and the magic number at its end.
SWAP_PAGE_BYTES = 4096
SWAP_MAGIC = b"SWAPSPACE2"


def mbr(layout: Layout, seed: str, boot_img: bytes) -> bytes:
    """Returns the first sector: GRUB's boot code, a disk signature derived from `seed`, and the two partitions.

    `boot_img` is GRUB's i386-pc boot.img. Raises ImageError if it is not one sector long.
    """
    if len(boot_img) != SECTOR_BYTES:
        raise ImageError(
            f"GRUB's boot.img has {len(boot_img)} bytes instead of {SECTOR_BYTES}",
            code="boot-loader-size",
            fields={"file": "boot.img", "size_bytes": str(len(boot_img))},
        )
    sector = bytearray(SECTOR_BYTES)
    sector[:BOOT_CODE_BYTES] = boot_img[:BOOT_CODE_BYTES]
    struct.pack_into("<Q", sector, GRUB_KERNEL_SECTOR, 1)  # the core image starts in sector 1
    sector[GRUB_BOOT_DRIVE] = 0xFF  # load from the drive that the BIOS booted
    sector[GRUB_DRIVE_CHECK : GRUB_DRIVE_CHECK + 2] = b"\x90\x90"  # and do not check the BIOS's number of the drive
    struct.pack_into("<I", sector, BOOT_CODE_BYTES, int(hashlib.sha256(seed.encode()).hexdigest()[:8], 16))
    for index, (place, kind, flag) in enumerate(((layout.boot, TYPE_LINUX, 0x80), (layout.pv, TYPE_LVM, 0))):
        start, count = place.offset_bytes // SECTOR_BYTES, place.size_bytes // SECTOR_BYTES
        struct.pack_into("<B3sB3sII", sector, 446 + 16 * index, flag, CHS_BEYOND, kind, CHS_BEYOND, start, count)
    sector[510:512] = b"\x55\xaa"
    return bytes(sector)


def grown(sector: bytes, size_bytes: int) -> bytes:
    """Returns the first sector of a disk of `size_bytes`, with a second partition that ends where the disk ends.

    A partition that ends there is left as it is. Raises ImageError (`disk-layout`) if the second partition is not the
    last one, or has no LVM.
    """
    entries = [struct.unpack_from("<B3sB3sII", sector, 446 + 16 * index) for index in range(4)]
    _, _, kind, _, start, _ = entries[1]
    ends = [first + count for _, _, of_kind, _, first, count in entries if of_kind]
    if kind != TYPE_LVM or max(ends) != ends[1] or not start < size_bytes // SECTOR_BYTES:
        raise ImageError(
            "the second partition is not the one with LVM at the end of the disk",
            code="disk-layout",
            fields={"fault": "not-last"},
        )
    new = bytearray(sector)
    struct.pack_into("<I", new, 446 + 16 + 12, min(size_bytes // SECTOR_BYTES - start, MAX_SECTORS))
    return bytes(new)


def core_image(layout: Layout, core_img: bytes) -> tuple[int, bytes]:
    """Returns the offset of GRUB's core image on the disk, and the image.

    Raises ImageError if it is empty, or too large for the space before the first partition.
    """
    room_bytes = layout.boot.offset_bytes - SECTOR_BYTES
    if not 0 < len(core_img) <= room_bytes:
        raise ImageError(
            f"GRUB's core image has {len(core_img)} bytes; it must have 1 to {room_bytes} bytes",
            code="boot-loader-size",
            fields={"file": "core.img", "size_bytes": str(len(core_img))},
        )
    return SECTOR_BYTES, core_img


def swap_header(volume: LogicalVolume, seed: str) -> Iterator[tuple[int, bytes]]:
    """Yields offset and content of the header that mkswap(8) writes.

    Format: Linux, include/linux/swap.h, union swap_header, version 1.
    """

    page = bytearray(SWAP_PAGE_BYTES)
    struct.pack_into("<III", page, 1024, 1, volume.place.size_bytes // SWAP_PAGE_BYTES - 1, 0)
    page[1036:1052] = derived_uuid(seed + "/swap").bytes
    page[1052:1068] = b"kimbox-swap".ljust(16, b"\0")
    page[-10:] = SWAP_MAGIC
    yield volume.place.offset_bytes, bytes(page)
