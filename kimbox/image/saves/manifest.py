"""The manifest of a save: what it is a save of, its base, and the objects that it needs.

The first line is `kimbox-save 1 <sha256 of the rest>`, the rest is JSON. schemas/save.schema.json describes it.
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Any

import attrs

from kimbox import paths
from kimbox.errors import KimboxError
from kimbox.files import json_bytes, parse_json, read_json
from kimbox.transfer.stores.base import check_name

#: Version of the format.
FORMAT = 1

#: Maximum size of a manifest, in bytes.
MAX_MANIFEST_BYTES = 4 << 20

#: Maximum size of a pack, in bytes.
PACK_BYTES = 256 << 20

#: Maximum size of each file of FILES, in bytes.
MAX_FILE_BYTES = 4 << 20

#: Names of the files of a save: the merged spec as JSON, the lock, the box.json of the guest's manifest, and the
#: record of the image.
FILES = ("kimbox.yaml", "kimbox.lock", "box.json", "image.json", "packages.json", "changes.json")

_FIRST_LINE = re.compile(rb"kimbox-save 1 ([0-9a-f]{64})\n")
_SAVE_NAME = re.compile(r"saves/([0-9]{6})\.json")


@attrs.frozen
class Stored:
    """An object of a save, and its size in bytes."""

    name: str
    size_bytes: int

    @property
    def digest(self) -> str:
        """The sha256 hex digest in its name."""
        return self.name[-64:]


@attrs.frozen
class Contents:
    """A disk or the file of an image in a save: its size in bytes, the index of its chunks, and their number."""

    size_bytes: int
    index: Stored
    chunks: int


@attrs.frozen
class Folder:
    """A folder of the saving host that is a repository of the box: a git bundle of the commit of its content."""

    commit: str
    bundle: Stored


@attrs.frozen
class Base:
    """The image below the saved disk."""

    #: Key of the image.
    image: str
    format: str
    #: Digest of its file, as `store.digest.disk_digest` returns it.
    digest: str
    #: The file of the image, if the save has it (`--fat`).
    contents: Contents | None = None


@attrs.frozen
class Manifest:
    """A save."""

    number: int
    #: Name of the machine, and of its box.
    machine: str
    box: str
    #: In UTC, as 2026-01-31T12:00:00Z.
    saved_at: str
    kimbox: str
    #: sha256 hex digests of spec, lock and manifest of the guest.
    spec_digest: str
    lock_digest: str
    manifest_digest: str
    cpus: int | None
    memory_bytes: int | None
    disk: Contents
    base: Base
    packs: tuple[Stored, ...]
    files: dict[str, Stored]
    #: By the name of the repository.
    folders: dict[str, Folder]
    #: Numbers of the older saves that are kept, ascending.
    kept: tuple[int, ...]
    #: Number of bytes that this save added to the store, without the manifest.
    added_bytes: int

    @property
    def indexes(self) -> tuple[Stored, ...]:
        """The indexes of the disk and, in a fat save, of the image."""
        fat = self.base.contents
        return (self.disk.index, *([fat.index] if fat else []))

    @property
    def objects(self) -> tuple[Stored, ...]:
        """Every object that it needs, except its signature."""
        return (*self.packs, *self.indexes, *self.files.values(), *(one.bundle for one in self.folders.values()))

    @property
    def size_bytes(self) -> int:
        """The bytes in the store that it needs. Other saves may need the same."""
        return sum(stored.size_bytes for stored in self.objects)


def name_of(number: int) -> str:
    """Returns the name of the manifest of a save."""
    return f"saves/{number:06}.json"


def number_of(name: str) -> int | None:
    """Returns the number of the save with this manifest; None for the name of another object."""
    match = _SAVE_NAME.fullmatch(name)
    return int(match[1]) if match else None


def pack_manifest(manifest: Manifest) -> bytes:
    """Returns a manifest as bytes."""
    body = json_bytes({"format": FORMAT} | attrs.asdict(manifest))
    return b"kimbox-save 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def digest_of(data: bytes) -> str:
    """Returns the sha256 hex digest of the bytes of a manifest, which names its signature."""
    return hashlib.sha256(data).hexdigest()


def parse_manifest(data: bytes, number: int, store: str) -> Manifest:
    """Parses a manifest from a store. Raises KimboxError: `save-damaged`, `unsupported-format`."""
    try:
        match = _FIRST_LINE.match(data)
        if not match:
            raise ValueError("its first line is not that of a manifest")
        body = data[match.end() :]
        if hashlib.sha256(body).hexdigest().encode() != match[1]:
            raise ValueError("its content does not have the digest in its first line")
        value = parse_json(body)
        if isinstance(value, dict) and value.get("format") != FORMAT:
            raise KimboxError(
                f"{name_of(number)} in {store} has format {str(value.get('format'))[:20]}; this version reads {FORMAT}",
                code="unsupported-format",
                hint="use the version of kimbox that saved the box, or a later one",
                fields={"url": store, "object": name_of(number)},
            )
        _check_schema(value)
        manifest = _manifest(value)
        if manifest.number != number or any(not 0 < kept < number for kept in manifest.kept):
            raise ValueError("it has the number of another save")
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(store, name_of(number), str(error)) from None
    return manifest


def damaged(store: str, name: str, reason: str, **fields: str) -> KimboxError:
    """The error of an object of a save that is not what it should be."""
    return KimboxError(
        f"{name} in {store} is damaged: {reason}",
        code="save-damaged",
        hint=f"`kimbox save --list {store}` shows older saves; save the box again if it still exists",
        fields={"url": store, "object": name, **fields},
    )


@functools.cache
def _schema() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(read_json(paths.schemas_dir() / "save.schema.json"))


def _check_schema(value: object) -> None:
    """Raises ValueError with the first fault."""
    for error in _schema().iter_errors(value):
        place = "/".join(str(part) for part in error.absolute_path)
        raise ValueError(f"{place or 'it'}: {error.message[:200]}")


def _manifest(value: dict[str, Any]) -> Manifest:
    base = value["base"]
    whole = Base(
        base["image"], base["format"], base["digest"], _contents(base["contents"]) if base["contents"] else None
    )
    disk = _contents(value["disk"])
    plain = {field.name: value[field.name] for field in attrs.fields(Manifest)}
    return Manifest(
        **plain
        | {
            "disk": disk,
            "base": whole,
            "packs": tuple(_stored(one) for one in value["packs"]),
            "files": {name: _stored(one) for name, one in value["files"].items()},
            "folders": {name: Folder(one["commit"], _stored(one["bundle"])) for name, one in value["folders"].items()},
            "kept": tuple(value["kept"]),
        }
    )


def _contents(value: dict[str, Any]) -> Contents:
    return Contents(value["size_bytes"], _stored(value["index"]), value["chunks"])


def _stored(value: dict[str, Any]) -> Stored:
    return Stored(check_name(value["name"]), value["size_bytes"])
