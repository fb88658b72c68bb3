"""The items of a sweep, and the folders of their results."""

from __future__ import annotations

import re

import pytest
from refused import refused

from kimbox.errors import UsageError
from kimbox.jobs import items


def test_a_line_is_an_item_as_it_is() -> None:
    found = items.parse(b"3.95\n\n a b \r\n$HOME *\n\xff\n--x", "items.txt")
    assert ["3.95", " a b ", "$HOME *", "\udcff", "--x"] == [item.text for item in found]


@pytest.mark.parametrize(
    "data", [b"", b"\n\n", b"a\nb\na\n", b"a\0b\n", b"x" * (items.MAX_ITEM_BYTES + 1)], ids=lambda d: d[:6].hex()
)
def test_no_items(data: bytes) -> None:
    with refused(UsageError, "bad-items", path="items.txt"):
        items.parse(data, "items.txt")


@pytest.mark.parametrize("text", ["3.95", "a=1,b=2", "model_x", "x-1"])
def test_a_plain_item_is_its_folder(text: str) -> None:
    assert text == items.folder_of(text)


@pytest.mark.parametrize(
    "text",
    ["../../etc", "a/b", "..", ".", ".lock", "-rf", "results.jsonl", "sweep.json", "a b", "é", "\udcff", "x" * 300,
     "a\x1b[1m", "a-0123abcd", ".new-a"],
)  # fmt: skip
def test_an_item_that_cannot_be_a_folder(text: str) -> None:
    """The folder has a digest of the item, is below the folder of the sweep, and looks like no option and no file."""
    folder = items.folder_of(text)
    assert re.fullmatch(r"[A-Za-z0-9_=+,@][A-Za-z0-9._=+,@-]*|[0-9a-f]{8}", folder)
    assert re.search(r"(^|-)[0-9a-f]{8}$", folder)
    assert len(folder) < 100


def test_no_two_items_share_a_folder() -> None:
    """An item cannot take the folder that another one has by its digest."""
    taken = items.folder_of("a b")
    assert taken != items.folder_of(taken)
    texts = ["a b", "a_b", "a/b", "a\tb", taken, "A b"]
    assert len(texts) == len({items.folder_of(text) for text in texts})
