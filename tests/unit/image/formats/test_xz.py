"""xz files: xz(1) reads what kimbox writes, the bytes are the same on every host, and input is read within limits."""

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
from kimbox.image.formats import compressed, xz
from kimbox.run import run

CONTENT = hashlib.shake_128().digest(100_000) + bytes(3 * xz.PIECE_BYTES) + b"the end"


def packed(content: bytes, step: int = 1 << 20) -> bytes:
    """The content as xz, written in pieces of `step` bytes."""
    file = io.BytesIO()
    with xz.Writer(file) as writer:
        for at in range(0, len(content), step):
            writer.write(content[at : at + step])
        assert writer.tell() == len(content)
    return file.getvalue()


def unpacked(data: bytes, count: int = 1 << 20) -> bytes:
    """The content that the reader returns, in reads of `count` bytes."""
    reader, pieces = compressed.opened(io.BytesIO(data), "xz"), []
    while piece := reader.read(count):
        assert len(piece) <= count
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("size", [0, 1, xz.PIECE_BYTES - 1, xz.PIECE_BYTES, xz.PIECE_BYTES + 1, len(CONTENT)])
def test_what_is_written_is_read(tmp_path: Path, size: int) -> None:
    """By kimbox and by xz(1)."""
    content = CONTENT[-size:] if size else b""
    data = packed(content)
    assert unpacked(data) == content
    if size:
        (tmp_path / "x.xz").write_bytes(data)
        run(["xz", "--decompress", "--keep", tmp_path / "x.xz"])
        assert (tmp_path / "x").read_bytes() == content


def test_equal_content_gives_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any number of processors, and with writes of any size."""
    several = packed(CONTENT, 12_345)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert packed(CONTENT, 10 << 20) == several


def test_all_processors_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are compressed at the same time: three calls that wait for each other all return."""
    meeting = threading.Barrier(3)

    def compress(piece: bytes, **_: int) -> bytes:
        meeting.wait(10)
        return piece[:1]

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(xz.lzma, "compress", compress)
    assert bytes(3) == packed(bytes(3 * xz.PIECE_BYTES))


def test_progress() -> None:
    """Reported in order, with the complete size at the end."""
    reported: list[int] = []
    with xz.Writer(io.BytesIO(), reported.append) as writer:
        writer.write(CONTENT)
    assert reported == [*range(xz.PIECE_BYTES, len(CONTENT), xz.PIECE_BYTES), len(CONTENT)]


def test_a_failed_write_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets the error of a full disk, although another thread compresses."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), xz.Writer(Full()) as writer:
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


def test_a_file_that_needs_too_much_memory() -> None:
    """kimbox does not allocate a dictionary of 1.5 GiB."""
    data = bytearray(lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]))
    end = 12 + (data[12] + 1) * 4  # end of the block header, which follows the stream header
    data[data.index(b"\x21\x01") + 2] = 37  # property of LZMA2: the size of the dictionary
    data[end - 4 : end] = zlib.crc32(data[12 : end - 4]).to_bytes(4, "little")
    with refused(ImageError, "too-complex", limit="memory"):
        unpacked(bytes(data))
