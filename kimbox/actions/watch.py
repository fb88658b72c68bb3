"""Waits for a box: follows its events and its output until it is ready, has failed, or cannot become ready."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from kimbox.drivers import registry
from kimbox.drivers.base import Driver
from kimbox.errors import GuestError
from kimbox.guest.events import Event, Tail, printable
from kimbox.log import log
from kimbox.machine import keys
from kimbox.machine.console import (
    CONSOLE_BYTES,
    SHOWN_CHARACTERS,
    SHOWN_LINES,
    console_lines,
    explain,
    is_fatal,
    snapshot_is_full,
)
from kimbox.machine.folder import Machine, read_end
from kimbox.machine.state import DONE, LOST_ROOT, POWERED_OFF, lost_root
from kimbox.run import tail
from kimbox.spec.model import SETUP, SETUP_TIMEOUT_S, Box

#: From the start of the machine until sshd and provisiond run. A cold boot takes 10 s under emulation, 3 s with KVM.
BOOT_TIMEOUT_S = 300.0

#: Beyond the timeout of a step, the event of its end may take this long.
STEP_MARGIN_S = 120.0

#: Maximum number of provisionings for one manifest: two attempts that crash the box, and then the last good manifest.
PROVISIONINGS = 3

#: The shortest limit on all of provisioning, where the timeouts of the box's steps are not known.
TOTAL_TIMEOUT_S = 86400.0

#: After a fatal line on the console, an event with a better explanation is waited for this long. A guest without a root
#: powers itself off within this time.
LAST_WORDS_S = 3.0

#: A guest that reports that it powers itself off is gone within this time: QEMU may wait for the host's disk.
ENDS_S = 30.0

#: Seconds between two looks at events, output and console.
POLL_INTERVAL_S = 0.05

#: Maximum number of events that are kept. The last event of each other name is kept, too, for so many names at most.
MAX_EVENTS = 1000
MAX_NAMES = 100

#: Maximum size of the output of provisioning that is shown at one look.
OUTPUT_PIECE_BYTES = 1 << 20


@attrs.define
class Watch:
    """What was observed of a machine's boot. `look()` looks once; `until()` looks until a condition is true."""

    machine: Machine
    boot_timeout_s: float = BOOT_TIMEOUT_S
    #: The longest timeout of any step or probe, in seconds.
    step_timeout_s: float = 3600.0
    #: Limit on all of provisioning, also while events arrive: `provisioning_limit`, where the box is known.
    total_timeout_s: float = attrs.field(
        default=attrs.Factory(lambda self: max(TOTAL_TIMEOUT_S, 10 * self.step_timeout_s), takes_self=True)
    )
    events: list[Event] = attrs.field(factory=list)
    _driver: Driver = attrs.field(init=False)
    _tail: Tail = attrs.field(init=False)
    _output: Output = attrs.field(init=False)
    _started: float = attrs.field(factory=time.monotonic)
    #: When the last event arrived.
    _last_event: float = attrs.field(factory=time.monotonic)
    _begun: float = attrs.field(factory=time.monotonic)
    _console_size: int = attrs.field(default=0, init=False)
    #: When a fatal line appeared on the console.
    _hopeless_at: float | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._driver = registry.of(self.machine)
        self._tail = Tail(self.machine.events_file)
        self._output = Output(self.machine.provision_log)

    def look(self) -> list[Event]:
        """Reads and shows what is new; returns the new events. A reboot of the guest clears the list of events."""
        new = self._take()
        for event in new:
            _show(event)
        self._output.pass_on(_show_line)
        return new

    def catch_up(self) -> None:
        """Reads what was written up to now, and shows nothing of it."""
        while self._take():
            pass
        self._output.skip()

    def _take(self) -> list[Event]:
        new = self._tail.read()
        for event in new:
            if self.events and event.boot != self.events[-1].boot:
                if self.seen("provisioning"):  # provisioning crashed the box: the boot timeout starts again
                    self._started = time.monotonic()
                self.events.clear()
            self.events.append(event)
            self._last_event = time.monotonic()
            if event.name == "hostkey":
                keys.pin_host_key(self.machine, event.text("key"))
        self.events = bounded(self.events)
        return new

    def seen(self, name: str) -> Event | None:
        """The last event of that name in this boot."""
        return next((event for event in reversed(self.events) if event.name == name), None)

    def until(self, what: str, done: Callable[[Watch], bool]) -> None:
        """Looks until `done`. Raises GuestError, explained from the console, if the guest ends or takes too long."""
        self._started = self._last_event = self._begun = time.monotonic()
        while True:
            alive = self._driver.listen()
            self.look()
            if failed := lost_root(self.events):
                if failed.text("kind") in POWERED_OFF:
                    self._driver.wait_until_gone(ENDS_S)
                raise failure(self.machine, failed)
            if done(self):
                return
            provisioning = self.seen("provisioning") is not None
            now = time.monotonic()
            waited = now - (self._last_event if provisioning else self._started)
            limit = self.step_timeout_s + STEP_MARGIN_S if provisioning else self.boot_timeout_s
            if alive and now - self._begun > PROVISIONINGS * (self.boot_timeout_s + self.total_timeout_s):
                raise GuestError(
                    f"{self.machine.name}: provisioning did not end within {now - self._begun:.0f} s, more than all "
                    "of its steps together may take",
                    hint="see `kimbox logs`; look inside: `kimbox ssh`",
                )
            if not alive or waited > limit or self._is_hopeless(now):
                self.fail(alive=alive, waited_s=waited)
            log.now(what)
            time.sleep(POLL_INTERVAL_S)

    def _is_hopeless(self, now: float) -> bool:
        """Whether the console shows a fatal error, and no event has explained it within LAST_WORDS_S.

        The console is read only when it has grown. Once sshd runs, a panic is not fatal, as the box restarts; a full
        snapshot is.
        """
        try:
            size = self.machine.serial_log.stat().st_size
        except OSError:
            return False
        if size != self._console_size:
            self._console_size = size
            raw = read_end(self.machine.serial_log, CONSOLE_BYTES)
            if not (snapshot_is_full(raw) if self.seen("sshd") else is_fatal(raw, self.events)):
                self._hopeless_at = None
            elif self._hopeless_at is None:
                self._hopeless_at = now
        return self._hopeless_at is not None and now - self._hopeless_at >= LAST_WORDS_S

    def fail(self, *, alive: bool, waited_s: float) -> None:
        """Raises GuestError with the cause and the console's last lines."""
        raw = read_end(self.machine.serial_log, CONSOLE_BYTES)
        cause = explain(raw, self.events, alive=alive, waited_s=waited_s)
        shown = "\n".join(f"    {line[:SHOWN_CHARACTERS]}" for line in console_lines(raw)[-SHOWN_LINES:])
        said = f"\nThe console's last lines:\n{shown}" if shown else ""
        raise GuestError(f"{self.machine.name}: {cause.message}{said}", hint=cause.hint)


