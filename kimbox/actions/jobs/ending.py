"""The end of a job: what ends its guest early is a verdict, its results are written, and its machine is removed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import attrs

from kimbox.actions import observe, stop
from kimbox.actions.jobs import results
from kimbox.actions.jobs.request import Done, Job
from kimbox.drivers import registry
from kimbox.errors import GuestError
from kimbox.jobs.result import Outcome, Verdict
from kimbox.log import log
from kimbox.machine.record import Ended

#: Timeout of the shutdown of a guest that was interrupted, in seconds.
SHUTDOWN_TIMEOUT_S = 30.0


@contextlib.contextmanager
def ending(job: Job) -> Iterator[None]:
    """Ends the guest of a job at the end of the block. A failure of the box, or Ctrl-C, is a verdict."""
    try:
        yield
    except GuestError as error:
        job.verdict = Verdict(Outcome.HOST, reason=error.message)
    except KeyboardInterrupt:
        if not job.machine.exists:
            raise  # there is no result yet
        log.warn("interrupted: the guest shuts down, and what the job has written is kept")
        job.verdict = Verdict(Outcome.INTERRUPTED, reason="interrupted by the user")
    finally:
        job.ended_at = time.monotonic()
        try:
            _end_guest(job)
        except BaseException:
            _keep(job)
            raise


def _end_guest(job: Job) -> None:
    """Ends the guest, if it runs. One whose user interrupted it shuts down, so that what it has written is complete."""
    machine = job.machine
    if not machine.exists:
        return
    if machine.running:
        is_orderly = job.verdict is not None and job.verdict.outcome in (Outcome.INTERRUPTED, Outcome.HOST)
        is_forced = not is_orderly or job.stopping.is_set()
        registry.of(machine).stop(observe.state(machine), force=is_forced, timeout_s=SHUTDOWN_TIMEOUT_S)
    try:
        registry.of(machine).tidy()
        machine.write_record(attrs.evolve(machine.record(), ended=Ended.HALTED))
    except OSError as error:  # a full disk: the results are on the disk of the job, and are written without these
        log.warn(f"{machine.name} is not tidied up: {error}")


def write_results(job: Job) -> Done:
    """Writes the results of a job, and returns them. Decides whether its machine stays.

    It stays if the results cannot be written, because the disk is full for example, and `job recover` can do it later.
    """
    machine = job.machine
    try:
        done = results.write(job)
    except BaseException:
        _keep(job)
        raise
    machine.unfinished_job.unlink(missing_ok=True)
    if job.terms.keep and done.verdict.outcome is not Outcome.OK:
        job.is_kept = True
        log.info(f"the machine {machine.name} is kept: `kimbox destroy {machine.name}` removes it")
    return done


def _keep(job: Job) -> None:
    """Keeps the machine of a job whose results are not written, if the job has begun."""
    if job.machine.unfinished_job.exists():
        job.is_kept = True
        log.warn(f"the results are not written yet: `kimbox job recover {job.machine.name}` does it")


def dispose(job: Job) -> None:
    """Removes the machine of a job, unless it is to stay."""
    if not job.is_kept:
        stop.destroy(job.machine)
        job.machine.lock_file.unlink(missing_ok=True)  # no other process uses this name
