"""Brings manifest and repositories to a running guest, and starts its provisioning there."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from kimbox.errors import GuestError
from kimbox.files import remove_tree
from kimbox.guest.ssh import Guest
from kimbox.lock.lockfile import Lock
from kimbox.lock.mirror import Mirror, write_bundle
from kimbox.log import log
from kimbox.render.manifest import Manifest, manifest_digest, render_manifest
from kimbox.run import tail
from kimbox.spec.model import Box

#: The guest's side of it.
RECEIVE = "/usr/lib/kimbox/receive"

#: How others than root become root there.
SUDO = "sudo -n "

#: Prefix of the folder in which a delivery is put together.
TEMPORARY = "deliver-"

#: Unpacking and fetching in the guest, in seconds; an emulated guest is slow and a repository may be large.
RECEIVE_TIMEOUT_S = 1800

#: Below this, sending what the guest has already costs less than asking it.
SMALL_BYTES = 4 << 20


def deliver(guest: Guest, box: Box, lock: Lock, mirrors: Mapping[str, Mirror], workdir: Path) -> str:
    """Sends the manifest and every pinned commit that the guest lacks, makes them current and starts provisiond.

    `mirrors` has one for each repository of the box, holding the locked commit. Returns the manifest's digest, which
    the guest's events bear. Raises GuestError with the guest's own words if it refuses. The caller holds the lock of
    the machine: what lies in `workdir` of another delivery was left by one that was killed.
    """
    manifest = render_manifest(box, lock)
    digest = manifest_digest(manifest)
    commits = {name: pinned.commit for name, pinned in lock.repositories.items() if box.repository(name)}
    sudo = "" if guest.endpoint.user == "root" else SUDO
    needed = commits
    if sum(mirrors[name].size_bytes() for name in commits) > SMALL_BYTES:
        needed = {name: commit for name, commit in commits.items() if name not in _had(guest, sudo, commits)}
    workdir.mkdir(parents=True, exist_ok=True)
    for left in workdir.glob(f"{TEMPORARY}*"):
        remove_tree(left)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=workdir) as folder:
        bundles = []
        for name, commit in needed.items():
            log.now(f"packing {name}")
            bundle = Path(folder) / f"{name}.bundle"
            write_bundle(mirrors[name], commit, bundle)
            bundles.append(bundle)
        delivery = Path(folder) / "delivery.tar"
        write_tar(manifest, bundles, delivery)
        for bundle in bundles:
            bundle.unlink()
        log.now(f"sending {delivery.stat().st_size >> 10} KiB")
        answer = guest.run(f"{sudo}{RECEIVE} {digest} --start", timeout_s=RECEIVE_TIMEOUT_S, stdin=delivery)
    if answer.code != 0:
        raise GuestError(
            f"the guest did not take what it was sent (exit status {answer.code}):\n{tail(answer.stderr)}",
            hint="look inside: `kimbox ssh`",
        )
    return digest


def write_tar(manifest: Manifest, bundles: Iterable[Path], target: Path) -> None:
    """Writes manifest/ and bundles/ as a tar archive: owned by root, all of one time. Bundles are streamed."""
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
        archive.addfile(_info("end", 0o644))  # without it the guest takes nothing: the connection may have broken


def _info(name: str, mode: int, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.size, info.mtime = mode, size, 0
    info.uname = info.gname = "root"
    return info


def _had(guest: Guest, sudo: str, commits: Mapping[str, str]) -> set[str]:
    """Names of the repositories whose commit the guest has already."""
    pairs = " ".join(f"{name} {commit}" for name, commit in commits.items())
    answer = guest.run(f"{sudo}{RECEIVE} --have {pairs}", timeout_s=60)
    return set(answer.stdout.split()) if answer.code == 0 else set()
