"""The reader of ext4 trees, on file systems of real mke2fs and debugfs, and on mutations of them."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from refused import refused

from kimbox import run
from kimbox.errors import ImageError
from kimbox.image.disk.ext4 import content as ext4data
from kimbox.image.disk.ext4 import directories, inodes, removal, usage
from kimbox.image.disk.ext4.directories import Entry, shown
from kimbox.image.disk.ext4.inodes import FileSystem

MIB = 1 << 20
BLOCK = 4096

#: Names with control characters, quotes, bytes that are not UTF-8, and options.
NAMES = (
    b"plain", b"a\nb", b'a"b', b"a\\b", b"\x1b[31mred", b"\xff\xfe", b"!id", b" ", b"-f", b"a\tb", b"x" * 255,
    "a\u2028b".encode(), "a\u0085b".encode(), "\u00e9".encode(),
)  # fmt: skip


def fill(folder: Path) -> None:
    """Creates files, links and folders of several kinds."""
    for name in NAMES:
        (folder / os.fsdecode(name)).write_bytes(name * 3)
    (folder / "deep/er/est").mkdir(parents=True)
    (folder / "deep/er/est/file").write_bytes(b"f" * 10000)
    (folder / "deep/link").symlink_to("er/est")
    (folder / "long link").symlink_to("y" * 200)
    os.link(folder / "plain", folder / "deep/other name")
    os.mkfifo(folder / "fifo")
    (folder / "many").mkdir()
    for number in range(700):
        (folder / f"many/a file with a name that takes some space {number}").touch()
    with (folder / "holes").open("wb") as file:
        for number in range(0, 2000, 2):  # more extents than an inode and one block of the tree hold
            os.pwrite(file.fileno(), b"%d" % number, number * BLOCK)
        file.truncate(2000 * BLOCK + 7)


def make(folder: Path, *options: str, fill: Callable[[Path], None] = fill) -> Path:
    """Creates a file system whose free blocks are filled with 0xAA, and returns the path of its image."""
    tree = folder / "tree"
    tree.mkdir()
    fill(tree)
    image = folder / "image"
    image.write_bytes(b"\xaa" * 24 * MIB)
    run.run(["mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard", "-d", tree, *options, image])
    return image


def opened(image: Path) -> FileSystem:
    """Returns the file system of an image."""
    data = image.read_bytes()
    return inodes.open_at(inodes.cached(lambda offset, size: data[offset : offset + size]))


def attributes_by_kimbox(system: FileSystem) -> dict[bytes, tuple[object, ...]]:
    """Returns what kimbox reads: mode, owner, group, size, number of links and content of every path."""
    attributes: dict[bytes, tuple[object, ...]] = {}
    for entry in directories.walk(system):
        inode, content = entry.inode, None
        if inode.is_file:
            content = ext4data.content(system, inode, 16 * MIB)
        elif inode.is_link:
            content = ext4data.link_target(system, inode)
        size = 0 if inode.is_folder else inode.size_bytes
        links = 0 if inode.is_folder else inode.links
        attributes[entry.path] = (inode.mode, inode.uid, inode.gid, size, links, content)
    attributes.pop(b"/lost+found")
    return attributes


def attributes_by_kernel(tree: Path) -> dict[bytes, tuple[object, ...]]:
    """Returns the same, read by the host's kernel."""
    attributes: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(tree)
    for parent, folders, files in os.walk(top):
        for path in (os.path.join(parent, name) for name in [*folders, *files]):  # noqa: PTH118
            info = os.lstat(path)
            content = None
            if stat.S_ISREG(info.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)  # noqa: PTH115 - as bytes
            is_folder = stat.S_ISDIR(info.st_mode)
            size, links = (0, 0) if is_folder else (info.st_size, info.st_nlink)
            attributes[path.removeprefix(top)] = (info.st_mode, info.st_uid, info.st_gid, size, links, content)
    return attributes


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-b", "1024", "-I", "128"],
        ["-b", "1024", "-O", "^metadata_csum,^64bit"],
        ["-b", "2048", "-O", "^extents,^64bit"],
        ["-b", "1024", "-O", "^extents,^64bit"],
        ["-O", "metadata_csum_seed,^flex_bg,^has_journal"],
    ],
)
@pytest.mark.parametrize("is_hashed", [False, True])
def test_the_whole_tree_is_read(tmp_path: Path, options: list[str], is_hashed: bool) -> None:
    """Names, types, owners, sizes, links and contents are correct, in every form of ext4."""
    image = make(tmp_path, *options)
    if is_hashed:
        run.run(["e2fsck", "-f", "-y", "-D", image], check=False)
        assert b"hash" in run.run(["debugfs", "-R", "htree /many", image]).stdout.lower().encode()
    run.run(["e2fsck", "-f", "-n", image])
    assert attributes_by_kernel(tmp_path / "tree") == attributes_by_kimbox(opened(image))


