"""A cloud image as a distribution makes it: Debian with cloud-init and sshd, and nothing of kimbox.

The packages are those of a lock of kimbox, from its cache. There is one partition with the whole system, GRUB for BIOS,
and no account but root, whose password is locked.
"""

from __future__ import annotations

import struct
from pathlib import Path

import attrs

from kimbox import run
from kimbox.image import namespace
from kimbox.image.build import rootfs
from kimbox.image.disk import sectors
from kimbox.image.inputs.provisioners import GuestFile
from kimbox.lock.apt import cache
from kimbox.project.plan import make_plan
from kimbox.project.project import Project
from kimbox.spec.layout import SECTOR_BYTES
from kimbox.spec.load import load_box
from kimbox.spec.model import PackageImage

#: Packages beside those of each image of kimbox, which has sshd, git, sudo, a kernel and GRUB.
PACKAGES = ("cloud-init", "cloud-guest-utils", "iproute2")

#: Size of the disk, and offset of its partition.
SIZE_BYTES, START_BYTES = 2 << 30, 1 << 20

#: `norandmaps`: emulation uses translated code again only at the same address.
GRUB_CFG = """\
search --no-floppy --label cloudroot --set root
linux /vmlinuz root=LABEL=cloudroot ro console=ttyS0 norandmaps
initrd /initrd.img
boot
"""

#: What the packages of Debian's cloud images set up.
BUILD = """\
#!/bin/sh
set -eu
mkdir -p /boot/grub
grub-mkimage --format=i386-pc --output=/boot/grub/core.img --prefix='(hd0,msdos1)/boot/grub' \\
    biosdisk part_msdos ext2 normal linux configfile search search_label echo boot
cp /usr/lib/grub/i386-pc/boot.img /boot/grub/boot.img
passwd --quiet --lock root
echo localhost >/etc/hostname
printf '127.0.0.1 localhost\\n' >/etc/hosts
systemctl --quiet enable systemd-networkd.service ssh.service
: >/etc/machine-id
rm -f /etc/ssh/ssh_host_* /etc/resolv.conf
"""

FILES = (
    GuestFile("usr/lib/kimbox/build.d/00-cloud", BUILD.encode(), 0o755),
    GuestFile("usr/lib/kimbox/enabled-units", b"ssh.service\n"),
    GuestFile("usr/lib/kimbox/sources.list", b""),
    GuestFile("boot/grub/grub.cfg", GRUB_CFG.encode()),
    GuestFile("etc/fstab", b"LABEL=cloudroot / ext4 defaults 0 1\n"),
    GuestFile("etc/initramfs-tools/conf.d/small", b"MODULES=list\nCOMPRESS=lz4\n"),
    GuestFile("etc/initramfs-tools/modules", b"virtio_pci\nvirtio_blk\next4\n"),
    GuestFile("etc/cloud/cloud.cfg.d/90_source.cfg", b"datasource_list: [NoCloud, ConfigDrive, OpenStack, None]\n"),
)

#: Makes the root look like one with RPM packages, as far as Debian's programs can: the names of the system and of the
#: ssh server, bash as sh, and no package manager of Debian. `dnf` is a stand-in that puts git in its place, and notes
#: its arguments. cloud-init stays that of Debian, without its modules for apt.
LIKE_RPM = """\
set -eu
cd "$1"
printf 'NAME="Rocky Linux"\\nID=rocky\\nID_LIKE="rhel centos fedora"\\nVERSION_ID=9.5\\n' >usr/lib/os-release
printf 'cloud_config_modules: [locale, ntp, timezone, runcmd]\\n' >etc/cloud/cloud.cfg.d/95_modules.cfg
mkdir usr/lib/hidden
for name in apt apt-get apt-cache apt-config dpkg dpkg-deb dpkg-query git; do mv usr/bin/$name usr/lib/hidden/; done
ln -sf bash usr/bin/sh
mv usr/lib/systemd/system/ssh.service usr/lib/systemd/system/sshd.service
rm -f usr/lib/systemd/system/ssh*.socket etc/systemd/system/sshd.service etc/init.d/ssh
find etc/systemd/system -depth -name 'ssh.*' -exec rm -rf {} +
ln -s /usr/lib/systemd/system/sshd.service etc/systemd/system/multi-user.target.wants/sshd.service
printf '#!/bin/sh\\necho "$*" >/var/log/dnf.words\\nmv /usr/lib/hidden/git /usr/bin/git\\n' >usr/bin/dnf
chmod 0755 usr/bin/dnf
"""


def make(spec: Path, work: Path) -> Path:
    """Writes the image to the empty folder `work`, a qcow2. `spec`: of a box with PACKAGES."""
    plan = make_plan(Project(load_box(spec)))
    assert plan.recipe is not None
    assert isinstance(plan.box.image, PackageImage)
    cache.ensure(plan.box.image, plan.recipe.locked, offline=False)
    with (work / "build.log").open("w") as log:
        root = rootfs.build(attrs.evolve(plan.recipe, files=FILES), work, on_line=lambda line: None, log=log)
    namespace.call(["sh", "-c", "rmdir root/usr/lib/kimbox; rm -rf root/dev/* root/run/* root/tmp/*"], cwd=work)
    raw, image = work / "debian.raw", work / "debian.qcow2"
    _write(root, raw)
    run.run(["qemu-img", "convert", "-O", "qcow2", raw, image])
    raw.unlink()
    return image


def make_like_rpm(work: Path) -> Path:
    """Writes another image of the system in `work`, which `make` has filled: a raw disk, changed by LIKE_RPM."""
    namespace.call(["sh", "-c", LIKE_RPM, "sh", work / "root"])
    _write(work / "root", work / "rpm.raw")
    return work / "rpm.raw"


def _write(root: Path, disk: Path) -> None:
    """Writes a bootable disk with the files of a root."""
    boot_img, core_img = (Path(root, "boot/grub", name).read_bytes() for name in ("boot.img", "core.img"))
    with disk.open("xb") as file:
        file.truncate(SIZE_BYTES)
        file.write(_mbr(boot_img))
        file.seek(SECTOR_BYTES)
        file.write(core_img)
    extended = f"offset={START_BYTES},lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"
    options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^metadata_csum_seed,^orphan_file", "-L", "cloudroot"]
    size = f"{(SIZE_BYTES - START_BYTES) // 1024}k"
    namespace.call(["mke2fs", *options, "-E", extended, "-d", root, disk, size])


def _mbr(boot_img: bytes) -> bytes:
    """The first sector, with one partition. The core image of GRUB is in the sectors after it."""
    sector = bytearray(SECTOR_BYTES)
    sector[: sectors.BOOT_CODE_BYTES] = boot_img[: sectors.BOOT_CODE_BYTES]
    struct.pack_into("<Q", sector, sectors.GRUB_KERNEL_SECTOR, 1)
    sector[sectors.GRUB_BOOT_DRIVE] = 0xFF
    start, count = START_BYTES // SECTOR_BYTES, (SIZE_BYTES - START_BYTES) // SECTOR_BYTES
    place = (0x80, sectors.CHS_BEYOND, sectors.TYPE_LINUX, sectors.CHS_BEYOND, start, count)
    struct.pack_into("<B3sB3sII", sector, 446, *place)
    sector[510:512] = b"\x55\xaa"
    return bytes(sector)
