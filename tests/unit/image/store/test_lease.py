"""Leases on images: many may use one, and only a process that is alone may remove it."""

from __future__ import annotations

import ownhome
import pytest

from kimbox import paths, run
from kimbox.errors import StateError
from kimbox.image.store import lease

home = ownhome.home  # a fixture

KEY = "a" * 64


def test_many_share_an_image_and_none_removes_it() -> None:
    """The exclusive lease is refused at once, and given when the last shared one has ended."""
    with lease.shared(KEY):
        with lease.shared(KEY), pytest.raises(StateError, match="using the image"), lease.exclusive(KEY):
            pass
        with pytest.raises(StateError), lease.exclusive(KEY):
            pass
    with lease.exclusive(KEY):
        pass


def test_use_waits_for_a_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to WAIT_S; a lease of another image does not wait."""
    monkeypatch.setattr(lease, "WAIT_S", 0.05)
    with lease.exclusive(KEY):
        with lease.shared("b" * 64):
            pass
        with pytest.raises(StateError, match="removing the image"), lease.shared(KEY):
            pass
    with lease.shared(KEY):
        pass


def test_an_error_ends_a_lease_and_the_file_stays() -> None:
    """A process that waits has the file open: a new file would be another lock."""
    for held in (lease.shared, lease.exclusive):
        with pytest.raises(ValueError, match="x"), held(KEY):
            raise ValueError("x")
    inode = (paths.images_dir() / f"{KEY}.lease").stat().st_ino
    with lease.exclusive(KEY):
        assert inode == (paths.images_dir() / f"{KEY}.lease").stat().st_ino


def test_programs_do_not_inherit_a_lease() -> None:
    """A program that is started under a lease has no descriptor of the file."""
    with lease.shared(KEY):
        listed = run.run(["sh", "-c", "readlink /proc/$$/fd/* || true"]).stdout
    assert ".lease" not in listed
