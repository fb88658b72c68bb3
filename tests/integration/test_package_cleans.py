"""A package of a halted machine has no traces of that machine, not its boot mode, and no damage."""

from __future__ import annotations

from pathlib import Path

import diskreads
import madedisk
import pytest
import tinyimage
import tinypackage
from clirun import Kimbox, error
from clirun import kimbox as kimbox
from clirun import world as world
from tinypackage import Made, image_of, machine_of

from kimbox import run
from kimbox.image.disk import grubenv as grub
from kimbox.image.disk import rawdisk
from kimbox.image.disk.ext4 import directories
from kimbox.image.disk.ext4.directories import shown
from kimbox.machine.folder import Machine

pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")

box, made = tinypackage.box, tinypackage.made  # fixtures

#: Files of one machine that no other machine may get.
OF_ALL = (
    "/etc/kimbox/box.env", "/etc/kimbox/box.json", "/etc/resolv.conf", "/etc/ssh/ssh_host_ed25519_key",
    "/etc/ssh/ssh_host_rsa_key.pub", "/tmp/left", "/var/cache/apt/pkgcache.bin", "/var/cache/apt/archives/x.deb",
    "/var/cache/ldconfig/aux-cache", "/var/crash/core", "/var/lib/apt/lists/x", "/var/lib/dbus/machine-id",
    "/var/lib/dhcp/x.leases", "/var/lib/kimbox/done", "/var/lib/systemd/random-seed",
    "/var/lib/systemd/coredump/core", "/var/lib/systemd/credential.secret", "/var/lib/systemd/timers/stamp-x",
    "/var/log/x/y", "/var/tmp/a/b",
)  # fmt: skip

#: Files of a person.
OF_ONE = (
    ".aws/credentials", ".bash_history", ".cache/pip/x", ".docker/config.json", ".git-credentials",
    ".gnupg/secring.gpg", ".lesshst", ".netrc", ".python_history", ".ssh/authorized_keys", ".ssh/id_ed25519",
    ".sudo_as_admin_successful", ".viminfo", ".wget-hsts",
)  # fmt: skip

TRACES = sorted([*OF_ALL, *(f"{home}/{name}" for home in ("/root", "/home/user") for name in OF_ONE)])


def written(paths: list[str], there: set[str]) -> str:
    """A debugfs script that writes secrets to these paths, and creates folders that are not in `there`."""
    made, lines = set(there), []
    for path in paths:
        for parent in reversed([str(p) for p in Path(path).parents]):
            if parent not in made:
                lines.append(f"mkdir {parent}")
                made.add(parent)
        lines.append(f"write secret {path}")
    return "".join(f"{line}\n" for line in lines)


def test_no_trace_of_the_machine_stays(made: Made, box: Path) -> None:
    """Each file is removed and listed. Files with the host name are those of the image again."""
    image = image_of(box)
    there = {
        "/",
        *(shown(entry.path) for entry in tinypackage.everything(image.disk).values() if entry.inode.is_folder),
    }
    script = written(TRACES, there) + "".join(
        f"rm {path}\nwrite secret {path}\n" for path in ("/etc/hosts", "/etc/hostname")
    )
    machine_of(box, image, script)
    cleaned = made("--format", "raw")["cleaned"]
    assert [] == sorted({*TRACES, "/etc/hosts", "/etc/hostname"} - set(cleaned))
    after = tinypackage.everything(box / "tiny.raw")
    assert [] == [path for path in TRACES if path.encode() in after]
    for path in (b"/etc/hosts", b"/etc/hostname"):
        assert tinypackage.content(image.disk, path) == tinypackage.content(box / "tiny.raw", path) != b""
    assert b"SECRET" not in (box / "tiny.raw").read_bytes()


def changed(machine: Machine, script: str, *, boot: bool = False) -> None:
    """Runs a debugfs script on the root of a machine's disk, or on its /boot."""
    raw = machine.folder / "raw"
    run.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", machine.disk, raw])
    at = madedisk.places_of(raw)
    device = f"raw?offset={(at.boot if boot else at.root)[0]}"
    result = run.run(["debugfs", "-w", "-f", "-", device], input=script, cwd=machine.folder)
    assert "rror" not in result.stderr
    run.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, machine.disk])
    raw.unlink()


def grubenv(disk: Path) -> bytes:
    """GRUB's environment on a raw disk."""
    with rawdisk.opened(disk) as view:
        return view.read(grub.place(view.boot), grub.BLOCK_BYTES)


def test_the_boot_mode_is_that_of_the_image(made: Made, box: Path) -> None:
    """The next boot of the machine would have been a resnap."""
    image = image_of(box)
    machine = machine_of(box, image, "")
    (machine.folder / "environment").write_bytes(b"# GRUB Environment Block\nsaved_entry=resnap\n".ljust(1024, b"#"))
    changed(machine, "rm /grub/grubenv\nwrite environment /grub/grubenv\n", boot=True)
    made("--format", "raw")
    assert b"saved_entry=keep" in grubenv(box / "tiny.raw")
    assert grubenv(image.disk) == grubenv(box / "tiny.raw")


