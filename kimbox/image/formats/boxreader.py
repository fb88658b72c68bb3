"""Unpacks Vagrant's .box archives for libvirt and VirtualBox, and OVA archives: one disk, and small files.

An archive is untrusted input. kimbox does not run the Vagrantfile of a box. It checks the header of a disk before QEMU
opens the disk, because a disk can name other files of this host as its backing files. Formats: "Box File Format" of
Vagrant's documentation, the box formats 1 and 2 of vagrant-libvirt, and DMTF DSP0243 (OVF).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import posixpath
import shutil
import struct
from pathlib import Path
from typing import Any

import attrs

from kimbox import run
from kimbox.errors import ImageError
from kimbox.files import need_space, parse_json, sha256_file, size_words
from kimbox.image.formats import sums, tarstream, wholeness
from kimbox.image.formats.boxwriter import QCOW2
from kimbox.log import log
from kimbox.sparse import write_sparse

#: Providers, as in metadata.json.
LIBVIRT, VIRTUALBOX = "libvirt", "virtualbox"

#: Members that are kept, and the maximum size of each, in bytes.
KEPT = (
    "metadata.json", "Vagrantfile", "info.json", "box.ovf", "kimbox.json", "kimbox.yaml", "kimbox.lock",
    "sbom.cdx.json", "provenance.intoto.json", sums.NAME, sums.SIGNATURE_NAME,
)  # fmt: skip
MAX_KEPT_BYTES = 16 << 20

#: Suffixes of the description and the manifest of an OVA.
OVF_SUFFIX, MANIFEST_SUFFIX = ".ovf", ".mf"

#: Suffix of the disks of boxes for VirtualBox, and of an OVA.
VMDK_SUFFIX = ".vmdk"

#: Debian's name of the architecture of all boxes of kimbox, and other names of it.
ARCHITECTURE = "amd64"
_OTHER_NAMES = ("x86_64", "x86-64", "x64")

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
    """An unpacked archive."""

    #: Name of the provider in metadata.json; None for an OVA.
    provider: str | None
    #: Path of the unpacked disk, and its format: `qcow2`, `raw` or `vmdk`.
    disk: Path
    format: str
    #: Small files, by name.
    files: dict[str, bytes]


def read(archive: Path, work: Path, keys: tuple[str, ...] = ()) -> Contents:
    """Unpacks an archive into the folder `work`. With `keys`, one of them must have signed it.

    Raises ImageError if the archive is not a box with one disk for libvirt or VirtualBox, if a file differs from the
    checksums in the box, or if the box is for another architecture.
    """
    unpacked = _unpack(archive, work)
    files = unpacked.files
    if sums.NAME in files:
        sums.check(files[sums.NAME], unpacked.all_digests())
    if keys:
        verify(files.get(sums.NAME), files.get(sums.SIGNATURE_NAME), keys)
    provider: str | None = None
    name, kind = None, "vmdk"
    if {"metadata.json", "box.ovf"} & files.keys() or not unpacked.descriptions:
        provider, name, kind = _describe(files)
    else:
        for manifest, data in unpacked.manifests.items():
            digests = {"SHA256": unpacked.all_digests, "SHA1": unpacked.sha1_digests}
            sums.check_manifest(manifest, data, digests)
    if name is None:
        name = str(_only_disk([name for name in unpacked.disks if name.endswith(VMDK_SUFFIX)]))
    if name not in unpacked.disks:
        raise ImageError(
            f"the box has no file {name!r}, which should be its disk",
            code="bad-box",
            fields={"name": name},
        )
    disk = unpacked.disks.pop(name)
    for other in unpacked.disks.values():
        other.unlink()
    return Contents(provider, disk, kind, files)


def _describe(files: dict[str, bytes]) -> tuple[str, str | None, str]:
    """Provider, disk and format of the disk, from metadata.json. The disk is None for VirtualBox, whose OVF names it.

    Raises ImageError if metadata.json is missing or invalid, or for another provider or architecture.
    """
    metadata = _metadata(files)
    provider = metadata.get("provider")
    check_architecture(metadata.get("architecture"), "the box")
    if provider == LIBVIRT:
        return LIBVIRT, *_libvirt_disk(metadata)
    if provider == VIRTUALBOX:
        return VIRTUALBOX, None, "vmdk"
    raise ImageError(
        f"the box is for {str(provider)[:40]!r}; kimbox accepts boxes for libvirt and virtualbox",
        code="unsupported-provider",
        hint="`vagrant mutate` converts a box for another provider",
        fields={"provider": str(provider)[:40]},
    )


def is_for_this_architecture(name: object) -> bool | None:
    """Whether a box with this value of `architecture` runs here; None if the value is missing or says nothing."""
    if name is None or name in ("", "unknown"):
        return None
    return isinstance(name, str) and name.lower() in (ARCHITECTURE, *_OTHER_NAMES)


def check_architecture(name: object, subject: str) -> None:
    """Raises ImageError (`unsupported-architecture`) if `name` is another architecture than that of kimbox's boxes."""
    if is_for_this_architecture(name) is False:
        shown = str(name)[:100]
        raise ImageError(
            f"{subject} is for the architecture {shown!r}; kimbox runs boxes for {ARCHITECTURE}",
            code="unsupported-architecture",
            fields={"architecture": shown},
        )


