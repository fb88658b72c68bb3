"""The kept root: what `kept save` writes is put back exactly by the initramfs. Anything else leaves an empty snapshot.

The volumes are files, and the file of the snapshot is on the "disk" of the initramfs. fsfreeze and dmsetup are doubles.
Each test runs with a root that fits into the volume as it is, and with one that must be compressed.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from kimbox import paths, run
from kimbox.image.disk import keptroot

BOOT = paths.provisioners_dir() / "boot/root"
KEPT = BOOT / "usr/lib/kimbox/kept"
INITRAMFS = BOOT / "etc/initramfs-tools/scripts"

MIB = 1 << 20
CHUNK = 64 << 10

#: The COW store: its size, and the part that is in use.
STORE_BYTES, USED_BYTES = 8 * MIB, 3 * MIB + 5 * CHUNK

#: Places of the volumes on the disk of the initramfs, in bytes.
ROOT_AT, STORE_AT, KEPT_AT = MIB, 5 * MIB, 13 * MIB
KEPT_BYTES = 6 * MIB

NAME = "a" * 64 + "-" + "b" * 40

#: struct disk_header (Linux, drivers/md/dm-snap-persistent.c): magic, valid, version, sectors of a chunk.
STORE_HEADER = struct.pack("<4s3I", b"SnAp", 1, 1, 128)

DMSETUP = f"""#!/bin/sh
case $1 in
status) echo "0 8192 snapshot {USED_BYTES // 512}/{STORE_BYTES // 512} 256" ;;
table) echo "0 8192 snapshot 253:0 253:2 P 128" ;;
esac
"""

#: dmsetup of the initramfs: `create NAME --readonly --readahead N --table TABLE` copies the range of a table to a file.
MAPPER = """#!/bin/sh
case $1 in
create)
	set -- "$2" $7
	/usr/bin/dd if="$5" bs=512 skip="$6" count="$3" of="$KIMBOX_MAPPER/$1" 2>/dev/null
	;;
remove) rm "$KIMBOX_MAPPER/$2" ;;
esac
"""

#: dd of a box whose volume has no room for the root as it is.
SMALL_DD = """#!/bin/sh
case "$*" in
if=*" of="*_kept" seek=1 "*)
	echo "dd: error writing: No space left on device" >&2
	exit 1
	;;
