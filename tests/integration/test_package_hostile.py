"""Packages and changes of a hostile root: names that steer other programs, very deep trees, files of any size."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import madedisk
import pytest
import tinyimage
import tinypackage
from clirun import Kimbox
from clirun import kimbox as kimbox
from clirun import world as world
from madedisk import BLOCK, PLACES
from tinypackage import Made, image_of, machine_of

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image.disk import compare, debugfs
from kimbox.image.disk.ext4.directories import Entry, shown
from kimbox.image.sanitize import restore

box, made = tinypackage.box, tinypackage.made  # fixtures

ROOT = PLACES["root"]

#: Names that are no words, no lines and no text.
NAMES = (
    b"a\nb", b'a"b', b"a\\b", b"\x1b[2J", b"\xff\xfe", b"!touch ran", b"!id", b" ", b"-f", b"\t", b"x" * 255,
    b"a\ndebugfs: x", b"[red]", "a\u2028b".encode(), "a\u0085b".encode(),
)  # fmt: skip

#: What every root has here.
ETC = {
    "machine-id": b"",
    "hostname": b"tiny\n",
    "hosts": b"127.0.0.1 localhost\n",
    "passwd": b"root:x:0:0::/root:/bin/sh\n",
}


def common(tree: Path) -> None:
    """The files of a root that nobody changed."""
    for name in ("etc", "tmp", "var/log", "var/tmp", "root", "home/user"):
        (tree / name).mkdir(parents=True)
    for name, data in ETC.items():
        (tree / "etc" / name).write_bytes(data)
    (tree / "etc/machine-id").chmod(0o444)


def rooted(disk: Path, tree: Path, fill: Callable[[Path], None]) -> None:
    """Makes the root of a disk anew, with what `fill` puts into a folder."""
    tree.mkdir()
    common(tree)
    fill(tree)
    size = f"{ROOT.size_bytes // 1024}k"
    options = f"offset={ROOT.offset_bytes},nodiscard"
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-N", "8192", "-E", options, "-d", tree, disk, size]
    run.run(argv)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The image that the machine is from."""
    disk = tmp_path / "image.raw"
    madedisk.make(disk)
    rooted(disk, tmp_path / "built", lambda tree: None)
    return disk


@pytest.fixture
def disk(image: Path, tmp_path: Path) -> Path:
    """A raw copy of the machine's disk; its root is for each test to make."""
    (tmp_path / "machine").mkdir()
    return Path(shutil.copy(image, tmp_path / "machine/clean.raw"))


def restored(disk: Path, image: Path) -> tuple[list[str], dict[bytes, Entry]]:
    """What was removed or reset, and every path that stayed; all is sound, and no other file was written."""
    told = restore.restore(disk, image)
    assert all(madedisk.is_sound(disk, place) for place in PLACES.values())
    assert ["clean.raw"] == [path.name for path in disk.parent.iterdir()]
    assert all(path.isprintable() for path in told)
    return told, tinypackage.everything(disk)


def deep(payload: str) -> str:
    """A debugfs script: folders with so long a path that debugfs cuts `ls -p "PATH"` right before the payload."""
    room = 8191 - len('ls -p "/tmp')
    names = []
    while room > 150:
        names.append("A" * 100)
        room -= 101
    names.append("C" * (room - 1) + payload)
    return "cd /tmp\n" + "".join(f'mkdir "{name}"\ncd "{name}"\n' for name in names)


@pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")
def test_a_path_of_a_guest_runs_nothing(made: Made, box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of 8 KiB of names, of which the last is a command of debugfs for the shell, are removed like others."""
    home = box / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    machine_of(box, image_of(box), deep("!cd;id >RAN #"))
    told = made("--format", "raw")["cleaned"]
    assert max(map(len, told)) > 8000
    assert [] == list(home.iterdir())
    assert [] == [path for path in tinypackage.everything(box / "tiny.raw") if path.startswith(b"/tmp/")]


@pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")
def test_a_package_of_a_root_with_strange_names(made: Made, kimbox: Kimbox, box: Path, tmp_path: Path) -> None:
    """It is made, in JSON and in words, and the names stay where nothing is to be removed."""

    def strange(tree: Path) -> None:
        for folder in ("tmp", "home/user", "var/log"):
            for name in NAMES:
                (tree / folder / os.fsdecode(name)).write_bytes(b"SECRET" if folder != "home/user" else b"kept")

    tree = tmp_path / "tree"
    tree.mkdir()
    common(tree)
    strange(tree)
    machine_of(box, image_of(box), "", tree=tree)
    assert {shown(b"/tmp/" + name) for name in NAMES} < set(made("--format", "raw", "-o", "a")["cleaned"])
    there = tinypackage.everything(box / "a/tiny.raw")
    assert sorted(b"/home/user/" + name for name in NAMES) == sorted(p for p in there if p.startswith(b"/home/user/"))
    assert b"SECRET" not in (box / "a/tiny.raw").read_bytes()
    code, out, err = kimbox("package", "--format", "raw", "-o", "b")
    assert (0, False) == (code, "\x1b[2J" in out + err)
    assert (box / "a/tiny.raw").read_bytes() == (box / "b/tiny.raw").read_bytes()


def test_names_that_steer(disk: Path, image: Path, tmp_path: Path) -> None:
    """They are removed and told like others, at any depth, and stay in the homes of people."""

    def strange(tree: Path) -> None:
        for folder in ("tmp", "var/log", "home/user"):
            for name in NAMES:
                (tree / folder / os.fsdecode(name)).mkdir()
                (tree / folder / os.fsdecode(name) / os.fsdecode(name)).write_bytes(b"x")
                (tree / folder / os.fsdecode(b"y" + name[:254])).symlink_to(os.fsdecode(name))

    rooted(disk, tmp_path / "tree", strange)
    told, there = restored(disk, image)
    assert {shown(b"/tmp/" + name) for name in NAMES} < set(told)
    assert {shown(b"/var/log/%s/%s" % (name, name)) for name in NAMES} < set(told)
    assert {b"/home/user/%s/%s" % (name, name) for name in NAMES} < there.keys()
    assert {b"/var/log/" + name for name in NAMES} == {path for path in there if path.startswith(b"/var/log/")}
    assert [] == [path for path in there if path.startswith(b"/tmp/")]


def test_a_tree_of_hundreds_of_levels(disk: Path, image: Path, tmp_path: Path) -> None:
    """Its paths are longer than any program takes."""

    def levels(tree: Path) -> None:
        folder = os.open(tree / "tmp", os.O_RDONLY)
        for level in range(400):
            name = f"{level:0>200}"
            os.mkdir(name, dir_fd=folder)
            below = os.open(name, os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = below
        os.close(folder)

    rooted(disk, tmp_path / "tree", levels)
    told, there = restored(disk, image)
    assert 400 == len(told)
    assert max(map(len, told)) > 80_000
    assert [] == [path for path in there if path.startswith(b"/tmp/")]


def test_another_name_of_a_file_that_stays(disk: Path, image: Path, tmp_path: Path) -> None:
    """A name in /tmp goes; the file, and the names of it elsewhere, stay."""

    def linked(tree: Path) -> None:
        for name in ("tmp/x", "tmp/y", "etc/passwd-"):
            os.link(tree / "etc/passwd", tree / name)
        (tree / "tmp/two").write_bytes(b"SECRET in a file of two names")
        os.link(tree / "tmp/two", tree / "var/log/two")
        os.link(tree / "etc/hosts", tree / "etc/hosts.mine")
        (tree / "etc/hosts").write_bytes(b"10.0.0.1 mine\n")

    rooted(disk, tmp_path / "tree", linked)
    told, there = restored(disk, image)
    assert ["/etc/hosts", "/tmp/two", "/tmp/x", "/tmp/y", "/var/log/two"] == told
    assert [2, 2] == [there[path].inode.links for path in (b"/etc/passwd", b"/etc/passwd-")]
    assert ETC["passwd"] == tinypackage.content(disk, b"/etc/passwd")
    assert b"10.0.0.1 mine\n" == tinypackage.content(disk, b"/etc/hosts.mine")
    assert ETC["hosts"] == tinypackage.content(disk, b"/etc/hosts")
    assert b"SECRET" not in disk.read_bytes()


def test_directories_with_a_hash_tree(disk: Path, image: Path, tmp_path: Path) -> None:
    """5,000 files go, or one of 2,000 does; what stays is found by its hash."""

    def many(tree: Path) -> None:
        for number in range(5000):
            (tree / f"tmp/file with a name of some length {number}").touch()
        for number in range(2000):
            (tree / f"root/file {number}").symlink_to("x")
        (tree / "root/.netrc").write_bytes(b"SECRET")

    rooted(disk, tmp_path / "tree", many)
    device = madedisk.device(disk, ROOT)
    run.run(["e2fsck", "-f", "-y", "-D", device], check=False)
    for folder in ("/tmp", "/root"):
        assert "Root node dump" in run.run(["debugfs", "-R", f"htree {folder}", device]).stdout
    told, there = restored(disk, image)
    assert 5001 == len(told)
    assert "/root/.netrc" in told
    assert 2000 == len([path for path in there if path.startswith(b"/root/")])
    assert b"name of some length" not in disk.read_bytes()
    assert "Type: symlink" in run.run(["debugfs", "-R", 'stat "/root/file 1234"', device]).stdout


def test_links_are_not_followed(disk: Path, image: Path, tmp_path: Path) -> None:
    """A folder that became a link to /etc empties nothing there."""

    def links(tree: Path) -> None:
        for name in ("tmp", "var/tmp", "var/log"):
            (tree / name).rmdir()
            (tree / name).symlink_to("/etc")
        (tree / "root/.ssh").symlink_to("/etc")
        (tree / "home/other").symlink_to("/etc")
        (tree / "etc/.netrc").write_bytes(b"of nobody's home")

    rooted(disk, tmp_path / "tree", links)
    told, there = restored(disk, image)
    assert [] == told
    assert sorted([*ETC, ".netrc"]) == sorted(shown(p)[len("/etc/") :] for p in there if p.startswith(b"/etc/"))


def test_a_folder_in_place_of_a_file(disk: Path, image: Path, tmp_path: Path) -> None:
    """Names of the host become files again, whatever they were; a root without /etc is refused."""

    def replaced(tree: Path) -> None:
        for name in ("hosts", "machine-id", "hostname"):
            (tree / "etc" / name).unlink()
        (tree / "etc/hosts/below").mkdir(parents=True)
        (tree / "etc/machine-id").symlink_to("/etc/passwd")

    rooted(disk, tmp_path / "tree", replaced)
    told, there = restored(disk, image)
    assert ["/etc/hostname", "/etc/hosts", "/etc/hosts/below", "/etc/machine-id"] == told
    assert [0o100444, 0o100644, 0o100644] == [
        there[f"/etc/{name}".encode()].inode.mode for name in ("machine-id", "hostname", "hosts")
    ]
    assert [ETC[n] for n in ETC] == [tinypackage.content(disk, f"/etc/{n}".encode()) for n in ETC]
    rooted(disk, tmp_path / "other", lambda tree: shutil.move(tree / "etc", tree / "usr"))
    with pytest.raises(ImageError, match="no folder /etc"):
        restore.restore(disk, image)


def test_lost_and_found(disk: Path, image: Path, tmp_path: Path) -> None:
    """That of the file system stays; a folder of that name in /tmp goes, and one elsewhere hides nothing."""

    def named(tree: Path) -> None:
        for folder in ("tmp/lost+found", "etc/lost+found"):
            (tree / folder).mkdir()
            (tree / folder / "file").write_bytes(b"x")

    rooted(disk, tmp_path / "tree", named)
    told, there = restored(disk, image)
    assert ["/tmp/lost+found", "/tmp/lost+found/file"] == told
    assert b"/lost+found" in there
    assert ("/etc/lost+found", "/etc/lost+found/file") == madedisk.differences(image, disk).added


def written(**files: bytes) -> Callable[[Path], None]:
    """Puts these files into /var/log."""

    def fill(tree: Path) -> None:
        for name, data in files.items():
            (tree / "var/log" / name).write_bytes(data)

    return fill


def test_a_log_of_the_same_size(disk: Path, image: Path, tmp_path: Path) -> None:
    """A file of the image stays in /var/log only as long as its content is the image's."""
    rooted(image, tmp_path / "image", written(a=b"built!", b=b"built!"))
    rooted(disk, tmp_path / "tree", written(a=b"built!", b=b"SECRET"))
    told, there = restored(disk, image)
    assert ["/var/log/b"] == told
    assert b"/var/log/a" in there


@contextmanager
def frugal(limit: int) -> Iterator[None]:
    """What is done within takes no more memory than that."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_a_file_of_any_size(disk: Path, image: Path, tmp_path: Path) -> None:
    """A name of the host that is a large file is replaced without being read, and logs as well."""
    rooted(disk, tmp_path / "tree", written(large=b"x"))
    for path in ("/etc/hostname", "/etc/hosts", "/var/log/large"):
        run.run(["debugfs", "-w", "-R", f"set_inode_field {path} size 300000000", madedisk.device(disk, ROOT)])
    with frugal(100 << 20):
        told = restore.restore(disk, image)
    assert ["/etc/hostname", "/etc/hosts", "/var/log/large"] == told
    assert ETC["hostname"] == tinypackage.content(disk, b"/etc/hostname")


@pytest.mark.parametrize("name", ["status", "info/a.list"])
def test_large_files_of_dpkg(disk: Path, image: Path, tmp_path: Path, name: str) -> None:
    """What dpkg cannot have written is not read."""

    def large(tree: Path) -> None:
        (tree / "var/lib/dpkg/info").mkdir(parents=True)
        (tree / "var/lib/dpkg/status").write_bytes(b"Package: a\nStatus: install ok installed\nVersion: 1\n\n")
        (tree / "var/lib/dpkg/info/a.list").write_bytes(b"/etc\n")

    rooted(disk, tmp_path / "tree", large)
    assert {"a": ("", "1")} == madedisk.differences(image, disk).packages
    run.run(
        ["debugfs", "-w", "-R", f"set_inode_field /var/lib/dpkg/{name} size 3000000000", madedisk.device(disk, ROOT)]
    )
    with frugal(100 << 20), pytest.raises(ImageError, match="larger than"):
        madedisk.differences(image, disk)


def test_changes_of_strange_names(disk: Path, image: Path, tmp_path: Path) -> None:
    """Every one is in the record, escaped; what other separators than line feeds split is no exception."""

    def strange(tree: Path) -> None:
        for name in NAMES:
            (tree / "etc" / os.fsdecode(name)).touch()

    rooted(disk, tmp_path / "tree", strange)
    found = madedisk.differences(image, disk)
    assert tuple(sorted(shown(b"/etc/" + name) for name in NAMES)) == found.added
    assert all(line.isprintable() for line in found.lines())


def test_changes_of_links(disk: Path, image: Path, tmp_path: Path) -> None:
    """Another target of the same length is a change; a hole in place of zeros is none."""

    def built(tree: Path) -> None:
        (tree / "etc/link").symlink_to("aa")
        (tree / "etc/zeros").write_bytes(bytes(9000))

    def other(tree: Path) -> None:
        (tree / "etc/link").symlink_to("bb")
        (tree / "etc/zeros").touch()
        os.truncate(tree / "etc/zeros", 9000)

    rooted(image, tmp_path / "image", built)
    rooted(disk, tmp_path / "tree", other)
    found = madedisk.differences(image, disk)
    assert ((), (), ("/etc/link",)) == (found.added, found.removed, found.changed)


def test_a_comparison_of_strange_names(disk: Path, image: Path, tmp_path: Path) -> None:
    """Each file that differs is named, escaped, with what of it differs, and no other."""

    def filled(letter: bytes) -> Callable[[Path], None]:
        def fill(tree: Path) -> None:
            for name in NAMES:
                (tree / "etc" / os.fsdecode(name)).write_bytes(letter * 5000)
            (tree / "etc/same").write_bytes(b"same" * 5000)

        return fill

    rooted(image, tmp_path / "image", filled(b"a"))
    rooted(disk, tmp_path / "tree", filled(b"b"))
    (found,) = [d for d in compare.compare(image, disk, madedisk.LAYOUT) if d.part == f"LV {madedisk.LAYOUT.root.name}"]
    contents = {path for path in found.paths if path.startswith("/etc/") and "content" in path}
    assert {shown(b"/etc/" + name) for name in NAMES} == {path.rpartition(" (")[0] for path in contents}
    assert all(line.isprintable() for line in found.lines())


@pytest.mark.parametrize(
    "line", ["!id", "cd <12>\n!id", "write " + "x" * 1100 + " y", "cd \x1b", "rm /x", "", "cd \u00e9"]
)
def test_lines_that_debugfs_never_gets(line: str) -> None:
    """Nothing but a few commands, in short lines of plain text."""
    assert "cd <12>\nwrite reset-hosts hosts\n" == debugfs.script(["cd <12>", "write reset-hosts hosts"])
    with pytest.raises(ValueError, match="no line for debugfs"):
        debugfs.script([line])
