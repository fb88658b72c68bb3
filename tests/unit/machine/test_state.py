"""The state that follows from an observation, and the error of a verb that the state does not allow."""

from __future__ import annotations

from pathlib import Path

import attrs
import makemachine
import pytest
from refused import refused

from kimbox.actions.observe import observe, state
from kimbox.drivers.qemu import process
from kimbox.errors import StateError
from kimbox.guest.events import Event, parse_line
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended
from kimbox.machine.state import ALLOWED, STATE_HINTS, Observation, State, derive, require

STOPPED = Observation(exists=True, running=False, paused=False, suspended=False, events=(), ended_by_us=False)
RUNNING = attrs.evolve(STOPPED, running=True)


def events(*names: str, last_kind: str = "provision") -> tuple[Event, ...]:
    """Events with these names. A `failed` event has the kind `last_kind`."""
    lines = [makemachine.event(name, **({"kind": last_kind} if name == "failed" else {})) for name in names]
    return tuple(event for line in lines if (event := parse_line(line.encode())))


@pytest.mark.parametrize(
    ("expected", "known"),
    [
        (State.ABSENT, attrs.evolve(STOPPED, exists=False)),
        (State.ABSENT, attrs.evolve(RUNNING, exists=False)),
        (State.HALTED, attrs.evolve(STOPPED, ended_by_us=True)),
        (State.HALTED, attrs.evolve(STOPPED, shut_down=True)),
        (State.HALTED, attrs.evolve(STOPPED, shut_down=True, events=events("booting", "ready"))),
        (State.CRASHED, STOPPED),
        (State.CRASHED, attrs.evolve(STOPPED, events=events("booting", "ready"))),
        (State.CRASHED, attrs.evolve(STOPPED, shut_down=True, events=events("failed", last_kind="boot"))),
        (
            State.CRASHED,
            attrs.evolve(STOPPED, shut_down=True, events=events("ready", "failed", last_kind="snapshot")),
        ),
        (State.HALTED, attrs.evolve(STOPPED, shut_down=True, events=events("booting", "failed"))),
        (State.FAILED, attrs.evolve(RUNNING, snapshot_full=True, events=events("booting", "ready"))),
        (State.PAUSED, attrs.evolve(RUNNING, snapshot_full=True, paused=True, events=events("booting", "ready"))),
        (
            State.SUSPENDED,
            attrs.evolve(STOPPED, suspended=True, ended_by_us=True, events=events("booting", "ready")),
        ),
        (State.READY, attrs.evolve(RUNNING, suspended=True, events=events("booting", "ready"))),
        (State.PAUSED, attrs.evolve(RUNNING, paused=True, events=events("booting", "ready"))),
        (State.BOOTING, RUNNING),
        (State.BOOTING, attrs.evolve(RUNNING, events=events("booting", "hostkey", "sshd"))),
        (State.PROVISIONING, attrs.evolve(RUNNING, events=events("booting", "waiting"))),
        (State.PROVISIONING, attrs.evolve(RUNNING, events=events("booting", "provisioning", "step", "sshd"))),
        (State.READY, attrs.evolve(RUNNING, events=events("booting", "provisioning", "step", "ready"))),
        (State.READY, attrs.evolve(RUNNING, events=events("booting", "ready", "sshd", "something_new"))),
        (State.FAILED, attrs.evolve(RUNNING, events=events("booting", "provisioning", "step", "failed"))),
        (State.PROVISIONING, attrs.evolve(RUNNING, events=events("booting", "failed", "provisioning"))),
        (State.READY, attrs.evolve(RUNNING, ended_by_us=True, events=events("ready"))),
    ],
)
def test_the_state_follows_from_the_observation(expected: State, known: Observation) -> None:
    """Each row is an observation and its state."""
    assert derive(known) is expected


@pytest.mark.parametrize("verb", ALLOWED)
@pytest.mark.parametrize("now", State)
def test_a_refusal_has_a_hint(verb: str, now: State) -> None:
    """Each verb is allowed, or the error has a hint with a command for this box, which is not the same verb."""
    if now in ALLOWED[verb]:
        require(verb, "tiny", now)
        return
    code = "box-not-found" if now is State.ABSENT else "wrong-state"
    with refused(StateError, code, verb=verb, name="tiny", state=now) as caught:
        require(verb, "tiny", now)
    assert caught.value.message.startswith(f"cannot {verb} tiny: ")
    assert caught.value.hint is not None
    assert "`kimbox " in caught.value.hint
    assert " tiny`" in caught.value.hint
    assert f"kimbox {verb} tiny" not in caught.value.hint


def test_every_state_has_a_hint() -> None:
    """And `status` is allowed in each state."""
    assert set(State) == set(STATE_HINTS)
    for now in State:
        require("status", "tiny", now)


def test_running_and_reachable() -> None:
    """Every reachable machine runs."""
    assert {s for s in State if s.reachable} < {s for s in State if s.running}


def test_an_observation_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state follows from process, record, events and console. A machine without a folder is absent."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    assert state(Machine("tiny")) is State.ABSENT
    machine = makemachine.make_machine()
    assert state(machine) is State.HALTED
    machine.write_record(attrs.evolve(machine.record(), ended=None))
    assert state(machine) is State.CRASHED
    machine.serial_log.write_bytes(b"x" * 5000 + b"\r\n[   9.1] reboot: Power down\r\n")
    assert state(machine) is State.HALTED
    machine.write_record(attrs.evolve(machine.record(), ended=Ended.SUSPENDED))
    assert observe(machine).suspended
    with makemachine.running(machine):
        for status, is_paused in {"running": False, "paused": True, "io-error": True, None: False}.items():
            monkeypatch.setattr(process, "status", lambda _, status=status: status)
            assert observe(machine).paused is is_paused
