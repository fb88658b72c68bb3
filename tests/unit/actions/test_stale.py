"""Steps that ran under other commits, on the host: what is made of the guest's word, and who tells it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import clirun
import fakedriver
import makebox
import makemachine
import pytest
from clirun import Kimbox, result
from makemachine import event, tell

from kimbox.actions import up as starting
from kimbox.guest import stale
from kimbox.guest.events import parse_line
from kimbox.lock.lockfile import Lock, PinnedRepository, write_lock
from kimbox.lock.provenance.cyclonedx import sbom
from kimbox.lock.provenance.inputs import Provenance
from kimbox.lock.provenance.statement import statement
from kimbox.machine import delivered_locks
from kimbox.machine.delivered_locks import Delivered
from kimbox.machine.folder import Machine
from kimbox.machine.record import Sealed
from kimbox.machine.state import State
from kimbox.render.boxfile import box_json, describe
from kimbox.spec.model import Repository

kimbox, world = clirun.kimbox, clirun.world  # fixtures

OLD, NEW = "1a2b3c4" * 5 + "00000", "5d6e7f8" * 5 + "00000"
DIGEST = "a" * 64
REPOSITORY = Repository("tool", "https://example.org/tool", False, "main", "/opt/tool")
LOCK = Lock("d" * 64, None, {"tool": PinnedRepository(REPOSITORY.url, "main", NEW, "b" * 40)})
ABOUT = {"manifest": DIGEST, "mode": "keep", "role": "dev", "site": "", "by": "keep", "unpinned": "", "commit": ""}

STALE = {
    "step": "install",
    "repositories": {"tool": {"old": OLD, "new": NEW}},
    "command": "kimbox provision --only install tiny",
}


def told(**fields: str) -> stale.Stale | None:
    """What is made of an event `box` with these fields."""
    found = parse_line(event("box", **fields).encode())
    assert found
    return stale.from_event(found)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ({}, ""),
        ({"a": {}}, "a"),
        ({"a": {"tool": OLD}}, f"a:tool@{OLD}"),
        ({"a": {"tool": OLD, "api": NEW}, "b": {}}, f"a:tool@{OLD},api@{NEW} b"),
        ({"a": {"tool": OLD, "api": NEW}}, f"a:tool@{OLD} a:api@{NEW}"),
        ({"b": {}}, f"a:tool@{OLD[:-1]} b a:tool A ../x a;id a:tool@{OLD},"),
        ({}, "\x1b[31m `id` $(id) " + "x" * 64),
    ],
)
def test_what_the_guest_says_is_taken_apart(expected: dict[str, Any], text: str) -> None:
    """Whatever is no word of that form is passed over."""
    assert expected == told(stale=text)


def test_an_older_guest_does_not_know() -> None:
    """Nothing told is not nothing stale."""
    assert told(manifest=DIGEST) is None
    assert stale.steps("tiny", None) is None
    assert stale.steps("tiny", {"stale": None}) is None


def test_the_words_name_commits_and_command() -> None:
    """For each repository; one that is gone has none now, and what was not told is not made up."""
    step = stale.StaleStep("x", {"tool": stale.Moved(OLD, NEW), "api": stale.Moved(OLD, None)}, "kimbox this")
    moves = "tool 1a2b3c41a2b3 -> 5d6e7f85d6e7, api 1a2b3c41a2b3 -> none"
    assert f"step x ({moves}): `kimbox this` runs it again" == stale.words(step.as_json())
    without = attrs.evolve(step, repositories={})
    assert "step x (some commits are not known): `kimbox this` runs it again" == stale.words(without.as_json())


@pytest.fixture
def box(kimbox: Kimbox, world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Machine]:
    """Makes this folder's machine, at the manifest DIGEST, and has it tell which steps are stale."""
    kimbox("init", "--name", "tiny")
    fakedriver.install(monkeypatch)
    machine = makemachine.make_machine(source=str(world / "work/kimbox.yaml"))
    described = describe(makebox.make_box(world, repositories=(REPOSITORY,)), LOCK, "e" * 64)
    delivered_locks.keep(machine, Delivered(DIGEST, LOCK, described=box_json(described)))
    write_lock(world / "work/kimbox.lock", attrs.evolve(LOCK, image="e" * 64))

    def tells(text: str, at: str = "2026-01-02T03:04:05Z", part: str = "") -> Machine:
        box_told = event("box", **ABOUT, at=at, part=part, stale=text)
        tell(machine, event("booting", mode="keep"), box_told, event("ready", manifest=DIGEST))
        return machine

    return tells


def test_status_names_them(kimbox: Kimbox, box: Callable[[str], Machine]) -> None:
    """With old and new commit and the command; and an empty list where there are none."""
    with makemachine.running(box(f"install:tool@{OLD}")):
        facts = result(kimbox("status", "--json")[1], "status")
        assert [STALE] == facts["stale"]
        assert {"install": {"tool": OLD}} == facts["provenance"]["stale"]
        (line,) = [line for line in kimbox("status")[1].splitlines() if line.startswith("  STALE")]
        assert "`kimbox provision --only install tiny`" in line
    with makemachine.running(box("")):
        assert [] == result(kimbox("status", "--json")[1], "status")["stale"]
        assert "STALE" not in kimbox("status")[1]


