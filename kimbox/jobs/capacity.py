"""How many guests of a size this host bears at the same time."""

from __future__ import annotations

import os
from pathlib import Path

from kimbox.files import read_bounded

#: Memory that each guest takes beside its own, and that is left for others, in bytes.
OVERHEAD_BYTES, RESERVE_BYTES = 160 << 20, 512 << 20

MEMINFO = Path("/proc/meminfo")


def at_a_time(cpus: int, memory_bytes: int) -> int:
    """Returns the number of guests for which processors and available memory are enough; at least 1."""
    by_processors = len(os.sched_getaffinity(0)) // cpus
    by_memory = (available_bytes() - RESERVE_BYTES) // (memory_bytes + OVERHEAD_BYTES)
    return max(1, min(by_processors, by_memory))


def available_bytes() -> int:
    """Returns the memory that programs can still get, as Linux estimates it."""
    for line in read_bounded(MEMINFO, limit_bytes=1 << 16).decode().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return 0
