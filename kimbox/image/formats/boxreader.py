"""Unpacks Vagrant's .box archives for libvirt and VirtualBox: one disk, and small files.

A box is untrusted input. kimbox does not run its Vagrantfile. It checks the header of a disk before QEMU opens the
disk, because a disk can name other files of this host as its backing files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import attrs

from kimbox import run
from kimbox.errors import ImageError
from kimbox.files import need_space, parse_json, size_words, write_sparse
from kimbox.image.formats import sums, tarstream
from kimbox.image.formats.boxwriter import QCOW2
from kimbox.log import log

#: Providers, as in metadata.json.
LIBVIRT, VIRTUALBOX = "libvirt", "virtualbox"

#: Members that are kept, and the maximum size of each, in bytes.
KEPT = (
    "metadata.json", "Vagrantfile", "info.json", "box.ovf", "kimbox.json", "kimbox.yaml", "kimbox.lock",
    "sbom.cdx.json", "provenance.intoto.json", sums.NAME, sums.SIGNATURE_NAME,
)  # fmt: skip
MAX_KEPT_BYTES = 16 << 20

#: Suffixes of members that may be the disk.
_DISKS = (".img", ".qcow2", ".raw", ".vmdk")

#: VMDK (VMware's "Virtual Disk Format 5.0"): magic number of a sparse extent, and size of its header, in bytes.
_VMDK_MAGIC = b"KDMV"
_VMDK_SECTOR = 512

#: Limits of qemu-img when it converts a VMDK: address space in bytes, processor time in seconds.
_LIMITS = ("--as=4294967296", "--cpu=3600")

#: Maximum size of a converted disk: a multiple of the VMDK's size, a part of its capacity for qcow2's tables (an entry
#: of 8 bytes for each cluster of 256 KiB, and reference counts), and bytes for a small disk. In a VMDK, any number of
#: grains can have the same place: a file of 64 KiB could fill the host's disk.
_MAX_GROWTH = 2
_TABLES_PART = 8192
_SLACK_BYTES = 16 << 20


@attrs.frozen
class Contents:
    """An unpacked box."""

    provider: str
    #: Path of the unpacked disk, and its format: `qcow2`, `raw` or `vmdk`.
    disk: Path
    format: str
    #: Small files, by name.
    files: dict[str, bytes]


def read(archive: Path, work: Path, keys: tuple[str, ...] = ()) -> Contents:
    """Unpacks an archive into the folder `work`. With `keys`, one of them must have signed it.

    Raises ImageError if the archive is not a box with one disk for libvirt or VirtualBox, or if a file differs from
    the checksums in the box.
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
        name, kind = _only_disk([name for name in disks if name.endswith(".vmdk")]), "vmdk"
    else:
        raise ImageError(
            f"the box is for {str(provider)[:40]!r}; kimbox accepts boxes for libvirt and virtualbox",
            code="unsupported-provider",
            hint="`vagrant mutate` converts a box for another provider",
            fields={"provider": str(provider)[:40]},
        )
    if name not in disks:
        raise ImageError(
            f"the box has no file {name!r}, which should be its disk",
            code="bad-box",
            fields={"name": name},
        )
    return Contents(str(provider), disks[name], kind, files)


def verify(checksums: bytes | None, signature: bytes | None, keys: tuple[str, ...]) -> None:
    """Raises ImageError unless one of the keys has signed the checksums of a box."""
    if checksums is None:
        raise ImageError(
            f"the box has no {sums.NAME}, so no key can have signed it",
            code="signature-missing",
            fields={"name": sums.NAME},
        )
    sums.verify(checksums, signature, keys)


def _unpack(archive: Path, work: Path) -> tuple[dict[str, bytes], dict[str, Path], dict[str, str]]:
    """Unpacks an archive. Returns its small files, its disks, and the SHA-256 hex digests of all files, by name."""
    files: dict[str, bytes] = {}
    disks: dict[str, Path] = {}
    digests: dict[str, str] = {}
    for member in tarstream.members(archive):
        digest = hashlib.sha256()
        if member.name in KEPT:
            if member.size_bytes > MAX_KEPT_BYTES:
                raise ImageError(
                    f"the {member.name} of the box has {size_words(member.size_bytes)}; "
                    f"at most {size_words(MAX_KEPT_BYTES)} are allowed",
                    code="file-too-large",
                    fields={"name": member.name},
                )
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
    """Writes a member to a new sparse file, and adds its content to the digest."""
    need_space(target.parent, member.size_bytes, f"{member.name} of the box")
    with target.open("xb") as file:
        for piece in member.pieces():
            digest.update(piece)
            write_sparse(file, piece)
        file.truncate(member.size_bytes)


