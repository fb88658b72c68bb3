"""A job whose kimbox was killed: its results are written by the next one. The guest is a file with events."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import attrs
import makemachine
import pytest
from jsonschema import Draft202012Validator
from makejobrecord import A_LOCK, make_folder, record_of
from makemachine import event, tell

from kimbox.actions import stop
from kimbox.actions.jobs import ending, results, unfinished
from kimbox.actions.jobs.request import Job
from kimbox.drivers import registry
from kimbox.errors import GuestError, KimboxError, StateError
from kimbox.files import write_json
from kimbox.jobs.disk import pack
from kimbox.jobs.record import RECORD, record_schema
from kimbox.jobs.result import Outcome
from kimbox.jobs.terms import Inputs, Terms, Unfinished
from kimbox.jobs.vet import Vetting
from kimbox.lock.lockfile import format_lock
from kimbox.machine.folder import Machine

ID = "0123456789ab"
STATUS = {"id": ID, "state": "ended", "code": "exited", "exit": 3, "result": "exit-code", "full": "no"}


class Ended:
    """A driver of a guest that has ended."""

    def listen(self) -> bool:
        return False

    def tidy(self) -> None:
        pass


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose guest has ended its job, and whose kimbox was killed before that."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(registry, "of", lambda machine: Ended())
    monkeypatch.setattr(stop, "destroy", lambda machine: remove(machine))
    machine = makemachine.make_machine("tiny-job-1")
    folder = make_folder(tmp_path / "job")
    (folder / "output").mkdir()
    (folder / "output/result").write_text("42\n")
    (folder / "run-job.status").write_text(json.dumps(STATUS))
    pack.pack(folder, machine.job_disk)
    keys = ("kimbox", "box", "image", "manifest", "lock", "commits", "settings", "folder", "folder_name", "input")
    known = record_of(folder, tmp_path)
    terms = Terms(folder, tmp_path / "out", ("a b",), 60, Vetting(names=("*.csv",)))
    inputs = Inputs({key: known[key] for key in keys}, format_lock(A_LOCK))
    Unfinished(ID, terms, inputs).write(machine.unfinished_job)
    tell(machine, event("job", id=ID, status="ended", code="exited", exit=3, result="exit-code", full="no"))
    return machine


def remove(machine: Machine) -> None:
    for path in machine.folder.iterdir():
        path.unlink()
    machine.folder.rmdir()


def test_what_is_kept_is_read_as_it_was_written(machine: Machine) -> None:
    """With its patterns, and its paths from the root."""
    kept = Unfinished.read(machine.unfinished_job)
    assert (ID, ("a b",), ("*.csv",)) == (
        kept.id,
        kept.terms.arguments,
        kept.terms.vetting and kept.terms.vetting.names,
    )
    assert kept.terms.output.is_absolute()
    assert 0o600 == machine.unfinished_job.stat().st_mode & 0o777


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "terms": 3, "id": 1, "inputs": {}}'])
def test_a_damaged_record_is_an_error(machine: Machine, text: str) -> None:
    """It names the file, and the machine stays."""
    machine.unfinished_job.write_text(text)
    with pytest.raises(KimboxError, match=machine.unfinished_job.name) as caught:
        unfinished.recover(machine)
    assert caught.value.code in ("bad-record", "file-damaged")
    assert machine.exists


def test_the_results_are_those_of_job_run(machine: Machine, tmp_path: Path) -> None:
    """Verdict, files, lock and record; the vetting of job.yaml applies. The machine is gone."""
    assert [machine] == unfinished.stored()
    done = unfinished.recover(machine)
    assert (Outcome.FAILED, 3) == (done.verdict.outcome, done.verdict.exit)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    Draft202012Validator(record_schema()).validate(record)
    assert (ID, ["a b"], None) == (record["id"], record["arguments"], record["run_s"])
    assert any("result" in entry for entry in record["quarantine"])
    assert format_lock(A_LOCK) == (tmp_path / "out/kimbox.lock").read_text()
    assert not machine.folder.exists()
    assert [] == unfinished.stored()


def test_results_that_are_written_are_kept(machine: Machine, tmp_path: Path) -> None:
    """kimbox was killed after it had written them, and before it removed the machine."""
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / RECORD, {"id": ID, "verdict": "ok", "exit": 0, "signal": None, "reason": None})
    assert Outcome.OK is unfinished.recover(machine).verdict.outcome
    assert not machine.folder.exists()


def test_an_output_of_something_else_is_not_replaced(machine: Machine, tmp_path: Path) -> None:
    """The machine stays, and the results can go elsewhere."""
    (tmp_path / "out").mkdir()
    with pytest.raises(StateError, match="already exists"):
        unfinished.recover(machine)
    assert machine.exists
    unfinished.recover(machine, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / RECORD).is_file()


def test_results_that_cannot_be_written_stay_in_the_machine(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk of the host loses nothing: the same command works when there is room."""
    with monkeypatch.context() as patch:

        def write(job: object) -> None:
            raise KimboxError("the disk is full", code="disk-full")

        patch.setattr(results, "write", write)
        with pytest.raises(KimboxError, match="the disk is full"):
            unfinished.recover(machine)
    assert machine.unfinished_job.exists()
    assert Outcome.FAILED is unfinished.recover(machine).verdict.outcome


def test_a_full_disk_at_the_end_of_a_job(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record cannot be written: the results are. What fails otherwise leaves the machine, with its results."""
    kept = Unfinished.read(machine.unfinished_job)
    job = Job(kept.terms, kept.id, machine, kept.inputs)

    def full(_: object, record: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Machine, "write_record", full)
    with ending.ending(job):
        pass
    assert not job.is_kept

    def fail(_: object) -> None:
        raise GuestError("QEMU does not end", code="timeout")

    monkeypatch.setattr(ending, "_end_guest", fail)
    with pytest.raises(GuestError), ending.ending(job):
        pass
    assert job.is_kept


def test_the_same_output_is_refused_until_then(machine: Machine, tmp_path: Path) -> None:
    """The error names both ways to go on. Another output is no problem."""
    unfinished.refuse(tmp_path / "other")
    with pytest.raises(StateError) as caught:
        unfinished.refuse(tmp_path / "out")
    assert "job-unfinished" == caught.value.code
    assert "kimbox job recover tiny-job-1" in str(caught.value.hint)


def test_a_machine_without_a_job_is_named(machine: Machine) -> None:
    """It is not touched."""
    other = makemachine.make_machine("tiny")
    with pytest.raises(StateError, match="tiny has no unfinished job"):
        unfinished.find("tiny")
    assert attrs.asdict(other.record())
    assert machine == unfinished.find(machine.name)
