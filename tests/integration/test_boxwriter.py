"""Vagrant boxes: what is in them, that equal disks give equal bytes, and that nothing is overwritten."""

from __future__ import annotations

import contextlib
import json
import tarfile
from pathlib import Path

import pytest

from kimbox import run
from kimbox.errors import StateError
from kimbox.image.formats import boxwriter


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A sparse disk of 1 GiB and a bit, with some content."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        for index in range(64):
            file.seek(index * (7 << 20))
            file.write(bytes([index]) * 4096 + index.to_bytes(4, "big") * 40000)
        file.seek(510)
        file.write(b"\x55\xaa")
        file.truncate((1 << 30) + 512)
    return path


def test_a_box_holds_what_vagrant_looks_for(disk: Path, tmp_path: Path) -> None:
    """metadata.json, Vagrantfile and the disk, all of it, and further files by their names."""
    target = tmp_path / "out" / "x.box"
    boxwriter.libvirt(disk, "raw", target, guest="it's", files={"kimbox.lock": b"text"})
    with tarfile.open(target, "r:xz") as archive:
        assert archive.getnames() == ["metadata.json", "Vagrantfile", "kimbox.lock", "SHA256SUMS", "box.img"]
        assert {(m.uid, m.gid, m.uname, m.mtime, m.mode) for m in archive} == {(0, 0, "", 1735689600, 0o644)}
        read = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    assert json.loads(read["metadata.json"]) == {"provider": "libvirt", "format": "qcow2", "virtual_size": 2}
    assert rb"config.vm.guest = 'it\'s'.to_sym" in read["Vagrantfile"]
    (tmp_path / "box.img").write_bytes(read["box.img"])
    run.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / "box.img", disk])
    run.run(["ruby", "-c", "-"], input=read["Vagrantfile"].decode())
    assert [p.name for p in target.parent.iterdir()] == ["x.box"]


def test_equal_disks_give_equal_boxes(disk: Path, tmp_path: Path) -> None:
    """Whatever format the disk is in, and wherever the box is written."""
    run.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, tmp_path / "disk.qcow2"])
    boxwriter.libvirt(disk, "raw", tmp_path / "a.box")
    boxwriter.libvirt(tmp_path / "disk.qcow2", "qcow2", tmp_path / "b.box")
    assert (tmp_path / "a.box").read_bytes() == (tmp_path / "b.box").read_bytes()


def test_a_box_that_stays_here_is_not_compressed(disk: Path, tmp_path: Path) -> None:
    """It holds the same, and is written as quickly as the disk can be."""
    boxwriter.libvirt(disk, "raw", tmp_path / "a.box")
    boxwriter.libvirt(disk, "raw", tmp_path / "b.box", compress=False)
    with tarfile.open(tmp_path / "a.box", "r:xz") as one, tarfile.open(tmp_path / "b.box", "r:") as other:
        for name in one.getnames():
            assert one.extractfile(name).read() == other.extractfile(name).read()  # type: ignore[union-attr]


def test_nothing_is_overwritten(disk: Path, tmp_path: Path) -> None:
    """Not what was there, nor what came while the box was made; and what a kill left is no obstacle."""
    target = tmp_path / "x.box"
    target.write_text("mine")
    with pytest.raises(StateError, match="is there already"):
        boxwriter.libvirt(disk, "raw", target)
    target.unlink()
    (tmp_path / ".x.box.tmp").mkdir()
    (tmp_path / ".x.box.tmp/x.box").write_text("left")
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(boxwriter.making(target))
        assert list(work.iterdir()) == []
        (work / "x.box").write_text("new")
        target.write_text("mine")
        with pytest.raises(StateError, match="is there already"):
            stack.close()
    assert target.read_text() == "mine"
    assert not (tmp_path / ".x.box.tmp").exists()


def test_only_one_makes_a_box(tmp_path: Path) -> None:
    """A second kimbox is told so, and the first one's work stays."""
    target = tmp_path / "x.box"
    with boxwriter.making(target) as work:
        (work / "x.box").write_text("first")
        with pytest.raises(StateError, match="another kimbox"), boxwriter.making(target):
            pass
    assert target.read_text() == "first"


def test_a_disk_that_is_none_leaves_nothing(tmp_path: Path) -> None:
    """Neither a box nor what it was made in."""
    (tmp_path / "disk").write_text("no disk")
    with pytest.raises(run.CommandError):
        boxwriter.libvirt(tmp_path / "disk", "qcow2", tmp_path / "x.box")
    assert [p.name for p in tmp_path.iterdir()] == ["disk"]
