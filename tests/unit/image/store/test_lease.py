"""Leases on images: many processes may use an image, and only an exclusive process may remove it."""

from __future__ import annotations

import ownhome
import pytest
from refused import refused

from kimbox import paths, run
from kimbox.errors import StateError
from kimbox.image.store import lease

home = ownhome.home  # a fixture

KEY = "a" * 64


def test_processes_share_an_image_and_none_removes_it() -> None:
    """The exclusive lease is refused immediately, and available when the last shared lease has ended."""
    with lease.shared(KEY):
        with lease.shared(KEY), refused(StateError, "busy", image=KEY, use="using"), lease.exclusive(KEY):
            pass
        with refused(StateError, "busy", image=KEY, use="using"), lease.exclusive(KEY):
            pass
    with lease.exclusive(KEY):
        pass


def test_use_waits_for_a_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    """For WAIT_S. A lease on another image does not wait."""
    monkeypatch.setattr(lease, "WAIT_S", 0.05)
    with lease.exclusive(KEY):
        with lease.shared("b" * 64):
            pass
        with refused(StateError, "busy", image=KEY, use="removing"), lease.shared(KEY):
            pass
    with lease.shared(KEY):
        pass


def test_an_error_ends_a_lease_and_the_file_is_kept() -> None:
    """A process that waits has the file open. A new file would be another lock."""
    for take_lease in (lease.shared, lease.exclusive):
        with pytest.raises(ValueError, match="x"), take_lease(KEY):
            raise ValueError("x")
    inode = (paths.images_dir() / f"{KEY}.lease").stat().st_ino
    with lease.exclusive(KEY):
        assert inode == (paths.images_dir() / f"{KEY}.lease").stat().st_ino


def test_programs_do_not_inherit_a_lease() -> None:
    """A program that kimbox starts while it holds a lease does not have the file open."""
    with lease.shared(KEY):
        listed = run.run(["sh", "-c", "readlink /proc/$$/fd/* || true"]).stdout
    assert ".lease" not in listed
