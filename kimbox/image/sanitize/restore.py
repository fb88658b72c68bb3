"""From the disk of a halted machine back to the state before its first boot, with what its maintainer changed.

`root` and `/boot` stay, cleaned; everything else (LVM, an empty snapshot, swap, /persistent) is taken from the image
that the machine was made from, so that no secret of /persistent can stay by oversight. Files are found and removed by
kimbox's own code in file systems that nobody mounts, and e2fsck(8) mends bitmaps and counts; what they held goes with
all that is not in use. A name that a guest chose is in no command of any program.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import attrs

from kimbox import run
from kimbox.errors import ImageError
from kimbox.files import CHUNK_BYTES, HOLE_BYTES, data_ranges
from kimbox.image.disk import debugfs, inuse, ranges
from kimbox.image.disk.ext4 import content as ext4data
from kimbox.image.disk.ext4 import directories, inodes, removal
from kimbox.image.disk.ext4.directories import Entry, shown
from kimbox.image.disk.ext4.inodes import FileSystem
from kimbox.image.disk.lvm import reader
from kimbox.image.inputs import identity
from kimbox.image.inputs.recipe import EPOCH_S

#: What debugfs and e2fsck may take, in seconds.
TIMEOUT_S = 600.0

#: Where GRUB keeps the boot mode, and how long that file is.
GRUBENV, GRUBENV_BYTES = "/grub/grubenv", 1024

#: Folders that become empty.
EMPTIED = (
    "/tmp", "/var/tmp",  # noqa: S108 - of the guest
    "/var/crash", "/var/lib/kimbox", "/var/lib/systemd/coredump", "/var/lib/systemd/timers",
    *(f"{home}/{name}" for home in ("/root", "/home/*") for name in (".cache", ".gnupg", ".ssh")),
)  # fmt: skip

#: Folders whose files go, at any depth; programs expect the folders themselves.
FILES_GO = ("/var/log", "/var/cache/apt", "/var/lib/apt/lists", "/var/lib/dhcp")

#: Files that go.
GONE = (
    "/etc/ssh/ssh_host_*", "/etc/kimbox/box.*", "/etc/resolv.conf", "/var/lib/dbus/machine-id",
    "/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret", "/var/cache/ldconfig/aux-cache",
    *(f"{home}/{name}" for home in ("/root", "/home/*") for name in (
        ".bash_history", ".python_history", ".lesshst", ".viminfo", ".wget-hsts", ".sudo_as_admin_successful",
        ".netrc", ".git-credentials", ".docker/config.json", ".aws/credentials",
    )),
)  # fmt: skip

#: Files of /etc that get the image's content again, where they have another, with their modes. A larger one is another.
AS_BUILT = {"machine-id": 0o100444, "hostname": 0o100644, "hosts": 0o100644}
AS_BUILT_BYTES = 64 << 10

#: A file in FILES_GO that the image has, too, stays as long as it is the same; a larger one is not compared, and goes.
SAME_BYTES = 1 << 20

#: More entries are not looked at: a tree of that size is no leftover.
MAX_ENTRIES = 200_000

#: Linux, include/uapi/linux/falloc.h
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


@attrs.frozen
class Places:
    """Where on a disk of kimbox's layout /boot and root lie: offset and size in bytes."""

    boot: tuple[int, int]
    root: tuple[int, int]


def places(disk: Path) -> Places:
    """Of a raw disk. Raises ImageError if it has another layout than kimbox's."""
    with disk.open("rb") as file:
        return places_in(_from(file.fileno(), 0), os.fstat(file.fileno()).st_size)


def places_in(read: inodes.Read, size_bytes: int) -> Places:
    """Of the disk whose bytes `read` gives. Raises ImageError if it has another layout than kimbox's."""
    try:
        (boot, boot_end), (pv, pv_end) = sorted(inuse.partitions(read, size_bytes))
        group = reader.read_group(lambda offset, count: read(pv + offset, count), pv_end - pv)
        root = _root(group)
    except (ValueError, ImageError) as error:
        raise ImageError(
            f"the disk has not the layout of kimbox's images: {error}",
            hint="a machine whose image kimbox built, or packaged, can be packaged",
        ) from None
    return Places((boot, boot_end - boot), (pv + root.place, root.size_bytes))


