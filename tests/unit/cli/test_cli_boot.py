"""Boot modes on the command line: the options, and how `status` and `up` show the events of the guest."""

from __future__ import annotations

from pathlib import Path

import attrs
import clirun
import fakedriver
import makemachine
import pytest
from clirun import Kimbox, error, result
from makemachine import NEXT_BOOT, event, tell

from kimbox.actions import stop
from kimbox.actions import up as starting
from kimbox.actions.up import UpRequest
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.state import State
from kimbox.spec.model import BootMode

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.fixture
def machine(kimbox: Kimbox, world: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of this folder's spec."""
    kimbox("init", "--name", "tiny")
    fakedriver.install(monkeypatch)
    return makemachine.make_machine(source=str(world / "work/kimbox.yaml"))


@pytest.mark.parametrize("verb", ["up", "reload"])
@pytest.mark.parametrize(
    ("options", "choice"),
    [
        ([], Choice()),
        (["--boot", "resnap"], Choice(BootMode.RESNAP)),
        (["--boot=maintain", "--once"], Choice(BootMode.MAINTAIN, once=True)),
    ],
)
def test_the_options_reach_the_start(
    kimbox: Kimbox, machine: Machine, monkeypatch: pytest.MonkeyPatch, verb: str, options: list[str], choice: Choice
) -> None:
    """`up` and `reload` pass the boot mode on. `reload` halts first."""
    requests: list[UpRequest] = []
    calls: list[str] = []

    def up(request: UpRequest) -> State:
        requests.append(request)
        return State.HALTED

    monkeypatch.setattr(starting, "up", up)
    monkeypatch.setattr(starting, "plan_restart", lambda request: request)
    monkeypatch.setattr(stop, "halt", lambda _: calls.append("halt"))
    assert 0 == kimbox(verb, *options)[0]
    assert [choice] == [request.boot for request in requests]
    assert (["halt"] if verb == "reload" else []) == calls


@pytest.mark.parametrize("verb", ["up", "reload"])
@pytest.mark.parametrize(
    ("options", "words"),
    [(["--once"], "requires --boot"), (["--boot", "pristine"], "resnap"), (["--boot"], "--boot")],
)
def test_wrong_options_leave_the_box_alone(
    kimbox: Kimbox, machine: Machine, monkeypatch: pytest.MonkeyPatch, verb: str, options: list[str], words: str
) -> None:
    """They are usage errors, and nothing is halted."""
    calls: list[object] = []
    monkeypatch.setattr(stop, "halt", calls.append)
    code, out, err = kimbox("--json", verb, *options)
    failed = error(out, verb)
    assert (2, "usage", "") == (code, failed["code"], err)
    assert words in failed["message"]
    assert [] == calls


def test_status_shows_the_snapshot(kimbox: Kimbox, machine: Machine) -> None:
    """`status` has the last fill level of this boot, and the reason why the previous boot ended; unknown is None."""
    keys = ("boot", "snapshot_percent", "died", "failure", "reason")
    tell(machine, event("booting", mode="keep"), event("snapshot", percent=70), event("snapshot", percent=85))
    with makemachine.running(machine):
        facts = result(kimbox("status", "--json")[1], "status")
        assert ["keep", 85, None, None, None] == [facts[key] for key in keys]
        assert "  snapshot    85 % full" in kimbox("status")[1].splitlines()
        tell(machine, event("booting", boot=NEXT_BOOT, mode="resnap"))
        tell(machine, event("died", boot=NEXT_BOOT, reason="its snapshot was full"), event("sshd", boot=NEXT_BOOT))
        facts = result(kimbox("status", "--json")[1], "status")
        assert ["resnap", None, "its snapshot was full", None, None] == [facts[key] for key in keys]
        assert "  previous    the boot ended: its snapshot was full" in kimbox("status")[1].splitlines()
        tell(machine, event("snapshot", boot=NEXT_BOOT, percent="many"))
        assert result(kimbox("status", "--json")[1], "status")["snapshot_percent"] is None


def test_status_shows_why_the_root_was_lost(kimbox: Kimbox, machine: Machine) -> None:
    """`status` has the reason for a box that powered itself off, and for a box whose snapshot became full."""
    tell(machine, event("failed", manifest="", kind="boot", name="root_snap", exit=1, reason="it is invalid"))
    machine.write_record(attrs.evolve(machine.record(), ended=None))
    machine.serial_log.write_bytes(b"[    5.1] reboot: Power down\r\n")
    facts = result(kimbox("status", "--json")[1], "status")
    assert ("crashed", "boot root_snap", "it is invalid") == (facts["state"], facts["failure"], facts["reason"])
    assert "  reason      it is invalid" in kimbox("status")[1].splitlines()
    tell(machine, event("booting", boot=NEXT_BOOT, mode="keep"), event("ready", boot=NEXT_BOOT, manifest="ab"))
    machine.serial_log.write_bytes(
        b"device-mapper: snapshots: Invalidating snapshot: Unable to allocate exception.\r\n"
    )
    with makemachine.running(machine):
        facts = result(kimbox("status", "--json")[1], "status")
        assert ("failed", "snapshot of root") == (facts["state"], facts["failure"])
        assert "the snapshot of root is full" in facts["reason"]


def test_maintain_mode_is_announced(kimbox: Kimbox, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status`, `up` and `reload` announce maintain mode, and no other mode."""
    monkeypatch.setattr(starting, "up", lambda _: State.READY)
    monkeypatch.setattr(starting, "plan_restart", lambda request: request)
    monkeypatch.setattr(stop, "halt", lambda _: None)
    tell(machine, event("booting", mode="maintain"), event("ready", manifest="", mode="maintain"))
    with makemachine.running(machine):
        for verb in ("status", "up", "reload"):
            assert "MAINTAIN MODE: tiny runs on the real root" in kimbox(verb)[1], verb
            assert "`kimbox reload tiny`" in kimbox(verb)[1], verb
        tell(machine, event("booting", boot=NEXT_BOOT, mode="keep"), event("ready", boot=NEXT_BOOT, manifest="ab"))
        for verb in ("status", "up", "reload"):
            assert "MAINTAIN" not in kimbox(verb)[1], verb
