"""The files of a guest that depend on its disk layout: the kernel command line, GRUB's menu, fstab."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from kimbox import run
from kimbox.render import guestfiles
from kimbox.spec.layout import MIB, Layout, plan
from kimbox.spec.model import BootMode, Disk, Volume

GIB = 1 << 30


def layout(
    group: str = "vagrant-pipeline", root: str = "root", snapshot: str = "root_snap", *, swap: bool = True
) -> Layout:
    """Returns the disk of design.md with other names."""
    return plan(
        Disk(
            size_bytes=13 * GIB,
            boot_bytes=256 * MIB,
            volume_group=group,
            root=Volume(root, 5 * GIB),
            persistent=Volume("persistent", 2 * GIB),
            swap=Volume("swap", 512 * MIB) if swap else None,
            snapshot=Volume(snapshot, 4 * GIB),
        )
    )


def ours(line: str) -> str:
    """Returns a command line without the words that every boot has."""
    assert line.endswith(" " + " ".join(guestfiles.COMMON))
    return line.removesuffix(" " + " ".join(guestfiles.COMMON))


def test_the_command_line_of_every_mode() -> None:
    """The root is the snapshot in all modes but maintain. Only resnap has the word `resnap`."""
    sizes = "lvsize=4096M lvgrow=26736640:1280:1024:512:persistent"
    rest = f"ro volgroup=vagrant-pipeline lvroot=root lvsnap=root_snap {sizes}"
    assert {
        BootMode.RESNAP: f"root=/dev/mapper/vagrant--pipeline-root_snap {rest} resnap",
        BootMode.KEEP: f"root=/dev/mapper/vagrant--pipeline-root_snap {rest}",
        BootMode.MAINTAIN: f"root=/dev/mapper/vagrant--pipeline-root {rest}",
    } == {mode: ours(guestfiles.kernel_command_line(layout(), mode)) for mode in BootMode}


def test_names_with_hyphens() -> None:
    """Hyphens are doubled in the name of the device only."""
    made = layout(group="a-b", root="c-d", snapshot="e--f")
    line = ours(guestfiles.kernel_command_line(made, BootMode.RESNAP))
    assert line.startswith("root=/dev/mapper/a--b-e----f ro volgroup=a-b lvroot=c-d lvsnap=e--f lvsize=4096M lvgrow=")
    assert "/dev/mapper/a--b-persistent" in guestfiles.fstab(made)


def test_no_word_occurs_twice() -> None:
    """The kernel uses the last value of a word, but initramfs-tools may use the first."""
    words = guestfiles.kernel_command_line(layout(), BootMode.RESNAP).split()
    assert len(words) == len(set(words))


def test_grub_has_an_entry_for_every_mode() -> None:
    """Each entry has its own command line, and grubenv selects it. Without a valid selection, the mode is `keep`."""
    text = guestfiles.grub_cfg(layout())
    entries = dict(
        re.findall(r"--id (\w+) \{\n(?:  .*\n)+  linux16 \$linux/vmlinuz (.*)\n  initrd16 \$linux/initrd", text)
    )
    assert {str(mode): guestfiles.kernel_command_line(layout(), mode) for mode in BootMode} == entries
    lines = text.splitlines()
    assert "keep" == next(iter(entries))  # GRUB uses the first entry instead of an unknown one
    order = ["set default=keep", "load_env", 'if [ -n "$saved_entry" ]; then set default="$saved_entry"; fi']
    assert sorted(map(lines.index, order)) == list(map(lines.index, order))
    assert lines.index('  set default="$next_entry"') > lines.index(order[-1])
    assert lines.index("  save_env next_entry") == lines.index("  set next_entry=") + 1


def test_only_keep_starts_the_kernel_of_the_snapshot_in_use() -> None:
    """A new snapshot has the modules of the real root. A kept one may have other modules."""
    entries = guestfiles.grub_cfg(layout()).split("menuentry ")[1:]
    assert ["keep"] == [re.findall(r"--id (\w+)", entry)[0] for entry in entries if "/linux.keep" in entry]
    assert all("  set linux=/linux\n" in entry for entry in entries)


@pytest.mark.skipif(not run.which("grub-script-check"), reason="no grub here")
def test_grub_reads_its_menu(tmp_path: Path) -> None:
    """grub-script-check finds no error."""
    (tmp_path / "grub.cfg").write_text(guestfiles.grub_cfg(layout(group="a-b+c.d")))
    run.run(["grub-script-check", tmp_path / "grub.cfg"])


def test_fstab() -> None:
    """No entry can delay the start of a box."""
    rows = [line.split() for line in guestfiles.fstab(layout()).splitlines()]
    assert [
        ("/dev/root", "/", "ext4"),
        ("/dev/mapper/vagrant--pipeline-persistent", "/persistent", "ext4"),
        ("LABEL=kimbox-boot", "/boot", "ext4"),
        ("/dev/mapper/vagrant--pipeline-swap", "none", "swap"),
    ] == [tuple(row[:3]) for row in rows]
    assert {6} == {len(row) for row in rows}
    assert all({"nofail", "noauto"} & set(row[3].split(",")) for row in rows[1:])
    assert "swap" not in guestfiles.fstab(layout(swap=False))


@pytest.mark.skipif(not shutil.which("findmnt"), reason="no findmnt here")
def test_findmnt_reads_fstab(tmp_path: Path) -> None:
    """findmnt of util-linux parses every line."""
    (tmp_path / "fstab").write_text(guestfiles.fstab(layout()))
    done = run.run(["findmnt", "--tab-file", tmp_path / "fstab", "--noheadings", "--output", "TARGET", "--list"])
    assert ["/", "/persistent", "/boot", "none"] == done.stdout.split()
