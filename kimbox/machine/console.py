"""Says why a guest did not boot, from what it wrote on its console. Pure, and bounded whatever the guest wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs

from kimbox.guest.events import Event, printable

#: Lines of the console shown with an explanation, and characters of each.
SHOWN_LINES = 8
SHOWN_CHARACTERS = 200

#: How much of the console's end is looked at.
CONSOLE_BYTES = 256 << 10

#: Characters of a line that are looked at: what explains stands near its start, and patterns stay quick.
LINE_CHARACTERS = 400

#: Cursor movements: what follows stands elsewhere on the screen (firmware and GRUB write no line ends).
_MOVES = re.compile(r"\x1b\[[0-9;]{0,16}[HfEFG]")

#: Every other escape sequence of ECMA-48 that a boot writes: CSI, OSC (a title, a palette), and the short ones.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]{0,64}[ -/]{0,4}[@-~]|\x1b\][^\x07\x1b\n]{0,256}(?:\x07|\x1b\\)|\x1b[ -/]{0,4}[0-~]|\x07"
)


#: How a kernel begins to tell that it panicked. It then restarts the box, so that one panic is not the end; two are.
PANIC = "Kernel panic - not syncing"
HOPELESS_PANICS = 2


@attrs.frozen
class Cause:
    """What went wrong, in words, and what to do."""

    message: str
    hint: str


@attrs.frozen
class _Sign:
    pattern: re.Pattern[str]
    cause: Cause
    #: It is over once the guest's own system runs: what it said on the way was harmless.
    is_early: bool
    #: Nothing comes after it: the boot has come to its end.
    is_final: bool


_LOOK = "`kimbox logs --serial` shows the whole console"


def _sign(pattern: str, message: str, hint: str, *, is_early: bool = False, is_final: bool = False) -> _Sign:
    return _Sign(re.compile(pattern), Cause(message, hint), is_early, is_final)


#: What the console says, and what it means; the first that is found explains. Groups of the pattern fill the message.
SIGNS = (
    _sign(
        r"kimbox: (?:resnap: )?FAILED: (.*)",
        "the initramfs could not set up the root volume: {0}",
        "`kimbox up --boot resnap` makes a new snapshot: changes on the old one are lost, /persistent stays; "
        "a disk that is damaged is made anew by `kimbox destroy` and `kimbox up`",
        is_final=True,
    ),
    _sign(
        r"(?:UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY|root filesystem on (\S+) requires a manual fsck)",
        "the guest's file system is damaged, and fsck cannot mend it by itself",
        "`kimbox destroy` and `kimbox up` make the disk anew",
        is_final=True,
    ),
    _sign(
        r"ALERT!\s+(\S+) does not exist",
        "the guest found no root file system: {0} does not exist",
        f"is this a kimbox image? {_LOOK}",
        is_final=True,
    ),
    _sign(
        r"VFS: Unable to mount root fs on (\S+)",
        "the guest's kernel found no root file system on {0}",
        f"its initramfs is missing or damaged; {_LOOK}",
        is_final=True,
    ),
    _sign(
        r"No init found|Target filesystem doesn't have requested|No working init found",
        "the guest's root file system holds no system",
        "the image is not bootable",
        is_final=True,
    ),
    _sign(
        r"Kernel panic - not syncing: (.*)",
        "the guest's kernel panicked: {0}",
        f"{_LOOK}; more `memory:` often helps",
    ),
    _sign(
        r"Out of memory: Killed process \d+ \((\S+)\)",
        "the guest ran out of memory and killed {0}",
        "give the box more `memory:` in its spec",
    ),
    _sign(
        r"^(?:GRUB loading\.* *)?error: (?:\.\./\S+?:\d+: ?)?"
        r"(.{0,200}?(?:no such (?:device|partition|disk)|not found|unknown filesystem).{0,80}?)\.?$",
        "the boot loader stopped: {0}",
        "the image's /boot is damaged: `kimbox destroy` and `kimbox up` make the disk anew",
        is_early=True,
    ),
    _sign(
        r"^grub(?: rescue)?>",
        "the boot loader stopped at its prompt",
        "the image's /boot is damaged: `kimbox destroy` and `kimbox up` make the disk anew",
        is_early=True,
    ),
    _sign(
        r"No bootable device|Boot failed: (?:not a bootable disk|could not read the boot disk)",
        "the firmware found nothing to boot on the disk",
        "an image needs a boot loader for BIOS",
        is_early=True,
    ),
    _sign(
        r"You are in (?:emergency|rescue) mode",
        "the guest's systemd stopped in emergency mode",
        _LOOK,
    ),
    _sign(
        r"systemd\[1\]: (?:Freezing execution|Failed to .*, freezing)",
        "the guest's systemd stopped",
        _LOOK,
    ),
    _sign(
        r"Failed to start (systemd-networkd|networking|NetworkManager)\b",
        "the guest has no network: {0} did not start",
        _LOOK,
    ),
)


#: What GRUB says when it starts a kernel, and what that kernel says when the snapshot has no room for one change more
#: (Linux, drivers/md/dm-snap.c).
BOOTS = b"Booting `"
INVALIDATED = b"device-mapper: snapshots: Invalidating snapshot"

SNAPSHOT_FULL = Cause(
    "the snapshot of root is full, and the kernel has given it up: nothing on root can be read or written any more",
    "`kimbox reload --boot resnap` starts from a new snapshot: changes on the old one are lost, /persistent stays; "
    "a larger `disk: volumes: root_snap:` keeps it from filling, and 100%ORIGIN never fills",
)


def snapshot_is_full(raw: bytes) -> bool:
    """Whether the kernel of the last boot on a console has given the snapshot up because it was full."""
    return INVALIDATED in raw[max(raw.rfind(BOOTS), 0) :]


def console_lines(raw: bytes) -> list[str]:
    """The console's end as lines that are safe to show: no escape sequences, nothing unprintable, no blank lines."""
    text = _MOVES.sub("\n", raw[-CONSOLE_BYTES:].decode("utf-8", "replace"))
    lines = (printable(line[:LINE_CHARACTERS]).strip() for line in _ESCAPES.sub("", text).splitlines())
    return [line for line in lines if line]


