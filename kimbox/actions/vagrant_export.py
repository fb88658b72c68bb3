"""Writes a folder from which Vagrant makes boxes. The host that uses the folder does not need kimbox.

Vagrantfile       one machine for each box
deliver           the script that provisions a box; it starts the provisioner of the image
NAME.tar          for each box the manifest and its commits as bundles, in the format that kimbox sends
NAME.box          the image, unless `--box` names another location; it is not written here
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.errors import Problem, SpecError, UsageError
from kimbox.files import read_bounded, write_atomic
from kimbox.guest.delivery import Payload, write_tar
from kimbox.lock.git.bundle import write_bundle
from kimbox.log import log
from kimbox.machine import secretvalues
from kimbox.project import localuse
from kimbox.project.plan import make_plan
from kimbox.project.project import Project
from kimbox.render.vagrantfile import Delivery, VagrantMachine, box_name, is_url, render_vagrantfile
from kimbox.spec.model import Box
from kimbox.spec.nodes import shown
from kimbox.temporary import temporary_folder

VAGRANTFILE = "Vagrantfile"
DELIVER = "deliver"

#: Ends the header of a bundle, which is text; the pack follows (gitformat-bundle(5)).
BUNDLE_HEAD_END = b"\n\n"
#: Maximum size of the header of a bundle.
MAX_BUNDLE_HEAD_BYTES = 64 << 10


@attrs.frozen
class ExportRequest:
    """A box to be rendered, and the location of its image."""

    project: Project
    #: Path or URL of the image; None for NAME.box in the folder of the Vagrantfile.
    location: str | None = None
    #: `sha256:` and 64 hex digits: Vagrant rejects an image with another digest. None for no check.
    digest: str | None = None
    #: Whether repositories of this machine that are outside of the spec's folder are packed.
    allow_local: bool = False


def render(requests: Sequence[ExportRequest], folder: Path) -> list[Path]:
    """Writes the files of these boxes to `folder`; returns the files that were created or changed.

    A missing lock is made. Raises UsageError if two of the boxes have the same name.
    """
    return _render(requests, folder, check=False)


def check(requests: Sequence[ExportRequest], folder: Path) -> None:
    """Raises SpecError with each file in `folder` that `render` would write. Writes nothing, contacts no server."""
    _render(requests, folder, check=True)


def _render(requests: Sequence[ExportRequest], folder: Path, *, check: bool) -> list[Path]:
    names = [request.project.name for request in requests]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"two of the boxes are named {duplicates[0]}, and a Vagrantfile cannot have two machines of one name",
            code="usage",
            hint="change `name` in one of the specs",
            fields={"name": duplicates[0]},
        )
    for request in requests:
        _refuse_unsupported(request.project)
        if not request.allow_local:
            _refuse_local(request.project)
    with temporary_folder("kimbox-render-") as new:
        machines = [_machine(request, new, folder, frozen=check) for request in requests]
        (new / VAGRANTFILE).write_text(render_vagrantfile(machines), encoding="utf-8")
        (new / DELIVER).write_bytes(read_bounded(paths.provisioners_dir() / "provision" / DELIVER))
        stale = [file for file in sorted(new.iterdir()) if not _is_same(file, folder / file.name)]
        if check and stale:
            raise SpecError(
                [_problem(folder / file.name) for file in stale],
                code="render-outdated",
                hint="`kimbox render` updates the folder",
            )
        for file in stale:
            folder.mkdir(parents=True, exist_ok=True)
            mode = 0o755 if file.name == DELIVER else 0o644
            write_atomic(folder / file.name, file, mode=mode)
    return [folder / file.name for file in stale]


def _refuse_unsupported(project: Project) -> None:
    """Raises UsageError if the spec has what the folder cannot give to a box of plain Vagrant."""
    for why, remedy in _unsupported(project.box):
        raise UsageError(
            f"{project.name} {why}",
            code="unsupported-by-driver",
            hint=f"{remedy}, in a layer of this spec for Vagrant",
            fields={"name": project.name},
        )


def _unsupported(box: Box) -> Iterator[tuple[str, str]]:
    """Yields what a box of Vagrant cannot have, and how to change the spec."""
    if names := secretvalues.names(box):
        yield f"has secret variables ({', '.join(names)}), which Vagrant cannot give to a box", "remove them from `env`"
    if box.networks:
        place = f"is in the network {box.networks[0].name} of its spec"
        yield f"{place}, which the folder cannot make", "remove its address from `networks`"
    if box.auto_forwards:
        yield "has a forward with `guest: auto`, which Vagrant cannot have", "name the ports in `forwards`"
    if box.display is not None:  # vagrant-libvirt has no screen at a Unix socket (its domain.xml.erb)
        screen = f"has a screen (`display: {box.display}`)"
        yield f"{screen}, which Vagrant would show to all users of the host", "write `display: null`"


def _refuse_local(project: Project) -> None:
    """Raises SpecError for a repository of this machine outside of the spec's folder: the files are for others.

    A repository of which `kimbox lock` or `up` has warned is packed.
    """
    for repository in localuse.new_repositories(project):
        raise SpecError.at(
            project.box.source,
            f"the repository {repository.name} is {shown(repository.url)}, outside of the folder of the spec: its "
            "content would become part of the files",
            code="outside-spec-folder",
            hint="if you want that: `kimbox render --allow-local` packs it, and so does `kimbox render` after `kimbox "
            "lock`, which warns of it",
            fields={"repository": repository.name},
        )


def _problem(file: Path) -> Problem:
    """The problem of a file that `render` would write."""
    what = "this file differs from what the spec and its lock give" if file.exists() else "this file is missing"
    return Problem(str(file), 1, 1, what, code="render-outdated")


def _machine(request: ExportRequest, new: Path, folder: Path, *, frozen: bool) -> VagrantMachine:
    """A machine of the Vagrantfile, which is for `folder`; its archive is written to `new`.

    `frozen`: from the lock as it is, offline.
    """
    project = attrs.evolve(request.project, frozen=True, offline=True) if frozen else request.project
    plan, box = make_plan(project), project.box
    archive = f"{box.name}.tar"
    with log.step(f"packing the repositories of {box.name}"):
        _write_archive(plan.payload, new / archive)
    return VagrantMachine(
        box,
        box_name(box.name, plan.image_key),
        location=request.location or f"{box.name}.box",
        digest=request.digest,
        locations={mount.location: os.path.relpath(mount.location, folder.absolute()) for mount in box.mounts},
        delivery=Delivery(archive, plan.digest, box.boot),
    )


def _write_archive(payload: Payload, target: Path) -> None:
    """Writes the archive that the guest's `receive` reads."""
    with temporary_folder("kimbox-bundles-") as folder:
        bundles = []
        for parcel in payload.parcels:
            bundle = folder / parcel.file
            write_bundle(payload.mirrors[parcel.mirror], parcel.commit, bundle, parcel.tags)
            bundles.append(bundle)
        write_tar(payload.manifest, bundles, target)


