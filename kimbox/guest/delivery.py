"""Delivers the manifest and the repositories: over ssh to a running guest, or on a disk that it gets at its start."""

from __future__ import annotations

import contextlib
import io
import shlex
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs

from kimbox.errors import GuestError, UsageError
from kimbox.files import remove_tree
from kimbox.guest.deliverydisk import DeliveryDisk
from kimbox.lock.git import submodules
from kimbox.lock.git.bundle import write_bundle
from kimbox.lock.git.mirror import Mirror
from kimbox.lock.lockfile import Lock
from kimbox.log import log
from kimbox.render.checkouts import tags_key
from kimbox.render.manifest import Manifest
from kimbox.run import tail
from kimbox.spec.model import SETUP, Box
from kimbox.spec.schema import guess

if TYPE_CHECKING:
    from kimbox.guest.ssh import Answer, Guest

#: The program in the guest that receives a delivery.
RECEIVE = "/usr/lib/kimbox/receive"

#: Prefix of a command for users other than root.
SUDO = "sudo -n "

#: Prefix of the temporary folder in which a delivery is prepared.
TEMPORARY = "deliver-"

#: Timeout of `receive`, in seconds. An emulated guest is slow, and a repository may be large.
RECEIVE_TIMEOUT_S = 1800

#: Writes stdin to the file in which provisiond looks for secret variables (provisioners/provision, environment.sh), and
#: timeout of that in seconds. /run is in memory.
_PUT_SECRETS = (
    "umask 077; cd /run/credentials/@system && cat >kimbox.environment.new && "
    "mv -f kimbox.environment.new kimbox.environment"
)
SECRETS_TIMEOUT_S = 60.0

#: If all mirrors together are smaller than this, in bytes, kimbox sends all commits: a query would take longer.
SMALL_BYTES = 4 << 20


@attrs.frozen
class Part:
    """A part of a manifest: `only` a step, or all steps `from` it on. `setup` is the setup repository's script."""

    how: Literal["only", "from"]
    step: str

    def check(self, box: Box) -> None:
        """Raises UsageError (`step-not-found`), with similar names in the hint, if the box has no such step."""
        known = [*([SETUP] if box.repository(SETUP) else []), *(step.name for step in box.provision)]
        if self.step not in known:
            raise UsageError(
                f"the box {box.name} has no step {self.step[:100]}",
                code="step-not-found",
                hint=guess(self.step, known) or "its spec has neither steps nor a setup repository",
                fields={"name": box.name, "step": self.step[:100]},
            )


def deliver(guest: Guest, payload: Payload, workdir: Path, part: Part | None = None) -> None:
    """Sends the manifest and every pinned commit that the guest lacks, makes them current and starts provisiond.

    With `part`, for that part of the manifest alone. Raises GuestError with the guest's own words if it refuses. The
    caller holds the lock of the machine: files of another delivery in `workdir` were left by a process that was killed.
    """
    parcels, mirrors = payload.parcels, payload.mirrors
    sudo = "" if guest.endpoint.user == "root" else SUDO
    needed: Sequence[Parcel] = parcels
    if sum(mirrors[parcel.mirror].size_bytes() for parcel in parcels) > SMALL_BYTES:
        needed = lacked(guest, sudo, parcels)
    with _packed(payload, needed, workdir) as delivery:
        log.now(f"sending {delivery.stat().st_size >> 10} KiB")
        words = f" {part.how} {shlex.quote(part.step)}" if part else ""
        answer = guest.run(
            f"{sudo}{RECEIVE} {payload.digest} --start{words}", timeout_s=RECEIVE_TIMEOUT_S, stdin=delivery
        )
    _check(answer, "rejected the manifest or a repository")


def give_secrets(guest: Guest, text: bytes) -> None:
    """Writes the secret variables, one in each line of `text`, to the guest's memory, until it shuts down.

    The next delivery, or the next start of provisiond, takes them. Raises GuestError (`delivery-rejected`).
    """
    sudo = "" if guest.endpoint.user == "root" else SUDO
    answer = guest.run(f"{sudo}sh -c {shlex.quote(_PUT_SECRETS)}", timeout_s=SECRETS_TIMEOUT_S, stdin=text)
    _check(answer, "did not take the secret variables")


def _check(answer: Answer, what: str) -> None:
    """Raises GuestError (`delivery-rejected`) with the guest's own words if a program of a delivery has failed."""
    if answer.code != 0:
        raise GuestError(
            f"the guest {what} (exit status {answer.code}):\n{tail(answer.stderr)}",
            code="delivery-rejected",
            hint="`kimbox ssh` opens a shell in the guest",
            fields={"exit_status": str(answer.code)},
        )


