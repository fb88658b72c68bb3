"""The ISO 9660 file system that kimbox writes, as other programs read it: libarchive, util-linux and GRUB."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox import run
from kimbox.image.formats import iso9660

FILES = {"user-data": b"#cloud-config\n" + b"x" * 3000, "meta-data": b"", "Network.Config": b"a" * 2048}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "seed.iso"
    path.write_bytes(iso9660.write("cidata", FILES))
    return path


def test_libarchive_reads_the_same_files(image: Path, tmp_path: Path) -> None:
    """With their names and contents. Files belong to root, and nobody may write them."""
    out = tmp_path / "out"
    out.mkdir()
    run.run(["bsdtar", "-xf", image, "-C", out])
    assert FILES == {path.name: path.read_bytes() for path in out.iterdir()}
    listed = run.run(["bsdtar", "--numeric-owner", "-tvf", image]).stdout.splitlines()
    assert {("-r--r--r--", "0", "0")} == {(w[0], w[2], w[3]) for w in map(str.split, listed) if w[-1] != "."}


def test_cloud_init_finds_it_by_type_and_label(image: Path) -> None:
    """It asks blkid for both."""
    shown = run.run(["blkid", "-p", "-o", "export", image]).stdout.splitlines()
    assert {"TYPE=iso9660", "LABEL=cidata"} <= set(shown)


@pytest.mark.parametrize("name", FILES)
def test_grub_reads_each_file(image: Path, name: str) -> None:
    """It has another reader of Rock Ridge."""
    shown = run.run(["grub-fstest", image, "cat", f"(loop0)/{name}"]).stdout
    assert FILES[name].decode() == shown


def test_equal_files_give_equal_bytes() -> None:
    """In any order. The size is whole sectors."""
    one, other = iso9660.write("a", FILES), iso9660.write("a", dict(reversed(FILES.items())))
    assert (one, 0) == (other, len(one) % iso9660.SECTOR_BYTES)


def test_more_files_than_fit_are_refused() -> None:
    """The folder has one sector."""
    with pytest.raises(ValueError, match="one sector"):
        iso9660.write("a", {f"file-number-{n}": b"" for n in range(30)})
