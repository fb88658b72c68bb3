"""The time zone of the spec, in the guest's own scripts."""

from __future__ import annotations

from pathlib import Path

import attrs
import fakeguest
import pytest
from fakeguest import FakeGuest, box_with, needs_namespace, provision, step, steps_of

from kimbox.spec.model import Box

pytestmark = needs_namespace

guest = fakeguest.guest  # a fixture

ZONES = "/usr/share/zoneinfo"


@pytest.fixture
def box(guest: FakeGuest, tmp_path: Path) -> Box:
    """A box with one step, which writes down its zone."""
    for name in ("localtime", "timezone"):
        guest.path(f"/etc/{name}").unlink(missing_ok=True)  # they are links to the files of the host
    made = box_with(tmp_path, step("zone", "readlink /etc/localtime >>/tmp/zone"))
    return attrs.evolve(made, timezone="Europe/Berlin")


def zone(guest: FakeGuest) -> tuple[str, str]:
    """The zone in /etc/localtime and in /etc/timezone."""
    return str(guest.path("/etc/localtime").readlink()), guest.path("/etc/timezone").read_text()


def test_it_is_set_before_the_steps(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """It counts as a step, and is set once. A zone that was changed in the box is set again."""
    assert 0 == provision(guest, tmp_path, box)
    assert (f"{ZONES}/Europe/Berlin", "Europe/Berlin\n") == zone(guest)
    assert f"{ZONES}/Europe/Berlin\n" == guest.path("/tmp/zone").read_text()
    assert ("timezone", "Europe/Berlin", "done") == steps_of(guest.events())[0]
    assert 0 == provision(guest, tmp_path, attrs.evolve(box, digest="a" * 64))
    assert ("timezone", "Europe/Berlin", "skipped") == steps_of(guest.events())[0]
    guest.path("/etc/localtime").unlink()
    assert 0 == provision(guest, tmp_path, attrs.evolve(box, digest="b" * 64))
    assert (f"{ZONES}/Europe/Berlin", "Europe/Berlin\n") == zone(guest)


def test_it_ends_with_the_spec(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """Without a zone in the spec, the one of kimbox ends, and one that a user has set stays."""
    assert 0 == provision(guest, tmp_path, box)
    bare = attrs.evolve(box, timezone=None, provision=(), repositories=())
    assert 0 == provision(guest, tmp_path, bare)
    assert (f"{ZONES}/Etc/UTC", "Etc/UTC\n") == zone(guest)
    guest.path("/etc/timezone").write_text("Asia/Tokyo\n")
    assert 0 == provision(guest, tmp_path, attrs.evolve(bare, digest="a" * 64))
    assert "Asia/Tokyo\n" == zone(guest)[1]


def test_a_zone_that_is_not_there(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    assert 0 != provision(guest, tmp_path, attrs.evolve(box, timezone="Europe/Nowhere"))
    failed = [event for event in guest.events() if event["event"] == "failed"][-1]
    assert ("timezone", "Europe/Nowhere") == (failed["kind"], failed["name"])
    assert "tzdata" in failed["reason"]
    assert not guest.path("/tmp/zone").exists()
