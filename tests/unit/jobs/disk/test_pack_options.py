"""Sizes, room and patterns of `kimbox job pack` and `kimbox job extract`."""

from __future__ import annotations

import pytest

from kimbox.errors import UsageError
from kimbox.jobs.disk.pack import Room, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512b", 512),
        ("1K", 1024),
        ("1.5M", 3 << 19),
        ("2G", 2 << 30),
        ("0.5T", 1 << 39),
        ("1P", 1 << 50),
        ("1E", 1 << 60),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    """The units are those of virt-make-fs(1)."""
    assert expected == parse_size(text, "--size")


@pytest.mark.parametrize("text", ["", "1", "1k", "1KiB", "-1K", "1.K", ".5K", "1 K", "1e3K", "\u0661K", "1K\n"])
def test_other_texts_are_no_sizes(text: str) -> None:
    """Each of them is refused, with the name of the option."""
    with pytest.raises(UsageError) as caught:
        parse_size(text, "--size")
    assert ("bad-size", "--size") == (caught.value.code, caught.value.fields["option"])


def test_room() -> None:
    """A part of what the folder needs, with a minimum, or a size."""
    assert 10_000 == Room().blocks(100_000, 1024)
    assert 1024 == Room().blocks(10, 1024)
    assert 25_000 == Room.parse("25%").blocks(100_000, 1024)
    assert 2048 == Room.parse("2M").blocks(100_000, 1024)
    assert 0 == Room.parse("0K").blocks(100_000, 1024)
    with pytest.raises(UsageError):
        Room.parse("ten")
