"""Real LVM in a guest: kimbox reads volume groups that LVM wrote, and shrinks and packages disks that LVM changed."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
from pathlib import Path

import attrs
import pytest
from conftest import Kimbox

from kimbox.image.disk.faults import UnknownUsage
from kimbox.image.disk.lvm import reader

pytestmark = pytest.mark.guest

#: The script that creates the layouts, and prints rows about them.
SCRIPT = Path(__file__).with_name("lvm-layouts")
FOLDER = "/dev/shm/lvm"

#: Reasons of refused layouts.
SEVERAL = "the volume group has several physical volumes"
ABSENT = "the physical volume belongs to no volume group, or the metadata is on another physical volume"

#: Refused layouts with the reason. Of a layout with several disks, `+` and the number of the disk follow the name.
REFUSED = {
    "cached": "the volume a has the type cache+CACHE_USES_CACHEVOL, which kimbox does not read",
    "errors": "the volume e has the type error, which kimbox does not read",
    "former": ABSENT,
    "ignored+1": ABSENT,
    "ignored+2": SEVERAL,
    "mirrored": "the volume m has the type mirror, which kimbox does not read",
    "missing+1": SEVERAL,
    "missing+2": SEVERAL,
    "orphan": ABSENT,
    "raid1+1": SEVERAL,
    "raid1+2": SEVERAL,
    "reducedpv+2": SEVERAL,
    "snapmerging": "a snapshot is being merged into its origin",
    "snapvirtual": "the volume s_vorigin has the type zero, which kimbox does not read",
    "spread+1": SEVERAL,
    "spread+2": SEVERAL,
    "striped+1": SEVERAL,
    "striped+2": SEVERAL,
    "thin": "the volume pool has the type thin-pool, which kimbox does not read",
    "written": "the volume a has the type writecache, which kimbox does not read",
    "zeros": "the volume z has the type zero, which kimbox does not read",
}

Pieces = list[tuple[int, int, int]]

#: Volumes that LVM does not report, because their group is exported.
UNREPORTED: dict[str, dict[str, Pieces]] = {"exported": {"a": [(0, 4 << 20, 1 << 20)]}}


@attrs.define
class Reported:
    """LVM's report on the group on one disk. Pieces: offset in the volume, size, offset on the disk, in bytes."""

    group: str
    start: int
    extent: int
    volumes: dict[str, Pieces] = attrs.field(factory=dict)
    snapshots: set[tuple[str, str, int]] = attrs.field(factory=set)


def reported(rows: str) -> dict[str, Reported]:
    """Parses the rows of the script. Returns reports by image name. A row `disk` assigns a device to a new image."""
    devices: dict[str, str] = {}
    reports: dict[str, Reported] = {}
    for row in rows.splitlines():
        if row.startswith("disk|"):
            _, image, device = row.split("|")
            devices[device] = image
            continue
        fields = dict(field.removeprefix("LVM2_").split("=", 1) for field in row.split("|"))
        if "PE_START" in fields:
            if image := devices.get(fields["PV_NAME"], ""):
                sizes = int(fields["PE_START"]), int(fields["VG_EXTENT_SIZE"] or 0)
                reports[image] = Reported(fields["VG_NAME"], *sizes)
        elif place := re.fullmatch(r"(/dev/loop\d+):(\d+)-\d+", fields["SEG_PE_RANGES"]):
            report, name = reports[devices[place[1]]], fields["LV_NAME"].strip("[]")
            start = report.start + int(place[2]) * report.extent
            report.volumes.setdefault(name, []).append((int(fields["SEG_START"]), int(fields["SEG_SIZE"]), start))
            if fields["ORIGIN"] and fields["SEGTYPE"] == "linear":
                report.snapshots.add((name, fields["ORIGIN"].strip("[]"), int(fields["CHUNK_SIZE"])))
    return reports


def read(path: Path) -> Reported:
    """Reads the group on a disk with kimbox."""
    size = path.stat().st_size
    with path.open("rb") as file:

        def pread(offset: int, count: int) -> bytes:
            file.seek(offset)
            return file.read(count)

        group = reader.read_group(pread, size)
    return Reported(
        group.name,
        group.start_bytes,
        0,
        {name: [attrs.astuple(piece) for piece in volume.segments] for name, volume in group.volumes.items()},  # type: ignore[misc]
        {attrs.astuple(snapshot) for snapshot in group.snapshots},  # type: ignore[misc]
    )


def test_what_real_lvm_writes_is_read_or_refused(minimal: Kimbox, tmp_path: Path) -> None:
    """For each layout, kimbox reads the same volumes at the same places as LVM, or refuses it with the reason."""
    run = f"cat >/persistent/layouts; sh /persistent/layouts {FOLDER} 2>{FOLDER}.log"
    rows = minimal("exec", "minimal", "--", "sudo", "sh", "-c", run, input=SCRIPT.read_text()).stdout
    packed = minimal.sh("minimal", f"cd {FOLDER} && sudo tar -czSf - *.img | base64; cat {FOLDER}.log >&2")
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed))) as tar:
        tar.extractall(tmp_path, filter="data")
    images = {path.stem: path for path in tmp_path.glob("*.img")}
    expected = reported(rows)
    for name, volumes in UNREPORTED.items():
        expected[name].volumes |= volumes
    assert len(images) >= 60
    assert set(REFUSED) <= set(images)
    refusals = {}
    for name, path in sorted(images.items()):
        try:
            group = read(path)
        except UnknownUsage as error:
            refusals[name] = error.message
        else:
            assert attrs.evolve(expected[name], extent=0) == group, name
    assert REFUSED == refusals
    assert {"a": [(0, 2 << 20, 1 << 20), (2 << 20, 2 << 20, 5 << 20), (4 << 20, 2 << 20, 9 << 20)]}.items() <= (
        expected["thrice"].volumes.items()
    )
    assert {("s", "a", 4096), ("t", "a", 512 << 10)} == expected["snaptwo"].snapshots


def test_a_box_whose_volumes_were_changed_is_shrunk_and_packed(minimal: Kimbox) -> None:
    """The guest creates a volume and extends the snapshot. Both keep their content, and kimbox reports no damage."""
    content = hashlib.sha256(b"extra").hexdigest()
    minimal.sh(
        "minimal",
        "set -e; sudo lvcreate -q -y -L 8M -n extra vagrant-pipeline; "
        "sudo lvextend -q -L +64M vagrant-pipeline/root_snap; "
        f"echo {content} | sudo tee /dev/vagrant-pipeline/extra /etc/kept >/dev/null; sync",
    )
    minimal("halt", "minimal")
    shrunk = minimal.json("shrink", "minimal")
    assert ("kept", []) == (shrunk["snapshot"], shrunk["notes"])
    assert shrunk["after_bytes"] < shrunk["before_bytes"]
    packed = minimal.json("package", "minimal", "--format", "qcow2", "--output", "out")
    assert packed["files"]
    minimal("up", "minimal")
    assert f"{content}\n" * 2 == minimal.sh("minimal", "sudo head -c 65 /dev/vagrant-pipeline/extra; cat /etc/kept")
    attributes = minimal.sh("minimal", "sudo lvs --noheadings -o lv_attr vagrant-pipeline/root_snap").strip()
    assert "swi-ao" == attributes[:6]  # a snapshot that is valid, active and in use
