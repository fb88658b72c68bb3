"""Writes packages: Vagrant boxes for libvirt and VirtualBox, OVA, qcow2 and raw disks, and images for OpenStack.

An OVF describes the machine that VirtualBox creates. It has a SATA controller (AHCI) and a network card: an Intel
82540EM (e1000) if the guest's kernel has its driver, else a virtio one. Format: DMTF DSP0243 1.1, as VirtualBox writes
it. The disk is a streamOptimized VMDK.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import uuid
from enum import StrEnum
from pathlib import Path
from typing import assert_never
from xml.sax.saxutils import escape, quoteattr

import attrs

from kimbox.errors import ImageError
from kimbox.files import json_bytes, sha256_file
from kimbox.image.disk.derived import derived_uuid
from kimbox.image.formats import boxwriter
from kimbox.image.formats.boxwriter import (
    OPENSTACK_QCOW2,
    QCOW2,
    Files,
    Sign,
    convert,
    with_sums,
    write_tar,
)
from kimbox.image.formats.compressor import Compression
from kimbox.newfiles import Finished, making
from kimbox.sparse import copy_sparse
from kimbox.spec.layout import SECTOR_BYTES

#: Names of the description and the disk in archives. Vagrant requires box.ovf.
OVF, VMDK = "box.ovf", "box-disk001.vmdk"

_MIB = 1 << 20

_CID = re.compile(rb"^CID=[0-9a-f]{1,8}$", re.MULTILINE)


class Format(StrEnum):
    """A package format. The values are those of the option --format."""

    LIBVIRT = "libvirt"
    VIRTUALBOX = "virtualbox"
    QCOW2 = "qcow2"
    RAW = "raw"
    OVA = "ova"
    OPENSTACK = "openstack"

    def file_name(self, name: str) -> str:
        """The file name of a package of the box `name`."""
        if self in (Format.LIBVIRT, Format.VIRTUALBOX):
            return f"{name}-{self}.box"
        if self is Format.OPENSTACK:
            return f"{name}-{self}.qcow2"
        return f"{name}.{self}"

    @property
    def is_vagrant_box(self) -> bool:
        """Whether the package is a box for Vagrant, and the value of the format the name of Vagrant's provider.

        Such a package contains spec, lock, SBOM and statement, and can be in a catalog. For other formats these are
        files beside the package.
        """
        return self in (Format.LIBVIRT, Format.VIRTUALBOX)

    @property
    def is_for_virtualbox(self) -> bool:
        """Whether the package describes the machine for VirtualBox, with its network card."""
        return self in (Format.VIRTUALBOX, Format.OVA)


@attrs.frozen
class Content:
    """The content of a package."""

    name: str
    #: The disk, its format (`raw` or `qcow2`), and its size as the guest sees it.
    disk: Path
    image_format: str
    virtual_bytes: int
    cpus: int
    memory_bytes: int
    #: Vagrant's name of the distribution.
    guest: str
    #: The account for the login.
    user: str
    #: Returns spec, lock, SBOM and statement, by file name.
    files: Files
    #: Whether the guest's kernel has a driver for VirtualBox's default network card, e1000.
    knows_e1000: bool = False


def write(
    kind: Format,
    content: Content,
    target: Path,
    sign: Sign | None,
    finished: Finished | None = None,
    compression: Compression = Compression.ZSTD,
) -> None:
    """Writes the package `target`. `finished` as in `making`. `compression` is that of a box for libvirt.

    Raises the errors of `boxwriter.libvirt`."""
    if kind is Format.LIBVIRT:
        boxwriter.libvirt(
            content.disk, content.image_format, target,
            guest=content.guest, user=content.user, files=content.files, sign=sign,
            compression=compression, finished=finished,
        )  # fmt: skip
        return
    with making(target, finished=finished) as work:
        match kind:
            case Format.OPENSTACK:
                convert(content.disk, content.image_format, work / target.name, OPENSTACK_QCOW2)
            case Format.QCOW2:
                convert(content.disk, content.image_format, work / target.name, QCOW2)
            case Format.RAW if content.image_format == "raw":
                copy_sparse(content.disk, work / target.name)
            case Format.RAW:
                convert(content.disk, content.image_format, work / target.name, ("-O", "raw"))
            case Format.VIRTUALBOX | Format.OVA:
                _write_vmdk(content, work)
                _write_archive(kind, content, work, target.name, sign)
            case _:
                assert_never(kind)
        (work / target.name).chmod(0o644)


def _write_vmdk(content: Content, work: Path) -> None:
    """Writes the disk as a VMDK, and replaces its random content ID with one that is derived from its content."""
    vmdk = work / VMDK
    convert(content.disk, content.image_format, vmdk, ("-O", "vmdk", "-o", "subformat=streamOptimized"))
    set_identity(vmdk, "0" * 8)
    set_identity(vmdk, sha256_file(vmdk).removeprefix("sha256:")[:8])


def set_identity(vmdk: Path, identity: str) -> None:
    """Sets the content ID (CID, eight hex digits) of a VMDK that qemu-img wrote.

    qemu-img writes the ID twice, and without leading zeros. The description ends at its first NUL. If the second ID is
    shorter, the end of the first text follows the NUL.
    """
    with vmdk.open("r+b") as file:
        at, size = (number * SECTOR_BYTES for number in struct.unpack_from("<QQ", file.read(SECTOR_BYTES), 28))
        text, _, _ = os.pread(file.fileno(), size, at).partition(b"\0")
        new, count = _CID.subn(b"CID=" + identity.encode(), text)
        if count != 1 or len(new) > size:
            raise ImageError(
                "qemu-img wrote a VMDK with a description that kimbox does not know", code="unexpected-output"
            )
        os.pwrite(file.fileno(), new.ljust(size, b"\0"), at)


def _write_archive(kind: Format, content: Content, work: Path, name: str, sign: Sign | None) -> None:
    """Writes the archive with the VMDK: a box for VirtualBox, or an OVA."""
    disks = {VMDK: work / VMDK}
    description = ovf(content, (work / VMDK).stat().st_size)
    if kind is Format.VIRTUALBOX:
        members = {
            "metadata.json": json_bytes({"provider": "virtualbox"}),
            "Vagrantfile": boxwriter.vagrantfile(content.guest, content.user),
            OVF: description,
        }
        write_tar(work / name, with_sums(members, disks, content.files, sign), disks)
        return
    first = f"{content.name}.ovf"
    # DSP0243 1.1 knows only SHA1 here, and its readers refuse other digests. Nothing relies on it: SHA256SUMS has both.
    digests = {first: hashlib.sha1(description), VMDK: _sha1(work / VMDK)}  # noqa: S324
    manifest = "".join(f"SHA1({name})= {digest.hexdigest()}\n" for name, digest in digests.items())
    write_tar(work / name, {first: description, f"{content.name}.mf": manifest.encode()}, disks)


def _sha1(path: Path) -> hashlib._Hash:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1")


def ovf(content: Content, vmdk_bytes: int) -> bytes:
    """The OVF description of the machine. `vmdk_bytes` is the size of the VMDK file."""
    items = (
        _item(1, 3, f"{content.cpus} virtual CPU", VirtualQuantity=content.cpus),
        _item(2, 4, f"{-(-content.memory_bytes // _MIB)} MB of memory", AllocationUnits="MegaBytes",
              VirtualQuantity=-(-content.memory_bytes // _MIB)),
        _item(3, 20, "sataController0", Address=0, ResourceSubType="AHCI"),
        _item(4, 17, "disk1", AddressOnParent=0, HostResource="/disk/vmdisk1", Parent=3),
        _item(5, 10, "Ethernet adapter on 'NAT'", AutomaticAllocation="true", Connection="NAT",
              ResourceSubType="E1000" if content.knows_e1000 else "virtio"),
    )  # fmt: skip
    name = quoteattr(content.name)
    identity: uuid.UUID = derived_uuid(f"{content.name}/{content.virtual_bytes}/ovf")
    text = f"""\
