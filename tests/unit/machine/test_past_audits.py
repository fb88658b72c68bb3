"""The results of past audits: each once, in order, and never too many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import makemachine
import pytest

from kimbox.guest.audit import Check, Report, Severity, Status
from kimbox.machine import past_audits
from kimbox.machine.folder import Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    return makemachine.make_machine()


def report(at: str, *failed: str) -> Report:
    """A report with these failed checks, of severity high, and one that passed."""
    checks = [Check("a.pass", "t", "", Severity.LOW, Status.PASS, "e", "f", "")]
    checks += [Check(name, "t", "", Severity.HIGH, Status.FAIL, "e", "f", "r") for name in failed]
    return Report(at=at, boot=makemachine.BOOT, role="worker", site="s", checks=tuple(checks))


def test_each_audit_is_kept_once_and_in_order(machine: Machine) -> None:
    """An audit that is seen again is one audit. The ones of the box's own log are there, too."""
    for minute in (20, 10, 20):
        past_audits.keep(machine, report(f"2026-11-28T10:{minute}:00Z", "net.tcp"))
    lines: list[dict[str, Any]] = [
        {"audit": 1, "at": "2026-11-28T10:15:00Z", "boot": makemachine.BOOT, "role": "", "site": ""}
    ]
    check = attrs.asdict(report("").checks[0])
    machine.audit_log.write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, check, {"end": True, "checks": 1}])
    )
    found = past_audits.past(machine)
    assert ["10:10", "10:15", "10:20"] == [one.at[11:16] for one in found]
    assert [("net.tcp",), (), ("net.tcp",)] == [one.breaches for one in found]
    assert {"pass": 1, "fail": 1, "info": 0, "skip": 0} == found[0].counts
    past_audits.keep(machine, report("2026-11-28T10:15:00Z", "disk.equal"))  # with a check of the host
    assert ("disk.equal",) == past_audits.past(machine)[1].breaches


def test_the_oldest_ones_are_removed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their number, and by the size of the file."""
    monkeypatch.setattr(past_audits, "MAX_AUDITS", 3)
    for minute in range(10, 15):
        past_audits.keep(machine, report(f"2026-11-28T10:{minute}:00Z"))
    assert ["10:12", "10:13", "10:14"] == [one.at[11:16] for one in past_audits.past(machine)]
    monkeypatch.setattr(past_audits, "MAX_BYTES", 500)
    past_audits.keep(machine, report("2026-11-28T10:20:00Z"))
    assert machine.past_audits.stat().st_size <= 500
    assert "10:20" == past_audits.past(machine)[-1].at[11:16]


@pytest.mark.parametrize(
    "line", ["", "[]", "{", '{"at": 1}', '{"at": "x", "boot": "", "counts": {}}', "null", "\0\xff"]
)
def test_a_damaged_line_is_left_out(machine: Machine, line: str) -> None:
    """The other audits stay."""
    past_audits.keep(machine, report("2026-11-28T10:10:00Z"))
    machine.past_audits.write_text(f"{line}\n{machine.past_audits.read_text()}")
    assert 1 == len(past_audits.past(machine))


def test_an_audit_that_cannot_be_kept_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit itself has succeeded. For example another process destroyed the machine meanwhile."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    (tmp_path / "home").write_text("a file")
    past_audits.keep(Machine("gone"), report("2026-11-28T10:10:00Z"))
