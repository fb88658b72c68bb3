"""The disk of a job: what kimbox writes is what e2fsprogs and kimbox read, and what mke2fs writes is read, too."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from kimbox import run
from kimbox.errors import KimboxError, StateError
from kimbox.image.disk.ext2 import geometry
from kimbox.jobs.disk import contents, pack
from kimbox.jobs.disk.extract import extract
from kimbox.jobs.disk.pack import Room

MIB = 1 << 20

NAMES = (b"a\nb", b'a"b', b"a\\b", b"\x1b[31m", b"\xff\xfe", b" ", b"-f", b"x" * 255, "é".encode())


def fill(folder: Path) -> Path:
    """Creates the folder of a job with files, links and folders of several kinds."""
    (folder / "input/deep/er").mkdir(parents=True)
    (folder / "run-job").write_text("#!/bin/sh\necho run\n")
    (folder / "run-job").chmod(0o755)
    for name in NAMES:
        (folder / "input" / os.fsdecode(name)).write_bytes(name)
    (folder / "input/two-levels").write_bytes(os.urandom(1000) * 700)
    (folder / "input/empty").touch()
    (folder / "input/deep/er/up").symlink_to("../../two-levels")
    (folder / "input/long").symlink_to("y" * 200)
    os.link(folder / "run-job", folder / "input/other name")
    (folder / "many").mkdir()
    for number in range(300):
        (folder / f"many/a file with a name that takes some space {number}").write_text(str(number))
    with (folder / "input/holes").open("wb") as file:
        for at in (0, 13 << 10, 300 << 10, 70 << 20, 5 << 30):
            os.pwrite(file.fileno(), b"%d" % at, at)
        file.truncate((5 << 30) + 12345)
    (folder / "input/deep").chmod(0o750)
    (folder / "input/empty").chmod(0o4640)
    for path, time_ns in (("input/empty", 123456789), ("input/two-levels", -5_000_000_001), ("many", 3 << 62)):
        os.utime(folder / path, ns=(0, min(time_ns, (1 << 33) * 10**9 + 1)))
    return folder


def facts(folder: Path, *, has_times: bool = True) -> dict[str, tuple[object, ...]]:
    """Returns what a job keeps of each file: type, mode, time, names, size and content, without holes."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        text: object = None
        if path.is_symlink():
            text = path.readlink()
        elif path.is_file() and info.st_size < 10 * MIB:
            text = path.read_bytes()
        mode = info.st_mode & ~0o7000
        size = None if path.is_dir() else info.st_size
        names = None if path.is_dir() else info.st_nlink
        found[str(path.relative_to(folder))] = (mode, info.st_mtime_ns * has_times, names, size, text)
    return found


def checked(image: Path) -> None:
    """e2fsck finds nothing to correct."""
    done = run.run(["e2fsck", "-fn", image], check=False)
    assert done.ok, done.stdout


def extracted(image: Path, folder: Path) -> Path:
    with contents.opened(image) as disk:
        assert disk.is_clean
        extract(disk, folder, limit_bytes=20 << 30)
    return folder


@pytest.mark.parametrize("size_bytes", [None, 600 * MIB], ids=["large blocks by content", "large blocks by size"])
def test_a_folder_comes_back(tmp_path: Path, size_bytes: int | None) -> None:
    """Types, permissions, times, hard links, names and contents are the same, and holes are holes."""
    source = fill(tmp_path / "job")
    packed = pack.pack(source, tmp_path / "disk", size_bytes=size_bytes)
    checked(packed.path)
    assert packed.size_bytes == packed.path.stat().st_size
    out = extracted(packed.path, tmp_path / "out")
    expected = facts(source)
    assert expected == {path: fact for path, fact in facts(out).items() if path != "output"}
    assert stat.S_ISDIR(int(str(facts(out)["output"][0])))
    assert (out / "input/holes").stat().st_blocks * 512 < MIB
    with (out / "input/holes").open("rb") as file:
        assert b"%d" % (5 << 30) == os.pread(file.fileno(), 12345, 5 << 30).rstrip(b"\0")
        assert [b"%d" % at for at in (13 << 10, 70 << 20)] == [
            os.pread(file.fileno(), 100, at).rstrip(b"\0") for at in (13 << 10, 70 << 20)
        ]


def test_small_blocks(tmp_path: Path) -> None:
    """A folder of few bytes gets blocks of 1024 bytes; files reach the tables of the second level."""
    source = fill(tmp_path / "job")
    (source / "input/holes").unlink()
    packed = pack.pack(source, tmp_path / "disk")
    checked(packed.path)
    assert b"\0\0\0\0" == packed.path.read_bytes()[1024 + 0x18 : 1024 + 0x1C]
    out = extracted(packed.path, tmp_path / "out")
    assert facts(source) == {path: fact for path, fact in facts(out).items() if path != "output"}
    run.run(["debugfs", "-R", f"rdump /input {tmp_path}", packed.path])
    assert (source / "input/two-levels").read_bytes() == (tmp_path / "input/two-levels").read_bytes()


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_a_disk_of_mke2fs_is_read(tmp_path: Path, kind: str) -> None:
    """As virt-make-fs makes it: with a journal, extents and checksums, too."""
    source = fill(tmp_path / "job")
    (source / "input/holes").unlink()
    run.run(["mke2fs", "-q", "-F", "-t", kind, "-d", source, tmp_path / "disk", "64M"])
    out = extracted(tmp_path / "disk", tmp_path / "out")
    assert facts(source, has_times=False) == facts(out, has_times=False), "mke2fs keeps whole seconds only"