<?xml version="1.0"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1" \
xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" \
xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" \
xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" \
xmlns:vbox="http://www.virtualbox.org/ovf/machine">
  <References>
    <File ovf:id="file1" ovf:href="{VMDK}" ovf:size="{vmdk_bytes}"/>
  </References>
  <DiskSection>
    <Info>List of the virtual disks used in the package</Info>
    <Disk ovf:capacity="{content.virtual_bytes}" ovf:diskId="vmdisk1" ovf:fileRef="file1" \
ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized" vbox:uuid="{identity}"/>
  </DiskSection>
  <NetworkSection>
    <Info>Logical networks used in the package</Info>
    <Network ovf:name="NAT"><Description>Logical network used by this appliance.</Description></Network>
  </NetworkSection>
  <VirtualSystem ovf:id={name}>
    <Info>A virtual machine</Info>
    <OperatingSystemSection ovf:id="96">
      <Info>The kind of installed guest operating system</Info>
      <Description>Debian_64</Description>
      <vbox:OSType ovf:required="false">Debian_64</vbox:OSType>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware requirements for a virtual machine</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{escape(content.name)}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>virtualbox-2.2</vssd:VirtualSystemType>
      </System>
{"".join(items)}    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""
    return text.encode()


def _item(number: int, kind: int, name: str, **more: str | int) -> str:
    """The XML of a piece of hardware. OVF requires its properties in alphabetical order."""
    values: dict[str, str | int] = {"ElementName": name, "InstanceID": number, "ResourceType": kind, **more}
    inner = "".join(f"        <rasd:{key}>{escape(str(values[key]))}</rasd:{key}>\n" for key in sorted(values))
    return f"      <Item>\n{inner}      </Item>\n"
