"""Packaging: a box's image, or the root of its halted machine, as others take it, with what it is made of.

A package tells nothing of this host, and equal input gives equal bytes. Where the machine was halted, its disk is read
and never written: what is cleaned is a copy.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from kimbox import __version__
from kimbox.errors import ImageError, StateError
from kimbox.files import remove_tree, sha256_file, write_atomic
from kimbox.image import catalog, cleaned, formats, slim, store, sums
from kimbox.image.boxwriter import Sign, json_bytes, refuse_existing
from kimbox.image.formats import Content, Format
from kimbox.image.store import Image
from kimbox.lock.lockfile import format_lock
from kimbox.lock.provenance import Whole, sbom, statement
from kimbox.log import log
from kimbox.machine.facts import state
from kimbox.machine.folder import USER, Machine
from kimbox.machine.origin import whole_of
from kimbox.machine.provider import need_disk
from kimbox.machine.state import State
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

    box: Box
    shipped: bool
    formats: tuple[Format, ...]
    #: The folder that packages go to.
    output: Path
    #: The image is packaged although there is a machine.
    image_only: bool = False
    #: Private key of ssh that signs the checksums.
    key: Path | None = None
    #: URL of the folder that the packages will be served from, where a catalog is wanted; and their version in it.
    catalog_url: str | None = None
    version: str = "0"


@attrs.frozen
class Packaged:
    """What `package` made: every file, and what was removed or reset in the machine's root."""

    files: tuple[Path, ...]
    source: str
    cleaned: tuple[str, ...]


def package(wanted: Wanted) -> Packaged:
    """Makes the packages, each whole or not at all. Raises StateError for a machine that is not halted, and where a
    package is there already; ImageError where its disk cannot be cleaned.
    """
    box, machine = wanted.box, Machine(wanted.box.name)
    targets = {kind: wanted.output / kind.file_name(box.name) for kind in wanted.formats}
    checksums = wanted.output / f"{box.name}.{sums.NAME}"
    beside = () if all(kind.holds_files for kind in wanted.formats) else FILES
    for path in (*targets.values(), checksums, *(wanted.output / f"{box.name}.{name}" for name in beside)):
        refuse_existing(path)
    whole, _ = whole_of(box, shipped=wanted.shipped, hashed=False)
    sign = functools.partial(sums.sign, key=wanted.key) if wanted.key else None
    if sign:
        sign(b"")  # a key that cannot sign is told before there is any work done
    with _disk(wanted, machine, whole) as (image, disk, kind, done):
        source = "machine" if disk != image.disk else "image"
        about = {"format": FORMAT, "from": source, "image": image.key, "kimbox": __version__, "name": box.name}
        about |= {"lock": whole.lock.digest, "spec": whole.lock.spec_digest}
        files = {
            "kimbox.json": json_bytes(about),
            "kimbox.yaml": json_bytes(merged_spec(box.source)),
            "kimbox.lock": format_lock(whole.lock).encode(),
            "sbom.cdx.json": sbom(whole).encode(),
            "provenance.intoto.json": statement(whole).encode(),
        }
        knows_e1000 = _knows_e1000(disk, kind) if {Format.OVA, Format.VIRTUALBOX} & set(wanted.formats) else False
        guest = box.image.distribution if isinstance(box.image, PackageImage) else "linux"
        content = Content(
            box.name, disk, kind, image.virtual_bytes, box.cpus, box.memory_bytes, guest, USER, files, knows_e1000
        )
        for wanted_format, target in targets.items():
            with log.step(f"packing {target.name}"):
                formats.write(wanted_format, content, target, sign)
    made = [*targets.values(), *_beside(wanted, {name: files[name] for name in beside})]
    made += _sums(checksums, made, sign)
    if wanted.catalog_url is not None:
        made.append(_catalog(wanted, targets))
    return Packaged(tuple(made), source, tuple(done))


@contextmanager
def _disk(wanted: Wanted, machine: Machine, whole: Whole) -> Iterator[tuple[Image, Path, str, list[str]]]:
    """The image, and the disk to be packaged, its format, and what was cleaned in it."""
    if wanted.image_only or not machine.exists:
        image = store.ensure(wanted.box, whole.lock.packages)
        yield image, image.disk, image.format, []
        return
    with machine.locked():
        need_disk(machine, "package")
        now = state(machine)
        if now is not State.HALTED:
            hint = f"`kimbox halt {machine.name}` first; with --image the image it was made from is packaged"
            raise StateError(f"{machine.name} is {now}, and a machine is packaged when it is halted", hint=hint)
        need_disk(machine, "package")
        found = store.find(machine.record().image)
        if found is None:
            raise StateError(f"the image that {machine.name} was made from is gone")
        work = machine.folder / "package"
        remove_tree(work)
        work.mkdir(mode=0o700)
        try:
            with log.step(f"cleaning a copy of {machine.name}"):
                done = clean(machine, found, work)
            yield found, work / "clean.raw", "raw", done
        finally:
            remove_tree(work)


def clean(machine: Machine, image: Image, work: Path) -> list[str]:
    """Makes clean.raw in `work`: the machine's disk in the state before its first boot. Returns what went.

    Where the image is not raw, image.raw beside it shows the same as a raw disk.
    """
    disk, base = work / "clean.raw", image.disk
    slim.flatten(machine.disk, "qcow2", disk, drop_snapshots=True)
    if image.format != "raw":
        base = work / "image.raw"
        slim.flatten(image.disk, image.format, base)
    return cleaned.restore(disk, base)


def _knows_e1000(disk: Path, kind: str) -> bool:
    """Whether the guest can use VirtualBox's usual network card; False where the disk cannot be looked into."""
    with contextlib.suppress(ImageError):
        return kind == "raw" and cleaned.has_module(disk, E1000)
    return False


def _beside(wanted: Wanted, files: Mapping[str, bytes]) -> list[Path]:
    """Spec, lock and the like, for the formats that cannot hold them."""
    written = []
    for name, data in files.items():
        written.append(wanted.output / f"{wanted.box.name}.{name}")
        write_atomic(written[-1], data)
    return written


def _sums(target: Path, made: list[Path], sign: Sign | None) -> list[Path]:
    """Writes the checksums of all files, and their signature."""
    text = sums.text({path.name: sha256_file(path).removeprefix("sha256:") for path in made})
    write_atomic(target, text)
    if sign is None:
        return [target]
    signature = target.with_name(f"{target.name}.sig")
    write_atomic(signature, sign(text))
    return [target, signature]


def _catalog(wanted: Wanted, targets: Mapping[Format, Path]) -> Path:
    """Adds the Vagrant boxes among the packages to the catalog beside them."""
    file = wanted.output / f"{wanted.box.name}.metadata.json"
    boxes = {
        str(kind): (path.name, hashlib.file_digest(path.open("rb"), "sha256").hexdigest())
        for kind, path in targets.items()
        if kind.holds_files
    }
    catalog.add(file, wanted.box.name, wanted.box.description, wanted.version, wanted.catalog_url or "", boxes)
    return file
