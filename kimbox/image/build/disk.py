"""Writes a bootable disk from a root file system in a folder: partition table, /boot, LVM2 volumes, GRUB.

mke2fs(8) writes each file system directly to its offset in the sparse disk file; kimbox writes all other data. kimbox
runs the mke2fs of the new root: the lock pins it like every package, so that the bytes do not depend on the version of
the host.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import attrs

from kimbox import run
from kimbox.image import namespace
from kimbox.image.build.rootfs import environment
from kimbox.image.disk import debugfs, sectors
from kimbox.image.disk.derived import derived_uuid
from kimbox.image.disk.lvm import writer
from kimbox.image.inputs import provisioners
from kimbox.image.inputs.recipe import EPOCH_S, Recipe
from kimbox.render.guestfiles import BOOT_LABEL
from kimbox.spec.layout import Extent

#: Block size of the file systems, in bytes.
BLOCK_BYTES = 4096

#: Path of the dynamic loader in a root; the libraries are in the same folder (amd64, merged /usr).
LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"

#: Inode of the root folder, and the first inode that ext4 does not reserve.
ROOT_INODE, FIRST_INODE = 2, 11

#: From this version on, mke2fs limits the times of files to SOURCE_DATE_EPOCH. Older versions use the host's clock.
CLAMPING = (1, 47, 1)

#: mke2fs option that disables two features of ext4: GRUB or older versions of e2fsck do not support them.
FEATURES = "^metadata_csum_seed,^orphan_file"

#: Splits the tree of mmdebstrap, because /boot and /persistent become separate file systems. Prints the size of the
#: root's files in bytes.
SPLIT = """
set -eu
rm -rf root/boot.img root/dev/* root/proc/* root/sys/* root/run/* root/tmp/*
mv root/boot boot
mkdir root/boot persistent
mkdir -p root/persistent
tar --extract --file persistent.tar --directory persistent --same-permissions --no-same-owner
chmod 0755 root/boot root/persistent persistent
find root boot persistent -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
du --summarize --block-size=1 --apparent-size root | cut -f1
"""

_VERSION = re.compile(r"mke2fs (\d+)\.(\d+)\.(\d+)")
_INODE_COUNT = re.compile(r"^Inode count: +(\d+)", re.MULTILINE)
_FREE_INODES = re.compile(r"^  Free inodes: (.*)$", re.MULTILINE)
_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


@attrs.frozen
class FileSystem:
    """An ext4 file system with the content of a folder, and its place on the disk."""

    label: str
    folder: Path
    place: Extent


def assemble(recipe: Recipe, work: Path, disk: Path) -> int:
    """Writes the disk of a recipe to the new file `disk`, from the tree in `work`/root. Changes that tree.

    Returns the size of the root file system's files, in bytes. Raises CommandError if a file system does not fit into
    its volume, and ImageError if the files of GRUB do not have the expected form.
    """
    layout = recipe.layout
    provisioners.write_tar(list(recipe.persistent), work / "persistent.tar", EPOCH_S)
    boot_img = _read_and_remove(work / "root/boot/grub/boot.img")  # this changes the times of folders; SPLIT sets them
    core_img = _read_and_remove(work / "root/boot/grub/core.img")
    unpacked_bytes = int(namespace.call(["sh", "-c", SPLIT], env=environment(), cwd=work).stdout.split()[-1])
    tools = Tools.of(work / "root")
    with disk.open("xb") as file:
        file.truncate(layout.size_bytes)
    for system in (
        FileSystem(BOOT_LABEL, work / "boot", layout.boot),
        FileSystem("kimbox-root", work / "root", layout.root.place),
        FileSystem("kimbox-persist", work / "persistent", layout.persistent.place),
    ):
        _make_ext4(tools, system, disk, recipe.key)
    seed = recipe.key
    with disk.open("r+b") as file:
        for offset, data in (
            (0, sectors.mbr(layout, seed, boot_img)),
            sectors.core_image(layout, core_img),
            *writer.pieces(layout, seed, EPOCH_S),
            *(sectors.swap_header(layout.swap, seed) if layout.swap else ()),
        ):
            file.seek(offset)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return unpacked_bytes


def _read_and_remove(path: Path) -> bytes:
    """Reads and removes a file that GRUB's tools wrote to the new root. The guest does not need it."""
    data = path.read_bytes()
    namespace.call(["rm", "--", path])
    return data


@attrs.frozen
class Tools:
    """The e2fsprogs of a new root, or of the host if the root does not contain them."""

    prefix: tuple[str | Path, ...]
    folder: Path | None

    @classmethod
    def of(cls, root: Path) -> Tools:
        """The programs of a root file system. They run with its loader and libraries, without chroot."""
        if not (root / LOADER).is_file() or not (root / "usr/sbin/mke2fs").is_file():
            return cls((), None)
        return cls((root / LOADER, "--library-path", (root / LOADER).parent), root / "usr/sbin")

    def call(self, program: str, *args: str | Path, **more: Any) -> run.Completed:
        """Runs a program in the namespaces of builds. Raises CommandError if it fails."""
        env = environment() | {"E2FSPROGS_FAKE_TIME": str(EPOCH_S)}
        if self.folder is None:
            return namespace.call([program, *args], env=env, **more)
        env["MKE2FS_CONFIG"] = os.fspath(self.folder.parents[1] / "etc/mke2fs.conf")
        return namespace.call([*self.prefix, self.folder / program, *args], env=env, **more)

    def version(self) -> tuple[int, ...]:
        """The version of mke2fs; empty if its output has an unknown form."""
        match = _VERSION.search(self.call("mke2fs", "-V").stderr)
        return tuple(map(int, match.groups())) if match else ()


def _make_ext4(tools: Tools, system: FileSystem, disk: Path, seed: str) -> None:
    """Writes a file system to its place on the disk. Equal folders and seeds result in equal bytes on every host."""
    extended = [
        f"offset={system.place.offset_bytes}",
        f"hash_seed={derived_uuid(f'{seed}/{system.label}/hash')}",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
    ]
    tools.call(
        "mke2fs", "-q", "-F", "-t", "ext4",
        "-b", str(BLOCK_BYTES), "-I", "256", "-m", "1",
        "-O", FEATURES,
        "-E", ",".join(extended),
        "-U", str(derived_uuid(f"{seed}/{system.label}")),
        "-L", system.label,
        "-d", system.folder,
        disk,
        f"{system.place.size_bytes // 1024}k",
    )  # fmt: skip
    if tools.version() < CLAMPING:
        _set_times(tools, f"{disk}?offset={system.place.offset_bytes}")


def _set_times(tools: Tools, device: str) -> None:
    """Sets the times of change and access of every used inode. An old mke2fs copies these times from the host.

    `device`: a file with `?offset=`, a notation of e2fsprogs.
    """
    output = tools.call("dumpe2fs", device).stdout
    inodes = int(_INODE_COUNT.search(output)[1])  # type: ignore[index]
    free = _FREE_INODES.findall(output)
    is_used = bytearray(b"\1") * (inodes + 1)
    for first, last in _NUMBERS.findall(" ".join(free)):
        end = int(last or first) + 1
        is_used[int(first) : end] = bytes(end - int(first))
    used = (number for number in (ROOT_INODE, *range(FIRST_INODE, inodes + 1)) if is_used[number])
    debugfs.set_times(tools.call, device, used, EPOCH_S)
