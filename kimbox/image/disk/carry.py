"""Makes a disk on an image that has the volume `persistent` of another disk, which may be on another image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kimbox import run
from kimbox.files import size_words
from kimbox.image.disk import faults, nbd, pristine, slim
from kimbox.image.disk.view import PERSISTENT, DiskView, Volume


def persistent(disk: Path, base: Path, base_format: str, target: Path, size_bytes: int) -> None:
    """Creates `target`, an overlay of `size_bytes` on the image `base`, with the volume `persistent` of `disk` (qcow2).

    The volume may be larger than it was: its file system keeps its size. Raises ImageError, and leaves no `target`, if
    it would be smaller (`disk-layout`), if one of the disks has no such volume or cannot be read.
    """
    with nbd.opened(disk, "qcow2") as source, nbd.opened(base, base_format) as backing:
        old = pristine.persistent(DiskView.of(source.read, source.size_bytes))
        new = pristine.persistent(DiskView.of(backing.read, backing.size_bytes))
        _check_size(old, new)
        try:
            size = str(max(size_bytes, backing.size_bytes))
            run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", base_format, target, size])
            with nbd.opened(target, "qcow2", writable=True) as written:
                for at, place, length in _pieces(new, old.size_bytes):
                    data = old.read(at, length)
                    for start, end in slim.differing(data, backing.read(place, length)):
                        written.write(place + start, data[start:end])
                written.flush()
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _check_size(old: Volume, new: Volume) -> None:
    if new.size_bytes < old.size_bytes:
        raise faults.other_layout(
            "persistent-smaller",
            f"the volume for {PERSISTENT} has {size_words(old.size_bytes)}, and only {size_words(new.size_bytes)} on "
            "the new image",
        )


def _pieces(volume: Volume, size_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yields pieces of the first `size_bytes` of a volume: offset in it, offset on the disk, and length, in bytes."""
    at = 0
    for start, size in volume.pieces:
        for inside in range(0, min(size, size_bytes - at), slim.PIECE_BYTES):
            yield at + inside, start + inside, min(slim.PIECE_BYTES, size - inside, size_bytes - at - inside)
        at += size
