"""The formats of a remote image: a raw disk, or a qcow2 without other files. Any other file is refused."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
from pathlib import Path

import ownhome
import pytest
import zstandard
from refused import refused
from takenimage import CONTENT, MIB, digest_of, fetched, leftovers, refusal

from kimbox import files
from kimbox.errors import ImageError
from kimbox.image.formats import compressed
from kimbox.image.sources import remote
from kimbox.image.store import images
from kimbox.run import run
from kimbox.spec.model import RemoteImage

home = ownhome.home  # a fixture


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\x04\x22\x4d\x18" + bytes(600), "lz4"),
        (b"<!DOCTYPE html><title>Sign in</title>", "html"),
        (b"Not found\n", "text"),
        (b"", "empty"),
        (bytes(2048), "zeros"),
        (bytes(1080) + b"\x53\xef" + bytes(2000), "ext4"),
        (b"\x01\x02\x03" + bytes(2000), "unknown"),
    ],
)
def test_a_file_that_is_not_a_disk_is_refused(tmp_path: Path, home: Path, content: bytes, name: str) -> None:
    """The digest is right, and the error names the content."""
    (tmp_path / "file").write_bytes(content)
    error = refusal(tmp_path / "file", content)
    assert ("not-a-disk", name) == (error.code, error.fields.get("content")), error.message
    assert [] == leftovers(home)


@pytest.mark.parametrize(
    ("content", "words"), [(b"Not found\n", "a text that starts with 'not found"), (b"\x01\x02\x03" * 700, "01 02 03")]
)
def test_the_message_shows_the_start_of_an_unknown_file(tmp_path: Path, content: bytes, words: str) -> None:
    """A user recognizes an error page, for example."""
    (tmp_path / "file").write_bytes(content)
    assert words in refusal(tmp_path / "file", content).message


#: Compression -> a function that compresses a whole file.
COMPRESSIONS = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstandard.ZstdCompressor().compress
}  # fmt: skip


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_compressed_disk(tmp_path: Path, home: Path, name: str) -> None:
    """The store has the unpacked disk under the digest of the file."""
    content = COMPRESSIONS[name](CONTENT)
    (tmp_path / "file").write_bytes(content)
    got = fetched(RemoteImage(str(tmp_path / "file"), digest_of(content)))
    assert ("raw", digest_of(content)) == (got.format, f"sha256:{got.key}")
    assert CONTENT == got.disk.read_bytes()
    assert [] == leftovers(home)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_compressed_file_that_is_not_a_disk_is_refused(
    tmp_path: Path, home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text, a file that is cut off, and a file that unpacks to far more than its size. No file is left."""
    monkeypatch.setattr(compressed, "RATIO_FROM_BYTES", MIB)
    bomb = COMPRESSIONS[name](bytes(30 * MIB))
    for content, code in (
        (COMPRESSIONS[name](b"hello" * 1000), "not-a-disk"),
        (COMPRESSIONS[name](CONTENT)[:-9], "archive-damaged"),
        (bomb, "file-too-large"),
    ):
        (tmp_path / "file").write_bytes(content)
        error = refusal(tmp_path / "file", content)
        assert code == error.code, error.message
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
    """The store has it unchanged, with the size that the guest sees."""
    path = qcow2(tmp_path)
    got = fetched(RemoteImage(str(path), files.sha256_file(path)))
    assert ("qcow2", "disk.qcow2", 64 * MIB) == (got.format, got.disk.name, got.facts["virtual_bytes"])
    assert "qcow2" == json.loads((got.disk.parent / images.FACTS).read_text())["format"]


def patched(path: Path, offset: int, form: str, value: int) -> Path:
    """Changes one number in the header of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, value))
    return path


@pytest.mark.parametrize(
    ("offset", "form", "value", "fault"),
    [
        (4, ">I", 9, "version"),
        (32, ">I", 1, "encrypted"),
        (24, ">Q", 1 << 60, "size"),
        (24, ">Q", 0, "size"),
        (72, ">Q", 4, "data-file"),
        (72, ">Q", 2, "damaged"),
        (72, ">Q", 1 << 40, "unreadable"),
        (20, ">I", 60, "header"),
    ],
)
def test_hostile_qcow2(tmp_path: Path, home: Path, offset: int, form: str, value: int, fault: str) -> None:
    """A header with an impossible number, or that refers to another file, is refused. The error names the fault."""
    path = patched(qcow2(tmp_path), offset, form, value)
    error = refusal(path, path.read_bytes())
    assert ("unsafe-disk", fault) == (error.code, error.fields.get("fault")), error.message
    assert [] == leftovers(home)


def test_a_qcow2_that_refers_to_another_file(tmp_path: Path) -> None:
    """kimbox opens neither a backing file nor a data file."""
    (tmp_path / "secret").write_bytes(bytes(MIB))
    options = [("-b", str(tmp_path / "secret"), "-F", "raw"), ("-o", f"data_file={tmp_path}/data,data_file_raw=on")]
    for option, fault in zip(options, ("backing-file", "data-file"), strict=True):
        path = qcow2(tmp_path, *option)
        error = refusal(path, path.read_bytes())
        assert ("unsafe-disk", fault) == (error.code, error.fields.get("fault")), error.message
        path.unlink()


def test_a_truncated_qcow2(tmp_path: Path) -> None:
    """A qcow2 that ends within its header is refused."""
    (tmp_path / "file").write_bytes(b"QFI\xfb\0\0\0\3")
    with refused(ImageError, "unsafe-disk", fault="truncated"):
        remote.inspect(tmp_path / "file")
