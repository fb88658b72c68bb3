"""kimbox job run --each: one job for each item, several at the same time, each in a clone of one template.

A result is complete when its folder has its name, so a sweep that is killed at any point goes on with what is missing.
Its guests end with kimbox. The machines that they leave are removed by the next start of the sweep, or by `prune`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import attrs

from kimbox.actions import stop
from kimbox.actions.clones import template as making
from kimbox.actions.jobs import ledger, provenance
from kimbox.actions.jobs.ledger import NO_RESULTS, Ledger
from kimbox.actions.jobs.request import Done, RunRequest, Surroundings
from kimbox.actions.jobs.run import MAX_BOX_CHARACTERS, plan_of, run_one
from kimbox.actions.watch import BOOT_TIMEOUT_S
from kimbox.files import remove_tree
from kimbox.jobs import capacity
from kimbox.jobs.disk.source import check_folder, read_folder
from kimbox.jobs.items import Item
from kimbox.jobs.result import Outcome
from kimbox.jobs.tally import Tally, duration
from kimbox.log import log
from kimbox.machine.folder import interrupted, machines
from kimbox.project.plan import Plan

#: Interval between two updates of the progress, in seconds.
UPDATE_INTERVAL_S = 0.5


@attrs.frozen
class SweepRequest:
    """The arguments of a sweep. `job.output` is the folder that has the folders of the items."""

    job: RunRequest
    items: list[Item]
    #: Maximum number of jobs at the same time; None: as many as this host bears.
    at_a_time: int | None = None
    #: Do items again whose results are not ok.
    retries_failed: bool = False
    #: Start no other job, and end those that run, when one is not ok.
    fails_fast: bool = False


@attrs.frozen
class Result:
    """An item with its job.json; None: it has no results."""

    item: Item
    record: dict[str, Any] | None

    @property
    def is_ok(self) -> bool:
        return self.record is not None and self.record["verdict"] == Outcome.OK


@attrs.frozen
class SweepDone:
    """A sweep that has ended. `ran`: the number of jobs that have run; the other results were there before."""

    output: Path
    results: list[Result]
    ran: int


@attrs.define
class _Sweep:
    """A sweep that runs."""

    request: SweepRequest
    ledger: Ledger
    surroundings: Surroundings
    tally: Tally
    #: Guards the tally and results.jsonl.
    lock: threading.Lock = attrs.field(factory=threading.Lock)


def sweep(request: SweepRequest) -> SweepDone:
    """Runs the jobs of all items that have no results yet.

    Raises the errors of `run.run`, of `ledger.opened` and of the template, and KimboxError (`file-changed`) if the
    folder of the job changes meanwhile. KeyboardInterrupt passes when the guests have ended.
    """
    job = request.job
    check_folder(job.folder)
    provenance.check_key(job.sign_key)
    plan = plan_of(job)
    digest = read_folder(job.folder).folder_digest
    facts = {
        "folder": f"sha256:{digest}",
        "arguments": list(job.arguments),
        "box": plan.box.name,
        "image": plan.image_key,
        "manifest": plan.digest,
    }
    with ledger.opened(job.output, facts, request.items) as book:
        mark = f"sweep-{book.id}"
        _remove_remains(plan.box.name, mark)
        pending = [item for item in request.items if _is_pending(book.record(item), retries=request.retries_failed)]
        book.write_lines(request.items)
        try:
            if pending:
                _run(request, plan, book, mark, pending, digest)
        finally:
            book.write_lines(request.items)
        results = [Result(item, book.record(item)) for item in request.items]
        return SweepDone(job.output, results, sum(item in pending for item in request.items))


def _is_pending(record: dict[str, Any] | None, *, retries: bool) -> bool:
    """Whether an item is to be done. `record`: its job.json, if it has one."""
    if record is None or record["verdict"] in NO_RESULTS:
        return True
    return retries and record["verdict"] != Outcome.OK


def _remove_remains(box: str, mark: str) -> None:
    """Removes the machines of a killed start of this sweep. No other process runs it now."""
    prefix = f"{box[:MAX_BOX_CHARACTERS]}-{mark}-"
    for machine in (*machines(), *interrupted()):
        if machine.name.startswith(prefix):
            log.detail(f"removing {machine.name}, which an interrupted run has left")
            stop.destroy(machine)
            machine.lock_file.unlink(missing_ok=True)


def _run(request: SweepRequest, plan: Plan, book: Ledger, mark: str, pending: list[Item], digest: str) -> None:
    """Runs the jobs of these items."""
    workers = _workers(request, plan)
    with _template(request.job, plan) as surroundings:
        around = attrs.evolve(surroundings, mark=mark, is_one_of_many=True, folder_digest=digest)
        records = [record for item in request.items if item not in pending and (record := book.record(item))]
        failed = sum(record["verdict"] != Outcome.OK for record in records)
        tally = Tally(len(request.items), time.monotonic(), len(records), failed)
        running = _Sweep(request, book, around, tally)
        if records:
            log.info(f"{len(records)} of {len(request.items)} items are done already")
        with log.step(f"running {len(pending)} jobs, {min(workers, len(pending))} at a time"):
            _work(running, pending, workers)


def _workers(request: SweepRequest, plan: Plan) -> int:
    """Returns the number of jobs at the same time: what is asked for, but not more than the host bears."""
    most = capacity.at_a_time(plan.box.cpus, plan.box.memory_bytes)
    if request.at_a_time is not None and request.at_a_time > most:
        log.warn(f"-j {request.at_a_time}: processors and memory of this host are enough for {most} at a time")
    return min(request.at_a_time or most, most)


@contextlib.contextmanager
def _template(job: RunRequest, plan: Plan) -> Iterator[Surroundings]:
    """The surroundings of the jobs, with the template unless they are cold."""
    if job.is_cold:
        yield Surroundings(plan)
        return
    with making.leased(plan, timeout_s=BOOT_TIMEOUT_S, runs_jobs=True) as template:
        yield Surroundings(plan, template)


def _work(running: _Sweep, pending: list[Item], workers: int) -> None:
    """Runs the jobs. If one cannot be run, or the user interrupts, ends those that run and raises that."""
    with ThreadPoolExecutor(workers, thread_name_prefix="job") as pool:
        begin = log.attach(lambda item: _run_item(running, item))
        futures = [pool.submit(begin, item) for item in pending]
        try:
            _await(running, set(futures))
        except BaseException:
            running.surroundings.stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            if any(future.running() for future in futures):
                log.warn(
                    "ending the guests; results that are complete are kept, and the same command goes on with the rest"
                )
            raise


def _await(running: _Sweep, futures: set[Future[None]]) -> None:
    """Waits for the jobs, and shows how far they are. Raises the error of a job that could not be run."""
    while futures:
        done, futures = wait(futures, UPDATE_INTERVAL_S, FIRST_COMPLETED)
        for future in done:
            future.result()
        log.now(running.tally.text(time.monotonic()))


def _run_item(running: _Sweep, item: Item) -> None:
    """Runs the job of an item, and keeps its results."""
    around, request, book = running.surroundings, running.request, running.ledger
    if around.stopping.is_set():
        return
    with running.lock:
        running.tally.running += 1
    began_s = time.monotonic()
    job = attrs.evolve(request.job, arguments=(*request.job.arguments, item.text), output=book.target(item))
    done = run_one(job, around)
    with running.lock:
        _keep(running, item, done, time.monotonic() - began_s)


def _keep(running: _Sweep, item: Item, done: Done, duration_s: float) -> None:
    """Keeps the results of an item, and shows its verdict."""
    if done.verdict.outcome is Outcome.INTERRUPTED:
        remove_tree(done.output)
        running.tally.running -= 1
        return
    running.ledger.adopt(item)
    running.ledger.append(item, done.record)
    is_ok = done.verdict.outcome is Outcome.OK
    running.tally.end(time.monotonic(), is_ok=is_ok)
    verdict = str(done.verdict.outcome) + (f" ({done.verdict.reason})" if done.verdict.reason else "")
    log.info(f"{item.text}: {verdict}, {duration(duration_s)}; {running.tally.text(time.monotonic())}")
    if not is_ok and running.request.fails_fast:
        log.warn(f"{item.text} is not ok: no other job starts, and those that run are ended")
        running.surroundings.stopping.set()
