"""The guest's `event`: a line of JSON for any bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kimbox import paths
from kimbox.guest.events import parse_line
from kimbox.run import run

EVENTS_SH = paths.provisioners_dir() / "provision/root/usr/lib/kimbox/events.sh"


def emit(port: Path, *arguments: bytes) -> dict[str, Any]:
    port.write_bytes(b"")
    source = '. "$1"; ev_port=$2; shift 2; event "$@"'
    run(["dash", "-c", source, "x", EVENTS_SH, port, *map(os.fsdecode, arguments)])
    line = port.read_bytes()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    return dict(json.loads(line))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode)), min_size=1, max_size=4))
def test_event_escapes_any_bytes_as_python_would_read_them(tmp_path: Path, values: list[bytes]) -> None:
    """Whatever a value holds, the line is JSON and says the same; what is no UTF-8 becomes U+FFFD."""
    values = [v.replace(b"\0", b"") for v in values]
    names = [b"reason", b"name", b"kind", b"key"]
    said = emit(tmp_path / "port", b"failed", *(n + b"=" + v for n, v in zip(names, values, strict=False)))
    assert [said[n.decode()] for n in names[: len(values)]] == [v.decode("utf-8", "replace") for v in values]


@pytest.mark.parametrize(
    "value",
    [
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\xaf",
        b"\xe2\x82",
        b"a\xf0\x9f\x98",
        b"\xf0\x9f\x98\x80",
        b"\x7f\x1b[0m",
    ],
)
def test_event_replaces_what_only_looks_like_utf8(tmp_path: Path, value: bytes) -> None:
    """Surrogates, overlong forms and cut characters are no UTF-8."""
    assert emit(tmp_path / "port", b"failed", b"reason=" + value)["reason"] == value.decode("utf-8", "replace")


def test_event_numbers_bounds_and_reserved_keys(tmp_path: Path) -> None:
    """n, of, exit and percent are numbers; a huge value is cut; event, boot and odd keys cannot be overwritten."""
    said = emit(
        tmp_path / "port",
        b"step",
        b"n=3",
        b"of=x",
        b"exit=007",
        b"percent=85",
        b"name=12",
        b"event=no",
        b"A=1",
        b"reason=" + b'"' * 9000,
    )
    assert (said["n"], said["of"], said["exit"], said["name"], said["event"]) == (3, "x", "007", "12", "step")
    assert said["percent"] == 85
    assert "A" not in said
    assert set(said["reason"]) == {'"'}
    assert len((tmp_path / "port").read_bytes()) < 32768
    assert parse_line((tmp_path / "port").read_bytes()) is not None


def test_event_never_fails_its_caller(tmp_path: Path) -> None:
    """No name, an odd name, no port and no /persistent: exit status 0 and no word."""
    for arguments in ([], ["Odd Name"], ["waiting"]):
        done = run(
            ["dash", "-c", '. "$1"; ev_port=/nonexistent/x; shift; event "${@-}"; echo $?', "x", EVENTS_SH, *arguments]
        )
        assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_sealed_box_says_again_what_it_is_now(tmp_path: Path) -> None:
    """The last word on how far it has come, and no earlier one; its other facts; nothing where it is not closed."""
    script = """
        . "$1"; ev_port=$2/port ev_run=$2
        event provisioning manifest=a
        touch "$2/closed"
        event provisioning manifest=b; event box role=worker; event step n=1; event box role=director
        event sealed manifest=b; event rotated status=done
        : >"$2/port"
        resend
    """
    (tmp_path / "port").touch()
    run(["dash", "-c", script, "x", EVENTS_SH, tmp_path])
    told = [parse_line(line) for line in (tmp_path / "port").read_bytes().splitlines()]
    assert sorted((e.name, e.text("role"), e.text("manifest")) for e in told if e) == [
        ("box", "director", ""), ("sealed", "", "b"),
    ]  # fmt: skip
