"""Duration of short commands, each as a process: medians, their limits, and ratios to the start of Python.

    python -m bench.cli [-n 15]

`status` shows the box minimal. Run `kimbox up minimal` first to include the queries of QEMU and of the guest's events.
`list` shows 2 and 200 halted machines of two other homes, which the benchmark makes. Each round runs every command, so
that host load affects all of them equally; the ratio of both lists is the median of the ratios of all rounds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from bench.common import medians, options, ratio, show
from kimbox import paths
from kimbox.machine.record import Ended, Record
from kimbox.run import run

VERBS = {
    "kimbox --version": ["-m", "kimbox", "--version"],
    "kimbox validate minimal": ["-m", "kimbox", "validate", "minimal"],
    "kimbox status minimal": ["-m", "kimbox", "status", "minimal"],
}

#: Maximum duration of each command on an idle host, in seconds.
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
        for _ in range(arguments.n):
            for name, words in commands.items():
                home = lists.get(name, paths.home())
                started = time.monotonic()
                run([sys.executable, *words], env={**os.environ, "KIMBOX_HOME": str(home)})
                times[name].append(time.monotonic() - started)
    median = medians(times, 3)
    of_lists = ratio(*(times[name] for name in reversed(lists)))
    shown = {
        name: {
            "median_s": value,
            "limit_s": LIMITS_S.get(name),
            "against a bare python": round(value / median["python"], 1),
        }
        for name, value in median.items()
    }
    show({"commands": shown, "list": {"ratio": of_lists, "limit": LIST_LIMIT}, "ok": of_lists <= LIST_LIMIT})


if __name__ == "__main__":
    main()
