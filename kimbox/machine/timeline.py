"""The timeline of the last start of a machine: its stages, from the events of the guest and times of this host.

The guest reports when initramfs, systemd and each later stage began, on the clock of its kernel. The host adds how long
QEMU's firmware and the boot loader took before that clock started. It knows the time of QEMU's start (the pid file),
that of the last event (the file of the events), and the guest's own time in this event. The difference is exact to some
hundredths of a second. The boot loader begins with its first output on the console, seen within 0.1 s. The boot loader
includes the time in which the kernel unpacks itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import attrs

from kimbox.errors import KimboxError
from kimbox.files import read_json, write_json
from kimbox.guest.events import Event
from kimbox.machine.folder import Machine
from kimbox.machine.state import DONE, State

#: Maximum number of stages of a timeline.
MAX_STAGES = 60

#: Maximum duration from QEMU's start to the kernel's that is believed, in seconds. The clock of the host may be set.
MAX_LOADING_S = 600.0

#: Events that begin a stage -> name of the stage.
_STAGES = {
    "booting": "system starts",
    "sshd": "ssh server runs",
    "waiting": "waits for its manifest",
    "provisioning": "prepares provisioning",
    "step": "",
}

#: Fields of the event `booting` that have the time at which a stage began -> name of the stage.
_EARLY_STAGES = {"initramfs": "initramfs", "root": "systemd starts", "early": "ports to the host"}

_SECONDS = re.compile(r"[0-9]{1,7}(\.[0-9]{1,3})?")


@attrs.frozen
class Loading:
    """What this host has observed of a start, in seconds since the start of QEMU."""

    #: Id of the guest's boot.
    boot: str
    #: When the clock of the kernel started.
    kernel_s: float
    #: When the first output appeared on the console. None: not observed.
    console_s: float | None

    @classmethod
    def read(cls, machine: Machine) -> Loading | None:
        """Reads what was observed of the last start. None if nothing was, or if the file is damaged."""
        try:
            value = read_json(machine.loading_file)
            console_s = value["console_s"]
            return cls(str(value["boot"]), float(value["kernel_s"]), None if console_s is None else float(console_s))
        except (OSError, KimboxError, KeyError, TypeError, ValueError):
            return None


def observe_loading(machine: Machine, events: Sequence[Event], read_bytes: int, console_at_s: float | None) -> None:
    """Writes how long QEMU's firmware and the boot loader took, if this can be known now.

    `events`: those of this boot, of which `read_bytes` bytes of the file were read. `console_at_s`: when the first
    output appeared on the console, in seconds since the epoch; None: not known. Does nothing for a hypervisor without a
    pid file, or if the file has grown meanwhile.
    """
    try:
        began_s = machine.pid_file.stat().st_mtime
        info = machine.events_file.stat()
    except OSError:
        return
    kernel_s = info.st_mtime - events[-1].uptime_s - began_s
    if info.st_size != read_bytes or not 0 <= kernel_s < MAX_LOADING_S:
        return
    console_s = None if console_at_s is None else round(console_at_s - began_s, 2)
    if console_s is not None and not 0 <= console_s <= kernel_s:
        console_s = None
    write_json(machine.loading_file, attrs.asdict(Loading(events[-1].boot, round(kernel_s, 2), console_s)))


def timeline(events: Sequence[Event], loading: Loading | None) -> dict[str, Any] | None:
    """Returns the stages of the last start as plain values. None without events.

    `events`: those of the last boot, oldest first. Times are in seconds since `zero`: the start of QEMU, or that of the
    kernel if `loading` is None or of another boot. A time that goes back counts as the one before.
    """
    if not events:
        return None
    if loading and loading.boot != events[0].boot:
        loading = None
    kernel_s = loading.kernel_s if loading else 0.0
    begun = _first_stages(events[0], loading)
    end, result, now_s = None, None, kernel_s
    for event in events:
        now_s = max(now_s, kernel_s + event.uptime_s)
        if event.name in (*DONE, "failed"):
            end, result = now_s, str(State.FAILED) if event.name == "failed" else event.name
            break
        if event.name == "booting":
            begun += [(name, kernel_s + at_s) for name, at_s in _early_stages(event)]
        if event.name in _STAGES and event.text("status") in ("", "running"):
            number = f"step {event.text('n')} of {event.text('of')}: {event.text('kind')} {event.text('name')}"
            begun.append((_STAGES[event.name] or number, now_s))
    ends = [at_s for _, at_s in begun[1:]] + [end if end is not None else now_s]
    stages = [
        {"name": name, "start_s": round(start_s, 2), "end_s": round(end_s, 2)}
        for (name, start_s), end_s in zip(begun, ends, strict=True)
    ]
    return {
        "zero": "QEMU" if loading else "kernel",
        "stages": stages[:MAX_STAGES],
        "left_out": max(0, len(stages) - MAX_STAGES),
        "result": result,
        "total_s": round(ends[-1], 2),
    }


def _first_stages(first: Event, loading: Loading | None) -> list[tuple[str, float]]:
    """The stages until the first event: name and begin."""
    kernel = "kernel" if first.name == "booting" and _early_stages(first) else "kernel and initramfs start"
    if loading is None:
        return [(kernel, 0.0)]
    if loading.console_s is None:
        return [("firmware and boot loader", 0.0), (kernel, loading.kernel_s)]
    return [("firmware", 0.0), ("boot loader", loading.console_s), (kernel, loading.kernel_s)]


def _early_stages(booting: Event) -> list[tuple[str, float]]:
    """The stages before the event `booting` whose begin it has, in the order in which they begin. Untrusted."""
    stages: list[tuple[str, float]] = []
    last_s = 0.0
    for field, name in _EARLY_STAGES.items():
        text = booting.text(field)
        if _SECONDS.fullmatch(text):
            last_s = min(max(last_s, float(text)), booting.uptime_s)
            stages.append((name, last_s))
    return stages