def write_disk(payload: Payload, has: Set[tuple[str, str]], target: Path) -> DeliveryDisk:
    """Writes the disk with the manifest, and with every pinned commit that the guest lacks.

    `has`: name of the repository and key of each parcel that the guest has. The file is for its owner only, and
    replaces an earlier one atomically. The caller holds the lock of the machine, in whose folder it is.
    """
    needed = [parcel for parcel in payload.parcels if not {(parcel.name, key) for key in parcel.keys} <= has]
    with _packed(payload, needed, target.parent) as archive:
        disk = DeliveryDisk.of(payload.digest, archive)
        archive.chmod(0o600)
        archive.replace(target)
    return disk


@contextlib.contextmanager
def _packed(payload: Payload, parcels: Iterable[Parcel], workdir: Path) -> Iterator[Path]:
    """A tar archive of the manifest and these parcels, in a temporary folder of `workdir`."""
    workdir.mkdir(parents=True, exist_ok=True)
    for left in workdir.glob(f"{TEMPORARY}*"):
        remove_tree(left)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=workdir) as folder:
        bundles = []
        for parcel in parcels:
            log.now(f"packing {parcel.mirror}")
            bundle = Path(folder) / parcel.file
            write_bundle(payload.mirrors[parcel.mirror], parcel.commit, bundle, parcel.tags)
            bundles.append(bundle)
        archive = Path(folder) / "delivery.tar"
        write_tar(payload.manifest, bundles, archive)
        for bundle in bundles:
            bundle.unlink()
        yield archive


@attrs.frozen
class Parcel:
    """A commit to send. The guest fetches it into its mirror of the repository `name`, also if it is a submodule's."""

    name: str
    commit: str
    #: Key of the host's mirror that has the commit.
    mirror: str
    #: File name of the bundle.
    file: str
    #: Tags to send with it, by name, and the objects that they point to.
    tags: Mapping[str, str] = attrs.field(factory=dict)
    #: What the guest has if it has all of the parcel.
    keys: tuple[str, ...] = attrs.field(default=attrs.Factory(lambda self: (self.commit,), takes_self=True))


@attrs.frozen
class Payload:
    """What a guest is sent: a manifest, and the commits that it names."""

    manifest: Manifest
    #: sha256 hex digest of the manifest; the guest's events carry it.
    digest: str
    #: Every commit that the guest must have, each once.
    parcels: tuple[Parcel, ...]
    #: By the names that the parcels use.
    mirrors: Mapping[str, Mirror]


def parcels_of(box: Box, lock: Lock) -> list[Parcel]:
    """Every commit that the guest needs, each one once."""
    parcels: dict[str, Parcel] = {}
    for name, pinned in lock.repositories.items():
        if not box.repository(name):
            continue
        for path, submodule in pinned.submodules.items():
            file = f"{name}.{submodule.commit}.bundle"
            parcels[file] = Parcel(name, submodule.commit, submodules.key(name, path), file)
        tags = {tag_name: tag.target for tag_name, tag in pinned.tags.items()}
        keys = (pinned.commit, tags_key(pinned.tags)) if tags else (pinned.commit,)
        parcels[f"{name}.bundle"] = Parcel(name, pinned.commit, name, f"{name}.bundle", tags, keys)
    return list(parcels.values())


def write_tar(manifest: Manifest, bundles: Iterable[Path], target: Path) -> None:
    """Writes manifest/ and bundles/ to a tar archive, with owner root and time 0. Bundles are not read into memory."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        folders = {str(parent) for path in manifest for parent in Path(path).parents if str(parent) != "."}
        for folder in ["", *sorted(folders)]:
            info = _info(f"manifest/{folder}".rstrip("/"), 0o755)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for path, (data, mode) in manifest.items():
            archive.addfile(_info(f"manifest/{path}", mode, len(data)), io.BytesIO(data))
        for bundle in bundles:
            with bundle.open("rb") as source:
                archive.addfile(_info(f"bundles/{bundle.name}", 0o644, bundle.stat().st_size), source)
        archive.addfile(_info("end", 0o644))  # the guest rejects an archive without it: the connection may have broken


def _info(name: str, mode: int, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.size, info.mtime = mode, size, 0
    info.uname = info.gname = "root"
    return info


def lacked(guest: Guest, sudo: str, parcels: Sequence[Parcel]) -> list[Parcel]:
    """The parcels that the guest lacks.

    It is asked for all commits and sets of tags, and answers with the name of the repository once for each that it has.
    """
    pairs = shlex.join(word for parcel in parcels for key in parcel.keys for word in (parcel.name, key))
    answer = guest.run(f"{sudo}{RECEIVE} --have {pairs}", timeout_s=60)
    has = Counter(answer.stdout.split() if answer.code == 0 else ())
    needed = Counter(parcel.name for parcel in parcels for _ in parcel.keys)
    whole = {name for name, count in needed.items() if has[name] == count}
    return [parcel for parcel in parcels if parcel.name not in whole]
