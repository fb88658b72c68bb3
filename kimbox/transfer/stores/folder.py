"""A store in a folder of this host, which may be a mounted network file system."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from kimbox.errors import KimboxError
from kimbox.files import CHUNK_BYTES, is_full, open_regular, sync_folder
from kimbox.transfer.stores import base


@attrs.frozen
class FolderStore:
    """A folder. A new object gets a temporary name first; a link (link(2)) then makes it appear in one step."""

    folder: Path

    @property
    def url(self) -> str:
        return str(self.folder)

    def read(self, name: str, offset: int, size: int) -> bytes:
        with self._errors(f"reading {name}"):
            try:
                with open_regular(self._path(name)) as file:
                    return os.pread(file.fileno(), min(size, base.READ_BYTES), offset)
            except (FileNotFoundError, NotADirectoryError):
                raise base.missing(self.url, name) from None

    def size(self, name: str) -> int | None:
        with self._errors(f"reading {name}"):
            try:
                return self._path(name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, name: str, source: Path) -> None:
        with self._errors(f"writing {name}"), self._new(name) as (file, handle):
            with source.open("rb") as data:
                while piece := data.read(CHUNK_BYTES):
                    _write(handle, piece)
            os.fsync(handle)
            file.replace(self._path(name))

    def create(self, name: str, data: bytes, uses: Sequence[str]) -> bool:
        with self._errors(f"writing {name}"), self._new(name) as (file, handle):
            _write(handle, data)
            os.fsync(handle)
            try:
                self._path(name).hardlink_to(file)
            except FileExistsError:
                return False
        return True

    def names(self, folder: str) -> list[str]:
        with self._errors(f"listing {folder}"):
            try:
                with os.scandir(self.folder / folder) as entries:
                    found = sorted(f"{folder}/{entry.name}" for entry in entries)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return [name for name in found if base.is_name(name)]

    def remove(self, name: str) -> None:
        with self._errors(f"removing {name}"):
            self._path(name).unlink(missing_ok=True)

    def close(self) -> None:
        """Does nothing."""

    def _path(self, name: str) -> Path:
        return self.folder / base.check_name(name)

    @contextlib.contextmanager
    def _new(self, name: str) -> Iterator[tuple[Path, int]]:
        """Yields a temporary file beside the object, and its descriptor. The folder is synced at the end."""
        place = self._path(name).parent
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # saves have the files of users
        place.mkdir(exist_ok=True)
        file = place / f".{os.urandom(8).hex()}.tmp"
        for left in place.glob(".*.tmp"):  # of a process that was killed
            with contextlib.suppress(OSError):
                if _is_old(left):
                    left.unlink()
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            yield file, handle
            sync_folder(place)
        finally:
            os.close(handle)
            file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_full(error):
                raise base.full(self.url, what) from None
            raise base.failed(self.url, what, error.strerror or str(error)) from None
        except KimboxError as error:
            if error.code != "not-a-regular-file":
                raise
            raise base.failed(self.url, what, "not a regular file") from None


#: Age at which a temporary file is that of a killed process, in seconds: more than a pack takes on a slow disk.
LEFT_AFTER_S = 86_400.0


def _is_old(path: Path) -> bool:
    """Whether nothing has written to a temporary file for LEFT_AFTER_S, by the clock of the file system."""
    probe = path.parent.stat().st_mtime  # the folder was changed when the new file was created, or later
    return probe - path.stat().st_mtime > LEFT_AFTER_S


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
