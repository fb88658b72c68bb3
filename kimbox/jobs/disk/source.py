"""Reads the folder of a job: its files, folders and symbolic links, as the items of a file system.

Names are bytes. Owners, extended attributes and times other than that of the last change are not kept. A block of zeros
counts as a hole, wherever the host stores it, so that equal folders give equal disks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kimbox.errors import KimboxError, StateError
from kimbox.files import CHUNK_BYTES
from kimbox.image.disk.ext2.tree import LOST_FOUND, MAX_LINKS, Item, Run
from kimbox.log import printable
from kimbox.sparse import data_ranges

#: Unit of the holes, in bytes: the smallest block of a file system.
UNIT_BYTES = 1024

#: Limits of ext2 for the data of one file, and of the reader for the number of files.
MAX_FILE_BYTES = 2 << 40
MAX_ITEMS = 1_000_000

#: The program of a job, and the folder for its results.
PROGRAM, OUTPUT = b"run-job", b"output"

_ZEROS = bytes(CHUNK_BYTES)

#: Inode and device, size, time of the last change in nanoseconds. They stay equal until a process writes to the file.
_State = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Source:
    """The content of a folder. `digest`: hex digest of all names, modes, times and contents.

    `folder_digest`: the same without the files that are added.
    """

    folder: Path
    items: list[Item]
    digest: str
    folder_digest: str
    #: Sum of the sizes of all files, with their holes, in bytes.
    apparent_bytes: int
    _states: dict[tuple[bytes, ...], _State]
    _added: Mapping[bytes, bytes]

    @contextlib.contextmanager
    def content(self, item: Item) -> Iterator[Callable[[int, int], bytes]]:
        """Opens a file to read. Raises KimboxError (`file-changed`) if it is another file than `read_folder` found."""
        if (data := self._added.get(item.paths[0])) is not None:
            yield lambda offset, size_bytes: data[offset : offset + size_bytes]
            return
        path = _join(os.fsencode(self.folder), item.paths[0])
        with _opened(path) as handle:
            yield lambda offset, size_bytes: os.pread(handle, size_bytes, offset)
            if _state(os.fstat(handle)) != self._states[item.paths]:
                raise _changed(path)


def read_folder(folder: Path, added: Mapping[bytes, bytes] | None = None, *, is_job: bool = True) -> Source:
    """Reads the folder of a job, or with `is_job` False any folder. An empty folder `output` is added if there is none.

    `added`: names and contents of files in the folder itself, which replace files of that name. Raises StateError
    (`file-not-found`, `not-a-job`), and KimboxError (`unsupported-file`, `file-changed`, `too-complex`). OSError
    passes.
    """
    root = os.fsencode(folder)
    if is_job:
        check_folder(folder)
    added = added or {}
    digest = hashlib.sha256()
    names: dict[tuple[int, int], list[bytes]] = {}
    infos: dict[bytes, os.stat_result] = {}
    for path in _walk(root):
        if path in added:
            continue
        info = infos[path] = os.lstat(_join(root, path))
        key = (info.st_dev, info.st_ino) if stat.S_ISREG(info.st_mode) else (-1, len(infos))
        names.setdefault(key, []).append(path)
    items, states, apparent_bytes = [], {}, 0
    for paths in names.values():
        info = infos[paths[0]]
        item = _item(root, tuple(paths), info, digest)
        items.append(item)
        apparent_bytes += item.size_bytes
        states[item.paths] = _state(info)
    if OUTPUT not in infos:
        items.append(Item((OUTPUT,), stat.S_IFDIR | 0o755, items[0].modified_ns))
    folder_digest = digest.hexdigest()
    for path, data in sorted(added.items()):
        digest.update(repr((path, data)).encode())
        runs = ((0, -(-len(data) // UNIT_BYTES)),) if data else ()
        items.append(Item((path,), stat.S_IFREG | 0o644, items[0].modified_ns, len(data), runs))
    return Source(folder, items, digest.hexdigest(), folder_digest, apparent_bytes, states, dict(added))


def check_folder(folder: Path) -> None:
    """Raises StateError: `file-not-found`, or `not-a-job` if the folder has no program that can be run."""
    if not folder.is_dir():
        raise StateError(f"folder {folder} not found", code="file-not-found", fields={"path": str(folder)})
    program = folder / PROGRAM.decode()
    if not program.exists():
        hint = f"kimbox job init {folder}"
        problem = f"{folder} has no file {program.name}, the program of the job"
    elif not program.is_file() or not os.access(program, os.X_OK):
        hint, problem = f"chmod 0755 {program}", f"{program} is not an executable file"
    else:
        return
    raise StateError(problem, code="not-a-job", hint=hint, fields={"path": str(program)})


def _walk(root: bytes) -> Iterator[bytes]:
    """Yields the root (an empty path) and the paths below it, each folder before its content, sorted by bytes."""
    pending = [b""]
    count = 0
    while pending:
        path = pending.pop()
        yield path
        count += 1
        if count > MAX_ITEMS:
            raise _problem(root, f"has more than {MAX_ITEMS} files", code="too-complex")
        full = _join(root, path)
        if stat.S_ISDIR(os.lstat(full).st_mode):
            with os.scandir(full) as entries:
                below = sorted(((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries), reverse=True)
            pending += [_join(path, name) for name, _ in below if path or name != LOST_FOUND]
            if sum(is_folder for _, is_folder in below) > MAX_LINKS:
                raise _problem(full, f"has more than {MAX_LINKS} folders, the limit of ext2", code="too-complex")


def _join(folder: bytes, path: bytes) -> bytes:
    """Returns a path below a folder. Either of them may be empty."""
    return b"/".join(filter(None, (folder, path)))


def _item(root: bytes, paths: tuple[bytes, ...], info: os.stat_result, digest: hashlib._Hash) -> Item:
    """Returns the item of an inode of the host, and adds it to the digest."""
    path = _join(root, paths[0])
    runs: tuple[Run, ...] = ()
    mode, target, size_bytes = info.st_mode, b"", 0
    if stat.S_ISLNK(mode):
        target, mode = os.readlink(path), stat.S_IFLNK | 0o777  # noqa: PTH115
        size_bytes = len(target)
    elif stat.S_ISREG(mode):
        size_bytes = info.st_size
    elif not stat.S_ISDIR(mode):
        raise _problem(path, "is a device, a socket or a FIFO, which a job cannot have", code="unsupported-file")
    if len(paths) > MAX_LINKS:
        raise _problem(path, f"has more than {MAX_LINKS} names, the limit of ext2", code="too-complex")
    for part in (repr((paths, mode, info.st_mtime_ns, size_bytes)).encode(), target):
        digest.update(len(part).to_bytes(8, "little") + part)
    if stat.S_ISREG(mode):
        with _opened(path) as handle:
            runs = tuple(_runs(handle, digest))
            if _state(os.fstat(handle)) != _state(info):
                raise _changed(path)
        if sum(count for _, count in runs) * UNIT_BYTES >= MAX_FILE_BYTES:
            raise _problem(path, "has more than 2 TiB of data, the limit of ext2", code="file-too-large")
    return Item(paths, mode, info.st_mtime_ns, size_bytes, runs, target)


def _runs(handle: int, digest: hashlib._Hash) -> Iterator[Run]:
    """Yields the units of a file that are not zeros, ascending, and adds them to the digest."""
    last: Run | None = None
    done = 0
    for start, end in data_ranges(handle):
        for at in range(max(done, start // UNIT_BYTES * UNIT_BYTES), end, CHUNK_BYTES):
            chunk = os.pread(handle, CHUNK_BYTES, at)
            done = at + len(chunk)
            for first, count in _units(chunk):
                digest.update((at // UNIT_BYTES + first).to_bytes(8, "little"))
                digest.update(memoryview(chunk)[first * UNIT_BYTES : (first + count) * UNIT_BYTES])
                first += at // UNIT_BYTES
                if last and sum(last) == first:
                    last = last[0], last[1] + count
                else:
                    if last:
                        yield last
                    last = first, count
    if last:
        yield last


def _units(chunk: bytes) -> Iterator[Run]:
    """Yields the units of a chunk that are not zeros."""
    total = -(-len(chunk) // UNIT_BYTES)
    if chunk == _ZEROS[: len(chunk)]:
        return
    if _ZEROS[:UNIT_BYTES] not in chunk and any(chunk[(total - 1) * UNIT_BYTES :]):
        yield 0, total
        return
    begin = None
    for index in range(total):
        unit = chunk[index * UNIT_BYTES : (index + 1) * UNIT_BYTES]
        is_data = unit != _ZEROS[: len(unit)]
        if is_data and begin is None:
            begin = index
        elif not is_data and begin is not None:
            yield begin, index - begin
            begin = None
    if begin is not None:
        yield begin, total - begin


@contextlib.contextmanager
def _opened(path: bytes) -> Iterator[int]:
    """Opens a file to read; never follows a symbolic link, and never blocks on a FIFO."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _state(info: os.stat_result) -> _State:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _changed(path: bytes) -> KimboxError:
    return _problem(path, "was changed while it was packed", code="file-changed")


def _problem(path: bytes, problem: str, *, code: str) -> KimboxError:
    name = os.fsdecode(path)
    return KimboxError(f"{printable(name)} {problem}", code=code, fields={"path": name})