def _metadata(files: dict[str, bytes]) -> dict[str, Any]:
    """The content of metadata.json. The oldest boxes, which were for VirtualBox, do not have this file."""
    if "metadata.json" not in files:
        if "box.ovf" in files:
            return {"provider": VIRTUALBOX}
        raise ImageError(
            "the archive is not a Vagrant box: it has no metadata.json",
            code="bad-box",
            fields={"name": "metadata.json", "state": "missing"},
        )
    try:
        value = parse_json(files["metadata.json"])
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ImageError(
            "the metadata.json of the box is not a JSON object",
            code="bad-box",
            fields={"name": "metadata.json", "state": "invalid"},
        )
    return value


def _libvirt_disk(metadata: dict[str, Any]) -> tuple[str, str]:
    """Name and format of the disk (vagrant-libvirt: box formats 1 and 2)."""
    name: Any
    disks = metadata.get("disks")
    if disks is None:
        name, kind = "box.img", metadata.get("format")
    else:
        disk: Any = _only_disk(disks if isinstance(disks, list) else [])
        disk = disk if isinstance(disk, dict) else {}
        name, kind = disk.get("path"), disk.get("format", "qcow2")
    if not isinstance(name, str) or kind not in ("qcow2", "raw"):
        raise ImageError(
            "the metadata.json of the box names no disk in the format qcow2 or raw",
            code="unsupported-box",
            fields={"name": "metadata.json"},
        )
    return name, str(kind)


def _only_disk(disks: list[Any]) -> Any:
    """The only item of the list. Raises ImageError for another number of items."""
    if len(disks) != 1:
        raise ImageError(
            f"the box has {len(disks)} disks; kimbox accepts boxes with one disk",
            code="unsupported-box",
            fields={"disks": str(len(disks))},
        )
    return disks[0]


def from_vmdk(disk: Path, target: Path) -> None:
    """Converts a VMDK to qcow2. Raises ImageError if the VMDK uses other files, or is damaged."""
    with disk.open("rb") as file:
        header = file.read(_VMDK_SECTOR)
    if not header.startswith(_VMDK_MAGIC) or len(header) < _VMDK_SECTOR:
        raise ImageError(
            "the disk of the box is not a VMDK in a single file",
            code="unsupported-box",
            hint="export the machine from VirtualBox, which writes such a VMDK",
            fields={"format": "vmdk"},
        )
    version, _, capacity = struct.unpack_from("<IIQ", header, 4)
    if not 1 <= version <= 3 or not 0 < capacity * _VMDK_SECTOR <= tarstream.MAX_MEMBER_BYTES:
        # With a capacity of 0 QEMU reads the file as a text description, which can name any other file.
        raise ImageError(
            "the header of the box's VMDK is invalid",
            code="disk-damaged",
            fields={"format": "vmdk", "fault": "vmdk-header"},
        )
    limit_bytes = disk.stat().st_size * _MAX_GROWTH + capacity * _VMDK_SECTOR // _TABLES_PART + _SLACK_BYTES
    free_bytes = shutil.disk_usage(target.parent).free
    source = {"driver": "vmdk", "backing": None, "file": {"driver": "file", "filename": str(disk)}}
    convert: list[str | Path] = [run.require("qemu-img"), "convert", *QCOW2, f"json:{json.dumps(source)}", target]
    try:
        run.run(["prlimit", *_LIMITS, f"--fsize={min(limit_bytes, free_bytes)}", "--", *convert])
    except run.CommandError as error:
        if "SIGXFSZ" in error.status or os.strerror(errno.EFBIG) in error.tail:
            need_space(target.parent, limit_bytes, "the disk of the box")
            raise ImageError(
                f"the VMDK of the box has {size_words(disk.stat().st_size)}, and its content more than "
                f"{size_words(limit_bytes)}: it contains the same data many times",
                code="disk-damaged",
                fields={"format": "vmdk", "fault": "vmdk-expands"},
            ) from None
        raise ImageError(
            f"qemu-img cannot convert the VMDK of the box: {run.tail(error.tail, 3)}",
            code="disk-unreadable",
            fields={"format": "vmdk"},
        ) from None
