"""kimbox save: puts the disk of a halted machine into a store, so that it can be started again, here or elsewhere.

The order keeps a save whole: packs, index and files are uploaded and read back; then the manifest is created under the
next number, which fails if another saver was faster. Only then are older saves removed. A run that is interrupted
leaves objects that no manifest names: the next save uses or removes them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs

from kimbox import __version__, utctime
from kimbox.actions.notices import notify
from kimbox.actions.saves import candidates, folders, found, prune
from kimbox.errors import ImageError, KimboxError, StateError
from kimbox.files import is_full, json_bytes, read_bounded, remove_tree, size_words, space_error
from kimbox.image.disk import nbd
from kimbox.image.formats import sums
from kimbox.image.saves import chunks, index, packs, private, secrets
from kimbox.image.saves.index import MAX_CHUNKS, Chunk
from kimbox.image.saves.manifest import (
    MAX_FILE_BYTES,
    Base,
    Contents,
    Folder,
    Manifest,
    Stored,
    name_of,
    pack_manifest,
)
from kimbox.image.saves.packs import Known, Packer
from kimbox.image.saves.secrets import Finding
from kimbox.image.store import digest, images, lease
from kimbox.image.store.images import Image
from kimbox.log import log
from kimbox.machine import delivered_locks, rebuilt
from kimbox.machine.folder import Machine
from kimbox.machine.record import LastSave, Record
from kimbox.spec.occasions import Occasion
from kimbox.transfer.stores.base import Store
from kimbox.transfer.stores.opening import open_store

#: Subfolder of a machine with the pack that is being filled. It remains only if a save was interrupted.
WORK = "save"

#: Maximum number of older saves that are kept.
MAX_KEPT = 9999

#: Interval between two progress lines, in seconds.
REPORT_S = 2.0


@attrs.frozen
class SaveRequest:
    """The arguments of `save`."""

    machine: Machine
    url: str
    #: Number of saves that stay, this one among them. None: all.
    keep: int | None = None
    #: Whether the save has the image below the disk, too.
    fat: bool = False
    #: Private ssh key that signs the manifest.
    key: Path | None = None
    #: Whether the save is for others. Then no file of a user may look like a secret, except those of `shared_secrets`:
    #: paths of files and folders in the guest.
    share: bool = False
    shared_secrets: tuple[str, ...] = ()


@attrs.frozen
class Saved:
    """The result of `save`."""

    url: str
    manifest: Manifest
    #: Numbers of the saves that were removed.
    removed: tuple[int, ...]
    #: Files in the guest that are not in the save, or have other content there.
    cleaned: tuple[str, ...]
    #: Bytes that this call uploaded. An interrupted one may have uploaded the others.
    uploaded_bytes: int
    #: Files in the save that look like secrets of users.
    secrets: tuple[Finding, ...] = ()


@attrs.define
class _Writing:
    """A save that is being written."""

    request: SaveRequest
    store: Store
    work: Path
    #: The newest save, and its number, which is known also if its manifest is damaged.
    parent: Manifest | None
    parent_number: int
    packer: Packer
    uploaded_bytes: int = 0
    added_bytes: int = 0
    secrets: tuple[Finding, ...] = ()

    @property
    def number(self) -> int:
        return self.parent_number + 1

    def put(self, folder: str, data: bytes, old: Stored | None = None) -> Stored:
        """Stores bytes in a folder of the store, unless the former save has the same bytes in `old`."""
        if old and old.digest == hashlib.sha256(data).hexdigest() and self.store.size(old.name) == len(data):
            return old
        source = self.work / "object"
        source.write_bytes(data)
        stored, was_there = packs.put_file(self.store, f"{folder}/{self.number:06}-", source)
        self.added_bytes += stored.size_bytes
        self.uploaded_bytes += 0 if was_there else stored.size_bytes
        return stored

    def put_bundle(self, former: Mapping[str, Folder], name: str, commit: str, bundle: Callable[[], Path]) -> Stored:
        """Stores the bundle of a commit, unless the former save has one."""
        old = former.get(name)
        if old and old.commit == commit and self.store.size(old.bundle.name) == old.bundle.size_bytes:
            return old.bundle
        stored, was_there = packs.put_file(self.store, f"files/{self.number:06}-", bundle())
        self.added_bytes += stored.size_bytes
        self.uploaded_bytes += 0 if was_there else stored.size_bytes
        return stored


def save(request: SaveRequest) -> Saved:
    """Saves the disk of a halted machine. Only its record is changed: it has the last save.

    Raises StateError if the machine is sealed or not halted, or its image is not in the store; ImageError if its disk
    is damaged; KimboxError of the store: `save-conflict` if another saver was faster, `store-failed`, `no-space`.
    """
    machine = request.machine
    store = open_store(request.url)
    with contextlib.closing(store), machine.locked():
        rebuilt.finish(machine)
        record = machine.record()
        candidates.check(machine, record)
        sign = None
        if request.key is not None:
            sign = functools.partial(sums.sign, key=request.key)
            sign(b"")
        work = machine.folder / WORK
        remove_tree(work)
        work.mkdir(mode=0o700)
        try:
            with lease.shared(record.image), log.step(f"saving {machine.name} to {store.url}"):
                done = _save(request, store, record, work, sign)
            machine.write_record(attrs.evolve(record, saved=last_save(done.url, done.manifest)))
            text = f"{machine.name} is saved as number {done.manifest.number} in {done.url}"
            notify(machine, Occasion.SAVED, text, url=done.url, number=done.manifest.number)
            return done
        except (KimboxError, OSError) as error:
            failure: Exception = error
            if isinstance(error, OSError) and is_full(error):
                failure = space_error(machine.folder, "a pack of the save")
            text = f"{machine.name} could not be saved in {store.url}; its disk is as it was"
            notify(machine, Occasion.SAVE_FAILED, text, url=store.url, failure=str(failure))
            raise failure from None
        finally:
            remove_tree(work)


def last_save(url: str, manifest: Manifest) -> LastSave:
    """Returns what the record of a machine has of a save."""
    return LastSave(url, manifest.number, manifest.saved_at)


def _save(
    request: SaveRequest, store: Store, record: Record, work: Path, sign: Callable[[bytes], bytes] | None
) -> Saved:
    machine = request.machine
    image = images.find(record.image)
    if image is None:
        raise StateError(
            f"cannot save {machine.name}: the image that it was made from is not in the store ({record.image[:12]})",
            code="image-not-found",
            fields={"name": machine.name, "image": record.image},
        )
    parent_number, parent = _newest(store)
    packer = Packer(store, work, parent_number + 1, _known(store, parent))
    writing = _Writing(request, store, work, parent, parent_number, packer)
    overlays = candidates.overlays(machine, image)
    with log.step("writing the chunks that changed"):
        # The image first, in packs of its own: they are the same if the disk changes after an interruption.
        base_chunks = _base_chunks(writing, image) if request.fat else None
        disk_chunks, disk_bytes, cleaned = _disk_chunks(writing, image, overlays)
        stored_packs = packer.finish()
        writing.added_bytes += packer.added_bytes
        writing.uploaded_bytes += packer.added_bytes - packer.found_bytes
    manifest = _manifest(writing, record, image, stored_packs)(
        _contents(writing, disk_bytes, disk_chunks, parent.disk if parent else None),
        _contents(writing, image.disk.stat().st_size, base_chunks) if base_chunks is not None else None,
    )
    _publish(writing, manifest, sign)
    removed = prune.prune(store, manifest)
    return Saved(store.url, manifest, removed, cleaned, writing.uploaded_bytes, writing.secrets)


def _newest(store: Store) -> tuple[int, Manifest | None]:
    """Returns number and manifest of the newest save; 0 and None without one. A damaged manifest is a warning."""
    number = found.newest(store)
    if number is None:
        return 0, None
    if number >= found.MAX_NUMBER:
        raise KimboxError(
            f"{store.url} has {number} saves, the maximum",
            code="store-failed",
            hint="save to another URL",
            fields={"url": store.url},
        )
    try:
        return number, found.read(store, number)[0]
    except KimboxError as error:
        if error.code not in ("save-damaged", "unsupported-format"):
            raise
        log.warn(f"{error.message}; everything is uploaded again")
        return number, None


def _known(store: Store, parent: Manifest | None) -> dict[bytes, Known]:
    """Returns the places of the chunks of the former save, by digest. A damaged index is a warning: it has none."""
    known: dict[bytes, Known] = {}
    sizes = [pack.size_bytes for pack in parent.packs] if parent else []
    for contents in (parent.disk, parent.base.contents) if parent else ():
        if contents is None or parent is None:
            continue
        try:
            data = packs.whole(store, contents.index)
            for chunk in index.parse_index(data, contents.size_bytes, sizes):
                if not chunk.is_zeros:
                    known[chunk.digest] = Known(parent.packs[chunk.pack], chunk.offset, chunk.stored_bytes)
        except (KimboxError, ValueError) as error:
            log.warn(f"the index of the former save cannot be used, and everything is uploaded again: {error}")
            return {}
    return known


def reporter(what: str) -> Callable[[int], None]:
    """Returns a function that gets the number of bytes done, and reports it at most every REPORT_S seconds."""
    reported_at_s = time.monotonic()

    def report(done_bytes: int) -> None:
        nonlocal reported_at_s
        if time.monotonic() - reported_at_s >= REPORT_S:
            reported_at_s = time.monotonic()
            log.now(f"{size_words(done_bytes)} of {what}")

    return report


def _disk_chunks(writing: _Writing, image: Image, overlays: list[Path]) -> tuple[list[Chunk], int, tuple[str, ...]]:
    """Writes the chunks of the disk. Returns them, the size of the disk in bytes, and what is not in the save."""
    with (
        nbd.opened(overlays[0], "qcow2") as source,
        nbd.opened(image.disk, image.format) as backing,
    ):
        disk = private.cleaned(source.read, source.size_bytes, writing.work)
        writing.secrets = _secrets(writing.request, disk)
        own = chunks.own_ranges(overlays)
        changed = chunks.changed(disk, own, backing.read, backing.size_bytes, reporter("the disk"))
        written = [writing.packer.add(number, data) for number, data in _bounded(changed)]
        return written, source.size_bytes, disk.removed


def _secrets(request: SaveRequest, disk: private.Cleaned) -> tuple[Finding, ...]:
    """Returns the files that look like secrets, and reports them. Raises StateError (`secret-found`) for others."""
    name = request.machine.name
    found = secrets.find(disk, request.shared_secrets)
    if request.share:
        secrets.check_shared(found, request.shared_secrets, name)
    elif found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        log.warn(
            f"the save of {name} has what looks like a secret: {found[0].path}{more}. Who reads the store gets it: "
            "`kimbox save --share` refuses such files"
        )
    return found


def _base_chunks(writing: _Writing, image: Image) -> list[Chunk]:
    """Writes the chunks of the file of the image."""
    images.check(image)
    content = chunks.of_file(image.disk, reporter("the image"))
    written = [writing.packer.add(number, data) for number, data in _bounded(content)]
    writing.packer.close_pack()
    return written


def _bounded(numbered: Iterator[chunks.Numbered]) -> Iterator[chunks.Numbered]:
    """Yields chunks. Raises ImageError (`too-complex`) if there are more than a save can have."""
    for count, one in enumerate(numbered):
        if count >= MAX_CHUNKS:
            raise ImageError(
                f"the disk has more than {MAX_CHUNKS} MiB of changes, the maximum of a save", code="too-complex"
            )
        yield one


def _contents(writing: _Writing, size_bytes: int, written: list[Chunk], old: Contents | None = None) -> Contents:
    data = index.pack_index(written)
    return Contents(size_bytes, writing.put("indexes", data, old.index if old else None), len(written))


def _manifest(
    writing: _Writing, record: Record, image: Image, stored_packs: tuple[Stored, ...]
) -> Callable[[Contents, Contents | None], Manifest]:
    """Stores spec, lock and facts. Returns the function that makes the manifest with the indexes."""
    machine, parent = writing.request.machine, writing.parent
    former_folders = parent.folders if parent else {}
    delivered, packed = folders.packed(
        delivered_locks.current(machine),
        Path(record.source),
        functools.partial(writing.put_bundle, former_folders),
        writing.work,
    )
    data = {
        "kimbox.yaml": delivered.spec,
        "kimbox.lock": delivered.lock,
        "box.json": delivered.described,
        "image.json": json_bytes(image.facts),
    }
    for name in (images.PACKAGES, images.CHANGES):
        if (image.disk.parent / name).exists():
            data[name] = read_bounded(image.disk.parent / name, limit_bytes=MAX_FILE_BYTES)
    old = parent.files if parent else {}
    files = {name: writing.put("files", content, old.get(name)) for name, content in data.items() if content}
    keep = writing.request.keep
    former = [*parent.kept, parent.number] if parent else _others(writing.store)
    kept = former if keep is None else former[len(former) - min(len(former), keep - 1) :]
    file_digest = image.facts.get(images.DIGEST) or digest.disk_digest(image.disk)

    def make(disk: Contents, fat: Contents | None) -> Manifest:
        return Manifest(
            number=writing.number,
            machine=machine.name,
            box=record.box,
            saved_at=utctime.text(),
            kimbox=__version__,
            spec_digest=record.spec_digest,
            lock_digest=record.plan.lock if record.plan else "0" * 64,
            manifest_digest=delivered.digest,
            cpus=record.cpus,
            memory_bytes=record.memory_bytes,
            disk=disk,
            base=Base(image.key, image.format, file_digest, fat),
            packs=stored_packs,
            files=files,
            folders=packed,
            kept=tuple(kept[-MAX_KEPT:]),
            added_bytes=writing.added_bytes,
        )

    return make


def _others(store: Store) -> list[int]:
    """The numbers of the saves that can be read, ascending, if the newest one cannot."""
    return [one.number for one in reversed(found.listed(store)) if one.manifest]


def _publish(writing: _Writing, manifest: Manifest, sign: Callable[[bytes], bytes] | None) -> None:
    """Writes signature and manifest. Raises KimboxError (`save-conflict`) if another saver was faster."""
    store = writing.store
    data = pack_manifest(manifest)
    uses = [stored.name for stored in manifest.objects]
    if sign is not None:
        name = found.signature_name(manifest.number, data)
        source = writing.work / "object"
        source.write_bytes(sign(data))
        store.write(name, source)
        uses.append(name)
    if not store.create(name_of(manifest.number), data, uses):
        raise KimboxError(
            f"another save was written to {store.url} meanwhile: number {manifest.number} is taken",
            code="save-conflict",
            hint="nothing was lost: `kimbox save --list` shows the other one; run the same command again to save this "
            "box after it",
            fields={"url": store.url, "number": str(manifest.number)},
        )
