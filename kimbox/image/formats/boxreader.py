"""Takes Vagrant's .box archives, for libvirt and for VirtualBox, apart: the one disk, and the small files with it.

Nothing of a box is run or believed: its Vagrantfile is text to kimbox, and a disk is looked at before QEMU opens it,
because disk formats can name other files of this machine.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import attrs

from kimbox import run
from kimbox.errors import ImageError
from kimbox.files import need_space, size_words, write_sparse
from kimbox.image.formats import sums, tarstream
from kimbox.image.formats.boxwriter import QCOW2
from kimbox.log import log

#: What a box is for, as its metadata.json says.
LIBVIRT, VIRTUALBOX = "libvirt", "virtualbox"

#: Members that are kept, and how large each may be.
KEPT = (
    "metadata.json", "Vagrantfile", "info.json", "box.ovf", "kimbox.json", "kimbox.yaml", "kimbox.lock",
    "sbom.cdx.json", "provenance.intoto.json", sums.NAME, sums.SIGNATURE_NAME,
)  # fmt: skip
MAX_KEPT_BYTES = 16 << 20

#: Members with these endings may be the disk.
_DISKS = (".img", ".qcow2", ".raw", ".vmdk")

#: VMDK (VMware's "Virtual Disk Format 5.0"): how a sparse extent begins, and where its numbers stand.
_VMDK_MAGIC = b"KDMV"
_VMDK_SECTOR = 512

#: What qemu-img may take to convert a VMDK: address space in bytes, processor time in seconds.
_LIMITS = ("--as=4294967296", "--cpu=3600")


@attrs.frozen
class Contents:
    """A box, taken apart."""

    provider: str
    #: Where its disk is now, and its format: `qcow2`, `raw` or `vmdk`.
    disk: Path
    format: str
    #: Small files, by name.
    files: dict[str, bytes]


def read(archive: Path, work: Path, keys: tuple[str, ...] = ()) -> Contents:
    """Takes an archive apart into the folder `work`. With `keys`, one of them must have signed it.

    Raises ImageError for what is no box of one disk for libvirt or VirtualBox, or is not what its checksums say.
    """
    files, disks, digests = _unpack(archive, work)
    if sums.NAME in files:
        sums.check(files[sums.NAME], digests)
    if keys:
        verify(files.get(sums.NAME), files.get(sums.SIGNATURE_NAME), keys)
    metadata = _metadata(files)
    provider = metadata.get("provider")
    name: Any
    if provider == LIBVIRT:
        name, kind = _libvirt_disk(metadata)
    elif provider == VIRTUALBOX:
        name, kind = _one([name for name in disks if name.endswith(".vmdk")]), "vmdk"
    else:
        hint = "`vagrant mutate` and `qemu-img convert` make boxes of one kind from those of another"
        raise ImageError(
            f"the box is for {str(provider)[:40]!r}; kimbox takes those for libvirt and virtualbox", hint=hint
        )
    if name not in disks:
        raise ImageError(f"the box has no {name!r}, which should be its disk")
    return Contents(str(provider), disks[name], kind, files)


def verify(checksums: bytes | None, signature: bytes | None, keys: tuple[str, ...]) -> None:
    """Raises ImageError unless one of the keys has signed the checksums of a box."""
    if checksums is None:
        raise ImageError(f"the box has no {sums.NAME}, and keys are given that must have signed it")
    sums.verify(checksums, signature, keys)


def _unpack(archive: Path, work: Path) -> tuple[dict[str, bytes], dict[str, Path], dict[str, str]]:
    """Small files, disks and hex digests of an archive, by name."""
    files: dict[str, bytes] = {}
    disks: dict[str, Path] = {}
    digests: dict[str, str] = {}
    for member in tarstream.members(archive):
        digest = hashlib.sha256()
        if member.name in KEPT:
            if member.size_bytes > MAX_KEPT_BYTES:
                raise ImageError(f"the {member.name} of the box has {size_words(member.size_bytes)}")
            files[member.name] = b"".join(member.pieces())
            digest.update(files[member.name])
        elif "/" not in member.name and member.name.endswith(_DISKS):
            log.now(f"unpacking {member.name}")
            disks[member.name] = work / f"unpacked-{len(disks)}"
            _write(member, disks[member.name], digest)
        else:
            for piece in member.pieces():
                digest.update(piece)
        digests[member.name] = digest.hexdigest()
    return files, disks, digests


def _write(member: tarstream.Member, target: Path, digest: hashlib._Hash) -> None:
    need_space(target.parent, member.size_bytes, f"{member.name} of the box")
    with target.open("xb") as file:
        for piece in member.pieces():
            digest.update(piece)
            write_sparse(file, piece)
        file.truncate(member.size_bytes)


def _metadata(files: dict[str, bytes]) -> dict[str, Any]:
    """metadata.json. VirtualBox's first boxes had none."""
    if "metadata.json" not in files:
        if "box.ovf" in files:
            return {"provider": VIRTUALBOX}
        raise ImageError("this archive is no Vagrant box: it has no metadata.json")
    try:
        value = json.loads(files["metadata.json"])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ImageError("the metadata.json of the box is no JSON object")
    return value


def _libvirt_disk(metadata: dict[str, Any]) -> tuple[str, str]:
    """Name and format of the one disk (vagrant-libvirt: box formats 1 and 2)."""
    name: Any
    disks = metadata.get("disks")
    if disks is None:
        name, kind = "box.img", metadata.get("format")
    else:
        one: Any = _one(disks if isinstance(disks, list) else [])
        one = one if isinstance(one, dict) else {}
        name, kind = one.get("path"), one.get("format", "qcow2")
    if not isinstance(name, str) or kind not in ("qcow2", "raw"):
        raise ImageError("the metadata.json of the box names no disk in qcow2 or raw format")
    return name, str(kind)


def _one(items: list[Any]) -> Any:
    if len(items) != 1:
        raise ImageError(f"the box has {len(items)} disks; kimbox takes boxes with one")
    return items[0]


def from_vmdk(disk: Path, target: Path) -> None:
    """Converts a VMDK to qcow2. Raises ImageError if it is none that stands alone, or is damaged."""
    with disk.open("rb") as file:
        header = file.read(_VMDK_SECTOR)
    if not header.startswith(_VMDK_MAGIC) or len(header) < _VMDK_SECTOR:
        raise ImageError("the disk of the box is no VMDK in one piece", hint="VirtualBox exports such disks")
    version, _, capacity = struct.unpack_from("<IIQ", header, 4)
    if not 1 <= version <= 3 or not 0 < capacity * _VMDK_SECTOR <= tarstream.MAX_MEMBER_BYTES:
        # Without a capacity of its own QEMU would take the file for a description, which can name any other.
        raise ImageError("the disk of the box is a VMDK with a header that cannot be")
    source = {"driver": "vmdk", "backing": None, "file": {"driver": "file", "filename": str(disk)}}
    convert: list[str | Path] = [run.require("qemu-img"), "convert", *QCOW2, f"json:{json.dumps(source)}", target]
    try:
        run.run(["prlimit", *_LIMITS, "--", *convert])
    except run.CommandError as error:
        raise ImageError(f"the VMDK of the box cannot be read: {run.tail(error.tail, 3)}") from None
