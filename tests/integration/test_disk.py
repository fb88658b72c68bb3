"""assemble() in the real namespace with the real mke2fs: sound file systems at their places, on a sparse disk."""

from __future__ import annotations

import contextlib
import io
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinyimage

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image import namespace
from kimbox.image.build import disk
from kimbox.image.disk import sectors
from kimbox.image.inputs.recipe import EPOCH_S, Recipe
from kimbox.spec.layout import Extent

MIB = 1 << 20


pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")


@contextlib.contextmanager
def tree(work: Path) -> Iterator[tuple[Recipe, Path]]:
    """The tiny tree in a new folder, removed in the end: pytest cannot, where its files belong to other ids."""
    plan = tinyimage.tiny_recipe()
    work.mkdir()
    try:
        tinyimage.fill(plan, work, on_line=lambda _: None, log=io.StringIO())
        yield plan, work
    finally:
        namespace.remove(work)


def assembled(folder: Path) -> tuple[Path, int]:
    """A disk of the tiny tree, and what assemble() said of its size."""
    with tree(folder / "work") as (plan, work):
        return folder / "disk.raw", disk.assemble(plan, work, folder / "disk.raw")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """One for all."""
    return assembled(tmp_path_factory.mktemp("made"))


LAYOUT = tinyimage.tiny_recipe().layout
PLACES = {"boot": LAYOUT.boot, "root": LAYOUT.root.place, "persistent": LAYOUT.persistent.place}


def ask(path: Path, place: Extent, command: str) -> str:
    """What debugfs says of a file system on the disk."""
    return run.run(["debugfs", "-R", command, f"{path}?offset={place.offset_bytes}"]).stdout


def listing(path: Path, place: Extent, folder: str) -> dict[str, tuple[int, int, int]]:
    """Mode, user and group of every entry of a folder."""
    rows = [line.split("/") for line in ask(path, place, f"ls -p {folder}").splitlines() if line.startswith("/")]
    return {row[5]: (int(row[2], 8), int(row[3]), int(row[4])) for row in rows}


@pytest.mark.parametrize("name", list(PLACES))
def test_fsck_finds_nothing(made: tuple[Path, int], name: str) -> None:
    """Each file system is clean, fills its place, and bears its label."""
    place = PLACES[name]
    done = run.run(["e2fsck", "-fn", f"{made[0]}?offset={place.offset_bytes}"], check=False)
    assert 0 == done.code, done.stdout
    said = ask(made[0], place, "show_super_stats -h")
    label = {"boot": "kimbox-boot", "root": "kimbox-root", "persistent": "kimbox-persist"}[name]
    assert label == re.search(r"volume name: +(\S+)", said)[1]  # type: ignore[index]
    assert place.size_bytes // 4096 == int(re.search(r"Block count: +(\d+)", said)[1])  # type: ignore[index]


def test_owners_and_modes(made: tuple[Path, int]) -> None:
    """Those of the tree, not of whoever builds."""
    etc = listing(made[0], PLACES["root"], "/etc")
    assert (stat.S_IFREG | 0o640, 0, 42) == etc["shadow"]
    assert (stat.S_IFREG | 0o644, 0, 0) == etc["hostname"]
    assert stat.S_ISLNK(etc["link"][0])
    assert (1000, 1000) == listing(made[0], PLACES["root"], "/home/user")["file"][1:]
    top = listing(made[0], PLACES["root"], "/")
    assert (stat.S_IFDIR | 0o755, 0, 0) == top["persistent"] == top["boot"] == top["."]


def test_each_part_is_where_it_belongs(made: tuple[Path, int]) -> None:
    """/boot and /persistent on file systems of their own; nothing that only a build needs."""
    path = made[0]
    assert {".", "..", "lost+found", "grub", "lost"} == set(listing(path, PLACES["boot"], "/"))
    assert {".", "..", "grub.cfg"} == set(listing(path, PLACES["boot"], "/grub"))
    assert {".", "..", "lost+found", "runsetup", "dir"} == set(listing(path, PLACES["persistent"], "/"))
    assert (stat.S_IFREG | 0o755, 0, 0) == listing(path, PLACES["persistent"], "/")["runsetup"]
    for empty in ("/boot", "/persistent", "/dev", "/tmp", "/run", "/proc", "/sys"):
        assert {".", ".."} == set(listing(path, PLACES["root"], empty)), empty


def test_no_time_tells_of_the_build(made: tuple[Path, int]) -> None:
    """What is newer than the epoch of images is set back to it, what is older stays."""
    for name, seconds in (("/etc/shadow", EPOCH_S), ("/etc/hostname", 100), ("/home", EPOCH_S)):
        found = re.search(r"mtime: 0x([0-9a-f]+)", ask(made[0], PLACES["root"], f"stat {name}"))
        assert seconds == int(found[1], 16), name  # type: ignore[index]


def test_the_disk_is_sparse(made: tuple[Path, int]) -> None:
    """It takes what is in it, and is as long as the spec says."""
    info = made[0].stat()
    assert LAYOUT.size_bytes == info.st_size
    assert info.st_blocks * 512 < 8 * MIB
    assert 0 < made[1] < MIB


def test_boot_code_and_swap_are_in_place(made: tuple[Path, int]) -> None:
    """GRUB's two files before the first partition, and the swap header at its volume."""
    with made[0].open("rb") as file:
        start = file.read(4096)
        assert LAYOUT.swap
        file.seek(LAYOUT.swap.place.offset_bytes)
        page = file.read(4096)
    assert sectors.mbr(LAYOUT, tinyimage.tiny_recipe().key, b"B" * 512) == start[:512]
    assert b"C" * 3000 == start[512:3512]
    assert b"SWAPSPACE2" == page[-10:]


def test_uuids_follow_from_the_key(made: tuple[Path, int], tmp_path: Path) -> None:
    """The same recipe gives the same file system UUIDs and hash seeds."""
    again = assembled(tmp_path)[0]
    for place in PLACES.values():
        one, other = (ask(p, place, "show_super_stats -h") for p in (made[0], again))
        for what in ("Filesystem UUID", "Directory Hash Seed", "Filesystem created"):
            assert re.search(rf"{what}: +(.+)", one)[1] == re.search(rf"{what}: +(.+)", other)[1]  # type: ignore[index]


def test_what_does_not_fit_says_so(tmp_path: Path) -> None:
    """A root larger than its volume is mke2fs's failure, by name."""
    with tree(tmp_path / "work") as (plan, work):
        (work / "root/large").write_bytes(b"x" * 20 * MIB)
        with pytest.raises(run.CommandError, match=r"^mke2fs failed"):
            disk.assemble(plan, work, tmp_path / "disk.raw")


def test_a_root_without_grub_is_refused(tmp_path: Path) -> None:
    """A damaged boot.img is an error of the image."""
    with tree(tmp_path / "work") as (plan, work):
        (work / "root/boot/grub/boot.img").write_bytes(b"short")
        with pytest.raises(ImageError, match=r"boot\.img has 5 bytes"):
            disk.assemble(plan, work, tmp_path / "disk.raw")
