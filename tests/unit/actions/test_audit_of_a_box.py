"""The audit of a box in each state: over ssh, or the last report that a sealed box has sent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import clirun
import jsonschema
import makemachine
import pytest
from clirun import Kimbox, result
from makereport import HEADER, check, ids, lines, report, sent
from refused import refused

from kimbox import paths
from kimbox.actions import audit as auditing
from kimbox.errors import GuestError, StateError
from kimbox.guest import ssh as guest_ssh
from kimbox.guest.audit import Status
from kimbox.guest.ssh import Answer
from kimbox.machine.record import PutBack, Sealed
from kimbox.machine.state import State

kimbox, world = clirun.kimbox, clirun.world  # fixtures


def as_state(monkeypatch: pytest.MonkeyPatch, state: State) -> None:
    monkeypatch.setattr(auditing, "state", lambda _: state)


class FakeSsh:
    """In place of an ssh connection; answers each command with `answer`."""

    answer = Answer(0, lines(check()).decode(), "")

    def __init__(self, endpoint: object) -> None:
        self.endpoint = endpoint

    def __enter__(self) -> FakeSsh:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, command: str, *, timeout_s: float) -> Answer:
        assert ("sudo -n /usr/lib/kimbox/audit", auditing.TIMEOUT_S) == (command, timeout_s)
        return self.answer


def test_an_open_box_is_asked(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over ssh; what is no whole report is an error that says what the guest said, in one harmless line."""
    machine = makemachine.make_machine()
    as_state(monkeypatch, State.READY)
    monkeypatch.setattr(auditing, "reach", lambda *_: None)
    monkeypatch.setattr(guest_ssh, "Guest", FakeSsh)
    assert auditing.Audited(report(check()), "run over ssh just now") == auditing.report(machine)
    for answer in (
        Answer(1, "", "x\nsudo: no\x1b such thing\n"),
        Answer(0, "{}", "sudo: no\x1b such thing"),
        Answer(127, "", ""),
    ):
        monkeypatch.setattr(FakeSsh, "answer", answer)
        reason = "sudo: no\ufffd such thing" if answer.stderr else "exit status 127"
        with refused(GuestError, "audit-failed", name="tiny", reason=reason) as caught:
            auditing.report(machine)
        assert f"the audit of tiny gave no complete report: {reason}" == caught.value.message


@pytest.mark.parametrize("state", [State.HALTED, State.ABSENT, State.SUSPENDED])
def test_a_box_that_does_not_run_has_no_report(world: Path, state: State) -> None:
    """It says so, before ssh is tried."""
    machine = makemachine.make_machine() if state is not State.ABSENT else makemachine.Machine("tiny")
    with pytest.raises(StateError):
        auditing.report(machine)


