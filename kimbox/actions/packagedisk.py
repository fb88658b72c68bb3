"""The disk of a package: the image of a box, or a clean copy of the root of its halted machine.

The disk of a machine, and an image in the store, are only read: kimbox cleans a copy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.actions.observe import state
from kimbox.drivers import registry
from kimbox.errors import ImageError, StateError
from kimbox.files import locked, remove_tree
from kimbox.image.disk import changes, nbd, rawdisk, slim
from kimbox.image.disk.view import DiskView
from kimbox.image.formats.boxwriter import convert
from kimbox.image.sanitize import external, restore, secrets
from kimbox.image.sanitize.secrets import Finding
from kimbox.image.store import images
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine import rebuilt
from kimbox.machine.folder import Machine
from kimbox.machine.state import State
from kimbox.sparse import copy_sparse

#: State -> how a machine in it becomes halted, with a disk that was unmounted. From other states `halt` does that.
_HALTING = {
    State.CRASHED: "`kimbox up {name}` repairs its disk, and then `kimbox halt {name}` shuts it down",
    State.SUSPENDED: "`kimbox resume {name}` and then `kimbox halt {name}` shut it down",
}


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
    #: The content of the disk, or of a raw copy of it; None if kimbox cannot read it.
    view: DiskView | None = None


@contextmanager
def of_machine(machine: Machine) -> Iterator[Source]:
    """A clean copy of the root of a halted machine.

    Raises StateError if the machine is sealed or not halted, or if the store does not have the image that it was made
    from; ImageError if a disk is damaged or contains a key that may not leave this host.
    """
    with machine.locked():
        rebuilt.finish(machine)
        _refuse_sealed(machine)
        _check_halted(machine)
        image = _image_of(machine)
        _check_bytes(image)
        work = machine.package_work
        remove_tree(work)
        work.mkdir(mode=0o700)
        try:
            with log.step(f"cleaning a copy of {machine.name}"):
                used_disk = registry.of(machine).readable_disk(image, work)
                cleaned = clean(used_disk, image, work)
            base = image.disk if image.format == "raw" else work / "image.raw"
            disk = work / "clean.raw"
            with rawdisk.opened(disk) as view:
                kept = scan_for_secrets(view, f"the disk of {machine.name}")
                about = _changes(base, view)
                yield Source("machine", image, disk, "raw", tuple(cleaned), kept, about=about, view=view)
        finally:
            remove_tree(work)


def _image_of(machine: Machine) -> Image:
    """The image that a machine was made from. Raises StateError (`image-not-found`)."""
    key = machine.record().image
    if image := images.find(key):
        return image
    raise StateError(
        f"cannot package {machine.name}: the image that it was made from is not in the store ({key[:12]})",
        code="image-not-found",
        fields={"name": machine.name, "image": key},
    )


def _changes(base: Path, view: DiskView) -> dict[str, object]:
    """The changes of a root to its image, for the package's kimbox.json; empty if there are none."""
    with log.step("comparing with the image"), contextlib.ExitStack() as stack:
        base_view = stack.enter_context(rawdisk.opened(base))
        found = changes.find(base_view, view, on_part=log.now)
    is_changed = found.packages or found.added or found.removed or found.changed
    return {"changes": found.as_json()} if is_changed else {}


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
            hint=f"{_HALTING.get(now, '`kimbox halt {name}` shuts it down').format(name=machine.name)}; with --image "
            "kimbox packages the image of the spec",
            fields={"verb": "package", "name": machine.name, "state": str(now)},
        )


def _refuse_sealed(machine: Machine) -> None:
    """Raises StateError if the box is sealed, because its root may be changed from inside and holds data of others."""
    if sealed := machine.record().sealed:
        raise StateError(
            f"cannot package {machine.name}: it is sealed as {sealed.role} of {sealed.site}, and the package would "
            "contain what programs in it changed and stored",
            code="box-sealed",
            hint=f"with --image kimbox packages the image of the spec; `kimbox secure {machine.name} "
            "--unseal` opens the box",
            fields={"name": machine.name, "verb": "package", "role": sealed.role, "site": sealed.site},
        )


@contextmanager
def of_image(image: Image) -> Iterator[Source]:
    """An image of kimbox's own without changes; an image from elsewhere without the traces of its runs.

    Raises ImageError if the image is damaged, or contains a key that may not leave this host.
    """
    _check_bytes(image)
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
            yield Source("image", image, image.disk, image.format, kept=kept, view=view)
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
