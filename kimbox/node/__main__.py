"""runner.pyz ORDER [ITEM]: runs one job on an execute node. ITEM is the last argument of the program, as hex digits.

The exit status is that of `kimbox job run`. The file results.raw is written in any case: its file report.json has the
verdict, and beside it are the results, the events of the guest and the end of its console.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import time
import uuid
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from kimbox.drivers import accelerator
from kimbox.drivers.accelerator import Accelerator
from kimbox.errors import KimboxError
from kimbox.files import json_bytes, need_space, read_end, sha256_file
from kimbox.image.disk.ext4.directories import shown
from kimbox.jobs import listing
from kimbox.jobs.disk import contents, extract, pack
from kimbox.jobs.order import BASE, CONSOLE, DELIVERY, EVENTS, IMAGE, MAX_EVENT_BYTES, ORDER, REPORT, Order
from kimbox.jobs.order import RESULTS as RESULTS_DISK
from kimbox.jobs.result import MAX_STATUS_BYTES, RESULTS, STATUS_FILE, Outcome, Report, Verdict, judge
from kimbox.log import log, printable
from kimbox.node import guest, imagecache
from kimbox.run import which

#: Maximum length of a reason, in characters.
MAX_REASON = 2000


#: The argument with which the runner prints what this node can do, in place of a job.
PROBE = "--probe"

#: Timeout of the boot of the probe's guest under emulation, in seconds. The node may be busy with jobs.
EMULATED_PROBE_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Work:
    """The job of this process. `folder`: where it works; HTCondor removes it afterwards."""

    order: Order
    arguments: list[str]
    folder: Path
    began_at: float = field(default_factory=time.monotonic)
    job_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    facts: dict[str, Any] = field(default_factory=dict)
    run: guest.Run | None = None

    @property
    def guest_folder(self) -> Path:
        return self.folder / "guest"

    @property
    def results(self) -> Path:
        return self.folder / "results"


def main(argv: list[str]) -> int:
    """Runs the job; returns the exit status."""
    if argv[1:] == [PROBE]:
        print(capabilities())
        return 0
    place = Path.cwd()
    order = Order.read(place / (argv[1] if len(argv) > 1 else ORDER))
    item = [bytes.fromhex(argv[2]).decode(errors="surrogateescape")] if len(argv) > 2 else []
    work = Work(order, [*order.arguments, *item], place)
    for old in (work.guest_folder, work.results):
        shutil.rmtree(old, ignore_errors=True)
    (place / RESULTS_DISK).unlink(missing_ok=True)
    try:
        _run(work)
        verdict = _extract(work)
    except (KimboxError, OSError) as error:
        verdict = Verdict(Outcome.HOST, reason=printable(str(error))[:MAX_REASON])
    _write(work, verdict)
    log.info(f"{verdict.outcome}{f': {verdict.reason}' if verdict.reason else ''}")
    return verdict.status


def capabilities() -> str:
    """Returns the attributes of this node for a startd cron of HTCondor. Boots a tiny guest, with KVM if that works."""
    chosen: Accelerator | None = None
    failure: str | None = "qemu-system-x86_64 or qemu-img is missing"
    if which("qemu-system-x86_64") and which("qemu-img"):
        chosen = accelerator.probe()
        failure = None
        if chosen.name != "kvm":
            failure = accelerator.probe_failure(chosen.name, chosen.cpu, timeout_s=EMULATED_PROBE_TIMEOUT_S)
    is_capable = chosen is not None and failure is None
    texts = {
        "KimboxAccelerator": chosen.name if chosen and is_capable else "none",
        "KimboxReason": failure or (chosen.why if chosen else ""),
        "KimboxQemu": guest.version() if chosen else "",
    }
    lines = [f"HasKimboxVM = {json.dumps(is_capable)}"]
    lines += [f"{key} = {json.dumps(printable(text)[:MAX_REASON])}" for key, text in texts.items()]
    return "\n".join([*lines, "-"])


def _run(work: Work) -> None:
    """Makes the disks, and boots the guest."""
    order, folder = work.order, work.guest_folder
    folder.mkdir(mode=0o700)
    _pack(work)
    if order.has_delivery:
        (work.folder / DELIVERY).rename(folder / DELIVERY)
    with contextlib.ExitStack() as stack:
        image = _image(work, stack)
        guest.create_disks(order, folder, image)
        chosen = _accelerator()
        work.facts |= {"accelerator": chosen.name, "accelerator_reason": chosen.why, "qemu": guest.version()}
        with log.step(f"running the job {work.job_id} ({chosen.name})"):
            work.run = guest.run_guest(order, folder, work.job_id, chosen)


def _image(work: Work, stack: contextlib.ExitStack) -> Path:
    """Returns the image: the one beside the order, or that in the cache of this node."""
    order = work.order
    if not order.image_url:
        if sha256_file(work.folder / IMAGE) != f"sha256:{order.image_sha256}":
            raise KimboxError("the image of the job was changed on its way", code="bad-digest")
        return work.folder / IMAGE
    leased = imagecache.leased(
        imagecache.folder(), order.image_sha256, order.image_bytes, order.image_url, order.cache_bytes
    )
    with log.step("taking the image from the cache of this node"):
        return stack.enter_context(leased)


def _accelerator() -> Accelerator:
    """Returns the accelerator of this node. The result of the probe is kept beside the images."""
    try:
        os.environ["KIMBOX_HOME"] = str(imagecache.folder())
        return accelerator.find()
    except (KimboxError, OSError):
        return accelerator.probe()


def _pack(work: Work) -> None:
    """Writes the disk of the job: the folder as it was at the submission, with the arguments of this item."""
    order, folder = work.order, work.folder / "job"
    shutil.rmtree(folder, ignore_errors=True)
    with contents.opened(work.folder / BASE) as disk:
        need_space(work.folder, disk.size_bytes, "the folder of the job")
        extract.extract(disk, folder)
    if not order.has_output:  # so that the digest of the folder is that of the submission
        (folder / "output").rmdir()
    folder.chmod(order.folder_mode & 0o777)
    os.utime(folder, ns=(order.folder_modified_ns, order.folder_modified_ns))
    room = None
    if order.room_bytes is not None or order.room_percent is not None:
        room = pack.Room(Fraction(order.room_percent or 0), order.room_bytes)
    packed = pack.pack(
        folder,
        work.guest_folder / guest.JOB_DISK,
        size_bytes=order.size_bytes,
        room=room,
        added=pack.arguments_file(work.arguments),
    )
    work.facts |= {"folder": f"sha256:{packed.digest}", "size_bytes": packed.size_bytes}
    work.facts["input"] = listing.of_source(packed.source, without=[pack.ARGUMENTS]).digest


def _extract(work: Work) -> Verdict:
    """Extracts the results, and returns the verdict."""
    run = work.run
    assert run is not None  # noqa: S101 - set by _run
    try:
        with contents.opened(work.guest_folder / guest.JOB_DISK) as disk:
            stored = Report.parse(disk.head(STATUS_FILE, MAX_STATUS_BYTES) or b"")
            verdict = run.verdict or judge(
                run.job_id, run.reported, stored, is_unmounted=disk.is_clean, powered_off=run.reported is not None
            )
            if any(file.path.split(b"/")[0].decode(errors="replace") in RESULTS for file in disk.files):
                done = extract.extract(disk, work.results, only=RESULTS, skip_unsafe=True)
                work.facts["skipped"] = [f"{shown(file.path)}: {file.unsafe}" for file in done.skipped]
        if stored:
            work.facts |= {"memory_peak_bytes": stored.memory_peak_bytes, "cpu_s": stored.cpu_s}
        return verdict
    except KimboxError as error:
        return run.verdict or Verdict(Outcome.LOST, reason=printable(error.message)[:MAX_REASON])


def _write(work: Work, verdict: Verdict) -> None:
    """Writes the disk with the results."""
    run, results = work.run, work.results
    results.mkdir(exist_ok=True)
    facts = {
        "id": work.job_id,
        "verdict": str(verdict.outcome),
        "exit": verdict.exit,
        "signal": verdict.signal,
        "reason": verdict.reason,
        "arguments": work.arguments,
        "ready_s": round(run.started_at - work.began_at, 3) if run and run.started_at else None,
        "run_s": round(run.ended_at - run.started_at, 3) if run and run.started_at and run.ended_at else None,
        "host": platform.node(),
        **work.facts,
    }
    (results / REPORT).write_bytes(json_bytes(facts))
    (results / CONSOLE).write_bytes(read_end(work.guest_folder / guest.CONSOLE, guest.CONSOLE_BYTES))
    with contextlib.suppress(OSError), (work.guest_folder / guest.EVENTS).open("rb") as events:
        (results / EVENTS).write_bytes(events.read(MAX_EVENT_BYTES))
    pack.pack(results, work.folder / RESULTS_DISK, room=pack.Room(size_bytes=0), is_job=False)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except (KimboxError, OSError, ValueError) as failure:
        print(f"kimbox runner: {json.dumps(str(failure))}", file=sys.stderr)
        sys.exit(125)
