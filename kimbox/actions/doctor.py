"""What this host has and lacks, each found out by trying it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from enum import StrEnum

import attrs

from kimbox import paths, run
from kimbox.drivers import accelerator
from kimbox.errors import KimboxError
from kimbox.image.build import namespace
from kimbox.lock.apt import sources as apt

#: Below this, an image may not fit.
LITTLE_SPACE_BYTES = 10 << 30

#: Programs that only the provider `vagrant` calls.
VAGRANT_PROGRAMS = ("vagrant", "ssh-keyscan")

#: Programs that kimbox calls, and what for.
PROGRAMS = {
    "qemu-system-x86_64": "runs boxes",
    "qemu-img": "makes their disks",
    "qemu-io": "sets which root they boot",
    "ssh": "opens shells in them",
    "ssh-keygen": "makes their keys",
    "git": "fetches repositories",
    "mmdebstrap": "installs the packages of images",
    "mke2fs": "makes their file systems",
    "unshare": "keeps builds apart from the host",
}


class Verdict(StrEnum):
    """How a check came out."""

    GOOD = "good"
    SLOW = "slow"  #: works, but could be better
    BAD = "bad"


@attrs.frozen
class Check:
    """One thing that was looked at. `mend` is a command, or None."""

    what: str
    verdict: Verdict
    found: str
    mend: str | None = None


def examine() -> list[Check]:
    """Every check, in order. Raises nothing: what fails is a verdict."""
    checks = [_program(name, why) for name, why in PROGRAMS.items()]
    checks += [_try("building", _building), _try("packages", _packages), _try("space", _space)]
    if run.which("qemu-system-x86_64"):
        checks.append(_try("acceleration", _acceleration))
    checks.append(_try("vagrant", _vagrant))
    return checks


def _try(what: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except KimboxError as error:
        return Check(what, Verdict.BAD, error.message, error.hint)
    except OSError as error:
        return Check(what, Verdict.BAD, str(error))


def _program(name: str, why: str) -> Check:
    if found := run.which(name):
        return Check(name, Verdict.GOOD, found)
    return Check(name, Verdict.BAD, f"not installed; it {why}", f"sudo apt-get install {run.PACKAGE_OF[name]}")


def _building() -> Check:
    namespace.check()
    namespace.call(["true"])
    return Check("building", Verdict.GOOD, "images can be built without root")


def _packages() -> Check:
    sources = apt.sources("debian", "trixie", None)
    return Check("packages", Verdict.GOOD, f"Debian packages from {len(sources)} repositories of this machine's apt")


def _vagrant() -> Check:
    """What `kimbox up --provider vagrant` lacks. Nobody else needs it, so that it is never bad."""
    from kimbox.drivers.vagrant import driver, hypervisor, libvirt

    is_libvirt = hypervisor.here().NAME == libvirt.NAME
    wanted = [*VAGRANT_PROGRAMS, *(["virsh"] if is_libvirt else [])]
    if lacks := [name for name in wanted if not run.which(name)]:
        mend = f"sudo apt-get install {' '.join(run.PACKAGE_OF[name] for name in lacks)} libvirt-daemon-system"
        return Check("vagrant", Verdict.SLOW, f"--provider vagrant lacks {', '.join(lacks)}", mend)
    if not is_libvirt:
        return Check(
            "vagrant", Verdict.GOOD, "boxes can be run by Vagrant under VirtualBox, which kimbox was not tried with"
        )
    if "vagrant-libvirt" not in driver.plugins():
        mend = f"VAGRANT_HOME={paths.vagrant_dir()} vagrant plugin install vagrant-libvirt"
        return Check("vagrant", Verdict.SLOW, "--provider vagrant lacks Vagrant's plugin vagrant-libvirt", mend)
    answer = libvirt.virsh("version", check=False)
    if not answer.ok:
        words = answer.stderr.strip().splitlines() or ["no reason given"]
        mend = "sudo systemctl start libvirtd && sudo usermod --append --groups libvirt $USER  # then log in anew"
        return Check("vagrant", Verdict.SLOW, f"--provider vagrant: libvirt does not answer: {words[-1]}", mend)
    return Check("vagrant", Verdict.GOOD, "boxes can be run by Vagrant under libvirt")


def free_bytes() -> int:
    """Free space where machines and images live."""
    folder = paths.home()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _space() -> Check:
    free = free_bytes()
    found = f"{free / 1e9:.0f} GB free at {paths.home()}"
    if free < LITTLE_SPACE_BYTES:
        return Check("space", Verdict.SLOW, found, "free some, or set KIMBOX_HOME to a larger disk")
    return Check("space", Verdict.GOOD, found)


def _acceleration() -> Check:
    found = accelerator.renew()
    if found.name == "kvm":
        return Check("acceleration", Verdict.GOOD, found.why)
    return Check("acceleration", Verdict.SLOW, f"boxes are emulated, some ten times slower: {found.why}", found.mend)
