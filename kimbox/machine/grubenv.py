"""GRUB's environment block: which entry of its menu the next boot gets, set in a disk that nobody boots or mounts.

The block (GRUB, grub-core/lib/envblk.c) has 1024 bytes: a signature, lines `name=value` in which a backslash escapes a
backslash or a line break, comments, and `#` up to its end. /boot/grub/grubenv holds it, in partition 1 of the disk; the
boot loader reads and writes it by the same path, so that it is looked for anew each time: the guest may have made
another file of that name.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from kimbox.errors import ImageError
from kimbox.image.disk.ext4 import inodes
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.render.guestfiles import BOOT_LABEL
from kimbox.run import CommandError, Completed, describe_status, run, tail
from kimbox.spec.layout import ALIGN_BYTES, SECTOR_BYTES
from kimbox.spec.model import BootMode

SIGNATURE = b"# GRUB Environment Block\n"
BLOCK_BYTES = 1024
PATH = "/grub/grubenv"

#: Variables that grub.cfg obeys: the entry of every boot, and that of the next one alone.
SAVED = b"saved_entry"
NEXT = b"next_entry"

#: The disk is read in pieces of this size, aligned.
PIECE_BYTES = 4096

#: More is never looked at to find the block, whatever a guest has written.
MAX_PIECES = 512

#: What qemu-io(1) may take, in seconds.
TIMEOUT_S = 60.0

_LINE = re.compile(rb"(?:\\.|[^\\\n])*\n", re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_DUMPED = re.compile(r"^([0-9a-f]{8,16}):  ((?:[0-9a-f]{2} ){16})", re.MULTILINE)
_SPECIAL = re.compile(rb"([\\\n])")


class NoEnvironment(ImageError):
    """The disk has no environment block where kimbox's boot loader would read one."""


def values(block: bytes) -> dict[bytes, bytes] | None:
    """The variables of a block; None if it is damaged. Where a name is there twice, GRUB takes the last."""
    lines = _lines(block)
    if lines is None:
        return None
    pairs = [line[:-1].split(b"=", 1) for line in lines if not line.startswith(b"#")]
    return {name: _ESCAPED.sub(rb"\1", value) for name, value in pairs}


def changed(block: bytes, changes: Mapping[bytes, bytes | None]) -> bytes:
    """The block with other values, None for a variable that goes; all else stays as it is, byte for byte.

    A damaged block is begun anew. Raises ImageError if there is no room.
    """
    lines = _lines(block) or []
    kept = [line for line in lines if line.startswith(b"#") or line.split(b"=", 1)[0] not in changes]
    added = [b"%s=%s\n" % (name, _SPECIAL.sub(rb"\\\1", v)) for name, v in changes.items() if v is not None]
    text = SIGNATURE + b"".join(kept + added)
    if len(text) > BLOCK_BYTES:
        hint = "in the box, `sudo grub-editenv /boot/grub/grubenv unset NAME` removes a variable that is not needed"
        raise ImageError("GRUB's environment has no room for the boot mode", hint=hint)
    return text.ljust(BLOCK_BYTES, b"#")


def _lines(block: bytes) -> list[bytes] | None:
    """Comments and variables, each with its line end; None if GRUB would not read the block as it was meant."""
    if len(block) != BLOCK_BYTES or not block.startswith(SIGNATURE) or b"\0" in block:
        return None
    text = block[len(SIGNATURE) :].rstrip(b"#")
    lines = _LINE.findall(text)
    if b"".join(lines) != text or not all(line.startswith(b"#") or line.find(b"=") > 0 for line in lines):
        return None
    return lines


def choose(machine: Machine, saved: BootMode, once: BootMode | None = None) -> bool:
    """Sets the mode of every boot from the next one on, and, with `once`, another for the next alone.

    The machine does not run, and has no saved state. True if the disk was written: not where it says so already.
    Raises NoEnvironment if there is no environment of kimbox's in the disk.
    """
    disk = _Disk(machine)
    offset = _find(disk, machine.name)
    block = disk.read(offset, BLOCK_BYTES)
    now = values(block)
    if now is None:
        log.warn(f"GRUB's environment in the disk of {machine.name} was damaged: it is made anew")
    elif (now.get(SAVED), now.get(NEXT, b"")) == (saved.encode(), once.encode() if once else b""):
        return False
    disk.write(offset, changed(block, {SAVED: saved.encode(), NEXT: once.encode() if once else None}))
    return True


def chosen(machine: Machine) -> tuple[str, str]:
    """The mode that a disk says for every boot, and the one for the next alone; empty where it says none.

    Raises NoEnvironment if there is no environment of kimbox's in the disk.
    """
    disk = _Disk(machine)
    told = values(disk.read(_find(disk, machine.name), BLOCK_BYTES)) or {}
    return told.get(SAVED, b"").decode("ascii", "replace"), told.get(NEXT, b"").decode("ascii", "replace")