def _root(group: reader.Group) -> reader.Segment:
    """Where root lies: the origin of the snapshot. Raises ImageError if that cannot be told, or it is in pieces.

    A user may have made more snapshots, of root and of other volumes; kimbox puts root at the first extent.
    """
    origins = {snapshot.origin: group.volumes[snapshot.origin].segments for snapshot in group.snapshots}
    if len(origins) > 1:
        origins = {name: pieces for name, pieces in origins.items() if pieces[0].place == group.start_bytes}
    if len(origins) != 1:
        raise ImageError("it has no volume root with a snapshot")
    ((name, pieces),) = origins.items()
    if len(pieces) != 1:
        raise ImageError(f"the volume {name} lies in {len(pieces)} pieces")
    return pieces[0]


def has_module(disk: Path, path: str) -> bool:
    """Whether a kernel on a raw disk of kimbox's layout has a driver, by its folder below kernel/."""
    with root(disk) as system:
        return bool(directories.matching(system, f"/usr/lib/modules/*/kernel/{path}"))


@contextmanager
def root(disk: Path) -> Iterator[FileSystem]:
    """The root file system of a raw disk of kimbox's layout that nobody writes to. Raises ImageError if it has none."""
    at = places(disk).root[0]
    with disk.open("rb") as file:
        yield file_system(file.fileno(), at)


def file_system(handle: int, start: int) -> FileSystem:
    """The file system at an offset of an open raw disk; what is written later is not seen. Raises ImageError."""
    return inodes.open_at(inodes.cached(_from(handle, start)))


def restore(disk: Path, image: Path) -> list[str]:
    """Brings `disk`, a raw copy of a halted machine's, back to the first state; `image` is the raw image it is from.

    Returns what was removed or reset. Raises ImageError where the two differ in layout or a file system is damaged.
    """
    at = places(disk)
    if at != places(image):
        raise ImageError(
            "/boot or root of the machine lies elsewhere than in its image: it was moved or resized",
            hint="`kimbox package --image` packages the image; a volume's size is for the spec to say",
        )
    os.truncate(disk, image.stat().st_size)  # a spec may give a machine more than its image has
    _take_rest(disk, image, [at.boot, at.root])
    for name, (offset, _) in (("/boot", at.boot), ("root", at.root)):
        check(disk, offset, name)
    _restore_grubenv(disk, image, at.boot[0])
    done = _clean(disk, image, at.root[0])
    check(disk, at.root[0], "root")
    drop_unused(disk)
    return done


def _take_rest(disk: Path, image: Path, kept: Iterable[tuple[int, int]]) -> None:
    """Replaces everything but the pieces that are kept (offset and size) with what the image has there."""
    with disk.open("r+b") as target, image.open("rb") as source:
        size = os.fstat(target.fileno()).st_size
        ends = sorted((start, start + count) for start, count in kept)
        gaps = zip([0, *(end for _, end in ends)], [*(start for start, _ in ends), size], strict=True)
        wanted = list(data_ranges(source.fileno()))
        for first, last in gaps:
            _blank(target.fileno(), first, last)
            for start, end in wanted:
                for at in range(max(start, first), min(end, last), CHUNK_BYTES):
                    piece = os.pread(source.fileno(), min(CHUNK_BYTES, end - at, last - at), at)
                    os.pwrite(target.fileno(), piece, at)


def drop_unused(disk: Path) -> None:
    """Makes all of a raw disk zeros that is not in use, and its snapshots empty. Raises ImageError if it is damaged."""
    with disk.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        found = inuse.find(_from(file.fileno(), 0), size, drop_snapshots=True)
        for first, last in ranges.without([(0, size)], ranges.without(found.used, found.zeros)):
            _blank(file.fileno(), first, last)


