"""Large files: copied with their holes, shared where the file system can, and never without room."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

import pytest
from refused import refused

from kimbox import files
from kimbox.errors import KimboxError, StateError

MIB = 1 << 20


def sparse(path: Path, *pieces: tuple[int, bytes], size: int = 8 * MIB) -> Path:
    """A file with data at these offsets and holes between."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
    return path


PIECES = [
    [],
    [(0, b"a")],
    [(8 * MIB - 1, b"z")],
    [(MIB - 3, b"x" * 7), (5 * MIB, b"y" * 70000)],
    [(0, bytes(2 * MIB) + b"zeros that are no hole")],
]


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("is_clone", [False, True])
def test_a_copy_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[int, bytes]], is_clone: bool
) -> None:
    """Content, length and digest are those of the source, by either way; what is zero takes no room."""
    source = sparse(tmp_path / "source", *pieces)
    if is_clone:  # as FICLONE does it, where there is none

        def clone(old: int, new: int) -> bool:
            while os.copy_file_range(old, new, MIB):
                pass
            return True

        monkeypatch.setattr(files, "_clone", clone)
    else:
        monkeypatch.setattr(files, "_clone", lambda *_: False)
    digest = files.copy_sparse(source, tmp_path / "copy")
    data = source.read_bytes()
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
    assert data == (tmp_path / "copy").read_bytes()
    if not is_clone:
        assert (tmp_path / "copy").stat().st_blocks * 512 <= 512 << 10


def test_a_copy_replaces_nothing(tmp_path: Path) -> None:
    """What is there stays as it is."""
    (tmp_path / "there").write_text("mine")
    with pytest.raises(FileExistsError):
        files.copy_sparse(sparse(tmp_path / "source"), tmp_path / "there")
    assert "mine" == (tmp_path / "there").read_text()


def test_no_copy_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the data, not the holes; the error tells both numbers."""
    free = shutil.disk_usage(tmp_path)._replace(free=MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(files, "_clone", lambda *_: False)
    files.copy_sparse(sparse(tmp_path / "holes", size=100 * MIB), tmp_path / "copy")
    data = sparse(tmp_path / "data", (0, b"x" * 2 * MIB))
    with pytest.raises(KimboxError, match=r"needs 2\.0 MiB, and .* has 1\.0 MiB free"):
        files.copy_sparse(data, tmp_path / "other")
    with refused(KimboxError, "no-space", need_bytes=str(2 * MIB), free_bytes=str(MIB)):
        files.need_space(tmp_path, 2 * MIB, "a test")


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (300 * MIB, "300 MiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 40, "3.0 TiB"),
    ],
)
def test_sizes_in_words(count: int, expected: str) -> None:
    """The largest unit that leaves a number of one digit or more."""
    assert expected == files.size_words(count)


def test_is_locked_takes_nothing(tmp_path: Path) -> None:
    """It tells, and whoever wants the lock afterwards gets it."""
    path = tmp_path / "lock"
    assert not files.is_locked(path)
    with files.locked(path):
        assert files.is_locked(path)
        with pytest.raises(StateError), files.locked(path):
            pass
    assert not files.is_locked(path)


@pytest.mark.parametrize("text", ["[" * 200_000, "{", "[]", "\xff"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    """Damaged or nested without end: an error that names the file."""
    (tmp_path / "x.json").write_text(text, "latin-1")
    with refused(KimboxError, "file-damaged", path=str(tmp_path / "x.json")):
        files.read_json(tmp_path / "x.json")


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    """Only temporary files of the same target, and none of a writer at work."""
    kept = [".a.json.at_work_.tmp", ".b.json.abcd_123.tmp", ".a.json.abcd.tmp", ".aXjson.abcd_123.tmp", "a.json.tmp"]
    for name in (".a.json.abcd_123.tmp", *kept):
        (tmp_path / name).touch()
    with (tmp_path / kept[0]).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        files.write_atomic(tmp_path / "a.json", "two")
        assert sorted(["a.json", *kept]) == sorted(p.name for p in tmp_path.iterdir())
        files.remove_left(tmp_path)
        assert sorted(["a.json", kept[0], kept[2], kept[4]]) == sorted(p.name for p in tmp_path.iterdir())
    assert "two" == (tmp_path / "a.json").read_text()


def test_a_temporary_file_that_is_taken_for_one_left_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making and locking it, another may remove it."""
    lock = fcntl.flock

    def removed_first(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        files.remove_left(tmp_path)
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    files.write_atomic(tmp_path / "a.json", "one")
    assert ["a.json"] == [p.name for p in tmp_path.iterdir()]


def test_a_bounded_read_says_by_its_code_why_it_refuses(tmp_path: Path) -> None:
    """A file that is one byte too long, and a FIFO, have codes of their own."""
    (tmp_path / "file").write_bytes(b"abc")
    os.mkfifo(tmp_path / "fifo")
    assert b"abc" == files.read_bounded(tmp_path / "file", limit_bytes=3)
    for path, limit, code in ((tmp_path / "file", 2, "file-too-large"), (tmp_path / "fifo", 9, "not-a-regular-file")):
        with pytest.raises(KimboxError) as caught:
            files.read_bounded(path, limit_bytes=limit)
        assert code == caught.value.code
