"""The links to the kernels in /boot, as GRUB reads them after a power cut: without the journal of the file system."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kimbox import paths, run

SCRIPT = paths.provisioners_dir() / "boot/root/usr/lib/kimbox/link-kernel"

#: Programs that are replaced by `TOOL`.
TOOLS = ("ln", "mv", "rm", "mkdir", "sync", "readlink")

#: Copies the disk before and after a program runs: the power fails there. Data that is only in memory is lost.
TOOL = """#!/bin/sh
count=$(ls {snaps} | wc -l)
cp --sparse=always {disk} {snaps}/$(printf %03d $count)
/usr/bin/{tool} "$@"
code=$?
cp --sparse=always {disk} {snaps}/$(printf %03d $((count + 1)))
exit $code
"""

#: Installs a first kernel, then a second one in a mode, and removes the files of the first one.
INSTALL = """
set -e
cd "$1"
mount -o loop disk root/boot
kernel() {
	for name in vmlinuz initrd.img; do
		(echo $name-$1; head -c 100000 /dev/zero | tr '\\0' x) >root/boot/$name-$1
	done
}
export KIMBOX_ROOT=$PWD/root
kernel 6.1
"$2"
sync -f root/boot
kernel 6.2
echo "$3" >root/run/kimbox/mode
KIMBOX_PATH=$PWD/tools "$2"
cp --sparse=always disk end
rm root/boot/*-6.1
PATH=$PWD/tools:$PATH sync -f root/boot
"""


def can_mount(folder: Path) -> bool:
    """Whether this host permits to mount a file."""
    disk = folder / "probe"
    run.run(["mke2fs", "-q", "-F", disk, "1m"])
    mounted = run.run(["unshare", "--mount", "mount", "-o", "loop", disk, "/mnt"], check=False)
    return mounted.ok


def started(disk: Path, link: str) -> str:
    """Returns the version of the kernel that GRUB starts through a link. Checks that both of its files are complete."""
    target = re.findall(r'Fast link dest: "(.*)"', debugfs(disk, f"stat /{link}"))[0]
    heads = []
    for name in ("vmlinuz", "initrd.img"):
        text = debugfs(disk, f"cat /{target}/{name}")
        assert text.endswith("x" * 100000), f"{link} -> {target}: {name} is not complete"
        heads.append(text.split("\n")[0])
    version = target.removeprefix("linux-").rpartition(".")[0]
    assert [f"vmlinuz-{version}", f"initrd.img-{version}"] == heads
    return version


def debugfs(disk: Path, command: str) -> str:
    """The output of debugfs, which does not read the journal."""
    return run.run(["debugfs", "-R", command, disk]).stdout


@pytest.mark.parametrize(
    ("mode", "link", "other"), [("keep", "linux.keep", "linux"), ("maintain", "linux", "linux.keep")]
)
def test_grub_finds_a_complete_kernel_at_every_moment(tmp_path: Path, mode: str, link: str, other: str) -> None:
    """The entry that changes has the old or the new kernel, and at the end the new one. The other has the old one."""
    if os.getuid() or not can_mount(tmp_path):
        pytest.skip("this user cannot mount files here")
    disk, snaps = tmp_path / "disk", tmp_path / "snaps"
    for name in ("snaps", "tools", "root/boot", "root/run/kimbox"):
        (tmp_path / name).mkdir(parents=True)
    for version in ("6.1", "6.2"):
        (tmp_path / "root/lib/modules" / version).mkdir(parents=True)
        for name in ("modules.builtin", "modules.dep"):
            (tmp_path / "root/lib/modules" / version / name).touch()
    for tool in TOOLS:
        (tmp_path / "tools" / tool).write_text(TOOL.format(snaps=snaps, disk=disk, tool=tool))
        (tmp_path / "tools" / tool).chmod(0o755)
    run.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", disk, "16m"])
    run.run(["unshare", "--mount", "sh", "-c", INSTALL, "install", tmp_path, SCRIPT, mode])
    versions = [started(copy, link) for copy in sorted(snaps.iterdir())]
    assert ["6.1", "6.2"] == sorted(set(versions))
    assert versions == sorted(versions)
    assert {"6.1"} == {started(copy, other) for copy in snaps.iterdir()}
    assert "6.2" == started(tmp_path / "end", link)
