"""The first use of a box right after `kimbox up`, as ratios to the same use later.

    python -m bench.using [-n 5] [--box minimal]

When `up` ends, the rest of the guest still starts, for as long again as the boot to `ready` under emulation.

exec: `kimbox exec BOX -- true`, right after `up`, and when the guest has started completely.
halt: `kimbox halt`, right after `up`, and when the guest has started completely.

The first `exec` is measured in the start whose `halt` is late, so that each of the two is the first use of a start.
"""

from __future__ import annotations

import os
import statistics
import time

from bench.common import KIMBOX, medians, options, progress, ratio, show
from kimbox import paths
from kimbox.run import run

FIRST_EXEC, LATER_EXEC = "exec right after up", "exec later"
EARLY_HALT, LATE_HALT = "halt right after up", "halt later"

#: Maximum ratios of the use right after `up` to the later one.
LIMITS = {(EARLY_HALT, LATE_HALT): 1.2, (FIRST_EXEC, LATER_EXEC): 1.5}

#: Number of later commands in a round, of which the median counts.
LATER_COMMANDS = 5


def kimbox(*words: str) -> float:
    """Runs a verb. Returns its duration in seconds."""
    started = time.monotonic()
    run([*KIMBOX, *words], env=dict(os.environ))
    return time.monotonic() - started


def measure(name: str, n: int) -> dict[str, list[float]]:
    """The duration of each use in seconds, by title."""
    times: dict[str, list[float]] = {title: [] for pair in LIMITS for title in pair}
    kimbox("up", name)
    kimbox("halt", name)
    for number in range(n):
        kimbox("up", name)
        times[FIRST_EXEC].append(kimbox("exec", name, "--", "true"))
        kimbox("exec", name, "--", "sh", "-c", "systemctl is-system-running --wait >/dev/null || true")
        times[LATER_EXEC].append(statistics.median(kimbox("exec", name, "--", "true") for _ in range(LATER_COMMANDS)))
        times[LATE_HALT].append(kimbox("halt", name))
        kimbox("up", name)
        times[EARLY_HALT].append(kimbox("halt", name))
        progress(f"round {number + 1}: " + ", ".join(f"{title} {row[-1]:.2f} s" for title, row in times.items()))
    return times


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, box="minimal")
    paths.home().mkdir(parents=True, exist_ok=True)
    times = measure(arguments.box, arguments.n)
    ratios = {f"{above} / {below}": ratio(times[above], times[below]) for above, below in LIMITS}
    limits = {f"{above} / {below}": limit for (above, below), limit in LIMITS.items()}
    ok = all(ratios[title] <= limit for title, limit in limits.items())
    show({"median_s": medians(times), "ratios": ratios, "limits": limits, "ok": ok, "all_s": times})


if __name__ == "__main__":
    main()
