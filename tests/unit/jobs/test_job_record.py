"""job.json, which anyone may have edited: what is read is checked, and everything else is one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from makejobrecord import A_LOCK, make_folder, make_results

from kimbox.errors import KimboxError
from kimbox.jobs import listing
from kimbox.jobs.record import Settings, parse_record, read_record, record_schema


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The record of a job with two results."""
    folder = make_folder(tmp_path / "study")
    return make_results(folder, tmp_path / "study.out", {"a.csv": b"1\n", "deep/b": b"2\n"})


def test_what_is_read(record: Path) -> None:
    """Everything that is needed to run the job again."""
    found = read_record(record)
    assert (("ok", 0, None), ("a b",), "tiny", "study") == (found.end, found.arguments, found.box, found.folder_name)
    assert Settings(1, 1 << 30, None, 60, "none", 2 << 20) == found.settings
    assert (A_LOCK.digest, A_LOCK.spec_digest) == (found.lock_digest, found.spec_digest)
    assert listing.of_folder(record.parent / "output") == found.output
    assert found.input is not None
    assert found.input.digest == found.input_digest


def test_the_schema_is_one(record: Path) -> None:
    """It is valid, and what kimbox writes is valid by it."""
    Draft202012Validator.check_schema(record_schema())
    Draft202012Validator(record_schema()).validate(json.loads(record.read_text()))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("box", "../../etc"),
        ("box", "A\x1b[2J"),
        ("arguments", ["a\nb"]),
        ("arguments", ["\ud800"]),
        ("arguments", "a"),
        ("image", "x"),
        ("folder_name", "../x"),
        ("folder_name", ""),
        ("lock", {"sha256": "1" * 64}),
        ("settings", {}),
        ("settings", {"cpus": True, "memory_bytes": 1, "scratch_bytes": None, "timeout_s": None, "network": "none",
                      "size_bytes": 1}),
        ("settings", {"cpus": 10**9, "memory_bytes": 1, "scratch_bytes": None, "timeout_s": None, "network": "none",
                      "size_bytes": 1}),
        ("output", {"digest": f"sha256:{'0' * 64}", "count": 0, "size_bytes": 0, "files": []}),
        ("output", {"digest": f"sha256:{'0' * 64}", "count": 0, "size_bytes": 0, "files": [{"path": "a"}]}),
        ("more", 1),
    ],
)  # fmt: skip
def test_a_value_that_was_edited(record: Path, key: str, value: Any) -> None:
    """The error names the place, and prints no control character."""
    edited = json.loads(record.read_text()) | {key: value}
    with pytest.raises(KimboxError) as caught:
        parse_record(json.dumps(edited).encode(), record)
    assert ("bad-record", 3) == (caught.value.code, caught.value.exit_code)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"format": 1}'])
def test_what_is_no_record(record: Path, data: bytes) -> None:
    """No other exception."""
    with pytest.raises(KimboxError) as caught:
        parse_record(data, record)
    assert "bad-record" == caught.value.code


def test_files_that_cannot_be_read(record: Path, tmp_path: Path) -> None:
    """A missing one, a folder, and one that is too large."""
    with pytest.raises(KimboxError) as caught:
        read_record(tmp_path / "missing")
    assert "file-not-found" == caught.value.code
    with pytest.raises(KimboxError):
        read_record(tmp_path)
    with record.open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(KimboxError) as caught:
        read_record(record)
    assert "file-too-large" == caught.value.code
