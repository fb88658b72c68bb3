"""xz archives: what is written others read, the same on any machine; what strangers made is read within bounds."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import threading
import zlib
from pathlib import Path

import pytest

from kimbox.errors import ImageError
from kimbox.image.formats import xz
from kimbox.run import run

CONTENT = hashlib.shake_128().digest(100_000) + bytes(3 * xz.PIECE_BYTES) + b"the end"


def packed(content: bytes, step: int = 1 << 20) -> bytes:
    """The content as xz, written in pieces of so many bytes."""
    file = io.BytesIO()
    with xz.Writer(file) as writer:
        for at in range(0, len(content), step):
            writer.write(content[at : at + step])
        assert writer.tell() == len(content)
    return file.getvalue()


def unpacked(data: bytes, count: int = 1 << 20) -> bytes:
    """What the reader makes of it."""
    reader, pieces = xz.Reader(io.BytesIO(data)), []
    while piece := reader.read(count):
        assert len(piece) <= count
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("size", [0, 1, xz.PIECE_BYTES - 1, xz.PIECE_BYTES, xz.PIECE_BYTES + 1, len(CONTENT)])
def test_what_is_written_is_read(tmp_path: Path, size: int) -> None:
    """By our reader, and by xz itself."""
    content = CONTENT[-size:] if size else b""
    data = packed(content)
    assert unpacked(data) == content
    if size:
        (tmp_path / "x.xz").write_bytes(data)
        run(["xz", "--decompress", "--keep", tmp_path / "x.xz"])
        assert (tmp_path / "x").read_bytes() == content


def test_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many processors there are, and in whatever pieces the content comes."""
    several = packed(CONTENT, 12_345)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert packed(CONTENT, 10 << 20) == several


def test_all_processors_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are compressed at the same time: three that wait for one another come through."""
    meeting = threading.Barrier(3)

    def compress(piece: bytes, **_: int) -> bytes:
        meeting.wait(10)
        return piece[:1]

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(xz.lzma, "compress", compress)
    assert bytes(3) == packed(bytes(3 * xz.PIECE_BYTES))


def test_progress() -> None:
    """It is told in order, and at the end that all is there."""
    told: list[int] = []
    with xz.Writer(io.BytesIO(), told.append) as writer:
        writer.write(CONTENT)
    assert told == [*range(xz.PIECE_BYTES, len(CONTENT), xz.PIECE_BYTES), len(CONTENT)]


def test_what_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, say: whoever writes hears of it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), xz.Writer(Full()) as writer:
        writer.write(CONTENT * 3)


@pytest.mark.parametrize("count", [1, 7, 1 << 20])
def test_rows_of_streams_with_padding(count: int) -> None:
    """As xz(1) and others make them: several streams, empty ones too, and zeros between them."""
    data = lzma.compress(b"one ") + bytes(8) + lzma.compress(b"") + lzma.compress(b"two", preset=9) + bytes(400_000)
    assert unpacked(data, count) == b"one two"


def test_damage() -> None:
    """Wherever it is cut, and whichever byte is wrong, it is refused."""
    data = lzma.compress(CONTENT[:1000]) + lzma.compress(b"more")
    wrongs = [data[:at] for at in range(1, len(data) - 1, 7) if at != len(lzma.compress(CONTENT[:1000]))]
    for at in range(0, len(data), 11):
        wrongs.append(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    for wrong in [*wrongs, data + b"rubbish"]:
        with pytest.raises(ImageError, match="cut off or damaged"):
            unpacked(wrong)


def test_one_that_wants_the_memory_of_the_host() -> None:
    """A dictionary of 1.5 GiB is not made for it."""
    data = bytearray(lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]))
    end = 12 + (data[12] + 1) * 4  # the block header, after that of the stream
    data[data.index(b"\x21\x01") + 2] = 37  # the one property of LZMA2, which means this size
    data[end - 4 : end] = zlib.crc32(data[12 : end - 4]).to_bytes(4, "little")
    with pytest.raises(ImageError, match="too much memory"):
        unpacked(bytes(data))
