"""The interface of a store, the names of its objects, and its errors.

A store holds the saves of one box at one URL. An object is whole or absent: a write that is interrupted leaves no
object under its name. kimbox makes every name. A name that is read from a store must pass `check_name`.

saves/000006.json            the manifest of a save; its number never comes back
indexes/000006-<sha256>      the list of the chunks of a disk
packs/000006-<sha256>        chunks
files/000006-<sha256>        spec and lock
signatures/000006-<sha256>   the ssh signature of the manifest with this digest

The number in a name is that of the save that wrote the object.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kimbox.errors import KimboxError

#: Maximum number of bytes of one `Store.read`.
READ_BYTES = 8 << 20

#: Maximum number of names that a store may list.
MAX_NAMES = 100_000

_NAME = re.compile(r"saves/[0-9]{6}\.json|(?:packs|indexes|files|signatures)/[0-9]{6}-[0-9a-f]{64}")


class Store(Protocol):
    """A place for the objects of one box. Errors are KimboxErrors of this module."""

    @property
    def url(self) -> str:
        """The URL without user name and password."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Returns up to `size` bytes (at most READ_BYTES) of an object; fewer only at its end.

        Raises `missing` if the store does not have it.
        """

    def size(self, name: str) -> int | None:
        """Returns the size of an object in bytes; None if the store does not have it."""

    def write(self, name: str, source: Path) -> None:
        """Stores a file under a name. An object with that name is replaced by it in one step."""

    def create(self, name: str, data: bytes, uses: Sequence[str]) -> bool:
        """Stores bytes under a new name, in one step. Returns False, and changes nothing, if the name is taken.

        `uses`: the names of the objects that it needs.
        """

    def names(self, folder: str) -> list[str]:
        """Returns the names of the objects in `folder` that the store can list, such as `saves/000001.json`.

        A store that cannot list its objects returns at least the newest manifest for `saves`.
        """

    def remove(self, name: str) -> None:
        """Removes an object, if it exists."""

    def close(self) -> None:
        """Closes connections."""


def check_name(name: object) -> str:
    """Returns the name of an object. Raises ValueError for any other value: names become paths."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise ValueError("it has a name that is none of an object of a save")


def is_name(name: str) -> bool:
    """Whether a text is the name of an object."""
    return _NAME.fullmatch(name) is not None


def missing(store: str, name: str) -> KimboxError:
    """The error of an object that the store does not have."""
    return KimboxError(
        f"{store} has no {name}",
        code="save-not-found",
        hint=f"`kimbox save --list {store}` shows what is there; the save may have been removed meanwhile",
        fields={"url": store, "object": name},
    )


def failed(store: str, what: str, reason: str, hint: str | None = None, **fields: str) -> KimboxError:
    """The error of a store that refused, or did not complete, what was asked of it."""
    return KimboxError(f"{store}: {what}: {reason}", code="store-failed", hint=hint, fields={"url": store, **fields})


def full(store: str, what: str) -> KimboxError:
    """The error of a store without space. Nothing that was there before has changed."""
    return KimboxError(
        f"{store} has no space left: {what}",
        code="no-space",
        hint="free some space there, or use --keep N to remove old saves; then run the same command again: it goes on "
        "with what is there. The saves that are there are whole",
        fields={"url": store},
    )


def all_of(store: Store, name: str, limit_bytes: int) -> bytes:
    """Returns an object of at most `limit_bytes`. Raises `save-damaged` if it is larger."""
    data = bytearray()
    while len(data) <= limit_bytes:
        piece = store.read(name, len(data), READ_BYTES)
        data += piece
        if len(piece) < READ_BYTES:
            break
    if len(data) > limit_bytes:
        raise KimboxError(
            f"{name} in {store.url} is larger than {limit_bytes} bytes, the maximum for such an object",
            code="save-damaged",
            fields={"url": store.url, "object": name},
        )
    return bytes(data)
