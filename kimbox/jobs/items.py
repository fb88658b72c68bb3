"""The items of a sweep, one in each line of a file, and the name of the folder with the results of each. Pure."""

from __future__ import annotations

import hashlib
import os
import re

import attrs

from kimbox.errors import UsageError

#: Limits on the file with the items.
MAX_BYTES, MAX_ITEMS, MAX_ITEM_BYTES = 64 << 20, 100_000, 4096

#: Longest name of a folder without its digest, in characters, and the number of characters of a digest.
NAME_CHARACTERS, DIGEST_CHARACTERS = 60, 8

#: Characters that are not in the name of a folder, and names that get a digest though they have none of them: those
#: that begin as files of kimbox do or as an option, those that end as one with a digest, and those of other files.
_UNSAFE = re.compile(r"[^A-Za-z0-9._=+,@-]+")
_RESERVED = re.compile(r"[.-].*|results\.jsonl|sweep\.json|.*-[0-9a-f]{8}")


@attrs.frozen
class Item:
    """An item. `text` is the last argument of its job; `folder` the name of the folder with its results."""

    text: str
    folder: str


def parse(data: bytes, source: str) -> list[Item]:
    """Returns the items in the content of a file, in their order. `source`: the name of the file in messages.

    A line is an item as it is: no character is special, and blanks stay. Empty lines are left out. Raises UsageError
    (`bad-items`).
    """
    if len(data) > MAX_BYTES:
        raise _bad(source, f"has more than {MAX_BYTES >> 20} MiB")
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    seen: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if len(line) > MAX_ITEM_BYTES or b"\0" in line:
            raise _bad(source, f"line {number} is longer than {MAX_ITEM_BYTES} bytes, or has a NUL character")
        if line in seen:
            raise _bad(source, f"line {number} is the same as line {seen[line]}")
        seen[line] = number
    if not seen:
        raise _bad(source, "has no item")
    if len(seen) > MAX_ITEMS:
        raise _bad(source, f"has more than {MAX_ITEMS} items")
    texts = [os.fsdecode(line) for line in seen]
    return [Item(text, folder_of(text)) for text in texts]


def folder_of(text: str) -> str:
    """Returns the name of the folder of an item: its text, or what is left of it with a digest, so that none is twice.

    It depends on nothing but the text: a sweep whose file gets more lines finds the results that it has.
    """
    clean = _UNSAFE.sub("_", text)[:NAME_CHARACTERS]
    if clean == text and not _RESERVED.fullmatch(text):
        return text
    digest = hashlib.sha256(os.fsencode(text)).hexdigest()[:DIGEST_CHARACTERS]
    return f"{clean.strip('.-_')}-{digest}".lstrip("-")


def _bad(source: str, problem: str) -> UsageError:
    return UsageError(
        f"{source}: {problem}",
        code="bad-items",
        hint="--each takes one item in each line, and each item once",
        fields={"path": source},
    )
