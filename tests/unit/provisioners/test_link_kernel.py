"""The script that lets GRUB's entries follow the kernel, on a folder that stands for /boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox import paths, run


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    for name in ("vmlinuz-6.9.1", "initrd.img-6.9.1", "vmlinuz-6.12.3", "initrd.img-6.12.3", "vmlinuz-6.13.0"):
        (tmp_path / name).write_text(name)
    return tmp_path


def link(boot: Path) -> run.Completed:
    return run.run([paths.provisioners_dir() / "boot/root/usr/lib/kimbox/link-kernel", boot], check=False)


def linked(boot: Path) -> list[str]:
    return [(boot / "linux" / name).read_text() for name in ("vmlinuz", "initrd.img")]


def test_the_newest_kernel_that_has_an_initramfs_is_started(boot: Path) -> None:
    assert link(boot).ok
    assert linked(boot) == ["vmlinuz-6.12.3", "initrd.img-6.12.3"]
    (boot / "initrd.img-6.13.0").write_text("initrd.img-6.13.0")
    assert link(boot).ok
    assert linked(boot) == ["vmlinuz-6.13.0", "initrd.img-6.13.0"]


def test_a_kernel_that_is_removed_takes_its_links_with_it(boot: Path) -> None:
    assert link(boot).ok
    (boot / "vmlinuz-6.12.3").unlink()
    (boot / "initrd.img-6.12.3").unlink()
    assert link(boot).ok
    assert linked(boot) == ["vmlinuz-6.9.1", "initrd.img-6.9.1"]
    assert sorted(path.name for path in boot.glob("linux*")) == ["linux", "linux-6.9.1"]


def test_without_a_kernel_nothing_is_changed(boot: Path) -> None:
    assert link(boot).ok
    for path in boot.glob("initrd.img-*"):
        path.unlink()
    failed = link(boot)
    assert not failed.ok
    assert "no kernel with an initramfs" in failed.stderr
    assert (boot / "linux").readlink() == Path("linux-6.12.3")
