"""The script that chooses the kernels of GRUB's entries, on folders that stand for /boot and for the roots."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from kimbox import paths, run

SCRIPT = paths.provisioners_dir() / "boot/root/usr/lib/kimbox/link-kernel"
HOOKS = paths.provisioners_dir() / "boot/root/etc"

#: Programs with which the script changes /boot.
TOOLS = ("ln", "mv", "rm", "mkdir")

#: Stands for such a program, and kills the script instead of the change number $CUT.
KILLER = """#!/bin/sh
read -r count <"$COUNT"
echo $((count + 1)) >"$COUNT"
[ "$count" != "$CUT" ] || kill -KILL "$PPID"
exec /usr/bin/{tool} "$@"
"""

#: Content of a file of a kernel: its name, and the build of the kernel package.
OLD, NEW = "6.9.1", "6.12.3"


@attrs.define
class Disk:
    """/boot, the real root, and the snapshot in use. `mode` is that of the running system."""

    folder: Path
    mode: str = "keep"
    cut: int = 0

    @property
    def boot(self) -> Path:
        return self.folder / "boot"

    @property
    def used(self) -> Path:
        """The root in use."""
        return self.folder / ("root" if self.mode == "maintain" else "snapshot")

    def modules(self, version: str) -> Path:
        return self.used / "lib/modules" / version

    def unpack(self, version: str, build: str = "1") -> None:
        """Does what dpkg does with the package of a kernel: new files take the names of old ones."""
        for name in ("vmlinuz", "System.map", "config"):
            self.write(f"{name}-{version}", build)
        self.modules(version).mkdir(parents=True, exist_ok=True)
        (self.modules(version) / "modules.builtin").write_text(build)
        (self.modules(version) / "modules.dep").touch()

    def make_initramfs(self, version: str, build: str = "1") -> None:
        self.write(f"initrd.img-{version}", build)

    def install(self, version: str, build: str = "1") -> run.Completed:
        """Installs a kernel, as its package does."""
        self.unpack(version, build)
        self.make_initramfs(version, build)
        return self.link()

    def remove_files(self, version: str) -> None:
        """Does what dpkg and update-initramfs do when the package of a kernel is removed."""
        for file in self.boot.glob(f"*-{version}"):
            file.unlink()
        shutil.rmtree(self.modules(version) / "modules.builtin", ignore_errors=True)
        (self.modules(version) / "modules.builtin").unlink()

    def write(self, name: str, build: str) -> None:
        (self.boot / f"{name}.tmp").write_text(f"{name} {build}")
        (self.boot / f"{name}.tmp").rename(self.boot / name)

    def link(self, *args: str) -> run.Completed:
        """Runs the script on the root in use. With `cut`, kills it at that change."""
        (self.used / "run/kimbox").mkdir(parents=True, exist_ok=True)
        if self.mode == "build":
            (self.used / "run/kimbox/mode").unlink(missing_ok=True)
        else:
            (self.used / "run/kimbox/mode").write_text(f"{self.mode}\n")
        (self.used / "boot").unlink(missing_ok=True)
        (self.used / "boot").symlink_to(self.boot)
        count = self.folder / "count"
        count.write_text("1\n")
        env = {"KIMBOX_ROOT": str(self.used), "CUT": str(self.cut), "COUNT": str(count)}
        if self.cut:
            env["KIMBOX_PATH"] = str(self.folder / "tools")
        return run.run([SCRIPT, *args], env=os.environ | env, check=False)

    def new_snapshot(self) -> None:
        """Does what the script `resnap` does."""
        shutil.rmtree(self.folder / "snapshot")
        shutil.copytree(self.folder / "root", self.folder / "snapshot", symlinks=True)

    def started(self, mode: str) -> tuple[str, str]:
        """Version and build of the kernel that GRUB starts in a mode. Checks that the initramfs is of the same."""
        link = self.boot / ("linux.keep" if mode == "keep" else "linux")
        kernel, initramfs = ((link / name).read_text().split() for name in ("vmlinuz", "initrd.img"))
        version = kernel[0].removeprefix("vmlinuz-")
        assert initramfs == [f"initrd.img-{version}", kernel[1]]
        return version, kernel[1]

    def boots(self, mode: str) -> str:
        """Boots as GRUB and the initramfs do, and returns the version of the running kernel.

        Checks that its modules are on the root. A boot may restart once.
        """
        self.mode = mode
        if mode == "resnap":
            self.new_snapshot()
        for _ in range(2):
            version, _ = self.started(mode)
            fits = (self.modules(version) / "modules.builtin").exists()
            done = self.link("--booted", "new" if mode == "resnap" and fits else mode, version)
            if done.code != 10:
                break
        assert done.ok, done.stderr
        assert (self.modules(version) / "modules.builtin").exists()
        return version


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A box as kimbox builds it, with one kernel."""
    made = Disk(tmp_path, "maintain")
    made.boot.mkdir()
    made.unpack(OLD)
    made.make_initramfs(OLD)
    (tmp_path / "tools").mkdir()
    for tool in TOOLS:
        (tmp_path / "tools" / tool).write_text(KILLER.format(tool=tool))
        (tmp_path / "tools" / tool).chmod(0o755)
    shutil.copytree(tmp_path / "root", tmp_path / "snapshot")
    made.mode = "build"
    assert made.link().ok
    made.mode = "keep"
    return made