def _find(disk: _Disk, name: str) -> int:
    """Where in the disk the block lies."""
    try:
        start = _boot_partition(disk)
        system = inodes.open_at(lambda offset, size: disk.read(start + offset, size))
        if system.label != BOOT_LABEL:
            raise ImageError(f"its first file system is not labelled {BOOT_LABEL}")
        offset = start + inodes.locate(system, PATH, BLOCK_BYTES)
        if offset % SECTOR_BYTES:
            raise ImageError("its file system lies askew")
        disk.fetch(range(offset, offset + BLOCK_BYTES, PIECE_BYTES))
    except ImageError as error:
        raise NoEnvironment(
            f"the disk of {name} has no environment of GRUB that kimbox can set: {error.message}",
            hint="boot modes (`boot:` in the spec, --boot) need an image of kimbox's with a sound /boot; "
            f"`kimbox destroy {name}` and `kimbox up` make the disk anew",
        ) from None
    return offset


def _boot_partition(disk: _Disk) -> int:
    """Where partition 1 begins, by the MBR; what lies right after the usual gap is fetched with it."""
    disk.fetch([0, ALIGN_BYTES, ALIGN_BYTES + PIECE_BYTES])
    mbr = disk.read(0, SECTOR_BYTES)
    sector = int.from_bytes(mbr[454:458], "little")
    if mbr[510:] != b"\x55\xaa" or mbr[450] != 0x83 or not sector:
        raise ImageError("its first partition is none for /boot")
    return sector * SECTOR_BYTES


@attrs.define
class _Disk:
    """A machine's disk, read in pieces that are kept, and written, by qemu-io(1)."""

    machine: Machine
    _pieces: dict[int, bytes] = attrs.field(factory=dict)

    def fetch(self, offsets: Iterable[int]) -> None:
        """Reads the pieces around these offsets, at once; beyond the end of the disk there are none."""
        wanted = sorted({offset // PIECE_BYTES * PIECE_BYTES for offset in offsets} - set(self._pieces))
        if not wanted:
            return
        if len(self._pieces) + len(wanted) > MAX_PIECES:
            raise ImageError("it leads nowhere")
        done = self._run(["-r"], [f"read -v {offset} {PIECE_BYTES}" for offset in wanted])
        self._pieces |= {offset: data for offset, data in _dumped(done.stdout).items() if len(data) == PIECE_BYTES}

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the disk. Raises ImageError if there are none."""
        first = offset // PIECE_BYTES * PIECE_BYTES
        places = range(first, offset + size, PIECE_BYTES)
        self.fetch(places)
        if not all(place in self._pieces for place in places):
            raise ImageError("it is shorter than what it says of itself")
        return b"".join(self._pieces[place] for place in places)[offset - first :][:size]

    def write(self, offset: int, data: bytes) -> None:
        """Writes a block, and reads it again. Raises ImageError if it is not there."""
        with tempfile.TemporaryDirectory(prefix="grubenv-", dir=self.machine.folder) as folder:
            (Path(folder) / "block").write_bytes(data)  # in the working folder, as qemu-io's commands know no quotes
            commands = [f"write -s block {offset} {len(data)}", f"read -v {offset} {len(data)}"]
            done = self._run([], commands, Path(folder))
        if b"".join(_dumped(done.stdout).values()) != data:
            said = tail(done.stdout + done.stderr, 2)
            raise ImageError(f"the boot mode cannot be written into the disk of {self.machine.name}: {said}")

    def _run(self, options: list[str], commands: list[str], cwd: Path | None = None) -> Completed:
        """Has qemu-io do its commands; what it did is told by stdout. Raises CommandError if there is no disk."""
        argv = ["qemu-io", *options, "-f", "qcow2", *(word for command in commands for word in ("-c", command))]
        argv.append(str(self.machine.disk))
        done = run(argv, check=False, cwd=cwd, timeout_s=TIMEOUT_S)
        if not done.ok and "can't open" in done.stderr:
            raise CommandError(argv, describe_status(done.code), tail(done.stderr))
        return done


def _dumped(text: str) -> dict[int, bytes]:
    """What qemu-io has shown of a disk, in pieces by their offset."""
    pieces: dict[int, bytearray] = {}
    for address, data in _DUMPED.findall(text):
        pieces.setdefault(int(address, 16) // PIECE_BYTES * PIECE_BYTES, bytearray()).extend(bytes.fromhex(data))
    return {offset: bytes(piece) for offset, piece in sorted(pieces.items())}
