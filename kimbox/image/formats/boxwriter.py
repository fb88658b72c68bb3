"""Writes Vagrant's .box archives for libvirt from any disk that QEMU reads. Other formats use its helpers.

A .box for libvirt is a tar archive with three members that vagrant-libvirt reads: metadata.json (provider, format, size
in whole GiB), Vagrantfile and box.img. Vagrant unpacks it with bsdtar(1). This reads zstd if it was built with libzstd
(libarchive 3.3.3), and otherwise with the program zstd(1). Every Vagrant since 1.6 reads xz. The disk in it is not
compressed, because the archive is smaller this way, and a guest reads the disk faster. Vagrant unpacks all other files
of the archive beside the disk.

Equal disks give equal bytes: members have a fixed order, owner and time, and qemu-img writes clusters in order.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, cast

from kimbox import run
from kimbox.files import (
    CHUNK_BYTES,
    json_bytes,
    need_space,
    sha256_file,
    sync_file,
)
from kimbox.image.formats import compressor, sums
from kimbox.image.formats.compressor import Compression
from kimbox.image.inputs.recipe import EPOCH_S
from kimbox.log import log
from kimbox.newfiles import Finished, making
from kimbox.render.vagrantfile import ruby_literal

#: Size of a cluster of a compressed qcow2. Compared with QEMU's default the disk is 5 % smaller and as fast to read.
CLUSTER = "256k"

#: Options of qemu-img for a plain and for a compressed qcow2. Clusters are written in order: `-W` would be faster, but
#: would give other bytes each time.
PLAIN = ("-O", "qcow2", "-m", "16")
QCOW2 = (*PLAIN, "-c", "-o", f"compression_type=zstd,cluster_size={CLUSTER}")

#: For a cloud, whose qemu-img may be older than 5.1: with zlib.
OPENSTACK_QCOW2 = (*PLAIN, "-c")

#: A function that returns the signature of a checksum file.
Sign = Callable[[bytes], bytes]

#: A function that returns small files of a package, by name. It gets the sha256 hex digests of its disks, by name.
Files = Callable[[Mapping[str, str]], Mapping[str, bytes]]

_GIB = 1 << 30
_PERCENT = re.compile(r"\((\d+\.\d+)/100%\)")

#: Vagrantfile of the box. At the first use it creates an ssh key in the folder where Vagrant stores the box. A project
#: with a Vagrantfile of `kimbox render` has its own key. Vagrant reads that file first, so $kimbox_key is set here.
#: This file must not pass a key then: the guest accepts only the first of several keys, and Vagrant puts that of the
#: box first.
_VAGRANTFILE = """\
rendered = !$kimbox_key.nil?
key = $kimbox_key || File.expand_path('id_ed25519', __dir__)
unless File.exist?(key)
  is_created = system('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-C', 'kimbox', '-f', key)
  raise 'ssh-keygen cannot create the ssh key of the box (install openssh-client)' unless is_created
end
public_key = File.read("#{key}.pub").split.first(2).join(' ')

Vagrant.configure('2') do |config|
  config.vm.guest = GUEST.to_sym
  config.vm.synced_folder '.', '/vagrant', disabled: true
  config.ssh.username = USER
  config.ssh.insert_key = false
  config.ssh.private_key_path = key
  config.vm.provider 'libvirt' do |libvirt|
    libvirt.graphics_type = 'none'
    strings = ["io.systemd.credential:kimbox.authorized_key=#{public_key}"]
    libvirt.sysinfo = { 'oem strings' => strings } unless rendered
  end
  config.vm.provider 'virtualbox' do |virtualbox|
    virtualbox.customize ['setextradata', :id, 'VBoxInternal/Devices/pcbios/0/Config/DmiOEMVBoxVer',
                          "string:io.systemd.credential:kimbox.authorized_key=#{public_key}"]
  end
