"""What Vagrant needs to make boxes by itself, as a folder: no kimbox has to be where it is used.

Vagrantfile       one machine for each box
deliver           what provisions a box, from the image's own provisioner
NAME.tar          for each box the manifest and its commits as bundles, in the form in which kimbox sends them
NAME.box          the image, where the Vagrantfile looks for it unless it was told another place
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.errors import SpecError, UsageError
from kimbox.files import read_bounded, write_atomic
from kimbox.guest.delivery import parcels_of, write_tar
from kimbox.image import obtain
from kimbox.lock.git.mirror import Mirror, write_bundle
from kimbox.lock.lockfile import Lock
from kimbox.log import log
from kimbox.project.pins import lock_for
from kimbox.render.manifest import manifest_digest, render_manifest
from kimbox.render.vagrantfile import Delivery, VagrantMachine, box_name, is_url, render_vagrantfile
from kimbox.spec.model import Box

VAGRANTFILE = "Vagrantfile"
DELIVER = "deliver"

#: The plain text before a bundle's pack ends here (gitformat-bundle(5)).
BUNDLE_HEAD_END = b"\n\n"
BUNDLE_HEAD_BYTES = 64 << 10


@attrs.frozen
class Wanted:
    """A box to be rendered, and where Vagrant is to find its image: None for NAME.box in the folder."""

    box: Box
    shipped: bool = False
    location: str | None = None
    digest: str | None = None


def render(wanted: Sequence[Wanted], folder: Path) -> list[Path]:
    """Writes the files of these boxes to `folder`; returns those that were made or changed.

    Where a box has no lock yet it is made. Raises UsageError if two of the boxes have one name.
    """
    return _render(wanted, folder, check=False)


def check(wanted: Sequence[Wanted], folder: Path) -> None:
    """Raises SpecError, naming each file in `folder` that `render` would write; writes nothing and asks no server."""
    _render(wanted, folder, check=True)


def _render(wanted: Sequence[Wanted], folder: Path, *, check: bool) -> list[Path]:
    names = [one.box.name for one in wanted]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"two of the boxes are named {twice[0]}", hint="each machine of a Vagrantfile has its own name"
        )
    with tempfile.TemporaryDirectory(prefix="kimbox-render-") as temporary:
        new = Path(temporary)
        machines = [_machine(one, new, frozen=check) for one in wanted]
        (new / VAGRANTFILE).write_text(render_vagrantfile(machines), encoding="utf-8")
        (new / DELIVER).write_bytes(read_bounded(paths.provisioners_dir() / "provision" / DELIVER))
        stale = [file for file in sorted(new.iterdir()) if not _is_same(file, folder / file.name)]
        if check and stale:
            hint = "`kimbox render` brings it up to date"
            faults = [SpecError.at(folder / file.name, _fault(folder / file.name)).problems[0] for file in stale]
            raise SpecError(faults, hint=hint)
        for file in stale:
            folder.mkdir(parents=True, exist_ok=True)
            mode = 0o755 if file.name == DELIVER else 0o644
            write_atomic(folder / file.name, file, mode=mode)
    return [folder / file.name for file in stale]


def _fault(file: Path) -> str:
    return "it is not what the spec and its lock render" if file.exists() else "it is not there"


def _machine(one: Wanted, new: Path, *, frozen: bool) -> VagrantMachine:
    """A machine of the Vagrantfile; its archive is written to `new`."""
    box = one.box
    lock, mirrors = lock_for(box, shipped=one.shipped, frozen=frozen, offline=frozen)
    image = obtain.key_of(box, lock.packages)
    archive = f"{box.name}.tar"
    with log.step(f"packing the repositories of {box.name}"):
        digest = _write_archive(box, lock, mirrors, image, new / archive)
    return VagrantMachine(
        box,
        box_name(box.name, image),
        location=one.location or f"{box.name}.box",
        digest=one.digest,
        delivery=Delivery(archive, digest, box.boot),
    )


def _write_archive(box: Box, lock: Lock, mirrors: Mapping[str, Mirror], image: str, target: Path) -> str:
    """Writes what the guest's `receive` takes; returns the manifest's digest."""
    manifest = render_manifest(box, lock, image)
    with tempfile.TemporaryDirectory(prefix="kimbox-bundles-") as folder:
        bundles = []
        for parcel in parcels_of(box, lock):
            bundle = Path(folder) / parcel.file
            write_bundle(mirrors[parcel.mirror], parcel.commit, bundle)
            bundles.append(bundle)
        write_tar(manifest, bundles, target)
    return manifest_digest(manifest)


def _is_same(new: Path, old: Path) -> bool:
    """Whether a file is there as it would be written. Of a bundle only its head counts: another git packs otherwise."""
    if not old.is_file():
        return False
    if new.suffix != ".tar":
        return old.stat().st_size == new.stat().st_size and old.read_bytes() == new.read_bytes()
    return _content(new) == _content(old)


def _content(archive: Path) -> dict[str, tuple[int, bytes]] | None:
    """Names, modes and contents of an archive's members; None if it is none of ours."""
    found = {}
    try:
        with tarfile.open(archive, "r:") as members:
            for member in members:
                data = members.extractfile(member) if member.isfile() else None
                is_bundle = member.name.endswith(".bundle")
                content = data.read(BUNDLE_HEAD_BYTES if is_bundle else member.size) if data else b""
                head, _, _ = content.partition(BUNDLE_HEAD_END)
                found[member.name] = (member.mode, head if is_bundle else content)
    except (tarfile.TarError, EOFError):
        return None
    return found


def checked_location(location: str | None, folder: Path) -> str | None:
    """A place for the image as the Vagrantfile has it: a URL as it is, a path from `folder` on."""
    if location is None or is_url(location):
        return location
    import os.path

    return os.path.relpath(location, folder)