def test_allocated_blocks_that_are_not_written_are_zeros(tmp_path: Path) -> None:
    """Such blocks may have content of deleted files, which is not read."""
    image = make(tmp_path, fill=lambda tree: (tree / "file").touch())
    for request in ("fallocate /file 0 9", "set_inode_field /file size 40000"):
        run.run(["debugfs", "-w", "-R", request, image])
    system = opened(image)
    file = directories.find(system, b"/file")
    assert file is not None
    assert bytes(40000) == ext4data.content(system, file.inode, MIB)


def test_limits(tmp_path: Path) -> None:
    """A file that is larger than the limit is not read. Its head can be read."""
    image = make(tmp_path, fill=lambda tree: (tree / "file").write_bytes(b"0123456789" * 1000))
    run.run(["debugfs", "-w", "-R", "set_inode_field /file size 0x100000000000", image])
    system = opened(image)
    file = directories.find(system, b"/file")
    assert file is not None
    assert 0x100000000000 == file.inode.size_bytes
    assert None is ext4data.content(system, file.inode, file.inode.size_bytes - 1)
    assert b"0123456789012" == ext4data.head(system, file.inode, 13)
    assert b"0123456789" * 1000 + bytes(50) == ext4data.head(system, file.inode, 10050)


def test_names_are_found_without_links(tmp_path: Path) -> None:
    """No part of a path is a symbolic link. A wildcard does not match `/`."""
    system = opened(make(tmp_path))
    assert [b"/deep/er/est/file"] == [e.path for e in directories.matching(system, "/deep/*/est/f*e")]
    assert [] == directories.matching(system, "/deep/link/file")
    assert None is directories.find(system, b"/deep/link/file")
    assert None is directories.find(system, b"/plain/file")
    file = directories.find(system, b"/!id")
    assert file is not None
    assert b"!id" * 3 == ext4data.content(system, file.inode, 9)


def test_a_directory_in_itself(tmp_path: Path) -> None:
    """A tree with a loop, or with a directory in two places, is rejected."""
    for target in ("/deep/er/est/loop", "/again"):
        folder = tmp_path / target.rpartition("/")[2]
        folder.mkdir()
        image = make(folder)
        run.run(["debugfs", "-w", "-R", f"link /deep {target}", image])
        with refused(ImageError, "disk-damaged", fault="directory-loop"):
            list(directories.walk(opened(image)))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"/etc/a b", "/etc/a b"),
        ("/\u00e9\u6f22".encode(), "/\u00e9\u6f22"),
        (b"/a\nb\x1b\x7f", r"/a\nb\x1b\x7f"),
        (b"/\\n", r"/\\n"),
        (b"/\x85\xff", r"/\x85\xff"),
        ("/\u0085\u2028\u202e\U000e0001".encode(), r"/\u0085\u2028\u202e\U000e0001"),
        (b"/\xed\xb2\x85", r"/\xed\xb2\x85"),
    ],
)
def test_paths_are_shown(path: bytes, text: str) -> None:
    """Control characters and line breaks are escaped. Different paths have different texts."""
    assert text == shown(path)
    assert text.isprintable()


def test_equal_texts_are_equal_paths() -> None:
    """A name that looks like an escaped name has another text than that name."""
    chance = random.Random(5)  # noqa: S311 - for tests that are the same each time
    parts = [b"\\", b"x", b"8", b"5", b"u", b"0", b"\x85", b"\xc2\x85", b"n", b"\n", b"\xc3", b"\xa9", b"\xed\xb2"]
    paths = {b"".join(chance.choices(parts, k=chance.randrange(6))) for _ in range(20000)}
    assert len(paths) == len({shown(path) for path in paths})


def examined(system: FileSystem) -> None:
    """Runs every function that kimbox uses on a file system, without a write."""
    entries = list(directories.walk(system))
    for entry in entries:
        if entry.inode.is_file:
            ext4data.head(system, entry.inode, 100)
            ext4data.content(system, entry.inode, 2 * MIB)
        elif entry.inode.is_link:
            ext4data.link_target(system, entry.inode)
    removal.remove(system, lambda offset, data: None, [entry for entry in entries if b"/deep" in entry.path])


