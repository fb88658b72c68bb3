"""What this host has and lacks. Each check tries the thing itself."""

from __future__ import annotations

import shutil

from kimbox import paths
from kimbox.drivers import registry
from kimbox.drivers.hostcheck import HostCheck, Outcome, attempt, program
from kimbox.image import namespace
from kimbox.lock.apt import sources as apt

#: Below this, an image may not fit.
LITTLE_SPACE_BYTES = 10 << 30

#: Programs that kimbox calls with every driver, and what for.
PROGRAMS = {
    "qemu-img": "makes the disks of boxes",
    "qemu-nbd": "reads the disks of boxes, and sets which root they boot",
    "ssh": "opens shells in boxes",
    "ssh-keygen": "makes the keys of boxes",
    "git": "fetches repositories",
    "mmdebstrap": "installs the packages of images",
    "mke2fs": "makes the file systems of images",
    "unshare": "keeps builds apart from the host",
}


def examine() -> list[HostCheck]:
    """Every check, in order: what all of kimbox needs, then what each driver needs. Raises nothing."""
    checks = [program(name, purpose) for name, purpose in PROGRAMS.items()]
    checks += [attempt("building", _building), attempt("packages", _packages), attempt("space", _space)]
    return checks + registry.check_host()


def _building() -> HostCheck:
    namespace.check()
    namespace.call(["true"])
    return HostCheck("building", Outcome.GOOD, "images can be built without root")


def _packages() -> HostCheck:
    sources = apt.sources("debian", "trixie", None)
    return HostCheck(
        "packages", Outcome.GOOD, f"Debian packages from {len(sources)} repositories of this machine's apt"
    )


def free_bytes() -> int:
    """Free space where machines and images live."""
    folder = paths.home()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _space() -> HostCheck:
    free = free_bytes()
    found = f"{free / 1e9:.0f} GB free at {paths.home()}"
    if free < LITTLE_SPACE_BYTES:
        return HostCheck("space", Outcome.SLOW, found, "free some, or set KIMBOX_HOME to a larger disk")
    return HostCheck("space", Outcome.GOOD, found)
