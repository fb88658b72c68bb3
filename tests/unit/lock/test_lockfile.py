"""kimbox.lock: creation, update, comparison, and errors of damaged files."""

from __future__ import annotations

from pathlib import Path

import attrs
import makebox
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refused import refused

from kimbox.errors import KimboxError, SpecError
from kimbox.lock.apt import keys
from kimbox.lock.apt.packages import LockedPackages
from kimbox.lock.lockfile import (
    Lock,
    PinnedRepository,
    PinnedSubmodule,
    check_lock,
    format_lock,
    make_lock,
    parse_lock,
    read_lock,
    write_lock,
)
from kimbox.log import log
from kimbox.spec.model import Box, Repository


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    """A box with a git repository and a folder as repositories."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path / "home"))
    makebox.make_repository(tmp_path / "code")
    (tmp_path / "setup").mkdir()
    (tmp_path / "setup/setup").write_text("#!/bin/sh\n")
    repositories = (
        Repository("code", f"file://{tmp_path}/code", False, "main", "/opt/code"),
        Repository("setup", f"{tmp_path}/setup", True, "HEAD", "/opt/setup"),
    )
    return makebox.make_box(tmp_path, repositories=repositories)


def test_a_lock_is_written_for_review_and_read_back(box: Box, tmp_path: Path) -> None:
    """The file has a header, a fixed order with setup first, and one value on each line. A second write is equal."""
    lock = make_lock(box, image="abc")
    path = tmp_path / "kimbox.lock"
    assert write_lock(path, lock)
    assert not write_lock(path, lock)
    assert read_lock(path) == lock
    text = path.read_text()
    assert text.startswith("# kimbox.lock: what this box is made of")
    assert "`kimbox lock --update NAME` moves one of them, `--update-all` all of them" in text
    assert text.index("setup:") < text.index("code:")
    assert "url: ./setup\n" in text
    assert all(len(line.split(": ")) <= 2 or line.startswith("#") or " # " in line for line in text.splitlines())


def test_a_commit_stays_until_it_is_updated(box: Box, tmp_path: Path) -> None:
    """Locked commits stay. `update` moves the given repositories, or all of them."""
    lock = make_lock(box)
    new = makebox.commit(tmp_path / "code", {"a": "two\n"})
    assert make_lock(box, previous=lock) == lock
    assert make_lock(box, previous=lock, update=["code"]).repositories["code"].commit == new
    assert make_lock(box, previous=lock, update=None).repositories["code"].commit == new
    with refused(KimboxError, "repository-not-found", name="nosuch"):
        make_lock(box, previous=lock, update=["nosuch"])


def test_a_commit_stays_if_the_repository_moves(box: Box, tmp_path: Path) -> None:
    """At a new URL the locked commit is used if it is there, unless it is to be updated; else the ref is resolved."""
    lock = make_lock(box)
    makebox.git(tmp_path, "clone", "-q", "code", "moved")
    new = makebox.commit(tmp_path / "moved", {"a": "two\n"})
    other = makebox.make_repository(tmp_path / "other", {"b": "x\n"})

    def at(name: str, *update: str) -> PinnedRepository:
        repositories = tuple(
            attrs.evolve(r, url=f"file://{tmp_path}/{name}") if r.name == "code" else r for r in box.repositories
        )
        moved = make_lock(attrs.evolve(box, repositories=repositories), previous=lock, update=update)
        return moved.repositories["code"]

    kept = at("moved")
    assert (kept.url, kept.commit) == (f"file://{tmp_path}/moved", lock.repositories["code"].commit)
    assert at("moved", "code").commit == new
    assert at("other").commit == other


def test_a_changed_folder_is_pinned_and_reported(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder beside the spec is part of the spec. Its pin follows its content, and a line of the log reports it."""
    lock = make_lock(box)
    (tmp_path / "setup/setup").write_text("#!/bin/sh\necho new\n")
    reported: list[str] = []
    monkeypatch.setattr(log, "info", reported.append)
    new = make_lock(box, previous=lock)
    assert new.repositories["setup"] != lock.repositories["setup"]
    assert "the folder ./setup has changed" in reported[0]
    assert check_lock(box, lock) == []


