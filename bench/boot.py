"""Boot times, as medians of the ratios of all rounds. Each round measures every system, so that host load affects all.

    python -m bench.boot [-n 5] [--box minimal]

Bare QEMU boots three systems until the host receives the banner of sshd: a stock minimal system with the same packages
(second boot), a new kimbox image, and the disk of a provisioned kimbox box. Other measurements: the boot of that disk
until the event `ready`, `kimbox up` of the halted box, and `kimbox halt` after it. `stages_s` has the stages of these
starts by `up` (kimbox logs --timeline). Images are in KIMBOX_HOME.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from bench import stock
from bench.common import (
    KIMBOX,
    banner,
    has_event,
    launch,
    locked,
    medians,
    options,
    ratio,
    shipped,
    show,
    wait_until,
    work_folder,
)
from kimbox.actions import stop
from kimbox.actions.up import UpRequest, up
from kimbox.drivers.qemu import process
from kimbox.image import obtain
from kimbox.machine.folder import Machine
from kimbox.machine.timeline import Loading, timeline
from kimbox.project.project import Project
from kimbox.run import run
from kimbox.spec.model import Box

STOCK = "bare QEMU, stock system, second boot, to the ssh banner"
FRESH = "bare QEMU, fresh kimbox image, to the ssh banner"
BOX = "bare QEMU, disk of the box, to the ssh banner"
READY = "bare QEMU, disk of the box, to its ready event"
UP = "kimbox up of the halted box, to its end"
HALT = "kimbox halt right after it, to its end"

#: Timeout of the shutdown of a stock system, in seconds.
SHUTDOWN_TIMEOUT_S = 300.0

#: Maximum ratios: `up` to the same disk in bare QEMU, and that disk until `ready` to a stock system.
LIMITS = {(UP, READY): 1.15, (READY, STOCK): 0.45}

RATIOS = ((FRESH, STOCK), (BOX, STOCK), (READY, STOCK), (UP, READY), (HALT, STOCK))


def booted_once(stock_disk: Path, box: Box, folder: Path) -> Path:
    """Boots a stock system once and shuts it down. Returns its disk, which has the files that a first boot creates."""
    machine, started = launch(folder, stock_disk, "raw", box)
    wait_until(machine, started, banner)
    if not process.power_off(machine, SHUTDOWN_TIMEOUT_S):
        message = f"the stock system did not shut down within {SHUTDOWN_TIMEOUT_S:.0f} s: see {machine.serial_log}"
        raise SystemExit(message)
    return machine.disk


def stages_of(machine: Machine) -> dict[str, float]:
    """The duration of each stage of the last start of a machine in seconds, by name."""
    start = timeline(machine.boot_events(), Loading.read(machine))
    return {stage["name"]: stage["end_s"] - stage["start_s"] for stage in start["stages"]} if start else {}


def measure(box: Box, name: str, n: int, work: Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The duration of each boot in seconds, by title, and that of each stage of a start by `up`, by name."""
    packages = locked(box)
    image = obtain.ensure(box, packages)
    stock_disk = stock.build(obtain.recipe_of(box, packages), box.image, work)  # type: ignore[arg-type]
    stock_disk = booted_once(stock_disk, box, work / "stock")
    up(UpRequest(Project(box, name)))
    box_machine = Machine(box.name)
    stop.halt(box_machine)
    starts: dict[str, tuple[Path, str, Callable[[Machine], bool]]] = {
        STOCK: (stock_disk, "qcow2", banner),
        FRESH: (image.disk, image.format, banner),
        BOX: (box_machine.disk, "qcow2", banner),
        READY: (box_machine.disk, "qcow2", has_event("ready")),
    }
    times: dict[str, list[float]] = {title: [] for title in (*starts, UP, HALT)}
    stages: dict[str, list[float]] = {}
    for _ in range(n):
        for title, (disk, disk_format, done) in starts.items():
            machine, started = launch(work / "m", disk, disk_format, box)
            times[title].append(wait_until(machine, started, done))
            process.kill(machine)
        before = time.monotonic()
        run([*KIMBOX, "up", name], env=dict(os.environ))
        up_at = time.monotonic()
        times[UP].append(up_at - before)
        for stage, duration_s in stages_of(box_machine).items():
            stages.setdefault(stage, []).append(duration_s)
        stop.halt(box_machine)
        times[HALT].append(time.monotonic() - up_at)
    return times, stages


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, box="minimal")
    box = shipped(arguments.box)
    with work_folder() as work:
        times, stages = measure(box, arguments.box, arguments.n, work)
    ratios = {f"{above} / {below}": ratio(times[above], times[below]) for above, below in RATIOS}
    ok = all(ratio(times[above], times[below]) <= limit for (above, below), limit in LIMITS.items())
    limits = {f"{above} / {below}": limit for (above, below), limit in LIMITS.items()}
    show(
        {
            "median_s": medians(times),
            "stages_s": medians(stages),
            "ratios": ratios,
            "limits": limits,
            "ok": ok,
            "all_s": times,
        }
    )


if __name__ == "__main__":
    main()