def test_a_sealed_box_has_another_way(kimbox: Kimbox, box: Callable[[str], Machine]) -> None:
    """Nobody can run a step in it; a new root runs all."""
    machine = box(f"install:tool@{OLD}")
    machine.write_record(attrs.evolve(machine.record(), sealed=Sealed("worker", "a.org")))
    with makemachine.running(machine):
        (step,) = result(kimbox("status", "--json")[1], "status")["stale"]
    assert "kimbox reload --boot resnap tiny" == step["command"]


@pytest.mark.parametrize(
    ("expected", "before", "after"),
    [
        ("tiny is ready, as it was\n", "", ""),
        ("tiny is ready\n", None, ""),
        ("tiny is ready\n", f"install:tool@{OLD}", ""),
    ],
)
def test_as_it_was_is_what_nothing_was_done_to(
    kimbox: Kimbox,
    box: Callable[..., Machine],
    monkeypatch: pytest.MonkeyPatch,
    expected: str,
    before: str | None,
    after: str,
) -> None:
    """A box that was ready, and was provisioned anew, is not as it was."""
    machine = box(before or "")

    def up(_: object) -> State:
        if before is None:
            box(after, at="2026-01-02T04:05:06Z")
        elif before != after:
            box(after)
        return State.READY

    monkeypatch.setattr(starting, "up", up)
    with makemachine.running(machine):
        assert (0, expected) == kimbox("up")[:2]


@pytest.mark.parametrize(
    "work",
    [
        [event("step", n=1, of=1, kind="provision", name="a", status="done"), event("ready", manifest=DIGEST)],
        [event("provisioning", manifest=DIGEST), event("ready", manifest=DIGEST)],
        [event("ready", manifest="d" * 64)],
        [event("booting", mode="keep"), event("ready", manifest=DIGEST)],
    ],
)
def test_a_box_in_which_something_ran_is_not_as_it_was(
    kimbox: Kimbox, box: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch, work: list[str]
) -> None:
    """Also if the description of its root is the same afterwards. Events without work change nothing."""
    machine = box("")
    events: list[str] = []

    def up(_: object) -> State:
        tell(machine, *events)
        return State.READY

    monkeypatch.setattr(starting, "up", up)
    with makemachine.running(machine):
        for events, expected in ([event("snapshot", percent=70)], ", as it was"), (work, ""):  # noqa: B007 - for `up`
            assert (0, f"tiny is ready{expected}\n") == kimbox("up")[:2]


def test_up_names_them_each_time(
    kimbox: Kimbox, box: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never says `as it was` then."""
    monkeypatch.setattr(starting, "up", lambda _: State.READY)
    with makemachine.running(box(f"install:tool@{OLD}")):
        for _ in range(2):
            code, out, _ = kimbox("up")
            assert (0, False) == (code, "as it was" in out)
            assert "ready, but has steps that ran under other commits" in out
            assert "`kimbox provision --only install tiny` runs it again" in out
        assert [STALE] == result(kimbox("up", "--json")[1], "up")["stale"]


def test_a_box_with_stale_steps_differs_from_its_lock(kimbox: Kimbox, box: Callable[[str], Machine]) -> None:
    """It is not equal to it, however equal the locks are."""
    box("")
    assert "are equal" in kimbox("diff")[1]
    assert result(kimbox("diff", "--json")[1], "diff")["differs"] is False
    box(f"install:tool@{OLD}")
    out = kimbox("diff")[1]
    assert ("step install" in out, "are equal" in out) == (True, False)
    found = result(kimbox("diff", "--json")[1], "diff")
    assert found["differs"] is True
    assert {"old": [STALE], "new": None} == found["stale"]
    assert "are equal" not in kimbox("diff", "kimbox.lock", "tiny")[1]
    assert "are equal" in kimbox("diff", "kimbox.lock", "kimbox.lock")[1]


def test_provenance_names_them(kimbox: Kimbox, box: Callable[[str], Machine], world: Path) -> None:
    """In both files, with the commits under which they ran."""
    box(f"install:tool@{OLD} other")
    code, out, _ = kimbox("provenance", "--json")
    assert 0 == code
    assert {"install": {"tool": OLD}, "other": {}} == result(out, "provenance")["stale"]
    about = json.loads((world / "work/tiny.cdx.json").read_text())["metadata"]["component"]["properties"]
    assert {f"install tool@{OLD}", "other"} == {p["value"] for p in about if p["name"] == "kimbox:stale"}
    build = json.loads((world / "work/tiny.intoto.json").read_text())["predicate"]["buildDefinition"]
    assert {"install": {"tool": OLD}, "other": {}} == build["externalParameters"]["stale"]
    former = [each for each in build["resolvedDependencies"] if "annotations" in each]
    assert [{"name": "tool", "digest": {"gitCommit": OLD}, "annotations": {"staleSteps": ["install"]}}] == former


def test_provenance_is_the_same_in_any_order() -> None:
    """Equal input gives equal bytes."""
    pairs = {"b": {"tool": OLD, "api": NEW}, "a": {"tool": OLD}}
    turned = {"a": {"tool": OLD}, "b": {"api": NEW, "tool": OLD}}
    one, other = (Provenance("tiny", LOCK, stale=each) for each in (pairs, turned))
    assert (sbom(one), statement(one)) == (sbom(other), statement(other))
    assert "stale" not in sbom(Provenance("tiny", LOCK)) + statement(Provenance("tiny", LOCK))