def test_differences_between_spec_and_lock(box: Box) -> None:
    """Repositories that are added, removed, or have another URL or ref."""
    lock = make_lock(box)
    code, setup = box.repositories
    assert check_lock(box, lock) == []
    assert check_lock(attrs.evolve(box, repositories=(setup,)), lock) == [
        "repository code is in the lock but no longer in the spec"
    ]
    assert check_lock(attrs.evolve(box, repositories=(code, setup, attrs.evolve(code, name="x"))), lock) == [
        "repository x is in the spec but not in the lock"
    ]
    (moved,) = check_lock(attrs.evolve(box, repositories=(attrs.evolve(code, url="https://x/y"), setup)), lock)
    assert moved.startswith("repository code: the spec takes it from https://x/y, the lock from file://")
    assert check_lock(attrs.evolve(box, repositories=(attrs.evolve(code, ref="v2"), setup)), lock) == [
        "repository code: the spec asks for v2, the lock was made for main"
    ]


def test_a_lock_contains_no_credentials(box: Box) -> None:
    """Locks are committed to git, where everybody can read them."""
    pin = PinnedRepository("https://x.org/y", "main", "a" * 40, "b" * 40)
    secret = attrs.evolve(box.repositories[0], url="https://me:secret@x.org/y")
    lock = make_lock(attrs.evolve(box, repositories=(secret,)), previous=Lock("", None, {"code": pin}))
    assert "secret" not in format_lock(lock)


def test_keys_of_sources() -> None:
    """A key is a block of lines, for review. It is read as it was written; another text in its place is refused."""
    name, block = "kimbox-0123456789abcdef.asc", keys.armor(b"\x99\0\4" + b"abcd" * 100)
    for more in ("", ",/usr/share/keyrings/debian-archive-keyring.gpg"):
        source = f"deb [signed-by=/etc/apt/keyrings/{name}{more}] http://m.example.org/d trixie main"
        packages = LockedPackages("a" * 64, "2026-01-01T00:00:00Z", (source,), {}, {name: block})
        lock = Lock("d" * 64, None, {}, packages)
        text = format_lock(lock)
        assert f"    {name}: |\n      -----BEGIN PGP PUBLIC KEY BLOCK-----\n" in text
        assert lock == parse_lock(text, Path("x.lock"))[0]
        for old, new in (
            ("PUBLIC", "PRIVATE"), (f"{name}: |", "../x: |"), ("[signed-by=", "[trusted=yes signed-by="),
            (f"{name}{more}]", "x.asc]"), ("PGP PUBLIC KEY BLOCK-----\n\n", "PGP PUBLIC KEY BLOCK-----\n\n      $\n"),
        ):  # fmt: skip
            assert old in text
            with refused(SpecError, "bad-lock"):
                parse_lock(text.replace(old, new), Path("x.lock"))


GOOD = format_lock(Lock("d" * 64, None, {"code": PinnedRepository("https://x/y", "main", "a" * 40, "b" * 40)}))


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("commit: " + "a" * 40, "commit: abc", "10:13", "repositories.code.commit"),
        ("    ref: main\n", "", "8:5", "'ref' is a required property"),
        ("lock: 1", "lock: 2", "3:7", "format 2"),
        ("spec: d", "spec: !!python/object:os.system d", "4:7", "tag"),
        ("image: null", "image: null\nimage: x", "6:1", "duplicate key `image`"),
        ("  code:", "  ../up:", "7:3", "../up"),
        ("url: https", "url: [x, https", "", "not valid YAML"),
    ],
)
def test_a_damaged_lock_is_refused_at_its_line(tmp_path: Path, old: str, new: str, place: str, words: str) -> None:
    """The error of a manual change has the line."""
    path = tmp_path / "kimbox.lock"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(SpecError) as caught:
        read_lock(path)
    assert f"{path}:{place}" in caught.value.message
    assert words in caught.value.message


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"x", b"\xff\xfe", b"a: &a [*a, *a]", b"\0", b"lock: 1\n", b"lock:\n", b"- " * 5000]
)
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    """Every file that is not a lock is a SpecError."""
    (tmp_path / "kimbox.lock").write_bytes(data)
    with pytest.raises(SpecError):
        read_lock(tmp_path / "kimbox.lock")
    with pytest.raises(SpecError, match="no such file"):
        read_lock(tmp_path / "missing")


text = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x24F, exclude_characters="\x7f", exclude_categories=["Cc"]),
    min_size=1,
    max_size=30,
)
commits = st.text("0123456789abcdef", min_size=40, max_size=40) | st.text("0123456789e", min_size=40, max_size=40)


@given(
    url=text,
    ref=text,
    commit=commits,
    image=st.none() | st.just("123") | st.just("1e5"),
    path=text.filter(lambda path: not path.startswith("/")),
)
def test_every_lock_is_read_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, url: str, ref: str, commit: str, image: str | None, path: str
) -> None:
    """Values that look like numbers, YAML syntax or comments are unchanged."""
    file = tmp_path_factory.getbasetemp() / "round.lock"
    pinned = PinnedRepository(
        url, ref, commit, "1" * 40, {path: PinnedSubmodule(url, commit), "lib/x": PinnedSubmodule("u", commit)}
    )
    lock = Lock("0" * 64, image, {"1e5": pinned})
    file.write_text(format_lock(lock))
    assert read_lock(file) == lock


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("", "not-a-mapping", 1),
        ("lock: 1\n<<<<<<< HEAD\nspec: a\n=======\nspec: b\n>>>>>>> other\n", "merge-conflict", 2),
        ("- a\n", "not-a-mapping", 1),
        ("lock: [\n", "bad-yaml", 2),
    ],
)
def test_the_hint_of_a_damaged_lock_is_not_that_of_a_spec(tmp_path: Path, text: str, code: str, line: int) -> None:
    """`kimbox init` does not help with a lock."""
    path = tmp_path / "kimbox.lock"
    path.write_text(text)
    with refused(SpecError, code) as caught:
        read_lock(path)
    (problem,) = caught.value.problems
    hints = f"{problem.hint} {caught.value.hint}"
    assert line == problem.line
    assert "kimbox init" not in hints
    assert ("git checkout --ours" if code == "merge-conflict" else "`kimbox lock`") in hints


def test_files_that_differ_in_each_build_belong_to_one_image(box: Box, tmp_path: Path) -> None:
    """They are read back as written. A lock of another image does not have them."""
    path = tmp_path / "kimbox.lock"
    files = {"/etc/a b: '#.db": "content, time", "/var/lib/x": "entries", "/\\xff": "mode"}
    lock = attrs.evolve(make_lock(box, image="abc"), varying=files)
    write_lock(path, lock)
    assert lock == read_lock(path)
    assert files == make_lock(box, previous=lock, image="abc").varying
    assert files == make_lock(box, previous=lock).varying
    assert {} == make_lock(box, previous=lock, image="abd").varying


@pytest.mark.parametrize(
    "line", ["etc/x: content", "/etc/x: other", "/etc/x: ''", '"/etc/\\n": mode', "/etc/x: 1", f"/{'x' * 500}: mode"]
)
def test_a_changed_list_of_files_is_refused(box: Box, tmp_path: Path, line: str) -> None:
    """The error has the line."""
    path = tmp_path / "kimbox.lock"
    write_lock(path, make_lock(box, image="abc"))
    before, key, after = path.read_text().partition("repositories:")
    path.write_text(f"{before}varying:\n  {line}\n{key}{after}")
    with refused(SpecError, "bad-lock", path=str(path)):
        read_lock(path)


def test_a_spec_is_not_a_damaged_lock(tmp_path: Path) -> None:
    """Nobody is told to delete the spec."""
    with pytest.raises(SpecError) as caught:
        parse_lock("kimbox: 1\nname: tiny\n", tmp_path / "kimbox.yaml")
    assert "this is a spec, and not a lock" in caught.value.message
    assert "delete" not in str(caught.value.problems[0].hint)
