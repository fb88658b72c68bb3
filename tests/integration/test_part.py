"""A part of a manifest: one step alone, or all from one on. In the guest's own scripts."""

from __future__ import annotations

import json
from pathlib import Path

import fakeguest
import pytest
from fakeguest import FakeGuest, box_with, delivery, needs_namespace, provision, step, steps_of

from kimbox.spec.model import Box, Probe

guest = fakeguest.guest  # a fixture

PROVISIOND = "/usr/lib/kimbox/provisiond"


@pytest.fixture
def box(guest: FakeGuest, tmp_path: Path) -> Box:
    """Two steps and a probe; the second step fails while /tmp/bad is there."""
    steps = (step("first", "echo x >>/tmp/first"), step("second", "echo x >>/tmp/second; test ! -e /tmp/bad"))
    return box_with(
        tmp_path, *steps, probes=(Probe("holds", "true", None, 5),), setup="#!/bin/sh\necho x >>/tmp/setup\n"
    )


def run_part(guest: FakeGuest, folder: Path, box: Box, how: str, name: str) -> dict[str, str]:
    """Delivers a box for a part and runs it; returns what came of each step, and `exit`."""
    digest, tar = delivery(folder, box)
    assert guest.run("/usr/lib/kimbox/receive", digest, "--start", how, name, stdin=str(tar)).code == 0
    guest.events()
    code = guest.run(PROVISIOND).code
    told = guest.events(box=True)
    box_told = [event for event in told if event["event"] == "box"]
    assert {event["part"] for event in box_told} == {f"{how} {name}"}
    assert {event["at"] for event in box_told} == {""}
    if code == 0:
        assert told[-1] == {"event": "ready", "manifest": digest, "part": f"{how} {name}"}
    said = json.loads(guest.path("/etc/kimbox/box.json").read_text())
    assert (said["provisioned"]["part"], said["provisioned"]["at"]) == (f"{how} {name}", None)
    return {f"{kind} {what}": status for kind, what, status in steps_of(told)} | {"exit": str(code)}


def counts(guest: FakeGuest) -> list[int]:
    """How often `setup` and the two steps have run."""
    files = [guest.path(f"/tmp/{name}") for name in ("setup", "first", "second")]
    return [len(file.read_text().splitlines()) if file.exists() else 0 for file in files]


def links(guest: FakeGuest) -> set[str]:
    """The marks that manifests bear."""
    return {path.name for path in guest.path("/persistent/kimbox").iterdir() if path.is_symlink()}


@needs_namespace
@pytest.mark.parametrize(
    ("how", "name", "ran"),
    [
        ("only", "setup", [2, 1, 1]),
        ("only", "first", [1, 2, 1]),
        ("only", "second", [1, 1, 2]),
        ("from", "second", [1, 1, 2]),
        ("from", "first", [1, 2, 2]),
        ("from", "setup", [2, 2, 2]),
    ],
)
def test_a_part_runs_though_it_was_done(
    guest: FakeGuest, tmp_path: Path, box: Box, how: str, name: str, ran: list[int]
) -> None:
    """It and nothing else, but what follows with `from`, and then the probes too."""
    assert provision(guest, tmp_path, box) == 0
    came = run_part(guest, tmp_path, box, how, name)
    assert counts(guest) == ran
    assert came["exit"] == "0"
    assert came["probe holds"] == ("done" if how == "from" else "skipped")
    guest.new_boot()
    assert guest.run(PROVISIOND).code == 0
    assert counts(guest) == ran
    told = guest.events(box=True)
    assert "part" not in told[-1]
    assert (told[-2]["part"], bool(told[-2]["at"])) == ("", True)


@needs_namespace
def test_a_part_on_a_new_root_counts_neither_as_done_nor_as_good(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """The next run does what was left out, and no more."""
    came = run_part(guest, tmp_path, box, "only", "first")
    assert came == {
        "repository setup": "done", "setup setup": "skipped", "repository code": "done", "provision first": "done",
        "provision second": "skipped", "probe holds": "skipped", "exit": "0",
    }  # fmt: skip
    assert links(guest) == {"current"}
    assert guest.run(PROVISIOND).code == 0
    assert counts(guest) == [1, 1, 1]
    assert links(guest) == {"current", "good"}


@needs_namespace
def test_a_part_that_fails_is_no_verdict(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """No mark moves; what was done before is no longer taken for done, and the next boot tries the whole."""
    guest.path("/tmp/bad").touch()
    assert run_part(guest, tmp_path, box, "from", "second")["exit"] == "1"
    assert links(guest) == {"current"}
    guest.path("/tmp/bad").unlink()
    assert provision(guest, tmp_path, box) == 0
    guest.path("/tmp/bad").touch()
    assert run_part(guest, tmp_path, box, "only", "second")["exit"] == "1"
    assert links(guest) == {"current", "good"}
    guest.path("/tmp/bad").unlink()
    guest.new_boot()
    assert guest.run(PROVISIOND).code == 0
    assert [status for kind, name, status in steps_of(guest.events()) if name == "second"] == ["done"]


@needs_namespace
def test_a_part_is_for_one_run(guest: FakeGuest, tmp_path: Path, box: Box) -> None:
    """Another delivery without a part forgets it; `--early` leaves it to the run that works."""
    digest, tar = delivery(tmp_path, box)
    receive = ("/usr/lib/kimbox/receive", digest, "--start")
    assert guest.run(*receive, "only", "first", stdin=str(tar)).code == 0
    assert guest.run(PROVISIOND, "--early").code == 0
    assert guest.path("/run/kimbox/part").read_text() == "only first\n"
    assert guest.run(*receive, stdin=str(tar)).code == 0
    assert guest.run(PROVISIOND).code == 0
    assert counts(guest) == [1, 1, 1]
