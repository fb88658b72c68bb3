"""Makes a machine of a save: its disk, with an identity of its own, on the image that the save names.

Every chunk is verified before it is written. A run that is interrupted leaves the folder of the unfinished machine: the
next run reads back what is there, and fetches the rest. The record is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import attrs

from kimbox import paths
from kimbox.actions import lifetime
from kimbox.actions.lifecycle.create import MAC_PREFIX, refuse_existing
from kimbox.actions.saves import folders, found, specs
from kimbox.actions.saves.save import last_save, reporter
from kimbox.drivers import registry
from kimbox.drivers.base import Driver, host_ports
from kimbox.errors import ImageError, StateError
from kimbox.files import parse_json, private_dir, remove_tree, sync_file, sync_folder, write_atomic, write_json
from kimbox.image import obtain
from kimbox.image.disk import nbd, slim
from kimbox.image.saves import index, packs, private
from kimbox.image.saves import manifest as manifests
from kimbox.image.saves.index import CHUNK_BYTES, Chunk
from kimbox.image.saves.manifest import Contents, Manifest
from kimbox.image.store import digest, images, lease
from kimbox.image.store.images import Image
from kimbox.lock.lockfile import read_lock
from kimbox.log import log
from kimbox.machine import foreign, keys, ports
from kimbox.machine.delivered_locks import Kept
from kimbox.machine.folder import Machine
from kimbox.machine.record import PlanDigests, Purpose, Record
from kimbox.spec.model import Box
from kimbox.transfer.stores.base import Store
from kimbox.transfer.stores.opening import open_store

#: Subfolder of a machine with the spec and the lock of its save.
SPEC_FOLDER = "saved"

#: File of an unfinished machine with the digest of the manifest of the save that it is made of.
MARK = "save.digest"


#: Bytes of chunks after which the new disk is flushed. A run that is killed has to fetch at most these again.
FLUSH_BYTES = 64 << 20


@attrs.frozen
class RestoreRequest:
    """The arguments of `restore`."""

    url: str
    #: Name of the machine; None: that of the saved one.
    name: str | None = None
    #: Number of the save; None: the newest.
    number: int | None = None
    #: Public ssh keys, of which one must have signed the save.
    keys: tuple[str, ...] = ()
    #: Contact no server for the image.
    offline: bool = False
    #: Spec of the box; None: that of the save.
    spec: Path | None = None
    #: Values of the spec that differ for this machine, as KEY=VALUE.
    settings: tuple[str, ...] = ()


@attrs.frozen
class Restored:
    """The result of `restore`: the machine, which does not run, and the bytes that were read from the store."""

    machine: Machine
    #: The store.
    url: str
    manifest: Manifest
    fetched_bytes: int


def restore(request: RestoreRequest) -> Restored:
    """Makes a machine of a save. It does not run yet.

    Raises StateError: `name-taken`, `image-not-found` if the image of the save is not here and cannot be made;
    ImageError: `signature-missing`, `signature-wrong`, and those of `obtain.leased`; KimboxError: `save-not-found`,
    `save-damaged`, `store-failed`.
    """
    store = open_store(request.url)
    with contextlib.closing(store):
        manifest, data = found.require(store, request.number)
        if request.keys:
            found.check_signature(store, manifest.number, data, request.keys)
        machine = Machine(request.name or manifest.machine)
        private_dir(paths.machines_dir())
        with machine.locked(), log.step(f"creating {machine.name} from save {manifest.number} in {store.url}"):
            refuse_existing(machine)
            making = Making(request, store, manifest, manifests.digest_of(data), machine)
            return making.run()


@attrs.define
class Making:
    """A machine that is being made of a save."""

    request: RestoreRequest
    store: Store
    manifest: Manifest
    mark: str
    machine: Machine
    fetched_bytes: int = 0

    @property
    def folder(self) -> Path:
        return self.machine.unfinished

    def run(self) -> Restored:
        identity = uuid.uuid4()
        with self.filled(identity.hex) as (box, image):
            self._finish(box, image, registry.named(registry.DEFAULT, self.machine), identity)
        return Restored(self.machine, self.store.url, self.manifest, self.fetched_bytes)

    @contextlib.contextmanager
    def filled(self, machine_id: str | None) -> Iterator[tuple[Box, Image]]:
        """Fills the disk in the folder. Yields the box of the save and the image below the disk.

        `machine_id`: the id that the disk gets, with seeds of its own; None: it has none, and its seeds are empty.
        """
        mark = self.folder / MARK
        if not mark.exists() or mark.read_text() != self.mark:
            remove_tree(self.folder)
            self.folder.mkdir(mode=0o700)
        box = self._box()
        with self._leased_image(box) as image:
            if not mark.exists():
                layout = attrs.evolve(box.disk, size_bytes=self.manifest.disk.size_bytes)
                driver = registry.named(registry.DEFAULT, self.machine)
                driver.create(self.folder, attrs.evolve(box, disk=layout), image)
                write_atomic(mark, self.mark)
            with log.step("fetching the chunks that are not here"):
                self._fill_disk(self.folder / self.machine.disk.name, machine_id)
            yield box, image

    def _file(self, name: str) -> bytes:
        """Returns a file of the save; nothing if it has no such file."""
        stored = self.manifest.files.get(name)
        return packs.whole(self.store, stored) if stored else b""

    def _box(self) -> Box:
        """Writes spec and lock of the save to the folder, and returns the box.

        Raises SpecError if the spec needs files that are beside it where it was written.
        """
        place = self.folder / SPEC_FOLDER
        place.mkdir(exist_ok=True)
        write_atomic(place / paths.SPEC_NAME, folders.without_mounts(self._file("kimbox.yaml")))
        write_atomic(place / paths.LOCK_NAME, self._file("kimbox.lock"))
        if self.request.spec is None:
            folders.unpack(self.store, self.manifest.folders, place)
        request = self.request
        if request.spec:
            return specs.load(request.spec, request.settings, self.manifest, self.store.url, is_own=False)
        spec = place / paths.SPEC_NAME
        box = specs.load(spec, request.settings, self.manifest, self.store.url, is_own=True)
        if not request.keys:
            folders.refuse_repositories_of_host(box, self.store.url)
        return box

    @property
    def _name(self) -> str:
        """Name of the object with the manifest."""
        return manifests.name_of(self.manifest.number)

    @contextlib.contextmanager
    def _leased_image(self, box: Box) -> Iterator[Image]:
        """The image below the disk: from the store of images, from the save, or made from spec and lock."""
        base = self.manifest.base
        with lease.shared(base.image):
            image = images.find(base.image)
            if image is not None and (base.contents is None or _digest(image) == base.digest):
                self._check_image(image)
                yield image
                return
            if base.contents is None:
                image = self._obtained(box)
                self._check_image(image)
                yield image
                return
        contents = base.contents
        key = base.image if self.request.keys and image is None else _own_key(base.digest)
        with lease.shared(key):
            yield images.find(key) or images.publish(key, lambda work: self._fetch_image(contents, work))

    def _obtained(self, box: Box) -> Image:
        """The image of spec and lock. It is built, or taken from elsewhere."""
        lock = read_lock(self.folder / SPEC_FOLDER / paths.LOCK_NAME)
        if obtain.key_of(box, lock.packages) != self.manifest.base.image:
            raise self._no_image()
        return obtain.ensure(box, lock.packages, offline=self.request.offline)

    def _no_image(self) -> StateError:
        return StateError(
            f"the image below save {self.manifest.number} is not here ({self.manifest.base.image[:12]}), and its spec "
            "and lock describe another one",
            code="image-not-found",
            hint="add the image as it was added where the box was saved (`kimbox box add`), or save the box with --fat",
            fields={"image": self.manifest.base.image, "url": self.store.url},
        )

    def _check_image(self, image: Image) -> None:
        """Raises ImageError (`checksum-mismatch`) if the image here has other bytes than the one below the save."""
        here = _digest(image)
        if here != self.manifest.base.digest:
            raise ImageError(
                f"the image {image.key[:12]} has other bytes here than where the box was saved, so the save cannot be "
                "used with it",
                code="checksum-mismatch",
                hint="save the box with --fat: such a save has its image with it",
                fields={"image": image.key, "expected": self.manifest.base.digest, "actual": here},
            )

    def _chunks(self, contents: Contents) -> list[Chunk]:
        """Returns the chunks of an index. Raises KimboxError (`save-damaged`)."""
        data = packs.whole(self.store, contents.index)
        try:
            chunks = index.parse_index(data, contents.size_bytes, [pack.size_bytes for pack in self.manifest.packs])
            if len(chunks) != contents.chunks:
                raise ValueError("it has another number of chunks than the manifest says")
        except ValueError as error:
            raise manifests.damaged(self.store.url, contents.index.name, str(error)) from None
        return chunks

    def _fetch(self, contents: Contents, chunks: list[Chunk]) -> Iterator[tuple[int, bytes]]:
        before = self.fetched_bytes
        report = reporter("the save")

        def count(done_bytes: int) -> None:
            self.fetched_bytes = before + done_bytes
            report(done_bytes)

        yield from packs.fetch(self.store, self.manifest.packs, chunks, contents.size_bytes, count)

    def _fill_disk(self, disk: Path, machine_id: str | None) -> None:
        """Writes the chunks to the new overlay. A chunk that an interrupted run wrote is read back, and not fetched."""
        contents = self.manifest.disk
        chunks = self._chunks(contents)
        with nbd.opened(disk, "qcow2", writable=True) as target:
            if target.size_bytes != contents.size_bytes:
                raise manifests.damaged(self.store.url, self._name, "its disk is smaller than its image")
            wanted = []
            for chunk in chunks:
                length = index.length_of(chunk.number, contents.size_bytes)
                old = target.read(chunk.number * CHUNK_BYTES, length)
                if index.digest_of(old) == chunk.digest:
                    continue
                if chunk.is_zeros:
                    target.write(chunk.number * CHUNK_BYTES, bytes(length))
                else:
                    wanted.append(chunk)
            try:
                self._write(target, self._fetch(contents, wanted))
            finally:  # qemu-nbd may keep in memory where it has put them, and the next run uses what is there
                target.flush()
            if machine_id is not None:
                private.renew(target.read, target.write, target.size_bytes, machine_id)
            target.flush()
        sync_file(disk)

    @staticmethod
    def _write(target: nbd.Disk, numbered: Iterator[tuple[int, bytes]]) -> None:
        """Writes the clusters of chunks that differ from the image, and flushes every FLUSH_BYTES."""
        unflushed = 0
        for number, data in numbered:
            start = number * CHUNK_BYTES
            for at, stop in slim.differing(data, target.read(start, len(data))):
                target.write(start + at, data[at:stop])
            unflushed += len(data)
            if unflushed >= FLUSH_BYTES:
                target.flush()
                unflushed = 0

    def _fetch_image(self, contents: Contents, work: Path) -> dict[str, object]:
        """Writes the file of the image of a fat save to a workspace. Returns the facts of the image."""
        base = self.manifest.base
        disk = work / images.DONE / images.DISKS[base.format]
        with log.step("fetching the image"), disk.open("xb") as file:
            file.truncate(contents.size_bytes)
            for number, data in self._fetch(contents, self._chunks(contents)):
                os.pwrite(file.fileno(), data, number * CHUNK_BYTES)
            os.fsync(file.fileno())
        if digest.disk_digest(disk) != base.digest:
            raise manifests.damaged(self.store.url, contents.index.name, "the image does not have its digest")
        facts = self._facts(base.format)
        if not self.request.keys:  # nothing else shows what the image was made of
            return {name: facts[name] for name in ("format", "virtual_bytes")}
        for name in (images.PACKAGES, images.CHANGES):
            if data := self._file(name):
                write_atomic(disk.parent / name, data)
        return facts

    def _facts(self, image_format: str) -> dict[str, object]:
        """Returns the facts of the image of a fat save. Raises KimboxError (`save-damaged`)."""
        name = self.manifest.files["image.json"].name
        try:
            facts = parse_json(self._file("image.json"))
            if not isinstance(facts, dict) or type(facts.get("virtual_bytes")) is not int:
                raise ValueError("it is not about an image")
            if not 0 < facts["virtual_bytes"] <= self.manifest.disk.size_bytes:
                raise ValueError("its image has another size than its disk")
        except ValueError as error:
            raise manifests.damaged(self.store.url, name, str(error)) from None
        return {**facts, "format": image_format}

    def _finish(self, box: Box, image: Image, driver: Driver, identity: uuid.UUID) -> None:
        """Writes keys, locks and, last, the record, and gives the folder its name."""
        manifest, machine = self.manifest, self.machine
        (self.folder / machine.key.name).unlink(missing_ok=True)
        keys.make_pair(self.folder / machine.key.name, machine.name)
        kept = Kept(
            manifest.manifest_digest, self._file("kimbox.yaml"), self._file("kimbox.lock"), self._file("box.json")
        )
        kept.write(self.folder / machine.locks.name)
        if machine.folder.exists():  # left by an interrupted destroy, without a record
            remove_tree(machine.folder)
        is_same = machine.name == box.name
        forwards = box.forwards if is_same else tuple(attrs.evolve(one, host=None) for one in box.forwards)
        with ports.allotting():
            allotted = ports.choose(machine, host_ports(attrs.evolve(box, forwards=forwards)), {})
            record = Record(
                name=machine.name,
                source=str((self.request.spec and box.source) or machine.folder / SPEC_FOLDER / paths.SPEC_NAME),
                shipped=None,
                spec_digest=box.digest,
                image=image.key,
                uuid=str(identity),
                mac=":".join([MAC_PREFIX, *(f"{byte:02x}" for byte in identity.bytes[:3])]),
                ssh_port=allotted.pop(22),
                forwards=allotted,
                cpus=manifest.cpus,
                memory_bytes=manifest.memory_bytes,
                box=box.name,
                purpose=Purpose.BOX if is_same else Purpose.CLONE,
                driver=driver.name,
                saved=last_save(self.store.url, manifest),
                settings=specs.settings_of(box, manifest),
                disk_bytes=manifest.disk.size_bytes if manifest.disk.size_bytes > box.disk.size_bytes else None,
                plan=PlanDigests(manifest.spec_digest, manifest.lock_digest, manifest.manifest_digest),
                seed=foreign.instance(box, self.folder / machine.disk.name),
            )
            lifetime.created(box, machine.name).write(self.folder)
            write_json(self.folder / machine.record_file.name, record.as_json())
            self.folder.rename(machine.folder)
        (machine.folder / MARK).unlink()  # until here, a run that failed continues with what was fetched
        sync_folder(machine.place)


def _digest(image: Image) -> str:
    """Returns the digest of the file of an image."""
    return str(image.facts.get(images.DIGEST) or digest.disk_digest(image.disk))


def _own_key(image_digest: str) -> str:
    """Returns the key of an image of an unsigned fat save.

    The key that the save names is that of a recipe: nothing shows that these bytes are what the recipe makes, and
    other boxes of this host would start from them.
    """
    return hashlib.sha256(f"save {image_digest}".encode()).hexdigest()
