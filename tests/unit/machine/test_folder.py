"""The folder of a machine: its record, events and locks, and the errors if it is damaged."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import attrs
import makemachine
import ownhome
import pytest
from makemachine import BOOT, NEXT_BOOT, RECORD, event, tell
from refused import refused

from kimbox.errors import KimboxError, StateError
from kimbox.files import MAX_TEXT_BYTES
from kimbox.machine import folder
from kimbox.machine.folder import Machine, machines
from kimbox.machine.record import Ended, Record
from kimbox.spec.model import Display, Network, Scratch

home = ownhome.home  # a fixture


NETWORK = Network("lan", "10.57.0.0/24", (("tiny", "10.57.0.1"), ("other", "10.57.0.2")))


@pytest.mark.parametrize("ended", [*Ended, None])
def test_a_record_is_read_back_unchanged(ended: Ended | None) -> None:
    """From its file, with every field."""
    machine = makemachine.make_machine()
    record = attrs.evolve(
        RECORD,
        ended=ended,
        shipped="tiny",
        cpus=3,
        memory_bytes=1 << 30,
        forwards={80: 1, 81: 65535},
        scratch=Scratch(1 << 30, "/staging"),
        networks=(NETWORK,),
        auto_forwards=True,
        display=Display.SPICE,
    )
    machine.write_record(record)
    assert record == machine.record()
    assert 2 == json.loads(machine.record_file.read_text())["format"]


def test_an_old_record_has_no_cpus_and_memory() -> None:
    """Old records lack cpus, memory and scratch space, and are valid."""
    machine = makemachine.make_machine()
    value = json.loads(machine.record_file.read_text())
    del value["cpus"], value["memory_bytes"], value["scratch"]
    machine.record_file.write_text(json.dumps(value))
    assert machine.record().cpus is None


@pytest.mark.parametrize(
    "change",
    [
        {"name": None},
        {"name": ...},
        {"ssh_port": "22"},
        {"ssh_port": 0},
        {"ssh_port": 70000},
        {"ssh_port": ...},
        {"forwards": []},
        {"display": "sdl"},
        {"networks": "lan"},
        {"networks": [{"name": "../x", "subnet": "10.57.0.0/24", "addresses": []}]},
        {"networks": [{"name": "lan", "subnet": "10.57.0.0/24", "addresses": [["../x", "10.57.0.1"]]}]},
        {"networks": [{"name": "lan", "subnet": "10.57.0.0/24", "addresses": [["x", "y"]]}]},
        {"scratch": "4GiB"},
        {"scratch": {"size_bytes": "4GiB", "mount": "/staging"}},
        {"scratch": {"mount": "/staging"}},
        {"forwards": {"x": 1}},
        {"forwards": {"80": None}},
        {"forwards": {"0": 80}},
        {"ended": "perhaps"},
        {"ended": ...},
        {"image": ["e"]},
        {"mac": 5},
        {"uuid": ...},
        {"format": ...},
    ],
)
def test_a_damaged_record_is_an_error_in_words(change: dict[str, Any]) -> None:
    """The error names the file, and the command that removes the machine."""
    machine = makemachine.make_machine()
    value = json.loads(machine.record_file.read_text()) | change
    machine.record_file.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}, default=str))
    with refused(KimboxError, "file-damaged", path=str(machine.record_file)) as caught:
        machine.record()
    assert "kimbox destroy tiny" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0" * 10, "x" * (5 << 20)])
def test_a_file_that_is_not_a_record(text: str) -> None:
    """It is an error that names the file, too."""
    machine = makemachine.make_machine()
    machine.record_file.write_text(text)
    code = "file-too-large" if len(text) > MAX_TEXT_BYTES else "file-damaged"
    with refused(KimboxError, code, path=str(machine.record_file)) as caught:
        machine.record()
    assert str(machine.record_file) in caught.value.message
    assert "kimbox destroy tiny" in str(caught.value.hint)


def test_a_newer_format_says_so() -> None:
    """A record of a later version of kimbox is not damaged."""
    value = RECORD.as_json() | {"format": 3}
    with refused(KimboxError, "unsupported-format", path="machine.json", format="3") as caught:
        Record.parse(value, Path("machine.json"))
    assert "machine.json has format 3; this version reads 1 to 2" == caught.value.message
    assert caught.value.hint


def test_no_machine() -> None:
    """A machine that does not exist, or whose creation was interrupted."""
    machine = Machine("tiny")
    for _ in range(2):
        assert not machine.exists
        assert not machine.running
        with refused(StateError, "box-not-found", name="tiny") as caught:
            machine.record()
        assert "kimbox up tiny" in str(caught.value.hint)
        machine.folder.mkdir(parents=True, exist_ok=True)


def test_machines_are_folders_with_a_record(home: Path) -> None:
    """Sorted by name, without machines that are incomplete, and without other files."""
    assert [] == machines()
    for name in ("zeta", "alpha", ".tmp-beta"):
        makemachine.make_machine(name)
    (home / "machines/gamma").mkdir()
    (home / "machines/alpha.lock").touch()
    assert ["alpha", "zeta"] == [machine.name for machine in machines()]


def test_the_events_of_the_last_boot() -> None:
    """Without the events of earlier boots."""
    machine = makemachine.make_machine()
    assert () == machine.boot_events()
    tell(machine, event("booting", mode="keep"), event("ready", manifest="a"))
    assert [BOOT, BOOT] == [e.boot for e in machine.boot_events()]
    tell(machine, event("booting", boot=NEXT_BOOT, mode="keep"), '{"event": "half')
    assert [("booting", NEXT_BOOT)] == [(e.name, e.boot) for e in machine.boot_events()]


def test_only_the_end_of_many_events_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost is bounded if a guest sends events without end. The first line may be incomplete."""
    machine = makemachine.make_machine()
    line = event("step", n=1, of=1, kind="provision", name="x", status="running")
    monkeypatch.setattr(folder, "EVENTS_TAIL_BYTES", 10 * len(line) + 5)
    tell(machine, event("booting", mode="keep"), *[line] * 1000)
    monkeypatch.setattr(folder, "EVENTS_HEAD_BYTES", len(event("booting", mode="keep")))
    assert ["booting", *["step"] * 10] == [e.name for e in machine.boot_events()]


