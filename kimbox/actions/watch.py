"""Waits for a box: follows its events and its output until it is ready, has failed, or cannot become ready."""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs

from kimbox.actions.progress import Progress
from kimbox.drivers import registry
from kimbox.drivers.base import Driver
from kimbox.errors import GuestError
from kimbox.files import read_end
from kimbox.guest.events import Event, Tail, lines_of_step, printable
from kimbox.log import log
from kimbox.machine import keys
from kimbox.machine.console import (
    CONSOLE_BYTES,
    SHOWN_CHARACTERS,
    SHOWN_LINES,
    SNAPSHOT_FULL,
    console_lines,
    explain,
    is_fatal,
    snapshot_is_full,
)
from kimbox.machine.folder import Machine
from kimbox.machine.state import LOST_ROOT, POWERED_OFF, lost_root
from kimbox.machine.timeline import observe_loading
from kimbox.spec.model import SETUP, SETUP_TIMEOUT_S, Box

#: Timeout from the start of the machine until sshd and provisiond run, in seconds. A cold boot takes 10 s under
#: emulation and 3 s with KVM.
BOOT_TIMEOUT_S = 300.0

#: Time from the timeout of a step until the event of its end must have arrived, in seconds.
STEP_MARGIN_S = 120.0

#: Maximum number of provisionings for one manifest: two attempts that crash the box, and then the last good manifest.
PROVISIONINGS = 3

#: Minimum of the limit on all of provisioning, in seconds, if the timeouts of the box's steps are not known.
TOTAL_TIMEOUT_S = 86400.0

#: Time from a fatal line on the console until the wait ends, in seconds. An event that explains the failure better may
#: arrive within it, and a guest without a root powers itself off.
FATAL_LINE_GRACE_S = 3.0

#: Maximum time until a guest has ended that reports that it powers itself off, in seconds. QEMU may have to wait for
#: the disk of the host.
POWER_OFF_TIMEOUT_S = 30.0

#: Time without an event after which the driver is asked whether an error has stopped the guest, in seconds.
STOPPED_CHECK_S = 5.0

#: Interval between two reads of events, output and console, in seconds.
POLL_INTERVAL_S = 0.05

#: Maximum number of copies of output that a driver makes after the end of a wait.
MAX_COPIES = 20

#: Maximum number of events that are kept. In addition the last event of each other name is kept, for at most MAX_NAMES
#: names.
MAX_EVENTS = 1000
MAX_NAMES = 100

#: Size of the end of the output that is read for an error, in bytes, and the number of its last lines that are shown.
OUTPUT_TAIL_BYTES = 16 << 10
SHOWN_OUTPUT_LINES = 12

#: Maximum length of a reason from the guest in a message, in characters.
MAX_REASON = 500


