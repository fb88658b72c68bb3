"""A folder of the host in a box (`mounts`), as ratios to the guest's own disk.

    python -m bench.mounts [-n 3] [--box minimal] [--files 2000]

untar: a tar archive of so many files of 12 KB is unpacked and written to the disk (sync). The source of Linux has about
80,000 files, 1.2 GB. status: `git status` in a repository of these files, after the caches of the guest were dropped.
again: the same once more, from the caches. Both folders are on the same disk of the host, and the archive is in the
guest. In each round the two take turns, so that the load of the host affects both.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
import tarfile
import tempfile
from pathlib import Path

import attrs

from bench.common import medians, progress, ratio, shipped, show, work_folder
from kimbox import paths
from kimbox.actions import stop
from kimbox.actions.up import UpRequest, up
from kimbox.guest.ssh import Guest
from kimbox.machine.folder import Machine
from kimbox.project.project import Project
from kimbox.spec.layout import EXTENT_BYTES
from kimbox.spec.model import Box, Mount

#: Names of the measurements.
KINDS = ("untar", "status", "again")

#: Name of the machine, and the folders in the guest.
NAME, OWN, SHARED = "bench-mounts", "/home/vagrant/own", "/home/vagrant/shared"

#: Size of a file in the archive, in bytes, and number of files in a folder of it.
FILE_BYTES, FILES_IN_FOLDER = 12_000, 50

#: Number of files for which the root of a shipped box has room, and the bytes that each further file needs: in the
#: archive, as a file, and in git's copy.
FILES_WITH_ROOM, ROOT_BYTES_FOR_FILE = 20_000, 4 * FILE_BYTES

#: Prints a line with the duration of each measurement in seconds. git writes one pack, and no file for each file of the
#: tree, because virtiofsd may have only so many files open (`kimbox doctor` shows how many).
MEASURE = """
set -e
cd {folder}
rm -rf tree
mkdir tree
cd tree
sync
now() {{ cut -d' ' -f1 /proc/uptime; }}
start=$(now)
tar -xf /var/tmp/tree.tar
sync -f .
untarred=$(now)
git init -q .
git config core.bigFileThreshold 1
git add .
git -c user.name=a -c user.email=a@example.org commit -qm x
sync
echo 3 | sudo -n tee /proc/sys/vm/drop_caches >/dev/null
cold=$(now)
git status >/dev/null
warm=$(now)
git status >/dev/null
echo "$start $untarred $cold $warm $(now)"
"""


def write_archive(path: Path, files: int) -> None:
    """Writes the archive, on the host: a guest without KVM needs 25 ms for each process that writes a file."""
    with tarfile.open(path, "w") as archive:
        for number in range(files):
            entry = tarfile.TarInfo(f"d{number // FILES_IN_FOLDER}/{number}")
            entry.size = FILE_BYTES
            archive.addfile(entry, io.BytesIO(os.urandom(FILE_BYTES)))


def with_room(box: Box, files: int) -> Box:
    """Returns the box with a root that has room for the files. Its snapshot is as large."""
    more = max(0, files - FILES_WITH_ROOM) * ROOT_BYTES_FOR_FILE // EXTENT_BYTES * EXTENT_BYTES
    root = attrs.evolve(box.disk.root, size_bytes=(box.disk.root.size_bytes or 0) + more)
    disk = attrs.evolve(box.disk, size_bytes=box.disk.size_bytes + 2 * more, root=root)
    return attrs.evolve(box, disk=disk)


def run_in(machine: Machine, script: str, stdin: Path | None = None) -> str:
    """Runs a script in the box. Returns its output."""
    with Guest(machine.endpoint(machine.record())) as guest:
        done = guest.run(f"sh -c {shlex.quote(script)}", timeout_s=3600, stdin=stdin)
    if done.code:
        sys.exit(f"a script failed in the guest: {done.stderr}")
    return done.stdout


def measure(machine: Machine, folder: str) -> dict[str, float]:
    """The duration of each measurement in a folder, in seconds."""
    start, untarred, cold, warm, end = map(float, run_in(machine, MEASURE.format(folder=folder)).split())
    return dict(zip(KINDS, (untarred - start, warm - cold, end - warm), strict=True))


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=3, help="number of repetitions (default: 3)")
    parser.add_argument("--box", default="minimal", help="name of a box that ships with kimbox (default: minimal)")
    parser.add_argument("--files", type=int, default=2000, help="number of files (default: 2000)")
    arguments = parser.parse_args()
    with work_folder() as folder:
        shared = Mount(folder, SHARED, writable=True)
        box = with_room(attrs.evolve(shipped(arguments.box), name=NAME, mounts=(shared,)), arguments.files)
        machine = Machine(NAME)
        rows: dict[str, dict[str, list[float]]] = {place: {kind: [] for kind in KINDS} for place in (OWN, SHARED)}
        try:
            up(UpRequest(Project(box, arguments.box)))
            with tempfile.NamedTemporaryFile(dir=paths.home()) as archive:
                write_archive(Path(archive.name), arguments.files)
                run_in(machine, f"mkdir {OWN} && cat >/var/tmp/tree.tar", Path(archive.name))
            for number in range(arguments.n):
                for place in (OWN, SHARED):
                    for kind, duration_s in measure(machine, place).items():
                        rows[place][kind].append(duration_s)
                progress(f"round {number + 1}: " + str({place: medians(row) for place, row in rows.items()}))
        finally:
            stop.destroy(machine)
    ratios = {kind: ratio(rows[SHARED][kind], rows[OWN][kind]) for kind in KINDS}
    show({"median_s": {place: medians(row) for place, row in rows.items()}, "ratios": ratios, "all_s": rows})


if __name__ == "__main__":
    main()
