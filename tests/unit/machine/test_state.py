"""An observation in, state out; and what a verb says where the state does not allow it."""

from __future__ import annotations

from pathlib import Path

import attrs
import makemachine
import pytest

from kimbox.actions.observe import observe, state
from kimbox.drivers.qemu import process
from kimbox.errors import StateError
from kimbox.guest.events import Event, parse_line
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended
from kimbox.machine.state import ALLOWED, INSTEAD, Observation, State, derive, require

THERE = Observation(exists=True, running=False, paused=False, suspended=False, events=(), ended_by_us=False)
RUNNING = attrs.evolve(THERE, running=True)


def told(*names: str, last_kind: str = "provision") -> tuple[Event, ...]:
    """Events of these names; a failure is of this kind."""
    lines = [makemachine.event(name, **({"kind": last_kind} if name == "failed" else {})) for name in names]
    return tuple(event for line in lines if (event := parse_line(line.encode())))


@pytest.mark.parametrize(
    ("expected", "known"),
    [
        (State.ABSENT, attrs.evolve(THERE, exists=False)),
        (State.ABSENT, attrs.evolve(RUNNING, exists=False)),
        (State.HALTED, attrs.evolve(THERE, ended_by_us=True)),
        (State.HALTED, attrs.evolve(THERE, shut_down=True)),
        (State.HALTED, attrs.evolve(THERE, shut_down=True, events=told("booting", "ready"))),
        (State.CRASHED, THERE),
        (State.CRASHED, attrs.evolve(THERE, events=told("booting", "ready"))),
        (State.CRASHED, attrs.evolve(THERE, shut_down=True, events=told("failed", last_kind="boot"))),
        (State.CRASHED, attrs.evolve(THERE, shut_down=True, events=told("ready", "failed", last_kind="snapshot"))),
        (State.HALTED, attrs.evolve(THERE, shut_down=True, events=told("booting", "failed"))),
        (State.FAILED, attrs.evolve(RUNNING, snapshot_full=True, events=told("booting", "ready"))),
        (State.PAUSED, attrs.evolve(RUNNING, snapshot_full=True, paused=True, events=told("booting", "ready"))),
        (State.SUSPENDED, attrs.evolve(THERE, suspended=True, ended_by_us=True, events=told("booting", "ready"))),
        (State.READY, attrs.evolve(RUNNING, suspended=True, events=told("booting", "ready"))),
        (State.PAUSED, attrs.evolve(RUNNING, paused=True, events=told("booting", "ready"))),
        (State.BOOTING, RUNNING),
        (State.BOOTING, attrs.evolve(RUNNING, events=told("booting", "hostkey", "sshd"))),
        (State.PROVISIONING, attrs.evolve(RUNNING, events=told("booting", "waiting"))),
        (State.PROVISIONING, attrs.evolve(RUNNING, events=told("booting", "provisioning", "step", "sshd"))),
        (State.READY, attrs.evolve(RUNNING, events=told("booting", "provisioning", "step", "ready"))),
        (State.READY, attrs.evolve(RUNNING, events=told("booting", "ready", "sshd", "something_new"))),
        (State.FAILED, attrs.evolve(RUNNING, events=told("booting", "provisioning", "step", "failed"))),
        (State.PROVISIONING, attrs.evolve(RUNNING, events=told("booting", "failed", "provisioning"))),
        (State.READY, attrs.evolve(RUNNING, ended_by_us=True, events=told("ready"))),
    ],
)
def test_the_state_follows_from_the_observation(expected: State, known: Observation) -> None:
    """One table."""
    assert derive(known) is expected


@pytest.mark.parametrize("verb", ALLOWED)
@pytest.mark.parametrize("now", State)
def test_a_refusal_says_what_to_do_instead(verb: str, now: State) -> None:
    """Every verb is allowed, or refused with a command that names the box."""
    if now in ALLOWED[verb]:
        require(verb, "tiny", now)
        return
    with pytest.raises(StateError, match=f"cannot {verb} tiny: ") as refused:
        require(verb, "tiny", now)
    assert refused.value.hint is not None
    assert "`kimbox " in refused.value.hint
    assert " tiny`" in refused.value.hint
    assert f"kimbox {verb} tiny" not in refused.value.hint


def test_every_state_has_a_way_out() -> None:
    """No state is without advice, and `up` and `status` are never refused."""
    assert set(State) == set(INSTEAD)
    for now in State:
        require("up", "tiny", now)
        require("status", "tiny", now)


def test_running_and_reachable() -> None:
    """Whoever is reachable runs."""
    assert {s for s in State if s.reachable} < {s for s in State if s.running}


def test_an_observation_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process, record, events and console decide; what is not there is absent."""
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
        for word, still in {"running": False, "paused": True, "io-error": True, None: False}.items():
            monkeypatch.setattr(process, "status", lambda _, word=word: word)
            assert observe(machine).paused is still
