"""What provisiond does with a kept root: it keeps a new one, and compares the one that the initramfs has put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import fakeguest
import pytest
from fakeguest import FakeGuest, box_with, delivery, needs_namespace, provision, step

from kimbox.spec.model import ResnapKeep

guest = fakeguest.guest  # a fixture

#: A double of /usr/lib/kimbox/kept: writes its arguments to a log. The file /tmp/unkept has the reason of a failure.
KEPT = """#!/bin/sh
echo "$*" >>/tmp/kept.log
[ "$1" != name ] || cat /tmp/kept.name 2>/dev/null
[ "$1 $(cat /tmp/unkept 2>/dev/null)" = "$1 " ] || { cat /tmp/unkept; exit 3; }
"""


@pytest.fixture
def resnapped(guest: FakeGuest) -> FakeGuest:
    """A guest in a boot with `resnap`."""
    guest.path("/usr/lib/kimbox/kept").write_text(KEPT)
    guest.path("/usr/lib/kimbox/kept").chmod(0o755)
    boot(guest)
    return guest


def boot(guest: FakeGuest, put_back: str = "") -> None:
    """Boots with `resnap`. `put_back`: what the initramfs has reported of a kept root."""
    guest.new_boot()
    guest.path("/run/kimbox").mkdir(parents=True, exist_ok=True)
    guest.path("/run/kimbox/mode").write_text("resnap\n")
    if put_back:
        guest.path("/run/kimbox/kept").write_text(f"{put_back}\n")


def calls(guest: FakeGuest) -> list[str]:
    """Returns the calls of the program `kept` so far, and empties its log."""
    log = guest.path("/tmp/kept.log")
    lines = log.read_text().splitlines() if log.exists() else []
    log.write_text("")
    return lines


def kept(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns status and reason of the events `kept`."""
    return [(event["status"], event["reason"]) for event in events if event["event"] == "kept"]


@needs_namespace
def test_a_new_root_is_kept_before_ready_is_reported(resnapped: FakeGuest, tmp_path: Path) -> None:
    """Once, with the name of its manifest. A second run on the same root keeps nothing."""
    box = box_with(tmp_path, step("o", "true"))
    digest, _ = delivery(tmp_path, box)
    assert provision(resnapped, tmp_path, box) == 0
    events = resnapped.events()
    assert [event["event"] for event in events][-2:] == ["kept", "ready"]
    assert kept(events) == [("saved", "")]
    assert calls(resnapped) == ["name", f"save {digest}"]
    assert provision(resnapped, tmp_path, attrs.evolve(box, provision=(step("other", "true"),))) == 0
    assert "save" not in " ".join(calls(resnapped))


@needs_namespace
def test_what_is_not_kept(resnapped: FakeGuest, tmp_path: Path) -> None:
    """A manifest that failed, one that says so, a boot that keeps its snapshot, a second run after a failure, a job."""
    assert provision(resnapped, tmp_path, box_with(tmp_path, step("o", "test -e /tmp/well"))) == 1
    resnapped.path("/tmp/well").touch()
    assert resnapped.run("/usr/lib/kimbox/receive", "--have").ok
    assert provision(resnapped, tmp_path, box_with(tmp_path, step("o", "test -e /tmp/well"))) == 0
    resnapped.new_root()
    boot(resnapped)
    box = attrs.evolve(box_with(tmp_path, step("o", "true")), resnap_keep=ResnapKeep.NOTHING)
    assert provision(resnapped, tmp_path, box) == 0
    resnapped.new_root()
    assert resnapped.run("/usr/lib/kimbox/provisiond").code == 0  # the mode is keep
    resnapped.new_root()
    boot(resnapped)
    credential = resnapped.path("/run/credentials/@system/kimbox.job")
    credential.parent.mkdir(parents=True)
    credential.write_text("0123456789ab 60")
    assert provision(resnapped, tmp_path, box_with(tmp_path, step("p", "true"))) == 0
    assert "save" not in " ".join(calls(resnapped))
    assert kept(resnapped.events()) == []


@needs_namespace
def test_a_disk_without_room_is_reported_once(resnapped: FakeGuest, tmp_path: Path) -> None:
    """Each manifest is tried once."""
    resnapped.path("/tmp/unkept").write_text("no room\n")
    box = box_with(tmp_path, step("o", "true"))
    assert provision(resnapped, tmp_path, box) == 0
    assert kept(resnapped.events()) == [("unsaved", "no room")]
    resnapped.new_root()
    boot(resnapped)
    calls(resnapped)
    assert resnapped.run("/usr/lib/kimbox/provisiond").code == 0
    assert kept(resnapped.events()) == []
    assert calls(resnapped) == ["name"]


@needs_namespace
def test_a_root_that_was_put_back_is_compared(resnapped: FakeGuest, tmp_path: Path) -> None:
    """The same manifest: its steps are done. Another one, or a sealed box: the box restarts with an empty snapshot."""
    box = box_with(tmp_path, step("o", "true"))
    digest, _ = delivery(tmp_path, box)
    assert provision(resnapped, tmp_path, box) == 0
    resnapped.events()
    boot(resnapped, digest)
    assert resnapped.run("/usr/lib/kimbox/provisiond", "--early").code == 0
    assert [event["event"] for event in resnapped.events()] == ["kept", "ready"]
    calls(resnapped)
    boot(resnapped, "ab")
    assert resnapped.run("/usr/lib/kimbox/provisiond", "--early").code == 1
    assert kept(resnapped.events()) == [("dropped", "the box has another manifest")]
    assert calls(resnapped) == ["drop"]
    assert "--force --force reboot" in resnapped.path("/run/systemctl.log").read_text()
    boot(resnapped, "- it is damaged")
    assert resnapped.run("/usr/lib/kimbox/provisiond").code == 0
    assert kept(resnapped.events()) == [("refused", "it is damaged")]
    resnapped.secure()
    boot(resnapped, digest)
    assert resnapped.run("/usr/lib/kimbox/provisiond").code == 1
    assert kept(resnapped.events()) == [("dropped", "the box is sealed")]


@needs_namespace
def test_another_manifest_ends_what_is_kept(resnapped: FakeGuest, tmp_path: Path) -> None:
    """Before it is provisioned on a running box."""
    resnapped.path("/tmp/kept.name").write_text("ab\n")
    assert provision(resnapped, tmp_path, box_with(tmp_path, step("o", "false"))) == 1
    assert calls(resnapped) == ["name", "drop"]