#: Installs the kernel "new" as a snapshot does, and makes the initramfs of the root's kernel "old" again.
KERNELS = """
mkdir linux-old.1
write kernel linux-old.1/vmlinuz
write kernel linux-old.1/initrd.img
ln linux-old.1/vmlinuz vmlinuz-old
sif linux-old.1/vmlinuz links_count 2
write kernel initrd.img-old
symlink linux linux-old.1
mkdir linux-new.2
write kernel linux-new.2/vmlinuz
write kernel vmlinuz-new
write kernel initrd.img-new.new
symlink linux.keep linux-new.2
write kernel memtest.bin
"""


@pytest.mark.parametrize("has_modules", [True, False])
def test_kernels_of_the_snapshot_are_removed(made: Made, box: Path, has_modules: bool) -> None:
    """The packaged box has an empty snapshot, and starts the kernel of its root. Files of others stay.

    If the root has no modules of its kernel, /boot is not as kimbox builds it, and nothing is removed.
    """
    modules = "old" if has_modules else "other"
    folders = ("/usr", "/usr/lib", "/usr/lib/modules", f"/usr/lib/modules/{modules}")
    machine = machine_of(box, image_of(box), "".join(f"mkdir {folder}\n" for folder in folders))
    (machine.folder / "kernel").write_text("SECRET of this machine\n")
    changed(machine, KERNELS, boot=True)
    before = boot_names(made("--format", "raw", "--image", "-o", "image") and box / "image/tiny.raw")
    cleaned = made("--format", "raw")["cleaned"]
    gone = {"initrd.img-old", "linux-new.2", "linux-new.2/vmlinuz", "vmlinuz-new", "initrd.img-new.new", "linux.keep"}
    after = boot_names(box / "tiny.raw") - before
    assert (gone if has_modules else set()) == {n.removeprefix("/boot/") for n in cleaned if n.startswith("/boot/")}
    left = {"linux", "linux-old.1", "linux-old.1/vmlinuz", "linux-old.1/initrd.img", "vmlinuz-old", "memtest.bin"}
    assert (left if has_modules else left | gone) == after
    at = madedisk.places_of(box / "tiny.raw")
    run.run(["e2fsck", "-f", "-n", f"tiny.raw?offset={at.boot[0]}"], cwd=box)


def boot_names(disk: Path) -> set[str]:
    """The paths in /boot of a raw disk."""
    with rawdisk.opened(disk) as view:
        return {shown(entry.path).removeprefix("/") for entry in directories.walk(view.boot.file_system)}


@pytest.mark.parametrize("boot", [True, False])
def test_what_e2fsck_repairs_by_itself_is_repaired(made: Made, box: Path, boot: bool) -> None:
    """A machine that lost its power leaves wrong counts in the superblock."""
    machine = machine_of(box, image_of(box), "write mine /etc/changed")
    changed(machine, "set_super_value free_blocks_count 7\nset_super_value state 0\n", boot=boot)
    made("--format", "raw")
    at = madedisk.places_of(box / "tiny.raw")
    for offset, _ in (at.boot, at.root):
        run.run(["e2fsck", "-f", "-n", f"tiny.raw?offset={offset}"], cwd=box)
    assert b"what the maintainer wants" in (box / "tiny.raw").read_bytes()


@pytest.mark.parametrize("boot", [True, False])
def test_a_damaged_file_system_is_refused(made: Made, kimbox: Kimbox, box: Path, boot: bool) -> None:
    """A disk that `e2fsck -p` cannot repair is not packaged. The disk of the machine does not change."""
    machine = machine_of(box, image_of(box), "")
    changed(machine, f"clri {'/grub' if boot else '/etc'}\n", boot=boot)
    before = machine.disk.read_bytes()
    code, out, _ = kimbox("--json", "package", "--format", "raw")
    damaged = error(out, "package")
    assert (1, "disk-damaged", "/boot" if boot else "root") == (code, damaged["code"], damaged["fields"]["name"])
    assert f"the file system of {'/boot' if boot else 'root'} is damaged" in damaged["message"], damaged
    assert "e2fsck" in damaged["hint"]
    assert not (box / "tiny.raw").exists()
    assert before == machine.disk.read_bytes()


def test_each_disk_is_parsed_once(made: Made, box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partition table and LVM metadata: of the machine's disk, of its image, and of the copy before it gets the image's
    LVM metadata, after it, and when it is finished; of the image again, to find the changes. An image alone is parsed
    once.
    """
    machine_of(box, image_of(box), "")
    reads = diskreads.count(monkeypatch)
    made("--format", "raw", "--format", "ova")
    assert (6, 6) == (reads.tables, reads.groups)
    made("--format", "raw", "--format", "ova", "--image", "-o", "image")
    assert (7, 7) == (reads.tables, reads.groups)
