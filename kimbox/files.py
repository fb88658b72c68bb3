"""Writing files so that a crash leaves the old or the new one, locks, bounded reads, and large files with holes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from kimbox.errors import KimboxError, StateError

#: Read files in pieces of this size.
CHUNK_BYTES = 1 << 20

#: No state file, lock or spec that kimbox reads is larger than this.
MAX_TEXT_BYTES = 4 << 20

#: Whole blocks of zeros of this size become holes.
HOLE_BYTES = 64 << 10

#: A lock is tried for this long even by those who do not want to wait: `is_locked` takes it for a moment.
LOCK_PATIENCE_S = 0.2

_ZEROS = bytes(HOLE_BYTES)

#: A temporary file of `_temporary`, as mkstemp names it; the group is the name of the file that was to be written.
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)

#: Linux, include/uapi/linux/fs.h: FICLONE, `_IOW(0x94, 9, int)`.
_FICLONE = 0x40049409


def write_atomic(path: Path, data: bytes | str | Path, *, mode: int = 0o644) -> None:
    """Puts `data`, or what is in that file, at `path`, whole or not at all: temporary file, fsync, rename, fsync."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left(path.parent, path.name)
    handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(data, Path):
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file, CHUNK_BYTES)
            else:
                file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, open and locked for as long as its writer lives."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # `remove_left` was here between the two


def remove_left(folder: Path, name: str | None = None) -> None:
    """Removes temporary files that killed kimboxes left of writing to `folder`: of the file `name`, or of any."""
    with os.scandir(folder) as entries:
        matches = [(entry.path, _TEMPORARY.fullmatch(entry.name)) for entry in entries]
    found = [Path(path) for path, match in matches if match and name in (None, match[1])]
    for path in found:
        with contextlib.suppress(OSError):  # BlockingIOError: its writer lives
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """`write_atomic` of a value as indented JSON with sorted keys."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n", mode=mode)


def read_json(path: Path, *, limit_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """A JSON object from a file of kimbox's own. Raises KimboxError naming the file if it is too large or not that."""
    try:
        value = json.loads(read_bounded(path, limit_bytes=limit_bytes))
    except (ValueError, RecursionError) as error:
        raise KimboxError(f"{path} is not valid JSON: {error}", hint="it was changed by hand or damaged") from None
    if not isinstance(value, dict):
        raise KimboxError(f"{path} does not hold a JSON object", hint="it was changed by hand or damaged")
    return value


def read_bounded(path: Path, *, limit_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """A whole file, refused with KimboxError if it is longer than `limit_bytes`. Never blocks on a FIFO."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not os.path.isfile(f"/proc/self/fd/{file.fileno()}"):  # noqa: PTH113
            raise KimboxError(f"{path} is not a regular file", code="not-a-regular-file")
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        message = f"{path} is larger than {limit_bytes} bytes, the most that is read of such a file"
        raise KimboxError(message, code="file-too-large")
    return data


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable."""
    sync_file(folder, os.O_DIRECTORY)


def sync_file(path: Path, flags: int = 0) -> None:
    """Puts on disk what others have written to a file."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """`sha256:` and the hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def private_dir(path: Path) -> Path:
    """Makes a folder that only this user may enter. Raises StateError if it is a link or belongs to somebody else."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    info = path.lstat()
    if path.is_symlink() or info.st_uid != os.getuid():
        raise StateError(f"{path} belongs to somebody else", hint="remove it, or set XDG_RUNTIME_DIR")
    if info.st_mode & 0o077:
        path.chmod(0o700)
    return path


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float = 0, busy: str = "another kimbox is at work on it") -> Iterator[None]:
    """Holds an exclusive lock on `path` (made if missing); the kernel drops it if kimbox dies.

    Waits up to `wait_s` seconds (negative: for ever), then raises StateError with `busy`.
    """
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(str(path), timeout=wait_s if wait_s < 0 else max(wait_s, LOCK_PATIENCE_S))
    try:
        lock.acquire()
    except filelock.Timeout:
        raise StateError(busy, hint="wait for it, or look with `kimbox status`") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a living process holds the flock(2) of `path`. Takes no lasting lock."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def size_words(count: float) -> str:
    """Bytes as people read them: 1.4 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def is_full(error: OSError) -> bool:
    """Whether an operation failed for want of space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def need_space(folder: Path, need_bytes: int, what: str) -> None:
    """Raises KimboxError if `folder` has no room for `need_bytes` more."""
    free = shutil.disk_usage(folder).free
    if need_bytes > free:
        raise KimboxError(
            f"{what} needs {size_words(need_bytes)}, and {folder} has {size_words(free)} free",
            hint="make room, or let $KIMBOX_HOME name a folder on a larger disk",
        )


def write_sparse(file: IO[bytes], data: bytes) -> None:
    """Writes at the end of a new file; whole blocks of zeros become holes. Truncate the file to its size at the end."""
    for at in range(0, len(data), HOLE_BYTES):
        block = data[at : at + HOLE_BYTES]
        if block == _ZEROS[: len(block)]:
            file.seek(len(block), os.SEEK_CUR)
        else:
            file.write(block)


def copy_sparse(source: Path, target: Path, *, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Copies a file to the new file `target`, holes as holes, sharing the storage where the file system can.

    Returns `sha256:` and the hex digest of what the copy holds, whatever becomes of the source meanwhile. Calls
    `on_bytes` with the number of bytes done so far. Raises KimboxError if there is no room or the source is no file.
    """
    handle = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise KimboxError(f"{source} is not a regular file")
        with target.open("x+b") as new:
            is_clone = _clone(handle, new.fileno())
            if not is_clone:
                need_space(target.parent, min(info.st_blocks * 512, info.st_size), f"a copy of {source}")
            digest = _copy_data(handle, new, info.st_size, is_clone=is_clone, on_bytes=on_bytes)
            new.flush()
            os.ftruncate(new.fileno(), info.st_size)
            os.fsync(new.fileno())
    finally:
        os.close(handle)
    return f"sha256:{digest}"


def _copy_data(source: int, new: IO[bytes], size: int, *, is_clone: bool, on_bytes: Callable[[int], None]) -> str:
    """Copies what is no hole (nothing, if `new` is a clone already); returns the hex digest of the whole."""
    digest = hashlib.sha256()
    reader, done = (new.fileno() if is_clone else source), 0
    for start, end in data_ranges(reader):
        _hash_zeros(digest, start - done)
        done = start
        while done < end:
            piece = os.pread(reader, min(CHUNK_BYTES, end - done), done)
            if not piece:
                raise KimboxError("the file became shorter while it was copied")
            digest.update(piece)
            if not is_clone:
                new.seek(done)
                write_sparse(new, piece)
            done += len(piece)
            on_bytes(done)
    _hash_zeros(digest, size - done)
    return digest.hexdigest()


def _clone(source: int, target: int) -> bool:
    """Makes `target` share the storage of `source` (FICLONE, ioctl_ficlone(2)); False where that is not possible."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def data_ranges(handle: int) -> Iterator[tuple[int, int]]:
    """Start and end of every piece of an open file that is not a hole."""
    at, size = 0, os.fstat(handle).st_size
    while at < size:
        try:
            start = os.lseek(handle, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        at = min(os.lseek(handle, start, os.SEEK_HOLE), size)
        if start < at:
            yield start, at


def _hash_zeros(digest: hashlib._Hash, count: int) -> None:
    while count > 0:
        digest.update(_ZEROS[:count])
        count -= HOLE_BYTES


def remove_tree(path: Path) -> None:
    """Removes a folder and all in it, if it is there."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        shutil.rmtree(path)
