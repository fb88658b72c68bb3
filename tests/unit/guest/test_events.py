"""Events of a guest that may be broken or hostile."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimbox import paths
from kimbox.guest.events import MAX_LINE_BYTES, MAX_READ_BYTES, Event, Tail, parse_line

BOOT = "0b5b6b3e-0c1f-4a0e-9d0e-1c7a1d6b2f3a"


def line(event: str = "ready", /, **fields: object) -> bytes:
    return json.dumps({"event": event, "boot": BOOT, "uptime_s": 4.25, **fields}).encode() + b"\n"


def test_an_event_is_read() -> None:
    """An event has name, boot, time and the remaining fields."""
    event = parse_line(line("step", n=2, of=5, kind="setup", name="setup", status="running"))
    assert event == Event("step", BOOT, 4.25, {"n": 2, "of": 5, "kind": "setup", "name": "setup", "status": "running"})
    assert (event.number("n"), event.text("status"), event.number("status"), event.text("none")) == (
        2,
        "running",
        None,
        "",
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\0", b"{}", b"[]", b"null", b"\xff\xfe", b"{" * 60000, b"[" * 60000, b'{"event":"ready"', b"1" * 6000,
        b'{"event":1,"boot":"","uptime_s":1}', b'{"event":"Ready","boot":"","uptime_s":1}',
        b'{"event":"ready","boot":"x","uptime_s":1}', b'{"event":"ready","boot":"","uptime_s":"1"}',
        b'{"event":"ready","boot":"","uptime_s":true}', b'{"event":"ready","boot":"","uptime_s":NaN}',
        b'{"event":"ready","boot":"","uptime_s":1e999}', b'{"event":"ready","boot":"","uptime_s":-1}',
        b'{"event":"ready","boot":"","uptime_s":1,"a":[1]}', b'{"event":"ready","boot":"","uptime_s":1,"a":1.5}',
        b'{"event":"ready","boot":"","uptime_s":1,"a":true}', b'{"event":"ready","boot":"","uptime_s":1,"A b":1}',
        b'{"event":"ready","boot":"","uptime_s":1,"a":99999999999999999999}',
        line(**{f"k{'x' * i}": 1 for i in range(40)}), line(reason="x" * MAX_LINE_BYTES),
    ],
)  # fmt: skip
def test_an_invalid_line_is_ignored(raw: bytes) -> None:
    """Invalid JSON, wrong types and values above the limits give no event and no exception."""
    assert parse_line(raw) is None


def test_text_cannot_control_a_terminal() -> None:
    """Escape sequences, line breaks and lone surrogates of a guest are replaced."""
    event = parse_line(b'{"event":"failed","boot":"","uptime_s":1,"reason":"a\\u001b[2Jb\\nc\\ud800"}')
    assert event is not None
    assert event.fields["reason"] == "a\ufffd[2Jb c\ufffd"


@given(st.binary(max_size=300))
def test_no_bytes_give_a_traceback(raw: bytes) -> None:
    """All bytes give an event or None."""
    event = parse_line(raw)
    assert event is None or event.name


def test_tail_reads_new_lines_when_they_are_complete(tmp_path: Path) -> None:
    """A missing file has no events. An incomplete line is kept until its end is written."""
    path = tmp_path / "events"
    tail = Tail(path)
    assert tail.read() == []
    with path.open("ab", buffering=0) as file:
        file.write(line("booting", mode="keep") + line("ready")[:20])
        assert [e.name for e in tail.read()] == ["booting"]
        assert tail.read() == []
        file.write(line("ready")[20:] + b"junk\n\0\n" + line("waiting"))
        assert [e.name for e in tail.read()] == ["ready", "waiting"]
    assert tail.offset == path.stat().st_size
    assert [e.name for e in Tail(path, offset=tail.offset).read()] == []


def test_tail_detects_truncation_and_replacement(tmp_path: Path) -> None:
    """A start of the machine truncates the file. At the next read, the new content may already be longer."""
    path = tmp_path / "events"
    tail = Tail(path)
    path.write_bytes(line("booting", mode="keep") * 2)
    assert len(tail.read()) == 2
    path.write_bytes(line("waiting"))
    assert [e.name for e in tail.read()] == ["waiting"]
    path.write_bytes(line("failed") * 5)
    assert [e.name for e in tail.read()] == ["failed"] * 5
    (tmp_path / "other").write_bytes(line("sealed") * 9)
    (tmp_path / "other").replace(path)
    assert [e.name for e in tail.read()] == ["sealed"] * 9


def test_tail_is_bounded(tmp_path: Path) -> None:
    """A line that is too long is skipped in bounded memory, also over several reads. Many lines are read in pieces."""
    path = tmp_path / "events"
    tail = Tail(path)
    with path.open("wb") as file:
        file.write(b"x" * (2 * MAX_READ_BYTES + 5))
    for _ in range(4):
        assert tail.read() == []
        assert len(tail._rest) <= MAX_LINE_BYTES
    with path.open("ab") as file:
        file.write(b"y\n" + line("ready"))
    assert [e.name for e in tail.read()] == ["ready"]
    with path.open("ab") as file:
        file.write(line("waiting") * (2 * MAX_READ_BYTES // len(line("waiting"))))
    first = len(tail.read())
    assert 0 < first * len(line("waiting")) <= MAX_READ_BYTES + MAX_LINE_BYTES
    path.unlink()
    path.mkdir()
    assert tail.read() == []


def test_the_schema_documents_the_events() -> None:
    """schemas/events.schema.json accepts every event of the list, and rejects a step without its number."""
    schema = json.loads((paths.schemas_dir() / "events.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    step: dict[str, object] = {"n": 1, "of": 2, "kind": "probe", "name": "x", "status": "done"}
    no_root: dict[str, object] = {"manifest": "", "kind": "boot", "name": "root_snap", "exit": 1, "reason": "why"}
    failed: dict[str, object] = {"manifest": "ab", "kind": "setup", "name": "setup", "exit": 1, "reason": "why"}
    good: dict[str, dict[str, object]] = {
        "booting": {"mode": "keep"}, "hostkey": {"key": "ssh-ed25519 A"}, "sshd": {}, "waiting": {},
        "provisioning": {"manifest": "ab"}, "step": step, "ready": {"manifest": "ab"}, "failed": failed,
        "snapshot": {"percent": 85}, "died": {"reason": "it was full"},
        "fallback": {"manifest": "ab", "wanted": "cd", "reason": "why"},
        "kept": {"manifest": "ab", "status": "saved", "reason": ""},
    }  # fmt: skip
    others: list[tuple[str, dict[str, object]]] = [
        ("failed", no_root), ("ready", {"manifest": "", "mode": "maintain"}),
        ("ready", {"manifest": "ab", "wanted": "cd"}),
        ("provisioning", {"manifest": "ab", "wanted": "cd"}), ("snapshot", {"percent": 70, "extended": "yes"}),
    ]  # fmt: skip
    for name, fields in others:
        check.validate(json.loads(line(name, **fields)))
    for name, fields in (("ready", {"manifest": ""}), ("snapshot", {"percent": "85"}), ("snapshot", {"percent": 101})):
        assert not check.is_valid(json.loads(line(name, **fields)))
    for name, fields in good.items():
        check.validate(json.loads(line(name, **fields)))
        if fields:
            assert not check.is_valid(json.loads(line(name)))
