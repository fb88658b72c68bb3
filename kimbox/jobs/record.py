"""Reads job.json, the record of a job. It may come from a folder that anyone has edited: it is untrusted."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import attrs

from kimbox import files, paths
from kimbox.errors import KimboxError, StateError
from kimbox.jobs.listing import Entry, Listing
from kimbox.log import printable

#: Name of the record among the results of a job, and the version of its content.
RECORD, FORMAT = "job.json", 1

#: Name of the lock among the results.
LOCK = "kimbox.lock"

#: Maximum size of a record, in bytes: MAX_LISTED files of input and of output with long names.
MAX_RECORD_BYTES = 16 << 20

#: Maximum length of a place in a message, in characters.
_MAX_PLACE = 100


@attrs.frozen
class Settings:
    """The machine and the disk of a job. None: there is no limit, or no scratch space."""

    cpus: int
    memory_bytes: int
    scratch_bytes: int | None
    timeout_s: int | None
    #: As `--network` takes it.
    network: str
    #: Size of the disk of the job; None if there was none, because the box did not start.
    size_bytes: int | None


@attrs.frozen
class JobRecord:
    """The part of a record that is needed to run the job again. `path`: the file."""

    path: Path
    end: tuple[str, int | None, int | None]  #: verdict, exit status, signal
    arguments: tuple[str, ...]
    box: str
    kimbox: str
    image: str
    manifest: str
    lock_digest: str
    spec_digest: str
    settings: Settings
    #: Name of the folder of the job, and digest of its listing.
    folder_name: str
    input_digest: str
    #: The files that it had; None if there were too many to list.
    input: Listing | None
    output_digest: str
    output: Listing | None


@functools.cache
def record_schema() -> dict[str, Any]:
    """Returns the JSON Schema of job.json."""
    return files.read_json(paths.schemas_dir() / "job.schema.json")


def read_record(path: Path) -> JobRecord:
    """Reads a record. Raises StateError (`file-not-found`), and KimboxError (`bad-record`, `file-too-large`)."""
    try:
        data = files.read_bounded(path, limit_bytes=MAX_RECORD_BYTES)
    except FileNotFoundError:
        raise StateError(f"{path} not found", code="file-not-found", fields={"path": str(path)}) from None
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}") from None
    return parse_record(data, path)


def parse_record(data: bytes, path: Path) -> JobRecord:
    """Parses the content of a record; `path` is its file. Raises KimboxError (`bad-record`)."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    try:
        value = files.parse_json(data)
    except ValueError:
        raise _bad(path, "is not JSON, or too large") from None
    if fault := best_match(Draft202012Validator(record_schema()).iter_errors(value)):
        place = printable("/".join(map(str, fault.absolute_path))[:_MAX_PLACE]) or "the whole file"
        raise _bad(path, f"is not the record of a job: {place} is missing, or has a value that it cannot have")
    try:
        return _record(value, path)
    except ValueError:  # text that is no file name: a surrogate that stands for no byte
        raise _bad(path, "has a name that cannot be one of a file") from None


def _record(value: dict[str, Any], path: Path) -> JobRecord:
    """Returns the record of a value that is valid by the schema. Raises ValueError."""
    for argument in value["arguments"]:
        os.fsencode(argument)
    return JobRecord(
        path,
        (value["verdict"], value["exit"], value["signal"]),
        tuple(value["arguments"]),
        value["box"],
        value["kimbox"],
        value["image"],
        value["manifest"],
        value["lock"]["sha256"],
        value["lock"]["spec"],
        Settings(**value["settings"]),
        value["folder_name"],
        value["input"]["digest"],
        _listing(value["input"]),
        value["output"]["digest"],
        _listing(value["output"]),
    )


def _listing(value: dict[str, Any]) -> Listing | None:
    """Returns a listing; None if it is too long for a record. Raises ValueError if its digest is another one."""
    if value["files"] is None:
        return None
    listing = Listing.of(map(Entry.from_json, value["files"]))
    if listing.digest != value["digest"] or len(listing.entries) != value["count"]:
        raise ValueError("the digest is that of other files")
    return listing


def _bad(path: Path, problem: str) -> KimboxError:
    return KimboxError(
        f"{path} {problem}",
        code="bad-record",
        hint="name the file job.json of a folder that `kimbox job run DIR` wrote",
        fields={"path": str(path)},
    )