def names(disk: Disk) -> list[str]:
    return sorted(path.name for path in disk.boot.iterdir())


def test_a_new_box_starts_its_only_kernel(disk: Disk) -> None:
    """Both links have one folder, and the files of /boot take no space twice."""
    assert (OLD, "1") == disk.started("keep") == disk.started("resnap")
    assert (disk.boot / "linux").readlink() == (disk.boot / "linux.keep").readlink() == Path(f"linux-{OLD}.1")
    assert (disk.boot / "linux/vmlinuz").samefile(disk.boot / f"vmlinuz-{OLD}")
    for mode in ("keep", "resnap", "maintain"):
        assert OLD == disk.boots(mode)


@pytest.mark.parametrize("mode", ["keep", "resnap"])
def test_a_kernel_on_the_snapshot_starts_with_that_snapshot_alone(disk: Disk, mode: str) -> None:
    """The real root keeps its own kernel. A new snapshot starts that one, and its predecessor's files are removed."""
    disk.mode = mode
    assert disk.install(NEW).ok
    assert (NEW, OLD, NEW) == (disk.boots("keep"), disk.boots("maintain"), disk.boots("keep"))
    assert OLD == disk.boots("resnap")
    assert OLD == disk.boots("keep")
    assert [f"{name}-{OLD}" for name in ("System.map", "config", "initrd.img")] + ["linux", f"linux-{OLD}.1"] + [
        "linux.keep", f"vmlinuz-{OLD}",
    ] == names(disk)  # fmt: skip


def test_a_kernel_of_the_real_root_starts_with_the_next_snapshot(disk: Disk) -> None:
    """The snapshot in use does not have the modules of that kernel."""
    disk.mode = "maintain"
    assert disk.install(NEW).ok
    assert (NEW, OLD) == (disk.boots("maintain"), disk.boots("keep"))
    assert (NEW, NEW) == (disk.boots("resnap"), disk.boots("keep"))


def test_the_snapshot_cannot_take_the_kernel_of_the_real_root(disk: Disk) -> None:
    """It upgrades it under the same version, or makes its initramfs again, and then removes it."""
    assert disk.install(OLD, "2").ok
    assert ((OLD, "2"), (OLD, "1")) == (disk.started("keep"), disk.started("resnap"))
    assert disk.install(NEW).ok
    assert disk.link("--without", OLD).ok
    disk.remove_files(OLD)
    assert disk.link().ok
    assert NEW == disk.boots("keep")
    assert OLD == disk.boots("resnap")
    assert "vmlinuz-6.9.1 1" == (disk.boot / f"vmlinuz-{OLD}").read_text()
    assert "initrd.img-6.9.1 1" == (disk.boot / f"initrd.img-{OLD}").read_text()
    assert (OLD, "1") == disk.started("keep")


def test_a_removed_kernel_is_not_started(disk: Disk) -> None:
    """GRUB starts another kernel before the files are gone. The last kernel cannot be removed."""
    assert disk.install(NEW).ok
    assert disk.link("--without", NEW).ok
    assert (OLD, "1") == disk.started("keep")
    disk.remove_files(NEW)
    assert disk.link().ok
    refused = disk.link("--without", OLD)
    assert (1, True) == (refused.code, "no other kernel in /boot" in refused.stderr)
    assert OLD == disk.boots("keep")


@pytest.mark.parametrize(
    "remains", ["initrd.img", "modules.dep", "modules.builtin", "empty initrd.img", "empty vmlinuz"]
)
def test_an_incomplete_kernel_is_not_started(disk: Disk, remains: str) -> None:
    """The package is half installed: a part is missing, or the power failed before its data was on the disk."""
    disk.unpack(NEW)
    disk.make_initramfs(NEW)
    name = remains.split()[-1]
    path = disk.modules(NEW) / name if name.startswith("modules") else disk.boot / f"{name}-{NEW}"
    path.unlink()
    if remains.startswith("empty"):
        path.touch()
    assert disk.link().ok
    assert (OLD, "1") == disk.started("keep")


def test_without_a_kernel_nothing_is_changed(disk: Disk) -> None:
    (disk.boot / f"initrd.img-{OLD}").unlink()
    failed = disk.link()
    assert not failed.ok
    assert "no kernel in /boot has an initramfs" in failed.stderr
    assert (OLD, "1") == disk.started("keep") == disk.started("resnap")


