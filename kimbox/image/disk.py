"""From a root file system in a folder to a bootable disk: /boot, the LVs and everything around them, written in place.

mke2fs(8) writes each file system straight to its offset in the sparse disk file; the rest is kimbox's own.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from kimbox.image import lvm2, namespace, provisioners, sectors
from kimbox.image.recipe import EPOCH_S, Recipe
from kimbox.image.rootfs import environment
from kimbox.render.guestfiles import BOOT_LABEL
from kimbox.spec.layout import Extent

BLOCK_BYTES = 4096

#: ext4 without the two features that GRUB or an older e2fsck does not know.
FEATURES = "^metadata_csum_seed,^orphan_file"

#: Splits the tree that mmdebstrap made: /boot and the content of /persistent go to file systems of their own.
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


@attrs.frozen
class FileSystem:
    """An ext4 file system to be made on the disk from a folder."""

    label: str
    folder: Path
    place: Extent


def assemble(recipe: Recipe, work: Path, disk: Path) -> int:
    """Writes the disk of a recipe from `work`/root. Returns the size of the root file system's files, in bytes.

    Raises CommandError if a file system does not fit into its volume, ImageError if GRUB is not as expected.
    """
    layout = recipe.layout
    provisioners.write_tar(list(recipe.persistent), work / "persistent.tar", EPOCH_S)
    unpacked = int(namespace.call(["sh", "-c", SPLIT], env=environment(), cwd=work).stdout.split()[-1])
    boot_img = _take(work, "boot/grub/boot.img")
    core_img = _take(work, "boot/grub/core.img")
    with disk.open("xb") as file:
        file.truncate(layout.size_bytes)
    for system in (
        FileSystem(BOOT_LABEL, work / "boot", layout.boot),
        FileSystem("kimbox-root", work / "root", layout.root.place),
        FileSystem("kimbox-persist", work / "persistent", layout.persistent.place),
    ):
        _make_ext4(system, disk, recipe.key)
    seed = recipe.key
    with disk.open("r+b") as file:
        for offset, data in (
            (0, sectors.mbr(layout, seed, boot_img)),
            sectors.core_image(layout, core_img),
            *lvm2.pieces(layout, seed, EPOCH_S),
            *(sectors.swap_header(layout.swap, seed) if layout.swap else ()),
        ):
            file.seek(offset)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return unpacked


def _take(work: Path, name: str) -> bytes:
    """Reads a file that GRUB's tools made in the new root; it is removed, as nothing reads it there."""
    path = work / name
    data = path.read_bytes()
    namespace.call(["rm", "--", path])
    return data


def _make_ext4(system: FileSystem, disk: Path, seed: str) -> None:
    extended = [
        f"offset={system.place.offset_bytes}",
        f"hash_seed={sectors.derived_uuid(f'{seed}/{system.label}/hash')}",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
    ]
    namespace.call(
        [
            "mke2fs", "-q", "-F", "-t", "ext4",
            "-b", str(BLOCK_BYTES), "-I", "256", "-m", "1",
            "-O", FEATURES,
            "-E", ",".join(extended),
            "-U", str(sectors.derived_uuid(f"{seed}/{system.label}")),
            "-L", system.label,
            "-d", system.folder,
            disk,
            f"{system.place.size_bytes // 1024}k",
        ],
        env=environment() | {"E2FSPROGS_FAKE_TIME": str(EPOCH_S)},
    )  # fmt: skip
