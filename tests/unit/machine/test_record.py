"""The record of a machine: its box, purpose, driver and plan, in the current format and in format 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import makemachine
import ownhome
import pytest
from makemachine import RECORD
from refused import refused

from kimbox.errors import KimboxError, StateError, UsageError
from kimbox.machine.folder import Machine, machine_of, machines_of
from kimbox.machine.record import GuestKind, Known, PlanDigests, Purpose, PutBack, Record

home = ownhome.home  # a fixture

#: The fields that format 1 did not have.
NEW = ("box", "purpose", "driver", "plan")


def as_format_1(machine: Machine, **changes: Any) -> None:
    """Writes the record of a machine as an older version of kimbox wrote it."""
    value = machine.record().as_json() | {"format": 1} | changes
    machine.record_file.write_text(json.dumps({key: v for key, v in value.items() if key not in NEW}))


@pytest.mark.parametrize("purpose", Purpose)
def test_box_purpose_driver_and_plan_are_read_back(purpose: Purpose) -> None:
    """From the file, which has the number of the format."""
    plan = PlanDigests("a" * 64, "b" * 64, "c" * 64)
    machine = makemachine.make_machine("other", box="tiny", purpose=purpose, driver="vagrant", plan=plan)
    record = machine.record()
    assert ("tiny", purpose, "vagrant", plan) == (record.box, record.purpose, record.driver, record.plan)
    assert 2 == json.loads(machine.record_file.read_text())["format"]


def test_the_kind_of_a_guest_is_read_back() -> None:
    """And the instance of cloud-init. A record of an older kimbox has neither. A wrong form is an error."""
    record = makemachine.make_machine("other", seed="kimbox-1", guest=GuestKind.CLOUD_INIT).record()
    assert ("kimbox-1", GuestKind.CLOUD_INIT) == (record.seed, record.guest)
    plain = RECORD.as_json()
    older = Record.parse({k: v for k, v in plain.items() if k not in ("seed", "guest")}, Path("machine.json"))
    assert (None, None) == (older.seed, older.guest)
    for change in ({"seed": 1}, {"seed": "a b"}, {"seed": "a" * 65}, {"guest": "other"}, {"guest": 1}):
        with refused(KimboxError, "file-damaged", path="machine.json"):
            Record.parse(plain | change, Path("machine.json"))


def test_what_is_known_of_a_sealed_box_is_read_back() -> None:
    """A record of an older kimbox has neither. A wrong form is an error."""
    known, put_back = Known(("a" * 64,), ""), PutBack("2026-11-28T17:00:00Z", ("/boot/x",))
    record = makemachine.make_machine("other", known=known, put_back=put_back).record()
    assert (known, put_back) == (record.known, record.put_back)
    plain = RECORD.as_json()
    older = Record.parse({k: v for k, v in plain.items() if k not in ("known", "put_back")}, Path("machine.json"))
    assert (None, None) == (older.known, older.put_back)
    for change in (
        {"known": {"manifests": ["x"], "caches": ""}},
        {"known": {"manifests": [], "caches": "x"}},
        {"known": {"caches": ""}},
        {"put_back": {"at": 1, "changed": []}},
        {"put_back": {"at": "", "changed": [1]}},
    ):
        with refused(KimboxError, "file-damaged", path="machine.json"):
            Record.parse(plain | change, Path("machine.json"))


@pytest.mark.parametrize(
    "change",
    [
        {"box": None},
        {"driver": 5},
        {"purpose": "fun"},
        {"purpose": None},
        {"plan": "abc"},
        {"plan": {"spec": "a", "lock": "b"}},
        {"plan": {"spec": "a", "lock": "b", "manifest": 3}},
    ],
)
def test_a_damaged_field_is_an_error(change: dict[str, Any]) -> None:
    """Also a field that is missing."""
    (key,) = change
    for value in (RECORD.as_json() | change, {k: v for k, v in RECORD.as_json().items() if k != key}):
        with refused(KimboxError, "file-damaged", path="machine.json"):
            Record.parse(value, Path("machine.json"))


def test_format_1_is_a_box_of_its_own_name() -> None:
    """The next write has the current format and the same content."""
    machine = makemachine.make_machine()
    as_format_1(machine)
    record = machine.record()
    assert attrs.evolve(RECORD, box="tiny", purpose=Purpose.BOX, driver="qemu", plan=None) == record
    machine.write_record(record)
    assert record == machine.record()


def test_format_1_with_a_vagrantfile_is_run_by_vagrant() -> None:
    """Format 1 has no other sign of the driver."""
    machine = makemachine.make_machine()
    as_format_1(machine)
    machine.vagrantfile.touch()
    assert "vagrant" == machine.record().driver


@pytest.mark.parametrize(
    ("name", "shipped", "spec", "expected"),
    [
        ("tiny-maintain", None, "kimbox: 1\nname: tiny\n", ("tiny", Purpose.MAINTENANCE)),
        ("tiny-maintain", None, None, ("tiny", Purpose.MAINTENANCE)),
        ("tiny-maintain", "tiny", None, ("tiny", Purpose.MAINTENANCE)),
        ("tiny-maintain", None, "kimbox: 1\nname: tiny-maintain\n", ("tiny-maintain", Purpose.BOX)),
        ("tiny-maintain", None, "name: 'tiny-maintain'  # mine\n", ("tiny-maintain", Purpose.BOX)),
        ("tiny-maintain", None, "steps: [{name: tiny-maintain}]\n", ("tiny", Purpose.MAINTENANCE)),
        ("tiny-maintain", "tiny-maintain", None, ("tiny-maintain", Purpose.BOX)),
        ("maintain", None, None, ("maintain", Purpose.BOX)),
    ],
)
def test_format_1_and_the_name_of_a_maintained_machine(
    tmp_path: Path, name: str, shipped: str | None, spec: str | None, expected: tuple[str, Purpose]
) -> None:
    """The suffix shows the purpose, unless the spec itself has that name."""
    source = tmp_path / "kimbox.yaml"
    if spec is not None:
        source.write_text(spec)
    machine = makemachine.make_machine(name)
    as_format_1(machine, source=str(source), shipped=shipped)
    record = machine.record()
    assert expected == (record.box, record.purpose)


def test_a_box_may_have_several_machines() -> None:
    """Each is found by its purpose. Machines of another box, and damaged records, are ignored."""
    assert Machine("tiny") == machine_of("tiny")
    assert Machine("tiny-maintain") == machine_of("tiny", Purpose.MAINTENANCE)
    made = {
        name: makemachine.make_machine(name, box="tiny", purpose=purpose)
        for name, purpose in {"tiny": Purpose.BOX, "tiny-maintain": Purpose.MAINTENANCE, "run-1": Purpose.JOB}.items()
    }
    makemachine.make_machine("other")
    makemachine.make_machine("broken").record_file.write_text("{")
    assert [made["run-1"], made["tiny"], made["tiny-maintain"]] == machines_of("tiny")
    assert made["tiny"] == machine_of("tiny")
    assert made["tiny-maintain"] == machine_of("tiny", Purpose.MAINTENANCE)
    assert made["run-1"] == machine_of("tiny", Purpose.JOB)
    makemachine.make_machine("run-2", box="tiny", purpose=Purpose.JOB)
    with refused(StateError, "several-machines", name="tiny", purpose="job", machines="run-1, run-2"):
        machine_of("tiny", Purpose.JOB)
    with refused(UsageError, "bad-name", name="x" * 60, purpose="maintenance"):
        machine_of("x" * 60, Purpose.MAINTENANCE)
