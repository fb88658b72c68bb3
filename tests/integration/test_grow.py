"""A larger disk: qemu-img and the partition on the host, then the volumes in the initramfs, whatever is interrupted.

The programs of LVM are a double that keeps a volume group in a file, and loses power after each of its writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path

import attrs
import madedisk
import makesaved
import pytest
import saveverbs
from clirun import Kimbox, result
from clirun import kimbox as kimbox
from clirun import world as world

from kimbox import paths, run
from kimbox.actions.saves import found, specs
from kimbox.drivers.qemu import disk as qemu_disk
from kimbox.errors import KimboxError
from kimbox.image.disk import nbd, sectors
from kimbox.image.disk.view import DiskView
from kimbox.machine.folder import Machine
from kimbox.render.guestfiles import kernel_command_line
from kimbox.spec.layout import EXTENT_BYTES, MIB, PE_START_BYTES, SECTOR_BYTES, Layout, plan
from kimbox.spec.load import load_box
from kimbox.spec.model import BootMode, Disk, Volume
from kimbox.transfer.stores.opening import open_store

machine, store = saveverbs.machine, saveverbs.store  # fixtures

SCRIPT = paths.provisioners_dir() / "boot/root/etc/initramfs-tools/scripts/kimbox-grow"
GIB = 1 << 30

#: A disk of 6 GiB whose snapshot has the size of root.
SMALL = plan(
    Disk(6 * GIB, 256 * MIB, "vg", Volume("root", 2 * GIB), Volume("persistent", 512 * MIB), None, Volume("snap", None))
)

#: lvm(8): the group is a JSON file with the size of the device and of the PV in extents, and those of the volumes. With
#: $CUT, the power fails before or after the write with that number.
LVM = """#!{python}
import json, os, pathlib, sys
place = pathlib.Path({state!r})
group = json.loads(place.read_text())
verb, words = sys.argv[1], sys.argv[2:]
unit, start, volumes = {unit}, {start}, group["volumes"]
if verb == "pvs":
    print(f"  /dev/vda2,{{start}},{{unit}},{{group['pv']}},{{start + group['device'] * unit}}")
    sys.exit()
if verb == "lvs":
    for name, extents in volumes.items():
        seen = str(group["seen"] * unit) if name == "snap" and group["seen"] else ""
        print(f"  {{name}},{{extents * unit}},{{seen}}")
    sys.exit()
group["writes"] += 1
cut = os.environ.get("CUT") == str(group["writes"])
if verb == "pvresize":
    group["pv"] = group["device"]
elif verb == "lvconvert":
    assert bool(group["seen"]) == ("--splitsnapshot" in words), "the snapshot is there, or it is not"
    assert "--splitsnapshot" in words or "-Zn" in words, "the store would be emptied"
    group["seen"] = 0 if "--splitsnapshot" in words else volumes["root"]
else:
    name, extents = words[-1].split("/")[1], int(words[words.index("-l") + 1])
    free = group["pv"] - sum(volumes.values())
    assert name != "root" or not group["seen"], "the snapshot would keep its size"
    if not 0 < extents - volumes[name] <= free:
        print(f"insufficient free space: {{free}} extents", file=sys.stderr)
        sys.exit(5)
    volumes[name] = extents
if not (cut and os.environ.get("WHEN") == "before"):
    place.write_text(json.dumps(group))
