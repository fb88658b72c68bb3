"""What the measurements share: their arguments, how a disk is started by a bare QEMU, medians and ratios."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from kimbox import paths
from kimbox.drivers import accelerator
from kimbox.drivers.qemu import disk, process
from kimbox.drivers.qemu.command import Invocation
from kimbox.lock.apt.packages import LockedPackages
from kimbox.machine import bootmode, keys
from kimbox.machine.folder import Machine
from kimbox.machine.record import Record
from kimbox.project.pins import lock_for
from kimbox.project.project import Project
from kimbox.spec.load import load_box
from kimbox.spec.model import BootMode, Box

PORT = 20999
LIMIT_S = 300.0

#: How often a guest is looked at, in seconds.
LOOK_S = 0.02


def options(doc: str | None, *, n: int = 5, box: str | None = None) -> argparse.Namespace:
    """The command line of a measurement: `n`, how often everything is measured; and, where it is of one box, `box`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=n, help=f"how often everything is measured (default: {n})")
    if box is not None:
        parser.add_argument("--box", default=box, help=f"a box that ships with kimbox (default: {box})")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that what is cleaned up is
    return parser.parse_args()


def shipped(name: str) -> Box:
    """A box that ships with kimbox."""
    return load_box(paths.boxes_dir() / f"{name}.yaml")


def locked(box: Box) -> LockedPackages | None:
    """The packages that the lock of a box names; a lock is made where there is none."""
    name = box.name if box.source.parent == paths.boxes_dir() else None
    return lock_for(Project(box, name)).lock.packages


def medians(values: Mapping[str, Iterable[float]], digits: int = 2) -> dict[str, float]:
    """The median of each row."""
    return {name: round(statistics.median(row), digits) for name, row in values.items()}


def ratio(above: Iterable[float], below: Iterable[float]) -> float:
    """The median of what each turn's pair gives: a host that is busy for a while hits both of a pair."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def note(text: str) -> None:
    """One figure on its way to the result."""
    print(text, file=sys.stderr, flush=True)


def show(result: Mapping[str, Any]) -> None:
    """Prints the result: one JSON object."""
    print(json.dumps(result, indent=2))


def launch(
    folder: Path, image: Path, image_format: str, box: Box, mode: BootMode | None = None
) -> tuple[Machine, float]:
    """Starts a bare QEMU on an overlay of an image, in that boot mode; returns the machine and the time."""

    class There(Machine):
        @property
        def folder(self) -> Path:
            return folder

    machine = There("bench")
    machine.folder.mkdir(exist_ok=True)
    if not machine.key.exists():
        keys.make_pair(machine.key, "bench")
    machine.disk.unlink(missing_ok=True)
    disk.create(machine.disk, image, image_format, box.disk.size_bytes)
    if mode:
        bootmode.set_entries(machine, mode)
    record = Record("bench", "", None, "", "", "0" * 8 + "-0000-4000-8000-" + "0" * 12, "52:54:00:00:00:01", PORT, {})
    request = Invocation(machine, record, box.cpus, box.memory_bytes, accelerator.find())
    started = time.monotonic()
    process.start(request)
    return machine, started


#: How long the probe waits for the greeting of an sshd that has taken the connection, in seconds. Each new connection
#: starts one more sshd in the guest, so that an impatient probe slows down what it measures.
BANNER_TIMEOUT_S = 15.0


def banner(machine: Machine) -> bool:
    """Whether sshd greets. A closed port answers at once."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), 1) as connection:
        connection.settimeout(BANNER_TIMEOUT_S)
        return connection.recv(4) == b"SSH-"
    return False


def said(name: str, *, but_boot: str = "") -> Callable[[Machine], bool]:
    """Whether the guest has told an event; `but_boot` is an earlier boot, whose events do not count."""
    return lambda machine: any(event.name == name and event.boot != but_boot for event in machine.boot_events())


def until(machine: Machine, started: float, done: Callable[[Machine], bool]) -> float:
    """Seconds from the start until `done`."""
    while not done(machine):
        if time.monotonic() - started > LIMIT_S or not machine.running:
            raise SystemExit(f"the guest did not come: see {machine.serial_log}")
        time.sleep(LOOK_S)
    return time.monotonic() - started


def cpu_s(machine: Machine) -> float:
    """Seconds of processor time that the machine's QEMU has taken: other work on the host makes no difference to it."""
    number = process.pid(machine)
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
