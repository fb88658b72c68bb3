"""Functions of all benchmarks: arguments, the start of a disk with bare QEMU, medians and ratios."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from kimbox.run import run
from kimbox.spec.load import load_box
from kimbox.spec.model import BootMode, Box

#: Port on the host that is forwarded to the sshd of a guest.
PORT = 20999

#: Timeout of a boot, in seconds.
BOOT_TIMEOUT_S = 300.0

#: The command `kimbox`, without progress.
KIMBOX = (sys.executable, "-m", "kimbox", "--quiet")

#: Time between two checks of a guest, in seconds.
POLL_S = 0.02


def options(doc: str | None, *, n: int = 5, box: str | None = None, clones: int | None = None) -> argparse.Namespace:
    """The parsed command line of a benchmark: `n`, the number of repetitions; `box`, `clones` if they have defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=n, help=f"number of repetitions (default: {n})")
    if box is not None:
        parser.add_argument("--box", default=box, help=f"name of a box that ships with kimbox (default: {box})")
    if clones is not None:
        parser.add_argument("--clones", type=int, default=clones, help=f"number of clones (default: {clones})")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # an exception, so that `finally` blocks run
    return parser.parse_args()


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """A temporary folder in KIMBOX_HOME, which is made if it is missing."""
    paths.home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.home(), prefix="bench-") as folder:
        yield Path(folder)


def shipped(name: str) -> Box:
    """A box that ships with kimbox."""
    return load_box(paths.boxes_dir() / f"{name}.yaml")


def locked(box: Box) -> LockedPackages | None:
    """The packages of the lock of a box. The lock is written first if it does not exist."""
    name = box.name if box.source.parent == paths.boxes_dir() else None
    return lock_for(Project(box, name)).lock.packages


def medians(values: Mapping[str, Iterable[float]], digits: int = 2) -> dict[str, float]:
    """The median of each list of values."""
    return {name: round(statistics.median(row), digits) for name, row in values.items()}


def ratio(above: Iterable[float], below: Iterable[float]) -> float:
    """The median of the ratios of pairs. A pair was measured in one round, so that host load affects both values."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def timed(argv: list[str], **options: Any) -> tuple[float, float]:
    """Runs a program. Returns its duration, and the processor time of it and of the programs that it ran, in seconds.

    Other processes on the host change the duration, and hardly the processor time. `options` are those of `run`.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run(argv, **options)
    duration_s, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return duration_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def progress(text: str) -> None:
    """Prints an intermediate result to stderr."""
    print(text, file=sys.stderr, flush=True)


def show(result: Mapping[str, Any]) -> None:
    """Prints the result: one JSON object."""
    print(json.dumps(result, indent=2))


def launch(
    folder: Path, image: Path, image_format: str, box: Box, mode: BootMode | None = None
) -> tuple[Machine, float]:
    """Starts bare QEMU with an overlay of an image. `mode`: the boot mode; None for that of the image.

    Returns the machine, whose files are in `folder`, and the time of the start (time.monotonic()).
    """

    class MachineInFolder(Machine):
        @property
        def folder(self) -> Path:
            return folder

    machine = MachineInFolder("bench")
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


#: Timeout for the banner of an sshd that has accepted the connection, in seconds. Each new connection starts another
#: sshd in the guest, so that a probe with a short timeout would slow down the boot that it measures.
BANNER_TIMEOUT_S = 15.0


def banner(machine: Machine) -> bool:
    """Whether the sshd of the machine sends its banner. Returns immediately if the port is closed."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), 1) as connection:
        connection.settimeout(BANNER_TIMEOUT_S)
        return connection.recv(4) == b"SSH-"
    return False


def has_event(name: str, *, but_boot: str = "") -> Callable[[Machine], bool]:
    """A condition for `wait_until`: the guest has sent the event `name`. Events of the boot `but_boot` do not count."""
    return lambda machine: any(event.name == name and event.boot != but_boot for event in machine.boot_events())


def wait_until(machine: Machine, started: float, done: Callable[[Machine], bool]) -> float:
    """The time from `started` until the condition `done` is true, in seconds.

    Ends the program if the machine stops, or after BOOT_TIMEOUT_S.
    """
    while not done(machine):
        if time.monotonic() - started > BOOT_TIMEOUT_S or not machine.running:
            raise SystemExit(f"the guest stopped, or did not boot in {BOOT_TIMEOUT_S:.0f} s: see {machine.serial_log}")
        time.sleep(POLL_S)
    return time.monotonic() - started


def cpu_s(machine: Machine) -> float:
    """The processor time of the machine's QEMU, in seconds. Other processes on the host do not affect it."""
    pid = process.pid(machine)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
