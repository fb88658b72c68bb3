"""The shipped pipeline, with a real beanstalkd and a real sshd: no job is lost, and none done twice without a mark."""

from __future__ import annotations

import json
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


def finished(made: Pipeline, count: int) -> None:
    """Waits until so many jobs have a result and nothing is left to do."""
    until("every job has a result", lambda: len(made.results()) == count)
    until("the queue is empty", lambda: made.queued() == 0)


def test_twenty_jobs_over_several_models_and_lattices_are_done_once(tmp_path: Path) -> None:
    """Each with its values and with what its worker is made of; the host hears how far it is."""
    assert (20, 20) == (len(SHIPPED), len({entry["job"] for entry in SHIPPED}))
    assert len({entry["model"] for entry in SHIPPED}) >= 4
    assert set(jobs.LATTICES) == {entry["lattice"] for entry in SHIPPED}
    with makepipeline.pipeline(tmp_path, SHIPPED) as made:
        made.start_all()
        finished(made, 20)
        until("the host knows", lambda: made.last_event() == "jobs total=20 done=20 failed=0 duplicates=0")
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
def test_whatever_is_killed_while_a_job_runs_nothing_is_lost(few: Pipeline, victim: str) -> None:
    """A worker that outlives the others finishes, and what it had is not done again.

    The director looks at the queue once only: each worker removes its own.
    """
    (few.here / "hold").write_text("fcc\n")
    few.start_all("--compare-every", "1000")
    until("a job waits", lambda: any(line.endswith("fcc") for line in few.computed()))
    few.kill(victim)
    if victim == "gateway":
        until("the link has gone with it", lambda: not makepipeline.answers(few.ssh_port))
    (few.here / "hold").unlink()
    getattr(few, f"start_{victim}")()
    if victim == "gateway":  # as systemd would
        few.kill("link")
        few.start_link()
    finished(few, 3)
    assert {"done"} == {result["status"] for result in few.results().values()}
    assert {} == few.duplicates()
    assert 3 + (victim == "worker") == len(few.computed())


def test_a_reset_of_both_boxes_leaves_every_job_to_be_done(few: Pipeline) -> None:
    """Everything at once, in the middle: what was done stays, the rest is done."""
    (few.here / "hold").write_text("fcc\nhcp\n")
    few.start_all()
    until("one is done, one runs", lambda: len(few.results()) == 1 and len(few.computed()) == 2)
    kept = few.results()
    few.stop()
    (few.here / "hold").unlink()
    few.start_all()
    finished(few, 3)
    assert kept.items() <= few.results().items()
    assert {} == few.duplicates()


def test_a_queue_that_lost_its_memory_gets_what_is_not_done(few: Pipeline) -> None:
    """Ids begin anew there: a job is known by what it holds."""
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
    until("they are there again", lambda: few.output("director").count("put into the queue") == 2)
    few.kill("director")
    events_before = len(few.events())
    few.start_director()
    until("it has compared once more", lambda: len(few.events()) > events_before)
    assert 2 == few.queued()
    few.start_worker()
    finished(few, 3)
    assert 1 == sum(line.endswith("diamond") for line in few.computed())
    assert {"done"} == {result["status"] for result in few.results().values()}


def test_a_job_that_the_ledger_does_not_know_is_not_put_twice(few: Pipeline) -> None:
    """A director that dies between the queue's answer and its own note finds the job again."""
    few.start_queue()
    few.start_director()
    until("all are queued", lambda: few.output("director").count("put into the queue") == 3)
    few.kill("director")
    ledger = few.here / "state/ledger"
    ledger.write_bytes(ledger.read_bytes()[:-6])  # and its last line is cut short
    few.start_director()
    until("it has noted it", lambda: ledger.read_bytes().endswith(b"}\n"))
    with beanstalk.Queue(("127.0.0.1", few.queue_port), jobs.TUBE) as queue:
        assert (3, None) == (few.queued(), queue.peek(4))


def test_a_job_that_two_workers_did_is_marked(tmp_path: Path) -> None:
    """One that is silent for too long loses its job to another; the first result counts, the second lies beside it."""
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
        until("the other got it, too", lambda: len(one.computed()) == 2)
        (one.here / "hold").unlink()
        finished(one, 1)
        until("both results are here", lambda: len(one.duplicates()) == 1)
        (beside,) = one.duplicates().values()
        counts = one.results()[DIAMOND]
        assert (DIAMOND, True, "done") == (beside["job"], beside["duplicate"], beside["status"])
        assert {"silent", "other"} == {beside["worker"], counts["worker"]}
        assert not counts["duplicate"]
        until("the host knows", lambda: one.last_event() == "jobs total=1 done=1 failed=0 duplicates=1")


def test_a_slow_job_stays_with_its_worker(tmp_path: Path) -> None:
    """It says that it is still at it, so that nobody else gets the job."""
    with makepipeline.pipeline(tmp_path, FEW[:1]) as made:
        (made.here / "hold").write_text("diamond\n")
        made.start_all("--ttr", "4")
        until("it has the job", lambda: len(made.computed()) == 1)
        with beanstalk.Queue(("127.0.0.1", made.queue_port), jobs.TUBE) as queue:
            assert queue.reserve(6) is None
        (made.here / "hold").unlink()
        finished(made, 1)
        assert 1 == len(made.computed())


def test_a_job_that_fails_is_tried_three_times(few: Pipeline) -> None:
    """Also when the queue is killed in between; then it is told why, and the others are done."""
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
