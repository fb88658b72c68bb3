"""The end of the initramfs: it starts the root only with a kernel that has its modules there."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import makebox
import pytest

from kimbox import paths, run
from kimbox.render.guestfiles import fstab
from kimbox.spec.layout import plan

SCRIPT = paths.provisioners_dir() / "boot/root/etc/initramfs-tools/scripts/local-bottom/kimbox"

#: The running kernel.
RUNNING = "6.12.3"

#: Stands for programs of the initramfs. `chroot` is link-kernel and grub-editenv in the root.
PROGRAM = '#!/bin/sh\necho "${0##*/} $*" >>"$CALLS"\n'
CHROOT = PROGRAM + 'case $* in *link-kernel*) exit "$LINKED" ;; esac\n'

#: Stands for /scripts/functions and /scripts/kimbox.
FUNCTIONS = 'read_fstab_entry() { return 1; }\ndie() { echo "die $*" >>"$CALLS"; exit 1; }\n'


@attrs.frozen
class Initramfs:
    """A folder with the files that the script reads."""

    folder: Path

    @property
    def boot(self) -> Path:
        return self.folder / "root/boot"

    def run(self, mode: str, *, linked: int = 0) -> list[str]:
        """Runs the script. `linked`: the exit status of link-kernel. Returns the programs that ran, with arguments."""
        text = SCRIPT.read_text()
        for name in ("/scripts/", "/proc/", "/run/kimbox/", "/dev/kmsg"):
            text = text.replace(f" {name}", f" {self.folder}{name}").replace(f"<{name}", f"<{self.folder}{name}")
            text = text.replace(f">{name}", f">>{self.folder}{name}")
        (self.folder / "run/kimbox/mode").write_text(f"{mode}\n")
        calls = self.folder / "calls"
        calls.write_text("")
        env = {"PATH": f"{self.folder}/tools:{os.environ['PATH']}", "rootmnt": str(self.folder / "root")}
        env |= {"CALLS": str(calls), "LINKED": str(linked)}
        run.run(["sh", "-c", text], env=os.environ | env, check=False)
        ran = [line.replace(str(self.folder), "") for line in calls.read_text().splitlines()]
        return [line for line in ran if not line.startswith(("mount -o remount", "sleep"))]

    def remounts(self, fstab: str) -> list[str]:
        """Runs the script with this /etc/fstab of the root. Returns how it remounts the root."""
        (self.folder / "root/etc").mkdir(exist_ok=True)
        (self.folder / "root/etc/fstab").write_text(fstab)
        self.remounted.unlink(missing_ok=True)
        self.run("keep")
        return [
            line for line in (self.folder / "calls").read_text().splitlines() if line.startswith("mount -o remount")
        ]

    @property
    def remounted(self) -> Path:
        """The mark for systemd, which then remounts nothing."""
        return self.folder / "run/kimbox/remounted"


@pytest.fixture
def initramfs(tmp_path: Path) -> Initramfs:
    """A boot of the kernel `RUNNING`, which has its modules on the root."""
    for name in ("scripts", "proc", "run/kimbox", "dev", "tools", f"root/lib/modules/{RUNNING}", "root/boot/linux-x.1"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("functions", "kimbox"):
        (tmp_path / "scripts" / name).write_text(FUNCTIONS)
    for tool in ("mount", "umount", "chroot", "reboot", "sync", "sleep", "fsck"):
        (tmp_path / "tools" / tool).write_text(CHROOT if tool == "chroot" else PROGRAM)
        (tmp_path / "tools" / tool).chmod(0o755)
    (tmp_path / "proc/cmdline").write_text("root=/dev/mapper/a-b volgroup=a\n")
    (tmp_path / "proc/version").write_text(f"Linux version {RUNNING} (someone)\n")
    for name in ("modules.builtin", "modules.dep"):
        (tmp_path / "root/lib/modules" / RUNNING / name).touch()
    boot = tmp_path / "root/boot"
    for name in ("vmlinuz", "initrd.img"):
        (boot / f"{name}-{RUNNING}").write_text(name)
        (boot / "linux-x.1" / name).hardlink_to(boot / f"{name}-{RUNNING}")
    for name in ("linux", "linux.keep"):
        (boot / name).symlink_to("linux-x.1")
    return Initramfs(tmp_path)


def test_the_root_gets_its_options_of_fstab(initramfs: Initramfs) -> None:
    """Those of kimbox's own fstab are set by the initramfs, so that systemd starts no program for them."""
    (remount,) = initramfs.remounts(fstab(plan(makebox.make_box(initramfs.folder).disk)))
    assert f"mount -o remount,rw,noatime,errors=remount-ro none {initramfs.folder}/root" == remount
    assert initramfs.remounted.exists()


