"""Vagrant boxes: they have the files of the format, equal disks give equal bytes, and no file is overwritten."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

import boxarchive
import pytest
from refused import refused

from kimbox import run
from kimbox.errors import NO_SPACE, KimboxError, StateError
from kimbox.image.formats import boxwriter
from kimbox.image.formats.compressed import compression_of
from kimbox.image.formats.compressor import Compression
from kimbox.newfiles import making


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A sparse disk of 1 GiB and 512 bytes, with some content."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        for index in range(64):
            file.seek(index * (7 << 20))
            file.write(bytes([index]) * 4096 + index.to_bytes(4, "big") * 40000)
        file.seek(510)
        file.write(b"\x55\xaa")
        file.truncate((1 << 30) + 512)
    return path


def test_a_box_has_the_files_of_the_format(disk: Path, tmp_path: Path) -> None:
    """metadata.json, Vagrantfile, the complete disk, and further files by name."""
    target = tmp_path / "out" / "x.box"
    boxwriter.libvirt(disk, "raw", target, guest="it's", files=lambda _: {"kimbox.lock": b"text"})
    with boxarchive.opened(target) as archive:
        assert archive.getnames() == ["metadata.json", "Vagrantfile", "kimbox.lock", "SHA256SUMS", "box.img"]
        assert {(m.uid, m.gid, m.uname, m.mtime, m.mode) for m in archive} == {(0, 0, "", 1735689600, 0o644)}
        read = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    assert json.loads(read["metadata.json"]) == {"provider": "libvirt", "format": "qcow2", "virtual_size": 2}
    assert rb"config.vm.guest = 'it\'s'.to_sym" in read["Vagrantfile"]
    (tmp_path / "box.img").write_bytes(read["box.img"])
    run.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / "box.img", disk])
    run.run(["ruby", "-c", "-"], input=read["Vagrantfile"].decode())
    assert [p.name for p in target.parent.iterdir()] == ["x.box"]


def test_too_little_space(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written, the error has the folder, the needed and the free space. Nothing is left."""
    target = tmp_path / "out" / "x.box"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1 << 20))
    with refused(KimboxError, "no-space", free_bytes=str(1 << 20)) as caught:
        boxwriter.libvirt(disk, "raw", target)
    assert 1 << 20 < int(caught.value.fields["need_bytes"]) <= disk.stat().st_blocks * 512
    assert str(target.parent) in caught.value.message
    assert "KIMBOX_HOME" not in (caught.value.hint or "")
    assert [] == list(target.parent.iterdir())


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, NO_SPACE), run.CommandError(["qemu-img"], "failed", f"(50.10/100%)\nwriting: {NO_SPACE}")],
)
def test_a_disk_that_becomes_full(tmp_path: Path, error: Exception) -> None:
    """The error has the folder and the space that is not enough. Nothing is left."""
    target = tmp_path / "out" / "x.box"
    with refused(KimboxError, "no-space", path=str(target.parent)) as caught, making(target) as work:
        (work / "box.img").write_bytes(b"x")
        raise error
    assert "x.box needs more than" in caught.value.message
    assert [] == list(target.parent.iterdir())


def test_equal_disks_give_equal_boxes(disk: Path, tmp_path: Path) -> None:
    """The format of the disk and the path of the box do not matter."""
    run.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, tmp_path / "disk.qcow2"])
    boxwriter.libvirt(disk, "raw", tmp_path / "a.box")
    boxwriter.libvirt(tmp_path / "disk.qcow2", "qcow2", tmp_path / "b.box")
    assert (tmp_path / "a.box").read_bytes() == (tmp_path / "b.box").read_bytes()


@pytest.mark.parametrize("compression", Compression)
def test_bsdtar_unpacks_a_box(disk: Path, tmp_path: Path, compression: Compression) -> None:
    """With each compression, by the command that Vagrant runs."""
    boxwriter.libvirt(disk, "raw", tmp_path / "x.box", compression=compression)
    assert compression == (compression_of((tmp_path / "x.box").read_bytes()[:16]) or "none")
    folder = tmp_path / "unpacked"
    folder.mkdir()
    run.run(["bsdtar", "-v", "-x", "-m", "-S", "-s", r"|\\\\|/|", "-C", folder, "-f", tmp_path / "x.box"])
    assert {"metadata.json", "Vagrantfile", "SHA256SUMS", "box.img"} == {path.name for path in folder.iterdir()}
    run.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder)


def test_nothing_is_overwritten(disk: Path, tmp_path: Path) -> None:
    """Neither an older file, nor one that appears during the work. Files of a killed process are removed."""
    target = tmp_path / "x.box"
    target.write_text("mine")
    with refused(StateError, "file-exists", path=str(target)):
        boxwriter.libvirt(disk, "raw", target)
    target.unlink()
    (tmp_path / ".x.box.tmp").mkdir()
    (tmp_path / ".x.box.tmp/x.box").write_text("left")
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(making(target))
        assert list(work.iterdir()) == []
        (work / "x.box").write_text("new")
        target.write_text("mine")
        with pytest.raises(StateError, match="already exists") as caught:
            stack.close()
    assert "file-exists" == caught.value.code
    assert target.read_text() == "mine"
    assert not (tmp_path / ".x.box.tmp").exists()


def test_only_one_process_writes_a_box(tmp_path: Path) -> None:
    """A second process fails, and does not disturb the first one."""
    target = tmp_path / "x.box"
    with making(target) as work:
        (work / "x.box").write_text("first")
        with refused(StateError, "busy", path=str(target)), making(target):
            pass
    assert target.read_text() == "first"


def test_a_file_that_is_not_a_disk_leaves_nothing(tmp_path: Path) -> None:
    """Neither a box nor the folder for the work."""
    (tmp_path / "disk").write_text("no disk")
    with pytest.raises(run.CommandError):
        boxwriter.libvirt(tmp_path / "disk", "qcow2", tmp_path / "x.box")
    assert [p.name for p in tmp_path.iterdir()] == ["disk"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_folder_that_another_user_made_is_not_used(tmp_path: Path) -> None:
    """In a folder such as /tmp another user can create the folder for the work beforehand, and replace its files."""
    work, target = tmp_path / ".x.box.tmp", tmp_path / "x.box"
    work.mkdir()
    os.chown(work, 1234, 1234)
    with refused(StateError, "folder-not-private", path=str(work)), making(target):
        pass
    work.rmdir()
    (tmp_path / "elsewhere").mkdir()
    work.symlink_to(tmp_path / "elsewhere")
    with refused(StateError, "folder-not-private", path=str(work)), making(target):
        pass
    assert not target.exists()


def test_the_folder_for_the_work_is_private(tmp_path: Path) -> None:
    """Also if it was left with other permissions and with a folder in it."""
    (tmp_path / ".x.box.tmp/more").mkdir(parents=True)
    (tmp_path / ".x.box.tmp").chmod(0o777)
    with making(tmp_path / "x.box") as work:
        assert 0o700 == work.stat().st_mode & 0o777
        assert [] == list(work.iterdir())
        (work / "x.box").write_text("new")