def test_equal_folders_give_equal_disks(tmp_path: Path) -> None:
    """Also if the host stores zeros in one of them, and not in the other. Each other change gives another disk."""
    source = fill(tmp_path / "job")
    (source / "input/holes").unlink()
    (source / "input/zeros").write_bytes(bytes(3 * MIB) + b"x" + bytes(5000))
    shutil.copytree(source, tmp_path / "copy", symlinks=True)
    (tmp_path / "copy/input/other name").unlink()
    os.link(tmp_path / "copy/run-job", tmp_path / "copy/input/other name")
    run.run(["cp", "--sparse=always", "-p", source / "input/zeros", tmp_path / "copy/input/zeros"])
    for path in ("", "input"):
        shutil.copystat(source / path, tmp_path / "copy" / path)
    disks = []
    for name in ("job", "copy"):
        disks.append(pack.pack(tmp_path / name, tmp_path / f"{name}.raw", room=Room.parse("2M")).path.read_bytes())
    assert disks[0] == disks[1]
    (tmp_path / "copy/input/empty").chmod(0o600)
    other = pack.pack(tmp_path / "copy", tmp_path / "other.raw", room=Room.parse("2M"))
    assert disks[0] != other.path.read_bytes()


@pytest.mark.parametrize("size", ["0.2M", "3M", "17.3M", "511.9M", "512M", "9G", "3T"])
def test_a_size_that_is_given(tmp_path: Path, size: str) -> None:
    """The disk has it, takes little space on the host, and is correct with few and with many groups."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job/run-job").write_text("#!/bin/sh\n")
    (tmp_path / "job/run-job").chmod(0o755)
    packed = pack.pack(tmp_path / "job", tmp_path / "disk", size_bytes=pack.parse_size(size, "--size"))
    assert 0 <= packed.size_bytes - pack.parse_size(size, "--size") < 512
    if size != "3T":  # e2fsck takes minutes for it
        checked(packed.path)
    else:
        assert "clean" in run.run(["dumpe2fs", "-h", packed.path]).stdout
    assert packed.path.stat().st_blocks * 512 < max(MIB, packed.size_bytes // 2000)


def test_a_size_that_is_too_small(tmp_path: Path) -> None:
    """The error has the smallest size, which is enough, and 1K less is not."""
    source = fill(tmp_path / "job")
    (source / "input/holes").unlink()
    with pytest.raises(KimboxError) as caught:
        pack.pack(source, tmp_path / "disk", size_bytes=100_000)
    assert "job-disk-too-small" == caught.value.code
    smallest = int(caught.value.fields["smallest_bytes"])
    with pytest.raises(KimboxError):
        pack.pack(source, tmp_path / "disk", size_bytes=smallest - 1024)
    packed = pack.pack(source, tmp_path / "disk", size_bytes=pack.parse_size(caught.value.fields["smallest"], ""))
    assert 0 == packed.free_bytes
    checked(packed.path)


def test_folders_that_are_no_job(tmp_path: Path) -> None:
    """Each of them is refused with the reason, and no disk is left."""
    job = tmp_path / "job"
    codes = []

    def attempt() -> None:
        with pytest.raises(KimboxError) as caught:
            pack.pack(job, tmp_path / "disk")
        codes.append(caught.value.code)

    attempt()
    job.mkdir()
    attempt()
    (job / "run-job").write_text("#!/bin/sh\n")
    attempt()
    (job / "run-job").chmod(0o755)
    os.mkfifo(job / "fifo")
    attempt()
    (job / "fifo").unlink()
    (tmp_path / "disk").touch()
    attempt()
    (tmp_path / "disk").unlink()
    expected = ["file-not-found", "not-a-job", "not-a-job", "unsupported-file", "file-exists"]
    assert expected == codes
    assert ["job"] == [path.name for path in tmp_path.iterdir()]
    with pytest.raises(KimboxError) as caught:
        pack.pack(job, tmp_path / "disk", size_bytes=1 << 60)
    assert "out-of-range" == caught.value.code
    assert geometry.MAX_BYTES < 1 << 60


def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is written between both reads is an error, and no disk is left."""
    source = fill(tmp_path / "job")
    write = pack.writer.write

    def late(*args: object) -> None:
        (source / "input/two-levels").write_bytes(b"new")
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pack.writer, "write", late)
    with pytest.raises(KimboxError) as caught:
        pack.pack(source, tmp_path / "disk")
    assert "file-changed" == caught.value.code
    assert not (tmp_path / "disk").exists()


def test_a_part_is_extracted(tmp_path: Path) -> None:
    """With the folders above it, and hard links among what is extracted."""
    source = fill(tmp_path / "job")
    pack.pack(source, tmp_path / "disk")
    with contents.opened(tmp_path / "disk") as disk:
        extract(disk, tmp_path / "out", only=["input/deep/**", "input/other*"])
        assert {"input", "input/deep", "input/deep/er", "input/deep/er/up", "input/other name"} == set(
            facts(tmp_path / "out")
        )
        assert b"#!/bin/sh\necho run\n" == (tmp_path / "out/input/other name").read_bytes()
        with pytest.raises(StateError) as caught:
            extract(disk, tmp_path / "out2", only=["nothing"])
        assert "file-not-found" == caught.value.code
        with pytest.raises(StateError) as caught:
            extract(disk, tmp_path / "out")
        assert "file-exists" == caught.value.code
        with pytest.raises(KimboxError) as caught:
            extract(disk, tmp_path / "out2")
        assert "job-output-too-large" == caught.value.code
    assert not (tmp_path / "out2").exists()