@attrs.define
class Watch:
    """Follows the boot of a machine. `poll` reads once; `wait_until` reads until a condition is true."""

    machine: Machine
    #: Timeout from the start of a wait, or of a new boot, until provisioning begins, in seconds.
    boot_timeout_s: float = BOOT_TIMEOUT_S
    #: The longest timeout of any step or probe, in seconds.
    step_timeout_s: float = 3600.0
    #: Limit on all of provisioning, even if events arrive, in seconds. If the box is known: `provisioning_limit_s`.
    total_timeout_s: float = attrs.field(
        default=attrs.Factory(lambda self: max(TOTAL_TIMEOUT_S, 10 * self.step_timeout_s), takes_self=True)
    )
    #: Digest of the manifest that the guest will have at the end; empty if it may have any.
    digest: str = ""
    #: Events of the present boot, oldest first.
    events: list[Event] = attrs.field(factory=list)
    _driver: Driver = attrs.field(init=False)
    _tail: Tail = attrs.field(init=False)
    _progress: Progress = attrs.field(init=False)
    #: When the boot timeout started.
    _boot_began_at: float = attrs.field(factory=time.monotonic)
    #: When the last event arrived.
    _last_event_at: float = attrs.field(factory=time.monotonic)
    #: When the wait began.
    _wait_began_at: float = attrs.field(factory=time.monotonic)
    #: When the driver was asked last whether an error has stopped the guest.
    _stop_checked_at: float = attrs.field(default=0.0, init=False)
    _console_size: int = attrs.field(default=0, init=False)
    #: When a fatal line appeared on the console; None if there is none.
    _fatal_line_at: float | None = attrs.field(default=None, init=False)
    #: When the first output appeared on the console (time.time()); None if there is none, or if it is older than this.
    _console_at_s: float | None = attrs.field(default=None, init=False)
    _console_was_empty: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._driver = registry.of(self.machine)
        self._tail = Tail(self.machine.events_file)
        self._progress = Progress(self.machine.provision_log, self.machine.name, self.digest)

    def show_fallback(self, is_shown: bool) -> None:
        """Selects whether a fallback of the guest is shown."""
        self._progress.shows_fallback = is_shown

    def poll(self) -> list[Event]:
        """Reads and shows new events and output; returns the new events. A reboot of the guest clears `events`."""
        new = self._read_events()
        self._progress.show(new)
        return new

    def catch_up(self) -> None:
        """Reads what was written until now, without showing it."""
        while self._read_events():
            pass
        self._progress.skip()

    def _read_events(self) -> list[Event]:
        """Reads the new events, adds them to `events` and returns them. Pins a reported host key."""
        new = self._tail.read()
        for event in new:
            if self.events and event.boot != self.events[-1].boot:
                if self.last_event("provisioning"):  # provisioning crashed the box: a new boot, a new timeout
                    self._boot_began_at = time.monotonic()
                self.events.clear()
            self.events.append(event)
            self._last_event_at = time.monotonic()
            if event.name == "hostkey":
                keys.pin_host_key(self.machine, event.text("key"))
        if any(event.name == "booting" for event in new):
            observe_loading(self.machine, self.events, self._tail.offset, self._console_at_s)
        self.events = bounded(self.events)
        return new

    def last_event(self, name: str) -> Event | None:
        """Returns the last event of that name in this boot; None if there is none."""
        return next((event for event in reversed(self.events) if event.name == name), None)

    def wait_until(self, activity: str, is_done: Callable[[Watch], bool]) -> None:
        """Polls until `is_done`. `activity` is the text of the progress line.

        Raises GuestError, with the cause from events and console, if the guest fails, ends or takes too long.
        """
        self._boot_began_at = self._last_event_at = self._wait_began_at = time.monotonic()
        while True:
            is_alive = self._driver.listen()
            self.poll()
            if is_done(self) or not is_alive or lost_root(self.events):
                self._show_end()
            if failed := lost_root(self.events):
                if failed.text("kind") in POWERED_OFF:
                    self._driver.wait_until_gone(POWER_OFF_TIMEOUT_S)
                raise error_of_failure(self.machine, failed)
            if is_done(self):
                return
            is_provisioning = self.last_event("provisioning") is not None
            now = time.monotonic()
            waited_s = now - (self._last_event_at if is_provisioning else self._boot_began_at)
            limit_s = self.step_timeout_s + STEP_MARGIN_S if is_provisioning else self.boot_timeout_s
            total_s, name = now - self._wait_began_at, self.machine.name
            if is_alive and total_s > PROVISIONINGS * (self.boot_timeout_s + self.total_timeout_s):
                raise GuestError(
                    f"{name}: provisioning did not end within {total_s:.0f} s, the limit for all of its steps together",
                    code="timeout",
                    hint=f"`kimbox logs {name}` shows its output; `kimbox ssh {name}` opens a shell in the box",
                    fields={"name": name, "stage": "provisioning"},
                )
            is_late = waited_s > limit_s
            if not is_alive or is_late or self._is_fatal(now):
                code = "timeout" if is_alive and is_late else "boot-failed"
                raise self._error(is_alive=is_alive, waited_s=waited_s, code=code)
            self._check_stopped(now)
            log.now(activity)
            time.sleep(POLL_INTERVAL_S)

    def _check_stopped(self, now: float) -> None:
        """Raises GuestError (`guest-stopped`) if no event arrives because an error of the host stopped the guest."""
        if now - max(self._last_event_at, self._stop_checked_at) < STOPPED_CHECK_S:
            return
        self._stop_checked_at = now
        name = self.machine.name
        if reason := self._driver.stopped_by():
            raise GuestError(
                f"{name} was stopped: {reason}",
                code="guest-stopped",
                hint=f"if a disk is full, free some space, then `kimbox resume {name}` continues it; else `kimbox halt "
                f"--force {name}`, then `kimbox up {name}`",
                fields={"name": name, "reason": reason},
            )

    def _show_end(self) -> None:
        """Shows the output until its end, also if a driver copies it in pieces."""
        for _ in range(MAX_COPIES):
            size = self._progress.size_bytes()
            self._driver.listen()
            if self._progress.size_bytes() == size:
                break
        self._progress.finish()

    def _is_fatal(self, now: float) -> bool:
        """Whether the console has a fatal error, and no event has explained it within FATAL_LINE_GRACE_S.

        The console is read only if its size has changed. Once sshd runs, a panic is not fatal, because the box
        restarts. A full snapshot is fatal.
        """
        try:
            size = self.machine.serial_log.stat().st_size
        except OSError:
            return False
        self._console_was_empty |= size == 0
        if size != self._console_size:
            self._console_size = size
            if self._console_was_empty and self._console_at_s is None:
                self._console_at_s = time.time()
            raw = read_end(self.machine.serial_log, CONSOLE_BYTES)
            if not (snapshot_is_full(raw) if self.last_event("sshd") else is_fatal(raw, self.events)):
                self._fatal_line_at = None
            elif self._fatal_line_at is None:
                self._fatal_line_at = now
        return self._fatal_line_at is not None and now - self._fatal_line_at >= FATAL_LINE_GRACE_S

    def _error(self, *, is_alive: bool, waited_s: float, code: str) -> GuestError:
        """Returns the error with the cause and the last lines of the console. A full snapshot has its own code."""
        raw = read_end(self.machine.serial_log, CONSOLE_BYTES)
        cause = explain(raw, self.events, alive=is_alive, waited_s=waited_s)
        shown = "\n".join(f"    {line[:SHOWN_CHARACTERS]}" for line in console_lines(raw)[-SHOWN_LINES:])
        console = f"\nThe last lines of the console:\n{shown}" if shown else ""
        stage = "provisioning" if self.last_event("provisioning") else "boot"
        return GuestError(
            f"{self.machine.name}: {cause.message}{console}",
            code="snapshot-full" if cause is SNAPSHOT_FULL else code,
            hint=cause.hint_for(self.machine.name),
            fields={"name": self.machine.name, "stage": stage},
        )


