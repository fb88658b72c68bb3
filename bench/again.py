"""Time from a reset to `ready` with a new root and a new provisioning, compared with the first boot.

    python -m bench.again [-n 3]

The box has `boot: resnap`. Its setup installs ten packages, and it checks out three more repositories.

first: `up` of a new machine whose image exists: boot, delivery, provisioning.
again: two resets of QEMU, with warm caches in /persistent and without the package mirror.

The packages come from an HTTP server on this host, which is faster than a remote mirror. Therefore `first` is shorter,
and the ratio higher, than for a user.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.common import has_event, locked, medians, options, progress, show, wait_until
from kimbox import paths
from kimbox.actions import stop
from kimbox.actions.up import UpRequest, up
from kimbox.drivers.qemu import qmp
from kimbox.guest.ssh import Guest
from kimbox.image import obtain
from kimbox.lock.apt import sources as apt
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.run import run
from kimbox.spec.load import load_box
from kimbox.spec.model import Box, PackageImage

#: Maximum ratio of `again` to `first`.
LIMIT = 0.35

PACKAGES = ("bc", "file", "gawk", "jq", "make", "patch", "rsync", "sqlite3", "unzip", "zip")

#: Number of resets after each first boot.
RESETS = 2

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


def measure(n: int, work: Path) -> tuple[dict[str, list[float]], int]:
    """The durations in seconds (first boot, its provisioning alone, boots after resets), and the number of packages."""
    mirror = work / "mirror"
    mirror.mkdir()
    times: dict[str, list[float]] = {"first": [], "first, provisioning alone": [], "again": []}
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
            times["again"].append(statistics.median(reset(machine) for _ in range(RESETS)))
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
    with tempfile.TemporaryDirectory(dir=paths.home(), prefix="bench-") as work:
        times, fetched = measure(arguments.n, Path(work))
    median = medians(times, 3)
    ratios = {name: round(median["again"] / median[name], 2) for name in ("first", "first, provisioning alone")}
    show({"median_s": median, "again against": ratios, "limit": LIMIT, "packages": fetched, "all_s": times})


if __name__ == "__main__":
    main()
