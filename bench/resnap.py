"""What a new root at every boot costs: time to `ready` in each boot mode, on the same disk, taken in turns.

    python -m bench.resnap [-n 5] [--box minimal]

`maintain` boots the root itself, which no snapshot slows down: it is what the others are held against. Ratios are
medians over the turns' pairs; `cpu` is the processor time of QEMU, on which a busy host has no influence. The box
should have no steps, so that no mode has more to do than another. KIMBOX_HOME decides where images lie.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.common import cpu_s, launch, medians, note, options, ratio, said, shipped, show, until
from kimbox import paths
from kimbox.actions import stop
from kimbox.actions.up import UpRequest, up
from kimbox.drivers.qemu import process
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.spec.model import BootMode, Box

#: What `resnap` may take against the root itself.
LIMIT = 1.03

MODES = (BootMode.MAINTAIN, BootMode.KEEP, BootMode.RESNAP)


def boot(folder: Path, disk: Path, box: Box, mode: BootMode) -> tuple[float, float]:
    """Seconds to `ready` in one mode, and of processor time until then."""
    machine, started = launch(folder, disk, "qcow2", box, mode)
    try:
        wall_s = until(machine, started, said("ready"))
        taken_s = cpu_s(machine)
        booted = next(event.text("mode") for event in machine.boot_events() if event.name == "booting")
    finally:
        process.kill(machine)
    if booted != mode:
        raise SystemExit(f"{booted} was booted in place of {mode}")
    return wall_s, taken_s


def measure(box: Box, name: str, n: int, work: Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds to `ready`, and of processor time until then, of each mode."""
    up(UpRequest(Project(box, name)))
    real = Machine(box.name)
    stop.halt(real)
    wall: dict[str, list[float]] = {mode: [] for mode in MODES}
    cpu: dict[str, list[float]] = {mode: [] for mode in MODES}
    for turn in range(n):
        for mode in (*MODES[turn % 3 :], *MODES[: turn % 3]):
            wall_s, cpu_taken_s = boot(work / "m", real.disk, box, mode)
            wall[mode].append(wall_s)
            cpu[mode].append(cpu_taken_s)
            note(f"{mode}: {wall_s:.2f} s, {cpu_taken_s:.2f} s of processor time")
    return wall, cpu


def main() -> None:
    """Measures and prints one JSON object."""
    asked = options(__doc__, box="minimal")
    paths.home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.home(), prefix="bench-") as work:
        wall, cpu = measure(shipped(asked.box), asked.box, asked.n, Path(work))
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
