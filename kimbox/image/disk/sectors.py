"""Formats that kimbox writes beside LVM and ext4: MBR, GRUB's place in it, and the swap header. Pure."""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterator

from kimbox.errors import ImageError
from kimbox.spec.layout import SECTOR_BYTES, Layout, LogicalVolume

#: Partition types of an MBR.
TYPE_LINUX = 0x83
TYPE_LVM = 0x8E

#: Boot code ends here; disk signature and partition table follow.
BOOT_CODE_BYTES = 440

#: What grub-bios-setup(8) patches in boot.img (GRUB, include/grub/i386/pc/boot.h).
GRUB_KERNEL_SECTOR = 0x5C
GRUB_BOOT_DRIVE = 0x64
GRUB_DRIVE_CHECK = 0x66

#: Cylinder/head/sector of a partition too far out to have one.
CHS_BEYOND = b"\xfe\xff\xff"

#: A swap header is a page long, and ends so.
SWAP_PAGE_BYTES = 4096
SWAP_MAGIC = b"SWAPSPACE2"

#: Namespace of every UUID kimbox derives.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:kimbox")


def derived_uuid(seed: str) -> uuid.UUID:
    """A UUID that depends on `seed` alone."""
    return uuid.uuid5(NAMESPACE, seed)


def mbr(layout: Layout, seed: str, boot_img: bytes) -> bytes:
    """The first sector: GRUB's boot code, a derived disk signature and the two partitions.

    `boot_img` is GRUB's i386-pc boot.img, one sector long. Raises ImageError if it is not.
    """
    if len(boot_img) != SECTOR_BYTES:
        raise ImageError(f"GRUB's boot.img has {len(boot_img)} bytes instead of {SECTOR_BYTES}")
    sector = bytearray(SECTOR_BYTES)
    sector[:BOOT_CODE_BYTES] = boot_img[:BOOT_CODE_BYTES]
    struct.pack_into("<Q", sector, GRUB_KERNEL_SECTOR, 1)  # the core image starts in sector 1
    sector[GRUB_BOOT_DRIVE] = 0xFF  # load from the drive that the BIOS booted
    sector[GRUB_DRIVE_CHECK : GRUB_DRIVE_CHECK + 2] = b"\x90\x90"  # and trust the BIOS about which that is
    struct.pack_into("<I", sector, BOOT_CODE_BYTES, int(hashlib.sha256(seed.encode()).hexdigest()[:8], 16))
    for index, (place, kind, flag) in enumerate(((layout.boot, TYPE_LINUX, 0x80), (layout.pv, TYPE_LVM, 0))):
        start, count = place.offset_bytes // SECTOR_BYTES, place.size_bytes // SECTOR_BYTES
        struct.pack_into("<B3sB3sII", sector, 446 + 16 * index, flag, CHS_BEYOND, kind, CHS_BEYOND, start, count)
    sector[510:512] = b"\x55\xaa"
    return bytes(sector)


def core_image(layout: Layout, core_img: bytes) -> tuple[int, bytes]:
    """Where GRUB's core image goes. Raises ImageError if it does not fit before the first partition."""
    room = layout.boot.offset_bytes - SECTOR_BYTES
    if not 0 < len(core_img) <= room:
        raise ImageError(f"GRUB's core image has {len(core_img)} bytes; there is room for 1 to {room}")
    return SECTOR_BYTES, core_img


def swap_header(volume: LogicalVolume, seed: str) -> Iterator[tuple[int, bytes]]:
    """The header that mkswap(8) writes (Linux, include/linux/swap.h: union swap_header, version 1)."""
    page = bytearray(SWAP_PAGE_BYTES)
    struct.pack_into("<III", page, 1024, 1, volume.place.size_bytes // SWAP_PAGE_BYTES - 1, 0)
    page[1036:1052] = derived_uuid(seed + "/swap").bytes
    page[1052:1068] = b"kimbox-swap".ljust(16, b"\0")
    page[-10:] = SWAP_MAGIC
    yield volume.place.offset_bytes, bytes(page)
