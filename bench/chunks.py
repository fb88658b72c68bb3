"""Speed of an LVM snapshot for each chunk size, measured with fio in a box, compared with a plain volume.

    python -m bench.chunks [-n 3]

The box gets another small volume with data of `root` and a file system. Each round measures a snapshot of this volume
with every chunk size, in random order, and a plain volume of the same size. All of them use the same extents, which
were written before, so that no measurement includes the growth of the host's file. `unpack` extracts a tar archive of
/usr/share and /usr/bin to ext4 and syncs. `stored` is the space that this needs in the snapshot, relative to the size
of the archive. Ratios are medians of all rounds, relative to the plain volume. They determined SNAPSHOT_CHUNK_BYTES.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from bench.common import options, progress, show, work_folder
from kimbox.actions import stop
from kimbox.actions.up import UpRequest, up
from kimbox.guest.ssh import Guest
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.spec.layout import MIB, SECTOR_BYTES, dm_name
from kimbox.spec.load import load_box

#: Measured chunk sizes, as lvcreate(8) reads them.
CHUNKS = ("4k", "16k", "64k", "256k")

#: Name of the plain volume.
PLAIN = "plain"

NAME = "bench-chunks"
SPEC = f"""kimbox: 1
name: {NAME}
base: [minimal.yaml]
image: {{packages: [fio]}}
boot: resnap
disk: {{size: 7GiB}}
"""

#: Sizes of the volume, and of a snapshot that has space for a change of the complete volume, in MiB.
VOLUME_MIB = 384
SNAPSHOT_MIB = 416

#: Jobs of fio, run in this order on one device: a job sees the writes of earlier jobs. Each job of first writes has its
#: own region.
JOBS = {
    "first random 4k writes": "--rw=randwrite --bs=4k --size=128M --io_size=4M",
    "first random 4k writes, 16 deep": "--rw=randwrite --bs=4k --size=128M --offset=128M --io_size=8M "
    "--ioengine=libaio --iodepth=16",
    "first sequential 1M writes": "--rw=write --bs=1M --size=96M --offset=256M",
    "random 4k writes again": "--rw=randwrite --bs=4k --size=96M --offset=256M --io_size=8M",
    "random 4k reads": "--rw=randread --bs=4k --size=96M --offset=256M --io_size=8M",
}
FIO = "fio --name=job --filename=%s --direct=1 --ioengine=psync --randseed=7 --output-format=json %s"

#: Creates two volumes with the same old data and file system, and writes the extents of a third volume.
PREPARE = f"""
set -e
vg=$(sed 's/.*volgroup=\\([^ ]*\\).*/\\1/' /proc/cmdline)
for name in origin plain; do
    lvcreate -qq -y -L {VOLUME_MIB}M -n $name $vg
    dd if=/dev/$vg/root of=/dev/$vg/$name bs=1M count={VOLUME_MIB} oflag=direct 2>/dev/null
    mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/$vg/$name
done
lvcreate -qq -y -L {SNAPSHOT_MIB}M -n work $vg
dd if=/dev/zero of=/dev/$vg/work bs=1M count={SNAPSHOT_MIB} oflag=direct 2>/dev/null
lvremove -qq -y $vg/work
mkdir -p /run/tar /mnt
mount -t tmpfs tmpfs /run/tar
tar -C / -cf /run/tar/usr.tar usr/share usr/bin
echo $vg
stat -c %s /run/tar/usr.tar
"""
UNPACK = r"""
set -e
mount /dev/mapper/%(device)s /mnt
rm -rf /mnt/unpacked
mkdir /mnt/unpacked
sync -f /mnt
used() { dmsetup status %(device)s | awk '{ split($4, at, "/"); print at[1] + 0 }'; }
before=$(used)
read -r start _ </proc/uptime
tar -C /mnt/unpacked -xf /run/tar/usr.tar
sync -f /mnt
read -r end _ </proc/uptime
echo "$start $end $(($(used) - before))"
umount /mnt
"""


def run_script(guest: Guest, script: str) -> str:
    """Runs a script as root in the guest and returns its output."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        done = guest.run("sudo sh -s", timeout_s=600, stdin=Path(file.name))
    if done.code != 0:
        raise SystemExit(f"a script failed in the guest:\n{script}\n{done.stderr or done.stdout}")
    return done.stdout


def jobs(guest: Guest, device: str) -> dict[str, dict[str, float]]:
    """Throughput, mean latency and 99th percentile of the latency of each job on a device."""
    results = {}
    for title, words in JOBS.items():
        (job,) = json.loads(run_script(guest, FIO % (device, words)))["jobs"]
        side = job["read"] if "read" in words else job["write"]
        results[title] = {
            "MiB/s": side["bw_bytes"] / MIB,
            "mean_ms": side["clat_ns"]["mean"] / 1e6,
            "p99_ms": side["clat_ns"]["percentile"]["99.000000"] / 1e6,
        }
    return results


def turn(guest: Guest, group: str, size_bytes: int) -> dict[str, dict[str, dict[str, float]]]:
    """Measures every chunk size and the plain volume once: first with a file system, then as a device."""
    result = {}
    for name in random.sample((*CHUNKS, PLAIN), len(CHUNKS) + 1):
        kind = f"-s -c {name} {group}/origin" if name != PLAIN else group
        create = f"lvcreate -qq -y -L {SNAPSHOT_MIB}M -n work {kind}"
        remove = f"lvremove -qq -y {group}/work"
        if name != PLAIN:
            run_script(guest, create)
        device = dm_name(group, "work" if name != PLAIN else PLAIN)
        start, end, sectors = map(float, run_script(guest, UNPACK % {"device": device}).split())
        result[name] = {"unpack": {"MiB/s": size_bytes / MIB / (end - start)}}
        if name != PLAIN:
            result[name]["unpack"]["stored"] = sectors * SECTOR_BYTES / size_bytes
            run_script(guest, remove)
        run_script(guest, create)
        result[name] |= jobs(guest, f"/dev/mapper/{dm_name(group, 'work')}")
        run_script(guest, remove)
        progress(f"{name}: {result[name]}")
    return result


def against_plain(turns: list[dict[str, dict[str, dict[str, float]]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians of the ratios of each round to its plain volume. `stored` is not divided, but a median, too."""
    rows: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for results in turns:
        for chunk in CHUNKS:
            for title, values in results[chunk].items():
                for unit, value in values.items():
                    rows[title][unit][chunk].append(value / results[PLAIN][title].get(unit, 1.0))
    return {
        title: {
            unit: {chunk: round(statistics.median(row), 2) for chunk, row in by_chunk.items()}
            for unit, by_chunk in units.items()
        }
        for title, units in rows.items()
    }


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = options(__doc__, n=3)
    with work_folder() as work:
        spec = work / "kimbox.yaml"
        spec.write_text(SPEC)
        machine = Machine(NAME)
        up(UpRequest(Project(load_box(spec))))
        try:
            with Guest(machine.endpoint(machine.record())) as guest:
                group, size = run_script(guest, PREPARE).split()
                turns = [turn(guest, group, int(size)) for _ in range(arguments.n)]
        finally:
            stop.destroy(machine)
    show({"against the plain volume": against_plain(turns), "turns": turns})


if __name__ == "__main__":
    main()
