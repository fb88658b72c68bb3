"""Time of the first `kimbox up` of a box, compared with a later boot that keeps its root. Both end with a ready box.

    python -m bench.first [-n 5] [--box minimal]

The image exists. Each round creates the box, halts it, and starts it again. Ratios are medians of the ratios of all
rounds. `ready` is the time of that event on the guest's own clock, without the start of kimbox, of QEMU and of the boot
loader. `cpu` is the processor time of QEMU until then, which does not depend on the load of the host. Use a box without
provision steps, because only the first `up` runs them. Images are in KIMBOX_HOME.
"""

from __future__ import annotations

import os
import time

from bench.common import KIMBOX, cpu_s, medians, options, progress, ratio, shipped, show
from kimbox.actions import stop
from kimbox.actions.up import UpRequest, up
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.run import run

FIRST = "the first kimbox up, to its end"
LATER = "a later kimbox up that keeps the root, to its end"
FIRST_READY = "first start, from the kernel's start to the event ready"
LATER_READY = "later start, from the kernel's start to the event ready"

FIRST_CPU = "first start, processor time of QEMU at the end of up"
LATER_CPU = "later start, processor time of QEMU at the end of up"

#: Maximum ratio of the first `up` to a later one.
LIMIT = 1.10


def up_s(name: str) -> float:
    """The duration of `kimbox up` with a new process, in seconds."""
    before = time.monotonic()
    run([*KIMBOX, "up", "--boot", "keep", name], env=dict(os.environ))
    return time.monotonic() - before


def ready_s(machine: Machine) -> float:
    """The time of the event `ready` on the guest's clock, in seconds."""
    return next(event.uptime_s for event in machine.boot_events() if event.name == "ready")


def measure(name: str, n: int) -> dict[str, list[float]]:
    """The duration of each start in seconds, by title."""
    machine = Machine(shipped(name).name)
    stop.destroy(machine)
    up(UpRequest(Project(shipped(name), name)))  # makes lock and image
    times: dict[str, list[float]] = {
        title: [] for title in (FIRST, LATER, FIRST_READY, LATER_READY, FIRST_CPU, LATER_CPU)
    }
    for round_ in range(n):
        stop.destroy(machine)
        for total, event, cpu in ((FIRST, FIRST_READY, FIRST_CPU), (LATER, LATER_READY, LATER_CPU)):
            times[total].append(up_s(name))
            times[cpu].append(cpu_s(machine))
            times[event].append(ready_s(machine))
            stop.halt(machine)
        progress(f"round {round_ + 1}: " + ", ".join(f"{title} {row[-1]:.2f} s" for title, row in times.items()))
    stop.destroy(machine)
    return times


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, box="minimal")
    times = measure(arguments.box, arguments.n)
    total = ratio(times[FIRST], times[LATER])
    ready = ratio(times[FIRST_READY], times[LATER_READY])
    cpu = ratio(times[FIRST_CPU], times[LATER_CPU])
    ratios = {"ratio": total, "ready ratio": ready, "cpu ratio": cpu}
    show({"median_s": medians(times)} | ratios | {"limit": LIMIT, "ok": total <= LIMIT})


if __name__ == "__main__":
    main()
