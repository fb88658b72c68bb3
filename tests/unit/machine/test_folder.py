"""The folder of a machine: what it holds, and what it says when it is damaged."""

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

from kimbox.errors import KimboxError, StateError
from kimbox.machine import folder
from kimbox.machine.folder import Machine, machines
from kimbox.machine.record import Ended, Record
from kimbox.spec.model import Scratch

home = ownhome.home  # a fixture


@pytest.mark.parametrize("ended", [*Ended, None])
def test_a_record_comes_back_as_it_was(ended: Ended | None) -> None:
    """Through its file, with every field."""
    machine = makemachine.make_machine()
    record = attrs.evolve(
        RECORD,
        ended=ended,
        shipped="tiny",
        cpus=3,
        memory_bytes=1 << 30,
        forwards={80: 1, 81: 65535},
        scratch=Scratch(1 << 30, "/staging"),
    )
    machine.write_record(record)
    assert record == machine.record()
    assert 2 == json.loads(machine.record_file.read_text())["format"]


def test_a_record_of_before_has_no_shape() -> None:
    """cpus, memory and scratch space came later; without them the record is as good."""
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
    """It names the file, and how to be rid of it."""
    machine = makemachine.make_machine()
    value = json.loads(machine.record_file.read_text()) | change
    machine.record_file.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}, default=str))
    with pytest.raises(KimboxError, match=r"machine\.json is damaged: ") as damaged:
        machine.record()
    assert "kimbox destroy" in str(damaged.value.hint)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0" * 10, "x" * (5 << 20)])
def test_a_file_that_is_no_record(text: str) -> None:
    """Neither is this a traceback."""
    machine = makemachine.make_machine()
    machine.record_file.write_text(text)
    with pytest.raises(KimboxError, match=r"machine\.json") as damaged:
        machine.record()
    assert "kimbox destroy tiny" in str(damaged.value.hint)


def test_a_newer_format_says_so() -> None:
    """A record of a later kimbox is not damaged."""
    value = RECORD.as_json() | {"format": 3}
    with pytest.raises(KimboxError, match="has format 3; this kimbox reads 2") as newer:
        Record.parse(value, Path("machine.json"))
    assert newer.value.hint


def test_no_machine() -> None:
    """Nothing there, or a folder that an interruption left, is no machine."""
    machine = Machine("tiny")
    for _ in range(2):
        assert not machine.exists
        assert not machine.running
        with pytest.raises(StateError, match="no box tiny") as absent:
            machine.record()
        assert "kimbox up tiny" in str(absent.value.hint)
        machine.folder.mkdir(parents=True, exist_ok=True)


def test_machines_are_those_that_are_whole(home: Path) -> None:
    """By name; not what is being made, not what is half removed, not a stray file."""
    assert [] == machines()
    for name in ("zeta", "alpha", ".tmp-beta"):
        makemachine.make_machine(name)
    (home / "machines/gamma").mkdir()
    (home / "machines/alpha.lock").touch()
    assert ["alpha", "zeta"] == [machine.name for machine in machines()]


def test_the_events_of_the_last_boot() -> None:
    """Those of the boots before are over."""
    machine = makemachine.make_machine()
    assert () == machine.boot_events()
    tell(machine, event("booting", mode="keep"), event("ready", manifest="a"))
    assert [BOOT, BOOT] == [e.boot for e in machine.boot_events()]
    tell(machine, event("booting", boot=NEXT_BOOT, mode="keep"), '{"event": "half')
    assert [("booting", NEXT_BOOT)] == [(e.name, e.boot) for e in machine.boot_events()]


def test_only_the_end_of_many_events_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that talks without end costs a bounded amount; the first line may be cut."""
    machine = makemachine.make_machine()
    line = event("step", n=1, of=1, kind="provision", name="x", status="running")
    monkeypatch.setattr(folder, "EVENTS_TAIL_BYTES", 10 * len(line) + 5)
    tell(machine, event("booting", mode="keep"), *[line] * 1000)
    assert ["step"] * 10 == [e.name for e in machine.boot_events()]


def test_a_sparse_file_of_a_gigabyte_is_read_at_its_end() -> None:
    """Whatever the size."""
    machine = makemachine.make_machine()
    with machine.events_file.open("wb") as file:
        file.seek(1 << 30)
        file.write(b"\n" + event("ready", manifest="a").encode())
    assert ["ready"] == [e.name for e in machine.boot_events()]


def test_running_is_a_fact_of_the_kernels() -> None:
    """A file is not enough; a lock that a process holds is."""
    machine = makemachine.make_machine()
    machine.pid_file.write_text("1")
    machine.run_lock.touch()
    assert not machine.running
    with makemachine.running(machine):
        assert machine.running
    assert not machine.running


def test_one_kimbox_at_a_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is told so; another machine is free; an error inside releases the lock."""
    monkeypatch.setattr(folder, "LOCK_WAIT_S", 0.0)
    machine = Machine("tiny")
    said: list[str] = []

    def second() -> None:
        try:
            with Machine("tiny").locked():
                said.append("in")
        except StateError as error:
            said.append(error.message)
        with Machine("other").locked():
            said.append("other")

    with machine.locked():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert ["another kimbox is at work on the box tiny", "other"] == said
    with pytest.raises(KeyboardInterrupt), machine.locked():
        raise KeyboardInterrupt
    with machine.locked():
        assert (home / "machines").stat().st_mode & 0o777 == 0o700
