"""Packages a box for other hosts: its image, or the root of its halted machine, with spec, lock, SBOM and statement.

A package contains no data of this host, and equal input gives equal bytes. The disk of a halted machine is only read:
kimbox cleans a copy.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from kimbox import __version__, paths
from kimbox.actions.observe import state
from kimbox.actions.provenance import provenance_of
from kimbox.drivers import registry
from kimbox.errors import ImageError, StateError
from kimbox.files import copy_sparse, locked, remove_tree, sha256_file, write_atomic
from kimbox.image import obtain
from kimbox.image.disk import dpkg, nbd, rawdisk, slim
from kimbox.image.disk.ext4 import directories
from kimbox.image.disk.view import DiskView
from kimbox.image.formats import catalog, export, sums
from kimbox.image.formats.boxwriter import Sign, convert, json_bytes, refuse_existing
from kimbox.image.formats.export import Content, Format
from kimbox.image.sanitize import external, restore, secrets
from kimbox.image.sanitize.secrets import Finding
from kimbox.image.store import images
from kimbox.image.store.images import Image
from kimbox.lock.lockfile import format_lock
from kimbox.lock.provenance import Provenance, sbom, statement
from kimbox.log import log
from kimbox.machine.folder import USER, Machine, machine_of
from kimbox.machine.state import State
from kimbox.project.project import Project
from kimbox.spec.load import merged_spec
from kimbox.spec.model import Box, PackageImage

#: The driver of VirtualBox's default network card, below the folder of a kernel's modules.
E1000 = "drivers/net/ethernet/intel/e1000"

#: Version of the format of kimbox.json.
FORMAT = 1

#: Files that describe a package. A format that cannot hold files has them beside it, with the box's name as a prefix.
FILES = ("kimbox.json", "kimbox.yaml", "kimbox.lock", "sbom.cdx.json", "provenance.intoto.json")


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
class Source:
    """The disk to be packaged. `kind` is `machine`, `image`, or `base` (an image that a maintainer changed)."""

    kind: str
    image: Image
    disk: Path
    format: str
    #: What was removed or reset: paths, or a description of what has no path.
    cleaned: tuple[str, ...] = ()
    #: Keys that Debian packages ship, and certificate stores: they stay.
    kept: tuple[Finding, ...] = ()
    #: Why kimbox cannot read the disk, which is packaged without changes; None if kimbox can read it.
    opaque: str | None = None
    #: Further keys of the package's kimbox.json.
    about: Mapping[str, object] = attrs.field(factory=dict)
    #: The open disk; None if it is not raw, or if kimbox cannot read it.
    view: DiskView | None = None


@attrs.frozen
class Packaged:
    """The result of `package`: every file, and what was removed, reset or kept in the packaged copy (see `Source`)."""

    files: tuple[Path, ...]
    source: str
    cleaned: tuple[str, ...]
    kept: tuple[Finding, ...] = ()
    opaque: str | None = None


def package(request: PackageRequest) -> Packaged:
    """Writes the packages; each appears completely or not at all.

    Raises StateError if the machine is not halted, or a package exists already; ImageError if the disk cannot be
    cleaned.
    """
    sign = check(request)
    provenance, _ = provenance_of(request.project, hashed=False)
    with _source(request, machine_of(request.box.name), provenance) as source:
        return write(request, provenance, source, sign)


def check(request: PackageRequest) -> Sign | None:
    """Returns the function that signs; None if there is no key.

    Raises StateError if a package exists already, as a file or in the catalog, and for a key what `sums.sign` raises.
    """
    for path in (*_targets(request).values(), _checksums(request), *_separate_files(request)):
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


def _separate_files(request: PackageRequest) -> list[Path]:
    """Paths of spec, lock and the other files of FILES, if one of the formats cannot hold them; else empty."""
    if all(kind.is_vagrant_box for kind in request.formats):
        return []
    return [request.folder / f"{request.box.name}.{name}" for name in FILES]


def write(request: PackageRequest, provenance: Provenance, source: Source, sign: Sign | None) -> Packaged:
    """Writes the packages of a disk. No process may write to the disk meanwhile."""
    box, disk = request.box, source.disk
    files = _files(request, provenance, source)
    knows_e1000 = any(kind.is_for_virtualbox for kind in request.formats) and _has_e1000_driver(source.view)
    guest = box.image.distribution if isinstance(box.image, PackageImage) else "linux"
    size_bytes = source.image.virtual_bytes
    content = Content(
        box.name, disk, source.format, size_bytes, box.cpus, box.memory_bytes, guest, USER, files, knows_e1000
    )
    written = []
    for kind, target in _targets(request).items():
        with log.step(f"packing {target.name}"):
            export.write(kind, content, target, sign)
        written.append(target)
    for path in _separate_files(request):
        write_atomic(path, files[path.name.removeprefix(f"{box.name}.")])
        written.append(path)
    written += _write_checksums(_checksums(request), written, sign)
    if request.catalog_url is not None:
        written.append(_add_to_catalog(request))
    return Packaged(tuple(written), source.kind, source.cleaned, source.kept, source.opaque)


def _files(request: PackageRequest, provenance: Provenance, source: Source) -> dict[str, bytes]:
    """The content of each file of FILES."""
    lock = provenance.lock
    about: dict[str, object] = {"format": FORMAT, "from": source.kind, "image": source.image.key, "kimbox": __version__}
    about |= {"name": request.box.name, "lock": lock.digest, "spec": lock.spec_digest}
    about |= {"cleaned": source.opaque is None, "kept_keys": [finding.as_json() for finding in source.kept]}
    installed = _as_installed(provenance, source)
    return {
        "kimbox.json": json_bytes({**about, **source.about}),
        "kimbox.yaml": json_bytes(merged_spec(request.box.source)),
        "kimbox.lock": format_lock(lock).encode(),
        "sbom.cdx.json": sbom(installed).encode(),
        "provenance.intoto.json": statement(installed).encode(),
    }


def _as_installed(provenance: Provenance, source: Source) -> Provenance:
    """The provenance with the packages that a maintainer's root has, if kimbox can read its disk."""
    if source.kind == "image" or source.view is None:
        return provenance
    installed = dpkg.installed(source.view.root.file_system)
    return provenance.with_installed(installed) if installed else provenance


