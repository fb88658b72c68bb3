"""How long a box that lost its root takes to be what it was: reset to re-provisioned `ready`, against the first time.

    python -m bench.again [-n 3]

A box with `boot: resnap` whose setup installs ten packages and which checks out three repositories besides. First: `up`
of a machine that is not there yet, its image built: boot, delivery, provisioning. Again: QEMU's reset, twice, with the
caches of /persistent warm and the package mirror gone. The packages come from an HTTP server on this host, which is
quicker than a mirror far away: it makes the first time short, and the ratio the worse.
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

from bench.common import locked, medians, note, options, said, show, until
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

#: What `again` may take against the first time.
LIMIT = 0.35

PACKAGES = ("bc", "file", "gawk", "jq", "make", "patch", "rsync", "sqlite3", "unzip", "zip")

#: Resets after each first time.
AGAIN = 2

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
    """The files of a folder by HTTP; the port."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

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
    """A flat apt repository of PACKAGES and what they need beyond `status`, a guest's; returns how many those are."""
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
    """The spec and its repositories; three of them hold this checkout's own sources."""
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
    """The boot that the guest is in."""
    return machine.boot_events()[-1].boot


def read_status(machine: Machine, path: Path) -> None:
    """Which packages the guest's image has."""
    with Guest(machine.endpoint(machine.record())) as guest:
        path.write_text(guest.run("cat /var/lib/dpkg/status", timeout_s=60).stdout)


def measure(n: int, work: Path) -> tuple[dict[str, list[float]], int]:
    """Seconds of the first time, of its provisioning alone, and of each time again; how many packages were fetched."""
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
            times["again"].append(statistics.median(reset(machine) for _ in range(AGAIN)))
            note(str({name: row[-1] for name, row in times.items()}))
        finally:
            stop.destroy(machine)
    return times, fetched


def reset(machine: Machine) -> float:
    """Seconds from QEMU's reset to the ready event of the boot that follows."""
    before = last_boot(machine)
    started = time.monotonic()
    qmp.execute(machine.qmp_socket, "system_reset")
    return until(machine, started, said("ready", but_boot=before))


def main() -> None:
    """Measures and prints one JSON object."""
    asked = options(__doc__, n=3)
    with tempfile.TemporaryDirectory(dir=paths.home(), prefix="bench-") as work:
        times, fetched = measure(asked.n, Path(work))
    median = medians(times, 3)
    ratios = {name: round(median["again"] / median[name], 2) for name in ("first", "first, provisioning alone")}
    show({"median_s": median, "again against": ratios, "limit": LIMIT, "packages": fetched, "all_s": times})


if __name__ == "__main__":
    main()
