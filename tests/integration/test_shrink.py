"""`kimbox shrink` on real disks: what it discards, keeps and refuses, and the result of kill -9."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

import attrs
import madedisk
import pytest
from clirun import Kimbox, error, result
from clirun import kimbox as kimbox
from clirun import world as world
from madedisk import LAYOUT, PLACES
from makemachine import make_machine, running

from kimbox import paths
from kimbox.actions import shrink
from kimbox.drivers.qemu import disk
from kimbox.files import sha256_file, sync_file, write_json
from kimbox.machine import bootmode
from kimbox.machine.folder import Machine
from kimbox.machine.record import Ended
from kimbox.run import run
from kimbox.spec.model import BootMode

MIB = 1 << 20
IMAGE = "e" * 64


@pytest.fixture
def machine(world: Path) -> Machine:
    """A halted box with a file, the blocks of a removed file, and a snapshot with one changed chunk."""
    folder = paths.images_dir() / IMAGE
    folder.mkdir(parents=True)
    madedisk.make(folder / "disk.raw")
    write_json(folder / "image.json", {"format": "raw", "key": IMAGE, "virtual_bytes": LAYOUT.size_bytes})
    disk = Path(shutil.copy(folder / "disk.raw", world / "changed.raw"))
    for name in ("kept", "junk"):
        (world / name).write_bytes(os.urandom(6 * MIB))
        madedisk.put(disk, PLACES["persistent"], name, world / name)
    madedisk.remove(disk, PLACES["persistent"], "junk")
    chunk = madedisk.read(disk, LAYOUT.root.place.offset_bytes, 65536)
    madedisk.store(disk, {0: chunk})
    made = make_machine()
    made.disk.unlink()
    madedisk.overlaid(folder / "disk.raw", disk, made.disk)
    sync_file(made.disk)  # before that the number of its blocks may change
    return made


def shown(machine: Machine, folder: Path) -> Path:
    """The content of the machine's disk as a raw disk."""
    return madedisk.raw_of(machine.disk, folder / "shown.raw")


def test_before_and_after(kimbox: Kimbox, machine: Machine, world: Path) -> None:
    """The verb shows both sizes. A dry run changes nothing. A second run does not reduce the disk further."""
    digest = sha256_file(machine.disk)
    code, out, _ = kimbox("--json", "shrink", "tiny", "--dry-run")
    expected = result(out, "shrink")
    assert (0, "kept", True, []) == (code, expected["snapshot"], expected["dry_run"], expected["notes"])
    assert digest == sha256_file(machine.disk)
    done = result(kimbox("--json", "shrink", "tiny")[1], "shrink")
    assert (expected["before_bytes"], expected["after_bytes"]) == (done["before_bytes"], done["after_bytes"])
    assert machine.disk.stat().st_blocks * 512 == done["after_bytes"] < done["before_bytes"] - 5 * MIB
    raw = shown(machine, world)
    assert (world / "kept").read_bytes() == madedisk.get(raw, PLACES["persistent"], "kept", world / "got")
    assert all(madedisk.is_sound(raw, place) for place in PLACES.values())
    second = result(kimbox("--json", "shrink", "tiny")[1], "shrink")
    assert done["after_bytes"] == second["before_bytes"] == second["after_bytes"]
    code, out, _ = kimbox("shrink", "tiny")
    assert (0, "the disk of tiny took ") == (code, out[:22])


def test_the_snapshot_stays_unless_the_next_boot_replaces_it(machine: Machine, world: Path) -> None:
    """It is discarded if both the spec and the disk have the mode resnap, or if the user requests it."""

    def has_snapshot_data() -> bool:
        return madedisk.read(shown(machine, world), LAYOUT.snapshot.place.offset_bytes, 4) == b"SnAp"

    for mode, saved, once in (
        (BootMode.KEEP, BootMode.RESNAP, None),
        (BootMode.RESNAP, BootMode.KEEP, None),
        (BootMode.RESNAP, BootMode.RESNAP, BootMode.KEEP),
        (None, BootMode.RESNAP, None),
    ):
        bootmode.set_entries(machine, saved, once)
        assert not shrink.shrink(machine, mode).dropped
        assert has_snapshot_data()
    bootmode.set_entries(machine, BootMode.RESNAP)
    assert shrink.shrink(machine, BootMode.RESNAP, dry_run=True).dropped
    assert has_snapshot_data()
    assert shrink.shrink(machine, None, drop=True).dropped
    assert not has_snapshot_data()


def test_a_box_that_is_not_shut_down_is_refused(kimbox: Kimbox, machine: Machine) -> None:
    """The hint has the verbs that shut it down."""
    with running(machine):
        code, out, _ = kimbox("--json", "shrink", "tiny")
    refusal = error(out, "shrink")
    assert (5, "wrong-state", "`kimbox halt tiny` shuts it down") == (code, refusal["code"], refusal["hint"])
    machine.write_record(attrs.evolve(machine.record(), ended=Ended.SUSPENDED))
    code, out, _ = kimbox("--json", "shrink", "tiny")
    refusal = error(out, "shrink")
    assert (5, "wrong-state", "suspended") == (code, refusal["code"], refusal["fields"]["state"])
    assert "`kimbox resume tiny` and `kimbox halt tiny`" in refusal["hint"]
    assert 5 == kimbox("shrink", "nobody")[0]


def test_snapshots_of_the_disk_are_not_lost(kimbox: Kimbox, machine: Machine) -> None:
    """They are in the file that would be replaced."""
    run(["qemu-img", "snapshot", "-c", disk.snapshot_tag("mine"), machine.disk])
    code, out, _ = kimbox("--json", "shrink", "tiny")
    refusal = error(out, "shrink")
    assert (5, "has-snapshots", "mine") == (code, refusal["code"], refusal["fields"]["snapshots"])


def test_a_damaged_disk_does_not_change(kimbox: Kimbox, machine: Machine) -> None:
    """The error names the volume, and no temporary file remains."""
    at = LAYOUT.persistent.place.offset_bytes + 1024 + 0x28
    run(["qemu-io", "-f", "qcow2", "-c", f"write -P 1 {at} 1", machine.disk])
    before = sha256_file(machine.disk)
    code, out, _ = kimbox("--json", "shrink", "tiny")
    assert 1 == code
    failure = error(out, "shrink")
    assert ("disk-damaged", "persistent", "file system") == (
        failure["code"],
        failure["fields"]["volume"],
        failure["fields"]["part"],
    )
    assert before == sha256_file(machine.disk)
    assert not machine.new_disk.exists()


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2])
def test_killed_at_any_moment_the_disk_is_complete(machine: Machine, world: Path, delay_s: float) -> None:
    """It is the old disk or the new disk, and the next run completes the work."""
    before = sha256_file(machine.disk)
    child = os.fork()
    if not child:
        try:
            shrink.shrink(machine, None)
        finally:
            os._exit(0)
    while not machine.new_disk.exists() and sha256_file(machine.disk) == before:
        threading.Event().wait(0.001)
    threading.Event().wait(delay_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    shrink.shrink(machine, None)
    assert not machine.new_disk.exists()
    raw = shown(machine, world)
    assert (world / "kept").read_bytes() == madedisk.get(raw, PLACES["persistent"], "kept", world / "got")
    assert sha256_file(machine.disk) != before
