"""Packaging: a box's image, or the root of its halted machine, as others take it, with what it is made of.

A package tells nothing of this host, and equal input gives equal bytes. Where the machine was halted, its disk is read
and never written: what is cleaned is a copy.
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
from kimbox.actions.provenance import whole_of
from kimbox.drivers import registry
from kimbox.errors import ImageError, StateError
from kimbox.files import copy_sparse, locked, remove_tree, sha256_file, write_atomic
from kimbox.image import obtain
from kimbox.image.disk import dpkg, rawdisk
from kimbox.image.disk.ext4 import directories
from kimbox.image.disk.view import DiskView
from kimbox.image.formats import catalog, nbd, slim, sums
from kimbox.image.formats import export as formats
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

#: Where a kernel has the driver of VirtualBox's usual network card.
E1000 = "drivers/net/ethernet/intel/e1000"

#: Version of kimbox.json.
FORMAT = 1

#: What a package is made of, by the names of the files in it; beside another format they follow the name of the box.
FILES = ("kimbox.json", "kimbox.yaml", "kimbox.lock", "sbom.cdx.json", "provenance.intoto.json")


@attrs.frozen
class Wanted:
    """What `package` is asked for."""

    project: Project
    formats: tuple[Format, ...]
    #: The folder that packages, or a catalog with a folder of packages for each version, go to.
    output: Path
    #: The image is packaged although there is a machine.
    image_only: bool = False
    #: Private key of ssh that signs the checksums.
    key: Path | None = None
    #: URL of the folder that the packages will be served from, where a catalog is wanted; and their version in it.
    catalog_url: str | None = None
    version: str = "0"

    @property
    def box(self) -> Box:
        """The spec."""
        return self.project.box

    @property
    def folder(self) -> Path:
        """Where the packages go."""
        return self.output if self.catalog_url is None else self.output / self.version

    @property
    def catalog(self) -> Path:
        return self.output / f"{self.box.name}.metadata.json"


@attrs.frozen
class Source:
    """What is packaged: `machine`, `image`, or `base` (an image that a maintainer changed), with its disk."""

    kind: str
    image: Image
    disk: Path
    format: str
    #: What was removed or reset: paths, or words for what has none.
    cleaned: tuple[str, ...] = ()
    #: Keys that packages ship, and stores of certificates: they stay.
    kept: tuple[Finding, ...] = ()
    #: Why kimbox could not look into the disk, which is handed on as it is.
    opaque: str | None = None
    #: More for the package's kimbox.json.
    about: Mapping[str, object] = attrs.field(factory=dict)
    #: The open disk; None where it is not raw, or kimbox cannot look into it.
    view: DiskView | None = None


@attrs.frozen
class Packaged:
    """What `package` made: every file, and what was removed or reset in the copy that was packaged."""

    files: tuple[Path, ...]
    source: str
    cleaned: tuple[str, ...]
    kept: tuple[Finding, ...] = ()
    opaque: str | None = None


def package(wanted: Wanted) -> Packaged:
    """Makes the packages, each whole or not at all. Raises StateError for a machine that is not halted, and where a
    package is there already; ImageError where its disk cannot be cleaned.
    """
    sign = check(wanted)
    whole, _ = whole_of(wanted.project, hashed=False)
    with _source(wanted, machine_of(wanted.box.name), whole) as source:
        return write(wanted, whole, source, sign)


def check(wanted: Wanted) -> Sign | None:
    """Raises StateError where a package is there already, or in the catalog, and what `sums.sign` raises for a key.

    Returns what signs.
    """
    for path in (*_targets(wanted).values(), _checksums(wanted), *_beside(wanted)):
        refuse_existing(path)
    if wanted.catalog_url is not None:
        providers = [str(kind) for kind in wanted.formats if kind.holds_files]
        catalog.check(wanted.catalog, wanted.box.name, wanted.version, providers)
    if wanted.key is None:
        return None
    sign = functools.partial(sums.sign, key=wanted.key)
    sign(b"")
    return sign


def _targets(wanted: Wanted) -> dict[Format, Path]:
    return {kind: wanted.folder / kind.file_name(wanted.box.name) for kind in wanted.formats}


def _checksums(wanted: Wanted) -> Path:
    return wanted.folder / f"{wanted.box.name}.{sums.NAME}"


def _beside(wanted: Wanted) -> list[Path]:
    """Where spec, lock and the like go, if one of the formats cannot hold them."""
    if all(kind.holds_files for kind in wanted.formats):
        return []
    return [wanted.folder / f"{wanted.box.name}.{name}" for name in FILES]


def write(wanted: Wanted, whole: Provenance, source: Source, sign: Sign | None) -> Packaged:
    """Makes the packages of a disk that nobody writes to; `whole` is what the box is made of."""
    box, disk = wanted.box, source.disk
    files = _files(wanted, whole, source)
    knows_e1000 = bool({Format.OVA, Format.VIRTUALBOX} & set(wanted.formats)) and _knows_e1000(source.view)
    guest = box.image.distribution if isinstance(box.image, PackageImage) else "linux"
    size_bytes = source.image.virtual_bytes
    content = Content(
        box.name, disk, source.format, size_bytes, box.cpus, box.memory_bytes, guest, USER, files, knows_e1000
    )
    made = []
    for kind, target in _targets(wanted).items():
        with log.step(f"packing {target.name}"):
            formats.write(kind, content, target, sign)
        made.append(target)
    for path in _beside(wanted):
        write_atomic(path, files[path.name.removeprefix(f"{box.name}.")])
        made.append(path)
    made += _sums(_checksums(wanted), made, sign)
    if wanted.catalog_url is not None:
        made.append(_catalog(wanted))
    return Packaged(tuple(made), source.kind, source.cleaned, source.kept, source.opaque)


def _files(wanted: Wanted, whole: Provenance, source: Source) -> dict[str, bytes]:
    """Spec, lock, SBOM and the like."""
    about: dict[str, object] = {"format": FORMAT, "from": source.kind, "image": source.image.key, "kimbox": __version__}
    about |= {"name": wanted.box.name, "lock": whole.lock.digest, "spec": whole.lock.spec_digest}
    about |= {"cleaned": source.opaque is None, "kept_keys": [finding.as_json() for finding in source.kept]}
    real = _as_installed(whole, source)
    return {
        "kimbox.json": json_bytes({**about, **source.about}),
        "kimbox.yaml": json_bytes(merged_spec(wanted.box.source)),
        "kimbox.lock": format_lock(whole.lock).encode(),
        "sbom.cdx.json": sbom(real).encode(),
        "provenance.intoto.json": statement(real).encode(),
    }


def _as_installed(whole: Provenance, source: Source) -> Provenance:
    """With the packages that a maintainer's root has, where its disk can be looked into."""
    if source.kind == "image" or source.view is None:
        return whole
    found = dpkg.installed(source.view.root.file_system)
    return whole.with_installed(found) if found else whole