@contextmanager
def _source(request: PackageRequest, machine: Machine, provenance: Provenance) -> Iterator[Source]:
    """The image, or a clean copy of the root of the halted machine."""
    if request.image_only or not machine.exists:
        with obtain.leased(request.box, provenance.lock.packages) as image:
            _check_bytes(image)
            with _of_image(image) as source:
                yield source
        return
    with machine.locked():
        _refuse_sealed(machine)
        _check_halted(machine)
        key = machine.record().image
        image_of_machine = images.find(key)
        if image_of_machine is None:
            raise StateError(
                f"cannot package {machine.name}: the image that it was made from is not in the store ({key[:12]})",
                code="image-not-found",
                fields={"name": machine.name, "image": key},
            )
        _check_bytes(image_of_machine)
        work = machine.folder / "package"
        remove_tree(work)
        work.mkdir(mode=0o700)
        try:
            with log.step(f"cleaning a copy of {machine.name}"):
                used_disk = registry.of(machine).readable_disk(image_of_machine, work)
                cleaned = clean(used_disk, image_of_machine, work)
            disk = work / "clean.raw"
            with rawdisk.opened(disk) as view:
                kept = scan_for_secrets(view, f"the disk of {machine.name}")
                yield Source("machine", image_of_machine, disk, "raw", tuple(cleaned), kept, view=view)
        finally:
            remove_tree(work)


def _check_bytes(image: Image) -> None:
    """Raises ImageError (`image-damaged`) if the disk of an image in the store has changed."""
    with log.step("checking the image"):
        images.check(image)


def _check_halted(machine: Machine) -> None:
    """Raises StateError if a machine is not halted."""
    now = state(machine)
    if now is not State.HALTED:
        raise StateError(
            f"cannot package {machine.name}: it is {now}, not halted",
            code="wrong-state",
            hint=f"`kimbox halt {machine.name}` shuts it down; with --image kimbox packages the image that it was made "
            "from",
            fields={"verb": "package", "name": machine.name, "state": str(now)},
        )


def _refuse_sealed(machine: Machine) -> None:
    """Raises StateError if the box is sealed, because its root may be changed from inside and holds data of others."""
    if sealed := machine.record().sealed:
        raise StateError(
            f"cannot package {machine.name}: it is sealed as {sealed.role} of {sealed.site}, and the package would "
            "contain what programs in it changed and stored",
            code="box-sealed",
            hint=f"with --image kimbox packages the image that it was made from; `kimbox secure {machine.name} "
            "--unseal` opens the box",
            fields={"name": machine.name, "verb": "package", "role": sealed.role, "site": sealed.site},
        )


