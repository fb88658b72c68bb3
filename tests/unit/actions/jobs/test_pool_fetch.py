"""What comes back from a pool: complete, once, and from a node that is trusted no more than a guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from makejobrecord import A_LOCK, make_folder, record_of
from refused import refused

from kimbox import paths
from kimbox.actions.jobs.pool import fetch as fetching
from kimbox.actions.jobs.pool import watch
from kimbox.errors import KimboxError, StateError
from kimbox.jobs.backends.htcondor.bindings import Schedd
from kimbox.jobs.backends.htcondor.states import JobState, State
from kimbox.jobs.backends.htcondor.submission import Submission, find, stored
from kimbox.jobs.disk import pack
from kimbox.jobs.order import CONSOLE, EVENTS, REPORT
from kimbox.jobs.record import record_schema
from kimbox.jobs.vet import Vetting
from kimbox.lock.lockfile import write_lock

#: Keys of job.json that come from the runner or are worked out from the results.
OF_THE_RUN = ("id", "verdict", "exit", "signal", "status", "reason", "arguments", "folder", "output", "ended_at",
              "ready_s", "run_s", "memory_peak_bytes", "cpu_s", "skipped", "quarantine", "console", "start",
              "restarted", "provenance")  # fmt: skip

REPORTED: dict[str, Any] = {
    "id": "0123456789ab", "verdict": "ok", "exit": 0, "signal": None, "reason": "", "ready_s": 1.5, "run_s": 2.0,
    "host": "node", "accelerator": "tcg", "qemu": "QEMU 10", "folder": f"sha256:{'3' * 64}", "size_bytes": 1 << 20,
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    return tmp_path


def submitted(home: Path, items: tuple[str, ...] | None, ended: int, vetting: Vetting | None = None) -> Submission:
    """A submission whose first jobs have ended, as the event log has it."""
    job, folder = make_folder(home / "job"), paths.submissions_dir() / "0123456789ab"
    folder.mkdir(parents=True)
    static = {key: value for key, value in record_of(job, home / "none").items() if key not in OF_THE_RUN}
    facts = {"folder": f"sha256:{'4' * 64}", "arguments": ["--step"], "box": "tiny", "image": "1", "manifest": "2"}
    one = Submission(folder, folder.name, "2026-01-01T00:00:00Z", job, home / "out", items, facts, static, "vanilla",
                     vetting, 7)  # fmt: skip
    one.write()
    write_lock(folder / "kimbox.lock", A_LOCK)
    heads = [(number, process) for process in range(ended) for number in ("001", "005")]
    one.event_log.write_text(
        "".join(f"{n} (007.{p:03}.000) 2026-01-01 00:00:00 Job host: <n>\n...\n" for n, p in heads)
    )
    return one


def returned(one: Submission, process: int, report: object, files: dict[str, bytes] | None = None) -> None:
    """Writes the disk that a node has sent."""
    source = one.folder / f"source-{process}"
    (source / "output").mkdir(parents=True)
    for name, data in (files or {"output/result": b"result\n", "run-job.log": b"done\n"}).items():
        (source / name).write_bytes(data)
    (source / REPORT).write_text(report if isinstance(report, str) else json.dumps(report))
    (source / CONSOLE).write_bytes(b"last \x1b[31mline\n")
    (source / EVENTS).write_bytes(b"junk\n")
    pack.pack(source, one.results(process), room=pack.Room(size_bytes=0), is_job=False)


def record_in(folder: Path) -> dict[str, Any]:
    record = dict(json.loads((folder / "job.json").read_text()))
    Draft202012Validator(record_schema()).validate(record)
    return record


def test_one_job(home: Path) -> None:
    """The results are those that `job run` leaves, with where the job ran. A second call changes nothing."""
    one = submitted(home, None, 1)
    returned(one, 0, REPORTED)
    fetched = fetching.fetch(one)
    assert 0 == fetched.missing
    record = record_in(home / "out")
    assert ("ok", 0, ["--step"]) == (record["verdict"], record["status"], record["arguments"])
    assert (7, 0, 1, "node", "tcg") == tuple(
        record["pool"][key] for key in ("cluster", "process", "starts", "host", "accelerator")
    )
    assert 1 == record["output"]["count"]
    assert b"result\n" == (home / "out/output/result").read_bytes()
    assert {"job.json", "kimbox.lock", "output", "run-job.log"} == {path.name for path in (home / "out").iterdir()}
    assert [] == fetching.fetch(one).new


def test_a_sweep_gets_what_has_ended(home: Path) -> None:
    """The others are missing until they have ended; results that are there are not written again."""
    one = submitted(home, ("a", "b"), 1)
    returned(one, 0, REPORTED)
    fetched = fetching.fetch(one)
    assert (1, 1) == (len(fetched.new), fetched.missing)
    log = one.event_log.read_text()
    one.event_log.write_text(log + log.replace(".000.000)", ".001.000)"))
    returned(one, 1, REPORTED | {"verdict": "failed", "exit": 3})
    fetched = fetching.fetch(one)
    assert (1, 0) == (len(fetched.new), fetched.missing)
    assert (["--step", "b"], 3) == (fetched.new[0].record["arguments"], record_in(home / "out/b")["exit"])
    assert 2 == len((home / "out/results.jsonl").read_text().splitlines())


def test_vetting_is_that_of_this_host(home: Path) -> None:
    """A result that does not pass goes to quarantine, as with `job run`."""
    one = submitted(home, None, 1, Vetting(names=("*.csv",)))
    returned(one, 0, REPORTED)
    (done,) = fetching.fetch(one).new
    assert ("quarantined", 119) == (done.record["verdict"], done.record["status"])
    assert (home / "out/quarantine/result").exists()


@pytest.mark.parametrize("report", ["", "[]", "{}", '{"verdict": "splendid"}', "[" * 5000, '{"verdict": ["ok"]}'])
def test_a_report_that_is_none_is_no_success(home: Path, report: str) -> None:
    """The verdict is `lost`."""
    one = submitted(home, None, 1)
    returned(one, 0, report)
    (done,) = fetching.fetch(one).new
    assert ("lost", 124) == (done.record["verdict"], done.record["status"])
    assert "lost" == record_in(home / "out")["verdict"]


@pytest.mark.parametrize("wrong", [{"host": "x" * 300}, {"ready_s": "soon"}, {"folder": "../x"}, {"skipped": [1]}])
def test_a_report_with_other_values_is_no_success(home: Path, wrong: dict[str, Any]) -> None:
    """The verdict is `lost`, with the key; the other jobs of a sweep are fetched."""
    one = submitted(home, ("a", "b"), 2)
    returned(one, 0, REPORTED | wrong)
    returned(one, 1, REPORTED)
    first, second = fetching.fetch(one).new
    assert ("lost", "ok") == (first.record["verdict"], second.record["verdict"])
    assert str(*wrong) in first.record["reason"]
    assert "lost" == record_in(home / "out/a")["verdict"]


def test_a_disk_that_is_none_is_lost(home: Path) -> None:
    """A node that sends something else harms nothing."""
    one = submitted(home, None, 1)
    one.results(0).write_bytes(b"\xff" * 4096)
    (done,) = fetching.fetch(one).new
    assert "lost" == done.record["verdict"]


def test_a_submission_is_found_again(home: Path) -> None:
    """By its cluster, its id, its folder, and as the last one. The record is read as it was written."""
    one = submitted(home, ("a", "\udcff"), 0, Vetting(names=("*",), kinds=("text",), max_bytes=3, command=("./c",)))
    assert [one] == stored()
    assert one == find("7") == find(one.id) == find(None) == find(str(one.folder))
    with refused(StateError, "submission-not-found", submission="8"):
        find("8")
    (one.folder / "submission.json").write_text("{}")
    assert [] == stored()
    with refused(KimboxError, "bad-record"):
        find(str(one.folder))


def test_the_states_of_a_remote_cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is not in the queue has ended if its results are here, and was removed if they are not."""
    import attrs

    one = attrs.evolve(submitted(home, ("a", "b", "c"), 0), schedd=Schedd("pool"))
    returned(one, 1, REPORTED)
    monkeypatch.setattr(Schedd, "states", lambda _self, _cluster: {0: JobState(0, State.RUNNING, 1)})
    assert [State.RUNNING, State.DONE, State.REMOVED] == [state.state for state in watch.states_of(one)]


