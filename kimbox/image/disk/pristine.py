"""Puts the disk of a machine back to the bytes of its image, except the volume `persistent`, and finds what differs.

The disk is a qcow2 overlay on the image. The partition table and the LVM metadata that say where the volumes are come
from the image alone: root in the guest can write others to the overlay.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs

from kimbox import run
from kimbox.errors import ImageError
from kimbox.files import sync_file
from kimbox.image.disk import faults, grubenv, nbd, ranges, slim, trees
from kimbox.image.disk.ext4 import inodes
from kimbox.image.disk.ext4.directories import shown
from kimbox.image.disk.ext4.inodes import FileSystem
from kimbox.image.disk.grubenv import BLOCK_BYTES, NEXT, SAVED
from kimbox.image.disk.ranges import Ranges
from kimbox.image.disk.trees import Aspect
from kimbox.image.disk.view import BOOT, PERSISTENT, DiskView, Volume
from kimbox.render.guestfiles import KEEP_KERNEL
from kimbox.spec.layout import kept_name
from kimbox.spec.model import BootMode

#: Names of the parts of a disk that are neither a file system nor an LV, as `kimbox verify` prints them.
BOOT_LOADER, LVM, REST = "partition table and boot loader", "LVM label and metadata", "the rest of the disk"

#: Maximum number of files of /boot that are named, and maximum length of such a path, in characters.
MAX_FILES, MAX_PATH = 10, 200

#: Aspects in which a file of /boot may differ from that of the image: a sealed box makes grub.cfg private.
HARMLESS = frozenset({Aspect.MODE, Aspect.TIME, Aspect.ATTRIBUTES})

#: Path of the link to the kernel of the snapshot, which a boot may write. What it points to is compared, too.
KERNEL_OF_SNAPSHOT = f"{BOOT}{KEEP_KERNEL}".encode()

#: Path of the file of /boot with the boot mode, which the host writes.
GRUB_ENVIRONMENT = f"{BOOT}{grubenv.PATH}".encode()


@attrs.frozen
class Part:
    """A named part of a disk, as byte ranges."""

    name: str
    place: Ranges


def persistent(image: DiskView) -> Volume:
    """Returns the volume `persistent` of an image. Raises ImageError (`disk-layout`) if it has none."""
    volume = image.contents.mounted.get(PERSISTENT)
    if volume is None:
        raise faults.other_layout("no-persistent", f"the image has no volume for {PERSISTENT}")
    return volume


def check(base: Path, base_format: str) -> None:
    """Raises ImageError if a disk on this image cannot be put back, because the image has another layout."""
    with nbd.opened(base, base_format) as backing:
        persistent(DiskView.of(backing.read, backing.size_bytes))


def restore(disk: Path, base: Path, base_format: str, target: Path) -> None:
    """Creates `target`, an overlay on the image `base` that has only the volume `persistent` of the overlay `disk`.

    Everything else has the bytes of the image. `target` is on the host's disk when this returns. Raises ImageError, and
    leaves no `target`, if the image has no such volume or a disk cannot be read.
    """
    own = nbd.content(disk, "qcow2").own
    with nbd.opened(disk, "qcow2") as source, nbd.opened(base, base_format) as backing:
        kept = ranges.common(own, _place(persistent(DiskView.of(backing.read, backing.size_bytes))))
        try:
            size = str(max(source.size_bytes, backing.size_bytes))
            run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", base_format, target, size])
            with nbd.opened(target, "qcow2", writable=True) as new:
                for start, end in slim.pieces(kept, backing.size_bytes):
                    data, old = source.read(start, end - start), backing.read(start, end - start)
                    for at, stop in slim.differing(data, old):
                        new.write(start + at, data[at:stop])
                new.flush()
            sync_file(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def differences(disk: Path, base: Path, base_format: str) -> tuple[str, ...]:
    """Returns the parts of the overlay `disk` that differ from its image `base`: names of parts, and paths of /boot.

    Not compared: `persistent`, the store of the snapshot of root, which each boot empties, and the volume for a kept
    root, which a sealed box does not use. Of /boot, names, types and contents of files are compared, because each boot
    writes to the file system itself. GRUB's environment may have any boot mode that a sealed box may have. Raises
    ImageError if the image has another layout.
    """
    own = nbd.content(disk, "qcow2").own
    with nbd.opened(disk, "qcow2") as source, nbd.opened(base, base_format) as backing:
        image = DiskView.of(backing.read, backing.size_bytes)
        found = []
        for part in _parts(image, source.size_bytes):
            if not _differs(source, backing, ranges.common(own, part.place)):
                continue
            if part.name == BOOT:
                found += _boot_differences(image, source)
            else:
                found.append(part.name)
    return tuple(found)


def _parts(image: DiskView, size_bytes: int) -> Iterator[Part]:
    """Yields the parts of a disk that are compared, from its start to its end."""
    contents, pv = image.contents, image.partitions[1]
    boot, of_pv = _place(image.boot), _place(pv.volume)
    yield Part(BOOT_LOADER, [(0, boot[0][0])])
    yield Part(BOOT, boot)
    volumes = {name: _place(volume) for name, volume in pv.lvm.volumes.items()}
    in_volumes = ranges.merged(piece for place in volumes.values() for piece in place)
    yield Part(LVM, ranges.without(of_pv, in_volumes))
    skipped = {contents.store.name, kept_name(contents.store.name), persistent(image).name}
    yield from (Part(f"LV {name}", place) for name, place in volumes.items() if name not in skipped)
    yield Part(REST, ranges.without([(boot[0][0], size_bytes)], ranges.merged([*boot, *of_pv])))


def _place(volume: Volume) -> Ranges:
    """Returns the bytes of the disk that a volume occupies."""
    return volume.on_disk([(0, volume.size_bytes)])


def _differs(source: nbd.Disk, backing: nbd.Disk, place: Ranges) -> bool:
    """Whether two disks differ in byte ranges. Beyond the end of the image there are zeros."""
    for start, end in slim.pieces(place, source.size_bytes):
        backing_end = max(start, min(end, backing.size_bytes))
        old = backing.read(start, backing_end - start).ljust(end - start, b"\0")
        if source.read(start, end - start) != old:
            return True
    return False


def _boot_differences(image: DiskView, source: nbd.Disk) -> list[str]:
    """Returns the files of /boot that differ; `/boot` alone if the guest has damaged its file system."""
    boot = DiskView.of(source.read, source.size_bytes).volume_at(BOOT, image.boot.start_bytes, image.boot.size_bytes)
    try:
        different = trees.compare(image.boot.file_system, boot.file_system, BOOT.encode())
        paths = [path for path, aspects in different.items() if not HARMLESS.issuperset(aspects)]
        if KERNEL_OF_SNAPSHOT in paths and _is_link(boot.file_system, KERNEL_OF_SNAPSHOT.removeprefix(BOOT.encode())):
            paths.remove(KERNEL_OF_SNAPSHOT)
        if GRUB_ENVIRONMENT in paths and _is_same_environment(image, source, boot):
            paths.remove(GRUB_ENVIRONMENT)
    except ImageError:
        return [BOOT]
    more = [f"{BOOT}: {len(paths) - MAX_FILES} more files"] if len(paths) > MAX_FILES else []
    return [shown(path)[:MAX_PATH] for path in paths[:MAX_FILES]] + more


def _is_link(system: FileSystem, path: bytes) -> bool:
    """Whether a file system has a symbolic link at a path."""
    number = trees.numbers(system).get(path)
    return number is not None and inodes.inode_of(system, number).is_link


def _is_same_environment(image: DiskView, source: nbd.Disk, boot: Volume) -> bool:
    """Whether GRUB's environments of an image and of a /boot differ at most in the boot mode, as a sealed box may.

    An entry for the next boot alone counts as a difference: GRUB removes it, and the guest may have written it.
    """
    old = grubenv.values(image.read(grubenv.place(image.boot), BLOCK_BYTES))
    new = grubenv.values(source.read(grubenv.place(boot), BLOCK_BYTES))
    if old is None or new is None or new.get(NEXT):
        return False
    allowed = {BootMode.RESNAP.encode(), BootMode.KEEP.encode()}
    others = [{name: value for name, value in v.items() if name not in (SAVED, NEXT)} for v in (old, new)]
    return others[0] == others[1] and new.get(SAVED) in {old.get(SAVED), *allowed}