@contextmanager
def _of_image(image: Image) -> Iterator[Source]:
    """An image of kimbox's own without changes; an image from elsewhere without the traces of its runs."""
    if _is_own(image):
        with rawdisk.opened(image.disk) as view:
            kept = scan_for_secrets(view, "the image")
            yield Source("image", image, image.disk, image.format, kept=kept, view=view)
        return
    name = f"package-{image.key}"
    work = paths.images_dir() / f"{images.TEMPORARY}{name}"  # if this process is killed, the next build removes it
    busy = "another kimbox process is packaging this image"
    with locked(paths.images_dir() / f"{name}.lock", wait_s=images.BUILD_WAIT_S, busy=busy):
        remove_tree(work)
        work.mkdir(mode=0o700)
        try:
            with _cleaned_image(image, work) as source:
                yield source
        finally:
            remove_tree(work)


@contextmanager
def _cleaned_image(image: Image, work: Path) -> Iterator[Source]:
    """An image from elsewhere, or a clean copy of it in `work`.

    If its layout is not that of kimbox's images, the source is `opaque`. Raises ImageError if the image is damaged or
    contains a key that may not leave this host.
    """
    with contextlib.ExitStack() as stack:
        try:
            disk = _as_raw(image, work)
            view = stack.enter_context(rawdisk.opened(disk))
            external.check_layout(view)
        except ImageError as error:
            yield Source("image", image, image.disk, image.format, opaque=error.message)
            return
        if not external.traces(view):
            kept = scan_for_secrets(view, "the image")
            raw_view = view if image.format == "raw" else None
            yield Source("image", image, image.disk, image.format, kept=kept, view=raw_view)
            return
        with log.step("cleaning a copy of the image"):
            if disk == image.disk:
                disk = work / "image.raw"
                copy_sparse(image.disk, disk)
                disk.chmod(0o600)
            cleaned = external.clean(disk)
        view = stack.enter_context(rawdisk.opened(disk))
        kept = scan_for_secrets(view, "the image")
        yield Source("image", image, disk, "raw", tuple(cleaned), kept, view=view)


def _as_raw(image: Image, work: Path) -> Path:
    """The disk of an image, or a raw copy of it in `work`. Raises ImageError for another layout, before it copies."""
    if image.format == "raw":
        return image.disk
    with nbd.opened(image.disk, image.format) as device:
        DiskView.of(device.read, device.size_bytes).check_layout()
    disk = work / "image.raw"
    convert(image.disk, image.format, disk, ("-O", "raw"))
    return disk


def scan_for_secrets(disk: DiskView, what: str) -> tuple[Finding, ...]:
    """Returns the keys that may stay on a disk. Raises ImageError if there are others, and names them.

    `what` is the disk's name in the message.
    """
    with log.step("scanning for keys and identities"):
        result = secrets.scan(disk, on_part=log.now)
    result.check(what)
    return result.kept


def clean(used_disk: Path, image: Image, work: Path) -> list[str]:
    """Writes clean.raw to `work`: the disk of a machine (a qcow2) as it was before the first boot.

    If the image is not raw, image.raw beside it is a raw copy of the image. If the image came from elsewhere, the
    traces of its runs are removed, too. Returns what was removed or reset.
    """
    disk, base = work / "clean.raw", image.disk
    slim.flatten(used_disk, "qcow2", disk, drop_snapshots=True)
    if image.format != "raw":
        base = work / "image.raw"
        slim.flatten(image.disk, image.format, base)
    cleaned = restore.restore(disk, base)
    return cleaned if _is_own(image) else sorted({*cleaned, *external.clean(disk)})


def _is_own(image: Image) -> bool:
    """Whether kimbox built the image, or made it from a maintained root. Such an image never ran, or was cleaned."""
    return "packages" in image.facts or "former" in image.facts


def _has_e1000_driver(disk: DiskView | None) -> bool:
    """Whether the guest has the driver of VirtualBox's default network card; False if the disk cannot be read."""
    with contextlib.suppress(ImageError):
        pattern = f"/usr/lib/modules/*/kernel/{E1000}"
        return disk is not None and bool(directories.matching(disk.root.file_system, pattern))
    return False


def _write_checksums(target: Path, files: list[Path], sign: Sign | None) -> list[Path]:
    """Writes the checksums of the files, and their signature. Returns the paths of both."""
    text = sums.text({path.name: sha256_file(path).removeprefix("sha256:") for path in files})
    write_atomic(target, text)
    if sign is None:
        return [target]
    signature = target.with_name(f"{target.name}.sig")
    write_atomic(signature, sign(text))
    return [target, signature]


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