end
"""


def libvirt(
    disk: Path,
    image_format: str,
    target: Path,
    *,
    guest: str = "debian",
    user: str = "vagrant",
    files: Files = lambda _: {},
    sign: Sign | None = None,
    compression: Compression = Compression.ZSTD,
    finished: Finished | None = None,
) -> None:
    """Writes the .box `target` from a disk in the format `raw` or `qcow2`. The disk must not change meanwhile.

    `guest` is Vagrant's name of the distribution, `user` the account for the login. `files` gets the sha256 hex digest
    of the disk in the box, by its name, and returns further members by name. The box has the checksums of its files,
    and with `sign` their signature. `finished` as in `making`.
    `target` is complete or does not exist. Raises StateError if it exists or another process writes it, CommandError
    if the disk cannot be read.
    """
    with making(target, finished=finished) as work:
        image = work / "box.img"
        convert(disk, image_format, image, PLAIN)
        size = -(-virtual_bytes(image) // _GIB)
        members = {
            "metadata.json": json_bytes({"provider": "libvirt", "format": "qcow2", "virtual_size": size}),
            "Vagrantfile": vagrantfile(guest, user),
        }
        disks = {"box.img": image}
        write_tar(work / target.name, with_sums(members, disks, files, sign), disks, compression)


def with_sums(
    members: Mapping[str, bytes], disks: Mapping[str, Path], files: Files, sign: Sign | None
) -> dict[str, bytes]:
    """The members of an archive and its `files`, with the checksums of all, and their signature if `sign` is given."""
    of_disks = {name: sha256_file(path).removeprefix("sha256:") for name, path in disks.items()}
    members = {**members, **files(of_disks)}
    text = sums.text({name: hashlib.sha256(data).hexdigest() for name, data in members.items()} | of_disks)
    return {**members, sums.NAME: text, **({sums.SIGNATURE_NAME: sign(text)} if sign else {})}


def vagrantfile(guest: str, user: str) -> bytes:
    """The Vagrantfile of a box. Settings in the Vagrantfile of a project override it."""
    return _VAGRANTFILE.replace("GUEST", ruby_literal(guest)).replace("USER", ruby_literal(user)).encode()


def convert(disk: Path, image_format: str, target: Path, options: tuple[str, ...]) -> None:
    """Converts a disk to `target` with qemu-img, and logs the progress.

    Raises CommandError if that fails, and KimboxError (`no-space`) before it starts if there is too little space for a
    disk that is not compressed.
    """
    if not {"-c", "subformat=streamOptimized"} & set(options):
        info = disk.stat()
        need_space(target.parent, min(info.st_blocks * 512, info.st_size), "the disk of the package")
    argv: list[str | Path] = ["qemu-img", "convert", "-p", "-f", image_format, *options, disk, target]
    run.stream(argv, on_line=_log_progress)


def _log_progress(line: str) -> None:
    """Logs the percentage in a line of `qemu-img convert -p`."""
    if match := _PERCENT.search(line):
        log.now(f"{float(match[1]):.0f} %")


def virtual_bytes(disk: Path) -> int:
    """The size of the disk in a qcow2 that kimbox wrote, as a guest sees it, in bytes."""
    with disk.open("rb") as file:
        return int.from_bytes(file.read(32)[24:], "big")


def write_tar(
    target: Path,
    members: Mapping[str, bytes],
    disks: Mapping[str, Path],
    compression: Compression = Compression.NONE,
) -> None:
    """Writes a new tar archive with small members, then files, in the given order, and syncs it."""
    total_bytes = sum(path.stat().st_size for path in disks.values()) or 1

    def log_bytes(done_bytes: int) -> None:
        log.now(f"compressing: {min(100, done_bytes * 100 // total_bytes)} %")

    with (
        target.open("xb") as file,
        _compressing(file, compression, log_bytes) as out,
        tarfile.TarFile(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, copybufsize=CHUNK_BYTES) as archive,
    ):
        for name, data in members.items():
            archive.addfile(_member(name, len(data)), io.BytesIO(data))
        for name, path in disks.items():
            with path.open("rb") as disk:
                archive.addfile(_member(name, path.stat().st_size), disk)
    sync_file(target)


def _compressing(
    file: IO[bytes], compression: Compression, on_bytes: Callable[[int], None]
) -> contextlib.AbstractContextManager[IO[bytes]]:
    """A file that compresses its content into `file`; `file` itself if it is not to be compressed."""
    if compression is Compression.NONE:
        return contextlib.nullcontext(file)
    return cast("IO[bytes]", compressor.Writer(file, compression, on_bytes))


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    """The header of a member, without owner, times or other data of this host."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size_bytes, EPOCH_S, 0o644
    return member
