"""The files of a guest that follow from its layout: the kernel's command line, GRUB's menu, fstab."""

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
    """The disk of design.md, with other names."""
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
    """A command line without the words of every boot."""
    assert line.endswith(" " + " ".join(guestfiles.COMMON))
    return line.removesuffix(" " + " ".join(guestfiles.COMMON))


def test_the_command_line_of_every_mode() -> None:
    """As the pipeline box has always had it; only resnap bears the word, only maintain has the real root."""
    rest = "ro volgroup=vagrant-pipeline lvroot=root lvsnap=root_snap lvsize=4096M"
    assert {
        BootMode.RESNAP: f"root=/dev/mapper/vagrant--pipeline-root_snap {rest} resnap",
        BootMode.KEEP: f"root=/dev/mapper/vagrant--pipeline-root_snap {rest}",
        BootMode.MAINTAIN: f"root=/dev/mapper/vagrant--pipeline-root {rest}",
    } == {mode: ours(guestfiles.kernel_command_line(layout(), mode)) for mode in BootMode}


def test_names_with_hyphens() -> None:
    """Doubled in the device's name, and nowhere else."""
    made = layout(group="a-b", root="c-d", snapshot="e--f")
    assert "root=/dev/mapper/a--b-e----f ro volgroup=a-b lvroot=c-d lvsnap=e--f lvsize=4096M resnap" == ours(
        guestfiles.kernel_command_line(made, BootMode.RESNAP)
    )
    assert "/dev/mapper/a--b-persistent" in guestfiles.fstab(made)


def test_no_word_is_there_twice() -> None:
    """The kernel would take the last, initramfs-tools perhaps the first."""
    words = guestfiles.kernel_command_line(layout(), BootMode.RESNAP).split()
    assert len(words) == len(set(words))


def test_grub_has_an_entry_for_every_mode() -> None:
    """Each boots its own command line; grubenv chooses. Where it names none, or nothing, the box loses nothing."""
    text = guestfiles.grub_cfg(layout())
    entries = dict(re.findall(r"--id (\w+) \{\n  linux16 /linux/vmlinuz (.*)\n  initrd16 /linux/initrd.img\n\}", text))
    assert {str(mode): guestfiles.kernel_command_line(layout(), mode) for mode in BootMode} == entries
    lines = text.splitlines()
    assert "keep" == next(iter(entries))  # what GRUB takes for an entry that is not there
    order = ["set default=keep", "load_env", 'if [ -n "$saved_entry" ]; then set default="$saved_entry"; fi']
    assert sorted(map(lines.index, order)) == list(map(lines.index, order))
    assert lines.index('  set default="$next_entry"') > lines.index(order[-1])
    assert lines.index("  save_env next_entry") == lines.index("  set next_entry=") + 1


@pytest.mark.skipif(not run.which("grub-script-check"), reason="no grub here")
def test_grub_reads_its_menu(tmp_path: Path) -> None:
    """Its own checker finds no fault."""
    (tmp_path / "grub.cfg").write_text(guestfiles.grub_cfg(layout(group="a-b+c.d")))
    run.run(["grub-script-check", tmp_path / "grub.cfg"])


def test_fstab() -> None:
    """Nothing in it can hold up the start of a box."""
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
    """util-linux parses every line of it."""
    (tmp_path / "fstab").write_text(guestfiles.fstab(layout()))
    done = run.run(["findmnt", "--tab-file", tmp_path / "fstab", "--noheadings", "--output", "TARGET", "--list"])
    assert ["/", "/persistent", "/boot", "none"] == done.stdout.split()