def explain(raw: bytes, events: Sequence[Event], *, alive: bool, waited_s: float) -> Cause:
    """Why a guest is not there, from its console, the events of this boot, and whether its process lives."""
    if snapshot_is_full(raw):
        return SNAPSHOT_FULL
    lines = console_lines(raw)
    if cause := _signed(lines, events, SIGNS):
        return cause
    if not alive and any("reboot: Power down" in line for line in lines[-SHOWN_LINES:]):
        return Cause("the guest shut itself down before the box was ready", _LOOK)
    if not alive:
        return Cause(
            "the guest's process ended before the box was ready", "`kimbox logs --serial` and `kimbox logs --qemu`"
        )
    hint = "try `--timeout`, or see `kimbox logs --serial`"
    if any(event.name == "provisioning" for event in events):
        return Cause(f"nothing was heard from the box for {waited_s:.0f} s: {_stage(events[-1])}", "see `kimbox logs`")
    reached = _stage(events[-1]) if events else _stage(None)
    if not events:
        hint += "; an image without kimbox's scripts never says that it is ready, and is at work all the same"
    return Cause(f"the box did not boot within {waited_s:.0f} s: {reached}", hint)


def hopeless(raw: bytes, events: Sequence[Event]) -> bool:
    """Whether the console says that this boot will come to nothing, so that nobody need wait for its time to be up."""
    if snapshot_is_full(raw):
        return True
    lines = console_lines(raw)
    if sum(PANIC in line for line in lines) >= HOPELESS_PANICS:
        return True
    return _signed(lines, events, [sign for sign in SIGNS if sign.is_final]) is not None


def _signed(lines: Sequence[str], events: Sequence[Event], signs: Sequence[_Sign]) -> Cause | None:
    for sign in signs:
        for line in [] if sign.is_early and events else lines:
            if found := sign.pattern.search(line):
                words = [group or "" for group in found.groups()] or [""]
                return Cause(sign.cause.message.format(*words), sign.cause.hint)
    return None


def _stage(event: Event | None) -> str:
    """How far a guest has come whose last word is that event."""
    if event is None:
        return "no sign of life from it; it may hang in the firmware, the boot loader or the kernel"
    if event.name == "step":
        where = f"step {event.number('n')} of {event.number('of')}, {event.text('kind')} {event.text('name')}"
        return f"the last it told was {where}: {event.text('status')}"[:SHOWN_CHARACTERS]
    known = {
        "booting": "its root is mounted and systemd runs, but no ssh host key came",
        "hostkey": "it has its keys and address, but sshd did not start",
        "sshd": "sshd runs, but provisiond did not speak",
    }
    return known.get(event.name, f"the last it said was: {event.name}")
