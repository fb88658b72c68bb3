"""Boots QEMU for a job, and follows it until the program has ended, the guest has ended, or must be ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kimbox.drivers.accelerator import Accelerator
from kimbox.errors import KimboxError
from kimbox.files import read_end
from kimbox.guest.events import Event, Tail
from kimbox.jobs import heartbeat
from kimbox.jobs.heartbeat import END_MARGIN_S, EVENT, PANIC, PROGRESS, Heartbeat
from kimbox.jobs.order import CREDENTIAL, PLACEHOLDER, Order
from kimbox.jobs.result import RESTARTED, Outcome, Report, Verdict
from kimbox.run import detach, run

#: Returns the exit code of QEMU, or None while it runs.
Poll = Callable[[], int | None]

#: Interval between two reads of events, in seconds.
POLL_INTERVAL_S = 0.1

#: Maximum time until QEMU has ended after it was killed, in seconds.
END_TIMEOUT_S = 30.0

#: Names of the files in the folder of the guest, as the driver has them.
DISK, SCRATCH, JOB_DISK, EVENTS, CONSOLE, QEMU_LOG, PID = (
    "disk.qcow2", "scratch.qcow2", "job.raw", "events.jsonl", "serial.log", "qemu.log", "qemu.pid"
)  # fmt: skip

#: Number of bytes at the end of the console that are read.
CONSOLE_BYTES = 256 << 10


@dataclass(slots=True)
class Run:
    """A guest that runs. Times are those of time.monotonic()."""

    folder: Path
    job_id: str
    began_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    ended_at: float | None = None
    reported: Report | None = None
    #: The verdict, where it does not depend on the reports of the guest.
    verdict: Verdict | None = None


def create_disks(order: Order, folder: Path, image: Path) -> None:
    """Creates the disk of the guest, an overlay on the image, and its scratch space. Raises CommandError."""
    make = ["qemu-img", "create", "-q", "-f", "qcow2"]
    run([*make, "-b", image.resolve(), "-F", "qcow2", folder / DISK, str(order.disk_bytes)])
    if order.scratch_bytes is not None:
        run([*make, folder / SCRATCH, str(order.scratch_bytes)])


def run_guest(order: Order, folder: Path, job_id: str, accelerator: Accelerator) -> Run:
    """Boots the guest, and returns when it has ended. QEMU ends with this process."""
    credential = f"{CREDENTIAL}{PLACEHOLDER}"
    words = [word.replace(PLACEHOLDER, job_id, 1) if word.startswith(credential) else word for word in order.command]
    for name in (EVENTS, CONSOLE):
        (folder / name).touch()
    command = ["qemu-system-x86_64", *accelerator.arguments(), *words]
    poll = detach(command, log=folder / QEMU_LOG, cwd=folder, dies_with_parent=True)
    guest = Run(folder, job_id)
    try:
        _follow(guest, order, poll)
    finally:
        guest.ended_at = time.monotonic()
        _end(folder, poll)
    return guest


def _follow(guest: Run, order: Order, poll: Poll) -> None:
    """Sets `Run.reported`, and `Run.verdict` if the verdict does not depend on the reports."""
    events, beat = Tail(guest.folder / EVENTS), Heartbeat(heartbeat.SILENCE_S, None)
    while True:
        is_alive = poll() is None
        new = events.read()
        for event in new:
            beat = _take(guest, event, beat)
        if guest.verdict or guest.reported:
            return
        if is_alive:  # also while there is more to read: a guest can write without end
            guest.verdict = _verdict_on_time(guest, order, beat)
        if new:
            continue
        if not is_alive:
            guest.verdict = _verdict_on_end(guest)
            return
        time.sleep(POLL_INTERVAL_S)


def _take(guest: Run, event: Event, beat: Heartbeat) -> Heartbeat:
    """Takes an event of the guest. Returns the heartbeat, which begins when the program starts."""
    if event.name != EVENT or event.text("id") != guest.job_id:
        return beat
    if guest.started_at is None:
        guest.started_at = time.monotonic()
        beat = Heartbeat(heartbeat.SILENCE_S, guest.started_at)
    beat.hear(event, time.monotonic())
    if event.text("status") not in PROGRESS:
        guest.reported = Report.from_event(event)
        if guest.reported.result == RESTARTED:
            guest.verdict = Verdict(Outcome.GUEST_DIED, reason=guest.reported.reason)
    return beat


def _verdict_on_time(guest: Run, order: Order, beat: Heartbeat) -> Verdict | None:
    """Returns the verdict if a guest that runs must be ended."""
    now_s = time.monotonic()
    if guest.started_at is None:
        if now_s - guest.began_at < order.boot_timeout_s:
            return None
        return Verdict(Outcome.HOST, reason=f"the box did not become ready within {order.boot_timeout_s:.0f} s")
    if order.timeout_s is not None and now_s > guest.started_at + order.timeout_s + END_MARGIN_S:
        return Verdict(Outcome.TIMEOUT, reason=f"the guest did not end the program after {order.timeout_s} s")
    if beat.is_silent(now_s):
        reason = f"the guest hangs: it has sent no sign of life for {beat.limit_s:.0f} s"
        return Verdict(Outcome.GUEST_DIED, reason=reason)
    return None


def _verdict_on_end(guest: Run) -> Verdict:
    """Returns the verdict on a guest that has ended without a report."""
    console = read_end(guest.folder / CONSOLE, CONSOLE_BYTES).decode(errors="replace")
    panic = next((line for line in console.splitlines() if PANIC in line), None)
    if panic:
        return Verdict(Outcome.GUEST_DIED, reason=f"the kernel of the guest ended: {panic[panic.index(PANIC) :][:300]}")
    if guest.started_at is not None:
        return Verdict(Outcome.GUEST_DIED, reason="the guest ended before it reported how the program ended")
    log = read_end(guest.folder / QEMU_LOG, CONSOLE_BYTES).decode(errors="replace").strip()
    return Verdict(Outcome.HOST, reason=f"QEMU ended before the box was ready: {log[-300:]}".rstrip(": "))


def _end(folder: Path, poll: Poll) -> None:
    """Kills QEMU, unless it has ended. What the guest has written to its disks is complete: its report follows that."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):  # QEMU writes the file at its start
            os.kill(int((folder / PID).read_text()), signal.SIGKILL)
        time.sleep(POLL_INTERVAL_S)


def version() -> str:
    """Returns the version of QEMU in words; empty if it cannot be asked for."""
    try:
        return run(["qemu-system-x86_64", "--version"]).stdout.split("\n")[0][:100]
    except KimboxError:
        return ""
