"""A halted machine on a small image, with files that a save must keep and others that it must not contain."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import madedisk
from madedisk import LAYOUT, PLACES
from makemachine import make_machine

from kimbox import paths, run
from kimbox.files import sync_file, write_json
from kimbox.image.disk import rawdisk
from kimbox.image.disk.ext4 import content, directories
from kimbox.image.store import digest, images
from kimbox.lock.lockfile import Lock, write_lock
from kimbox.machine.folder import Machine
from kimbox.machine.record import PlanDigests
from kimbox.spec.layout import SNAPSHOT_CHUNK_BYTES

MIB = 1 << 20
IMAGE = "e" * 64
MANIFEST = "a" * 64
ID = "0123456789abcdef0123456789abcdef"
HOST_KEY = b"-----BEGIN OPENSSH PRIVATE KEY-----\nthis is the ssh host key of one machine\n"
SEED = b"a seed of one machine" * 24

SPEC = {
    "kimbox": 1,
    "name": "tiny",
    "image": {"location": "https://example.org/tiny.box", "digest": f"sha256:{'1' * 64}"},
    "disk": {"size": "13GiB"},
}


def make_image() -> Path:
    """Puts the image into the store. Returns its disk."""
    folder = paths.images_dir() / IMAGE
    folder.mkdir(parents=True)
    disk = folder / "disk.raw"
    madedisk.make(disk)
    facts = {"format": "raw", "key": IMAGE, "virtual_bytes": LAYOUT.size_bytes, images.DIGEST: digest.disk_digest(disk)}
    write_json(folder / "image.json", facts)
    return disk


def fill(disk: Path, work: Path, files: dict[str, bytes]) -> None:
    """Writes files to the file systems of a raw disk: `root/etc/x`, `persistent/x`, `boot/x`."""
    for path, data in files.items():
        volume, _, name = path.partition("/")
        source = work / "content"
        source.write_bytes(data)
        *folders, last = name.split("/")
        device = madedisk.device(disk, PLACES[volume])
        at = ""
        for folder in folders:
            at += f"/{folder}"
            run.run(["debugfs", "-w", "-R", f"mkdir {at}", device], check=False)
        run.run(["debugfs", "-w", "-R", f"rm {at}/{last}", device], check=False)
        run.run(["debugfs", "-w", "-R", f"write {source} {at}/{last}", device])


def make_saved(work: Path, *, name: str = "tiny", user_bytes: int = 3 * MIB) -> Machine:
    """Makes the image and a halted machine on it, whose disk has a user's files and what is private to it."""
    disk = make_image()
    changed = Path(shutil.copy(disk, work / "changed.raw"))
    private = {
        "persistent/ssh/ssh_host_ed25519_key": HOST_KEY,
        "persistent/ssh/ssh_host_ed25519_key.pub": b"ssh-ed25519 AAAA of one machine\n",
        "root/etc/machine-id": f"{ID}\n".encode(),
        "root/var/lib/systemd/random-seed": SEED,
    }
    fill(changed, work, private | {"persistent/mine": os.urandom(user_bytes), "root/home/notes": b"notes of a user\n"})
    machine = make_machine(
        name, image=IMAGE, plan=PlanDigests("d" * 64, "c" * 64, MANIFEST), spec_digest="d" * 64, box="tiny"
    )
    machine.disk.unlink()
    madedisk.overlaid(disk, changed, machine.disk)
    sync_file(machine.disk)
    machine.locks.mkdir()
    (machine.locks / f"{MANIFEST}.yaml").write_text(json.dumps(SPEC))
    write_lock(machine.locks / f"{MANIFEST}.lock", Lock("d" * 64, IMAGE, {}))
    return machine


def write(machine: Machine, work: Path, files: dict[str, bytes]) -> None:
    """Writes files to the disk of a halted machine."""
    raw = madedisk.raw_of(machine.disk, work / "write.raw")
    fill(raw, work, files)
    disk = paths.images_dir() / IMAGE / "disk.raw"
    machine.disk.unlink()
    madedisk.overlaid(disk, raw, machine.disk)
    raw.unlink()


def shown(machine: Machine, work: Path) -> Path:
    """Returns the disk of a machine as a raw disk."""
    return madedisk.raw_of(machine.disk, work / f"shown-{machine.name}.raw")


def get(machine: Machine, work: Path, path: str) -> bytes:
    """Returns a file of a machine: `root/etc/x`, `persistent/x`; nothing if it does not exist."""
    volume, _, name = path.partition("/")
    (work / "got").unlink(missing_ok=True)
    run.run(["debugfs", "-R", f"dump /{name} {work / 'got'}", madedisk.device(shown(machine, work), PLACES[volume])])
    return (work / "got").read_bytes() if (work / "got").exists() else b""


def into_snapshot(machine: Machine, work: Path, files: dict[str, bytes]) -> None:
    """Writes files to the root as a guest that keeps its changes does: they are in the COW store of the snapshot."""
    raw = madedisk.raw_of(machine.disk, work / "origin.raw")
    other = Path(shutil.copy(raw, work / "with.raw"))
    fill(other, work, files)
    place, unit = LAYOUT.root.place, SNAPSHOT_CHUNK_BYTES
    chunks = {}
    for number in range(place.size_bytes // unit):
        data = madedisk.read(other, place.offset_bytes + number * unit, unit)
        if data != madedisk.read(raw, place.offset_bytes + number * unit, unit):
            chunks[number] = data
    madedisk.store(raw, chunks)
    machine.disk.unlink()
    madedisk.overlaid(paths.images_dir() / IMAGE / "disk.raw", raw, machine.disk)
    raw.unlink()


def in_snapshot(machine: Machine, work: Path, path: str) -> bytes | None:
    """Returns a file of the root as a boot that keeps its changes has it; None if it does not exist."""
    with rawdisk.opened(shown(machine, work)) as view:
        system = view.snapshot_of_root.file_system
        entry = directories.find(system, path.encode())
        return content.content(system, entry.inode, MIB) if entry else None