def _blank(handle: int, first: int, last: int) -> None:
    """Makes a piece of a file zeros: a hole (fallocate(2)), or, where the file system has none, written ones."""
    libc = ctypes.CDLL(None, use_errno=True)
    offset, length = ctypes.c_int64(first), ctypes.c_int64(last - first)
    if last <= first or libc.fallocate(handle, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
        return
    for start, end in list(data_ranges(handle)):
        for at in range(max(start, first), min(end, last), HOLE_BYTES):
            os.pwrite(handle, bytes(min(HOLE_BYTES, end - at, last - at)), at)


def check(disk: Path, offset: int, name: str) -> None:
    """Replays the journal and mends what e2fsck mends by itself. Raises ImageError if the file system is damaged."""
    done = run.run(
        ["e2fsck", "-f", "-p", f"{disk.name}?offset={offset}"],
        check=False, cwd=disk.parent, env=_fixed_time(), timeout_s=TIMEOUT_S,
    )  # fmt: skip
    if done.code not in (0, 1):
        hint = "boot the machine and mend it there (`e2fsck`)"
        raise ImageError(f"the file system of {name} is damaged: {run.tail(done.stdout + done.stderr, 3)}", hint=hint)


def _fixed_time() -> dict[str, str]:
    """What takes the place of the clock: e2fsck has a name of its own for it."""
    return {"E2FSPROGS_FAKE_TIME": str(EPOCH_S), "E2FSCK_TIME": str(EPOCH_S)}


def _restore_grubenv(disk: Path, image: Path, start: int) -> None:
    """The boot mode as the image has it."""
    with disk.open("r+b") as target, image.open("rb") as source:
        there, was = (
            start + inodes.locate(inodes.open_at(_from(file.fileno(), start)), GRUBENV, GRUBENV_BYTES)
            for file in (target, source)
        )
        os.pwrite(target.fileno(), os.pread(source.fileno(), GRUBENV_BYTES, was), there)


def _from(handle: int, start: int) -> inodes.Read:
    return lambda offset, size: os.pread(handle, size, start + offset)


def _clean(disk: Path, image: Path, start: int) -> list[str]:
    """Removes and resets what the lists above name in the root at `start`; returns the paths, escaped by `shown`.

    The file system has to be checked afterwards.
    """
    with disk.open("rb") as target, image.open("rb") as source:
        system, built = file_system(target.fileno(), start), file_system(source.fileno(), start)
        gone = traces(system, built)
        reset, replaced = _differing(system, built)
    return change(disk, start, gone + replaced, reset)


def change(disk: Path, start: int, gone: list[Entry], reset: dict[str, bytes]) -> list[str]:
    """Removes entries of the root at `start` and writes files of AS_BUILT; returns the paths, escaped by `shown`.

    A file that is written must be among those that are removed, or must not exist. The file system has to be checked
    afterwards.
    """
    with disk.open("r+b") as target:
        system = file_system(target.fileno(), start)
        removal.remove(system, lambda offset, data: os.pwrite(target.fileno(), data, start + offset), gone)
        folder = directories.find(system, b"/etc")
    if reset:
        if folder is None or not folder.inode.is_folder:
            raise ImageError("the root of the machine has no folder /etc", hint="put it back in the box")
        check(disk, start, "root")
        _write(disk, start, folder.inode.number, reset)
    return sorted({*(shown(entry.path) for entry in gone), *(f"/etc/{name}" for name in reset)})


def traces(system: FileSystem, built: FileSystem | None) -> list[Entry]:
    """What belongs to one machine; `built` is the root of the image, None where that is not known to be of no machine.

    Without it, links and files of nothing but zeros in the folders of logs and caches count as the image's.
    """
    found: list[Entry] = []
    for pattern in EMPTIED:
        for folder in directories.matching(system, pattern):
            found += tree(system, folder)
    for path in FILES_GO:
        files = (e for e in tree(system, directories.find(system, path.encode())) if not e.inode.is_folder)
        if built is None:
            found += [e for e in files if not e.inode.is_link and not _is_blank(system, e)]
        else:
            was = {e.path: e for e in tree(built, directories.find(built, path.encode()))}
            found += [e for e in files if not _is_as_built(system, e, built, was.get(e.path))]
    for pattern in GONE:
        found += [entry for entry in directories.matching(system, pattern) if not entry.inode.is_folder]
    for maker in identity.makers():
        for pattern in maker.removes:
            found += _with_links(system, pattern)
    return list({entry.path: entry for entry in found}.values())


def _is_blank(system: FileSystem, entry: Entry) -> bool:
    """Whether a file has nothing but zeros, as the records of logins have in a new system."""
    if not entry.inode.is_file:
        return False
    for _, count, start in ext4data.runs(system, entry.inode):
        for number in range(start, start + count):
            if any(system.read(number * system.block_bytes, system.block_bytes)):
                return False
    return True


def _with_links(system: FileSystem, pattern: str) -> list[Entry]:
    """What a pattern means, and links beside it that lead to it: OpenSSL finds a certificate by one."""
    found = [entry for entry in directories.matching(system, pattern) if not entry.inode.is_folder]
    targets = {entry.name for entry in found}
    for folder in directories.matching(system, pattern.rpartition("/")[0]) if found else ():
        links = [entry for entry in directories.listed(system, folder) if entry.inode.is_link]
        found += [entry for entry in links if ext4data.link_target(system, entry.inode) in targets]
    return found


def tree(system: FileSystem, folder: Entry | None) -> list[Entry]:
    """All below a folder; nothing where it is none, as a link is not followed."""
    if folder is None or not folder.inode.is_folder:
        return []
    found = list(islice(directories.walk(system, folder), MAX_ENTRIES + 1))
    if len(found) > MAX_ENTRIES:
        hint = "remove what is not needed in the box"
        raise ImageError(f"{shown(folder.path)} of the root holds more than {MAX_ENTRIES} files", hint=hint)
    return found


def _is_as_built(system: FileSystem, entry: Entry, built: FileSystem, was: Entry | None) -> bool:
    """Whether the image has a file of that name, kind, owner and content; `was` is what it has."""
    if was is None:
        return False
    new, old = entry.inode, was.inode
    if (new.mode, new.uid, new.gid, new.size_bytes) != (old.mode, old.uid, old.gid, old.size_bytes):
        return False
    if new.is_file:
        data = ext4data.content(system, new, SAME_BYTES)
        return data is not None and data == ext4data.content(built, old, SAME_BYTES)
    return not new.is_link or ext4data.link_target(system, new) == ext4data.link_target(built, old)


def _differing(system: FileSystem, built: FileSystem) -> tuple[dict[str, bytes], list[Entry]]:
    """Files of AS_BUILT to be written, with the image's content, and what has to go for that or is not in the image.

    Raises ImageError where the image has something else than a small file, and the machine another thing.
    """
    reset: dict[str, bytes] = {}
    gone: list[Entry] = []
    for name in AS_BUILT:
        path = f"/etc/{name}".encode()
        entry, was = directories.find(system, path), directories.find(built, path)
        if was is not None:
            if entry is not None and _is_same(system, entry, built, was):
                continue
            data = ext4data.content(built, was.inode, AS_BUILT_BYTES) if was.inode.is_file else None
            if data is None:
                raise ImageError(f"/etc/{name} of the image is no small file, and the machine has another")
            reset[name] = data
        if entry is not None:
            gone += [entry, *tree(system, entry)]
    return reset, gone


def _is_same(system: FileSystem, entry: Entry, built: FileSystem, was: Entry) -> bool:
    """Whether both are files of the same content, or links of the same target."""
    if entry.inode.is_link and was.inode.is_link:
        return ext4data.link_target(system, entry.inode) == ext4data.link_target(built, was.inode)
    if not entry.inode.is_file or not was.inode.is_file:
        return False
    data = ext4data.content(system, entry.inode, AS_BUILT_BYTES)
    return data is not None and data == ext4data.content(built, was.inode, AS_BUILT_BYTES)


def _write(disk: Path, start: int, folder: int, files: dict[str, bytes]) -> None:
    """Writes files of AS_BUILT into the folder with this inode, where they are not. Raises ImageError if it fails."""
    lines = [f"cd <{folder}>"]
    for name, data in files.items():
        disk.with_name(f"reset-{name}").write_bytes(data)
        lines += [f"write reset-{name} {name}", f"set_inode_field {name} mode 0{AS_BUILT[name]:o}"]
        lines += [f"set_inode_field {name} {field} 0" for field in ("uid", "gid")]
    done = run.run(
        ["debugfs", "-w", "-f", "-", f"{disk.name}?offset={start}"],
        input=debugfs.script(lines), cwd=disk.parent, env=_fixed_time(), timeout_s=TIMEOUT_S,
    )  # fmt: skip
    for name in files:
        disk.with_name(f"reset-{name}").unlink()
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("debugfs 1.")]
    if complaints:
        raise ImageError(f"the root cannot be cleaned: {run.tail(chr(10).join(complaints), 3)}")