def test_a_flood_does_not_change_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first events of the boot count, too, however many others follow."""
    machine = makemachine.make_machine()
    machine.data_key.write_text("0" * 64)
    line = event("hostkey", key="x")
    monkeypatch.setattr(folder, "EVENTS_TAIL_BYTES", 10 * len(line))
    monkeypatch.setattr(folder, "EVENTS_HEAD_BYTES", 20 * len(line))
    tell(machine, event("booting", mode="resnap"), event("sealed", role="worker", site="a"), *[line] * 1000)
    names = [e.name for e in machine.boot_events()]
    assert ["booting", "sealed", "hostkey"] == names[:3]
    assert len(names) < 40


def test_a_sparse_file_of_a_gigabyte_is_read_at_its_end() -> None:
    """The cost does not depend on the size of the file."""
    machine = makemachine.make_machine()
    with machine.events_file.open("wb") as file:
        file.seek(1 << 30)
        file.write(b"\n" + event("ready", manifest="a").encode())
    assert ["ready"] == [e.name for e in machine.boot_events()]


def test_a_machine_runs_while_a_process_holds_its_run_lock() -> None:
    """A file alone is not enough."""
    machine = makemachine.make_machine()
    machine.pid_file.write_text("1")
    machine.run_lock.touch()
    assert not machine.running
    with makemachine.running(machine):
        assert machine.running
    assert not machine.running


def test_one_kimbox_at_a_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process gets an error. The lock is for one machine, and an error in the block releases it."""
    monkeypatch.setattr(folder, "LOCK_WAIT_S", 0.0)
    machine = Machine("tiny")
    outcomes: list[str] = []

    def second() -> None:
        try:
            with Machine("tiny").locked():
                outcomes.append("locked")
        except StateError as error:
            outcomes.append(f"{error.code}: {error.message}")
        with Machine("other").locked():
            outcomes.append("other")

    with machine.locked():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert ["busy: another kimbox process is at work on the box tiny", "other"] == outcomes
    with pytest.raises(KeyboardInterrupt), machine.locked():
        raise KeyboardInterrupt
    with machine.locked():
        assert (home / "machines").stat().st_mode & 0o777 == 0o700
