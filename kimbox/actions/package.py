"""Packages a box for other hosts: its image, or the root of its halted machine, with spec, lock, SBOM and statement.

A package contains no data of this host, and equal input gives equal bytes. It is described from the record of its disk
and from the disk itself: the spec of the current folder describes only the image that is made of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from kimbox import __version__
from kimbox.actions import packagedisk, provenance
from kimbox.actions.packagedisk import Source
from kimbox.actions.provenance import Described
from kimbox.errors import ImageError
from kimbox.files import json_bytes, sha256_file
from kimbox.image import obtain, origin
from kimbox.image.disk.ext4 import directories
from kimbox.image.disk.view import DiskView
from kimbox.image.formats import catalog, export, glance, sums, unfinished
from kimbox.image.formats.boxwriter import Sign
from kimbox.image.formats.compressor import Compression
from kimbox.image.formats.export import Content, Format
from kimbox.image.sanitize.secrets import Finding
from kimbox.lock.apt.archive import ARCHITECTURE
from kimbox.lock.provenance.cyclonedx import sbom
from kimbox.lock.provenance.inputs import Provenance
from kimbox.lock.provenance.spdx import spdx
from kimbox.lock.provenance.statement import statement
from kimbox.log import log
from kimbox.machine import delivered_locks
from kimbox.machine.folder import USER, machine_of
from kimbox.newfiles import refuse_existing
from kimbox.project.project import Project
from kimbox.spec.model import Box

#: The driver of VirtualBox's default network card, below the folder of a kernel's modules.
E1000 = "drivers/net/ethernet/intel/e1000"

#: Version of the format of kimbox.json.
FORMAT = 1

#: Name of the statement. It is in each package that can hold files, where its subject is the disk in the package. It is
#: also beside the packages, where its subjects are the packages.
STATEMENT = "provenance.intoto.json"

#: The properties of the image in a package for OpenStack, beside the package.
PROPERTIES = "openstack.json"

#: Files that describe a package. A format that cannot hold files has them beside it, with the box's name as a prefix.
FILES = ("kimbox.json", "kimbox.yaml", "kimbox.lock", "sbom.cdx.json", "sbom.spdx.json", STATEMENT)


@attrs.frozen
class PackageRequest:
    """The arguments of `package`."""

    project: Project
    formats: tuple[Format, ...]
    #: Folder for the packages, or for a catalog and one folder of packages for each version.
    output: Path
    #: Whether to package the image even if the box has a machine.
    image_only: bool = False
    #: Private ssh key that signs the checksums.
    key: Path | None = None
    #: URL at which the folder of the catalog will be served; None for no catalog.
    catalog_url: str | None = None
    #: Version of the packages in the catalog.
    version: str = "0"
    #: Compression of a box for libvirt.
    compression: Compression = Compression.ZSTD

    @property
    def box(self) -> Box:
        """The spec."""
        return self.project.box

    @property
    def folder(self) -> Path:
        """The folder of the packages."""
        return self.output if self.catalog_url is None else self.output / self.version

    @property
    def catalog(self) -> Path:
        """The file of the catalog."""
        return self.output / f"{self.box.name}.metadata.json"


@attrs.frozen
class Packaged:
    """The result of `package`: every file, and what was removed, reset or kept in the packaged copy (see `Source`)."""

    files: tuple[Path, ...]
    source: str
    cleaned: tuple[str, ...]
    kept: tuple[Finding, ...] = ()
    opaque: str | None = None
    #: Inputs that no lock pins, as in `Provenance.unpinned`.
    unpinned: tuple[str, ...] = ()


def package(request: PackageRequest) -> Packaged:
    """Writes the packages; each appears completely or not at all.

    Raises StateError if the machine is not halted, or a package exists already; ImageError if the disk cannot be
    cleaned.
    """
    sign = check(request)
    machine = machine_of(request.box.name)
    with contextlib.ExitStack() as stack:
        if machine.exists and not request.image_only:
            described = attrs.evolve(provenance.of_machine(machine), spec=delivered_locks.spec_of(machine))
            source = stack.enter_context(packagedisk.of_machine(machine))
        else:
            described = provenance.of_image(request.project)
            image = stack.enter_context(obtain.leased(request.box, described.provenance.lock.packages))
            source = stack.enter_context(packagedisk.of_image(image))
        return write(request, described, source, sign)


def check(request: PackageRequest) -> Sign | None:
    """Returns the function that signs; None if there is no key.

    Raises StateError if a package exists already, as a file or in the catalog, and for a key what `sums.sign` raises.
    """
    paths_of_files = _every_file(request)
    interrupted = unfinished.left(_note(request), paths_of_files)
    for path in paths_of_files:
        if path not in interrupted:
            refuse_existing(path)
    if request.catalog_url is not None:
        providers = [str(kind) for kind in request.formats if kind.is_vagrant_box]
        catalog.check(request.catalog, request.box.name, request.version, providers)
    if request.key is None:
        return None
    sign = functools.partial(sums.sign, key=request.key)
    sign(b"")
    return sign


def _targets(request: PackageRequest) -> dict[Format, Path]:
    return {kind: request.folder / kind.file_name(request.box.name) for kind in request.formats}


def _checksums(request: PackageRequest) -> Path:
    return request.folder / f"{request.box.name}.{sums.NAME}"


def _every_file(request: PackageRequest) -> list[Path]:
    """Every path that `write` creates, except that of the catalog."""
    signatures = [] if request.key is None else [_signature(request)]
    return [*_targets(request).values(), *_separate_files(request), _checksums(request), *signatures]


def _signature(request: PackageRequest) -> Path:
    return _checksums(request).with_name(f"{_checksums(request).name}.sig")


def _note(request: PackageRequest) -> Path:
    """The note of an unfinished package, beside its files."""
    return request.folder / f".{request.box.name}.package"


def _separate_files(request: PackageRequest) -> list[Path]:
    """Paths of the files beside the packages.

    They are the statement, all of FILES if a format cannot hold them, and the properties of an image for OpenStack.
    """
    holds_files = all(kind.is_vagrant_box for kind in request.formats)
    names = (STATEMENT,) if holds_files else FILES
    if Format.OPENSTACK in request.formats:
        names = (*names, PROPERTIES)
    return [request.folder / f"{request.box.name}.{name}" for name in names]


def write(request: PackageRequest, described: Described, source: Source, sign: Sign | None) -> Packaged:
    """Writes the packages of a disk. No process may write to the disk meanwhile."""
    box, disk = request.box, source.disk
    whole = _of_source(described.provenance, source)
    files = _files(request, attrs.evolve(described, provenance=whole), source)
    content = Content(
        box.name, disk, source.format, source.image.virtual_bytes, box.cpus, box.memory_bytes,
        whole.distribution or "linux", USER,
        files=lambda digests: {**files, STATEMENT: _statement(whole, digests)},
        knows_e1000=any(kind.is_for_virtualbox for kind in request.formats) and _has_e1000_driver(source.view),
    )  # fmt: skip
    with unfinished.writing(_note(request), _every_file(request)) as package_files:
        for kind, target in _targets(request).items():
            with log.step(f"packing {target.name}"):
                export.write(kind, content, target, sign, package_files.add, request.compression)
        digests = _digests(_targets(request).values())
        files[STATEMENT] = _statement(whole, digests)
        files[PROPERTIES] = _properties(content, source.image.key)
        for path in _separate_files(request):
            package_files.write(path, files[path.name.removeprefix(f"{box.name}.")])
        text = sums.text({**digests, **_digests(_separate_files(request))})
        package_files.write(_checksums(request), text)
        if sign is not None:
            package_files.write(_signature(request), sign(text))
        written = _every_file(request)
        if request.catalog_url is not None:
            written.append(_add_to_catalog(request))
    return Packaged(tuple(written), source.kind, source.cleaned, source.kept, source.opaque, tuple(whole.unpinned))


def _properties(content: Content, key: str) -> bytes:
    """The properties of an image for OpenStack."""
    return json_bytes(glance.request(content.name, key, content.virtual_bytes, content.guest))


def _digests(files: Iterable[Path]) -> dict[str, str]:
    """The sha256 hex digests of files, by name."""
    return {path.name: sha256_file(path).removeprefix("sha256:") for path in files}


def _of_source(whole: Provenance, source: Source) -> Provenance:
    """The provenance of a disk: that of its image, the changes by hand, and the packages on the disk."""
    whole = provenance.of_image_bytes(whole, source.image)
    changes = source.about.get("changes")
    changed = tuple(sorted({*whole.changed, *origin.changed_in(changes)}))
    whole = attrs.evolve(whole, image=source.image.key, changed=changed)
    return provenance.of_disk(whole, source.view) if source.view else whole


def _statement(whole: Provenance, digests: Mapping[str, str]) -> bytes:
    """The statement about files that were made of a disk. `digests`: their sha256 hex digests by name."""
    return statement(attrs.evolve(whole, files=digests)).encode()


def _files(request: PackageRequest, described: Described, source: Source) -> dict[str, bytes]:
    """The content of each file of FILES except the statement."""
    whole = described.provenance
    lock = whole.lock
    about: dict[str, object] = {"format": FORMAT, "from": source.kind, "image": source.image.key, "kimbox": __version__}
    about |= {"name": request.box.name, "version": request.version, "architecture": ARCHITECTURE}
    about |= {"as_of": lock.packages.as_of if lock.packages else None}
    about |= {"lock": lock.digest, "spec": lock.spec_digest, "unpinned": whole.unpinned}
    about |= {"cleaned": source.opaque is None, "kept_keys": [finding.as_json() for finding in source.kept]}
    return {
        "kimbox.json": json_bytes({**about, **source.about}),
        "kimbox.yaml": described.spec,
        "kimbox.lock": lock.text.encode(),
        "sbom.cdx.json": sbom(whole).encode(),
        "sbom.spdx.json": spdx(whole).encode(),
    }


def _has_e1000_driver(disk: DiskView | None) -> bool:
    """Whether the guest has the driver of VirtualBox's default network card; False if the disk cannot be read."""
    with contextlib.suppress(ImageError):
        pattern = f"/usr/lib/modules/*/kernel/{E1000}"
        return disk is not None and bool(directories.matching(disk.root.file_system, pattern))
    return False


def _add_to_catalog(request: PackageRequest) -> Path:
    """Adds the Vagrant boxes among the packages to the catalog, which is beside the folders of the versions."""
    boxes = {
        str(kind): (f"{request.version}/{path.name}", sha256_file(path).removeprefix("sha256:"))
        for kind, path in _targets(request).items()
        if kind.is_vagrant_box
    }
    url = request.catalog_url or ""
    catalog.add(request.catalog, request.box.name, request.box.description, request.version, url, boxes)
    return request.catalog