@pytest.mark.parametrize("options", [["-b", "1024"], ["-b", "1024", "-O", "^extents,^64bit,^metadata_csum"]])
def test_mutations_are_read_or_rejected(tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With any metadata, reading ends within its budget, and raises only ImageError."""
    monkeypatch.setattr(directories, "MAX_STEPS", 20_000)

    def small(tree: Path) -> None:
        (tree / "deep/er").mkdir(parents=True)
        (tree / "deep/er/file").write_bytes(b"f" * 3000)
        (tree / "deep/link").symlink_to("er")
        (tree / "long").symlink_to("y" * 200)
        for number in range(40):
            (tree / f"deep/name of some length {number}").touch()
        with (tree / "holes").open("wb") as file:
            for number in range(0, 600, 2):
                os.pwrite(file.fileno(), b"x", number * 1024)

    image = make(tmp_path, *options, fill=small).read_bytes()
    places: set[int] = set()

    def noted(offset: int, size: int) -> bytes:
        if size <= 1024:
            places.update(range(offset, offset + size))
        return image[offset : offset + size]

    examined(inodes.open_at(noted))
    chance, metadata = random.Random(2), sorted(places)  # noqa: S311 - for tests that are the same each time
    outcomes = set()
    for _ in range(1000):
        values = [0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)]
        changed = {chance.choice(metadata): chance.choice(values) for _ in range(chance.choice([1, 2, 8]))}
        reads = [0]

        def hostile(offset: int, size: int, changed: dict[int, int] = changed, reads: list[int] = reads) -> bytes:
            reads[0] += 1
            piece = bytearray(image[offset : offset + size])
            for place, value in changed.items():
                if offset <= place < offset + len(piece):
                    piece[place - offset] = value
            return bytes(piece)

        try:
            examined(inodes.open_at(hostile))
            outcomes.add("read")
        except ImageError as error:
            outcomes.add(error.fields["fault"])
        assert reads[0] < 60_000
    assert len(outcomes) > 3
    assert "read" in outcomes


def removed(image: Path, entries: Callable[[FileSystem], list[Entry]]) -> None:
    """Removes entries. Then e2fsck must repair the counts without a question, and find no more faults."""
    with image.open("r+b") as file:
        system = inodes.open_at(inodes.cached(lambda offset, size: os.pread(file.fileno(), size, offset)))
        removal.remove(system, lambda offset, data: os.pwrite(file.fileno(), data, offset), entries(system))
    assert run.run(["e2fsck", "-f", "-p", image], check=False).code in (0, 1)
    run.run(["e2fsck", "-f", "-n", image])


@pytest.mark.parametrize(
    "options",
    [[], ["-b", "1024", "-I", "128", "-O", "^metadata_csum"], ["-O", "metadata_csum_seed"], ["-O", "^extents,^64bit"]],
)
@pytest.mark.parametrize("is_hashed", [False, True])
def test_removed_entries_are_missing_and_all_others_stay(tmp_path: Path, options: list[str], is_hashed: bool) -> None:
    """Removes names, folders and one of two names of a file. Names and targets of links cannot be read afterwards."""
    image = make(tmp_path, *options)
    if is_hashed:
        run.run(["e2fsck", "-f", "-y", "-D", image], check=False)
    before = attributes_by_kimbox(opened(image))
    paths = {p for p in before if p.startswith(b"/deep/") or p in (b"/!id", b"/long link", b"/\xff\xfe")}
    paths |= {p for p in before if p.startswith(b"/many/") and p.endswith((b"3", b"7"))}
    assert len(paths) > 140
    removed(image, lambda system: [entry for entry in directories.walk(system) if entry.path in paths])
    after = attributes_by_kimbox(opened(image))
    plain = before[b"/plain"]
    assert {**{p: v for p, v in before.items() if p not in paths}, b"/plain": (*plain[:4], 1, plain[5])} == after
    data = image.read_bytes()
    used = usage.used(lambda offset, size: data[offset : offset + size], len(data))
    content = b"".join(data[start:end] for start, end in used)
    assert (False, False, True) == tuple(text in content for text in (b"er/est", b"some space 133", b"some space 134"))


def test_shared_attributes_stay_for_the_remaining_file(tmp_path: Path) -> None:
    """A block of attributes has fewer users, and is free after the last user."""

    def three(tree: Path) -> None:
        for name in ("kept", "gone", "both"):
            (tree / name).write_text(name)

    image = make(tmp_path, fill=three)
    (tmp_path / "value").write_bytes(b"v" * 500)
    run.run(["debugfs", "-w", "-R", f"ea_set -f {tmp_path}/value /kept user.mine", image])
    block = run.run(["debugfs", "-R", "stat /kept", image]).stdout.partition("File ACL: ")[2].split()[0]
    assert block != "0"
    for name in ("gone", "both"):
        run.run(["debugfs", "-w", "-R", f"set_inode_field /{name} file_acl {block}", image])
        run.run(["debugfs", "-w", "-R", f"set_inode_field /{name} blocks 16", image])
    run.run(["e2fsck", "-f", "-y", image], check=False)  # the number of users
    run.run(["e2fsck", "-f", "-n", image])
    removed(image, lambda system: [entry for entry in directories.walk(system) if entry.path in (b"/gone", b"/both")])
    assert "user.mine" in run.run(["debugfs", "-R", "ea_list /kept", image]).stdout
    removed(image, lambda system: [entry for entry in directories.walk(system) if entry.path == b"/kept"])


def test_a_name_for_a_reserved_inode(tmp_path: Path) -> None:
    """A name for the journal is an error, and nothing is written."""
    image = make(tmp_path)
    run.run(["debugfs", "-w", "-R", "link <8> /journal", image])
    system = opened(image)
    with refused(ImageError, "disk-damaged", fault="reserved-inode"):
        removal.remove(
            system,
            lambda offset, data: pytest.fail("written"),
            [e for e in directories.walk(system) if e.name == b"journal"],
        )
