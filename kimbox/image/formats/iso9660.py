"""Writes a small ISO 9660 file system (ECMA-119) with Rock Ridge names: a few files in one folder. Pure.

The sectors are: 16 empty ones, the two descriptors, the two path tables, the folder, and the files. Rock Ridge (RRIP
1.10) gives the files names with small letters and hyphens, which ISO 9660 alone does not allow. Equal files give equal
bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

#: Size of a sector, in bytes. A disk in QEMU has whole sectors, and so has the file system.
SECTOR_BYTES = 2048

#: Places of the parts, in sectors.
_VOLUME, _END, _PATHS_LITTLE, _PATHS_BIG, _FOLDER, _FIRST_FILE = 16, 17, 18, 19, 20, 21

#: The time of each file: 2025-01-01 00:00:00 UTC, in the form of a directory record.
_TIME = bytes((125, 1, 1, 0, 0, 0, 0))

#: A time that is not specified, in the form of a volume descriptor.
_NO_TIME = b"0" * 16 + b"\0"

#: Flag of a directory record: it is a folder.
_IS_FOLDER = 2

#: Modes of the folder and of a file, as in st_mode.
_FOLDER_MODE, _FILE_MODE = 0o40555, 0o100444


def write(label: str, files: Mapping[str, bytes]) -> bytes:
    """Returns the file system. `label` has at most 32 characters of ASCII.

    `files`: name of a file in ASCII -> its content. Names must differ in more than case and punctuation. Raises
    ValueError if the folder does not fit into one sector, which has room for about 15 names.
    """
    places: dict[str, tuple[int, int]] = {}
    content = b""
    for name in sorted(files, key=_plain):
        places[name] = (_FIRST_FILE + len(content) // SECTOR_BYTES, len(files[name]))
        content += _padded(files[name])
    own = _record(b"\0", _FOLDER, SECTOR_BYTES, _IS_FOLDER, _sharing() + _mode(_FOLDER_MODE, 2) + _extension())
    parent = _record(b"\1", _FOLDER, SECTOR_BYTES, _IS_FOLDER, _mode(_FOLDER_MODE, 2))
    entries = [
        _record(_plain(n), start, size, 0, _mode(_FILE_MODE, 1) + _name(n)) for n, (start, size) in places.items()
    ]
    folder = b"".join((own, parent, *entries))
    if len(folder) > SECTOR_BYTES:
        raise ValueError("the folder of an ISO 9660 file system does not fit into one sector")
    sectors = _FIRST_FILE + len(content) // SECTOR_BYTES
    parts = (
        bytes(_VOLUME * SECTOR_BYTES),
        _volume(label, sectors),
        b"\xffCD001\1",
        struct.pack("<BBIHBB", 1, 0, _FOLDER, 1, 0, 0),
        struct.pack(">BBIHBB", 1, 0, _FOLDER, 1, 0, 0),
        folder,
    )
    return b"".join(_padded(part) for part in parts) + content


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR_BYTES)


def _both(value: int) -> bytes:
    """A number of 32 bits in both byte orders."""
    return struct.pack("<I", value) + struct.pack(">I", value)


def _both_short(value: int) -> bytes:
    """A number of 16 bits in both byte orders."""
    return struct.pack("<H", value) + struct.pack(">H", value)


def _plain(name: str) -> bytes:
    """The name of a file for a reader without Rock Ridge: capital letters, digits, `_` and a version."""
    return "".join(c if c.isalnum() else "_" for c in name.upper()).encode("ascii") + b".;1"


def _record(name: bytes, start: int, size_bytes: int, flags: int, system_use: bytes) -> bytes:
    """A directory record (ECMA-119, 9.1). `start` is a sector."""
    fixed = _both(start) + _both(size_bytes) + _TIME + bytes((flags, 0, 0)) + _both_short(1)
    data = bytes((len(name),)) + name + bytes(1 - len(name) % 2) + system_use
    data += bytes(len(data) % 2)
    return bytes((2 + len(fixed) + len(data), 0)) + fixed + data


def _sharing() -> bytes:
    """Entry SP: the records have more fields than those of ISO 9660."""
    return b"SP\x07\x01\xbe\xef\x00"


def _extension() -> bytes:
    """Entry ER: the fields are those of Rock Ridge."""
    identifier = b"RRIP_1991A"
    return b"ER" + bytes((8 + len(identifier), 1, len(identifier), 0, 0, 1)) + identifier


def _mode(mode: int, links: int) -> bytes:
    """Entry PX: mode, number of links, and owner root."""
    return b"PX\x24\x01" + _both(mode) + _both(links) + _both(0) + _both(0)


def _name(name: str) -> bytes:
    """Entry NM: the name."""
    return b"NM" + bytes((5 + len(name), 1, 0)) + name.encode("ascii")


def _volume(label: str, sectors: int) -> bytes:
    """The primary volume descriptor (ECMA-119, 8.4)."""
    root = _record(b"\0", _FOLDER, SECTOR_BYTES, _IS_FOLDER, b"")
    return b"".join(
        (
            b"\1CD001\1\0",
            b" " * 32,
            label.encode("ascii").ljust(32),
            bytes(8),
            _both(sectors),
            bytes(32),
            _both_short(1) * 2,
            _both_short(SECTOR_BYTES),
            _both(10),  # size of a path table in bytes: the record of the root alone
            struct.pack("<II", _PATHS_LITTLE, 0),
            struct.pack(">II", _PATHS_BIG, 0),
            root,
            b" " * (4 * 128 + 3 * 37),
            _NO_TIME * 4,
            b"\1\0",
        )
    )
