"""The shipped pipeline with a real beanstalkd and sshd: no job is lost, and a second result of a job is marked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import makepipeline
import pytest
from makepipeline import Pipeline, beanstalk, jobs
from waiting import until

SHIPPED: list[dict[str, Any]] = json.loads((makepipeline.RUNNER / "jobs.json").read_text())

#: One job of each lattice.
FEW = [next(entry for entry in SHIPPED if entry["lattice"] == lattice) for lattice in ("diamond", "fcc", "hcp")]
DIAMOND, FCC, HCP = (entry["job"] for entry in FEW)


@pytest.fixture
def few(tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with three jobs."""
    with makepipeline.pipeline(tmp_path, FEW) as made:
        yield made


def wait_until_done(made: Pipeline, count: int) -> None:
    """Waits until this number of jobs have a result and the queue is empty."""
    until("every job has a result", lambda: len(made.results()) == count)
    until("the queue is empty", lambda: made.queued() == 0)


def test_twenty_jobs_over_several_models_and_lattices_are_done_once(tmp_path: Path) -> None:
    """Each result has its values and the box of its worker. The director sends the progress to the host."""
    assert (20, 20) == (len(SHIPPED), len({entry["job"] for entry in SHIPPED}))
    assert len({entry["model"] for entry in SHIPPED}) >= 4
    assert set(jobs.LATTICES) == {entry["lattice"] for entry in SHIPPED}
    with makepipeline.pipeline(tmp_path, SHIPPED) as made:
        made.start_all()
        wait_until_done(made, 20)
        until("the event of the last job", lambda: made.last_event() == "jobs total=20 done=20 failed=0 duplicates=0")
        assert 20 == len(made.computed())
        assert {} == made.duplicates()
        assert [] == list(made.incoming.iterdir())
        for entry in SHIPPED:
            result = made.results()[entry["job"]]
            assert ("done", False, 1, "worker") == tuple(
                result[k] for k in ("status", "duplicate", "attempt", "worker")
            )
            assert {"a": entry["expected"]["a"], "e": entry["expected"]["e"]} == result["values"]
            assert ({"name": "a-box"}, "a stand-in") == (result["box"], result["lammps"])
            assert entry["model"] == result["asked"]["model"]


@pytest.mark.parametrize("victim", ["director", "gateway", "link", "queue", "worker"])
def test_no_job_is_lost_if_a_program_is_killed(few: Pipeline, victim: str) -> None:
    """A worker finishes its job if another program is killed, and the job is not computed again.

    The director compares the queue once only, so that the worker must remove its job itself.
    """
    (few.here / "hold").write_text("fcc\n")
    few.start_all("--compare-every", "1000")
    until("a job waits", lambda: any(line.endswith("fcc") for line in few.computed()))
    few.kill(victim)
    if victim == "gateway":
        until("the gateway does not listen", lambda: not makepipeline.answers(few.ssh_port))
    (few.here / "hold").unlink()
    getattr(few, f"start_{victim}")()
    if victim == "gateway":  # as systemd does
        few.kill("link")
        few.start_link()
    wait_until_done(few, 3)
    assert {"done"} == {result["status"] for result in few.results().values()}
    assert {} == few.duplicates()
    assert 3 + (victim == "worker") == len(few.computed())


def test_every_job_is_done_after_a_reset_of_both_boxes(few: Pipeline) -> None:
    """All programs are killed while jobs run. Results stay, and the other jobs are done."""
    (few.here / "hold").write_text("fcc\nhcp\n")
    few.start_all()
    until("one is done, one runs", lambda: len(few.results()) == 1 and len(few.computed()) == 2)
    kept = few.results()
    few.stop()
    (few.here / "hold").unlink()
    few.start_all()
    wait_until_done(few, 3)
    assert kept.items() <= few.results().items()
    assert {} == few.duplicates()


def test_an_empty_queue_gets_the_jobs_without_a_result(few: Pipeline) -> None:
    """The ids of a new queue start at 1, so that the director recognizes a job by its content."""
    (few.here / "hold").write_text("fcc\nhcp\n")
    few.start_all()
    until("one is done", lambda: list(few.results()) == [DIAMOND])
    for name in ("worker", "queue", "director"):
        few.kill(name)
    for file in (few.here / "queue").iterdir():
        file.unlink()
    (few.here / "hold").unlink()
    few.start_queue()
    few.start_director()
    until("two jobs are in the queue", lambda: few.output("director").count("put into the queue") == 2)
    few.kill("director")
    events_before = len(few.events())
    few.start_director()
    until("it has compared the queue", lambda: len(few.events()) > events_before)
    assert 2 == few.queued()
    few.start_worker()
    wait_until_done(few, 3)
    assert 1 == sum(line.endswith("diamond") for line in few.computed())
    assert {"done"} == {result["status"] for result in few.results().values()}


