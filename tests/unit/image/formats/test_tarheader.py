"""Parts of a tar header: maps of holes, records and numbers, valid and hostile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from refused import refused

from kimbox.errors import ImageError
from kimbox.image.formats import tarheader


def test_ranges() -> None:
    """In order, without empty ranges; the last one may be empty and at the end of the file."""
    assert ((0, 512), (1000, 24)) == tarheader.ranges([0, 512, 1000, 24, 4096, 0], 4096, 536)
    assert () == tarheader.ranges([], 1 << 40, 0)


@pytest.mark.parametrize(
    ("numbers", "stored"),
    [
        ([512, 10, 0, 10], 20),
        ([0, 10, 5, 10], 20),
        ([0, 10], 11),
        ([0, 10], 9),
        ([4090, 10], 10),
        ([5000, 0], 0),
        ([1 << 70, 1], 1),
        ([0], 0),
    ],
)
def test_ranges_that_cannot_be(numbers: list[int], stored: int) -> None:
    """They overlap, are not in order, end after the file, or are not those of the data."""
    with refused(ImageError, "archive-damaged"):
        tarheader.ranges(numbers, 4096, stored)


def blocks(data: bytes) -> Callable[[], bytes]:
    """Returns `data` in blocks, with padding; an error at the end, as a stream that is cut off."""
    padded = data + bytes(-len(data) % 512)
    pieces = iter([padded[at : at + 512] for at in range(0, len(padded), 512)])

    def next_block() -> bytes:
        piece = next(pieces, None)
        if piece is None:
            raise tarheader.damaged("it is cut off")
        return piece

    return next_block


def test_a_map_before_the_data() -> None:
    """It ends with its block, whatever the number of its lines is."""
    numbers = [number for at in range(200) for number in (at * 1000, 7)]
    text = "".join(f"{number}\n" for number in (200, *numbers)).encode()
    assert (-(-len(text) // 512) * 512, numbers) == tarheader.sparse_map_in_data(blocks(text))
    assert (512, []) == tarheader.sparse_map_in_data(blocks(b"0\n"))


@pytest.mark.parametrize(
    ("text", "code"),
    [(b"", "archive-damaged"), (b"-1\n", "archive-damaged"), (b"1\n0\n", "archive-damaged"),
     (b"1\nx\ny\n", "archive-damaged"),
     (b"9" * 600, "archive-damaged"), (b"262145\n", "too-complex")],
)  # fmt: skip
def test_a_map_that_is_not_valid(text: bytes, code: str) -> None:
    """It is refused before more than its own length is read."""
    with refused(ImageError, code):
        tarheader.sparse_map_in_data(blocks(text or bytes(512)))


def test_a_map_of_endless_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of ranges in the blocks after a header of GNU tar is limited."""
    monkeypatch.setattr(tarheader, "MAX_RANGES", 100)
    header = bytearray(512)
    header[482] = 1
    block = b"".join(b"%011o\0%011o\0" % (at, 0) for at in range(21)) + b"\1" + bytes(7)
    with refused(ImageError, "too-complex", limit="holes"):
        tarheader.old_sparse_map(bytes(header), lambda: block)


def test_records() -> None:
    """A key may be in several records; a value may have any byte."""
    assert [(b"a", b"\n="), (b"a", b"2")] == tarheader.records(b"7 a=\n=\n6 a=2\n")
    for wrong in (b"6 a=2", b"60 a=2\n", b"0 a=2\n", b"a=2\n", b"5 a=2\n", b"99999999999 a=2\n"):
        with refused(ImageError, "archive-damaged"):
            tarheader.records(wrong)


def test_a_header() -> None:
    """It is recognized by its checksum, so that archives of version 7 are too."""
    header = bytearray(b"name".ljust(512, b"\0"))
    header[148:156] = b"%06o\0 " % (sum(header) + 8 * ord(" "))
    assert tarheader.is_header(bytes(header))
    for wrong in (bytes(512), b"", bytes(header[:511]), bytes(header[:156]), b"\xff" * 512, bytes([*header[:-1], 1])):
        assert not tarheader.is_header(wrong)