@pytest.mark.parametrize(
    "line",
    [
        "/dev/root / ext4 noatime,data=journal 0 0",
        "/dev/root / ext4 * 0 0",
        "proc /proc proc hidepid=2 0 0",
        "x /run/y z z",
    ],
)
def test_other_options_are_left_to_systemd(initramfs: Initramfs, line: str) -> None:
    """The root is writable, and systemd does the rest, as in other systems."""
    assert [f"mount -o remount,rw none {initramfs.folder}/root"] == initramfs.remounts(f"# a comment\n\n{line}\n")
    assert not initramfs.remounted.exists()


@pytest.mark.parametrize("mode", ["resnap", "keep", "maintain"])
def test_a_usual_boot_runs_no_program(initramfs: Initramfs, mode: str) -> None:
    assert [] == initramfs.run(mode)


@pytest.mark.parametrize("mode", ["resnap", "keep", "maintain"])
@pytest.mark.parametrize("missing", ["modules.builtin", "modules.dep"])
def test_a_kernel_without_modules_is_replaced(initramfs: Initramfs, mode: str, missing: str) -> None:
    """The box restarts in the same mode, also if the mode was for this boot alone."""
    (initramfs.folder / "root/lib/modules" / RUNNING / missing).unlink()
    assert [
        f"chroot /root /usr/lib/kimbox/link-kernel --booted {mode} {RUNNING}",
        f"chroot /root grub-editenv /boot/grub/grubenv set next_entry={mode}",
        "sync ", "umount /root/boot", "umount /root/persistent", "reboot -f",
    ] == initramfs.run(mode, linked=10)[:6]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "died"), [("resnap", "kimbox up --boot maintain"), ("keep", "kimbox up --boot resnap"), ("maintain", "")]
)
def test_no_kernel_has_its_modules(initramfs: Initramfs, mode: str, died: str) -> None:
    """The box reports the command that helps. In maintain mode it boots, so that a kernel can be installed."""
    (initramfs.folder / "root/lib/modules" / RUNNING / "modules.dep").unlink()
    ran = initramfs.run(mode, linked=1)
    deaths = [line for line in ran if line.startswith("die ")]
    assert int(bool(died)) == len(deaths)
    assert all(died in line for line in deaths)
    assert "reboot -f" not in ran


@pytest.mark.parametrize("left", ["vmlinuz-9", "initrd.img-6.12.3.new", "another kernel", "another file"])
def test_files_of_an_earlier_snapshot_are_removed_with_the_next_one(initramfs: Initramfs, left: str) -> None:
    """A boot of the same snapshot does not touch them."""
    if left == "another kernel":
        (initramfs.boot / "linux-y.1").mkdir()
        for name in ("vmlinuz", "initrd.img"):
            (initramfs.boot / "linux-y.1" / name).touch()
        (initramfs.boot / "linux.keep").unlink()
        (initramfs.boot / "linux.keep").symlink_to("linux-y.1")
    elif left == "another file":
        (initramfs.boot / f"initrd.img-{RUNNING}").unlink()
    else:
        (initramfs.boot / left).touch()
    assert [f"chroot /root /usr/lib/kimbox/link-kernel --booted new {RUNNING}"] == initramfs.run("resnap", linked=1)
    assert [] == initramfs.run("keep")
    assert [] == initramfs.run("maintain")


def test_without_a_link_the_snapshot_is_new(initramfs: Initramfs) -> None:
    """A package contains no kernel of a snapshot. Backups of an initramfs are no reason to do anything."""
    (initramfs.boot / f"initrd.img-{RUNNING}.bak").touch()
    assert [] == initramfs.run("resnap")
    (initramfs.boot / "linux.keep").unlink()
    assert [f"chroot /root /usr/lib/kimbox/link-kernel --booted new {RUNNING}"] == initramfs.run("keep")


def test_a_boot_partition_of_others_is_not_touched(initramfs: Initramfs) -> None:
    (initramfs.boot / "linux").unlink()
    (initramfs.folder / "root/lib/modules" / RUNNING / "modules.dep").unlink()
    assert [] == initramfs.run("keep")