def provisioning_limit(box: Box) -> float:
    """The longest time, in seconds, that provisioning of a box may take if each step keeps to its own timeout."""
    limits = [step.timeout_s for step in box.provision] + [probe.timeout_s for probe in box.probes]
    steps = len(limits) + len(box.repositories) + 2
    return sum(limits) + 2 * _setup_timeout(box) + steps * STEP_MARGIN_S


def longest_step(box: Box) -> float:
    """The longest timeout, in seconds, of a step that provisioning runs in a box; an hour at least."""
    limits = [step.timeout_s for step in box.provision] + [probe.timeout_s for probe in box.probes]
    return max([*limits, _setup_timeout(box), SETUP_TIMEOUT_S])


def _setup_timeout(box: Box) -> int:
    setup = box.repository(SETUP)
    return setup.timeout_s if setup else SETUP_TIMEOUT_S


def bounded(events: list[Event]) -> list[Event]:
    """The last MAX_EVENTS events, and before them the last event of each name that is not among these."""
    if len(events) <= MAX_EVENTS:
        return events
    old, new = events[:-MAX_EVENTS], events[-MAX_EVENTS:]
    names = {event.name for event in new}
    last = {event.name: event for event in old if event.name not in names}
    kept = [event for event in old if last.get(event.name) is event]
    return kept[-MAX_NAMES:] + new


