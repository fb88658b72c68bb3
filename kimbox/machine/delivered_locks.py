"""The specs and locks of the manifests that the host sent to a machine, and the lock that the machine runs.

The host keeps spec and lock of each manifest, also of the one that a machine was created with. The guest reports the
digest of the manifest that it runs. If it reports none, the last one that was kept counts.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import attrs

from kimbox.errors import KimboxError, StateError
from kimbox.files import read_bounded, write_atomic
from kimbox.image import origin
from kimbox.image.store import images
from kimbox.lock.lockfile import Lock, read_lock, write_lock
from kimbox.machine.folder import Machine
from kimbox.machine.state import last_manifest_event, sent_manifest

_DIGEST = re.compile(r"[0-9a-f]{64}")


@attrs.frozen
class Delivered:
    """A manifest that is sent to a machine, and what it was made from."""

    #: sha256 hex digest of the manifest.
    digest: str
    lock: Lock
    #: The merged spec, as JSON; empty if it is not known.
    spec: bytes = b""
    #: The file box.json of the manifest.
    described: bytes = b""

    def write(self, folder: Path) -> None:
        """Writes spec, lock and box.json to the folder of a machine's locks."""
        folder.mkdir(exist_ok=True)
        write_lock(folder / f"{self.digest}.lock", self.lock)
        (folder / f"{self.digest}.lock").touch()  # the last one is the newest, also if it was sent before
        for suffix, data in ((".json", self.described), (".yaml", self.spec)):
            if data:
                write_atomic(folder / f"{self.digest}{suffix}", data)


def keep(machine: Machine, delivered: Delivered) -> None:
    """Keeps a manifest that will be sent. Removes those that the box cannot return to."""
    delivered.write(machine.locks)
    if last_event := last_manifest_event(machine.boot_events()):
        kept_digests = {delivered.digest, last_event.text("manifest"), sent_manifest(last_event)}
        for file in machine.locks.glob("*.*"):
            if file.stem not in kept_digests:
                file.unlink(missing_ok=True)


def lock_file(machine: Machine, digest: str) -> Path:
    """Returns the file of the lock that is kept for a manifest. It may not exist.

    Raises StateError (`lock-unknown`) if a guest has reported a digest that is none.
    """
    if not _DIGEST.fullmatch(digest):
        raise _unknown(machine, f"{machine.name} has not reported which manifest it runs", "")
    return machine.locks / f"{digest}.lock"


def lock_of(machine: Machine) -> Lock:
    """Returns the lock that a machine runs, or ran last if it is halted. Its image is the image of the machine.

    Its packages are those of this image, if they are known: a later lock does not change the image of a machine.

    Raises StateError: `box-not-found`, or `lock-unknown` if the guest has not reported a manifest and none was kept, or
    if the lock of the manifest was not kept. The field `manifest` is the digest, or empty.
    """
    record = machine.record()
    lock = read_lock(_file(machine, ".lock"))
    image = images.find(record.image)
    packages = origin.packages_of(image) if image else None
    lock = attrs.evolve(lock, image=record.image)
    if packages is None or packages == lock.packages:
        return lock
    return attrs.evolve(lock, packages=packages, frozen_digest=lock.digest)


def spec_of(machine: Machine) -> bytes:
    """Returns the merged spec, as JSON, of the lock that `lock_of` returns.

    Raises StateError as `lock_of` does, also if an older kimbox sent the manifest, which kept only the lock.
    """
    return read_bounded(_file(machine, ".yaml"))


@attrs.frozen
class Kept:
    """The files that are kept of a manifest: its digest, the merged spec as JSON, the lock, and box.json or nothing."""

    digest: str
    spec: bytes
    lock: bytes
    described: bytes = b""

    def write(self, folder: Path) -> None:
        """Writes the files to the folder of a machine's locks."""
        folder.mkdir(exist_ok=True)
        for suffix, data in ((".lock", self.lock), (".yaml", self.spec), (".json", self.described)):
            if data:
                write_atomic(folder / f"{self.digest}{suffix}", data)


def current(machine: Machine) -> Kept:
    """Returns the files of the manifest that a machine runs, or ran last. Raises StateError as `spec_of` does."""
    lock = _file(machine, ".lock")
    described = lock.with_suffix(".json")
    return Kept(
        lock.stem,
        spec_of(machine),
        read_bounded(lock),
        read_bounded(described) if described.is_file() else b"",
    )


def _newest(machine: Machine) -> str:
    """The digest of the last manifest that was kept, or empty. In maintain mode a guest reports none."""
    kept = sorted((file.stat().st_mtime_ns, file.stem) for file in machine.locks.glob("*.lock"))
    return kept[-1][1] if kept else ""


def _file(machine: Machine, suffix: str) -> Path:
    """The file of the manifest that a machine runs, else of the last one that was kept."""
    last_event = last_manifest_event(machine.boot_events())
    digest = (last_event.text("manifest") if last_event else "") or _newest(machine)
    file = lock_file(machine, digest).with_suffix(suffix)
    if not file.is_file():
        kind = "lock" if suffix == ".lock" else "spec"
        problem = f"the {kind} of the manifest that {machine.name} runs ({digest[:12]}) was not kept"
        raise _unknown(machine, problem, digest)
    return file


def spec_digests(machine: Machine) -> set[str]:
    """Returns the digests of the specs that the kept locks were made from. Locks that cannot be read are ignored."""
    digests = set()
    for file in machine.locks.glob("*.lock"):
        with contextlib.suppress(KimboxError, OSError):
            digests.add(read_lock(file).spec_digest)
    return digests


def _unknown(machine: Machine, message: str, digest: str) -> StateError:
    return StateError(
        message,
        code="lock-unknown",
        hint=f"`kimbox provision {machine.name}` provisions it from its current lock",
        fields={"name": machine.name, "manifest": digest},
    )
