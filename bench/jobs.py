"""Jobs that run in clones of a template, compared with cold ones and with a program in a box that runs.

    python -m bench.jobs [-n 5] [--box minimal] [--clones 20]

sweep: `kimbox job run --each` of as many jobs as `--clones` says, each of one second, two at a time; in proportion to
the same number of cold ones. That is estimated from two cold jobs at a time.
job: one `kimbox job run` of `true`, in seconds beyond `kimbox exec` of it in a box that runs. They take turns.

The template is made before, and is not measured. The box and its image are in KIMBOX_HOME.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from bench.common import KIMBOX, medians, options, progress, show, work_folder
from kimbox.run import run

#: Titles of the measurements, in seconds. The first two are those of one job of the sweep.
WARM, COLD, JOB, EXEC = "a job of the sweep, warm", "a job of the sweep, cold", "job run", "exec"

#: Maximum ratio of WARM to COLD, and maximum of JOB - EXEC in seconds, under emulation.
MAX_RATIO, MAX_OVERHEAD_S = 0.20, 2.5

#: Number of jobs at the same time, and of cold jobs from which many are estimated.
AT_A_TIME, COLD_JOBS = 2, 2

SPEC = "kimbox: 1\nname: bench-jobs\nbase: [{box}.yaml]\n"


def kimbox(folder: Path, *words: str, input: str | None = None) -> float:
    """Runs a verb in a folder. Returns its duration in seconds."""
    began = time.monotonic()
    run([*KIMBOX, *words], env=dict(os.environ), cwd=folder, input=input)
    return time.monotonic() - began


def make_job(folder: Path, script: str) -> None:
    """Writes the folder of a job."""
    folder.mkdir()
    (folder / "run-job").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "run-job").chmod(0o755)


def swept(folder: Path, count: int, *options: str) -> float:
    """The duration of a sweep over `count` jobs of one second, for each job, in seconds."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        words = ("job", "run", "second", "--each", "-", "-j", str(AT_A_TIME), "--output", f"{out}/results", *options)
        return kimbox(folder, *words, input="".join(f"{number}\n" for number in range(count))) / count


def one_job(folder: Path) -> float:
    """The duration of a job that does nothing, in seconds."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        return kimbox(folder, "job", "run", "nothing", "--output", f"{out}/results")


def measure(box: str, n: int, jobs: int, folder: Path) -> dict[str, list[float]]:
    """The duration of each measurement in seconds, by title."""
    (folder / "kimbox.yaml").write_text(SPEC.format(box=box))
    make_job(folder / "second", "sleep 1")
    make_job(folder / "nothing", "true")
    one_job(folder)  # makes the template
    times: dict[str, list[float]] = {WARM: [swept(folder, jobs)], COLD: [swept(folder, COLD_JOBS, "--cold")]}
    progress(f"sweep: {times}")
    times |= {JOB: [], EXEC: []}
    kimbox(folder, "up")
    try:
        kimbox(folder, "exec", "bench-jobs", "--", "true")
        for _ in range(n):
            times[JOB].append(one_job(folder))
            times[EXEC].append(kimbox(folder, "exec", "bench-jobs", "--", "true"))
            progress(f"job {times[JOB][-1]:.2f} s, exec {times[EXEC][-1]:.2f} s")
    finally:
        kimbox(folder, "destroy", "-y", "bench-jobs")
    return times


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, box="minimal", clones=20)
    with work_folder() as work:
        times = measure(arguments.box, arguments.n, arguments.clones, work)
    ratio = times[WARM][0] / times[COLD][0]
    overhead_s = statistics.median(a - b for a, b in zip(times[JOB], times[EXEC], strict=True))
    show(
        {
            "median_s": medians(times),
            "ratio": round(ratio, 3),
            "max_ratio": MAX_RATIO,
            "overhead_s": round(overhead_s, 2),
            "max_overhead_s": MAX_OVERHEAD_S,
            "ok": ratio <= MAX_RATIO and overhead_s <= MAX_OVERHEAD_S,
            "all_s": times,
        }
    )


if __name__ == "__main__":
    main()
