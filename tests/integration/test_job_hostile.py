"""Disks of jobs that a hostile guest has changed: a clear error, or the file is left out, and nothing is outside."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kimbox import run
from kimbox.errors import KimboxError
from kimbox.jobs.disk import contents, pack
from kimbox.jobs.disk.extract import Extracted, extract


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The disk of a small job, alone in a folder."""
    job = tmp_path / "job"
    (job / "output/deep").mkdir(parents=True)
    (job / "run-job").write_text("#!/bin/sh\n")
    (job / "run-job").chmod(0o755)
    for name in ("one", "two", "deep/three"):
        (job / "output" / name).write_bytes(name.encode() * 3000)
    (job / "output/victim").symlink_to("one")
    (tmp_path / "disks").mkdir()
    return pack.pack(job, tmp_path / "disks/disk").path


def change(disk: Path, *commands: str) -> None:
    """Changes a disk with debugfs(8)."""
    for command in commands:
        done = run.run(["debugfs", "-w", "-R", command, disk])
        assert len(done.stderr.splitlines()) <= 1, done.stderr  # only the version


def replace(disk: Path, old: bytes, new: bytes) -> None:
    """Replaces bytes that are on the disk exactly once."""
    data = disk.read_bytes()
    assert (1, len(old)) == (data.count(old), len(new))
    disk.write_bytes(data.replace(old, new))


def attempt(disk: Path, **options: bool) -> Extracted:
    """Extracts a disk, and checks that nothing is beside the new folder."""
    target = disk.parent / "out"
    try:
        with contents.opened(disk) as found:
            return extract(found, target, **options)  # type: ignore[arg-type]
    finally:
        assert {path.name for path in disk.parent.iterdir()} <= {"disk", "out"}


def fault(disk: Path) -> str:
    """Returns the fault, or the code, of the error that a disk gives. Nothing is extracted."""
    with pytest.raises(KimboxError) as caught:
        attempt(disk)
    assert ["disk"] == [path.name for path in disk.parent.iterdir()]
    assert str(disk) in caught.value.message or caught.value.code in ("unsafe-files", "job-output-too-large")
    return caught.value.fields.get("fault", caught.value.code)


def block_of(disk: Path, path: str, number: int = 0) -> int:
    return int(run.run(["debugfs", "-R", f"bmap {path} {number}", disk]).stdout)


CHANGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a folder in itself": ("directory-loop", lambda disk: change(disk, "ln /output /output/deep/loop")),
    "a slash in a name": ("bad-name", lambda disk: replace(disk, b"\x05\x01three", b"\x05\x01t/../")),
    "a name that is there twice": ("duplicate-name", lambda disk: replace(disk, b"\x03\x01two", b"\x03\x01one")),
    "a shared block": (
        "shared-block",
        lambda disk: change(disk, f"sif /output/two block[0] {block_of(disk, '/output/one')}"),
    ),
    "a block outside": ("block-outside", lambda disk: change(disk, "sif /output/two block[1] 99999999")),
    "a block of the folder": (
        "shared-block",
        lambda disk: change(disk, f"sif /output/two block[2] {block_of(disk, '/output')}"),
    ),
    "a reserved inode": ("bad-inode", lambda disk: change(disk, "ln <8> /output/journal")),
    "an inode that is not in use": ("bad-inode", lambda disk: change(disk, "sif /output/one links_count 0")),
    "a file of an exabyte": ("job-output-too-large", lambda disk: change(disk, f"sif /output/one size {1 << 60}")),
    "many sparse files": (
        "job-output-too-large",
        lambda disk: change(disk, *(f"sif /output/{name} size 500000000" for name in ("one", "two", "deep/three"))),
    ),
    "more blocks than the file has": ("truncated", lambda disk: change(disk, "ssv blocks_count 9999999")),
    "a cut file": ("truncated", lambda disk: os.truncate(disk, 20000)),
    "a journal": ("journal", lambda disk: change(disk, "feature needs_recovery")),
    "no file system": ("no-ext4", lambda disk: disk.write_bytes(bytes(100_000))),
    "an empty file": ("truncated", lambda disk: disk.write_bytes(b"")),
    "a link to /etc": ("unsafe-files", lambda disk: change(disk, "symlink /output/etc /etc")),
    "a link that leads out": ("unsafe-files", lambda disk: change(disk, "symlink /output/deep/out ../../../x")),
    "a link behind a link": ("unsafe-files", lambda disk: change(disk, "symlink /up output", "symlink /out up/../.."))
    ,
    "a device": ("unsafe-files", lambda disk: change(disk, "mknod disk b 8 0")),
    "a FIFO": ("unsafe-files", lambda disk: change(disk, "mknod fifo p")),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_hostile_disk_is_an_error(disk: Path, name: str) -> None:
    """The error names the fault, and nothing is extracted."""
    expected, prepare = CHANGES[name]
    prepare(disk)
    assert expected == fault(disk)


