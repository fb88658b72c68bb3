"""Packages and changes of a hostile root: names with control characters, very deep trees, files of any size."""

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
from refused import refused
from tinypackage import Made, image_of, machine_of

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image.disk import compare, debugfs
from kimbox.image.disk.ext4.directories import Entry, shown
from kimbox.image.sanitize import restore

box, made = tinypackage.box, tinypackage.made  # fixtures

ROOT = PLACES["root"]

#: Names with quotes, control characters, line separators, options and bytes that are not UTF-8.
NAMES = (
    b"a\nb", b'a"b', b"a\\b", b"\x1b[2J", b"\xff\xfe", b"!touch ran", b"!id", b" ", b"-f", b"\t", b"x" * 255,
    b"a\ndebugfs: x", b"[red]", "a\u2028b".encode(), "a\u0085b".encode(),
)  # fmt: skip

#: Files of /etc in every root of this module.
ETC = {
    "machine-id": b"",
    "hostname": b"tiny\n",
    "hosts": b"127.0.0.1 localhost\n",
    "passwd": b"root:x:0:0::/root:/bin/sh\n",
}


def common(tree: Path) -> None:
    """Writes the files of an unchanged root."""
    for name in ("etc", "tmp", "var/log", "var/tmp", "root", "home/user"):
        (tree / name).mkdir(parents=True)
    for name, data in ETC.items():
        (tree / "etc" / name).write_bytes(data)
    (tree / "etc/machine-id").chmod(0o444)


def rooted(disk: Path, tree: Path, fill: Callable[[Path], None]) -> None:
    """Creates a new root file system on a disk, with the files that `fill` writes to a folder."""
    tree.mkdir()
    common(tree)
    fill(tree)
    size = f"{ROOT.size_bytes // 1024}k"
    options = f"offset={ROOT.offset_bytes},nodiscard"
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-N", "8192", "-E", options, "-d", tree, disk, size]
    run.run(argv)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The raw image of the machine."""
    disk = tmp_path / "image.raw"
    madedisk.make(disk)
    rooted(disk, tmp_path / "built", lambda tree: None)
    return disk


@pytest.fixture
def disk(image: Path, tmp_path: Path) -> Path:
    """A raw copy of the machine's disk. Each test creates its root."""
    (tmp_path / "machine").mkdir()
    return Path(shutil.copy(image, tmp_path / "machine/clean.raw"))


def restored(disk: Path, image: Path) -> tuple[list[str], dict[bytes, Entry]]:
    """The paths that were removed or reset, and every path that stayed.

    All file systems must be sound, and no other file may be written.
    """
    cleaned = restore.restore(disk, image)
    assert all(madedisk.is_sound(disk, place) for place in PLACES.values())
    assert ["clean.raw"] == [path.name for path in disk.parent.iterdir()]
    assert all(path.isprintable() for path in cleaned)
    return cleaned, tinypackage.everything(disk)


def deep(payload: str) -> str:
    """A debugfs script that creates folders with so long a path that debugfs cuts `ls -p "PATH"` before the payload."""
    room = 8191 - len('ls -p "/tmp')
    names = []
    while room > 150:
        names.append("A" * 100)
        room -= 101
    names.append("C" * (room - 1) + payload)
    return "cd /tmp\n" + "".join(f'mkdir "{name}"\ncd "{name}"\n' for name in names)


@pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")
def test_a_path_of_a_guest_runs_nothing(made: Made, box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders with a path of 8 KiB are removed like others. Its end would be a shell command for debugfs."""
    home = box / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    machine_of(box, image_of(box), deep("!cd;id >RAN #"))
    cleaned = made("--format", "raw")["cleaned"]
    assert max(map(len, cleaned)) > 8000
    assert [] == list(home.iterdir())
    assert [] == [path for path in tinypackage.everything(box / "tiny.raw") if path.startswith(b"/tmp/")]


@pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")
def test_a_package_of_a_root_with_strange_names(made: Made, kimbox: Kimbox, box: Path, tmp_path: Path) -> None:
    """The package is made, with and without --json. Names stay in folders that are not cleaned."""

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
    entries = tinypackage.everything(box / "a/tiny.raw")
    assert sorted(b"/home/user/" + name for name in NAMES) == sorted(p for p in entries if p.startswith(b"/home/user/"))
    assert b"SECRET" not in (box / "a/tiny.raw").read_bytes()
    code, out, err = kimbox("package", "--format", "raw", "-o", "b")
    assert (0, False) == (code, "\x1b[2J" in out + err)
    assert (box / "a/tiny.raw").read_bytes() == (box / "b/tiny.raw").read_bytes()


def test_strange_names(disk: Path, image: Path, tmp_path: Path) -> None:
    """They are removed and listed like others, at any depth, and stay in the homes of users."""

    def strange(tree: Path) -> None:
        for folder in ("tmp", "var/log", "home/user"):
            for name in NAMES:
                (tree / folder / os.fsdecode(name)).mkdir()
                (tree / folder / os.fsdecode(name) / os.fsdecode(name)).write_bytes(b"x")
                (tree / folder / os.fsdecode(b"y" + name[:254])).symlink_to(os.fsdecode(name))

    rooted(disk, tmp_path / "tree", strange)
    cleaned, entries = restored(disk, image)
    assert {shown(b"/tmp/" + name) for name in NAMES} < set(cleaned)
    assert {shown(b"/var/log/%s/%s" % (name, name)) for name in NAMES} < set(cleaned)
    assert {b"/home/user/%s/%s" % (name, name) for name in NAMES} < entries.keys()
    assert {b"/var/log/" + name for name in NAMES} == {path for path in entries if path.startswith(b"/var/log/")}
    assert [] == [path for path in entries if path.startswith(b"/tmp/")]


def test_a_tree_of_hundreds_of_levels(disk: Path, image: Path, tmp_path: Path) -> None:
    """Its paths exceed PATH_MAX and the maximum length of a command line."""

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
    cleaned, entries = restored(disk, image)
    assert 400 == len(cleaned)
    assert max(map(len, cleaned)) > 80_000
    assert [] == [path for path in entries if path.startswith(b"/tmp/")]


def test_another_name_of_a_file_that_stays(disk: Path, image: Path, tmp_path: Path) -> None:
    """The name in /tmp is removed. The file and its other names stay."""

    def linked(tree: Path) -> None:
        for name in ("tmp/x", "tmp/y", "etc/passwd-"):
            os.link(tree / "etc/passwd", tree / name)
        (tree / "tmp/two").write_bytes(b"SECRET in a file of two names")
        os.link(tree / "tmp/two", tree / "var/log/two")
        os.link(tree / "etc/hosts", tree / "etc/hosts.mine")
        (tree / "etc/hosts").write_bytes(b"10.0.0.1 mine\n")

    rooted(disk, tmp_path / "tree", linked)
    cleaned, entries = restored(disk, image)
    assert ["/etc/hosts", "/tmp/two", "/tmp/x", "/tmp/y", "/var/log/two"] == cleaned
    assert [2, 2] == [entries[path].inode.links for path in (b"/etc/passwd", b"/etc/passwd-")]
    assert ETC["passwd"] == tinypackage.content(disk, b"/etc/passwd")
    assert b"10.0.0.1 mine\n" == tinypackage.content(disk, b"/etc/hosts.mine")
    assert ETC["hosts"] == tinypackage.content(disk, b"/etc/hosts")
    assert b"SECRET" not in disk.read_bytes()


def test_directories_with_a_hash_tree(disk: Path, image: Path, tmp_path: Path) -> None:
    """5,000 files are removed, or one of 2,000. The other files are still found by their hash."""

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
    cleaned, entries = restored(disk, image)
    assert 5001 == len(cleaned)
    assert "/root/.netrc" in cleaned
    assert 2000 == len([path for path in entries if path.startswith(b"/root/")])
    assert b"name of some length" not in disk.read_bytes()
    assert "Type: symlink" in run.run(["debugfs", "-R", 'stat "/root/file 1234"', device]).stdout


def test_links_are_not_followed(disk: Path, image: Path, tmp_path: Path) -> None:
    """A link to /etc in place of a cleaned folder removes nothing in /etc."""

    def links(tree: Path) -> None:
        for name in ("tmp", "var/tmp", "var/log"):
            (tree / name).rmdir()
            (tree / name).symlink_to("/etc")
        (tree / "root/.ssh").symlink_to("/etc")
        (tree / "home/other").symlink_to("/etc")
        (tree / "etc/.netrc").write_bytes(b"of nobody's home")

    rooted(disk, tmp_path / "tree", links)
    cleaned, entries = restored(disk, image)
    assert [] == cleaned
    assert sorted([*ETC, ".netrc"]) == sorted(shown(p)[len("/etc/") :] for p in entries if p.startswith(b"/etc/"))


def test_a_folder_in_place_of_a_file(disk: Path, image: Path, tmp_path: Path) -> None:
    """Files with the host name are restored. A root without /etc is refused."""

    def replaced(tree: Path) -> None:
        for name in ("hosts", "machine-id", "hostname"):
            (tree / "etc" / name).unlink()
        (tree / "etc/hosts/below").mkdir(parents=True)
        (tree / "etc/machine-id").symlink_to("/etc/passwd")

    rooted(disk, tmp_path / "tree", replaced)
    cleaned, entries = restored(disk, image)
    assert ["/etc/hostname", "/etc/hosts", "/etc/hosts/below", "/etc/machine-id"] == cleaned
    assert [0o100444, 0o100644, 0o100644] == [
        entries[f"/etc/{name}".encode()].inode.mode for name in ("machine-id", "hostname", "hosts")
    ]
    assert [ETC[n] for n in ETC] == [tinypackage.content(disk, f"/etc/{n}".encode()) for n in ETC]
    rooted(disk, tmp_path / "other", lambda tree: shutil.move(tree / "etc", tree / "usr"))
    with pytest.raises(ImageError) as caught:
        restore.restore(disk, image)
    assert ("file-not-found", "/etc") == (caught.value.code, caught.value.fields["path"])


def test_lost_and_found(disk: Path, image: Path, tmp_path: Path) -> None:
    """/lost+found stays. A folder of that name in /tmp is removed, and in another folder its files are compared."""

    def named(tree: Path) -> None:
        for folder in ("tmp/lost+found", "etc/lost+found"):
            (tree / folder).mkdir()
            (tree / folder / "file").write_bytes(b"x")

    rooted(disk, tmp_path / "tree", named)
    cleaned, entries = restored(disk, image)
    assert ["/tmp/lost+found", "/tmp/lost+found/file"] == cleaned
    assert b"/lost+found" in entries
    assert ("/etc/lost+found", "/etc/lost+found/file") == madedisk.differences(image, disk).added


def written(**files: bytes) -> Callable[[Path], None]:
    """Puts these files into /var/log."""

    def fill(tree: Path) -> None:
        for name, data in files.items():
            (tree / "var/log" / name).write_bytes(data)

    return fill


def test_a_log_of_the_same_size(disk: Path, image: Path, tmp_path: Path) -> None:
    """A file of the image stays in /var/log only if its content is that of the image."""
    rooted(image, tmp_path / "image", written(a=b"built!", b=b"built!"))
    rooted(disk, tmp_path / "tree", written(a=b"built!", b=b"SECRET"))
    cleaned, entries = restored(disk, image)
    assert ["/var/log/b"] == cleaned
    assert b"/var/log/a" in entries


@contextmanager
def frugal(limit: int) -> Iterator[None]:
    """Asserts that the block allocates less memory than `limit` bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_a_file_of_any_size(disk: Path, image: Path, tmp_path: Path) -> None:
    """A large file in place of /etc/hostname is replaced, and a large log removed, without being read."""
    rooted(disk, tmp_path / "tree", written(large=b"x"))
    for path in ("/etc/hostname", "/etc/hosts", "/var/log/large"):
        run.run(["debugfs", "-w", "-R", f"set_inode_field {path} size 300000000", madedisk.device(disk, ROOT)])
    with frugal(100 << 20):
        cleaned = restore.restore(disk, image)
    assert ["/etc/hostname", "/etc/hosts", "/var/log/large"] == cleaned
    assert ETC["hostname"] == tinypackage.content(disk, b"/etc/hostname")


@pytest.mark.parametrize("name", ["status", "info/a.list"])
def test_large_files_of_dpkg(disk: Path, image: Path, tmp_path: Path, name: str) -> None:
    """Files that are larger than dpkg writes them are not read."""

    def large(tree: Path) -> None:
        (tree / "var/lib/dpkg/info").mkdir(parents=True)
        (tree / "var/lib/dpkg/status").write_bytes(b"Package: a\nStatus: install ok installed\nVersion: 1\n\n")
        (tree / "var/lib/dpkg/info/a.list").write_bytes(b"/etc\n")

    rooted(disk, tmp_path / "tree", large)
    assert {"a": ("", "1")} == madedisk.differences(image, disk).packages
    run.run(
        ["debugfs", "-w", "-R", f"set_inode_field /var/lib/dpkg/{name} size 3000000000", madedisk.device(disk, ROOT)]
    )
    with frugal(100 << 20), refused(ImageError, "file-too-large"):
        madedisk.differences(image, disk)


def test_changes_of_strange_names(disk: Path, image: Path, tmp_path: Path) -> None:
    """Every name is in the record, escaped, also with line separators that are not line feeds."""

    def strange(tree: Path) -> None:
        for name in NAMES:
            (tree / "etc" / os.fsdecode(name)).touch()

    rooted(disk, tmp_path / "tree", strange)
    found = madedisk.differences(image, disk)
    assert tuple(sorted(shown(b"/etc/" + name) for name in NAMES)) == found.added
    assert all(line.isprintable() for line in found.lines())


def test_changes_of_links(disk: Path, image: Path, tmp_path: Path) -> None:
    """Another target of the same length is a change. A hole instead of zeros is not."""

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
    """The result has the escaped path of each file with different content, and no other."""

    def filled(letter: bytes) -> Callable[[Path], None]:
        def fill(tree: Path) -> None:
            for name in NAMES:
                (tree / "etc" / os.fsdecode(name)).write_bytes(letter * 5000)
            (tree / "etc/same").write_bytes(b"same" * 5000)

        return fill

    rooted(image, tmp_path / "image", filled(b"a"))
    rooted(disk, tmp_path / "tree", filled(b"b"))
    (found,) = [d for d in compare.compare(image, disk, madedisk.LAYOUT) if d.part == f"LV {madedisk.LAYOUT.root.name}"]
    contents = {path for path, aspects in found.files.items() if path.startswith("/etc/") and "content" in aspects}
    assert {shown(b"/etc/" + name) for name in NAMES} == contents
    assert all(line.isprintable() for line in found.lines())


@pytest.mark.parametrize(
    "line", ["!id", "cd <12>\n!id", "write " + "x" * 1100 + " y", "cd \x1b", "rm /x", "", "cd \u00e9"]
)
def test_lines_that_are_never_sent_to_debugfs(line: str) -> None:
    """Only a few commands, in short lines of ASCII, are allowed."""
    assert "cd <12>\nwrite reset-hosts hosts\n" == debugfs.script(["cd <12>", "write reset-hosts hosts"])
    with pytest.raises(ValueError, match="invalid line for debugfs"):
        debugfs.script([line])
