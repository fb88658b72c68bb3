"""Access to disks as plain bytes, with the host's qemu-nbd."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from refused import refused

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image.disk import nbd

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An empty qcow2 of 8 MiB."""
    path = tmp_path / "disk.qcow2"
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"])
    return path


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_what_was_written_is_read(disk: Path) -> None:
    """Before and after the disk is closed, and with data that needs several requests. A read beyond the end fails."""
    data = bytes(range(256)) * (nbd.PIECE_BYTES // 256 + 1)
    with nbd.opened(disk, "qcow2", writable=True) as opened:
        assert 8 * MIB == opened.size_bytes
        opened.write(MIB, data)
        opened.flush()
        assert data == opened.read(MIB, len(data))
    with nbd.opened(disk, "qcow2") as opened:
        assert bytes(10) + data == opened.read(MIB - 10, len(data) + 10)
        with refused(ImageError, "disk-damaged", fault="beyond-the-end", offset=str(8 * MIB - 1)):
            opened.read(8 * MIB - 1, 2)
        with pytest.raises(ImageError, match="cannot be written") as read_only:
            opened.write(0, b"x")
        assert ("disk-unreadable", "written") == (read_only.value.code, read_only.value.fields["verb"])


def test_an_open_disk_has_no_temporary_files(disk: Path, temporary: Path) -> None:
    """So a killed process leaves nothing on the host."""
    with nbd.opened(disk, "qcow2"):
        assert not list(temporary.iterdir())
    assert not list(temporary.iterdir())


def test_a_file_that_is_not_a_disk(disk: Path, temporary: Path) -> None:
    """The error has the output of qemu-nbd, and the server exits."""
    disk.write_bytes(b"no disk")
    with pytest.raises(ImageError, match=r"cannot be opened: (?s:.*)not in qcow2") as caught, nbd.opened(disk, "qcow2"):
        pass
    fields = caught.value.fields
    assert ("disk-unreadable", str(disk), "opened") == (caught.value.code, fields["path"], fields["verb"])
    assert str(disk) in caught.value.message
    assert not list(temporary.iterdir())