def test_the_others_can_be_extracted(disk: Path) -> None:
    """With `skip_unsafe`, what must not be created is listed, and everything else is extracted."""
    change(disk, "mknod disk b 8 0", "symlink /output/etc /etc/passwd", "symlink /output/fine ../run-job")
    done = attempt(disk, skip_unsafe=True)
    assert {(b"disk", contents.DEVICE), (b"output/etc", contents.LEADS_OUT)} == {
        (file.path, file.unsafe) for file in done.skipped
    }
    assert {"deep", "one", "two", "victim", "fine"} == {path.name for path in (done.path / "output").iterdir()}
    assert b"#!/bin/sh\n" == (done.path / "output/fine").read_bytes()


def test_dangerous_bits_are_dropped(disk: Path) -> None:
    """set-user-ID, set-group-ID and sticky; and everything belongs to the user."""
    change(disk, "sif /output/one mode 0107755", "sif /output/deep mode 0047777", "sif /output/one uid 12345")
    out = attempt(disk).path
    assert 0o755 == stat.S_IMODE((out / "output/one").stat().st_mode)
    assert 0o777 == stat.S_IMODE((out / "output/deep").stat().st_mode)
    assert os.getuid() == (out / "output/one").stat().st_uid


def test_a_folder_in_the_place_of_a_link(disk: Path) -> None:
    """A link and a folder of the same name would lead files elsewhere: the name may be there only once."""
    change(disk, f"symlink /victims {disk.parent.parent}", "mkdir /victimz")
    replace(disk, b"victimz\0", b"victims\0")
    assert "duplicate-name" == fault(disk)


def test_a_disk_that_was_not_unmounted(disk: Path) -> None:
    """It can be extracted, and is known not to be clean."""
    change(disk, "ssv state 0")
    with contents.opened(disk) as found:
        assert not found.is_clean
    assert 4 == attempt(disk).files - 1


def test_no_file_is_needed_to_be_readable(disk: Path) -> None:
    """Files and folders without any permission are extracted, with what is in them. Their owner may read them."""
    change(disk, "sif /output mode 0040000", "sif /output/one mode 0100000")
    out = attempt(disk).path
    assert 0o700 == stat.S_IMODE((out / "output").stat().st_mode)
    assert 0o400 == stat.S_IMODE((out / "output/one").stat().st_mode)
    assert b"one" * 3000 == (out / "output/one").read_bytes()


def test_folders_that_are_too_deep(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that walk through them call themselves at each level."""
    monkeypatch.setattr(contents, "MAX_LEVELS", 2)
    change(disk, "mkdir /output/a", "mkdir /output/a/b", "mkdir /output/a/b/c")
    assert "deep-path" == fault(disk)
    monkeypatch.setattr(contents, "MAX_LEVELS", 3)
    assert attempt(disk).path.exists()


def test_a_fifo_in_the_place_of_a_disk(tmp_path: Path) -> None:
    """It is refused, and nothing waits for it."""
    os.mkfifo(tmp_path / "disk")
    with pytest.raises(KimboxError) as caught, contents.opened(tmp_path / "disk"):
        pass
    assert "not-a-regular-file" == caught.value.code
