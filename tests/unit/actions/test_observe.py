"""Which machines a command refuses: a sealed one, one of another purpose, one that must restart."""

from __future__ import annotations

from pathlib import Path

import attrs
import makemachine
import pytest
from refused import refused

from kimbox.actions import observe
from kimbox.errors import StateError
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose, Sealed
from kimbox.machine.state import State


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    return makemachine.make_machine()


def test_a_sealed_box(machine: Machine) -> None:
    """The error has the verb, the role and the site. A machine that does not exist is not sealed."""
    observe.refuse_sealed(machine, "provision")
    observe.refuse_sealed(Machine("missing"), "provision")
    machine.write_record(attrs.evolve(machine.record(), sealed=Sealed("worker", "example.org")))
    with refused(StateError, "box-sealed", name="tiny", verb="provision", role="worker", site="example.org") as sealed:
        observe.refuse_sealed(machine, "provision")
    assert "cannot provision tiny: it is sealed as worker of example.org" == sealed.value.message


@pytest.mark.parametrize("purpose", [purpose for purpose in Purpose if purpose is not Purpose.BOX])
def test_a_machine_of_another_purpose(machine: Machine, purpose: Purpose) -> None:
    """The error names machine, box and purpose."""
    record = attrs.evolve(machine.record(), purpose=purpose)
    observe.refuse_purpose(record, purpose)
    with refused(StateError, "wrong-purpose", name="tiny", box=record.box, purpose=str(purpose)) as failed:
        observe.refuse_purpose(record)
    assert ("kimbox maintain" in str(failed.value.hint)) == (purpose is Purpose.MAINTENANCE)


def test_a_box_that_must_restart_to_seal(machine: Machine) -> None:
    """It has its role and is still open. A box that is sealed, has no role or is being unsealed need not restart."""
    assert not observe.needs_restart_to_seal(machine, State.READY)
    machine.write_record(attrs.evolve(machine.record(), sealed=Sealed("worker", "example.org")))
    assert observe.needs_restart_to_seal(machine, State.READY)
    assert not observe.needs_restart_to_seal(machine, State.SEALED)
    machine.unseal_mark.touch()
    assert not observe.needs_restart_to_seal(machine, State.READY)
