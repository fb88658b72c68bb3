"""Locks on files: on a file system without flock(2), the error names it, and files are still written."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from refused import refused

from kimbox import filelocks, files
from kimbox.errors import KimboxError, StateError


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def _no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("_no_locks")
def test_a_file_system_without_locks_is_named(tmp_path: Path) -> None:
    """Lustre without -o flock, NFS without lockd, FUSE. The hint names the variable that selects another folder."""
    with refused(KimboxError, "no-file-locks", path=str(tmp_path / "lock")) as caught, files.locked(tmp_path / "lock"):
        pass
    assert str(tmp_path) in caught.value.message
    assert "KIMBOX_HOME" in (caught.value.hint or "")
    with refused(KimboxError, "no-file-locks"):
        files.is_locked(tmp_path / "lock")


@pytest.mark.usefixtures("_no_locks")
def test_files_are_written_without_locks(tmp_path: Path) -> None:
    """A project may be on such a file system. Temporary files of others stay, because their writer may still run."""
    leftover = tmp_path / ".kimbox.lock.abcd1234.tmp"
    leftover.touch()
    files.write_atomic(tmp_path / "kimbox.lock", "text")
    assert "text" == (tmp_path / "kimbox.lock").read_text()
    assert {"kimbox.lock", leftover.name} == {path.name for path in tmp_path.iterdir()}


def test_other_errors_of_flock_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An I/O error is not a file system without locks."""

    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), files.locked(tmp_path / "lock"):
        pass


def test_a_lock_file_that_was_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another process removes the file between open and flock, the lock is taken on the new file."""
    path = tmp_path / "lock"
    real, removed = fcntl.flock, []

    def flock(handle: int, operation: int) -> None:
        real(handle, operation)
        if not removed:
            removed.append(True)
            path.unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.locked(path):
        assert path.exists()
        assert filelocks.is_locked(path)
    assert not filelocks.is_locked(path)


def test_a_busy_lock(tmp_path: Path) -> None:
    """Nested attempts of one process are refused too."""
    with files.locked(tmp_path / "lock"), refused(StateError, "busy"), files.locked(tmp_path / "lock"):
        pass