esac
exec /usr/bin/dd "$@"
"""

#: Runs put_back on the disk $1. The places are in sectors.
PUT_BACK = f"""
CHUNK=64 vg=vg lvsnap=root_snap
root_pv=$1 root_at={ROOT_AT // 512}
snap_pv=$1 snap_at={STORE_AT // 512} snap_sectors={STORE_BYTES // 512}
kept_pv=$1 kept_at={KEPT_AT // 512} kept_sectors={KEPT_BYTES // 512}
notice() {{ :; }}
die() {{ exit 70; }}
. "$2/kimbox-kept"
put_back
"""


@attrs.frozen
class Volumes:
    """A folder with the /dev, /proc and /run of a box, and the disk of its initramfs."""

    folder: Path
    #: The program dd of the box.
    dd: Path

    @property
    def store(self) -> Path:
        """The COW store of the snapshot."""
        return self.folder / "dev/mapper/vg-root_snap-cow"

    @property
    def root(self) -> Path:
        """The root volume."""
        return self.folder / "dev/mapper/vg-root"

    @property
    def kept(self) -> Path:
        """The volume with the kept root."""
        return self.folder / "dev/mapper/vg-root_snap_kept"

    def install(self, folder: str, programs: dict[str, str]) -> Path:
        """Writes programs into a folder, and returns it. PATH of the box has the folder `tools`."""
        path = self.folder / folder
        path.mkdir(exist_ok=True)
        for name, text in programs.items():
            (path / name).write_text(text)
            (path / name).chmod(0o755)
        return path

    def call(self, *words: str) -> run.Completed:
        """Runs the program `kept`."""
        env = {"KIMBOX_ROOT": str(self.folder), "KIMBOX_PATH": str(self.folder / "tools")}
        return run.run([KEPT, *words], check=False, env=env)

    def save(self) -> None:
        """Keeps the root."""
        done = self.call("save", NAME)
        assert done.ok, done.stdout + done.stderr

    def put_back(self, tools: Path | None = None) -> tuple[bytes, str]:
        """Empties the snapshot and puts back. Returns the COW store, and the report for provisiond.

        `tools`: a folder with other programs.
        """
        disk, reports = self.folder / "disk", self.folder / "run"
        with disk.open("wb") as file:
            file.truncate(KEPT_AT + KEPT_BYTES + MIB)
            for at, volume in ((ROOT_AT, self.root), (KEPT_AT, self.kept)):
                file.seek(at)
                file.write(volume.read_bytes())
        report = reports / "kimbox/kept"
        report.unlink(missing_ok=True)
        programs = self.install("initramfs", {"dmsetup": MAPPER, "dd.coreutils": '#!/bin/sh\nexec /usr/bin/dd "$@"\n'})
        path = f"{tools or programs}:{programs}:/usr/bin:/bin"
        env = {"KIMBOX_RUN": str(reports), "KIMBOX_MAPPER": str(self.folder), "PATH": path}
        run.run(["sh", "-c", PUT_BACK, "sh", disk, INITRAMFS], check=False, env=env)
        with disk.open("rb") as file:
            file.seek(STORE_AT)
            return file.read(STORE_BYTES), report.read_text() if report.exists() else ""


@pytest.fixture(params=["plain", "lz4"])
def volumes(tmp_path: Path, request: pytest.FixtureRequest) -> Volumes:
    """Volumes with random content. The store has a header, zeros after it, and an unused rest."""
    for folder in ("dev/mapper", "proc", "run/kimbox"):
        (tmp_path / folder).mkdir(parents=True)
    made = Volumes(tmp_path, Path("/usr/bin/dd") if request.param == "plain" else tmp_path / "tools/small-dd")
    (tmp_path / "proc/cmdline").write_text(
        "root=/dev/mapper/vg-root_snap ro volgroup=vg lvroot=root lvsnap=root_snap lvsize=8M resnap\n"
    )
    (tmp_path / "proc/version").write_text(Path("/proc/version").read_text())
    fsfreeze = f'#!/bin/sh\necho "$1" >>{tmp_path}/frozen\n'
    dd = f'#!/bin/sh\nexec {made.dd} "$@"\n'
    made.install("tools", {"dmsetup": DMSETUP, "fsfreeze": fsfreeze, "small-dd": SMALL_DD, "dd": dd})
    data = random.Random(1)  # noqa: S311 - not a secret
    made.store.write_bytes(STORE_HEADER.ljust(CHUNK, b"\0") + data.randbytes(STORE_BYTES - CHUNK))
    made.root.write_bytes(data.randbytes(4 * MIB))
    made.kept.write_bytes(data.randbytes(KEPT_BYTES))
    return made


#: The beginning of a double: `copy` copies a file.
COPY = """#!/bin/sh
copy() {{ cp --sparse=always {file} {copies}/$(printf %03d $(ls {copies} | wc -l)); }}
"""

#: A double of dd: copies a file before and after each write, and once in the middle of it. The power fails there.
CUTTING_DD = """\
case "$*" in
*of={file}*) ;;
*) exec {dd} "$@" ;;
esac
copy
case "$*" in
if=*)
	for word; do
		case $word in
		count=*) echo "count=$((${{word#count=}} / 2 / 4096 * 4096))" ;;
		*) echo "$word" ;;
		esac
	done >{copies}.words
	{dd} $(cat {copies}.words) 2>/dev/null
	copy
	{dd} "$@"
	;;
*)
	cat >{copies}.data
	/usr/bin/head -c $(($(wc -c <{copies}.data) / 2 / 512 * 512)) {copies}.data | {dd} "$@" 2>/dev/null
	copy
	{dd} "$@" <{copies}.data
	;;
