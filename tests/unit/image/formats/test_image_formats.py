"""What a remote image may be: a raw disk or a qcow2 of itself alone; all else is refused with what it is."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import ownhome
import pytest
from takenimage import CONTENT, MIB, digest_of, fetched, leftovers, refused

from kimbox import files
from kimbox.errors import ImageError
from kimbox.image.sources import remote
from kimbox.image.store import images
from kimbox.run import run
from kimbox.spec.model import RemoteImage

home = ownhome.home  # a fixture


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (gzip.compress(CONTENT), "gzip"),
        (b"\xfd7zXZ\0" + bytes(600), "xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd"),
        (b"<!DOCTYPE html><title>Sign in</title>", "web page"),
        (b"Not found\n", "text that starts with 'not found"),
        (b"", "empty file"),
        (bytes(2048), "nothing but zeros"),
        (bytes(1080) + b"\x53\xef" + bytes(2000), "ext4 file system"),
        (b"\x01\x02\x03" + bytes(2000), "01 02 03"),
    ],
)
def test_what_is_no_disk(tmp_path: Path, home: Path, content: bytes, name: str) -> None:
    """It is refused although its digest is right, with what it is."""
    (tmp_path / "file").write_bytes(content)
    assert name in refused(tmp_path / "file", content)
    assert [] == leftovers(home)


def test_a_gpt_disk_is_a_disk(tmp_path: Path) -> None:
    """A GUID partition table counts, with or without its protective MBR."""
    content = bytes(512) + b"EFI PART" + bytes(4096)
    (tmp_path / "file").write_bytes(content)
    assert "raw" == fetched(RemoteImage(str(tmp_path / "file"), digest_of(content))).format


def qcow2(folder: Path, *options: str) -> Path:
    """A qcow2 of 64 MiB."""
    path = folder / "disk.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "64M"])
    return path


def test_a_qcow2(tmp_path: Path) -> None:
    """It is taken as it is, with the size that the guest will see."""
    path = qcow2(tmp_path)
    got = fetched(RemoteImage(str(path), files.sha256_file(path)))
    assert ("qcow2", "disk.qcow2", 64 * MIB) == (got.format, got.disk.name, got.facts["virtual_bytes"])
    assert "qcow2" == json.loads((got.disk.parent / images.FACTS).read_text())["format"]


def patched(path: Path, offset: int, form: str, value: int) -> Path:
    """The file with one number of its header changed."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, value))
    return path


@pytest.mark.parametrize(
    ("offset", "form", "value", "reason"),
    [
        (4, ">I", 9, "version 9"),
        (32, ">I", 1, "encrypted"),
        (24, ">Q", 1 << 60, "claims to be a disk of"),
        (24, ">Q", 0, "claims to be a disk of"),
        (72, ">Q", 4, "another file"),
        (72, ">Q", 2, "damaged"),
        (72, ">Q", 1 << 40, "cannot be read"),
        (20, ">I", 60, "cannot be read"),
    ],
)
def test_hostile_qcow2(tmp_path: Path, home: Path, offset: int, form: str, value: int, reason: str) -> None:
    """A header that is absurd, or reaches out of the file, is refused with the reason."""
    path = patched(qcow2(tmp_path), offset, form, value)
    assert reason in refused(path, path.read_bytes())
    assert [] == leftovers(home)


def test_a_qcow2_that_reaches_out_of_itself(tmp_path: Path) -> None:
    """Neither a backing file nor a data file is followed, wherever it leads."""
    (tmp_path / "secret").write_bytes(bytes(MIB))
    options = [("-b", str(tmp_path / "secret"), "-F", "raw"), ("-o", f"data_file={tmp_path}/data,data_file_raw=on")]
    for option, reason in zip(options, ("backing file", "another file"), strict=True):
        path = qcow2(tmp_path, *option)
        assert reason in refused(path, path.read_bytes())
        path.unlink()


def test_a_cut_qcow2(tmp_path: Path) -> None:
    """A header that ends too early is refused."""
    (tmp_path / "file").write_bytes(b"QFI\xfb\0\0\0\3")
    with pytest.raises(ImageError, match="cut off"):
        remote.inspect(tmp_path / "file")