def test_a_job_that_is_missing_in_the_ledger_is_not_added_twice(few: Pipeline) -> None:
    """A director that is killed between the queue's answer and the write to its ledger recognizes the job."""
    few.start_queue()
    few.start_director()
    until("all are queued", lambda: few.output("director").count("put into the queue") == 3)
    few.kill("director")
    ledger = few.here / "state/ledger"
    ledger.write_bytes(ledger.read_bytes()[:-6])  # the last line is incomplete
    few.start_director()
    until("the ledger has it", lambda: ledger.read_bytes().endswith(b"}\n"))
    with beanstalk.Queue(("127.0.0.1", few.queue_port), jobs.TUBE) as queue:
        assert (3, None) == (few.queued(), queue.peek(4))


def test_a_job_that_two_workers_did_is_marked(tmp_path: Path) -> None:
    """A worker that is silent for too long loses its job to another. The first result counts, the second is marked."""
    with makepipeline.pipeline(tmp_path, FEW[:1]) as one:
        (one.here / "hold").write_text("diamond\n")
        one.start_status()
        one.start_queue()
        one.start_gateway()
        one.start_director("--ttr", "1")
        one.start_link()
        one.start_worker("silent", "--touch-every", "100")
        until("it has a job", lambda: len(one.computed()) == 1)
        one.start_worker("other")
        until("the other worker has it too", lambda: len(one.computed()) == 2)
        (one.here / "hold").unlink()
        wait_until_done(one, 1)
        until("the second result", lambda: len(one.duplicates()) == 1)
        (beside,) = one.duplicates().values()
        counts = one.results()[DIAMOND]
        assert (DIAMOND, True, "done") == (beside["job"], beside["duplicate"], beside["status"])
        assert {"silent", "other"} == {beside["worker"], counts["worker"]}
        assert not counts["duplicate"]
        until("the event of the duplicate", lambda: one.last_event() == "jobs total=1 done=1 failed=0 duplicates=1")


def test_a_slow_job_stays_with_its_worker(tmp_path: Path) -> None:
    """The worker regularly reports that it works, so that no other worker gets the job."""
    with makepipeline.pipeline(tmp_path, FEW[:1]) as made:
        (made.here / "hold").write_text("diamond\n")
        made.start_all("--ttr", "4")
        until("it has the job", lambda: len(made.computed()) == 1)
        with beanstalk.Queue(("127.0.0.1", made.queue_port), jobs.TUBE) as queue:
            assert queue.reserve(6) is None
        (made.here / "hold").unlink()
        wait_until_done(made, 1)
        assert 1 == len(made.computed())


def test_a_job_that_fails_is_tried_three_times(few: Pipeline) -> None:
    """This is so too if the queue is killed between attempts. The result has the reason. The other jobs are done."""
    (few.here / "fail").write_text("diamond\n")
    few.start_all()
    # The queue keeps the count of failures: killed before it has written the first one down, it allows one more.
    with beanstalk.Queue(("127.0.0.1", few.queue_port), jobs.TUBE) as queue:
        until("the queue has counted the first failure", lambda: queue.counts(1).get("releases") == 1)
    few.kill("queue")
    few.start_queue()
    until("every job has a result", lambda: len(few.results()) == 3)
    failed = few.results()[DIAMOND]
    assert ("failed", None, "LAMMPS gave no result (exit status 1)") == (
        failed["status"], failed["values"], failed["reason"],
    )  # fmt: skip
    assert ["a warning", "LAMMPS (a stand-in)", "ERROR: no such crystal"] == failed["tail"]
    assert 3 == sum(line.endswith("diamond") for line in few.computed())
    until("the others are done", lambda: few.last_event() == "jobs total=3 done=2 failed=1 duplicates=0")
    until("it is buried", lambda: few.queued() == 1)


def test_lammps_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """Its job has failed, with the time that it had."""
    with makepipeline.pipeline(tmp_path, FEW[:1]) as made:
        (made.here / "hold").write_text("diamond\n")
        made.start_queue()
        made.start_gateway()
        made.start_director()
        made.start_link()
        made.start_worker("worker", "--timeout", "0.3")
        until("it has a result", lambda: len(made.results()) == 1)
        assert "LAMMPS did not end within 0.3 s" == made.results()[DIAMOND]["reason"]


def test_the_link_and_the_last_job_reach_the_host(few: Pipeline) -> None:
    """A worker reports the ages of the last answer and of the last job. Without a link, the first one grows."""

    def last(name: str) -> int:
        """The last value of a field, or -1."""
        values = re.findall(rf"{name}=(\d+)", "\n".join(few.events()))
        return int(values[-1]) if values else -1

    few.start_status()
    few.start_queue()
    few.start_gateway()
    few.start_director()
    few.start_link()
    few.start_worker("worker", "--status", str(few.here / "status"), "--status-every", "0.2")
    wait_until_done(few, 3)
    until("the age of the last job", lambda: last("last_s") >= 0)
    few.kill("link")
    until("the age of the link grows", lambda: last("link_s") >= 2)
    assert last("last_s") >= last("link_s")
    few.start_link()
    until("the link is new", lambda: last("link_s") in (0, 1))
