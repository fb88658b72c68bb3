"""`kimbox save` to a folder, compared with steps of `vagrant package`; and what a second save uploads.

    python -m bench.save [-n 3] [--box minimal]

Each round saves a halted box to an empty folder, and packages the same disk with the two steps of `vagrant package`
that every host has: qemu-img convert, and tar with one thread of gzip. Its other steps, virt-sysprep and virt-sparsify,
are left out. Then 100 MB of random data are written in the box, and it is saved again: `upload` is the ratio of the
bytes that this uploads to the bytes that were written. Images are in KIMBOX_HOME.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from pathlib import Path

from bench.common import medians, options, progress, ratio, shipped, show
from kimbox import paths
from kimbox.actions import stop
from kimbox.actions.saves.save import SaveRequest, save
from kimbox.actions.up import UpRequest, up
from kimbox.guest.ssh import Guest
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.run import run
from kimbox.spec.model import BootMode, Box

#: Maximum ratios: duration of a save to that of the usual package, and uploaded to written bytes.
LIMIT, LIMIT_UPLOAD = 0.5, 1.15

CHANGED_BYTES = 100 << 20

CHANGE = f"head -c {CHANGED_BYTES} /dev/urandom >/var/lib/changed; sync"


def changed(box: Box, name: str, machine: Machine) -> None:
    """Writes new data in the box, which keeps its root, and halts it."""
    up(UpRequest(Project(box, name), boot=Choice(BootMode.KEEP)))
    with Guest(machine.endpoint(machine.record())) as guest:
        done = guest.run(f"sudo -n sh -c {shlex.quote(CHANGE)}", timeout_s=1800)
        if done.code:
            raise SystemExit(f"a script failed in the guest: {done.stderr}")
    stop.halt(machine)


def usual(machine: Machine, folder: Path) -> float:
    """Returns the duration of the usual package, in seconds."""
    disk = folder / "box.img"
    started = time.monotonic()
    run(["qemu-img", "convert", "-O", "qcow2", machine.disk, disk], timeout_s=3600)
    run(["tar", "-C", folder, "-czf", folder / "package.box", disk.name], timeout_s=3600)
    duration_s = time.monotonic() - started
    for path in (disk, folder / "package.box"):
        path.unlink()
    return duration_s


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, n=3, box="minimal")
    box, machine = shipped(arguments.box), Machine(arguments.box)
    paths.home().mkdir(parents=True, exist_ok=True)
    times: dict[str, list[float]] = {"kimbox save": [], "qemu-img and tar": []}
    sizes: dict[str, list[float]] = {"uploaded": [], "written": []}
    with tempfile.TemporaryDirectory(dir=paths.home(), prefix="bench-") as name:
        store = Path(name) / "store"
        changed(box, arguments.box, machine)
        for _ in range(arguments.n):
            shutil.rmtree(store, ignore_errors=True)
            started = time.monotonic()
            save(SaveRequest(machine, str(store)))
            times["kimbox save"].append(time.monotonic() - started)
            times["qemu-img and tar"].append(usual(machine, Path(name)))
            changed(box, arguments.box, machine)
            sizes["uploaded"].append(save(SaveRequest(machine, str(store))).uploaded_bytes)
            sizes["written"].append(CHANGED_BYTES)
            progress(f"{times['kimbox save'][-1]:.2f} s and {times['qemu-img and tar'][-1]:.2f} s")
    faster = ratio(times["kimbox save"], times["qemu-img and tar"])
    upload = ratio(sizes["uploaded"], sizes["written"])
    show(
        {
            "median_s": medians(times), "ratio": faster, "limit": LIMIT,
            "median_bytes": medians(sizes, 0), "upload": upload, "limit_upload": LIMIT_UPLOAD,
            "ok": faster <= LIMIT and upload <= LIMIT_UPLOAD, "all_s": times,
        }
    )  # fmt: skip


if __name__ == "__main__":
    main()
