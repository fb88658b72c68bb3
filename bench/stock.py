"""A stock minimal system for comparison: the same packages as the box, with their default configuration.

It has one ext4 partition, a usual `linux` entry of GRUB, the default initramfs of initramfs-tools, systemd with all
units that the packages enable, DHCP by systemd-networkd, and sshd with its own host keys.
"""

from __future__ import annotations

from pathlib import Path

from kimbox.image import namespace
from kimbox.image.inputs.recipe import EPOCH_S, Recipe
from kimbox.lock.apt import sources as apt
from kimbox.run import run
from kimbox.spec.model import PackageImage

MIB = 1 << 20
DISK_BYTES = 3 << 30

CUSTOMIZE = r"""
set -eu
printf '[Match]\nName=en* eth*\n[Network]\nDHCP=ipv4\n' >"$1/etc/systemd/network/80-dhcp.network"
chroot "$1" systemctl -q enable systemd-networkd ssh
printf 'LABEL=stock / ext4 errors=remount-ro 0 1\n' >"$1/etc/fstab"
mkdir -p "$1/boot/grub"
chroot "$1" grub-mkimage --format=i386-pc --output=/boot/grub/core.img --prefix='(hd0,msdos1)/boot/grub' biosdisk \
	part_msdos ext2 fat normal linux configfile loadenv test echo serial terminal sleep ls cat search search_label
cp "$1/usr/lib/grub/i386-pc/boot.img" "$1/boot/grub/boot.img"
kernel=$(ls "$1/boot" | sed -n 's/^vmlinuz-//p' | sort -V | tail -n 1)
cat >"$1/boot/grub/grub.cfg" <<END
set timeout=0
menuentry stock {
  linux /boot/vmlinuz-$kernel root=LABEL=stock ro quiet console=tty0 console=ttyS0,115200
  initrd /boot/initrd.img-$kernel
}
END
"""


def build(recipe: Recipe, image: PackageImage, work: Path) -> Path:
    """Builds a disk with the distribution and packages of a recipe in `work`, unless it exists. Returns its path."""
    disk = work / "stock.raw"
    if disk.exists():
        return disk
    root = work / "stock-root"
    sources = work / "sources.list"
    apt_sources = apt.sources(recipe.distribution, recipe.suite, image.mirror)
    sources.write_text("\n".join(source.line() for source in apt_sources) + "\n")
    hook = work / "customize"
    hook.write_text("#!/bin/sh\n" + CUSTOMIZE)
    hook.chmod(0o755)
    install(recipe.suite, recipe.packages, root, sources, [f"--customize-hook={hook}"])
    boot_img, core_img = ((root / "boot/grub" / name).read_bytes() for name in ("boot.img", "core.img"))
    with disk.open("xb") as file:
        file.truncate(DISK_BYTES)
    size_kib = (DISK_BYTES - MIB) // 1024
    namespace.call(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "stock", "-E", f"offset={MIB},nodiscard", "-O", "^orphan_file",
         "-d", root, disk, f"{size_kib}k"],
    )  # fmt: skip
    run(
        ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk],
        input="label: dos\nstart=2048, type=83, bootable\n",
    )
    sector = bytearray(disk.open("rb").read(512))
    sector[:440] = boot_img[:440]
    sector[0x5C:0x64] = (1).to_bytes(8, "little")
    sector[0x64], sector[0x66:0x68] = 0xFF, b"\x90\x90"
    with disk.open("r+b") as file:
        file.write(bytes(sector) + core_img)
    namespace.remove(root)
    return disk


def install(suite: str, packages: tuple[str, ...], root: Path, sources: Path, extra: list[str]) -> None:
    """Runs mmdebstrap with the options that kimbox uses."""
    namespace.call(
        [
            "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory",
            f"--include={','.join(packages)}", "--aptopt=APT::Install-Recommends \"false\";",
            "--dpkgopt=force-unsafe-io",
            *extra, suite, root, sources,
        ],
        env={"SOURCE_DATE_EPOCH": str(EPOCH_S)},
    )  # fmt: skip
