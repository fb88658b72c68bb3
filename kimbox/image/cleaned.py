"""From the disk of a halted machine back to the state before its first boot, with what its maintainer changed.

`root` and `/boot` stay, cleaned; everything else (LVM, an empty snapshot, swap, /persistent) is taken from the image
that the machine was made from, so that no secret of /persistent can stay by oversight. Files are removed with
debugfs(8) in file systems that nobody mounts; what they held goes with all that is not in use.
"""

from __future__ import annotations

import ctypes
import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from kimbox import run
from kimbox.errors import ImageError
from kimbox.files import CHUNK_BYTES, HOLE_BYTES, data_ranges
from kimbox.image import ext4, inuse, lvmread, ranges
from kimbox.image.recipe import EPOCH_S

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

#: Files that get the image's content again, where they have another.
AS_BUILT = {"/etc/machine-id": 0o100444, "/etc/hostname": 0o100644, "/etc/hosts": 0o100644}

#: More entries are not looked at: a tree of that size is no leftover.
MAX_ENTRIES = 200_000

#: Linux, include/uapi/linux/falloc.h
_KEEP_SIZE, _PUNCH_HOLE = 1, 2

_ENTRY = re.compile(r"/(\d+)/([0-7]{6})/\d+/\d+/([^/]+)/(\d*)/?")


@attrs.frozen
class Places:
    """Where on a disk of kimbox's layout /boot and root lie: offset and size in bytes."""

    boot: tuple[int, int]
    root: tuple[int, int]


def places(disk: Path) -> Places:
    """Of a raw disk. Raises ImageError if it has another layout than kimbox's."""
    with disk.open("rb") as file:
        size = os.fstat(file.fileno()).st_size

        def read_from(base: int) -> ext4.Read:
            return lambda offset, count: os.pread(file.fileno(), count, base + offset)

        try:
            (boot, boot_end), (pv, pv_end) = sorted(inuse.partitions(read_from(0), size))
            group = lvmread.read_group(read_from(pv), pv_end - pv)
            (snapshot,) = group.snapshots
            (root,) = group.volumes[snapshot.origin].segments
        except (ValueError, ImageError) as error:
            raise ImageError(
                f"the disk has not the layout of kimbox's images: {error}",
                hint="a machine whose image kimbox built, or packaged, can be packaged",
            ) from None
    return Places((boot, boot_end - boot), (pv + root.place, root.size_bytes))


def has_module(disk: Path, path: str) -> bool:
    """Whether a kernel on a raw disk of kimbox's layout has a driver, by its folder below kernel/."""
    system = _System(disk, places(disk).root[0])
    return bool(system.matching(f"/usr/lib/modules/*/kernel/{path}"))


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
        _check(disk, offset, name)
    _restore_grubenv(disk, image, at.boot[0])
    done = _clean(_System(disk, at.root[0]), _System(image, at.root[0]))
    _check(disk, at.root[0], "root")
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


def _check(disk: Path, offset: int, name: str) -> None:
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
            start + ext4.locate(ext4.open_at(_from(file.fileno(), start)), GRUBENV, GRUBENV_BYTES)
            for file in (target, source)
        )
        os.pwrite(target.fileno(), os.pread(source.fileno(), GRUBENV_BYTES, was), there)


def _from(handle: int, start: int) -> ext4.Read:
    return lambda offset, size: os.pread(handle, size, start + offset)


@attrs.frozen
class _Entry:
    """A name in a folder."""

    path: str
    mode: int
    size: str = ""

    @property
    def is_folder(self) -> bool:
        return self.mode & 0o170000 == 0o040000


