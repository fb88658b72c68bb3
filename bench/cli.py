"""Processor time of short commands, each as a process: medians and limits. The durations are for information.

    python -m bench.cli [-n 15]

`status` shows the box minimal. Run `kimbox up minimal` first to include the queries of QEMU and of the guest's events.
`list` shows 2 and 200 halted machines of two other homes, which the benchmark makes. Each round runs every command, so
that host load affects all of them equally. The ratio of both lists is the median of the ratios of all rounds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from bench.common import medians, options, ratio, show, timed
from kimbox import paths
from kimbox.machine.record import Ended, Record

VERBS = {
    "kimbox --version": ["-m", "kimbox", "--version"],
    "kimbox validate minimal": ["-m", "kimbox", "validate", "minimal"],
    "kimbox status minimal": ["-m", "kimbox", "status", "minimal"],
}

#: Maximum processor time of each command, in seconds.
LIMITS_S = {"kimbox --version": 0.15, "kimbox validate minimal": 0.35, "kimbox status minimal": 0.4}

#: Numbers of machines that `list` shows, and the maximum ratio of both durations.
FEW, MANY = 2, 200
LIST_LIMIT = 3.0

#: Number of events of each machine, as of a box that provisioned a few steps and was halted.
EVENTS = 25


def make_home(home: Path, count: int) -> Path:
    """Makes a home with `count` halted machines that have no disk. Returns the home."""
    for number in range(count):
        name = f"bench-{number:03}"
        folder = home / "machines" / name
        folder.mkdir(parents=True)
        uuid = f"00000000-0000-4000-8000-{number:012}"
        record = Record(name, "/kimbox.yaml", None, "d" * 64, "e" * 64, uuid, "52:54:00:00:00:01", 20022, {})
        value = record.as_json() | {"ended": str(Ended.HALTED)}
        (folder / "machine.json").write_text(json.dumps(value))
        event = {"event": "step", "boot": uuid, "uptime_s": 1.5, "kind": "provision", "name": "a step of the box"}
        (folder / "events.jsonl").write_text((json.dumps(event) + "\n") * EVENTS)
    return home


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, n=15)
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        lists = {f"kimbox list, {count} machines": make_home(Path(work) / str(count), count) for count in (FEW, MANY)}
        commands = {"python": ["-c", "pass"], **VERBS, **{name: ["-m", "kimbox", "list"] for name in lists}}
        times: dict[str, list[float]] = {name: [] for name in commands}
        cpu: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.n):
            for name, words in commands.items():
                env = {**os.environ, "KIMBOX_HOME": str(lists.get(name, paths.home()))}
                duration_s, cpu_s = timed([sys.executable, *words], env=env)
                times[name].append(duration_s)
                cpu[name].append(cpu_s)
    few, many = lists
    median, of_lists = medians(cpu, 3), ratio(cpu[many], cpu[few])
    ok = of_lists <= LIST_LIMIT and all(median[name] <= limit for name, limit in LIMITS_S.items())
    show(
        {
            "median_s": medians(times, 3),
            "cpu_s": median,
            "limit_cpu_s": LIMITS_S,
            "list ratio": of_lists,
            "list limit": LIST_LIMIT,
            "ok": ok,
        }
    )


if __name__ == "__main__":
    main()
