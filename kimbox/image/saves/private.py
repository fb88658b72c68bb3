"""What a save must not contain: the secrets that kimbox made for one machine, and what identifies it to others.

A save is read from the disk of a halted machine, which is never written. The volume `persistent` is copied, and its
secrets are removed from the copy. In the root, which the disk has as a snapshot, the few files that identify a machine
get other bytes of the same length while they are read. `renew` gives them new values on the disk of another machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from kimbox.errors import ImageError, StateError
from kimbox.image.disk import inuse, ranges, rawdisk
from kimbox.image.disk.ext4 import content, directories, usage
from kimbox.image.disk.ext4.directories import Entry, shown
from kimbox.image.disk.ext4.inodes import FileSystem, Read
from kimbox.image.disk.ext4.superblock import RECOVER
from kimbox.image.disk.faults import UnknownUsage
from kimbox.image.disk.inuse import InUse
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.view import PERSISTENT, DiskView, Volume
from kimbox.image.sanitize import apply, traces

#: Files and folders of /persistent that are removed: the ssh host key, credentials, and what a start left unfinished.
#: A folder stays, without its content.
REMOVED = ("/ssh", "/secure", "/incoming")

#: Files of the root that identify a machine, and seeds. `*` matches any part of one name.
ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
SEED_FILES = (
    "/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret", "/etc/ssh/ssh_host_*_key",
)  # fmt: skip

#: Content of an ID_FILE in a save: an id that systemd does not accept (machine-id(5)).
NO_ID = b"0" * 32 + b"\n"

#: Maximum size of such a file, in bytes. A larger one is no id and no seed, but data of a user.
MAX_FILE_BYTES = 64 << 10

#: Size of the pieces in which the volume `persistent` is copied, in bytes.
PIECE_BYTES = 1 << 20

#: Bytes of the disk that read as others: place on the disk, and the bytes.
Patch = tuple[int, bytes]


@attrs.frozen
class Cleaned:
    """The disk of a machine as a save has it."""

    size_bytes: int
    read: Read
    in_use: InUse
    #: Byte ranges that differ from the disk of the machine.
    changed: Ranges
    #: What was removed or replaced: paths in the guest.
    removed: tuple[str, ...]


def cleaned(read: Read, size_bytes: int, work: Path) -> Cleaned:
    """Returns the disk whose bytes `read` returns without what is private to its machine.

    `work`: a folder for the copy of `persistent`, which must stay as long as the result is read. Raises ImageError if
    the disk has another layout or is damaged, StateError (`wrong-state`) if it was not unmounted.
    """
    view = DiskView.of(read, size_bytes)
    _need_unmounted(view)
    patches, removed = _patches(view)
    persistent = view.contents.mounted.get(PERSISTENT)
    copies: list[tuple[Volume, Path]] = []
    if persistent is not None:
        copy = work / "persistent.raw"
        if paths := _clean_persistent(persistent, copy):
            copies.append((persistent, copy))
            removed += paths
    patched = _patched(read, patches, copies)
    found = inuse.find(DiskView.of(patched, size_bytes), drop_kept=True)
    changed = ranges.merged(
        [
            *((at, at + len(data)) for at, data in patches),
            *(piece for volume, _ in copies for piece in volume.on_disk([(0, volume.size_bytes)])),
        ]
    )
    return Cleaned(size_bytes, patched, found, changed, tuple(sorted(set(removed))))


def renew(read: Read, write: Callable[[int, bytes], None], size_bytes: int, machine_id: str) -> None:
    """Gives the files of ID_FILES and SEED_FILES on the disk of a new machine their own values.

    `machine_id`: 32 hex digits. The disk is that of a save. Raises ImageError if it has another layout.
    """
    view = DiskView.of(read, size_bytes)
    for system, place in _roots(view):
        for pattern, fill in _fills():
            for entry in _files(system, pattern):
                own = f"{machine_id}\n".encode() if fill is NO_ID else os.urandom(entry.inode.size_bytes)
                if fill is NO_ID and content.content(system, entry.inode, MAX_FILE_BYTES) != NO_ID:
                    continue
                for at, data in _pieces(system, entry, own, place):
                    write(at, data)


def _need_unmounted(view: DiskView) -> None:
    """Raises StateError if a file system has a journal to replay: its free blocks are not known, nor what is newest."""
    systems = {name or "/": volume for name, volume in view.contents.mounted.items() if name != PERSISTENT}
    for name, volume in [*systems.items(), ("/", view.snapshot_of_root)]:
        if volume.file_system.superblock.incompat & RECOVER:
            raise StateError(
                f"the file system of {name.removeprefix('volume ').removesuffix(':')} was not unmounted when the box "
                "was stopped",
                code="wrong-state",
                hint="start the box with `kimbox up` and shut it down with `kimbox halt`",
                fields={"part": name},
            )


def _roots(view: DiskView) -> Iterator[tuple[FileSystem, Callable[[int], int]]]:
    """Yields root and its snapshot: the file system, and a function from an offset in it to one on the disk.

    The function takes the start of a block of the file system. A block is in one piece on the disk.
    """
    root, snapshot = view.root, view.snapshot_of_root
    yield root.file_system, lambda offset: _on_disk(root, offset)
    lvm = view.partitions[1].lvm
    (found,) = (one for one in lvm.group.snapshots if one.origin == root.name)
    cow, store = lvm.store(found), lvm.volumes[found.store]

    def place(offset: int) -> int:
        chunk, inside = divmod(offset, cow.chunk_bytes)
        new = cow.exceptions.get(chunk)
        return _on_disk(root, offset) if new is None else _on_disk(store, new * cow.chunk_bytes + inside)

    if cow.exceptions:
        yield snapshot.file_system, place


def _on_disk(volume: Volume, offset: int) -> int:
    """Returns the place on the disk of an offset in a volume."""
    for start, size in volume.pieces:
        if offset < size:
            return start + offset
        offset -= size
    fields = {"fault": "beyond-the-end"}
    raise ImageError("an offset is beyond the end of its volume", code="disk-damaged", fields=fields)


def _fills() -> Iterator[tuple[str, bytes]]:
    """Yields each pattern of files that are replaced, and what they are filled with."""
    yield from ((pattern, NO_ID) for pattern in ID_FILES)
    yield from ((pattern, b"\0") for pattern in SEED_FILES)


def _files(system: FileSystem, pattern: str) -> list[Entry]:
    return [
        entry
        for entry in directories.matching(system, pattern)
        if entry.inode.is_file and 0 < entry.inode.size_bytes <= MAX_FILE_BYTES
    ]


def _pieces(system: FileSystem, entry: Entry, data: bytes, place: Callable[[int], int]) -> Iterator[Patch]:
    """Yields the blocks of a file: their place on the disk, and what of `data` belongs there."""
    unit = system.block_bytes
    for first, count, start in content.runs(system, entry.inode):
        for index in range(count):
            piece = data[(first + index) * unit : (first + index + 1) * unit]
            if piece:
                yield place((start + index) * unit), piece


def _patches(view: DiskView) -> tuple[list[Patch], list[str]]:
    """Returns the bytes that hide the files of ID_FILES and SEED_FILES, and their paths."""
    patches: list[Patch] = []
    paths: list[str] = []
    for system, place in _roots(view):
        for pattern, fill in _fills():
            for entry in _files(system, pattern):
                size = entry.inode.size_bytes
                data = (fill * (size // len(fill) + 1))[:size]
                if content.content(system, entry.inode, MAX_FILE_BYTES) == data:
                    continue
                patches += _pieces(system, entry, data, place)
                paths.append(shown(entry.path))
    return patches, paths


def _clean_persistent(volume: Volume, copy: Path) -> list[str]:
    """Copies the volume `persistent` to a raw disk of its own, and removes from it what is private.

    Returns the paths; without any, and if the volume was unmounted, no copy is needed. Raises ImageError if the file
    system is damaged.
    """
    with copy.open("xb") as file:
        for start, end in _used(volume):
            for at in range(start, end, PIECE_BYTES):
                piece = volume.read(at, min(PIECE_BYTES, end - at))
                if piece.strip(b"\0"):
                    os.pwrite(file.fileno(), piece, at)
        file.truncate(volume.size_bytes)
    with rawdisk.writable(copy) as disk:
        own = Volume(PERSISTENT, ((0, volume.size_bytes),), disk.read)
        is_dirty = bool(own.file_system.superblock.incompat & RECOVER)
        if is_dirty:  # what was deleted last is in its journal
            apply.repair(disk, own, PERSISTENT)
        system = own.reopened().file_system
        folders = [directories.find(system, path.encode()) for path in REMOVED]
        entries = [entry for folder in folders for entry in traces.tree(system, folder)]
        if entries:
            apply.remove(disk, own, entries)
            apply.repair(disk, own, PERSISTENT)
    paths = [f"{PERSISTENT}{shown(entry.path)}" for entry in entries if not entry.inode.is_folder]
    return paths or ([PERSISTENT] if is_dirty or entries else [])


def _used(volume: Volume) -> Ranges:
    """Returns the bytes in use of a volume; all of it if it was not unmounted."""
    try:
        return usage.used(volume.read, volume.size_bytes)
    except UnknownUsage:
        return [(0, volume.size_bytes)]


def _patched(read: Read, patches: list[Patch], copies: list[tuple[Volume, Path]]) -> Read:
    """Returns a function that reads the disk with the patches, and with copies in place of volumes."""
    pieces: list[tuple[int, int, Path, int]] = []
    for volume, copy in copies:
        inside = 0
        for start, size in volume.pieces:
            pieces.append((start, start + size, copy, inside))
            inside += size
    files = {copy: copy.open("rb") for _, copy in copies}  # closed with the last reference to the function

    def read_patched(offset: int, size: int) -> bytes:
        data = read(offset, size)
        end = offset + size
        hits = [piece for piece in pieces if piece[0] < end and piece[1] > offset]
        spots = [patch for patch in patches if patch[0] < end and patch[0] + len(patch[1]) > offset]
        if not hits and not spots:
            return data
        changed = bytearray(data)
        for start, stop, copy, inside in hits:
            first, last = max(start, offset), min(stop, end)
            changed[first - offset : last - offset] = os.pread(
                files[copy].fileno(), last - first, inside + first - start
            )
        for at, piece in spots:
            first, last = max(at, offset), min(at + len(piece), end)
            changed[first - offset : last - offset] = piece[first - at : last - at]
        return bytes(changed)

    return read_patched