@contextmanager
def _source(wanted: Wanted, machine: Machine, whole: Provenance) -> Iterator[Source]:
    """The image, or the root of the halted machine, cleaned."""
    if wanted.image_only or not machine.exists:
        with obtain.leased(wanted.box, whole.lock.packages) as image, _of_image(image) as source:
            yield source
        return
    with machine.locked():
        _refuse_sealed(machine)
        now = state(machine)
        if now is not State.HALTED:
            hint = f"`kimbox halt {machine.name}` first; with --image the image it was made from is packaged"
            raise StateError(f"{machine.name} is {now}, and a machine is packaged when it is halted", hint=hint)
        found = images.find(machine.record().image)
        if found is None:
            raise StateError(f"the image that {machine.name} was made from is gone")
        work = machine.folder / "package"
        remove_tree(work)
        work.mkdir(mode=0o700)
        try:
            with log.step(f"cleaning a copy of {machine.name}"):
                done = clean(registry.of(machine).readable_disk(found, work), found, work)
            disk = work / "clean.raw"
            with rawdisk.opened(disk) as view:
                kept = look_through(view, f"the disk of {machine.name}")
                yield Source("machine", found, disk, "raw", tuple(done), kept, view=view)
        finally:
            remove_tree(work)


def _refuse_sealed(machine: Machine) -> None:
    """Raises StateError where a box was secured: its root could be changed from inside, and it keeps others' data."""
    if sealed := machine.record().sealed:
        raise StateError(
            f"{machine.name} is sealed as {sealed.role} of {sealed.site}, and a sealed box is not packaged: "
            "what root in it changed, and what it keeps, would be in the package",
            hint=f"--image packages the image it was made from; `kimbox secure {machine.name} --unseal` opens the box",
        )


