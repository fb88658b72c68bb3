"""The boxes that were added to this host: each name refers to an image in the store.

boxes/<name>.json    the record of one box; a slash in its name is written as %2F
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from kimbox import paths
from kimbox.errors import ImageError, KimboxError, StateError
from kimbox.files import read_json, sync_folder, write_json

#: Version of the record's format.
FORMAT = 1

_DIGEST = re.compile(r"[0-9a-f]{64}")


@attrs.frozen
class AddedBox:
    """The record of an added box. The key `image` is the hex digest of the file that was added."""

    name: str
    image: str
    #: `libvirt` or `virtualbox`; None for a plain disk.
    provider: str | None
    #: Path or URL of the file, without its query, which may contain a secret.
    location: str
    #: Whether one of the user's keys has signed the box.
    verified: bool = False
    #: Its version in the catalog; None if it is not from a catalog.
    version: str | None = None

    @property
    def digest(self) -> str:
        return f"sha256:{self.image}"

    def as_json(self) -> dict[str, Any]:
        """The box as it appears in the output of --json."""
        return attrs.asdict(self) | {"digest": self.digest}


def _path(name: str) -> Path:
    """The file of the record of a box."""
    return paths.boxes_file(urllib.parse.quote(name, safe=""))


def find(name: str) -> AddedBox | None:
    """The box of that name, or None. Raises KimboxError (`file-damaged`, ...) if its record is damaged."""
    path, hint = _path(name), f"`kimbox box remove {name}` removes it"
    try:
        value = read_json(path)
    except FileNotFoundError:
        return None
    except KimboxError as error:
        raise KimboxError(error.message, code=error.code, hint=hint, fields={**error.fields, "name": name}) from None
    fields: dict[str, Any] = {field.name: value.get(field.name) for field in attrs.fields(AddedBox)}
    is_valid = _DIGEST.fullmatch(str(fields["image"])) and isinstance(fields["location"], str)
    is_valid = is_valid and isinstance(fields["version"], str | None)
    if value.get("format") != FORMAT or fields["name"] != name or not is_valid:
        raise KimboxError(
            f"{path} is damaged",
            code="file-damaged",
            hint=hint,
            fields={"path": str(path), "name": name},
        )
    return AddedBox(**fields)


def require(name: str) -> AddedBox:
    """The box of that name. Raises ImageError (`box-not-found`) if it was not added, and the errors of `find`."""
    if box := find(name):
        return box
    raise ImageError(
        f"added box {name} not found",
        code="box-not-found",
        hint=f"`kimbox box add {name} FILE|URL` adds it",
        fields={"name": name},
    )


def every(on_damaged: Callable[[KimboxError], None] | None = None) -> Iterator[AddedBox]:
    """All added boxes, sorted by name. A damaged record is an error: `on_damaged` gets it, or else it is raised."""
    for path in sorted(paths.boxes_file("x").parent.glob("*.json")):
        try:
            box = find(urllib.parse.unquote(path.stem))
        except KimboxError as error:
            if on_damaged is None:
                raise
            on_damaged(error)
        else:
            if box:
                yield box


def write(box: AddedBox) -> None:
    """Writes the record of a box. Replaces the record of a box with the same name."""
    write_json(_path(box.name), {"format": FORMAT, **attrs.asdict(box)})


def remove(name: str) -> None:
    """Removes the record of a box; its image stays in the store. Raises StateError (`box-not-found`)."""
    path = _path(name)
    try:
        path.unlink()
    except FileNotFoundError:
        raise StateError(
            f"added box {name} not found",
            code="box-not-found",
            hint="`kimbox box list` shows the added boxes",
            fields={"name": name},
        ) from None
    sync_folder(path.parent)
