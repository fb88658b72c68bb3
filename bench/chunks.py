"""What a snapshot costs who writes to it, by its chunk size: fio in a box, against a plain volume of the same size.

    python -m bench.chunks [-n 3]

A box is made with a small volume beside its own, which holds a piece of `root` and then a file system. In turns and in
changing order every chunk size gets a snapshot of it. All of them, and the plain volume that fio is run on, lie in the
same extents, written before, so that none pays for growth of the host's file. `unpack` is a tar of /usr/share and
/usr/bin onto ext4, with its sync; `stored` is what that takes in the snapshot against the size of the tar. Ratios are
medians over the turns, against the plain volume; SNAPSHOT_CHUNK_BYTES was chosen by them.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from bench.common import note, options, show
from kimbox import paths
from kimbox.actions import stop
from kimbox.actions.up import UpRequest, up
from kimbox.guest.ssh import Guest
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.spec.layout import MIB, SECTOR_BYTES, dm_name
from kimbox.spec.load import load_box

CHUNKS = ("4k", "16k", "64k", "256k")
PLAIN = "plain"

NAME = "bench-chunks"
SPEC = f"""kimbox: 1
name: {NAME}
base: [minimal.yaml]
image: {{packages: [fio]}}
boot: resnap
disk: {{size: 7GiB}}
"""

#: Of the volume, and of a snapshot that can hold a change of all of it.
VOLUME_MIB = 384
SNAPSHOT_MIB = 416

#: One after another on one device; later ones find what the earlier ones left. First writes go to regions of their own.
JOBS = {
    "first random 4k writes": "--rw=randwrite --bs=4k --size=128M --io_size=4M",
    "first random 4k writes, 16 deep": "--rw=randwrite --bs=4k --size=128M --offset=128M --io_size=8M "
    "--ioengine=libaio --iodepth=16",
    "first sequential 1M writes": "--rw=write --bs=1M --size=96M --offset=256M",
    "random 4k writes again": "--rw=randwrite --bs=4k --size=96M --offset=256M --io_size=8M",
    "random 4k reads": "--rw=randread --bs=4k --size=96M --offset=256M --io_size=8M",
}
FIO = "fio --name=job --filename=%s --direct=1 --ioengine=psync --randseed=7 --output-format=json %s"

#: Two volumes with the same file system over the same old data, and extents for a third that have been written.
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


def ask(guest: Guest, script: str) -> str:
    """What a script prints that root runs in the guest."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        answer = guest.run("sudo sh -s", timeout_s=600, stdin=Path(file.name))
    if answer.code != 0:
        raise SystemExit(f"in the guest: {answer.stderr or answer.stdout}\n{script}")
    return answer.stdout


def jobs(guest: Guest, device: str) -> dict[str, dict[str, float]]:
    """Throughput, mean latency and its 99th percentile, of each job on a device."""
    found = {}
    for title, words in JOBS.items():
        (job,) = json.loads(ask(guest, FIO % (device, words)))["jobs"]
        side = job["read"] if "read" in words else job["write"]
        found[title] = {
            "MiB/s": side["bw_bytes"] / MIB,
            "mean_ms": side["clat_ns"]["mean"] / 1e6,
            "p99_ms": side["clat_ns"]["percentile"]["99.000000"] / 1e6,
        }
    return found


def turn(guest: Guest, group: str, size_bytes: int) -> dict[str, dict[str, dict[str, float]]]:
    """Every chunk size, and plain volumes, once: first a file system, then a bare device."""
    result = {}
    for name in random.sample((*CHUNKS, PLAIN), len(CHUNKS) + 1):
        made = f"-s -c {name} {group}/origin" if name != PLAIN else group
        make = f"lvcreate -qq -y -L {SNAPSHOT_MIB}M -n work {made}"
        remove = f"lvremove -qq -y {group}/work"
        if name != PLAIN:
            ask(guest, make)
        device = dm_name(group, "work" if name != PLAIN else PLAIN)
        start, end, sectors = map(float, ask(guest, UNPACK % {"device": device}).split())
        result[name] = {"unpack": {"MiB/s": size_bytes / MIB / (end - start)}}
        if name != PLAIN:
            result[name]["unpack"]["stored"] = sectors * SECTOR_BYTES / size_bytes
            ask(guest, remove)
        ask(guest, make)
        result[name] |= jobs(guest, f"/dev/mapper/{dm_name(group, 'work')}")
        ask(guest, remove)
        note(f"{name}: {result[name]}")
    return result


def against_plain(turns: list[dict[str, dict[str, dict[str, float]]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians of each turn's ratios to its plain volume; of `stored` itself."""
    rows: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for found in turns:
        for chunk in CHUNKS:
            for title, values in found[chunk].items():
                for what, value in values.items():
                    rows[title][what][chunk].append(value / found[PLAIN][title].get(what, 1.0))
    return {
        title: {
            what: {chunk: round(statistics.median(row), 2) for chunk, row in by_chunk.items()}
            for what, by_chunk in kinds.items()
        }
        for title, kinds in rows.items()
    }


def main() -> None:
    """Measures and prints one JSON object."""
    asked = options(__doc__, n=3)
    with tempfile.TemporaryDirectory(dir=paths.home(), prefix="bench-") as work:
        spec = Path(work) / "kimbox.yaml"
        spec.write_text(SPEC)
        machine = Machine(NAME)
        up(UpRequest(Project(load_box(spec))))
        try:
            with Guest(machine.endpoint(machine.record())) as guest:
                group, size = ask(guest, PREPARE).split()
                turns = [turn(guest, group, int(size)) for _ in range(asked.n)]
        finally:
            stop.destroy(machine)
    show({"against the plain volume": against_plain(turns), "turns": turns})


if __name__ == "__main__":
    main()
