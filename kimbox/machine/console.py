"""Finds the cause of a failed boot in the output of the guest's serial console.

The console is untrusted input. Time and memory are bounded for any content. This module reads no file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs

from kimbox.guest.events import Event, printable

#: Number of lines of the console that are shown with a cause, and maximum number of characters of each.
SHOWN_LINES = 8
SHOWN_CHARACTERS = 200

#: Number of bytes at the end of the console that are read.
CONSOLE_BYTES = 256 << 10

#: Number of characters of a line that are searched. A cause is near the start, and the limit bounds the time.
LINE_CHARACTERS = 400

#: Cursor movements. They separate lines, because firmware and GRUB write no line ends.
_MOVES = re.compile(r"\x1b\[[0-9;]{0,16}[HfEFG]")

#: Every other escape sequence of ECMA-48 that a boot writes: CSI, OSC (a title, a palette), and the short ones.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]{0,64}[ -/]{0,4}[@-~]|\x1b\][^\x07\x1b\n]{0,256}(?:\x07|\x1b\\)|\x1b[ -/]{0,4}[0-~]|\x07"
)

#: First words of a kernel's message about a panic. The kernel then restarts the guest, so one panic is not fatal.
PANIC = "Kernel panic - not syncing"

#: Number of panics on the console after which a boot has failed.
FATAL_PANICS = 2


#: A command in a hint below.
_WITHOUT_NAME = re.compile(r"`(kimbox [a-z]{1,20}(?: --[a-z]{1,20}(?: resnap)?)?)`")


@attrs.frozen
class Cause:
    """The cause of a failed boot: message and hint of an error."""

    message: str
    hint: str

    def hint_for(self, name: str) -> str:
        """The hint, with the name of the box in its commands: the user may run them in another folder."""
        return _WITHOUT_NAME.sub(lambda match: f"`{match[1]} {name}`", self.hint)


@attrs.frozen
class _Sign:
    pattern: re.Pattern[str]
    cause: Cause
    #: The line is harmless if the system of the guest runs, that is, if the guest has sent an event.
    is_early: bool
    #: The boot cannot continue after this line.
    is_final: bool


_CONSOLE_HINT = "`kimbox logs --serial` shows the whole console"


def _sign(pattern: str, message: str, hint: str, *, is_early: bool = False, is_final: bool = False) -> _Sign:
    return _Sign(re.compile(pattern), Cause(message, hint), is_early, is_final)


#: Patterns of lines and their causes. The first pattern that matches counts. Its groups fill the fields of the message.
SIGNS = (
    _sign(
        r"kimbox: (?:resnap: )?FAILED: (.*)",
        "the initramfs could not set up the root volume: {0}",
        "`kimbox up --boot resnap` makes a new snapshot: changes on the old one are lost, /persistent stays; "
        "if the disk is damaged, `kimbox destroy` and `kimbox up` create a new one",
        is_final=True,
    ),
    _sign(
        r"(?:UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY|root filesystem on (\S+) requires a manual fsck)",
        "the guest's file system is damaged, and fsck cannot repair it without a user",
        "`kimbox destroy` and `kimbox up` create a new disk",
        is_final=True,
    ),
    _sign(
        r"ALERT!\s+(\S+) does not exist",
        "the guest found no root file system: {0} does not exist",
        f"the image may not be one that kimbox built; {_CONSOLE_HINT}",
        is_final=True,
    ),
    _sign(
        r"VFS: Unable to mount root fs on (\S+)",
        "the guest's kernel found no root file system on {0}",
        f"its initramfs is missing or damaged; {_CONSOLE_HINT}",
        is_final=True,
    ),
    _sign(
        r"No init found|Target filesystem doesn't have requested|No working init found",
        "the guest's root file system has no init program",
        "the image is not bootable",
        is_final=True,
    ),
    _sign(
        r"Kernel panic - not syncing: (.*)",
        "the guest's kernel panicked: {0}",
        f"{_CONSOLE_HINT}; a larger `memory:` in the spec often helps",
    ),
    _sign(
        r"Out of memory: Killed process \d+ \((\S+)\)",
        "the guest ran out of memory and killed {0}",
        "set a larger `memory:` in the spec of the box",
    ),
    _sign(
        r"^(?:GRUB loading\.* *)?error: (?:\.\./\S+?:\d+: ?)?"
        r"(.{0,200}?(?:no such (?:device|partition|disk)|not found|unknown filesystem).{0,80}?)\.?$",
        "the boot loader stopped: {0}",
        "the disk's /boot is damaged: `kimbox destroy` and `kimbox up` create a new disk",
        is_early=True,
    ),
    _sign(
        r"^grub(?: rescue)?>",
        "the boot loader stopped at its prompt",
        "the disk's /boot is damaged: `kimbox destroy` and `kimbox up` create a new disk",
        is_early=True,
    ),
    _sign(
        r"No bootable device|Boot failed: (?:not a bootable disk|could not read the boot disk)",
        "the firmware found nothing to boot on the disk",
        "the image must have a boot loader for BIOS",
        is_early=True,
    ),
    _sign(
        r"You are in (?:emergency|rescue) mode",
        "the guest's systemd stopped in emergency mode",
        _CONSOLE_HINT,
    ),
    _sign(
        r"systemd\[1\]: (?:Freezing execution|Failed to .*, freezing)",
        "the guest's systemd stopped",
        _CONSOLE_HINT,
    ),
    _sign(
        r"Failed to start (systemd-networkd|networking|NetworkManager)\b",
        "the guest has no network: {0} did not start",
        _CONSOLE_HINT,
    ),
)


#: The line that GRUB writes when it starts a kernel, and the line that the kernel writes when the snapshot of root is
#: full (Linux, drivers/md/dm-snap.c).
BOOTS = b"Booting `"
INVALIDATED = b"device-mapper: snapshots: Invalidating snapshot"

SNAPSHOT_FULL = Cause(
    "the snapshot of root is full, and the kernel has invalidated it: root can no longer be read or written",
    "`kimbox reload --boot resnap` starts from a new snapshot: changes on the old one are lost, /persistent stays; "
    "set a larger `disk: volumes: root_snap:` in the spec, for example 100%ORIGIN, which is never full",
)


def snapshot_is_full(raw: bytes) -> bool:
    """Whether the kernel of the last boot on a console has invalidated the snapshot because it was full."""
    return INVALIDATED in raw[max(raw.rfind(BOOTS), 0) :]


def last_panic(raw: bytes) -> str | None:
    """Returns the message of the last panic of a kernel on a console, if a boot followed it; None otherwise."""
    before = raw[: max(raw.rfind(BOOTS), 0)]
    _, found, text = before.rpartition(PANIC.encode())
    if not found:
        return None
    line = text[:SHOWN_CHARACTERS].decode("utf-8", "replace").partition("\n")[0]
    return printable(_ESCAPES.sub("", line).strip(": \r")) or "unknown reason"


def console_lines(raw: bytes) -> list[str]:
    """Returns the end of the console as lines that are safe to print: no escape sequences, and no blank lines."""
    text = _MOVES.sub("\n", raw[-CONSOLE_BYTES:].decode("utf-8", "replace"))
    lines = (printable(line[:LINE_CHARACTERS]).strip() for line in _ESCAPES.sub("", text).splitlines())
    return [line for line in lines if line]


def explain(raw: bytes, events: Sequence[Event], *, alive: bool, waited_s: float) -> Cause:
    """Returns why a guest did not become ready.

    `raw` is its console, `events` are the events of this boot, `alive` is whether its process runs, and `waited_s` is
    the time that kimbox waited.
    """
    if snapshot_is_full(raw):
        return SNAPSHOT_FULL
    lines = console_lines(raw)
    if cause := _first_cause(lines, events, SIGNS):
        return cause
    if not alive and any("reboot: Power down" in line for line in lines[-SHOWN_LINES:]):
        return Cause("the guest shut itself down before the box was ready", _CONSOLE_HINT)
    if not alive:
        return Cause(
            "the guest's process ended before the box was ready",
            "`kimbox logs --serial` and `kimbox logs --qemu` show the logs",
        )
    hint = f"a longer `--timeout` may help; {_CONSOLE_HINT}"
    if any(event.name == "provisioning" for event in events):
        return Cause(
            f"no event from the box for {waited_s:.0f} s: {_stage(events[-1])}",
            "`kimbox logs` shows its output",
        )
    reached = _stage(events[-1]) if events else _stage(None)
    if not events:
        hint += (
            "; an image that kimbox did not build needs cloud-init, sshd with an ed25519 key, and a console on ttyS0"
        )
    return Cause(f"the box did not boot within {waited_s:.0f} s: {reached}", hint)


def is_fatal(raw: bytes, events: Sequence[Event]) -> bool:
    """Whether the console shows that this boot has failed, so that kimbox need not wait for the timeout."""
    if snapshot_is_full(raw):
        return True
    lines = console_lines(raw)
    if sum(PANIC in line for line in lines) >= FATAL_PANICS:
        return True
    return _first_cause(lines, events, [sign for sign in SIGNS if sign.is_final]) is not None


def _first_cause(lines: Sequence[str], events: Sequence[Event], signs: Sequence[_Sign]) -> Cause | None:
    """Returns the cause of the first sign that any of the lines matches."""
    for sign in signs:
        for line in [] if sign.is_early and events else lines:
            if match := sign.pattern.search(line):
                words = [group or "" for group in match.groups()] or [""]
                return attrs.evolve(sign.cause, message=sign.cause.message.format(*words))
    return None


def _stage(event: Event | None) -> str:
    """Returns how far a boot came, from its last event. None: there was no event."""
    if event is None:
        return "it sent no event; it may hang in the firmware, the boot loader or the kernel"
    if event.name == "step":
        where = f"step {event.number('n')} of {event.number('of')}, {event.text('kind')} {event.text('name')}"
        return f"the last event was {where}: {event.text('status')}"[:SHOWN_CHARACTERS]
    stages = {
        "booting": "its root is mounted and systemd runs, but it reported no ssh host key",
        "hostkey": "it has its keys and address, but sshd did not start",
        "sshd": "sshd runs, but provisiond sent no event",
    }
    return stages.get(event.name, f"the last event was {event.name}")