def test_a_sealed_box_has_told(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest whole report of the present boot, with its age; ssh is not tried."""
    machine = makemachine.make_machine()
    as_state(monkeypatch, State.SEALED)
    with refused(StateError, "report-missing", name="tiny"):
        auditing.report(machine)
    machine.audit_log.write_bytes(sent(check("a.a")) + sent(check("b.b")) + b'{"audit":1')
    makemachine.tell(machine, makemachine.event("booting", mode="resnap"))
    audited = auditing.report(machine)
    assert ["boot.sealed", "disk.equal", "b.b"] == ids(audited.report.checks)
    assert (Status.PASS, "sealed") == (audited.report.checks[0].status, audited.report.checks[0].found)
    assert ("sent by the box 1 min ago", False, None) == (audited.source, audited.stale, audited.unsealed)
    makemachine.tell(machine, makemachine.event("booting", boot=makemachine.NEXT_BOOT, mode="resnap"))
    with refused(StateError, "report-missing", name="tiny"):
        auditing.report(machine)


def test_a_sealed_box_that_was_halted_has_told_too(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can ask it; what it is now is said. The host's own check does not apply."""
    machine = makemachine.make_machine(sealed=Sealed("worker", "example.org"))
    machine.audit_log.write_bytes(sent(check(), ago_s=9000))
    audited = auditing.report(machine)
    assert ("sent by the box 2 h ago; it is halted now", False) == (audited.source, audited.stale)
    assert Status.SKIP is audited.report.checks[0].status


@pytest.mark.parametrize(
    ("expected", "state", "event"),
    [
        ("secure harden: no room", State.FAILED, {"kind": "secure", "name": "harden", "reason": "no room"}),
        ("seal: no key", State.CRASHED, {"kind": "seal", "name": "seal", "reason": "no key"}),
        ("seal: the box reported no reason", State.CRASHED, {"kind": "seal", "name": "seal"}),
        ("the root file system of the box is full", State.FAILED, None),
        ("it took its role, and is open until it restarts", State.READY, None),
        (None, State.CRASHED, None),
        (None, State.CRASHED, {"kind": "step", "name": "x"}),
    ],
)
@pytest.mark.parametrize("has_report", [True, False])
def test_a_boot_that_failed_to_seal_is_a_breach(
    kimbox: Kimbox,
    monkeypatch: pytest.MonkeyPatch,
    expected: str | None,
    state: State,
    event: dict[str, str] | None,
    has_report: bool,
) -> None:
    """With an exit status, a field and a check of its own, also if the box has sent a report without a breach."""
    machine = makemachine.make_machine(sealed=Sealed("worker", "example.org"))
    as_state(monkeypatch, state)
    makemachine.tell(machine, makemachine.event("booting", mode="resnap"))
    if event:
        makemachine.tell(machine, makemachine.event("failed", manifest="", exit=1, **event))
    machine.audit_log.write_bytes(sent(check(), boot=makemachine.BOOT if has_report else makemachine.NEXT_BOOT))
    code, out, _ = kimbox("audit", "tiny", "--json")
    if expected is None:
        assert (0 if has_report else StateError.exit_code) == code
        return
    found = result(out, "audit")
    assert (4, expected, ["boot.sealed"]) == (code, found["unsealed"], found["breaches"])
    assert ("worker", "example.org") == (found["report"]["role"], found["report"]["site"])
    assert (3 if has_report else 2) == len(found["report"]["checks"])
    schema = json.loads((paths.schemas_dir() / "audit.schema.json").read_text())
    jsonschema.validate(found, {"$ref": "#/$defs/result", "$defs": schema["$defs"]})
    code, out, _ = kimbox("audit", "tiny")
    assert 4 == code
    assert f"             found     {state}: {expected}\n" in out


@pytest.mark.parametrize(
    ("status", "put_back", "words"),
    [
        (Status.SKIP, None, "the box was not started since it was sealed"),
        (Status.PASS, PutBack("2026-11-28T17:00:00Z", ()), "(2026-11-28T17:00:00Z): equal"),
        (
            Status.FAIL,
            PutBack("2026-11-28T17:00:00Z", ("/boot/x\x1b", "LV root")),
            ": /boot/x\ufffd, LV root; it was put",
        ),
    ],
)
def test_the_host_has_a_check_of_the_disk(
    kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, status: Status, put_back: PutBack | None, words: str
) -> None:
    """The result of a guest for it does not count. `status` has the same."""
    machine = makemachine.make_machine(sealed=Sealed("worker", "example.org"), put_back=put_back)
    machine.audit_log.write_bytes(sent(check(), check("disk.equal")))
    as_state(monkeypatch, State.SEALED)
    (_, own, _) = auditing.report(machine).report.checks
    assert (own.id, own.status, words in own.found) == ("disk.equal", status, True)
    assert (own.is_breach, bool(own.remedy)) == (status is Status.FAIL, status is Status.FAIL)
    _, out, _ = kimbox("status", "tiny")
    assert ("put back    2026" in out, "CHANGED" in out) == (put_back is not None, status is Status.FAIL)


def test_a_guest_cannot_write_the_hosts_check(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of a report with the id of the host's own check does not count."""
    machine = makemachine.make_machine(sealed=Sealed("worker", "example.org"))
    as_state(monkeypatch, State.FAILED)
    machine.audit_log.write_bytes(sent(check("boot.sealed"), check("a.a")))
    found = auditing.report(machine).report
    assert ["boot.sealed", "disk.equal", "a.a"] == ids(found.checks)
    assert ["boot.sealed"] == ids(found.breaches)


@pytest.mark.parametrize("more", [b"", b"\n", b"junk\n", b'{"audit":1', sent(check(), check("b.b"))[:-9]])
def test_a_box_that_tells_no_more_is_no_sound_one(
    kimbox: Kimbox, world: Path, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    """While it runs, and by the time in its whole reports: other bytes on the port make none of them newer."""
    machine = makemachine.make_machine(sealed=Sealed("worker", "example.org"))
    for state, code in ((State.HALTED, 0), (State.SEALED, 1), (State.BOOTING, 1)):
        as_state(monkeypatch, state)
        machine.audit_log.write_bytes(sent(check(), ago_s=auditing.STALE_S + 60) + more)
        done, out, _ = kimbox("audit", "tiny")
        assert (code, code == 1) == (done, "STALE" in out)
        machine.audit_log.write_bytes(sent(check(), ago_s=auditing.STALE_S - 60) + more)
        assert 0 == kimbox("audit", "tiny")[0]


def test_only_the_end_of_the_log_is_read(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much a guest writes."""
    machine = makemachine.make_machine()
    as_state(monkeypatch, State.SEALED)
    machine.audit_log.write_bytes(lines(check()))
    os.truncate(machine.audit_log, 1 << 40)  # a hole
    with refused(StateError, "report-missing", name="tiny"):
        auditing.report(machine)


@pytest.mark.parametrize(
    ("expected", "at"),
    [
        ("at 2099-01-01T00:00:00Z by its own clock, which is ahead", "2099-01-01T00:00:00Z"),
        ("at 2026-13-99T99:99:99Z by its own clock", "2026-13-99T99:99:99Z"),
    ],
)
def test_the_clock_of_a_guest_is_not_believed(
    world: Path, monkeypatch: pytest.MonkeyPatch, expected: str, at: str
) -> None:
    """What is in the future, or no time, is told as what it is, and the report may be old. Seconds do not matter."""
    machine = makemachine.make_machine()
    as_state(monkeypatch, State.SEALED)
    machine.audit_log.write_bytes(lines(check(), header=HEADER | {"at": at}))
    audited = auditing.report(machine)
    assert (f"sent by the box {expected}", True) == (audited.source, audited.stale)
    machine.audit_log.write_bytes(sent(check(), ago_s=-30))
    audited = auditing.report(machine)
    assert ("sent by the box 0 min ago", False) == (audited.source, audited.stale)