def _is_same(new: Path, old: Path) -> bool:
    """Whether two files have the same content. Of a bundle only the header is compared, because another version of git
    may write other bytes for the same commits.
    """
    if not old.is_file():
        return False
    if new.suffix != ".tar":
        return old.stat().st_size == new.stat().st_size and old.read_bytes() == new.read_bytes()
    return _content(new) == _content(old)


def _content(archive: Path) -> dict[str, tuple[int, bytes]] | None:
    """Names, modes and contents of an archive's members; None if it is not a tar archive."""
    contents = {}
    try:
        with tarfile.open(archive, "r:") as members:
            for member in members:
                data = members.extractfile(member) if member.isfile() else None
                is_bundle = member.name.endswith(".bundle")
                content = data.read(MAX_BUNDLE_HEAD_BYTES if is_bundle else member.size) if data else b""
                head, _, _ = content.partition(BUNDLE_HEAD_END)
                contents[member.name] = (member.mode, head if is_bundle else content)
    except (tarfile.TarError, EOFError):
        return None
    return contents


def checked_location(location: str | None, folder: Path) -> str | None:
    """The location of the image for the Vagrantfile: a URL is unchanged, a path is made relative to `folder`."""
    if location is None or is_url(location):
        return location
    return os.path.relpath(location, folder)