@attrs.frozen
class _System:
    """A file system on a raw disk, through debugfs."""

    disk: Path
    offset: int

    def ask(self, commands: list[str], *, write: bool = False) -> list[str]:
        """What debugfs says to each command. Raises ImageError if it does not take one."""
        options = ["-w"] if write else []
        done = run.run(
            ["debugfs", *options, "-f", "-", f"{self.disk.name}?offset={self.offset}"],
            input="".join(f"{command}\n" for command in commands),
            cwd=self.disk.parent, env=_fixed_time(), timeout_s=TIMEOUT_S,
        )  # fmt: skip
        complaints = [line for line in done.stderr.splitlines() if not line.startswith("debugfs 1.")]
        if write and complaints:
            raise ImageError(f"the root cannot be cleaned: {run.tail(chr(10).join(complaints), 3)}")
        answers = re.split(r"^debugfs: .*\n", done.stdout, flags=re.MULTILINE)[1:]
        if len(answers) != len(commands):
            raise ImageError(
                "the root holds a name that cannot be handled", hint="boot the machine and remove it there"
            )
        return answers

    def folder(self, *paths: str) -> Iterator[list[_Entry]]:
        """The entries of folders; none where there is no such folder."""
        for path, said in zip(paths, self.ask([f"ls -p {_quoted(path)}" for path in paths]), strict=True):
            found = []
            for line in filter(None, said.split("\n")):
                if line.startswith("/0/"):  # an entry that is free
                    continue
                match = _ENTRY.fullmatch(line)
                if not match:
                    hint = "boot the machine and remove it there"
                    raise ImageError(f"{path} of the root holds a name that cannot be handled", hint=hint)
                if match[3] not in (".", ".."):
                    found.append(_Entry(f"{path.rstrip('/')}/{match[3]}", int(match[2], 8), match[4]))
            yield found

    def tree(self, top: str) -> list[_Entry]:
        """All below a folder, each folder before what is in it."""
        found: list[_Entry] = []
        level = [top]
        while level:
            entries = [entry for entries in self.folder(*level) for entry in entries]
            found += entries
            level = [entry.path for entry in entries if entry.is_folder]
            if len(found) > MAX_ENTRIES:
                hint = "remove what is not needed in the box"
                raise ImageError(f"{top} of the root holds more than {MAX_ENTRIES} files", hint=hint)
        return found

    def matching(self, pattern: str) -> list[_Entry]:
        """What a path with wildcards means."""
        found = [_Entry("", 0o040755)]
        for part in pattern.strip("/").split("/"):
            paths = [entry.path or "/" for entry in found if entry.is_folder]
            there = [entry for entries in self.folder(*paths) for entry in entries] if paths else []
            found = [entry for entry in there if fnmatch.fnmatchcase(entry.path.rpartition("/")[2], part)]
        return found

    def content(self, path: str) -> str:
        """The text of a small file; empty where there is none."""
        device = f"{self.disk.name}?offset={self.offset}"
        done = run.run(["debugfs", "-R", f"cat {_quoted(path)}", device], cwd=self.disk.parent, timeout_s=TIMEOUT_S)
        return done.stdout


def _quoted(path: str) -> str:
    """A path as debugfs takes it. Raises ImageError for one that it cannot take."""
    if '"' in path or "\\" in path or not path.isprintable():
        raise ImageError(f"a file has a name that cannot be handled: {path!r}", hint="remove it in the box")
    return f'"{path}"'


def _clean(system: _System, image: _System) -> list[str]:
    """Removes what is in the lists above; returns the paths."""
    gone: dict[str, _Entry] = {}

    def add(entries: Iterable[_Entry]) -> None:
        gone.update({entry.path: entry for entry in entries})

    for pattern in EMPTIED:
        for folder in system.matching(pattern):
            add(system.tree(folder.path) if folder.is_folder else ())
    for path in FILES_GO:
        built = image.tree(path)
        add(entry for entry in system.tree(path) if not entry.is_folder and entry not in built)
    for pattern in GONE:
        add(entry for entry in system.matching(pattern) if not entry.is_folder)
    was = {path: image.content(path) for path in AS_BUILT}
    reset = [path for path in AS_BUILT if system.content(path) != was[path]]
    commands = []
    for path in sorted(gone, reverse=True):  # what is in a folder before the folder
        commands.append(f"{'rmdir' if gone[path].is_folder else 'rm'} {_quoted(path)}")
    for number, path in enumerate(reset):
        new = system.disk.with_name(f"reset-{number}")
        new.write_text(was[path])
        commands += [f"rm {_quoted(path)}"] if system.matching(path) else []
        commands += [f"write {new.name} {_quoted(path)}", f"set_inode_field {_quoted(path)} mode 0{AS_BUILT[path]:o}"]
        commands += [f"set_inode_field {_quoted(path)} {field} 0" for field in ("uid", "gid")]
    if commands:
        system.ask(commands, write=True)
    for number in range(len(reset)):
        system.disk.with_name(f"reset-{number}").unlink()
    return sorted([*gone, *reset])
