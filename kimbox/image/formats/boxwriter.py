"""Writes Vagrant's .box archives for libvirt from any disk that QEMU reads, and what other formats need for it.

A .box for libvirt is a tar archive with three members that vagrant-libvirt looks for: metadata.json (provider, format,
size in whole GiB), Vagrantfile and box.img. Vagrant unpacks it with bsdtar(1), which knows xz. The disk inside is not
compressed: the whole is smaller so, and a guest reads it faster. Whatever else is in it, Vagrant keeps beside the disk.

Equal disks give equal bytes: members have a fixed order, owner and time, and qemu-img writes clusters in their order.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kimbox import run
from kimbox.errors import StateError
from kimbox.files import CHUNK_BYTES, remove_tree, sha256_file, sync_file, sync_folder
from kimbox.image.formats import sums, xz
from kimbox.image.inputs.recipe import EPOCH_S
from kimbox.log import log
from kimbox.render.vagrantfile import ruby_literal

#: Compressed clusters of this size are a twentieth smaller than those of QEMU's default, and as quick to read.
CLUSTER = "256k"

#: How qemu-img writes a qcow2, and a compressed one. In order: with -W it would be quicker, and other bytes every time.
PLAIN = ("-O", "qcow2", "-m", "16")
QCOW2 = (*PLAIN, "-c", "-o", f"compression_type=zstd,cluster_size={CLUSTER}")

#: Makes the signature of a checksum file.
Sign = Callable[[bytes], bytes]

_GIB = 1 << 30
_PERCENT = re.compile(r"\((\d+\.\d+)/100%\)")

#: A box that nobody rendered a Vagrantfile for. Its key is made where Vagrant keeps the box, at first use. What
#: `kimbox render` wrote, which Vagrant has read before this one, brings its own: of two keys that it is told the guest
#: takes the first, and Vagrant puts those of the box there.
_VAGRANTFILE = """\
rendered = !$kimbox_key.nil?
key = $kimbox_key || File.expand_path('id_ed25519', __dir__)
unless File.exist?(key)
  made = system('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-C', 'kimbox', '-f', key)
  raise 'ssh-keygen could not make the key of the box: is it installed?' unless made
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
    files: Mapping[str, bytes] | None = None,
    sign: Sign | None = None,
    compress: bool = True,
) -> None:
    """Makes the .box `target` from a `raw` or `qcow2` disk, which nobody may write meanwhile.

    `guest` is Vagrant's word for the distribution, `user` the account that logs in; `files` go in, too, by their names.
    The checksums of all that is in it go with it, and their signature where `sign` makes one. One that does not leave
    this host need not be compressed.
    `target` appears whole or not at all. Raises StateError if it is there already or being made, CommandError if the
    disk cannot be read.
    """
    with making(target) as work:
        image = work / "box.img"
        convert(disk, image_format, image, PLAIN)
        size = -(-virtual_bytes(image) // _GIB)
        members = {
            "metadata.json": json_bytes({"provider": "libvirt", "format": "qcow2", "virtual_size": size}),
            "Vagrantfile": vagrantfile(guest, user),
            **(files or {}),
        }
        disks = {"box.img": image}
        write_tar(work / target.name, with_sums(members, disks, sign), disks, compress=compress)


def with_sums(members: Mapping[str, bytes], disks: Mapping[str, Path], sign: Sign | None) -> dict[str, bytes]:
    """The members of an archive, and with them the checksums of all of them and of the disks."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    digests |= {name: sha256_file(path).removeprefix("sha256:") for name, path in disks.items()}
    text = sums.text(digests)
    return {**members, sums.NAME: text, **({sums.SIGNATURE_NAME: sign(text)} if sign else {})}


def vagrantfile(guest: str, user: str) -> bytes:
    """What a box tells Vagrant of itself; a project's own Vagrantfile has the last word."""
    return _VAGRANTFILE.replace("GUEST", ruby_literal(guest)).replace("USER", ruby_literal(user)).encode()


def json_bytes(value: object) -> bytes:
    """A value as JSON, the same bytes for equal values."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def convert(disk: Path, image_format: str, target: Path, options: tuple[str, ...]) -> None:
    """Has qemu-img make `target` from a disk; says how far it is. Raises CommandError if the disk cannot be read."""
    argv: list[str | Path] = ["qemu-img", "convert", "-p", "-f", image_format, *options, disk, target]
    run.stream(argv, on_line=_tell)


def _tell(line: str) -> None:
    if found := _PERCENT.search(line):
        log.now(f"{float(found[1]):.0f} %")


def virtual_bytes(disk: Path) -> int:
    """The size of a qcow2 as the guest sees it; of one that kimbox made."""
    with disk.open("rb") as file:
        return int.from_bytes(file.read(32)[24:], "big")


def write_tar(target: Path, members: Mapping[str, bytes], disks: Mapping[str, Path], *, compress: bool = False) -> None:
    """Writes small members, then files, in the order given, to a new tar archive; it is on disk then."""
    total = sum(path.stat().st_size for path in disks.values()) or 1

    def tell(done: int) -> None:
        log.now(f"compressing: {min(100, done * 100 // total)} %")

    with (
        target.open("xb") as file,
        xz.Writer(file, tell) if compress else contextlib.nullcontext(file) as out,
        tarfile.TarFile(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, copybufsize=CHUNK_BYTES) as archive,
    ):
        for name, data in members.items():
            archive.addfile(_member(name, len(data)), io.BytesIO(data))
        for name, path in disks.items():
            with path.open("rb") as disk:
                archive.addfile(_member(name, path.stat().st_size), disk)
    sync_file(target)


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    """A member that tells nothing of this host."""
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size_bytes, EPOCH_S, 0o644
    return member


@contextlib.contextmanager
def making(target: Path) -> Iterator[Path]:
    """A private folder beside `target` to make it in, under its own name; what is there at the end becomes `target`.

    Nothing is overwritten. What a kimbox that was killed left is removed by the next. Raises StateError if `target` is
    there, or another kimbox makes it.
    """
    refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.tmp")
    work.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink == 0:  # the other one has just finished
                raise BlockingIOError
        except BlockingIOError:
            raise StateError(f"another kimbox is making {target}", hint="wait for it") from None
        for left in list(work.iterdir()):
            left.unlink()
        try:
            yield work
            _place(work / target.name, target)
        finally:
            remove_tree(work)
    finally:
        os.close(handle)


def refuse_existing(target: Path) -> None:
    """Raises StateError if there is something at `target`."""
    if os.path.lexists(target):
        raise StateError(f"{target} is there already", hint="remove it, or choose another place with --output")


def _place(made: Path, target: Path) -> None:
    """Gives a finished file its name, unless something has it by now."""
    try:
        os.link(made, target)
    except FileExistsError:
        refuse_existing(target)
        raise
    except OSError:  # a file system without hard links
        refuse_existing(target)
        made.rename(target)
    sync_folder(target.parent)
