"""How a job ended: the verdict from two reports that are independent of each other. Pure.

The guest writes the status of the program to the disk of the job, and reports it with an event after the disk is
unmounted. Only if both are there and agree, the program can have succeeded. Everything else has a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from kimbox.guest.events import Event, parse_object

#: Name of the status on the disk, and the maximum number of its bytes that are read.
STATUS_FILE, MAX_STATUS_BYTES = b"run-job.status", 4096

#: What is extracted from the disk. Everything else on it is discarded.
RESULTS = ("output", "run-job.log", "run-job-failure.log")

#: Results for which the guest ran no program (provisioners/job).
CANNOT_RUN, NOT_READY, NO_DISK, RESTARTED = "cannot-run", "not-ready", "no-disk", "restarted"

#: The exit status of `kimbox job run` if a program ends with one of INFRASTRUCTURE_STATUS, and if it cannot be run.
SHADOWED_STATUS, CANNOT_RUN_STATUS = 120, 126

#: Maximum length of a reason from the guest, in characters.
MAX_REASON = 500


class Outcome(StrEnum):
    """The verdict."""

    OK = "ok"  #: the program ended with status 0, and its disk is whole
    FAILED = "failed"  #: the program ended with another status or by a signal, or it cannot be run
    TIMEOUT = "timeout"  #: the time limit was exceeded
    GUEST_DIED = "guest-died"  #: the guest crashed, restarted or ended before the program did
    OUT_OF_SPACE = "out-of-space"  #: the disk of the job is full
    LOST = "lost"  #: a report is missing, or both differ: how the program ended is not known
    HOST = "host"  #: the box did not become ready, or something failed on this host
    QUARANTINED = "quarantined"  #: the program ended with status 0, and some of its results did not pass the vetting
    INTERRUPTED = "interrupted"  #: the user ended it


#: The exit status of `kimbox job run` for what is not the program's own end.
INFRASTRUCTURE_STATUS = {
    Outcome.QUARANTINED: 119,
    Outcome.TIMEOUT: 121,
    Outcome.GUEST_DIED: 122,
    Outcome.OUT_OF_SPACE: 123,
    Outcome.LOST: 124,
    Outcome.HOST: 125,
}

#: The exit status of an interrupted command.
INTERRUPTED_STATUS = 130

#: Exit status of a command with several jobs of which one is not ok.
NOT_OK_STATUS = 1


@dataclass(frozen=True, slots=True)
class Report:
    """What one of both reports says. `code`: `exited`, `killed` or empty; `number`: exit status or signal."""

    id: str
    state: str
    code: str
    number: int | None
    result: str
    is_full: bool
    reason: str = ""
    memory_peak_bytes: int | None = None
    cpu_s: float | None = None

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Returns the report in an event `job`."""
        return cls(
            event.text("id"), event.text("status"), event.text("code"), event.number("exit"), event.text("result"),
            event.text("full") == "yes", event.text("reason")[:MAX_REASON],
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Returns the report on the disk; None if it is not one. The guest may have written anything."""
        value = parse_object(data.strip(b" \n"))
        if value is None:
            return None
        texts = {key: value.get(key) for key in ("id", "state", "code", "result", "full")}
        if not all(isinstance(text, str) for text in texts.values()):
            return None
        cpu_ns = _whole(value.get("cpu_ns"))
        return cls(
            str(texts["id"]),
            str(texts["state"]),
            str(texts["code"]),
            _whole(value.get("exit")),
            str(texts["result"]),
            texts["full"] == "yes",
            memory_peak_bytes=_whole(value.get("memory_peak_bytes")),
            cpu_s=None if cpu_ns is None else cpu_ns / 1e9,
        )

    def says_the_same(self, other: Report) -> bool:
        """Whether two reports agree on how the program ended."""
        return self._end() == other._end()

    def _end(self) -> tuple[object, ...]:
        return self.id, self.state, self.code, self.number, self.result, self.is_full


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict, the exit status or the signal of the program if they are known, and the reason otherwise."""

    outcome: Outcome
    exit: int | None = None
    signal: int | None = None
    reason: str = ""

    @property
    def status(self) -> int:
        """The exit status of `kimbox job run`: that of the program, or one of INFRASTRUCTURE_STATUS."""
        if self.outcome is Outcome.INTERRUPTED:
            return INTERRUPTED_STATUS
        if self.outcome in INFRASTRUCTURE_STATUS:
            return INFRASTRUCTURE_STATUS[self.outcome]
        if self.signal is not None:
            return 128 + self.signal
        status = CANNOT_RUN_STATUS if self.exit is None else self.exit
        return SHADOWED_STATUS if status in INFRASTRUCTURE_STATUS.values() else status


def judge(
    job_id: str, reported: Report | None, stored: Report | None, *, is_unmounted: bool, powered_off: bool
) -> Verdict:
    """Returns the verdict on a guest that has ended. `reported`: the last event; `stored`: the status on the disk.

    `is_unmounted`: the guest has unmounted the disk. `powered_off`: the guest has shut down in order.
    """
    if reported and reported.id == job_id and reported.state == "failed" and reported.result in (NOT_READY, NO_DISK):
        return Verdict(Outcome.HOST, reason=reported.reason)
    if reported and reported.id == job_id and reported.result == RESTARTED:
        return Verdict(Outcome.GUEST_DIED, reason=reported.reason)
    has_ended = [report is not None and report.state in ("ended", "failed") for report in (reported, stored)]
    if not all(has_ended) and not powered_off:
        return Verdict(Outcome.GUEST_DIED, reason="the guest ended before it reported how the program ended")
    if reported is None or not has_ended[0]:
        return Verdict(Outcome.LOST, reason="the guest did not report how the program ended")
    if stored is None or not has_ended[1]:
        return Verdict(Outcome.LOST, reason=f"the disk has no {STATUS_FILE.decode()} of a program that ended")
    if reported.id != job_id or not reported.says_the_same(stored):
        return Verdict(Outcome.LOST, reason="the event and the status on the disk differ")
    if not is_unmounted:
        return Verdict(Outcome.LOST, reason="the disk was not unmounted")
    return _of_program(reported)


def judge_alone(stored: Report | None, *, is_unmounted: bool) -> Verdict:
    """Returns the verdict on a guest of which only the disk came back, under the VM universe of HTCondor.

    There is one witness, the status on the disk: the box writes it before it unmounts the disk.
    """
    if stored is None or stored.state not in ("ended", "failed"):
        return Verdict(Outcome.GUEST_DIED, reason="the guest ended before it recorded how the program ended")
    if not is_unmounted:
        return Verdict(Outcome.LOST, reason="the disk was not unmounted")
    return _of_program(stored)


def _of_program(report: Report) -> Verdict:
    """Returns the verdict for a report that is certain."""
    if report.state == "failed":
        return Verdict(Outcome.FAILED, reason=report.reason or "the program cannot be run")
    is_exit = report.code == "exited"
    exit_status, signal = (report.number, None) if is_exit else (None, report.number)
    if report.number is None or report.code not in ("exited", "killed") or not 0 <= report.number <= 255:
        return Verdict(Outcome.LOST, reason="the guest does not know how the program ended")
    if report.result == "timeout":
        return Verdict(Outcome.TIMEOUT, exit_status, signal, "the program exceeded the time limit")
    if report.is_full:
        return Verdict(Outcome.OUT_OF_SPACE, exit_status, signal, "the disk of the job is full")
    if is_exit and report.number == 0 and report.result == "success":
        return Verdict(Outcome.OK, exit=0)
    if report.result == "oom-kill":
        return Verdict(Outcome.FAILED, signal=9, reason="the kernel ended the program because the memory is full")
    if is_exit and report.number == 0:
        return Verdict(Outcome.LOST, exit=0, reason=f"the program ended with 0, and its unit with {report.result}")
    return Verdict(Outcome.FAILED, exit_status, signal)
