"""Large files with holes: copies and writes that keep them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from kimbox.errors import KimboxError
from kimbox.files import CHUNK_BYTES, need_space, not_regular

#: A block of zeros of this size, in bytes, is written as a hole.
HOLE_BYTES = 64 << 10

_ZEROS = bytes(HOLE_BYTES)

#: Linux, include/uapi/linux/fs.h: FICLONE, `_IOW(0x94, 9, int)`.
_FICLONE = 0x40049409


def write_sparse(file: IO[bytes], data: bytes) -> None:
    """Appends to a new file, blocks of zeros as holes. At the end, the caller truncates the file to its size."""
    for at in range(0, len(data), HOLE_BYTES):
        block = data[at : at + HOLE_BYTES]
        if block == _ZEROS[: len(block)]:
            file.seek(len(block), os.SEEK_CUR)
        else:
            file.write(block)


def copy_sparse(source: Path, target: Path, *, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Copies a file to the new file `target`, with its holes. Shares the storage if the file system can (reflink).

    Returns `sha256:` and the hex digest of the copy, which is right even if the source changes meanwhile. `on_bytes` is
    called with the number of bytes done so far. Raises KimboxError: `no-space`, `not-a-regular-file`, `file-changed`.
    """
    handle = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise not_regular(source)
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
    """Copies all data except holes (nothing, if `new` is a reflink already). Returns the hex digest of the file."""
    digest = hashlib.sha256()
    reader, done = (new.fileno() if is_clone else source), 0
    for start, end in data_ranges(reader):
        _hash_zeros(digest, start - done)
        done = start
        while done < end:
            piece = os.pread(reader, min(CHUNK_BYTES, end - done), done)
            if not piece:
                raise KimboxError(
                    "the file became shorter while it was copied",
                    code="file-changed",
                    hint="run the command again when no other program writes to the file",
                )
            digest.update(piece)
            if not is_clone:
                new.seek(done)
                write_sparse(new, piece)
            done += len(piece)
            on_bytes(done)
    _hash_zeros(digest, size - done)
    return digest.hexdigest()


def _clone(source: int, target: int) -> bool:
    """Makes `target` a reflink of `source` (FICLONE, ioctl_ficlone(2)). False if the file system cannot do it."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def data_ranges(handle: int) -> Iterator[tuple[int, int]]:
    """Start and end offset of every range of an open file that is not a hole."""
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
