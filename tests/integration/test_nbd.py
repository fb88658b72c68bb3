"""Disks as plain bytes, through the host's qemu-nbd."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image.formats import nbd

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A qcow2 of 8 MiB that holds nothing."""
    path = tmp_path / "disk.qcow2"
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"])
    return path


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for what is there for a moment."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_what_was_written_is_read(disk: Path) -> None:
    """In one go and after it was closed; across the pieces that one request may have."""
    data = bytes(range(256)) * (nbd.PIECE_BYTES // 256 + 1)
    with nbd.opened(disk, "qcow2", writable=True) as opened:
        assert 8 * MIB == opened.size_bytes
        opened.write(MIB, data)
        opened.flush()
        assert data == opened.read(MIB, len(data))
    with nbd.opened(disk, "qcow2") as opened:
        assert bytes(10) + data == opened.read(MIB - 10, len(data) + 10)
        with pytest.raises(ImageError, match="shorter than what it says"):
            opened.read(8 * MIB - 1, 2)
        with pytest.raises(ImageError, match="cannot be written"):
            opened.write(0, b"x")


def test_while_it_is_open_nothing_lies_about(disk: Path, temporary: Path) -> None:
    """So that a kimbox that is killed leaves nothing on the host."""
    with nbd.opened(disk, "qcow2"):
        assert not list(temporary.iterdir())
    assert not list(temporary.iterdir())


def test_what_is_no_disk(disk: Path, temporary: Path) -> None:
    """It is told in the words of qemu-nbd, and the server does not outlive the failure."""
    disk.write_bytes(b"no disk")
    with pytest.raises(ImageError, match=f"{disk} cannot be opened: (?s:.*)not in qcow2"), nbd.opened(disk, "qcow2"):
        pass
    assert not list(temporary.iterdir())