def test_a_schedd_that_restarts_ends_no_watch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again. One that has never answered is an error at once."""
    import attrs

    one = attrs.evolve(submitted(home, None, 0), schedd=Schedd("pool"))
    down = KimboxError("down", code="pool-unreachable")
    answers: list[dict[int, JobState] | KimboxError] = [
        {0: JobState(0, State.RUNNING, 1)}, down, down, {0: JobState(0, State.DONE, 2)},
    ]  # fmt: skip

    def states(_self: Schedd, _cluster: int) -> dict[int, JobState]:
        answer = answers.pop(0)
        if isinstance(answer, KimboxError):
            raise answer
        return answer

    monkeypatch.setattr(Schedd, "states", states)
    monkeypatch.setattr(watch, "ASK_INTERVAL_S", 0)
    assert [(State.RUNNING, 1), (State.DONE, 2)] == [(job.state, job.starts) for (job,) in watch.watch(one)]
    answers.append(down)
    with refused(KimboxError, "pool-unreachable"):
        next(watch.watch(one))


def test_a_cluster_whose_number_was_lost_is_found_by_its_mark(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kimbox was killed between the submission and its record."""
    import attrs

    one = attrs.evolve(submitted(home, None, 0), schedd=Schedd("pool"), cluster=None)
    one.event_log.unlink()
    monkeypatch.setattr(Schedd, "find", lambda _self, _mark: None)
    with refused(StateError, "submission-not-found"):
        watch.located(one)
    monkeypatch.setattr(Schedd, "find", lambda _self, mark: 12 if mark == one.id else None)
    assert 12 == watch.located(one).cluster == find(one.id).cluster


#: The status that a box writes to the disk of a job.
STATUS = {"id": "", "state": "ended", "code": "exited", "exit": 3, "result": "exit-code", "full": "no",
          "memory_peak_bytes": 4096, "cpu_ns": 1_000_000_000}  # fmt: skip


@pytest.mark.parametrize(("state", "expected"), [("ended", ("failed", 3, 1.0)), ("started", ("guest-died", 122, 1.0))])
def test_the_disk_of_the_vm_universe(home: Path, state: str, expected: tuple[str, int, float]) -> None:
    """It is the disk of the job itself, and has the status that the box has written."""
    import attrs

    one = attrs.evolve(submitted(home, None, 1), universe="vm")
    one = attrs.evolve(one, static={**one.static, "folders": [f"sha256:{'6' * 64}"]})
    source = make_folder(home / "disk")
    (source / "output").mkdir()
    (source / "output/result").write_bytes(b"result\n")
    (source / "run-job.status").write_text(json.dumps(STATUS | {"state": state}))
    pack.pack(source, one.results(0))
    (done,) = fetching.fetch(one).new
    record = record_in(home / "out")
    assert expected == (record["verdict"], record["status"], record["cpu_s"])
    assert (f"sha256:{'6' * 64}", 1) == (record["folder"], record["output"]["count"])
    assert {"job.json", "kimbox.lock", "output"} == {path.name for path in done.output.iterdir()}
