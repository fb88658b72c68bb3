"""`kimbox save` to a folder, compared with steps of `vagrant package`; what a second save uploads; start from a save.

    python -m bench.save [-n 3] [--box minimal]

Each round saves a halted box to an empty folder, and packages the same disk with the two steps of `vagrant package`
that every host has: qemu-img convert, and tar with one thread of gzip. Its other steps, virt-sysprep and virt-sparsify,
are left out. Then 100 MB of random data are written in the box, and it is saved again: `upload` is the ratio of the
bytes that this uploads to the bytes that were written. Then a box is made of the save and started, on this host, which
has its image: `start` is the ratio of that time to the time in which the saved box itself starts, and in which the
chunks are read and verified. Images are in KIMBOX_HOME.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from bench.common import medians, options, progress, ratio, shipped, show, work_folder
from kimbox.actions import stop
from kimbox.actions.saves import found
from kimbox.actions.saves.restore import RestoreRequest, restore
from kimbox.actions.saves.save import SaveRequest, save
from kimbox.actions.up import UpRequest, up
from kimbox.guest.ssh import Guest
from kimbox.image.saves import packs
from kimbox.machine.bootmode import Choice
from kimbox.machine.folder import Machine
from kimbox.machine.record import Purpose
from kimbox.project.project import Project
from kimbox.run import run
from kimbox.spec.load import load_box
from kimbox.spec.model import BootMode, Box
from kimbox.transfer.stores.opening import open_store

#: Maximum ratios: duration of a save to that of the usual package, uploaded to written bytes, and duration of a start
#: from a save to that of a plain start and the transfer.
LIMIT, LIMIT_UPLOAD, LIMIT_START = 0.5, 1.15, 1.2

#: Name of the box that is made of a save.
COPY = "bench-copy"

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


def timed(work: Callable[[], object]) -> float:
    """Returns the duration of a function, in seconds."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def transferred(url: str) -> None:
    """Reads the packs of the newest save, and verifies them."""
    with contextlib.closing(open_store(url)) as store:
        manifest, _ = found.require(store, None)
        for pack in manifest.packs:
            if not packs.is_whole(store, pack):
                raise SystemExit(f"{pack.name} is damaged")


def starts(box: Box, name: str, machine: Machine, url: str) -> tuple[float, float]:
    """Returns the duration of a start from a save, and of a plain start and the transfer, in seconds."""
    keep = Choice(BootMode.KEEP)
    plain_s = timed(lambda: up(UpRequest(Project(box, name), boot=keep))) + timed(lambda: transferred(url))
    stop.halt(machine)

    def from_save() -> None:
        made = restore(RestoreRequest(url, COPY)).machine
        saved_box = load_box(Path(made.record().source))
        up(UpRequest(Project(saved_box), boot=keep, clone=COPY, purpose=Purpose.CLONE))

    from_save_s = timed(from_save)
    stop.destroy(Machine(COPY))
    return from_save_s, plain_s


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
    times: dict[str, list[float]] = {"kimbox save": [], "qemu-img and tar": []}
    sizes: dict[str, list[float]] = {"uploaded": [], "written": []}
    times |= {"start from a save": [], "plain start and transfer": []}
    with work_folder() as name:
        store = name / "store"
        changed(box, arguments.box, machine)
        for _ in range(arguments.n):
            shutil.rmtree(store, ignore_errors=True)
            started = time.monotonic()
            save(SaveRequest(machine, str(store)))
            times["kimbox save"].append(time.monotonic() - started)
            times["qemu-img and tar"].append(usual(machine, name))
            changed(box, arguments.box, machine)
            sizes["uploaded"].append(save(SaveRequest(machine, str(store))).uploaded_bytes)
            sizes["written"].append(CHANGED_BYTES)
            from_save_s, plain_s = starts(box, arguments.box, machine, str(store))
            times["start from a save"].append(from_save_s)
            times["plain start and transfer"].append(plain_s)
            progress(f"{times['kimbox save'][-1]:.2f} s and {times['qemu-img and tar'][-1]:.2f} s")
    faster = ratio(times["kimbox save"], times["qemu-img and tar"])
    upload = ratio(sizes["uploaded"], sizes["written"])
    start = ratio(times["start from a save"], times["plain start and transfer"])
    show(
        {
            "median_s": medians(times), "ratio": faster, "limit": LIMIT,
            "median_bytes": medians(sizes, 0), "upload": upload, "limit_upload": LIMIT_UPLOAD,
            "start": start, "limit_start": LIMIT_START,
            "ok": faster <= LIMIT and upload <= LIMIT_UPLOAD and start <= LIMIT_START, "all_s": times,
        }
    )  # fmt: skip


if __name__ == "__main__":
    main()
