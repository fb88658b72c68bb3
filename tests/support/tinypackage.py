"""A tiny box whose image is built in about a second, its halted machine, and `kimbox package` of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boxarchive
import madedisk
import pytest
import tinyimage
from clirun import Kimbox, result
from makemachine import make_machine

from kimbox import run
from kimbox.image import namespace
from kimbox.image.build import rootfs
from kimbox.image.disk import rawdisk
from kimbox.image.disk.ext4 import content as ext4data
from kimbox.image.disk.ext4 import directories
from kimbox.image.disk.ext4.directories import Entry
from kimbox.image.store import images
from kimbox.lock.lockfile import read_lock
from kimbox.machine.delivered_locks import Delivered
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended, PlanDigests
from kimbox.spec.load import load_box, merged_spec

Made = Callable[..., dict[str, Any]]

SPEC = """\
kimbox: 1
name: tiny
description: a box
image: {distribution: debian, packages: [one]}
disk:
  size: 380MiB
  boot: 64MiB
  volumes: {root: 256MiB, persistent: 16MiB, swap: 16MiB, root_snap: 8MiB}
"""

#: Adds the files that every image of kimbox contains and that the tiny image does not contain.
MORE = """
printf '%s\\n' '# GRUB Environment Block' saved_entry=keep >root/boot/grub/grubenv
head -c 982 /dev/zero | tr '\\0' '#' >>root/boot/grub/grubenv
: >root/etc/machine-id
chmod 0444 root/etc/machine-id
printf '127.0.0.1 localhost\\n' >root/etc/hosts
mkdir -p root/var/log root/var/tmp root/var/cache/apt/archives root/root root/home/user root/etc/ssh root/var/lib/kimbox
: >root/var/log/btmp
"""


@pytest.fixture
def box(world: Path, kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the tiny box. Its image is built."""

    def fill(*args: Any, **options: Any) -> Path:
        root = tinyimage.fill(*args, **options)
        namespace.call(["sh", "-c", MORE], cwd=args[1])
        return root

    monkeypatch.setattr(rootfs, "build", fill)
    folder = world / "work"
    (folder / "kimbox.yaml").write_text(SPEC)
    assert 0 == kimbox("build")[0]
    return folder


@pytest.fixture
def made(kimbox: Kimbox, box: Path) -> Made:
    """A function that runs `kimbox package` with arguments and returns its result."""

    def call(*words: str) -> dict[str, Any]:
        code, out, err = kimbox("--json", "package", *words)
        assert code == 0, err + out
        answer: dict[str, Any] = result(out, "package")
        return answer

    return call


def image_of(folder: Path) -> images.Image:
    """Returns the image of the box in a folder."""
    image = images.find(read_lock(folder / "kimbox.lock").image or "")
    assert image is not None
    return image


def members(path: Path) -> dict[str, bytes]:
    """Returns the names and contents of all members of an archive."""
    with boxarchive.opened(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def everything(disk: Path) -> dict[bytes, Entry]:
    """Returns every path of the root on a raw disk, with its entry."""
    with rawdisk.opened(disk) as view:
        return {entry.path: entry for entry in directories.walk(view.root.file_system)}


def content(disk: Path, path: bytes) -> bytes | None:
    """Returns the content of a small file of the root on a raw disk."""
    with rawdisk.opened(disk) as view:
        system = view.root.file_system
        entry = directories.find(system, path)
        assert entry is not None
        return ext4data.content(system, entry.inode, 1 << 20)


def machine_of(folder: Path, image: images.Image, script: str, *, tree: Path | None = None) -> Machine:
    """Returns a halted machine with a root that a debugfs script has changed. With `tree`, its root has those files."""
    machine = make_machine(
        "tiny", source=str(folder / "kimbox.yaml"), image=image.key, ended=Ended.HALTED,
        spec_digest=load_box(folder / "kimbox.yaml").digest, plan=PlanDigests("0" * 64, "0" * 64, "a" * 64),
    )  # fmt: skip
    lock = read_lock(folder / "kimbox.lock")
    Delivered("a" * 64, lock, json.dumps(merged_spec(folder / "kimbox.yaml")).encode()).write(machine.locks)
    raw = machine.folder / "raw"
    run.run(["cp", "--sparse=always", image.disk, raw])
    raw.chmod(0o600)
    (machine.folder / "secret").write_text("SECRET of this machine\n")
    (machine.folder / "mine").write_text("what the maintainer wants\n")
    status = "Package: one-more\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3.1\n"
    (machine.folder / "status").write_text(status)
    at = madedisk.places_of(raw)
    if tree is not None:
        options = ["-b", "4096", "-E", f"offset={at.root[0]},root_owner=0:0", "-d", tree]
        run.run(["mke2fs", "-q", "-F", "-t", "ext4", *options, raw, f"{at.root[1] // 1024}k"])
    done = run.run(["debugfs", "-w", "-f", "-", f"raw?offset={at.root[0]}"], input=script, cwd=machine.folder)
    assert "rror" not in done.stderr
    with raw.open("r+b") as file:
        file.seek(at.root[0] + at.root[1] + 8 * (1 << 20))
        file.write(b"SECRET on /persistent")
    machine.disk.unlink()
    run.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, machine.disk])
    raw.unlink()
    return machine