def verify(checksums: bytes | None, signature: bytes | None, keys: tuple[str, ...]) -> None:
    """Raises ImageError unless one of the keys has signed the checksums of a box."""
    if checksums is None:
        raise ImageError(
            f"the box has no {sums.NAME}, so no key can have signed it",
            code="signature-missing",
            fields={"name": sums.NAME},
        )
    sums.verify(checksums, signature, keys)


@attrs.define
class _Unpacked:
    """The files of an archive, by name."""

    #: Those of KEPT.
    files: dict[str, bytes] = attrs.field(factory=dict)
    #: Descriptions and manifests of an OVA.
    descriptions: dict[str, bytes] = attrs.field(factory=dict)
    manifests: dict[str, bytes] = attrs.field(factory=dict)
    #: Files that may be the disk.
    disks: dict[str, Path] = attrs.field(factory=dict)
    #: SHA-256 hex digests, except of disks with holes.
    digests: dict[str, str] = attrs.field(factory=dict)

    def all_digests(self) -> dict[str, str]:
        """The SHA-256 hex digests of all files. Holes count as zeros, which takes minutes for a large disk."""
        for name, disk in self.disks.items():
            if name not in self.digests:
                self.digests[name] = sha256_file(disk).removeprefix("sha256:")
        return self.digests

    def sha1_digests(self) -> dict[str, str]:
        """The SHA-1 hex digests of descriptions and disks, which manifests of OVF 1 have. They show no attack."""
        digests = {name: hashlib.sha1(data).hexdigest() for name, data in self.descriptions.items()}  # noqa: S324
        for name, disk in self.disks.items():
            with disk.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha1").hexdigest()
        return digests

    def may_be_disk(self, name: str) -> bool:
        """Whether a member may be the disk. metadata.json names it, but may come after it.

        Raises the errors of `_describe` before a disk is unpacked, if metadata.json comes first.
        """
        if "metadata.json" not in self.files:
            return True
        _, disk, _ = _describe(self.files)
        return name.endswith(VMDK_SUFFIX) if disk is None else name == disk


def _unpack(archive: Path, work: Path) -> _Unpacked:
    """Unpacks an archive. Ignores the companions that tar of macOS adds for the attributes of files."""
    unpacked = _Unpacked()
    for member in tarstream.members(archive):
        name = member.name
        if _is_apple_double(name):
            continue
        digest = hashlib.sha256()
        if name in KEPT:
            unpacked.files[name] = _content(member, digest)
        elif "/" not in name and name.endswith(OVF_SUFFIX):
            unpacked.descriptions[name] = _content(member, digest)
        elif "/" not in name and name.endswith(MANIFEST_SUFFIX):
            unpacked.manifests[name] = _content(member, digest)
        elif unpacked.may_be_disk(name):
            log.now(f"unpacking {name}")
            unpacked.disks[name] = work / f"unpacked-{len(unpacked.disks)}"
            _write(member, unpacked.disks[name], digest)
            if member.has_holes:
                continue
        else:
            for piece in member.pieces():
                digest.update(piece)
        unpacked.digests[name] = digest.hexdigest()
    return unpacked


def _is_apple_double(name: str) -> bool:
    """Whether a member is a companion in Apple's format AppleDouble, `._NAME`, or in the folder `__MACOSX`."""
    return posixpath.basename(name).startswith("._") or name.startswith("__MACOSX/")


def _content(member: tarstream.Member, digest: hashlib._Hash) -> bytes:
    """The content of a small member, which is added to the digest. Raises ImageError if it is too large."""
    if member.size_bytes > MAX_KEPT_BYTES:
        raise ImageError(
            f"the {member.name} of the box has {size_words(member.size_bytes)}; "
            f"at most {size_words(MAX_KEPT_BYTES)} are allowed",
            code="file-too-large",
            fields={"name": member.name},
        )
    data = b"".join(member.pieces())
    digest.update(data)
    return data


def _write(member: tarstream.Member, target: Path, digest: hashlib._Hash) -> None:
    """Writes a member to a new sparse file, and adds its data, without holes, to the digest."""
    need_space(target.parent, member.stored_bytes, f"{member.name} of the box")
    with target.open("xb") as file:
        for offset, piece in member.data():
            digest.update(piece)
            file.seek(offset)
            write_sparse(file, piece)
        file.truncate(member.size_bytes)


def _metadata(files: dict[str, bytes]) -> dict[str, Any]:
    """The content of metadata.json. The oldest boxes, which were for VirtualBox, do not have this file."""
    if "metadata.json" not in files:
        if "box.ovf" in files:
            return {"provider": VIRTUALBOX}
        raise ImageError(
            "the archive is not a Vagrant box: it has no metadata.json, and not an OVA: it has no .ovf",
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
    if disks is None or disks == []:
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
    return posixpath.normpath(name), str(kind)


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
    with disk.open("rb") as file:
        wholeness.check_vmdk(file)
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