esac
code=$?
copy
exit $code
"""

#: The same of lz4, which writes where its stdout is.
CUTTING_LZ4 = """\
copy
/usr/bin/lz4 "$@" >{copies}.data
code=$?
half=$(($(wc -c <{copies}.data) / 2 / 512 * 512))
/usr/bin/head -c $half {copies}.data
copy
/usr/bin/tail -c +$((half + 1)) {copies}.data
copy
exit $code
"""


def cutting(volumes: Volumes, file: Path) -> Path:
    """Returns a folder with dd and lz4 that copy a file at each write. The copies are in the folder `copies`."""
    copies = volumes.folder / "copies"
    copies.mkdir()
    doubles = {"dd": CUTTING_DD, "dd.coreutils": CUTTING_DD, "lz4": CUTTING_LZ4}
    texts = {name: (COPY + text).format(file=file, copies=copies, dd=volumes.dd) for name, text in doubles.items()}
    return volumes.install("cutting", texts)


def is_empty(store: bytes) -> bool:
    """Whether the kernel starts a new snapshot with this COW store: its header is zero."""
    return store[:CHUNK] == bytes(CHUNK)


def test_what_was_saved_is_put_back(volumes: Volumes) -> None:
    """The used part of the store is the same, the root was frozen meanwhile, and the host reads the name."""
    assert volumes.call("name").stdout == ""
    volumes.save()
    assert (volumes.folder / "frozen").read_text().split()[:2] == ["-f", "-u"]
    assert volumes.call("name").stdout == f"{NAME}\n"
    kept = volumes.kept.read_bytes()
    read = lambda offset, size: kept[offset : offset + size]  # noqa: E731
    assert keptroot.manifest(read) == NAME
    assert MIB < keptroot.used_bytes(read, len(kept)) < len(kept)
    assert kept[:512].rstrip(b"\0").endswith(b"\nlz4\nend\n") == (volumes.dd.name == "small-dd")
    store, report = volumes.put_back()
    assert store[:USED_BYTES] == volumes.store.read_bytes()[:USED_BYTES]
    assert report == f"{NAME}\n"
    assert volumes.call("drop").ok
    assert keptroot.manifest(lambda offset, size: volumes.kept.read_bytes()[offset : offset + size]) == ""
    store, report = volumes.put_back()
    assert is_empty(store)
    assert report == ""


def edit(volume: Path, at: int, data: bytes) -> None:
    """Overwrites bytes of a volume."""
    with volume.open("r+b") as file:
        file.seek(at)
        file.write(data)


DAMAGES: dict[str, tuple[Callable[[Volumes], None], str]] = {
    "root": (lambda v: edit(v.root, 1024 + 44, b"\1\2\3\4"), "the root itself has changed since"),
    "header": (lambda v: edit(v.kept, 20, b"x"), "the header of the kept root is damaged"),
    "no-end": (lambda v: edit(v.kept, 150, bytes(362)), "the header of the kept root is damaged"),
    "too-long": (
        lambda v: edit(
            v.kept, 0, f"kimbox-kept 2\n{NAME}\n{os.uname().release}\n128\n{KEPT_BYTES}\nlz4\nend\n".encode()
        ),
        "the header of the kept root is damaged",
    ),
    "too-large": (
        lambda v: edit(v.kept, 0, f"kimbox-kept 2\n{NAME}\n{os.uname().release}\n99999\n9\nlz4\nend\n\0\0".encode()),
        "the header of the kept root is damaged",
    ),
    "too-short": (
        lambda v: edit(v.kept, 0, f"kimbox-kept 2\n{NAME}\n{os.uname().release}\n256\n9\n{'0' * 16}\nend\n".encode()),
        "the kept root is damaged",
    ),
    "former": (
        lambda v: edit(v.kept, 0, f"kimbox-kept 1\n{NAME}\n{os.uname().release}\n256\n9\nend\n\0".encode()),
        "the header of the kept root is damaged",
    ),
    "kernel": (lambda v: edit(v.kept, 14 + len(NAME) + 1, b"9"), "the root was kept under the kernel 9"),
    "data": (lambda v: edit(v.kept, 2 * MIB, b"damaged"), "the kept root is damaged"),
    "first-byte": (lambda v: edit(v.kept, MIB, b"x"), "the kept root is damaged"),
    "end-of-data": (lambda v: edit(v.kept, 3 * MIB, bytes(3 * MIB)), "the kept root is damaged"),
    "superblock": (lambda v: edit(v.kept, 1030, b"xxxxx"), "the root itself has changed since"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_difference_leaves_an_empty_snapshot(volumes: Volumes, damage: str) -> None:
    """Whatever differs, the snapshot is empty, and the reason is for provisiond."""
    volumes.save()
    change, reason = DAMAGES[damage]
    change(volumes)
    store, report = volumes.put_back()
    assert is_empty(store)
    assert report.startswith(f"- {reason}")


#: A double of dd: the volume has no space for the data.
FULL = """#!/bin/sh
case "$*" in
*_kept*" seek=1 conv=notrunc,fsync")
	echo "dd: error writing: No space left on device" >&2
	exit 1
	;;
