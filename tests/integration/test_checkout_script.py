"""Checkouts of the pinned repositories in a guest."""

from __future__ import annotations

import shutil
from pathlib import Path

import fakeguest
import makebox
import pytest
from fakeguest import FakeGuest, box_with, needs_namespace, provision

guest = fakeguest.guest  # a fixture


@needs_namespace
def test_a_checkout_is_exact_and_leaves_other_folders_alone(guest: FakeGuest, tmp_path: Path) -> None:
    """A moved pin gives exactly the new commit without leftovers; a folder that is not ours is never cleaned."""
    box = box_with(tmp_path)
    assert provision(guest, tmp_path, box) == 0
    code = guest.path("/home/vagrant/src/code")
    (code / "a").write_text("changed")
    (code / "leftover").write_text("x")
    (code / ".git/hooks").mkdir(exist_ok=True)
    (code / ".git/hooks/post-checkout").write_text("#!/bin/sh\ntouch /tmp/hook-ran\n")
    (code / ".git/hooks/post-checkout").chmod(0o755)
    makebox.commit(tmp_path / "code", {"a": "two\n"})
    assert provision(guest, tmp_path, box) == 0
    assert ((code / "a").read_text(), (code / "leftover").exists()) == ("two\n", False)
    assert not guest.path("/tmp/hook-ran").exists()
    shutil.rmtree(code)
    code.mkdir()
    (code / "precious").write_text("x")
    guest.new_root()
    assert guest.run("/usr/lib/kimbox/provisiond").code == 1
    assert "is not empty and is not a checkout that kimbox made" in guest.events()[-1]["reason"]
    assert (code / "precious").exists()


@needs_namespace
@pytest.mark.parametrize(
    "left", [[], ["kimbox"], ["kimbox", "config.lock", "HEAD.lock", "index.lock", "packed-refs.lock"]]
)
def test_a_checkout_that_was_interrupted_is_completed(guest: FakeGuest, tmp_path: Path, left: list[str]) -> None:
    """A new delivery, or a power cut, ended the first run after it had made these files of .git."""
    code = guest.path("/home/vagrant/src/code")
    (code / ".git").mkdir(parents=True)
    for name in left:
        (code / ".git" / name).touch()
    assert provision(guest, tmp_path, box_with(tmp_path)) == 0, guest.log()
    assert (code / "a").exists()
    assert list((code / ".git").glob("*.lock")) == []