@contextmanager
def _of_image(image: Image) -> Iterator[Source]:
    """An image: one of kimbox's own as it is, one from elsewhere without what a run has left in it."""
    if _is_own(image):
        with rawdisk.opened(image.disk) as view:
            kept = look_through(view, "the image")
            yield Source("image", image, image.disk, image.format, kept=kept, view=view)
        return
    name = f"package-{image.key}"
    work = paths.images_dir() / f"{images.TEMPORARY}{name}"  # where this is killed, the next build removes it
    with locked(
        paths.images_dir() / f"{name}.lock", wait_s=images.BUILD_WAIT_S, busy="another kimbox packages this image"
    ):
        remove_tree(work)
        work.mkdir(mode=0o700)
        try:
            with _cleaned_image(image, work) as source:
                yield source
        finally:
            remove_tree(work)


@contextmanager
def _cleaned_image(image: Image, work: Path) -> Iterator[Source]:
    """An image from elsewhere, or a clean copy of it in `work`. Raises ImageError if that is damaged or holds a key."""
    with contextlib.ExitStack() as stack:
        try:
            disk = _as_raw(image, work)
            view = stack.enter_context(rawdisk.opened(disk))
            external.check_layout(view)
        except ImageError as error:
            yield Source("image", image, image.disk, image.format, opaque=error.message)
            return
        if not external.traces(view):
            kept = look_through(view, "the image")
            readable = view if image.format == "raw" else None
            yield Source("image", image, image.disk, image.format, kept=kept, view=readable)
            return
        with log.step("cleaning a copy of the image"):
            if disk == image.disk:
                disk = work / "image.raw"
                copy_sparse(image.disk, disk)
                disk.chmod(0o600)
            found = external.clean(disk)
        view = stack.enter_context(rawdisk.opened(disk))
        kept = look_through(view, "the image")
        yield Source("image", image, disk, "raw", tuple(found), kept, view=view)


def _as_raw(image: Image, work: Path) -> Path:
    """The disk of an image, or a raw copy of it in `work`. Raises ImageError, before it copies, for another layout."""
    if image.format == "raw":
        return image.disk
    with nbd.opened(image.disk, image.format) as there:
        DiskView.of(there.read, there.size_bytes).check_layout()
    disk = work / "image.raw"
    convert(image.disk, image.format, disk, ("-O", "raw"))
    return disk


def look_through(disk: DiskView, what: str) -> tuple[Finding, ...]:
    """Keys that may stay on a disk. Raises ImageError, naming them, where there are others; `what` holds them."""
    with log.step("looking for keys and identities"):
        found = secrets.scan(disk, on_part=log.now)
    found.check(what)
    return found.kept


def clean(used: Path, image: Image, work: Path) -> list[str]:
    """Makes clean.raw in `work`: a machine's disk (a qcow2) in the state before its first boot. Returns what went.

    Where the image is not raw, image.raw beside it shows the same as a raw disk. Where it came from elsewhere, what a
    run has left in it goes, too.
    """
    disk, base = work / "clean.raw", image.disk
    slim.flatten(used, "qcow2", disk, drop_snapshots=True)
    if image.format != "raw":
        base = work / "image.raw"
        slim.flatten(image.disk, image.format, base)
    done = restore.restore(disk, base)
    return done if _is_own(image) else sorted({*done, *external.clean(disk)})


def _is_own(image: Image) -> bool:
    """Whether kimbox built an image here, or made it of a maintained one: it never ran then, or was cleaned."""
    return "packages" in image.facts or "former" in image.facts


def _knows_e1000(disk: DiskView | None) -> bool:
    """Whether the guest can use VirtualBox's usual network card; False where the disk cannot be looked into."""
    with contextlib.suppress(ImageError):
        pattern = f"/usr/lib/modules/*/kernel/{E1000}"
        return disk is not None and bool(directories.matching(disk.root.file_system, pattern))
    return False


def _sums(target: Path, made: list[Path], sign: Sign | None) -> list[Path]:
    """Writes the checksums of all files, and their signature."""
    text = sums.text({path.name: sha256_file(path).removeprefix("sha256:") for path in made})
    write_atomic(target, text)
    if sign is None:
        return [target]
    signature = target.with_name(f"{target.name}.sig")
    write_atomic(signature, sign(text))
    return [target, signature]


def _catalog(wanted: Wanted) -> Path:
    """Adds the Vagrant boxes among the packages to the catalog, which lies beside the folder of each version."""
    boxes = {
        str(kind): (f"{wanted.version}/{path.name}", sha256_file(path).removeprefix("sha256:"))
        for kind, path in _targets(wanted).items()
        if kind.holds_files
    }
    url = wanted.catalog_url or ""
    catalog.add(wanted.catalog, wanted.box.name, wanted.box.description, wanted.version, url, boxes)
    return wanted.catalog