class Output:
    """Shows the output of provisioning, line by line, as the file grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""

    def skip(self) -> None:
        """Skips what the file holds now."""
        with contextlib.suppress(OSError):
            self._offset = self.path.stat().st_size

    def pass_on(self, show: Callable[[str], None]) -> None:
        """Shows the complete lines that are new."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset, self._rest = 0, b""
                file.seek(self._offset)
                data = file.read(OUTPUT_PIECE_BYTES)
        except OSError:
            return
        self._offset += len(data)
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-OUTPUT_PIECE_BYTES:]
        for line in lines:
            show(printable(line.decode("utf-8", "replace").rstrip("\r")))


def failure(machine: Machine, event: Event) -> GuestError:
    """The error of a `failed` event: step, exit status and last lines of output; or why the guest has no root."""
    if event.text("kind") == "seal":
        return GuestError(
            f"{machine.name} cannot close itself, and is off: {event.text('reason')[:500]}",
            hint=f"nobody can enter it. `kimbox secure --unseal {machine.name}` opens it without its credentials, "
            f"`kimbox destroy {machine.name}` ends it",
        )
    if event.text("kind") in LOST_ROOT:
        what = "did not boot" if event.text("kind") == "boot" else "lost its root"
        return GuestError(
            f"{machine.name} {what}: {event.text('reason')[:500] or event.text('name')[:100]}",
            hint=f"`kimbox up --boot resnap {machine.name}` makes a new snapshot: changes on the old one are lost, "
            f"/persistent stays. If that fails too, `kimbox destroy {machine.name}` and `kimbox up` make the disk anew",
        )
    kind, name, reason = event.text("kind"), event.text("name"), event.text("reason")
    said = tail(read_end(machine.provision_log, 16 << 10).decode("utf-8", "replace"), 12)
    shown = "\n".join(f"    {printable(line)[:SHOWN_CHARACTERS]}" for line in said.splitlines())
    code = event.number("exit")
    status = "" if code is None else f" (exit status {code})"
    message = f"{machine.name}: provisioning failed at {kind} {name}"[:SHOWN_CHARACTERS] + f"{status}: {reason[:500]}"
    hint = f"the box stays up for a look: `kimbox ssh {machine.name}`; then `kimbox provision {machine.name}`"
    if machine.record().sealed:
        hint = f"the box stays closed, and up; `kimbox reload {machine.name}` tries again, `kimbox secure --unseal "
        hint += f"{machine.name}` opens it without its credentials"
    return GuestError(f"{message}\n{shown}".rstrip(), hint=hint)


def fallen_back(machine: Machine, answer: Event, told: Event | None) -> GuestError:
    """The error where the guest fell back to its last good manifest. `told`: its event that gives the reason."""
    name, wanted, good = machine.name, answer.text("wanted"), answer.text("manifest")
    reason = told.text("reason") if told else ""
    how = "is ready with" if answer.name in DONE else "has failed with"
    return GuestError(
        f"{name}: the manifest {wanted[:12]} failed: {reason[:500] or 'no reason was told'}\n"
        f"The box {how} the last good one, {good[:12]}.",
        hint=f"mend it and `kimbox up {name}`; `kimbox provision {name}` tries the same once more",
    )


def _show_line(line: str) -> None:
    """Shows a line of provisioning's output. Headings of steps are left out: their events are shown."""
    if not line.startswith("== step "):
        log.guest(line)


def _show(event: Event) -> None:
    if event.name == "step" and event.text("status") == "running":
        log.info(f"step {event.number('n')} of {event.number('of')}: {event.text('kind')} {event.text('name')}")
    elif event.name == "snapshot":
        log.warn(f"the snapshot of root is {event.number('percent')} % full")
    elif event.name == "died":
        log.warn(f"the boot before this one died: {event.text('reason')[:500]}")
    elif event.name == "fallback":
        log.warn("what was asked for has failed: the box goes back to its last good manifest")
    else:
        log.detail(f"guest: {event.name}")
