"""The jobs of a sweep with jobs that run no guest: how many at a time, and what stops them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from refused import refused
from waiting import until

from kimbox.actions.jobs import ledger, sweep
from kimbox.actions.jobs.ledger import Ledger
from kimbox.actions.jobs.request import Done, RunRequest, Surroundings
from kimbox.actions.jobs.sweep import SweepRequest
from kimbox.errors import KimboxError
from kimbox.jobs.items import parse
from kimbox.jobs.result import Outcome, Verdict
from kimbox.jobs.tally import Tally

ITEMS = parse(b"".join(b"%d\n" % number for number in range(6)), "items")


class World:
    """Jobs that end as `verdict` says, and how many of them ran at the same time."""

    def __init__(self) -> None:
        self.verdict: Callable[[str], Outcome] = lambda item: Outcome.OK
        self.ran: list[str] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def run_one(self, request: RunRequest, around: Surroundings) -> Done:
        item = request.arguments[-1]
        with self._lock:
            self.ran.append(item)
            self._now += 1
            self.most = max(self.most, self._now)
        outcome = self.verdict(item)
        with self._lock:
            self._now -= 1
        if around.stopping.is_set() and outcome is Outcome.OK:
            outcome = Outcome.INTERRUPTED
        request.output.mkdir()
        record = {"verdict": str(outcome), "status": 0}
        (request.output / "job.json").write_text(json.dumps(record))
        return Done(Verdict(outcome), request.output, record)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(sweep, "run_one", world.run_one)
    return world


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., sweep._Sweep]]:
    """Makes a sweep that runs in the folder `out`."""
    with ledger.opened(tmp_path / "out", {}, ITEMS) as book:

        def make(**options: Any) -> sweep._Sweep:
            job = RunRequest(None, tmp_path, tmp_path / "out", ("--fixed",))  # type: ignore[arg-type]
            around = Surroundings(None, is_one_of_many=True)  # type: ignore[arg-type]
            return sweep._Sweep(SweepRequest(job, ITEMS, **options), book, around, Tally(len(ITEMS), 0.0))

        yield make


def verdicts(book: Ledger) -> dict[str, str]:
    return {item.text: record["verdict"] for item in ITEMS if (record := book.record(item))}


def test_several_at_a_time(world: World, running: Callable[..., sweep._Sweep]) -> None:
    """Never more than asked for, and as many where there is work: two jobs wait for each other."""
    both = threading.Barrier(2, timeout=30)

    def verdict(item: str) -> Outcome:
        both.wait()
        return Outcome.FAILED if item == "2" else Outcome.OK

    world.verdict = verdict
    made = running()
    sweep._work(made, ITEMS, 2)
    assert 2 == world.most
    assert sorted(item.text for item in ITEMS) == sorted(world.ran)
    assert {"2": "failed"} == {item: text for item, text in verdicts(made.ledger).items() if text != "ok"}
    assert (6, 1, 0) == (made.tally.done, made.tally.failed, made.tally.running)


def test_fail_fast(world: World, running: Callable[..., sweep._Sweep]) -> None:
    """No other job starts. One that runs is ended, and has no results: it is done again."""
    world.verdict = lambda item: Outcome.FAILED if item == "1" else Outcome.OK
    made = running(fails_fast=True)
    sweep._work(made, ITEMS, 1)
    assert ["0", "1"] == world.ran
    assert {"0": "ok", "1": "failed"} == verdicts(made.ledger)


def test_ctrl_c(world: World, running: Callable[..., sweep._Sweep], monkeypatch: pytest.MonkeyPatch) -> None:
    """The job that runs is told to end. Complete results stay, and no other job has any."""
    made = running()

    def verdict(item: str) -> Outcome:
        if item == "1":
            until("the sweep is interrupted", made.surroundings.stopping.is_set)
        return Outcome.OK

    def interrupt(running: sweep._Sweep, futures: Any) -> None:
        until("the second job runs", lambda: "1" in world.ran)
        raise KeyboardInterrupt

    world.verdict = verdict
    monkeypatch.setattr(sweep, "_await", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep._work(made, ITEMS, 1)
    assert {"0": "ok"} == verdicts(made.ledger)
    assert ["0"] == [path.name for path in made.ledger.folder.iterdir() if path.is_dir()]


def test_a_job_that_cannot_be_run(world: World, running: Callable[..., sweep._Sweep]) -> None:
    """It is the error of the sweep, as that of the next job would be."""

    def verdict(item: str) -> Outcome:
        raise KimboxError("the folder was changed", code="file-changed")

    world.verdict = verdict
    with refused(KimboxError, "file-changed"):
        sweep._work(running(), ITEMS, 1)
