"""SHA256SUMS: the format of sha256sum(1), and an error for each difference."""

from __future__ import annotations

import pytest
from refused import refused

from kimbox.errors import ImageError
from kimbox.image.formats import sums

DIGESTS = {"box.img": "a" * 64, "metadata.json": "b" * 64}


def test_what_is_written_is_read() -> None:
    """Sorted by name, and read as the same digests."""
    data = sums.text(dict(reversed(DIGESTS.items())))
    assert f"{'a' * 64}  box.img\n{'b' * 64}  metadata.json\n".encode() == data
    assert DIGESTS == sums.parse(data)
    sums.check(data, {**DIGESTS, sums.NAME: "c" * 64, sums.SIGNATURE_NAME: "d" * 64})


@pytest.mark.parametrize(
    ("digests", "name", "state"),
    [
        ({"metadata.json": "b" * 64}, "box.img", "missing"),
        (DIGESTS | {"more": "c" * 64}, "more", "unlisted"),
        (DIGESTS | {"box.img": "c" * 64}, "box.img", "different"),
    ],
)
def test_a_difference(digests: dict[str, str], name: str, state: str) -> None:
    """The error names the file, and how it differs."""
    with refused(ImageError, "checksum-mismatch", name=name, state=state) as caught:
        sums.check(sums.text(DIGESTS), digests)
    assert name in caught.value.message


@pytest.mark.parametrize("data", [b"x", b"a" * 64 + b"  x", (b"a" * 64 + b"  x\n") * 2, b"A" * 64 + b"  x\n"])
def test_an_invalid_file(data: bytes) -> None:
    """Not a checksum file, a line without its end, a name twice, capital letters."""
    with refused(ImageError, "bad-box", name=sums.NAME):
        sums.parse(data)
