"""Clones compared with boots of a stock system, and a template with a first `up`. All values are from one run.

    python -m bench.clones [-n 5] [--box minimal] [--clones 100]

First the template of a box is made, and the box is started without it. Then, n times: bare QEMU boots a stock minimal
system with the same packages a second time, until the host receives the banner of sshd; `kimbox clone` starts three
clones of a box with a unit, one after the other, until they are awake and until the unit has sent an event; and it
starts three clones of a box without one, until `kimbox exec` returns. At last many clones start two at a time, each
runs the unit and is destroyed. Images, machines and templates are in KIMBOX_HOME.
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from bench import stock
from bench.boot import booted_once
from bench.common import (
    KIMBOX,
    POLL_S,
    banner,
    has_event,
    launch,
    medians,
    options,
    progress,
    show,
    wait_until,
    work_folder,
)
from kimbox import paths
from kimbox.actions import stop
from kimbox.actions.clones import clone as cloning
from kimbox.actions.clones import template as making
from kimbox.drivers.qemu import process
from kimbox.image import obtain
from kimbox.machine import templates
from kimbox.machine.folder import Machine
from kimbox.project.plan import Plan, make_plan
from kimbox.project.project import Project
from kimbox.run import background, run
from kimbox.spec.load import load_box

STOCK = "bare QEMU, stock system, second boot, to the ssh banner"
AWAKE = "kimbox clone, to the event of a clone that has its identity"
PROGRAM = "kimbox clone, to the event of a unit in it"
SSH = "kimbox clone, to the end of kimbox exec after it"
MANY = "clones two at a time, each runs a unit and is destroyed"
TEMPLATE = "a template is made"
COLD = "kimbox up of a new box, without a template"

#: Maximum ratios. That of MANY is for each clone.
LIMITS = {(AWAKE, STOCK): 0.015, (SSH, STOCK): 0.06, (MANY, STOCK): 0.015, (TEMPLATE, COLD): 1.3}

#: Names of the boxes with and without a unit.
NAME, PLAIN = "bench-clones", "bench-plain"

#: The spec of a box.
SPEC = """
kimbox: 1
name: {name}
base: [{box}.yaml]
"""

#: More of a spec: a unit of the box sends an event in each clone.
UNIT = """\
template: {{stop: [bench-true.service]}}
provision:
  - name: unit
    script: |
      printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/sh -c "true; exec {event} ran"\\n' \\
        >/etc/systemd/system/bench-true.service
      systemctl daemon-reload
"""

#: Number of clones of each kind in a round: clones seldom come alone.
CLONES_PER_ROUND = 3

#: Timeout of a clone, in seconds.
CLONE_TIMEOUT_S = 300.0


def wait_for(machine: Machine, event: str) -> float:
    """Waits for an event of a clone, which may not exist yet; returns the time of the event (time.monotonic())."""
    deadline, is_sent = time.monotonic() + CLONE_TIMEOUT_S, has_event(event)
    while not is_sent(machine):
        if time.monotonic() > deadline:
            raise SystemExit(f"a clone did not answer in {CLONE_TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)
    return time.monotonic()


def with_unit(spec: Path) -> dict[str, float]:
    """The durations of one clone to its identity and to the event of its unit, from the start of the command."""
    machine = Machine("bench-one")
    began = time.monotonic()
    command = ["env", f"KIMBOX_HOME={paths.home()}", *KIMBOX, "clone", str(spec), machine.name]
    with background(command) as clone:
        found = {AWAKE: wait_for(machine, "awake") - began}
        found[PROGRAM] = wait_for(machine, "ran") - began
        if clone.wait(CLONE_TIMEOUT_S):
            raise SystemExit(clone.output())
    stop.destroy(machine)
    return found


def with_exec(spec: Path) -> dict[str, float]:
    """The duration of one clone and the first command in it, from the start of `kimbox clone`."""
    machine = Machine("bench-one")
    began = time.monotonic()
    for words in (["clone", spec, machine.name], ["exec", machine.name, "--", "true"]):
        run([*KIMBOX, *words], env=dict(os.environ))
    duration_s = time.monotonic() - began
    stop.destroy(machine)
    return {SSH: duration_s}


def many(plan: Plan, count: int) -> float:
    """The duration of `count` clones, two at a time, each with its unit and its end, in seconds for each clone."""

    def live(number: int) -> None:
        machine = Machine(f"bench-many-{number}")
        cloning.start(machine, plan, template)
        wait_for(machine, "ran")
        stop.destroy(machine)

    with making.leased(plan, timeout_s=CLONE_TIMEOUT_S) as template, ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        for result in [pool.submit(live, number) for number in range(count)]:
            result.result()
        return (time.monotonic() - began) / count


def made(plan: Plan) -> float:
    """The duration of making the template again, in seconds."""
    templates.remove(making.key_of(plan), is_unused=lambda: True)
    began = time.monotonic()
    with making.leased(plan, timeout_s=CLONE_TIMEOUT_S):
        return time.monotonic() - began


def started_cold(spec: Path) -> float:
    """The duration of the first `kimbox up` of the box, in seconds."""
    began = time.monotonic()
    run([*KIMBOX, "up", "-f", spec], env=dict(os.environ))
    duration_s = time.monotonic() - began
    stop.destroy(Machine(NAME))
    return duration_s


def measure(name: str, n: int, clones: int, work: Path) -> dict[str, list[float]]:
    """The duration of each measurement in seconds, by title."""
    spec, plain = work / "kimbox.yaml", work / "plain.yaml"
    spec.write_text((SPEC + UNIT).format(name=NAME, box=name, event="/usr/lib/kimbox/event"))
    plain.write_text(SPEC.format(name=PLAIN, box=name))
    project = Project(load_box(spec))
    plan = make_plan(project)
    recipe = obtain.recipe_of(plan.box, plan.lock.packages)
    obtain.ensure(plan.box, plan.recipe)
    disk = booted_once(stock.build(recipe, plan.box.image, work), plan.box, work / "stock")  # type: ignore[arg-type]
    times: dict[str, list[float]] = {title: [] for title in (STOCK, AWAKE, PROGRAM, SSH, MANY, TEMPLATE, COLD)}
    times[TEMPLATE].append(made(plan))
    times[COLD].append(started_cold(spec))
    plain_plan = make_plan(Project(load_box(plain)))
    made(plain_plan)
    for _ in range(n):
        machine, started = launch(work / "m", disk, "qcow2", attrs.evolve(plan.box, forwards=()))
        times[STOCK].append(wait_until(machine, started, banner))
        process.kill(machine)
        for _ in range(CLONES_PER_ROUND):
            for title, duration_s in (with_unit(spec) | with_exec(plain)).items():
                times[title].append(duration_s)
        progress(f"{ {title: round(row[-1], 2) for title, row in times.items() if row} }")
    times[MANY].append(many(plan, clones))
    for made_plan in (plan, plain_plan):
        templates.remove(making.key_of(made_plan), is_unused=lambda: True)
    return times


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, box="minimal", clones=100)
    with work_folder() as work:
        times = measure(arguments.box, arguments.n, arguments.clones, work)
    median = {title: statistics.median(row) for title, row in times.items()}
    ratios = {f"{above} / {below}": round(median[above] / median[below], 4) for above, below in LIMITS}
    limits = {f"{above} / {below}": limit for (above, below), limit in LIMITS.items()}
    ok = all(median[above] <= limit * median[below] for (above, below), limit in LIMITS.items())
    show({"median_s": medians(times), "ratios": ratios, "limits": limits, "ok": ok, "all_s": times})


if __name__ == "__main__":
    main()
