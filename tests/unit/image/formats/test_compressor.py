"""zstd and xz files: both programs read what kimbox writes, with the same bytes on every host; input has limits."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import threading
import zlib
from pathlib import Path

import pytest
from refused import refused

from kimbox.errors import ImageError
from kimbox.image.formats import compressed, compressor
from kimbox.image.formats.compressor import PIECE_BYTES, Compression
from kimbox.run import run, which

#: The compressions of a file, as parameters of a test.
EACH = pytest.mark.parametrize("compression", [Compression.ZSTD, Compression.XZ])

CONTENT = hashlib.shake_128().digest(100_000) + bytes(3 * PIECE_BYTES) + b"the end"


def packed(content: bytes, compression: Compression, step: int = 1 << 20) -> bytes:
    """The compressed content, written in pieces of `step` bytes."""
    file = io.BytesIO()
    with compressor.Writer(file, compression) as writer:
        for at in range(0, len(content), step):
            writer.write(content[at : at + step])
        assert writer.tell() == len(content)
    return file.getvalue()


def unpacked(data: bytes, count: int = 1 << 20, compression: Compression = Compression.XZ) -> bytes:
    """The content that the reader returns, in reads of `count` bytes."""
    reader, pieces = compressed.opened(io.BytesIO(data), str(compression)), []
    while piece := reader.read(count):
        assert len(piece) <= count
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, len(CONTENT)])
@EACH
def test_what_is_written_is_read(tmp_path: Path, size: int, compression: Compression) -> None:
    """By kimbox, and by zstd(1) or xz(1) if this host has it."""
    content = CONTENT[-size:] if size else b""
    data = packed(content, compression)
    assert unpacked(data, compression=compression) == content
    if size and which(str(compression)):
        (tmp_path / "packed").write_bytes(data)
        run(["sh", "-c", '"$1" --decompress --stdout <packed >x', "sh", str(compression)], cwd=tmp_path)
        assert (tmp_path / "x").read_bytes() == content


@EACH
def test_equal_content_gives_equal_bytes(monkeypatch: pytest.MonkeyPatch, compression: Compression) -> None:
    """With any number of processors, and with writes of any size."""
    several = packed(CONTENT, compression, 12_345)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert packed(CONTENT, compression, 10 << 20) == several


def test_all_processors_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are compressed at the same time: three calls that wait for each other all return."""
    meeting = threading.Barrier(3)

    def compress(piece: bytes) -> bytes:
        meeting.wait(10)
        return piece[:1]

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setitem(compressor._FUNCTIONS, Compression.ZSTD, compress)
    assert bytes(3) == packed(bytes(3 * PIECE_BYTES), Compression.ZSTD)


def test_progress() -> None:
    """Reported in order, with the complete size at the end."""
    reported: list[int] = []
    with compressor.Writer(io.BytesIO(), Compression.ZSTD, reported.append) as writer:
        writer.write(CONTENT)
    assert reported == [*range(PIECE_BYTES, len(CONTENT), PIECE_BYTES), len(CONTENT)]


def test_a_failed_write_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets the error of a full disk, although another thread compresses."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), compressor.Writer(Full(), Compression.ZSTD) as writer:
        writer.write(CONTENT * 3)


@pytest.mark.parametrize("count", [1, 7, 1 << 20])
def test_several_streams_with_padding(count: int) -> None:
    """As xz(1) and other programs write them: several streams, also empty ones, with zeros between them."""
    data = lzma.compress(b"one ") + bytes(8) + lzma.compress(b"") + lzma.compress(b"two", preset=9) + bytes(400_000)
    assert unpacked(data, count) == b"one two"


def test_damage() -> None:
    """A file is refused if it is cut off anywhere, or if any byte is wrong."""
    data = lzma.compress(CONTENT[:1000]) + lzma.compress(b"more")
    wrongs = [data[:at] for at in range(1, len(data) - 1, 7) if at != len(lzma.compress(CONTENT[:1000]))]
    for at in range(0, len(data), 11):
        wrongs.append(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    for wrong in [*wrongs, data + b"rubbish"]:
        with pytest.raises(ImageError, match="cut off or damaged") as caught:
            unpacked(wrong)
        assert "archive-damaged" == caught.value.code


def test_a_changed_bit_of_a_zstd_file() -> None:
    """The checksum of each frame detects it: the content of another bit would be a valid frame."""
    content = hashlib.shake_128().digest(50_000)
    data = bytearray(packed(content, Compression.ZSTD))
    data[25_000] ^= 1  # in a block that is stored as it is
    with refused(ImageError, "archive-damaged"):
        unpacked(bytes(data), compression=Compression.ZSTD)


def test_a_file_that_needs_too_much_memory() -> None:
    """kimbox does not allocate a dictionary of 1.5 GiB."""
    data = bytearray(lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]))
    end = 12 + (data[12] + 1) * 4  # end of the block header, which follows the stream header
    data[data.index(b"\x21\x01") + 2] = 37  # property of LZMA2: the size of the dictionary
    data[end - 4 : end] = zlib.crc32(data[12 : end - 4]).to_bytes(4, "little")
    with refused(ImageError, "too-complex", limit="memory"):
        unpacked(bytes(data))
