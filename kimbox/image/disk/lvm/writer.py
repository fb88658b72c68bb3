"""Writes LVM2's on-disk format without LVM: label, metadata area, and the text metadata of one VG on one PV.

Format: lvm2 sources, lib/format_text/layout.h and lib/label/label.h; lvm(8), vgcfgbackup(8). Real LVM reads it,
finds no errors and can write to it. All identifiers are derived from `seed`: the same seed gives the same bytes.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator

from kimbox.spec.layout import (
    EXTENT_BYTES,
    PE_START_BYTES,
    SECTOR_BYTES,
    SNAPSHOT_CHUNK_BYTES,
    Layout,
    LogicalVolume,
)

#: The sector of the PV with the label. LVM searches the first four sectors.
LABEL_SECTOR = 1

#: Metadata area: from 4 KiB to the first extent, in bytes.
MDA_START_BYTES = 4096
MDA_SIZE_BYTES = PE_START_BYTES - MDA_START_BYTES

#: Start value of LVM's CRC-32 (lib/misc/crc.h: INITIAL_CRC).
INITIAL_CRC = 0xF597A6CF

#: lib/format_text/layout.h: FMTT_MAGIC
MDA_MAGIC = b" LVM2 x[5A%r0N*>"

_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ID_GROUPS = (6, 4, 4, 4, 4, 4, 6)


def crc(data: bytes) -> int:
    """Returns LVM's checksum: a CRC-32 with another start value and without the final inversion."""
    return zlib.crc32(data, INITIAL_CRC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def lvm_id(seed: str) -> str:
    """Returns an LVM identifier of 32 characters, derived from a text."""
    return "".join(_ID_ALPHABET[b % len(_ID_ALPHABET)] for b in hashlib.sha512(seed.encode()).digest()[:32])


def dashed(identifier: str) -> str:
    """Returns the identifier as LVM writes it in metadata: 6-4-4-4-4-4-6."""
    parts, at = [], 0
    for length in _ID_GROUPS:
        parts.append(identifier[at : at + length])
        at += length
    return "-".join(parts)


def metadata_text(layout: Layout, seed: str, epoch_s: int) -> str:
    """Returns the VG in LVM's text format, as lvm2 2.03 writes it. `epoch_s`: its creation time, in Unix seconds."""
    lines = [
        f"{layout.volume_group} {{",
        f'id = "{dashed(lvm_id(seed + "/vg"))}"',
        "seqno = 1",
        'format = "lvm2"',
        'status = ["RESIZEABLE", "READ", "WRITE"]',
        "flags = []",
        f"extent_size = {EXTENT_BYTES // SECTOR_BYTES}",
        "max_lv = 0",
        "max_pv = 0",
        "metadata_copies = 0",
        "physical_volumes {",
        "pv0 {",
        f'id = "{dashed(lvm_id(seed + "/pv0"))}"',
        'device = "/dev/vda2"',
        'status = ["ALLOCATABLE"]',
        "flags = []",
        f"dev_size = {layout.pv.size_bytes // SECTOR_BYTES}",
        f"pe_start = {PE_START_BYTES // SECTOR_BYTES}",
        f"pe_count = {layout.pv_extents}",
        "}",
        "}",
        "logical_volumes {",
    ]
    for volume in layout.volumes:
        lines += _volume(volume, seed, epoch_s)
    lines += _snapshot(layout, seed, epoch_s)
    lines += [
        "}",
        "}",
        "# Written by kimbox",
        'contents = "Text Format Volume Group"',
        "version = 1",
        'description = "kimbox"',
        'creation_host = "kimbox"',
        f"creation_time = {epoch_s}",
    ]
    return "\n".join(lines) + "\n\n"  # pvck(8) finds the end of a text by the empty line


def _volume(volume: LogicalVolume, seed: str, epoch_s: int) -> list[str]:
    return [
        f"{volume.name} {{",
        f'id = "{dashed(lvm_id(f"{seed}/lv/{volume.name}"))}"',
        'status = ["READ", "WRITE", "VISIBLE"]',
        "flags = []",
        f"creation_time = {epoch_s}",
        'creation_host = "kimbox"',
        "segment_count = 1",
        "segment1 {",
        "start_extent = 0",
        f"extent_count = {volume.extents}",
        'type = "striped"',
        "stripe_count = 1",
        f'stripes = ["pv0", {volume.first_extent}]',
        "}",
        "}",
    ]


def _snapshot(layout: Layout, seed: str, epoch_s: int) -> list[str]:
    """Returns the hidden LV by which LVM describes a snapshot: it names the COW store and the origin."""
    return [
        "snapshot0 {",
        f'id = "{dashed(lvm_id(seed + "/snapshot"))}"',
        'status = ["READ", "WRITE"]',
        "flags = []",
        f"creation_time = {epoch_s}",
        'creation_host = "kimbox"',
        "segment_count = 1",
        "segment1 {",
        "start_extent = 0",
        f"extent_count = {layout.root.extents}",
        'type = "snapshot"',
        f"chunk_size = {SNAPSHOT_CHUNK_BYTES // SECTOR_BYTES}",
        f'origin = "{layout.root.name}"',
        f'cow_store = "{layout.snapshot.name}"',
        "}",
        "}",
    ]


def _label(layout: Layout, seed: str) -> bytes:
    header = lvm_id(seed + "/pv0").encode() + struct.pack("<Q", layout.pv.size_bytes)
    end_of_list = bytes(16)
    header += struct.pack("<QQ", PE_START_BYTES, 0) + end_of_list
    header += struct.pack("<QQ", MDA_START_BYTES, MDA_SIZE_BYTES) + end_of_list
    header += struct.pack("<II", 2, 1) + end_of_list  # header extension 2, PV in use, no bootloader area
    sector = bytearray(SECTOR_BYTES)
    sector[0:8] = b"LABELONE"
    struct.pack_into("<Q", sector, 8, LABEL_SECTOR)
    struct.pack_into("<I8s", sector, 20, 32, b"LVM2 001")
    sector[32 : 32 + len(header)] = header
    struct.pack_into("<I", sector, 16, crc(bytes(sector[20:])))
    return bytes(sector)


def _metadata_area(text: bytes) -> bytes:
    header = bytearray(SECTOR_BYTES)
    header[4:20] = MDA_MAGIC
    struct.pack_into("<IQQ", header, 20, 1, MDA_START_BYTES, MDA_SIZE_BYTES)
    struct.pack_into("<QQII", header, 40, SECTOR_BYTES, len(text), crc(text), 0)
    struct.pack_into("<I", header, 0, crc(bytes(header[4:])))
    return bytes(header)


def pieces(layout: Layout, seed: str, epoch_s: int) -> Iterator[tuple[int, bytes]]:
    """Yields everything that LVM needs on the disk, as (byte offset on the disk, bytes)."""

    base = layout.pv.offset_bytes
    text = metadata_text(layout, seed, epoch_s).encode() + b"\0"
    yield base + LABEL_SECTOR * SECTOR_BYTES, _label(layout, seed)
    yield base + MDA_START_BYTES, _metadata_area(text)
    yield base + MDA_START_BYTES + SECTOR_BYTES, text
