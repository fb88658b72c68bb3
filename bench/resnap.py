"""Cost of a new root at every boot: time to `ready` in each boot mode, with the same disk.

    python -m bench.resnap [-n 5] [--box minimal]

The other modes are compared with `maintain`, which boots the root volume without a snapshot. Each round measures every
mode. Ratios are medians of the ratios of all rounds. `cpu` is the processor time of QEMU, which does not depend on the
load of the host. Use a box without provision steps, because steps do not run in every mode. Images are in KIMBOX_HOME.
"""

from __future__ import annotations

from pathlib import Path

from bench.common import (
    cpu_s,
    has_event,
    launch,
    medians,
    options,
    progress,
    ratio,
    shipped,
    show,
    wait_until,
    work_folder,
)
from kimbox.actions import stop
from kimbox.actions.up import UpRequest, up
from kimbox.drivers.qemu import process
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.spec.model import BootMode, Box

#: Maximum ratio of `resnap` to `maintain`.
LIMIT = 1.03

MODES = (BootMode.MAINTAIN, BootMode.KEEP, BootMode.RESNAP)


def boot(folder: Path, disk: Path, box: Box, mode: BootMode) -> tuple[float, float]:
    """The time to `ready` in one mode, and the processor time until then, in seconds."""
    machine, started = launch(folder, disk, "qcow2", box, mode)
    try:
        wall_s = wait_until(machine, started, has_event("ready"))
        cpu_taken_s = cpu_s(machine)
        booted = next(event.text("mode") for event in machine.boot_events() if event.name == "booting")
    finally:
        process.kill(machine)
    if booted != mode:
        raise SystemExit(f"the guest booted in mode {booted}, not {mode}")
    return wall_s, cpu_taken_s


def measure(box: Box, name: str, n: int, work: Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The times to `ready`, and the processor times until then, in seconds, by mode."""
    up(UpRequest(Project(box, name)))
    box_machine = Machine(box.name)
    stop.halt(box_machine)
    wall: dict[str, list[float]] = {mode: [] for mode in MODES}
    cpu: dict[str, list[float]] = {mode: [] for mode in MODES}
    for turn in range(n):
        for mode in (*MODES[turn % 3 :], *MODES[: turn % 3]):
            wall_s, cpu_taken_s = boot(work / "m", box_machine.disk, box, mode)
            wall[mode].append(wall_s)
            cpu[mode].append(cpu_taken_s)
            progress(f"{mode}: {wall_s:.2f} s, {cpu_taken_s:.2f} s of processor time")
    return wall, cpu


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, box="minimal")
    with work_folder() as work:
        wall, cpu = measure(shipped(arguments.box), arguments.box, arguments.n, work)
    ratios = {
        f"{mode} / {BootMode.MAINTAIN}": {
            "wall": ratio(wall[mode], wall[BootMode.MAINTAIN]),
            "cpu": ratio(cpu[mode], cpu[BootMode.MAINTAIN]),
            "limit": LIMIT if mode is BootMode.RESNAP else None,
        }
        for mode in MODES[1:]
    }
    show({"median_s": medians(wall), "median_cpu_s": medians(cpu), "ratios": ratios, "all_s": wall, "all_cpu_s": cpu})


if __name__ == "__main__":
    main()
