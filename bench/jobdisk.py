"""`kimbox job pack` compared with virt-make-fs(1), and `kimbox job extract` with guestfish(1), of libguestfs-tools.

    python -m bench.jobdisk [-n 3]

The folder of the job has 200 files, 50 MB together. Every time is that of a whole command. Both limits are ratios. If
virt-make-fs or guestfish is not installed, its time and the ratio are null, and `ok` does not depend on it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.common import medians, options, progress, ratio, show
from kimbox.files import remove_tree
from kimbox.run import run, which

#: Maximum ratio of kimbox to libguestfs, for both commands.
LIMIT = 0.05

FILES, FILE_BYTES = 200, 250_000


def fill(folder: Path) -> None:
    """Creates the folder of a job."""
    (folder / "input").mkdir(parents=True)
    (folder / "output").mkdir()
    (folder / "run-job").write_text("#!/bin/sh\n")
    (folder / "run-job").chmod(0o755)
    for number in range(FILES):
        (folder / f"input/file-{number}").write_bytes(os.urandom(FILE_BYTES))


def duration_s(argv: Sequence[str | Path]) -> float:
    """The duration of a command in seconds. It gets the whole environment, in which libguestfs has settings."""
    started = time.monotonic()
    run(argv, env=dict(os.environ))
    return time.monotonic() - started


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, n=3)
    times: dict[str, list[float]] = {"pack": [], "virt-make-fs": [], "extract": [], "guestfish": []}
    kimbox: list[str | Path] = [sys.executable, "-m", "kimbox", "job"]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        job, disk, other, out = folder / "job", folder / "disk", folder / "other", folder / "out"
        fill(job)
        for _ in range(arguments.n):
            disk.unlink(missing_ok=True)
            times["pack"].append(duration_s([*kimbox, "pack", job, disk]))
            if which("virt-make-fs"):
                times["virt-make-fs"].append(duration_s(["virt-make-fs", "--size=60M", job, other]))
            times["extract"].append(duration_s([*kimbox, "extract", disk, out]))
            remove_tree(out)
            if which("guestfish"):
                out.mkdir()
                times["guestfish"].append(
                    duration_s(["guestfish", "--ro", "-a", disk, "-m", "/dev/sda", "copy-out", "/", out])
                )
                remove_tree(out)
            progress(", ".join(f"{label} {row[-1]:.2f} s" for label, row in times.items() if row))
    ratios = {
        ours: ratio(times[ours], times[theirs]) if times[theirs] else None
        for ours, theirs in (("pack", "virt-make-fs"), ("extract", "guestfish"))
    }
    measured = {label: row for label, row in times.items() if row}
    is_ok = all(value is None or value <= LIMIT for value in ratios.values())
    show({"median_s": medians(measured), "ratios": ratios, "limit": LIMIT, "ok": is_ok, "all_s": times})


if __name__ == "__main__":
    main()
