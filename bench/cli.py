"""Duration of short commands, each as a process: medians, their limits, and ratios to the start of Python.

    python -m bench.cli [-n 15]

`status` shows the box minimal. Run `kimbox up minimal` first to include the queries of QEMU and of the guest's events.
"""

from __future__ import annotations

import sys
import time

from bench.common import medians, options, show
from kimbox.run import run

VERBS = {
    "kimbox --version": ["-m", "kimbox", "--version"],
    "kimbox validate minimal": ["-m", "kimbox", "validate", "minimal"],
    "kimbox status minimal": ["-m", "kimbox", "status", "minimal"],
    "kimbox list": ["-m", "kimbox", "list"],
}

#: Maximum duration of each command on an idle host, in seconds.
LIMITS_S = {"kimbox --version": 0.15, "kimbox validate minimal": 0.35, "kimbox status minimal": 0.4}


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, n=15)
    commands = {"python": ["-c", "pass"], **VERBS}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.n):
        for name, words in commands.items():
            started = time.monotonic()
            run([sys.executable, *words])
            times[name].append(time.monotonic() - started)
    median = medians(times, 3)
    ratios = {name: round(value / median["python"], 1) for name, value in median.items()}
    shown = {
        name: {"median_s": value, "limit_s": LIMITS_S.get(name), "against a bare python": ratios[name]}
        for name, value in median.items()
    }
    show(shown)


if __name__ == "__main__":
    main()
