"""Follows a job in its guest: shows its output, takes its reports, and notices a guest that died or has hung."""

from __future__ import annotations

import time

from kimbox.actions.jobs.request import Job
from kimbox.actions.progress import Output
from kimbox.drivers import registry
from kimbox.drivers.base import SHUTDOWN_BYTES, SHUTDOWN_LINES
from kimbox.files import read_end
from kimbox.guest.events import Event, Tail
from kimbox.jobs import heartbeat
from kimbox.jobs.heartbeat import END_MARGIN_S, EVENT, PANIC, PROGRESS, Heartbeat
from kimbox.jobs.result import RESTARTED, Outcome, Report, Verdict
from kimbox.log import log
from kimbox.machine.console import CONSOLE_BYTES, SHOWN_LINES, console_lines
from kimbox.machine.folder import Machine

#: Interval between two reads of events and output, in seconds.
POLL_INTERVAL_S = 0.05


def follow(job: Job) -> None:
    """Waits until the guest has reported the end of the program, has ended, or must be ended.

    Sets `Job.reported`, and `Job.verdict` if the verdict does not depend on the reports.
    """
    driver, limit_s = registry.of(job.machine), job.terms.timeout_s
    events, output = Tail(job.machine.events_file), Output(job.machine.job_log)
    beat = Heartbeat(heartbeat.SILENCE_S, time.monotonic())
    deadline = None if limit_s is None else time.monotonic() + limit_s + END_MARGIN_S
    while True:
        is_alive = driver.listen()
        new = events.read()
        for event in new:
            _take(job, event, beat)
        is_shown = not job.is_one_of_many and output.show_new(log.guest)
        if job.verdict:
            return
        if is_alive and job.reported and not job.terms.keep and not is_shown:
            job.is_finished = True
            return
        if is_alive:  # also while there is more to read: a guest can write without end
            _check_limits(job, beat, deadline)
        if new or is_shown or job.verdict:
            continue
        if not is_alive:
            if job.reported is None and not has_shut_down(job.machine):
                job.verdict = Verdict(Outcome.GUEST_DIED, reason=_reason_of_death(job.machine))
            return
        log.now("waiting for the end of the job")
        time.sleep(POLL_INTERVAL_S)


def _take(job: Job, event: Event, beat: Heartbeat) -> None:
    """Takes an event of the guest."""
    if event.name != EVENT or event.text("id") != job.id:
        return
    beat.hear(event, time.monotonic())
    if event.text("status") in PROGRESS:
        return
    job.reported = Report.from_event(event)
    if job.reported.result == RESTARTED:
        job.verdict = Verdict(Outcome.GUEST_DIED, reason=job.reported.reason)


def _check_limits(job: Job, beat: Heartbeat, deadline: float | None) -> None:
    """Sets the verdict if a guest that runs must be ended."""
    now_s = time.monotonic()
    if job.stopping.is_set():
        job.verdict = Verdict(Outcome.INTERRUPTED, reason="interrupted by the user")
    elif deadline is not None and now_s > deadline:
        reason = f"the guest did not end the program after {job.terms.timeout_s} s"
        job.verdict = Verdict(Outcome.TIMEOUT, reason=reason)
    elif beat.is_silent(now_s) and job.reported is None:
        job.verdict = _verdict_on_silence(job.machine, beat.limit_s)


def _verdict_on_silence(machine: Machine, silence_s: float) -> Verdict:
    """Returns the verdict on a guest that has sent nothing for so long."""
    found = registry.of(machine).observe(machine.record())
    if found.paused:  # QEMU stops a guest whose disk it cannot write
        return Verdict(Outcome.HOST, reason="QEMU has stopped the guest: the disk of this host may be full")
    what = "QEMU does not answer" if found.unresponsive else "the guest hangs"
    return Verdict(Outcome.GUEST_DIED, reason=f"{what}: it has sent no sign of life for {silence_s:.0f} s")


def _reason_of_death(machine: Machine) -> str:
    """Returns why a guest has ended early, as far as its console shows it."""
    lines = console_lines(read_end(machine.serial_log, CONSOLE_BYTES))  # the kernel writes its stack after the reason
    panic = next((line for line in lines if PANIC in line), None)
    if panic:
        return f"the kernel of the guest ended: {panic[panic.index(PANIC) :]}"
    return "the guest ended before it reported how the program ended"


def last_lines(machine: Machine) -> list[str]:
    """Returns the last lines of the console."""
    return console_lines(read_end(machine.serial_log, CONSOLE_BYTES))[-SHOWN_LINES:]


def has_shut_down(machine: Machine) -> bool:
    """Whether the console ends with the last line of a shutdown."""
    end = read_end(machine.serial_log, SHUTDOWN_BYTES)
    return any(line in end for line in SHUTDOWN_LINES)
