"""Large files: copies keep holes, share data if the file system can, and require enough free space."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

import pytest
from refused import refused

from kimbox import files
from kimbox import sparse as sparsefiles
from kimbox.errors import KimboxError, StateError

MIB = 1 << 20


def sparse(path: Path, *pieces: tuple[int, bytes], size: int = 8 * MIB) -> Path:
    """Writes a file with data at these offsets and holes between them. Returns its path."""
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
    """With both methods, content, length and digest equal those of the source. Zeros use no space on the disk."""
    source = sparse(tmp_path / "source", *pieces)
    if is_clone:  # does the same as FICLONE on a file system without it

        def clone(old: int, new: int) -> bool:
            while os.copy_file_range(old, new, MIB):
                pass
            return True

        monkeypatch.setattr(sparsefiles, "_clone", clone)
    else:
        monkeypatch.setattr(sparsefiles, "_clone", lambda *_: False)
    digest = sparsefiles.copy_sparse(source, tmp_path / "copy")
    data = source.read_bytes()
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
    assert data == (tmp_path / "copy").read_bytes()
    if not is_clone:
        assert (tmp_path / "copy").stat().st_blocks * 512 <= 512 << 10


def test_a_copy_replaces_nothing(tmp_path: Path) -> None:
    """An existing file is an error and does not change."""
    (tmp_path / "existing").write_text("mine")
    with pytest.raises(FileExistsError):
        sparsefiles.copy_sparse(sparse(tmp_path / "source"), tmp_path / "existing")
    assert "mine" == (tmp_path / "existing").read_text()


def test_no_copy_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The required space is that of the data without the holes. The error has both numbers."""
    free = shutil.disk_usage(tmp_path)._replace(free=MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(sparsefiles, "_clone", lambda *_: False)
    sparsefiles.copy_sparse(sparse(tmp_path / "holes", size=100 * MIB), tmp_path / "copy")
    data = sparse(tmp_path / "data", (0, b"x" * 2 * MIB))
    with pytest.raises(KimboxError, match=r"needs 2\.0 MiB, and .* has 1\.0 MiB free"):
        sparsefiles.copy_sparse(data, tmp_path / "other")
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
    """A size is printed in the largest unit in which it is at least 1."""
    assert expected == files.size_words(count)


def test_locks_are_private(tmp_path: Path) -> None:
    """Another user cannot open a lock file, and so cannot hold it forever. Older lock files are made private, too."""
    old, new = tmp_path / "old.lock", tmp_path / "new.lock"
    old.touch(0o644)
    for path in (old, new):
        with files.locked(path):
            assert 0o600 == path.stat().st_mode & 0o777


def test_is_locked_does_not_hold_the_lock(tmp_path: Path) -> None:
    """After is_locked, the lock can be acquired."""
    path = tmp_path / "lock"
    assert not files.is_locked(path)
    with files.locked(path):
        assert files.is_locked(path)
        with pytest.raises(StateError), files.locked(path):
            pass
    assert not files.is_locked(path)


@pytest.mark.parametrize("text", ["[" * 200_000, "{", "[]", "\xff"])
def test_invalid_json(tmp_path: Path, text: str) -> None:
    """JSON that is damaged or nested too deeply is an error that names the file."""
    (tmp_path / "x.json").write_text(text, "latin-1")
    with refused(KimboxError, "file-damaged", path=str(tmp_path / "x.json")):
        files.read_json(tmp_path / "x.json")


def test_the_next_write_removes_files_of_a_killed_writer(tmp_path: Path) -> None:
    """It removes temporary files of the same target only, and none of a running writer."""
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


def test_a_temporary_file_that_another_process_removes_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process can remove the file after it is created and before it is locked."""
    lock = fcntl.flock

    def removed_first(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        files.remove_left(tmp_path)
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    files.write_atomic(tmp_path / "a.json", "one")
    assert ["a.json"] == [p.name for p in tmp_path.iterdir()]


def test_a_bounded_read_has_a_code_for_each_reason(tmp_path: Path) -> None:
    """A file that is one byte too long and a FIFO have different codes."""
    (tmp_path / "file").write_bytes(b"abc")
    os.mkfifo(tmp_path / "fifo")
    assert b"abc" == files.read_bounded(tmp_path / "file", limit_bytes=3)
    for path, limit, code in ((tmp_path / "file", 2, "file-too-large"), (tmp_path / "fifo", 9, "not-a-regular-file")):
        with pytest.raises(KimboxError) as caught:
            files.read_bounded(path, limit_bytes=limit)
        assert code == caught.value.code


def test_a_secret_is_overwritten_before_it_is_removed(tmp_path: Path) -> None:
    """Its bytes are gone under another name of the file, too. What is no file of this kind is removed alone."""
    secret, other = tmp_path / "secret", tmp_path / "other"
    secret.write_bytes(b"s" * 65)
    other.hardlink_to(secret)
    files.erase(secret)
    assert (False, bytes(65)) == (secret.exists(), other.read_bytes())
    other.write_bytes(b"kept")
    secret.symlink_to(other)
    files.erase(secret)
    os.mkfifo(secret)
    files.erase(secret)
    files.erase(secret)
    assert (False, b"kept") == (secret.is_symlink(), other.read_bytes())


def test_the_hint_for_a_full_disk_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KIMBOX_HOME is named only for files below it: it does not move a package or a temporary file."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    for folder, word in {"home/images": "KIMBOX_HOME", "temporary/x": "TMPDIR", "out": "a folder on a"}.items():
        (tmp_path / folder).mkdir(parents=True)
        with refused(KimboxError, "no-space", path=str(tmp_path / folder)) as caught:
            files.need_space(tmp_path / folder, 1 << 60, "it")
        assert word in str(caught.value.hint)
        assert ("KIMBOX_HOME" in str(caught.value.hint)) == (word == "KIMBOX_HOME")


def test_deep_json_is_refused() -> None:
    """What validates a value calls itself at each level."""
    deep = b"[" * files.MAX_JSON_LEVELS + b"]" * files.MAX_JSON_LEVELS
    assert files.parse_json(deep)
    for text in (b"[" + deep + b"]", b'{"a":' * 500 + b"1" + b"}" * 500):
        with pytest.raises(ValueError, match="nested too deeply"):
            files.parse_json(text)


def test_a_file_that_cannot_be_read_is_an_error_of_kimbox(tmp_path: Path) -> None:
    """So that one machine does not hide the others. A missing file stays FileNotFoundError."""
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop.name)
    with refused(KimboxError, "file-unreadable", path=str(loop)):
        files.read_json(loop)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "missing.json")
