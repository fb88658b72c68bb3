"""Time from a reset to `ready` with a new root, compared with the first boot and with a boot that keeps the root.

    python -m bench.again [-n 3]

The box has `boot: resnap`. Its setup installs ten packages, and it checks out three more repositories.

first: `up` of a new machine whose image exists: boot, delivery, provisioning.
kept: two resets of QEMU in the mode resnap. Each boot puts back the root that the first boot has kept.
keep: two resets in the mode keep.
again: two resets with an empty snapshot, with warm caches in /persistent and without the package mirror.

`put back` is the time of the initramfs for it by the clock of the guest, the size of what it puts back, and the time of
200 MB at this rate.

The packages come from an HTTP server on this host, which is faster than a remote mirror. Therefore `first` is shorter,
and the ratio higher, than for a user.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.common import has_event, locked, medians, options, progress, ratio, show, wait_until, work_folder
from kimbox.actions import stop
from kimbox.actions.up import UpRequest, up
from kimbox.drivers.qemu import qmp
from kimbox.guest.ssh import Guest
from kimbox.image import obtain
from kimbox.lock.apt import sources as apt
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.run import run
from kimbox.spec.layout import MIB
from kimbox.spec.load import load_box
from kimbox.spec.model import Box, PackageImage

#: Maximum ratio of `again` to `first`, and of `kept` to `keep`.
LIMIT = 0.35
KEPT_LIMIT = 1.2

PACKAGES = ("bc", "file", "gawk", "jq", "make", "patch", "rsync", "sqlite3", "unzip", "zip")

#: Number of resets of each kind after each first boot.
RESETS = 2

#: Values of the result.
NAMES = ("first", "first, provisioning alone", "kept", "put back", "put back, MB", "put back, 200 MB", "keep", "again")

#: Messages of the initramfs before and after it puts back a kept root: the time of each, and its size in MiB.
PUT_BACK = (
    r"\[ *([0-9.]+)\] kimbox: putting back the root of the manifest [0-9a-f-]+, (\d+) MiB"
    r"(?s:.*)\[ *([0-9.]+)\] kimbox: the root of the manifest [0-9a-f-]+ is put back"
)

NAME = "bench-again"
SPEC = f"""kimbox: 1
name: {NAME}
base: [minimal.yaml]
boot: resnap
repositories:
  setup: {{url: ./setup}}
  one: {{url: ./one}}
  two: {{url: ./two}}
  three: {{url: ./three}}
probes:
  - {{description: what was installed runs, script: "{"; ".join(f"command -v {name}" for name in PACKAGES)}"}}
"""
SETUP = """#!/bin/sh
set -eu
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
echo "deb [trusted=yes] http://10.0.2.2:{port} ./" >/etc/apt/sources.list
apt-get -q update || echo "no mirror: with what is here"
apt-get -q -y --no-install-recommends install {packages}
"""


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[int]:
    """Serves the files of a folder by HTTP; yields the port."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def fill(mirror: Path, work: Path, image: PackageImage, status: Path) -> int:
    """Writes a flat apt repository with PACKAGES and their dependencies. Returns the number of packages.

    `status`: the dpkg status file of a guest. Packages that are installed there are left out.
    """
    sources = apt.sources(image.distribution, image.suite, image.mirror)
    lines = [source.line().replace("deb ", "deb [trusted=yes] ", 1) for source in sources]
    (work / "sources.list").write_text("\n".join(lines) + "\n")
    (work / "lists" / "partial").mkdir(parents=True)
    (mirror / "partial").mkdir()
    settings = {
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::State::Status": status,
        "Dir::Cache::Archives": mirror,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
        "Debug::NoLocking": "true",
    }
    words = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    run(["apt-get", *words, "-q", "update"])
    run(["apt-get", *words, "-q", "-y", "--download-only", "install", *PACKAGES])
    index = ""
    debs = sorted(mirror.glob("*.deb"))
    for deb in debs:
        data = deb.read_bytes()
        index += run(["dpkg-deb", "--field", deb]).stdout.rstrip("\n")
        index += f"\nFilename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    (mirror / "Packages").write_text(index)
    return len(debs)


