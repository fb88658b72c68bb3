"""The folder of a sweep: what counts as done, and what a killed process leaves at each point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from refused import refused

from kimbox.actions.jobs import ledger
from kimbox.actions.jobs.ledger import Ledger
from kimbox.actions.jobs.sweep import _is_pending
from kimbox.errors import KimboxError, StateError
from kimbox.files import MAX_TEXT_BYTES, locked
from kimbox.jobs.items import Item, parse

FACTS = {"box": "minimal", "arguments": ["-x"]}
ITEMS = parse(b"a\nb\nc d\n", "items")


def write(folder: Path, verdict: str, more: str = "") -> None:
    """Writes the results of a job, as they are complete."""
    folder.mkdir()
    (folder / "more").write_text(more)
    (folder / "job.json").write_text(json.dumps({"verdict": verdict, "status": 0}))


def finish(book: Ledger, item: Item, verdict: str, more: str = "") -> None:
    write(book.target(item), verdict, more)
    book.adopt(item)


def test_results_are_found_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ledger.opened(out, FACTS, ITEMS) as book:
        assert [None] * 3 == [book.record(item) for item in ITEMS]
        finish(book, ITEMS[2], "ok")
        finish(book, ITEMS[0], "failed")
        book.append(ITEMS[2], {"verdict": "ok", "folder": "sha256:x"})
    with ledger.opened(out, FACTS, ITEMS) as again:
        assert book.id == again.id
        records = [again.record(item) for item in ITEMS]
        assert ["failed", None, "ok"] == [record and record["verdict"] for record in records]
        again.write_lines(ITEMS)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [("a", "a", "failed"), ("c d", ITEMS[2].folder, "ok")] == [
        (line["item"], line["results"], line["verdict"]) for line in lines
    ]


@pytest.mark.parametrize(
    ("verdict", "retries", "expected"),
    [
        (None, False, True), ("ok", True, False), ("failed", False, False), ("failed", True, True),
        ("guest-died", False, False), ("host", False, True), ("interrupted", False, True),
    ],
)  # fmt: skip
def test_what_is_done_again(verdict: str | None, retries: bool, expected: bool) -> None:
    record: dict[str, Any] | None = verdict and {"verdict": verdict}  # type: ignore[assignment]
    assert expected is _is_pending(record, retries=retries)


def test_new_results_replace_old_ones_whenever_kimbox_is_killed(tmp_path: Path) -> None:
    """Before they are complete the old ones stay. From then on the new ones count, also without those."""
    out = tmp_path / "out"
    with ledger.opened(out, FACTS, ITEMS) as book:
        finish(book, ITEMS[0], "failed", "old")
        write(book.target(ITEMS[0]), "ok", "incomplete")
        (out / ".new-a/job.json").unlink()
        (out / "..new-a.tmp").mkdir()
    with ledger.opened(out, FACTS, ITEMS) as book:
        assert "old" == (out / "a/more").read_text()
        assert {"a", "sweep.json", ".lock"} == {path.name for path in out.iterdir()}
        write(book.target(ITEMS[0]), "ok", "new")
        (out / "a/job.json").unlink()  # killed while the old ones are removed
    with ledger.opened(out, FACTS, ITEMS) as book:
        record = book.record(ITEMS[0])
        assert record
        assert ("ok", "new") == (record["verdict"], (out / "a/more").read_text())


def test_another_sweep_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        ledger.opened(out, FACTS, ITEMS),
        refused(StateError, "busy"),
        locked(out / ".lock"),
    ):
        pass
    with (
        refused(StateError, "sweep-differs", differs="arguments"),
        ledger.opened(out, FACTS | {"arguments": []}, ITEMS),
    ):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with refused(StateError, "file-exists"), ledger.opened(tmp_path / "other", FACTS, ITEMS):
        pass


def test_an_id_that_is_no_name(tmp_path: Path) -> None:
    """It becomes a part of the names of machines."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "sweep.json").write_text(json.dumps({"format": 1, "id": "../../..", **FACTS}))
    with refused(KimboxError, "file-damaged"), ledger.opened(out, FACTS, ITEMS):
        pass


def test_a_job_with_thousands_of_files(tmp_path: Path) -> None:
    """It has results, although its job.json is larger than other files of kimbox. A line has no list of its files."""
    out = tmp_path / "out"
    files = [{"path": f"{number:0400}", "sha256": "a" * 64, "size_bytes": 1} for number in range(9_000)]
    record = {"verdict": "ok", "output": {"digest": "sha256:x", "files": files}}
    with ledger.opened(out, FACTS, ITEMS) as book:
        (out / "a").mkdir()
        (out / "a/job.json").write_text(json.dumps(record))
        assert (out / "a/job.json").stat().st_size > MAX_TEXT_BYTES
        assert {"verdict": "ok", "output": {"digest": "sha256:x"}} == book.record(ITEMS[0])
        book.append(ITEMS[0], record)
        assert (out / "results.jsonl").stat().st_size < 1000


@pytest.mark.parametrize("content", ["", "{", "[]", '{"verdict": 1}', '{"verdict": ["ok"]}'])
def test_a_damaged_record_is_no_result(tmp_path: Path, content: str) -> None:
    out = tmp_path / "out"
    with ledger.opened(out, FACTS, ITEMS) as book:
        (out / "a").mkdir()
        (out / "a/job.json").write_text(content)
        assert book.record(ITEMS[0]) is None
