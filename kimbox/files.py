"""File operations: atomic writes, and reads with a size limit."""

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
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from kimbox import paths
from kimbox.errors import NO_SPACE, KimboxError, StateError
from kimbox.filelocks import NO_LOCKS
from kimbox.filelocks import is_locked as is_locked  # with the other operations on files
from kimbox.filelocks import locked as locked

#: Size of a read, in bytes.
CHUNK_BYTES = 1 << 20

#: Maximum size of a record, a lock or a spec, in bytes.
MAX_TEXT_BYTES = 4 << 20

#: Maximum number of values in JSON that is read: enough for a catalog of 1000 versions for ten providers.
MAX_JSON_VALUES = 200_000

#: Maximum number of levels of JSON that is read.
MAX_JSON_LEVELS = 100

#: Name of a temporary file of `_temporary`; the group is the name of the target file.
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)


def read_end(path: Path, limit_bytes: int) -> bytes:
    """Returns the last `limit_bytes` of a file, or nothing if it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - limit_bytes))
        return file.read(limit_bytes)
    return b""


def write_atomic(path: Path, data: bytes | str | Path, *, mode: int = 0o644) -> None:
    """Writes `data`, or the content of the file `data`, to `path`. After a crash, `path` has its old or new content.

    The steps are: write a temporary file, fsync, rename, fsync of the folder.
    """
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
    """Creates a temporary file in the folder of `path`. It is locked as long as its file descriptor is open.

    On a file system without locks it is not locked, because the lock of a spec may have to be written there.
    """
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # between the two calls, `remove_left` removed the file


def remove_left(folder: Path, name: str | None = None) -> None:
    """Removes temporary files in `folder` whose writer was killed: those of the target file `name`, or all."""
    with os.scandir(folder) as entries:
        matches = [(entry.path, _TEMPORARY.fullmatch(entry.name)) for entry in entries]
    temporary_files = [Path(path) for path, match in matches if match and name in (None, match[1])]
    for path in temporary_files:
        with contextlib.suppress(OSError):  # its writer still runs, or the file system has no locks
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """`write_atomic` of a value as indented JSON with sorted keys."""
    write_atomic(path, json_bytes(value), mode=mode)


def json_bytes(value: object) -> bytes:
    """A value as JSON: equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def read_json(path: Path, *, limit_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Reads a JSON object from a file that kimbox wrote.

    Raises KimboxError: `file-damaged` if it is not a JSON object, `file-unreadable`, and the errors of `read_bounded`.
    FileNotFoundError and NotADirectoryError pass.
    """
    try:
        value = parse_json(read_bounded(path, limit_bytes=limit_bytes))
    except ValueError as error:
        raise _damaged(path, f"is not valid JSON: {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
        raise KimboxError(problem, code="file-unreadable", fields={"path": str(path)}) from None
    if not isinstance(value, dict):
        raise _damaged(path, "does not hold a JSON object")
    return value


def parse_json(data: bytes) -> Any:
    """Parses JSON from untrusted bytes.

    Raises ValueError if it is invalid, or has more than MAX_JSON_VALUES values or MAX_JSON_LEVELS levels. In memory, a
    value takes up to 50 times the space of its text. Functions that validate it call themselves at each level.
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES} values")
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(MAX_JSON_LEVELS):
        level = [child for one in level for child in _children(one)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _children(value: Any) -> Iterable[Any]:
    """Returns the values in a value of JSON."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _damaged(path: Path, problem: str) -> KimboxError:
    return KimboxError(
        f"{path} {problem}",
        code="file-damaged",
        hint="it was edited by hand or damaged",
        fields={"path": str(path)},
    )


def read_bounded(path: Path, *, limit_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Reads a whole file. Never blocks on a FIFO.

    Raises KimboxError: `file-too-large` if it is larger than `limit_bytes`, `not-a-regular-file`. OSError passes.
    """
    with open_regular(path) as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise KimboxError(
            f"{path} is larger than {limit_bytes} bytes, the maximum for such a file",
            code="file-too-large",
            fields={"path": str(path)},
        )
    return data


def open_regular(path: Path) -> IO[bytes]:
    """Opens a regular file to read. Never blocks on a FIFO.

    Raises KimboxError (`not-a-regular-file`) for anything else, such as a device without an end. OSError passes.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise not_regular(path)
    return os.fdopen(handle, "rb")


def not_regular(path: Path) -> KimboxError:
    return KimboxError(f"{path} is not a regular file", code="not-a-regular-file", fields={"path": str(path)})


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable (fsync)."""
    sync_file(folder, os.O_DIRECTORY)


def sync_file(path: Path, flags: int = 0) -> None:
    """Flushes a file to disk (fsync), whichever process wrote it. `flags` are more flags of open(2)."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """`sha256:` and the hex digest of a regular file. The file is not read into memory as a whole.

    Raises KimboxError: `not-a-regular-file`. OSError passes.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def private_dir(path: Path) -> Path:
    """Creates a folder that only this user can enter, or restricts an existing one.

    Raises StateError (`folder-not-private`) if it is a symbolic link, or belongs to another user.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    info = path.lstat()
    if path.is_symlink() or info.st_uid != os.getuid():
        raise StateError(
            f"{path} is a symbolic link, or belongs to another user",
            code="folder-not-private",
            hint="remove it, or set XDG_RUNTIME_DIR",
            fields={"path": str(path)},
        )
    if info.st_mode & 0o077:
        path.chmod(0o700)
    return path


def size_words(count: float) -> str:
    """A size in bytes as text, with a binary unit: 1.4 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def is_full(error: OSError) -> bool:
    """Whether an operation failed because the disk or the quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def ran_out_of_space(error: BaseException) -> bool:
    """Whether an operation, of kimbox or of a program that it ran, failed because the disk or the quota is full."""
    if isinstance(error, OSError):
        return is_full(error)
    return isinstance(error, KimboxError) and (error.code == "no-space" or NO_SPACE in error.message)


def need_space(folder: Path, need_bytes: int, what: str) -> None:
    """Raises `space_error` if less than `need_bytes` are free in `folder`. `what` is for the message."""
    if need_bytes > shutil.disk_usage(folder).free:
        raise space_error(folder, what, need_bytes)


def space_error(folder: Path, what: str, need_bytes: int | None = None) -> KimboxError:
    """The error (`no-space`) of something that needs `need_bytes`, or (None) more than what is free in `folder`.

    `what` is for the message. Without `need_bytes`, its incomplete files are removed before.
    """
    free = shutil.disk_usage(folder).free
    need = f"more than {size_words(free)}" if need_bytes is None else size_words(need_bytes)
    return KimboxError(
        f"{what} needs {need}, and {folder} has {size_words(free)} free",
        code="no-space",
        hint=f"{space_hint(folder)}; then run the same command again",
        fields={"path": str(folder), "need_bytes": str(need_bytes or free + 1), "free_bytes": str(free)},
    )


def is_space_error(error: BaseException) -> bool:
    """Whether an error is from `space_error`."""
    return isinstance(error, KimboxError) and "free_bytes" in error.fields


def space_hint(path: Path) -> str:
    """The hint for a full disk: KIMBOX_HOME helps only for files below it."""
    if path.absolute().is_relative_to(paths.home()):
        return "free some space, or set KIMBOX_HOME to a folder on a larger disk"
    if path.absolute().is_relative_to(tempfile.gettempdir()):
        return "free some space, or use a folder on a larger disk (TMPDIR for temporary files)"
    return "free some space, or use a folder on a larger disk"


def erase(path: Path) -> None:
    """Removes a file with a secret, if it exists, after its bytes were replaced by zeros.

    On a solid-state drive, and on a file system that copies on write or keeps snapshots, the old bytes can remain.
    """
    with contextlib.suppress(OSError):  # a file that cannot be written is removed all the same
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                os.pwrite(handle, bytes(min(os.fstat(handle).st_size, MAX_TEXT_BYTES)), 0)
                os.fsync(handle)
        finally:
            os.close(handle)
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Removes a folder and its content, if it exists."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        shutil.rmtree(path)
