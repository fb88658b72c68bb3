"""`kimbox shrink`, compared with the usual method: fill the guest's file systems with zeros, then `qemu-img convert`.

    python -m bench.shrink [-n 3] [--box minimal]

Both start from the same used disk: a file of 300 MB on the root and one of 100 MB on /persistent were written and
removed. The time of the usual method includes the zeros and the conversion (with the same backing file), but not the
boot and the halt of the guest. `bytes` is the size of the result on the host. Images are in KIMBOX_HOME.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from bench.common import medians, options, progress, ratio, shipped, show, work_folder
from kimbox.actions import shrink, stop
from kimbox.actions.up import UpRequest, up
from kimbox.guest.ssh import Guest
from kimbox.image.store import images
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.run import run
from kimbox.sparse import copy_sparse
from kimbox.spec.model import BootMode, Box

#: Maximum ratios of `shrink` to the usual method: duration, and size of the result.
LIMIT, LIMIT_BYTES = 0.2, 1.0

USE = """
set -e
dd if=/dev/urandom of=/var/tmp/junk bs=1M count=300 2>/dev/null
dd if=/dev/urandom of=/persistent/junk bs=1M count=100 2>/dev/null
sync
rm /var/tmp/junk /persistent/junk
sync
"""

ZERO = """
for folder in / /boot /persistent; do
    dd if=/dev/zero of="$folder/zero" bs=1M 2>/dev/null
    sync
    rm "$folder/zero"
done
sync
"""


def inside(machine: Machine, script: str) -> float:
    """Runs a script as root in the box. Returns its duration in seconds."""
    with Guest(machine.endpoint(machine.record())) as guest:
        started = time.monotonic()
        done = guest.run(f"sudo -n sh -c {shlex.quote(script)}", timeout_s=1800)
        if done.code:
            raise SystemExit(f"a script failed in the guest: {done.stderr}")
        return time.monotonic() - started


def usual(box: Box, name: str, machine: Machine, image: images.Image, target: Path) -> tuple[float, int]:
    """The duration of the usual method in seconds, and the size of its result in bytes."""
    up(UpRequest(Project(box, name)))
    duration_s = inside(machine, ZERO)
    stop.halt(machine)
    started = time.monotonic()
    onto = ["-B", str(image.disk), "-F", image.format]
    run(["qemu-img", "convert", "-O", "qcow2", *onto, "-m", "16", "-W", machine.disk, target])
    return duration_s + time.monotonic() - started, target.stat().st_blocks * 512


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, n=3, box="minimal")
    box, machine = shipped(arguments.box), Machine(arguments.box)
    times: dict[str, list[float]] = {"kimbox shrink": [], "zeros and convert": []}
    sizes: dict[str, list[float]] = {"before": [], "kimbox shrink": [], "zeros and convert": []}
    with work_folder() as folder:
        used, target = folder / "used.qcow2", folder / "converted.qcow2"
        up(UpRequest(Project(box, arguments.box)))
        inside(machine, USE)
        stop.halt(machine)
        image = images.find(machine.record().image)
        assert image
        copy_sparse(machine.disk, used)
        for _ in range(arguments.n):
            started = time.monotonic()
            done = shrink.shrink(machine, BootMode.KEEP)
            times["kimbox shrink"].append(time.monotonic() - started)
            sizes["before"].append(done.before_bytes)
            sizes["kimbox shrink"].append(done.after_bytes)
            machine.disk.unlink()
            copy_sparse(used, machine.disk)
            duration_s, size = usual(box, arguments.box, machine, image, target)
            times["zeros and convert"].append(duration_s)
            sizes["zeros and convert"].append(size)
            shrink_s = times["kimbox shrink"][-1]
            progress(f"{shrink_s:.2f} s and {duration_s:.2f} s; {done.after_bytes} bytes and {size} bytes")
            for path in (target, machine.disk):
                path.unlink()
            copy_sparse(used, machine.disk)
    ours, theirs = "kimbox shrink", "zeros and convert"
    faster, smaller = ratio(times[ours], times[theirs]), ratio(sizes[ours], sizes[theirs])
    show(
        {
            "median_s": medians(times), "ratio": faster, "limit": LIMIT,
            "median_bytes": medians(sizes, 0), "ratio_bytes": smaller, "limit_bytes": LIMIT_BYTES,
            "ok": faster <= LIMIT and smaller <= LIMIT_BYTES, "all_s": times,
        }
    )  # fmt: skip


if __name__ == "__main__":
    main()
