"""Parses the superblock of an ext2, ext3 or ext4 file system, and computes the checksums of ext4. Pure.

Format: Linux, Documentation/filesystems/ext4 (super, checksums). This module checks only the magic number and the
checksum. The modules that use a superblock check its other numbers, because they accept different features.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from kimbox.image.disk.faults import unsupported

#: Offset of the superblock in the file system, and also its size, in bytes.
SUPERBLOCK_BYTES = 1024

MAGIC = 0xEF53

#: `s_feature_compat`: the file system has a journal.
HAS_JOURNAL = 0x4

#: `s_feature_incompat`: the journal must be replayed first; meta block groups; 64-bit block numbers; the start value of
#: checksums is stored.
RECOVER = 0x4
META_BG = 0x10
WIDE = 0x80
CHECKSUM_SEED = 0x2000

#: `s_feature_ro_compat`: a bit of a bitmap is a cluster of blocks; descriptors have a CRC-16; metadata has a CRC-32C.
BIGALLOC = 0x200
GROUP_CHECKSUMS = 0x10
METADATA_CHECKSUMS = 0x400

#: `s_state`: the kernel or e2fsck detected errors.
ERROR_STATE = 0x2


def _crc32c_table() -> tuple[int, ...]:
    """Returns the table of the Castagnoli polynomial, reflected."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _crc32c_table()


def crc32c(seed: int, data: bytes) -> int:
    """Returns the CRC-32C as ext4 uses it: without inversion of the start value and of the result."""
    table = _TABLE
    for byte in data:
        seed = table[(seed ^ byte) & 0xFF] ^ seed >> 8
    return seed


@dataclass(frozen=True, slots=True)
class Superblock:
    """The unchecked numbers of a superblock. `log_block`, `log_cluster`: a size is 1024 bytes << this number."""

    label: str
    inodes: int
    blocks: int
    first_block: int
    log_block: int
    log_cluster: int
    blocks_per_group: int
    inodes_per_group: int
    inode_bytes: int
    #: 0 in old file systems: their descriptors have 32 bytes.
    descriptor_bytes: int
    reserved_descriptor_blocks: int
    state: int
    compat: int
    incompat: int
    ro_compat: int
    #: Start value of the checksums of metadata, if there are any.
    checksum_seed: int
    #: Whether the superblock has a correct checksum, or no checksum.
    is_intact: bool

    @classmethod
    def parse(cls, block: bytes) -> Self:
        """Returns the superblock in a block of SUPERBLOCK_BYTES. Raises ImageError if the block is not a superblock."""
        if len(block) != SUPERBLOCK_BYTES or not has_magic(block):
            raise unsupported("no-ext4", "no ext4 file system found")
        inodes, blocks_low = struct.unpack_from("<II", block, 0)
        first_block, log_block, log_cluster, per_group, _, inodes_per_group = struct.unpack_from("<6I", block, 0x14)
        (state,) = struct.unpack_from("<H", block, 0x3A)
        inode_bytes, _, compat, incompat, ro_compat = struct.unpack_from("<HHIII", block, 0x58)
        (reserved,) = struct.unpack_from("<H", block, 0xCE)
        (descriptor,) = struct.unpack_from("<H", block, 0xFE)
        (blocks_high,) = struct.unpack_from("<I", block, 0x150)
        (stored_seed,) = struct.unpack_from("<I", block, 0x270)
        (checksum,) = struct.unpack_from("<I", block, 0x3FC)
        return cls(
            label=block[0x78:0x88].split(b"\0")[0].decode("ascii", "replace"),
            inodes=inodes,
            blocks=blocks_low | (blocks_high << 32 if incompat & WIDE else 0),
            first_block=first_block,
            log_block=log_block,
            log_cluster=log_cluster,
            blocks_per_group=per_group,
            inodes_per_group=inodes_per_group,
            inode_bytes=inode_bytes,
            descriptor_bytes=descriptor,
            reserved_descriptor_blocks=reserved,
            state=state,
            compat=compat,
            incompat=incompat,
            ro_compat=ro_compat,
            checksum_seed=stored_seed if incompat & CHECKSUM_SEED else crc32c(0xFFFFFFFF, block[0x68:0x78]),
            is_intact=not ro_compat & METADATA_CHECKSUMS or crc32c(0xFFFFFFFF, block[:0x3FC]) == checksum,
        )


def has_magic(block: bytes) -> bool:
    """Whether the start of a superblock has the magic number."""

    return block[0x38:0x3A] == MAGIC.to_bytes(2, "little")