def write_box(folder: Path, port: int) -> Box:
    """Writes the spec and its repositories. Three of them contain sources of this checkout."""
    top = Path(__file__).resolve().parents[1]
    for name, source in {"one": "kimbox", "two": "tests", "three": "provisioners"}.items():
        shutil.copytree(top / source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    setup = folder / "setup" / "setup"
    setup.parent.mkdir()
    setup.write_text(SETUP.format(port=port, packages=" ".join(PACKAGES)))
    setup.chmod(0o755)
    spec = folder / "kimbox.yaml"
    spec.write_text(SPEC)
    return load_box(spec)


def last_boot(machine: Machine) -> str:
    """The id of the guest's current boot."""
    return machine.boot_events()[-1].boot


def read_status(machine: Machine, path: Path) -> None:
    """Copies the dpkg status file of the guest to `path`."""
    with Guest(machine.endpoint(machine.record())) as guest:
        path.write_text(guest.run("cat /var/lib/dpkg/status", timeout_s=60).stdout)


def in_guest(machine: Machine, command: str) -> str:
    """The output of a command that root runs in the guest."""
    with Guest(machine.endpoint(machine.record())) as guest:
        return guest.run(f"sudo sh -c '{command}'", timeout_s=60).stdout


def reset_kept(machine: Machine) -> tuple[float, float, float]:
    """The times of a reset whose boot puts back the kept root: to `ready`, and for putting back, in seconds; the MB."""
    ready_s = reset(machine)
    if not any(event.name == "kept" and event.text("status") == "restored" for event in machine.boot_events()):
        raise SystemExit("the kept root was not put back: see `kimbox logs --events`")
    begun, mib, ended = re.findall(PUT_BACK, in_guest(machine, "dmesg"))[-1]
    return ready_s, float(ended) - float(begun), int(mib) * MIB / 1e6


def reset_keep(machine: Machine) -> float:
    """The time of a reset in the mode keep, in seconds."""
    in_guest(machine, "grub-editenv /boot/grub/grubenv set next_entry=keep; sync")
    return reset(machine)


def reset_again(machine: Machine) -> float:
    """The time of a reset with an empty snapshot, in seconds."""
    in_guest(machine, "/usr/lib/kimbox/kept drop")
    return reset(machine)


def measure_resets(machine: Machine, times: dict[str, list[float]]) -> None:
    """Adds the times of all kinds of resets."""
    kept = [reset_kept(machine) for _ in range(RESETS)]
    times["kept"].append(statistics.median(ready_s for ready_s, _, _ in kept))
    times["put back"].append(statistics.median(put_back_s for _, put_back_s, _ in kept))
    times["put back, MB"].append(kept[0][2])
    times["put back, 200 MB"].append(times["put back"][-1] / kept[0][2] * 200)
    times["keep"].append(statistics.median(reset_keep(machine) for _ in range(RESETS)))
    times["again"].append(statistics.median(reset_again(machine) for _ in range(RESETS)))


def measure(n: int, work: Path) -> tuple[dict[str, list[float]], int]:
    """The durations in seconds (first boot, its provisioning alone, boots after resets), and the number of packages."""
    mirror = work / "mirror"
    mirror.mkdir()
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    fetched = 0
    for _ in range(n):
        with served(mirror) as port, tempfile.TemporaryDirectory(dir=work) as folder:
            box = write_box(Path(folder), port)
            machine = Machine(NAME)
            obtain.ensure(box, locked(box))
            started = time.monotonic()
            up(UpRequest(Project(box), provision=False))
            boot_s = time.monotonic() - started
            try:
                if not fetched and isinstance(box.image, PackageImage):
                    read_status(machine, work / "status")
                    fetched = fill(mirror, work, box.image, work / "status")
                started = time.monotonic()
                up(UpRequest(Project(box)))
                times["first, provisioning alone"].append(time.monotonic() - started)
                times["first"].append(boot_s + times["first, provisioning alone"][-1])
            except BaseException:
                stop.destroy(machine)
                raise
        try:
            measure_resets(machine, times)
            progress(str({name: row[-1] for name, row in times.items()}))
        finally:
            stop.destroy(machine)
    return times, fetched


def reset(machine: Machine) -> float:
    """The time from the reset of QEMU to the event `ready` of the following boot, in seconds."""
    before = last_boot(machine)
    started = time.monotonic()
    qmp.execute(machine.qmp_socket, "system_reset")
    return wait_until(machine, started, has_event("ready", but_boot=before))


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, n=3)
    with work_folder() as work:
        times, fetched = measure(arguments.n, work)
    median = medians(times, 3)
    ratios = {name: round(median["again"] / median[name], 2) for name in ("first", "first, provisioning alone")}
    show(
        {
            "median_s": median,
            "again against": ratios,
            "limit": LIMIT,
            "kept against keep": ratio(times["kept"], times["keep"]),
            "limit of kept": KEPT_LIMIT,
            "packages": fetched,
            "all_s": times,
        }
    )


if __name__ == "__main__":
    main()