def cuts(disk: Disk, act: Callable[[Disk], run.Completed]) -> list[Disk]:
    """Acts on copies of a disk, each killed at another change. Returns the copies; the last one was not killed."""
    copies = []
    for cut in range(1, 100):
        folder = disk.folder.with_name(f"{disk.folder.name}-cut{cut}")
        run.run(["cp", "-a", disk.folder, folder])
        copies.append(Disk(folder, disk.mode, cut))
        done = act(copies[-1])
        copies[-1].cut = 0
        if not done.code < 0 and done.code != 137:
            return copies
    raise AssertionError("the script does not end")


@pytest.mark.parametrize("mode", ["keep", "maintain"])
def test_a_power_cut_while_a_kernel_is_installed(disk: Disk, mode: str) -> None:
    """At each of them, every entry starts a kernel and an initramfs of one build, whose modules are on its root."""
    disk.mode = mode
    disk.unpack(NEW)
    disk.make_initramfs(NEW)
    copies = cuts(disk, Disk.link)
    assert len(copies) > 6
    for copy in copies:
        kernels = {copy.boots(which) for which in ("keep", "maintain")}
        assert kernels <= {OLD, NEW}
        copy.mode = mode
        assert copy.link().ok  # dpkg --configure -a
        expected = {"keep": (NEW, OLD), "maintain": (OLD, NEW)}[mode]
        assert expected == (copy.boots("keep"), copy.boots("maintain"))
        assert expected[1] == copy.boots("resnap")
        assert not [name for name in names(copy) if name.endswith((".new", ".old", ".file"))]


def test_a_power_cut_while_a_kernel_is_removed(disk: Disk) -> None:
    """Before the entries follow, its modules may be gone already: the initramfs chooses another kernel."""
    assert disk.install(NEW).ok
    disk.remove_files(NEW)
    copies = cuts(disk, Disk.link)
    for copy in copies:
        assert OLD == copy.boots("keep")
        assert OLD == copy.boots("resnap")


def test_a_power_cut_after_the_snapshot_was_made(disk: Disk) -> None:
    """The entry keep still has the kernel of the snapshot that is gone. Its next boot starts that of the real root."""
    assert disk.install(NEW).ok
    disk.new_snapshot()
    disk.mode = "resnap"
    for copy in cuts(disk, lambda copy: copy.link("--booted", "new", OLD)):
        assert OLD == copy.boots("keep")
        assert OLD == copy.boots("resnap")


def test_no_kernel_fits_the_root(disk: Disk) -> None:
    """The initramfs gets an error, and no restart: it would be endless."""
    shutil.rmtree(disk.modules(OLD))
    failed = disk.link("--booted", "keep", OLD)
    assert (1, True) == (failed.code, "no kernel in /boot has its modules on this root" in failed.stderr)
    disk.unpack(NEW)
    disk.make_initramfs(NEW)
    assert 10 == disk.link("--booted", "keep", OLD).code
    other = disk.link("--booted", "keep", OLD)
    assert (1, True) == (other.code, "GRUB started the kernel 6.9.1" in other.stderr)


def test_a_full_boot_partition_does_not_stop_a_new_snapshot(disk: Disk) -> None:
    """The kernel of a new snapshot needs no new folder."""
    assert disk.install(NEW).ok
    disk.new_snapshot()
    (disk.folder / "tools/mkdir").write_text("#!/bin/sh\necho 'No space left on device' >&2\nexit 1\n")
    disk.cut = 99
    assert disk.link("--booted", "new", OLD).ok
    assert (OLD, "1") == disk.started("keep")


def test_a_full_boot_partition_is_an_error_of_the_upgrade(disk: Disk) -> None:
    """The box starts the old kernel."""
    disk.unpack(NEW)
    disk.make_initramfs(NEW)
    (disk.folder / "tools/mkdir").write_text("#!/bin/sh\necho 'No space left on device' >&2\nexit 1\n")
    disk.cut = 99
    failed = disk.link()
    assert (1, True) == (failed.code, "No space left" in failed.stderr)
    disk.cut = 0
    assert OLD == disk.boots("keep")


def test_files_of_others_stay(disk: Disk) -> None:
    """A resnap boot removes only files that have the name of a kernel's, without modules on the root."""
    others = ["memtest.bin", "linux-notes", f"initrd.img-{OLD}.bak"]
    for name in others:
        (disk.boot / name).write_text(name)
    (disk.boot / "vmlinuz-lost.dpkg-new").touch()
    assert OLD == disk.boots("resnap")
    assert set(others) <= set(names(disk))
    assert "vmlinuz-lost.dpkg-new" not in names(disk)


def test_an_upgrade_of_the_package_does_not_link_a_half(disk: Disk) -> None:
    """dpkg runs postrm of the old version between the new kernel and its initramfs."""
    text = (HOOKS / "kernel/postrm.d/zz-kimbox").read_text()
    for words, code in (("upgrade 2", 0), ("remove", 7), ("purge", 7), ("", 7)):
        script = text.replace("/boot/linux", str(disk.boot / "linux"))
        script = script.replace("exec /usr/lib/kimbox/link-kernel", "exit 7")
        done = run.run(["sh", "-c", script], env=os.environ | {"DEB_MAINT_PARAMS": words}, check=False)
        assert code == done.code, words
