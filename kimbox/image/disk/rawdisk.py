"""A raw disk in a file, opened as a view to read, or to write in place."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from kimbox.image.disk.view import DiskView
from kimbox.sparse import HOLE_BYTES, data_ranges

#: Linux, include/uapi/linux/falloc.h
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


@contextmanager
def opened(path: Path) -> Iterator[DiskView]:
    """Yields a view of a raw disk. No process may write to the disk meanwhile. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        yield _view(file.fileno())


@attrs.frozen
class RawDisk:
    """A raw disk to which only this process writes. `path` is for programs that open the file themselves."""

    path: Path
    _handle: int

    def view(self) -> DiskView:
        """Returns a view of the disk as it is now.

        After a write that changed neither partition table nor LVM, `DiskView.reopened` is cheaper.
        """
        return _view(self._handle)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._handle, size, offset)

    def write(self, offset: int, data: bytes) -> None:
        os.pwrite(self._handle, data, offset)

    def resize(self, size_bytes: int) -> None:
        os.truncate(self._handle, size_bytes)

    def blank(self, start: int, end: int) -> None:
        """Replaces a byte range by a hole (fallocate(2)), or by zeros if the host's file system has no holes."""
        libc = ctypes.CDLL(None, use_errno=True)
        offset, length = ctypes.c_int64(start), ctypes.c_int64(end - start)
        if end <= start or libc.fallocate(self._handle, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
            return
        for first, last in list(data_ranges(self._handle)):
            for at in range(max(first, start), min(last, end), HOLE_BYTES):
                os.pwrite(self._handle, bytes(min(HOLE_BYTES, last - at, end - at)), at)


@contextmanager
def writable(path: Path) -> Iterator[RawDisk]:
    """Yields a raw disk to write in place. Raises OSError if the file cannot be written."""

    with path.open("r+b") as file:
        yield RawDisk(path, file.fileno())


def _view(handle: int) -> DiskView:
    return DiskView.of(
        lambda offset, size: os.pread(handle, size, offset),
        os.fstat(handle).st_size,
        lambda: list(data_ranges(handle)),
    )
