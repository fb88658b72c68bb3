"""Checks whether this host has what kimbox needs. A check uses what it checks, where that is possible."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from pathlib import Path

from kimbox import paths
from kimbox.actions import prune
from kimbox.drivers import registry
from kimbox.drivers.hostcheck import HostCheck, Outcome, attempt, program
from kimbox.errors import KimboxError, StateError
from kimbox.filelocks import flock
from kimbox.files import size_words
from kimbox.image import namespace
from kimbox.image.store import dates, images
from kimbox.jobs.backends.htcondor import bindings as pool
from kimbox.lock.apt import age, archive
from kimbox.lock.apt import sources as apt
from kimbox.log import log
from kimbox.machine import templates
from kimbox.machine.folder import Machine, machines
from kimbox.run import which

#: Free space below which there may not be enough for an image.
MIN_FREE_BYTES = 10 << 30

#: Size below which unused files are not worth a command, in bytes.
SHOWN_BYTES = 1_000_000

#: What chooses the present packages for a spec.
_UPDATE_PACKAGES = "in the folder of its spec: kimbox lock --update packages"

#: Programs that kimbox calls with every driver, and their purpose: it completes the sentence `it ...`.
PROGRAMS = {
    "qemu-img": "makes the disks of boxes",
    "qemu-nbd": "reads the disks of boxes, and sets their boot mode",
    "ssh": "opens shells in boxes",
    "ssh-keygen": "makes the keys of boxes",
    "git": "fetches repositories",
    "mmdebstrap": "installs the packages of images",
    "mke2fs": "makes the file systems of images",
    "unshare": "isolates builds from the host",
}


def examine() -> list[HostCheck]:
    """The result of every check: first what kimbox needs with every driver, then what each driver needs.

    A failed check is a result; no error is raised.
    """
    checks = [program(name, purpose) for name, purpose in PROGRAMS.items()]
    checks += [attempt("home", _home), attempt("locks", _locks), attempt("building", _building)]
    checks += [attempt("packages", _packages), attempt("age of packages", _age_of_packages)]
    checks += [attempt("space", _space), attempt("unused files", _unused)]
    checks += [attempt("templates", _templates)] if templates.stored() else []
    checks += [attempt("HTCondor", _htcondor)] if pool.is_used() else []
    return checks + registry.check_host()


def examine_store() -> list[HostCheck]:
    """The result for every image in the store: whether its disk has the bytes that it had when it was stored."""
    return [attempt(f"image {key[:12]}", functools.partial(_stored_image, key)) for key in images.stored()]


def _stored_image(key: str) -> HostCheck:
    what = f"image {key[:12]}"
    image = images.find(key)
    if image is None:
        return HostCheck(what, Outcome.GOOD, "removed during the check")
    with log.step(f"reading the {what}"):
        is_known = images.check(image, on_bytes=lambda count: log.now(size_words(count)))
    if is_known:
        return HostCheck(what, Outcome.GOOD, "its disk is as it was stored")
    return HostCheck(what, Outcome.SLOW, "stored by an older kimbox, without a digest: it cannot be checked")


def _htcondor() -> HostCheck:
    """Whether this host can submit jobs to a pool. Only of hosts with a part of HTCondor, or with submissions."""
    try:
        pool.check()
    except KimboxError as error:
        return HostCheck("HTCondor", Outcome.SLOW, f"no job can be submitted from here without --pool: {error.message}")
    tools = "" if which("condor_submit") else "; `--dry-run` of `kimbox job submit DIR` needs condor_submit"
    return HostCheck("HTCondor", Outcome.GOOD, f"jobs can be submitted with the Python bindings{tools}")


def _building() -> HostCheck:
    namespace.check()
    user = "root" if os.geteuid() == 0 else "this user"
    return HostCheck("building", Outcome.GOOD, f"{user} can make the namespaces in which images are built")


def _packages() -> HostCheck:
    sources = apt.sources("debian", "trixie", None)
    keys = archive.accepted_keys("debian").values()
    if not any(os.access(key, os.R_OK) for key in keys):
        return HostCheck(
            "packages",
            Outcome.BAD,
            f"no key file of Debian's archives can be read, so that apt rejects their {len(sources)} repositories",
            "sudo apt-get install debian-archive-keyring",
        )
    return HostCheck(
        "packages", Outcome.GOOD, f"Debian packages come from {len(sources)} repositories of this machine's apt"
    )


def _age_of_packages() -> HostCheck:
    """Whether the images of machines have packages that are older than a week. A date that is not known is left out."""
    dates = {machine.name: as_of for machine in machines() if (as_of := _packages_as_of(machine))}
    old = {name: as_of for name, as_of in dates.items() if age.is_older(as_of, age.MAX_AGE_S)}
    if not old:
        days = age.MAX_AGE_S // 86400
        return HostCheck("age of packages", Outcome.GOOD, f"no box has packages that are older than {days} days")
    text = ", ".join(f"{name}: {age.words(as_of)}" for name, as_of in sorted(old.items()))
    return HostCheck("age of packages", Outcome.SLOW, f"a new box gets newer ones. {text}", _UPDATE_PACKAGES)


def _packages_as_of(machine: Machine) -> str | None:
    with contextlib.suppress(KimboxError):
        return dates.packages_as_of(machine.record().image)
    return None


def _unused() -> HostCheck:
    try:
        size_bytes = sum(item.size_bytes for item in prune.unused())
    except StateError as error:
        return HostCheck("unused files", Outcome.SLOW, error.message, error.hint)
    if size_bytes < SHOWN_BYTES:
        return HostCheck("unused files", Outcome.GOOD, f"less than {SHOWN_BYTES / 1e6:.0f} MB at {paths.home()}")
    text = f"{size_bytes / 1e6:.0f} MB at {paths.home()}: images, downloads and remains of interrupted runs"
    return HostCheck("unused files", Outcome.GOOD, text, "kimbox prune")


def _templates() -> HostCheck:
    found = templates.every()
    size_bytes = sum(template.size_bytes for template in found)
    text = f"{len(found)}, which take {size_bytes / 1e6:.0f} MB at {paths.templates_dir()}"
    damaged = [template.key for template in found if template.box is None]
    if damaged:
        return HostCheck("templates", Outcome.SLOW, f"{text}; damaged: {damaged[0][:16]}", "kimbox prune")
    return HostCheck("templates", Outcome.GOOD, text)


def _home_or_above() -> Path:
    """The folder of machines and images or, if it does not exist yet, the folder in which it will be created."""
    folder = paths.home()
    while not folder.exists():
        folder = folder.parent
    return folder


def _home() -> HostCheck:
    folder = _home_or_above()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"kimbox")
            file.flush()
    except OSError as error:
        result = f"{paths.home()} cannot be written: {error.strerror}"
        return HostCheck("home", Outcome.BAD, result, "set KIMBOX_HOME to a folder that you can write")
    return HostCheck("home", Outcome.GOOD, f"{paths.home()} can be written")


def _locks() -> HostCheck:
    folder = _home_or_above()
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flock(handle, fcntl.LOCK_SH, folder / "lock")
    except BlockingIOError:
        pass  # another process holds a lock of the folder, so that the file system has locks
    finally:
        os.close(handle)
    return HostCheck("locks", Outcome.GOOD, f"the file system of {paths.home()} has file locks")


def free_bytes() -> int:
    """Free space in the folder of machines and images."""
    return shutil.disk_usage(_home_or_above()).free


def _space() -> HostCheck:
    free = free_bytes()
    text = f"{free / 1e9:.0f} GB free at {paths.home()}"
    if free < MIN_FREE_BYTES:
        return HostCheck(
            "space", Outcome.SLOW, text, "free some space, or set KIMBOX_HOME to a folder on a larger disk"
        )
    return HostCheck("space", Outcome.GOOD, text)
