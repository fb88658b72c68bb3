"""The folder of a sweep: which items have a result, and results.jsonl. All of it is found again from the files.

OUT/sweep.json      what the sweep is of; another one is refused
OUT/.lock           locked by the process that works on it
OUT/ITEM/           the results of an item, complete since they have this name
OUT/.new-ITEM/      new results of an item that is done again; they replace the earlier ones when they are complete
OUT/results.jsonl   for each item with a result, a line with the item, the name of its folder, and its job.json
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from kimbox.errors import KimboxError, StateError
from kimbox.files import locked, read_json, remove_left, remove_tree, write_atomic, write_json
from kimbox.jobs.items import Item
from kimbox.jobs.record import MAX_RECORD_BYTES, RECORD
from kimbox.jobs.result import Outcome

#: Names of files, prefix of new results, and version of sweep.json.
FACTS, LOCK, LINES, NEW, FORMAT = "sweep.json", ".lock", "results.jsonl", ".new-", 1

#: Verdicts that are no result of the item: it is done again.
NO_RESULTS = (str(Outcome.HOST), str(Outcome.INTERRUPTED))


@attrs.frozen
class Ledger:
    """The folder of a sweep, while this process works on it. `id`: the same for each start of the sweep."""

    folder: Path
    id: str

    def record(self, item: Item) -> dict[str, Any] | None:
        """Returns job.json of an item, without its lists of files; None if the item has no results."""
        try:
            record = read_json(self.folder / item.folder / RECORD, limit_bytes=MAX_RECORD_BYTES)
        except (OSError, KimboxError):
            return None
        return _short(record) if isinstance(record.get("verdict"), str) else None

    def target(self, item: Item) -> Path:
        """Returns the new folder for the results of an item. `adopt` is called when they are complete."""
        target = self.folder / f"{NEW}{item.folder}"
        remove_tree(target)
        return target

    def adopt(self, item: Item) -> None:
        """Gives new results of an item their name, in the place of earlier ones. Does nothing if there are none.

        If kimbox is killed in it, the next start does it again.
        """
        new, target = self.folder / f"{NEW}{item.folder}", self.folder / item.folder
        if (new / RECORD).is_file():
            remove_tree(target)
            new.rename(target)

    def append(self, item: Item, record: dict[str, Any]) -> None:
        """Adds a line to results.jsonl, in one write."""
        with (self.folder / LINES).open("ab", buffering=0) as file:
            file.write(_line(item, record))

    def write_lines(self, items: list[Item]) -> None:
        """Replaces results.jsonl, in the order of the items."""
        lines = [_line(item, record) for item in items if (record := self.record(item))]
        write_atomic(self.folder / LINES, b"".join(lines))


def _line(item: Item, record: dict[str, Any]) -> bytes:
    return json.dumps({"item": item.text, "results": item.folder, **_short(record)}).encode() + b"\n"


def _short(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a job.json without its lists of files, which are megabytes for a job with thousands of them."""
    lists = {key: record[key] for key in ("input", "output") if isinstance(record.get(key), dict)}
    return record | {key: {name: value[name] for name in value if name != "files"} for key, value in lists.items()}


@contextlib.contextmanager
def opened(folder: Path, facts: dict[str, Any], items: list[Item]) -> Iterator[Ledger]:
    """Opens the folder of a sweep, or makes it, and first completes what a killed process left.

    `facts`: what the results depend on. Raises StateError: `file-exists` if the folder is another one, `sweep-differs`
    if it has the results of other facts, `busy` if another process works on it.
    """
    if folder.exists() and not (folder / FACTS).exists() and not _is_new(folder):
        raise StateError(
            f"{folder} already exists, and is no folder of a sweep",
            code="file-exists",
            hint="name a new folder with --output",
            fields={"path": str(folder)},
        )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, busy=f"another kimbox process works on the sweep in {folder}"):
        if not (folder / FACTS).exists():
            write_json(folder / FACTS, {"format": FORMAT, "id": secrets.token_hex(4), **facts})
        known = read_json(folder / FACTS)
        if differing := sorted(key for key in facts if known.get(key) != facts[key]):
            raise StateError(
                f"{folder} has results of another sweep, which differs in: {', '.join(differing)}",
                code="sweep-differs",
                hint="name a new folder with --output, or use the arguments of that sweep",
                fields={"path": str(folder), "differs": " ".join(differing)},
            )
        ledger = Ledger(folder, _id(known, folder))
        for item in items:
            ledger.adopt(item)
        remove_left(folder)
        for left in (*folder.glob(f"{NEW}*"), *folder.glob(f".{NEW}*.tmp")):
            remove_tree(left)
        yield ledger


def _is_new(folder: Path) -> bool:
    """Whether a folder is empty but for what a process leaves that is killed before it writes the facts."""
    return folder.is_dir() and all(path.name == LOCK or path.name.startswith(f".{FACTS}") for path in folder.iterdir())


def _id(known: dict[str, Any], folder: Path) -> str:
    """Returns the id in sweep.json, which becomes a part of names. Raises KimboxError (`file-damaged`)."""
    value = known.get("id")
    if isinstance(value, str) and value.isalnum() and value.isascii() and len(value) == 8:
        return value
    path = folder / FACTS
    raise KimboxError(f"{path} is damaged: id {value!r}", code="file-damaged", fields={"path": str(path)})