sys.exit(0 if not cut else 70)
"""

#: Runs grow as scripts/local-premount/resnap does, in the folder $1. A power failure ends the shell.
GROW = """
vg=vg lvroot=root lvsnap=snap CHUNK=64 top=$1
notice() { :; }
run_lvm() { lvm "$@" >"$top/run/resnap.out" 2>&1; code=$?; [ $code -ne 70 ] || kill -9 $$; return $code; }
. "$top/grow"
grow "$2"
"""


@attrs.frozen
class Group:
    """A volume group in a folder, and the kernel command line of its image."""

    folder: Path
    word: str

    @property
    def state(self) -> dict[str, object]:
        return dict(json.loads((self.folder / "group").read_text()))

    @property
    def volumes(self) -> dict[str, int]:
        return dict(json.loads((self.folder / "group").read_text())["volumes"])

    def enlarge(self, layout_bytes: int) -> None:
        """Makes the partition as large as that of a disk of this size."""
        size = layout_bytes - SMALL.pv.offset_bytes
        (self.folder / "sys/class/block/vda2/size").write_text(f"{size // SECTOR_BYTES}\n")
        state = self.state | {"device": (size - PE_START_BYTES) // EXTENT_BYTES, "writes": 0}
        (self.folder / "group").write_text(json.dumps(state))

    def boot(self, cut: int = 0, when: str = "after") -> bool:
        """Grows the volumes. `cut`: the number of the write at which the power fails."""
        env = {"PATH": f"{self.folder / 'tools'}:/usr/bin:/bin", "CUT": str(cut), "WHEN": when}
        return run.run(["sh", "-c", GROW, "sh", self.folder, self.word], check=False, env=env).ok


def word_of(layout: Layout) -> str:
    words = kernel_command_line(layout, BootMode.KEEP).split()
    return next(word for word in words if word.startswith("lvgrow=")).removeprefix("lvgrow=")


@pytest.fixture
def group(tmp_path: Path) -> Group:
    for folder in ("sys/class/block/vda1", "sys/class/block/vda2", "run/kimbox", "tools"):
        (tmp_path / folder).mkdir(parents=True)
    for part in ("vda1", "vda2"):
        (tmp_path / f"sys/class/block/{part}/partition").touch()
    volumes = {volume.name: volume.extents for volume in SMALL.volumes}
    state = {
        "pv": SMALL.pv_extents,
        "device": SMALL.pv_extents,
        "volumes": volumes,
        "seen": volumes["root"],
        "writes": 0,
    }
    (tmp_path / "group").write_text(json.dumps(state))
    text = LVM.format(
        python="/usr/bin/python3",
        state=str(tmp_path / "group"),
        unit=EXTENT_BYTES // SECTOR_BYTES,
        start=PE_START_BYTES // SECTOR_BYTES,
    )
    (tmp_path / "tools/lvm").write_text(text)
    (tmp_path / "tools/lvm").chmod(0o755)
    script = SCRIPT.read_text().replace("/sys/", f"{tmp_path}/sys/").replace("/run/", f"{tmp_path}/run/")
    (tmp_path / "grow").write_text(script)
    made = Group(tmp_path, word_of(SMALL))
    made.enlarge(SMALL.size_bytes)
    return made


def test_a_disk_of_the_same_size_starts_no_program(group: Group) -> None:
    """The boot of a box that has not grown costs nothing."""
    (group.folder / "tools/lvm").write_text("#!/bin/sh\necho started >>" + str(group.folder / "started"))
    assert group.boot()
    assert not (group.folder / "started").exists()
    assert not (group.folder / "run/kimbox/grown").exists()


def test_what_is_added_is_shared(group: Group) -> None:
    """Root and /persistent grow, and the snapshot holds a change of every chunk of the larger root."""
    before = group.volumes
    group.enlarge(12 * GIB)
    assert group.boot()
    after = group.volumes
    added = 6 * GIB // EXTENT_BYTES
    assert added == sum(after.values()) - sum(before.values())
    assert added // 3 == after["root"] - before["root"]
    assert after["root"] == group.state["seen"]
    assert before["snap"] - before["root"] <= after["snap"] - after["root"]
    assert added // 3 - 2 <= after["persistent"] - before["persistent"]
    assert (group.folder / "run/kimbox/grown").exists()
    writes = group.state["writes"]
    assert group.boot()
    assert (after, writes) == (group.volumes, group.state["writes"])
    group.enlarge(40 * GIB)
    assert group.boot()
    assert (34 * GIB // EXTENT_BYTES) == sum(group.volumes.values()) - sum(before.values())


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_next_boot_completes_what_a_power_failure_left(group: Group, when: str) -> None:
    """At each write of LVM: the sizes are those of a boot that nothing interrupts."""
    start = (group.folder / "group").read_text()
    group.enlarge(9 * GIB)
    assert group.boot()
    whole = group.volumes
    assert (6, whole["root"]) == (group.state["writes"], group.state["seen"])
    for cut in range(1, 7):
        (group.folder / "group").write_text(start)
        group.enlarge(9 * GIB)
        assert not group.boot(cut, when)
        assert group.boot()
        assert (whole, whole["root"]) == (group.volumes, group.state["seen"])


def test_a_group_without_room_is_reported(group: Group) -> None:
    """A volume of a user may have taken the space: grow fails, and says why."""
    group.enlarge(9 * GIB)
    state = group.state
    volumes = dict(group.volumes) | {"mine": 3 * GIB // EXTENT_BYTES}
    (group.folder / "group").write_text(json.dumps(state | {"volumes": volumes}))
    assert not group.boot()
    assert "insufficient free space" in (group.folder / "run/resnap.out").read_text()
    assert not (group.folder / "run/kimbox/grown").exists()


def ends(machine: Machine) -> tuple[int, int]:
    """Size of the disk of a machine, and the end of its second partition."""
    with nbd.opened(machine.disk, "qcow2") as disk:
        sector = disk.read(0, SECTOR_BYTES)
        start, count = struct.unpack_from("<II", sector, 446 + 16 + 8)
        return disk.size_bytes, (start + count) * SECTOR_BYTES


def test_the_disk_of_a_machine_grows(machine: Machine, world: Path) -> None:
    """Overlay and partition get the new size, and all that was on the disk is there. It is repeated after a kill."""
    before, mine = ends(machine), makesaved.get(machine, world, "persistent/mine")
    wanted = madedisk.LAYOUT.size_bytes + 64 * MIB
    run.run(["qemu-img", "resize", "-q", machine.disk, str(wanted)])  # what a kill after the first step leaves
    assert (wanted, before[1]) == ends(machine)
    for _ in range(2):
        qemu_disk.grow(machine, wanted)
        assert (wanted, wanted) == ends(machine)
        assert wanted == qemu_disk.size_bytes(machine.disk)
    assert mine == makesaved.get(machine, world, "persistent/mine")
    with nbd.opened(machine.disk, "qcow2") as disk:
        assert DiskView.of(disk.read, disk.size_bytes).contents.mounted


def test_a_disk_with_snapshots_does_not_grow(machine: Machine) -> None:
    """A snapshot is of the smaller disk. Nothing is changed."""
    before = ends(machine)
    run.run(["qemu-img", "snapshot", "-c", "kimbox-snapshot-old", machine.disk])
    with pytest.raises(KimboxError, match="snapshots") as caught:
        qemu_disk.grow(machine, before[0] + MIB)
    assert ("has-snapshots", before) == (caught.value.code, ends(machine))


def test_a_table_that_is_not_kimboxs_is_left(machine: Machine) -> None:
    """A second partition without LVM, or with another one behind it, is refused."""
    with nbd.opened(machine.disk, "qcow2") as disk:
        sector, size = bytearray(disk.read(0, SECTOR_BYTES)), disk.size_bytes
    assert bytes(sector) == sectors.grown(bytes(sector), size)
    other = bytearray(sector)
    other[446 + 16 + 4] = sectors.TYPE_LINUX
    third = bytearray(sector)
    struct.pack_into("<B3sB3sII", third, 446 + 32, 0, b"\0" * 3, 0x83, b"\0" * 3, size // SECTOR_BYTES, 8)
    for changed in (other, third):
        with pytest.raises(KimboxError, match="second partition"):
            sectors.grown(bytes(changed), size + MIB)


def test_a_size_of_the_machine_leaves_the_image(tmp_path: Path) -> None:
    """`--set disk.size` alone is of the machine. With a size of a volume, it is of an image of its own."""
    spec = tmp_path / "kimbox.yaml"
    spec.write_text("kimbox: 1\nname: x\nbase: [minimal.yaml]\n")
    plain, larger = load_box(spec), load_box(spec, ["disk.size=40GiB"])
    assert (plain.disk, 40 * GIB, None) == (larger.disk, larger.disk_bytes, plain.disk_bytes)
    own = load_box(spec, ["disk.size=40GiB", "disk.volumes.root=8GiB"])
    assert (40 * GIB, 8 * GIB, None) == (own.disk.size_bytes, own.disk.root.size_bytes, own.disk_bytes)


def test_a_save_has_the_grown_disk(kimbox: Kimbox, machine: Machine, store: Path, world: Path) -> None:
    """A box that is made of it has the same size, or a larger one at its next start, and no smaller one."""
    wanted = madedisk.LAYOUT.size_bytes + 64 * MIB
    qemu_disk.grow(machine, wanted)
    beyond, data = madedisk.LAYOUT.size_bytes + 5 * MIB, os.urandom(2 * MIB)  # the image ends before it
    with nbd.opened(machine.disk, "qcow2", writable=True) as disk:
        disk.write(beyond, data)
        disk.flush()
    assert 0 == kimbox("save", "tiny", str(store))[0]
    assert 0 == kimbox("create", "same", "--from", str(store))[0]
    assert wanted == qemu_disk.size_bytes(Machine("same").disk)
    with nbd.opened(Machine("same").disk, "qcow2") as disk:
        assert data == disk.read(beyond, len(data))
    made = kimbox("--json", "create", "more", "--from", str(store), "--disk", "20GiB")[1]
    assert ("disk.size=20GiB",) == Machine(result(made, "create")["name"]).record().settings
    assert makesaved.get(machine, world, "persistent/mine") == makesaved.get(Machine("same"), world, "persistent/mine")
    with contextlib.closing(open_store(str(store))) as opened:
        manifest = found.require(opened, None)[0]
    larger = attrs.evolve(manifest, disk=attrs.evolve(manifest.disk, size_bytes=30 * GIB))
    spec = Path(Machine("same").record().source)
    with pytest.raises(KimboxError) as caught:
        specs.load(spec, ["disk.size=20GiB"], larger, str(store), is_own=True)
    assert "disk-smaller" == caught.value.code
