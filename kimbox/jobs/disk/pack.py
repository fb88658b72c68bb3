"""Packs the folder of a job into a disk: an ext2 file system without a partition table, as HTCondor's VM jobs have it.

No program, mount or privilege is needed. Equal folders, sizes and room give equal bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from kimbox.errors import KimboxError, StateError, UsageError
from kimbox.files import need_space, size_words
from kimbox.image.disk.ext2 import geometry, writer
from kimbox.image.disk.ext2.geometry import Geometry
from kimbox.image.disk.ext2.tree import Run, Tree, tree
from kimbox.jobs.disk.source import UNIT_BYTES, Source, read_folder
from kimbox.newfiles import making

#: Label of the file system of a job.
LABEL = "kimbox-job"

#: Name of the file on the disk with the arguments of the program, one in each line.
ARGUMENTS = b"run-job.args"

#: Units of `--size`, as in virt-make-fs(1). All of them are binary.
UNITS = {unit: 1 << 10 * power for power, unit in enumerate("bKMGTPE")}

#: Room for results if none is given, in percent of what the folder needs; and its minimum, in bytes, for the log.
DEFAULT_ROOM_PERCENT, MIN_ROOM_BYTES = 10, 1 << 20

#: From this size of all files on, a disk has blocks of 4096 bytes, and therefore at least 512 MiB.
LARGE_SOURCE_BYTES = 480 << 20

#: Longest target of a symbolic link that fits into a small block, in bytes.
MAX_SMALL_TARGET = 1000

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([bKMGTPE])")
_PERCENT = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)%")


@dataclass(frozen=True, slots=True)
class Packed:
    """A disk that was written. `used_bytes`: what the folder takes of it; `files`: the number of files and links."""

    path: Path
    size_bytes: int
    used_bytes: int
    free_bytes: int
    files: int
    #: The folder, as it was packed.
    source: Source

    @property
    def digest(self) -> str:
        """Hex digest of names, modes, times and contents of the folder, with the files that were added."""
        return self.source.digest

    @property
    def folder_digest(self) -> str:
        """The same without the files that were added."""
        return self.source.folder_digest


def arguments_file(arguments: Sequence[str]) -> dict[bytes, bytes]:
    """Returns name and content of the file with arguments; nothing if there are none.

    Raises UsageError if one has a line break.
    """
    if any("\n" in argument for argument in arguments):
        raise UsageError("an argument of the program has a line break", code="usage")
    data = "".join(f"{argument}\n" for argument in arguments).encode(errors="surrogateescape")
    return {ARGUMENTS: data} if arguments else {}


def parse_size(text: str, option: str) -> int:
    """Returns the bytes of a size such as 1.5G. Raises UsageError (`bad-size`) that names the option."""
    if match := _SIZE.fullmatch(text):
        return int(Fraction(match[1]) * UNITS[match[2]])
    raise UsageError(
        f"{option}: {text[:40]!r} is not a size",
        code="bad-size",
        hint=f"write a number and one of b, K, M, G, T, P and E: {option} 1.5G",
        fields={"option": option},
    )


@dataclass(frozen=True, slots=True)
class Room:
    """Space for results: a part of what the folder needs, or a size in bytes."""

    percent: Fraction = Fraction(DEFAULT_ROOM_PERCENT)
    size_bytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> Room:
        """Returns the room of an option, `20%` or `500M`. Raises UsageError (`bad-size`)."""
        if match := _PERCENT.fullmatch(text):
            return cls(Fraction(match[1]))
        return cls(size_bytes=parse_size(text, "--room"))

    def blocks(self, need_blocks: int, block_bytes: int) -> int:
        """The number of blocks beyond those that the folder needs."""
        if self.size_bytes is not None:
            return -(-self.size_bytes // block_bytes)
        return max(-(-int(need_blocks * self.percent) // 100), MIN_ROOM_BYTES // block_bytes)


def pack(
    folder: Path,
    image: Path,
    *,
    size_bytes: int | None = None,
    room: Room | None = None,
    added: Mapping[bytes, bytes] | None = None,
    is_job: bool = True,
) -> Packed:
    """Writes the new file `image` with the content of a folder, and with the files `added` (name -> content).

    With `is_job` False, the folder need not have a program. Without `size_bytes`, the size is what the folder needs,
    with `room` (default: DEFAULT_ROOM_PERCENT). Raises StateError if `image` exists (`file-exists`) and the errors of
    `read_folder`, and KimboxError (`job-disk-too-small`, with the smallest size that is enough in `fields`;
    `no-space`).
    """
    if os.path.lexists(image):
        raise StateError(f"{image} already exists", code="file-exists", hint=f"rm {image}", fields={"path": str(image)})
    source = read_folder(folder, added, is_job=is_job)
    place, files = _layout(source, size_bytes, room or Room())
    total_bytes = -(-max(size_bytes or 0, place.size_bytes) // 512) * 512
    with making(image) as work:
        need_space(image.parent, files.blocks() * place.block_bytes, f"the disk {image.name}")
        with (work / image.name).open("xb") as file:
            try:
                file.truncate(total_bytes)
            except OSError:
                raise _too_large(total_bytes, f"the file system of {image.parent} has no files of that size") from None
            writer.write(file.fileno(), place, files, source.digest, LABEL, source.content)
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
    free_bytes = (place.data_blocks - files.blocks()) * place.block_bytes
    count = sum(not item.is_folder for item in source.items)
    return Packed(image, total_bytes, files.blocks() * place.block_bytes, free_bytes, count, source)


def _layout(source: Source, size_bytes: int | None, room: Room) -> tuple[Geometry, Tree]:
    """Returns the layout of the disk, and the tree with the blocks of that layout."""
    if size_bytes is not None and size_bytes > geometry.MAX_BYTES:
        raise _too_large(size_bytes, f"ext2 has at most {size_words(geometry.MAX_BYTES)}")
    smallest, files = _smallest(source, Room(size_bytes=0))
    if size_bytes is None:
        return _smallest(source, room)
    is_large = size_bytes >= geometry.LARGE_FROM_BYTES
    block_bytes = geometry.LARGE_BLOCK_BYTES if is_large else files.block_bytes
    files = _tree(source, block_bytes)
    place = geometry.geometry(block_bytes, size_bytes // block_bytes, files.used_inodes)
    if place is None or place.data_blocks < files.blocks():
        least = f"{-(-smallest.size_bytes // 1024)}K"
        raise KimboxError(
            f"{source.folder} needs a disk of {size_words(smallest.size_bytes)}, without room for results, and --size "
            f"gives {size_words(size_bytes)}",
            code="job-disk-too-small",
            hint=f"the smallest size is --size {least}; without --size, kimbox adds room for results",
            fields={"size_bytes": str(size_bytes), "smallest": least, "smallest_bytes": str(smallest.size_bytes)},
        )
    return place, files


def _smallest(source: Source, room: Room) -> tuple[Geometry, Tree]:
    """Returns the smallest layout with that room."""
    is_small = source.apparent_bytes < LARGE_SOURCE_BYTES and all(
        len(item.target) <= MAX_SMALL_TARGET for item in source.items
    )
    sizes = [geometry.SMALL_BLOCK_BYTES] * is_small + [geometry.LARGE_BLOCK_BYTES]
    for block_bytes in sizes:
        files = _tree(source, block_bytes)
        need = files.blocks()
        place = geometry.fitting(block_bytes, need + room.blocks(need, block_bytes), files.used_inodes)
        if block_bytes == sizes[-1] or place.size_bytes < geometry.LARGE_FROM_BYTES:
            break
    if place.size_bytes > geometry.MAX_BYTES:
        raise _too_large(place.size_bytes, f"ext2 has at most {size_words(geometry.MAX_BYTES)}")
    return place, files


def _tree(source: Source, block_bytes: int) -> Tree:
    """Returns the tree of a folder for blocks of that size."""
    factor = block_bytes // UNIT_BYTES
    items = [replace(item, runs=_coarse(item.runs, factor)) if item.runs else item for item in source.items]
    return tree(items, block_bytes)


def _coarse(runs: tuple[Run, ...], factor: int) -> tuple[Run, ...]:
    """Returns runs of units as runs of blocks of `factor` units."""
    result: list[Run] = []
    for first, count in runs:
        start, end = first // factor, -(-(first + count) // factor)
        if result and start <= sum(result[-1]):
            result[-1] = result[-1][0], max(end - result[-1][0], result[-1][1])
        else:
            result.append((start, end - start))
    return tuple(result)


def _too_large(size_bytes: int, reason: str) -> KimboxError:
    return KimboxError(
        f"a disk of {size_words(size_bytes)} cannot be written: {reason}",
        code="out-of-range",
        fields={"size_bytes": str(size_bytes)},
    )
