"""The listing of a folder: every file and link counts, times do not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from makejobrecord import make_folder, set_old

from kimbox.errors import KimboxError
from kimbox.jobs import listing
from kimbox.jobs.disk.source import read_folder
from kimbox.jobs.listing import Difference, Entry, Listing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, a program, a link, a hard link, and a name that is not text."""
    folder = make_folder(tmp_path / "job")
    (folder / "link").symlink_to("input/data")
    os.link(folder / "input/data", folder / "input/same")
    Path(os.fsdecode(os.fsencode(folder) + b"/na\xffme")).write_bytes(b"x" * 3000)
    (folder / "empty").mkdir()
    return folder


def test_every_file_has_its_digest(folder: Path) -> None:
    """Those that are packed, and those of the folder itself, are the same."""
    sha256 = hashlib.sha256(b"data\n").hexdigest()
    found = listing.of_source(read_folder(folder))
    assert Entry(b"input/data", sha256, 5) == found.entries[b"input/data"]
    assert Entry(b"input/same", sha256, 5) == found.entries[b"input/same"]
    assert Entry(b"link", target=b"input/data") == found.entries[b"link"]
    assert found.entries[b"run-job"].is_program
    assert hashlib.sha256(b"x" * 3000).hexdigest() == found.entries[b"na\xffme"].sha256
    assert [b"input/data", b"input/same", b"link", b"na\xffme", b"run-job"] == list(found.entries)
    assert found == listing.of_folder(folder)


def test_what_kimbox_adds_is_left_out(folder: Path) -> None:
    """The arguments are no file of the user."""
    source = read_folder(folder, {b"run-job.args": b"a\n"})
    assert listing.of_source(read_folder(folder)) == listing.of_source(source, without=[b"run-job.args"])


def test_a_copy_has_the_same_digest(folder: Path, tmp_path: Path) -> None:
    """Times do not count. Content, permission to execute, targets and names do."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, symlinks=True)
    set_old(copy)
    before = listing.of_folder(folder)
    assert before.digest == listing.of_folder(copy).digest
    (copy / "input/data").write_text("DATA\n")
    (copy / "run-job").chmod(0o644)
    (copy / "link").unlink()
    (copy / "link").symlink_to("/etc/passwd")
    (copy / "new").touch()
    (copy / "input/same").unlink()
    expected = [("input/data", "changed"), ("input/same", "missing"), ("link", "changed"), ("new", "added")]
    after = listing.of_folder(copy)
    assert [*(Difference(os.fsencode(path), kind) for path, kind in expected), Difference(b"run-job", "changed")] == (
        listing.compare(before, after)
    )
    assert [Difference(b"new", "added")] == listing.compare(before, after, lambda path: path != b"new")
    assert before.digest != after.digest


def test_a_file_that_changes_meanwhile_is_an_error(folder: Path) -> None:
    """The record has the digests of what was packed, and of nothing else."""
    source = read_folder(folder)
    (folder / "input/data").write_text("other\n")
    with pytest.raises(KimboxError) as caught:
        listing.of_source(source)
    assert "file-changed" == caught.value.code


def test_the_record_gives_the_same_listing(folder: Path) -> None:
    """Through JSON, also with a name that is not text."""
    before = listing.of_folder(folder)
    value = json.loads(json.dumps(before.as_json()))
    assert (5, 3010 + (folder / "run-job").stat().st_size) == (value["count"], value["size_bytes"])
    assert before == Listing.of(map(Entry.from_json, value["files"]))


def test_a_long_list_is_left_out(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Digest and number count all files."""
    monkeypatch.setattr(listing, "MAX_LISTED", 4)
    value = listing.of_folder(folder).as_json()
    assert (None, 5) == (value["files"], value["count"])
    assert listing.of_folder(folder).digest == value["digest"]


def test_no_results(tmp_path: Path) -> None:
    """A job without results, or whose `output` is a link, has an empty listing."""
    (tmp_path / "link").symlink_to("/etc")
    assert Listing({}) == listing.of_folder(tmp_path / "missing") == listing.of_folder(tmp_path / "link")