esac
exec /usr/bin/dd "$@"
"""


def test_what_cannot_be_kept_ends_what_was_kept(volumes: Volumes) -> None:
    """A volume that is too small, another chunk size, a disk without the volume: status 3, and the reason."""
    volumes.save()
    dd = volumes.install("tools", {"dd": FULL}) / "dd"
    done = volumes.call("save", NAME)
    assert (done.code, done.stdout) == (
        3,
        "what provisioning has changed does not fit into the volume vg-root_snap_kept\n",
    )
    assert (volumes.folder / "frozen").read_text().split()[-1] == "-u"
    dd.unlink()
    assert volumes.call("name").stdout == ""
    volumes.install("tools", {"dmsetup": DMSETUP.replace("P 128", "P 8")})
    done = volumes.call("save", NAME)
    assert (done.code, done.stdout) == (3, "the snapshot has another chunk size than 64 KiB\n")
    volumes.kept.unlink()
    done = volumes.call("save", NAME)
    assert (done.code, done.stdout) == (3, "the disk has no room for a kept root\n")
    assert volumes.call("drop").ok


def test_a_power_cut_while_a_root_is_kept(volumes: Volumes) -> None:
    """At each point: the former one, the new one, or nothing is put back. The new one only when all of it is there."""
    volumes.save()
    former = volumes.store.read_bytes()[:USED_BYTES]
    edit(volumes.store, 2 * CHUNK, b"changed" * 100)
    new = volumes.store.read_bytes()[:USED_BYTES]
    (cutting(volumes, volumes.kept) / "dd").rename(volumes.folder / "tools/dd")
    volumes.save()
    found = []
    for copy in sorted((volumes.folder / "copies").iterdir()):
        volumes.kept.write_bytes(copy.read_bytes())
        store, report = volumes.put_back()
        assert is_empty(store) or (store[:USED_BYTES] in (former, new) and report == f"{NAME}\n")
        found.append("empty" if is_empty(store) else "former" if store[:USED_BYTES] == former else "new")
    assert found[0] == "former"
    assert found[-1] == "new"
    assert len(found) >= 12
    assert set(found[3:-3]) == {"empty"}


def test_a_power_cut_while_a_root_is_put_back(volumes: Volumes) -> None:
    """At each point the header of the snapshot is empty, or all of it is there."""
    volumes.save()
    whole = volumes.store.read_bytes()[:USED_BYTES]
    disk = volumes.folder / "disk"
    store, _ = volumes.put_back(cutting(volumes, disk))
    assert store[:USED_BYTES] == whole
    found = []
    for copy in sorted((volumes.folder / "copies").iterdir()):
        with copy.open("rb") as file:
            file.seek(STORE_AT)
            store = file.read(STORE_BYTES)
        assert is_empty(store) or store[:USED_BYTES] == whole
        found.append(is_empty(store))
    assert found[0]
    assert not found[-1]
    assert len(found) >= 6