def provisioning_limit_s(box: Box) -> float:
    """Returns the maximum duration of the provisioning of a box, in seconds, if each step ends within its timeout."""
    limits = [step.timeout_s for step in box.provision] + [probe.timeout_s for probe in box.probes]
    steps = len(limits) + len(box.repositories) + 2
    return sum(limits) + 2 * _setup_timeout_s(box) + steps * STEP_MARGIN_S


def longest_step_s(box: Box) -> float:
    """Returns the longest timeout of the steps and probes of a box, in seconds; at least that of setup, an hour."""
    limits = [step.timeout_s for step in box.provision] + [probe.timeout_s for probe in box.probes]
    return max([*limits, _setup_timeout_s(box), SETUP_TIMEOUT_S])


def _setup_timeout_s(box: Box) -> int:
    setup = box.repository(SETUP)
    return setup.timeout_s if setup else SETUP_TIMEOUT_S


def bounded(events: list[Event]) -> list[Event]:
    """Returns the last MAX_EVENTS events, and before them the last event of each name that is not among these."""
    if len(events) <= MAX_EVENTS:
        return events
    old, new = events[:-MAX_EVENTS], events[-MAX_EVENTS:]
    names = {event.name for event in new}
    last = {event.name: event for event in old if event.name not in names}
    kept = [event for event in old if last.get(event.name) is event]
    return kept[-MAX_NAMES:] + new


def error_of_failure(machine: Machine, event: Event) -> GuestError:
    """Returns the error of a `failed` event.

    It has the step, its exit status and the last lines of output, or the reason why the guest has no root.
    """
    name, kind, reason = machine.name, event.text("kind"), event.text("reason")[:MAX_REASON]
    if kind == "seal":
        return GuestError(
            f"{name} could not seal itself and has shut down: {reason}",
            code="sealing-failed",
            hint=f"no login is possible. `kimbox secure --unseal {name}` opens it and removes its credentials, "
            f"`kimbox destroy {name}` removes it",
            fields={"name": name},
        )
    if kind in LOST_ROOT:
        failed = "did not boot" if kind == "boot" else "lost its root"
        return GuestError(
            f"{name} {failed}: {reason or event.text('name')[:100]}",
            code="boot-failed" if kind == "boot" else "snapshot-full",
            hint=f"`kimbox up --boot resnap {name}` creates a new snapshot: changes on the old one are lost, "
            f"/persistent stays. If that fails too, `kimbox destroy {name}` and `kimbox up` create a new disk",
            fields={"name": name, "stage": "boot" if kind == "boot" else "provisioning"},
        )
    return _provisioning_error(machine, event)


def _provisioning_error(machine: Machine, event: Event) -> GuestError:
    """Returns the error of a `failed` event that reports a step of provisioning."""
    name, kind, step, reason = machine.name, event.text("kind"), event.text("name"), event.text("reason")
    output = read_end(machine.provision_log, OUTPUT_TAIL_BYTES).decode("utf-8", "replace").rstrip()
    lines = lines_of_step(output, kind, step)[-SHOWN_OUTPUT_LINES:]
    shown = "\n".join(f"    {printable(line)[:SHOWN_CHARACTERS]}" for line in lines)
    exit_status = event.number("exit")
    status = "" if exit_status is None else f" (exit status {exit_status})"
    message = f"{name}: provisioning failed at {kind} {step}"[:SHOWN_CHARACTERS] + f"{status}: {reason[:MAX_REASON]}"
    hint = f"the box still runs: `kimbox ssh {name}` opens a shell in it; then run `kimbox provision {name}`"
    if machine.record().sealed:
        hint = f"the box still runs and is sealed: `kimbox reload {name}` runs it again, `kimbox secure --unseal "
        hint += f"{name}` opens it and removes its credentials"
    fields = {"name": name, "step_kind": kind[:100], "step": step[:100], "reason": reason[:MAX_REASON]}
    if exit_status is not None:
        fields["exit"] = str(exit_status)
    return GuestError(f"{message}\n{shown}".rstrip(), code="provision-failed", hint=hint, fields=fields)


def error_of_fallback(machine: Machine, answer: Event, fallback: Event | None) -> GuestError:
    """Returns the error for a guest that has fallen back to its last good manifest.

    `answer`: the event with the result of the last good manifest. `fallback`: the event with the reason.
    """
    name, failed, good = machine.name, answer.text("wanted"), answer.text("manifest")
    reason = fallback.text("reason")[:MAX_REASON] if fallback else ""
    result = {"ready": "is ready with", "sealed": "is sealed with"}.get(answer.name, "has failed with")
    hint = f"correct it and run `kimbox up {name}`; `kimbox provision {name}` runs the same manifest again"
    if machine.record().sealed:
        hint = f"correct it; the next start, such as `kimbox reload {name}`, brings the new manifest to the sealed box"
    return GuestError(
        f"{name}: the manifest {failed[:12]} failed: {reason or 'no reason was reported'}\n"
        f"The box {result} the last good one, {good[:12]}.",
        code="manifest-failed",
        hint=hint,
        fields={"name": name, "manifest": failed, "good_manifest": good, "reason": reason, "state": answer.name},
    )
