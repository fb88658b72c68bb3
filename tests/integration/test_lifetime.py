"""The end of a lifetime: the box is shut down and saved in a real store, and a real mail server gets the news."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import mailserver
import makemachine
import makesaved
import pytest
from clirun import Kimbox, error, result
from clirun import kimbox as kimbox
from clirun import world as world
from mailserver import Box
from waiting import until

from kimbox import utctime
from kimbox.actions import expire as expiring
from kimbox.actions import resume, stop, timer
from kimbox.actions.saves import found
from kimbox.actions.saves import save as saving
from kimbox.cli import afterwards
from kimbox.errors import KimboxError
from kimbox.files import sha256_file
from kimbox.machine.folder import Machine
from kimbox.machine.life import Life, Lifetime, read_life
from kimbox.machine.record import Ended
from kimbox.machine.state import State
from kimbox.spec.occasions import Notify
from kimbox.transfer.notices import spool
from kimbox.transfer.stores.opening import open_store

HOUR_S = 3600


@pytest.fixture
def mails() -> Iterator[Box]:
    """A mail server."""
    with mailserver.running() as box:
        yield box


@pytest.fixture
def machine(world: Path, mails: Box) -> Machine:
    """A halted box with a lifetime of two hours, a store, and a target of its notifications."""
    machine, spec = makesaved.make_saved(world), world / "kimbox.yaml"
    spec.write_text(json.dumps(makesaved.SPEC))
    machine.write_record(attrs.evolve(machine.record(), source=str(spec), ended=Ended.HALTED))
    target = Notify(mail="someone@example.org", server=mails.url, sender="kimbox@example.org")
    lifetime = Lifetime.begin(2 * HOUR_S, time.time(), from_spec=True)
    Life(lifetime, f"{world}/store", (target,)).write(machine.folder)
    return machine


def end_at(after_s: float) -> expiring.Expired:
    """Runs `kimbox expire` as if that much time had passed since now."""
    return expiring.expire(lambda: time.time() + after_s)


def lifetime_of(machine: Machine) -> Lifetime:
    lifetime = read_life(machine).lifetime
    assert lifetime
    return lifetime


def saves(url: Path) -> list[int]:
    """The numbers of the saves in a store."""
    return found.numbers(open_store(str(url))) if url.is_dir() else []


def test_a_lifetime_from_its_warning_to_its_end(kimbox: Kimbox, machine: Machine, world: Path, mails: Box) -> None:
    """The warning comes once, an hour before. At the end the box is saved, verified, and listed as ended."""
    assert [] == end_at(HOUR_S / 2).announced
    assert [["tiny"], []] == [end_at(HOUR_S + 1).announced for _ in range(2)]
    assert ([], ["expiring"]) == (saves(world / "store"), mails.events)
    before = sha256_file(machine.disk)
    (ended,) = end_at(2 * HOUR_S).ended
    assert ("tiny", str(world / "store"), 1, None) == attrs.astuple(ended)
    assert (["expiring", "saved", "expired"], [1]) == (mails.events, saves(world / "store"))
    assert before == sha256_file(machine.disk)
    assert [] == end_at(9 * HOUR_S).ended
    listed = kimbox("list")[1]
    assert "ended, saved" in listed
    assert "No boxes are running" in listed
    lifetime = json.loads(kimbox("--json", "status", "tiny")[1])["result"]["lifetime"]
    assert (0, None) == (lifetime["remaining_s"], lifetime["failure"])
    assert "wrong-state" == error(kimbox("--json", "extend", "tiny")[1], "extend")["code"]
    subject = str(mails.mails[-1]["Subject"])
    assert subject.startswith("[kimbox] the lifetime of tiny has ended. It is halted; saved as number 1 in ")


def test_a_save_that_fails(kimbox: Kimbox, machine: Machine, world: Path, mails: Box) -> None:
    """The disk stays, list and mail say so, and it is attempted again until the store is there."""
    (world / "store").write_text("no folder")
    before = sha256_file(machine.disk)
    (ended,) = end_at(2 * HOUR_S).ended
    assert ended.failure
    assert before == sha256_file(machine.disk)
    assert "NOT SAVED" in kimbox("list")[1]
    assert "NOT SAVED" in kimbox("status", "tiny")[1]
    assert "its disk stays, but it is not saved" in mails.texts[-1]
    assert [] == end_at(2 * HOUR_S + 60).ended
    (again,) = end_at(2 * HOUR_S + 901).ended
    assert again.failure
    (world / "store").unlink()
    (saved,) = end_at(5 * HOUR_S).ended
    assert (None, 1) == (saved.failure, saved.number)
    assert lifetime_of(machine).ended_at
    assert "NOT SAVED" not in kimbox("list")[1]
    assert 2 == mails.events.count("expired")  # the failure, once, and the end


def test_a_box_that_has_never_run_is_not_lost(machine: Machine, world: Path) -> None:
    """Nothing is in it that could be saved. It stays."""
    machine.write_record(attrs.evolve(machine.record(), ended=Ended.NEW))
    (ended,) = end_at(2 * HOUR_S).ended
    assert (None, None) == (ended.url, ended.failure)
    assert ([], True) == (saves(world / "store"), machine.disk.exists())


@pytest.mark.parametrize(
    ("before", "calls"),
    [
        (State.READY, ["halt"]),
        (State.SUSPENDED, ["resume", "halt"]),
        (State.PAUSED, ["resume", "halt"]),
        (State.CRASHED, ["halt"]),
    ],
)
def test_how_a_box_is_shut_down(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, before: State, calls: list[str]
) -> None:
    """First it is shut down, then it is saved. The memory of a suspended box is used, not thrown away."""
    did: list[str] = []
    states = iter([before])
    monkeypatch.setattr(expiring, "state", lambda _: next(states, State.HALTED))
    monkeypatch.setattr(resume, "resume", lambda _: did.append("resume"))
    monkeypatch.setattr(stop, "halt", lambda _: did.append("halt"))
    life = attrs.evolve(read_life(machine), notify=())
    life.write(machine.folder)
    (ended,) = end_at(2 * HOUR_S).ended
    assert (calls, 1, None) == (did, ended.number, ended.failure)


def test_a_shutdown_that_fails_is_attempted_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The box is not saved while it runs, and its end is not forgotten."""

    def refuse(_: Machine) -> None:
        raise OSError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(stop, "halt", refuse)
        (ended,) = end_at(2 * HOUR_S).ended
    assert "no memory" == ended.failure
    assert (1, None) == (lifetime_of(machine).attempts, lifetime_of(machine).ended_at)
    assert [None] == [one.failure for one in end_at(3 * HOUR_S).ended]


@pytest.mark.parametrize("point", ["before", "saved"])
def test_a_run_that_is_killed(machine: Machine, monkeypatch: pytest.MonkeyPatch, world: Path, point: str) -> None:
    """The next run does what is missing: the box is saved, and nothing is lost."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*((stop, "halt", die) if point == "before" else (expiring, "_change", die)))
        with pytest.raises(KeyboardInterrupt):
            end_at(2 * HOUR_S)
    assert (0 if point == "before" else 1) == len(saves(world / "store"))
    end_at(2 * HOUR_S)
    assert lifetime_of(machine).ended_at
    assert saves(world / "store")


def test_a_verb_ends_what_is_due_in_the_background(kimbox: Kimbox, machine: Machine, world: Path, mails: Box) -> None:
    """Without a timer, the next verb of any kind starts it, warns, and does not wait for it."""
    life = read_life(machine)
    assert life.lifetime
    over = attrs.evolve(life.lifetime, ends_at=utctime.text(time.time() - 1), is_announced=True)
    attrs.evolve(life, lifetime=over).write(machine.folder)
    code, _, err = kimbox("status", "tiny")
    assert (0, True) == (code, "the lifetime of tiny has ended" in err)
    until("the box is saved", lambda: bool(lifetime_of(machine).ended_at))
    until("the mails are there", lambda: ["saved", "expired"] == mails.events)
    assert [1] == saves(world / "store")


def test_extend(kimbox: Kimbox, machine: Machine) -> None:
    """It moves the end, at most by a week, and a box without a lifetime gets one."""
    out = result(kimbox("--json", "extend", "tiny", "--to", "7d")[1], "extend")
    assert 7 * 86400 - 60 < out["remaining_s"] <= 7 * 86400
    assert "out-of-range" == error(kimbox("--json", "extend", "tiny", "--to", "8d")[1], "extend")["code"]
    out = result(kimbox("--json", "extend", "tiny")[1], "extend")
    assert 2 * HOUR_S - 60 < out["remaining_s"] <= 2 * HOUR_S
    other = makemachine.make_machine("other")
    assert "wrong-state" == error(kimbox("--json", "extend", "other")[1], "extend")["code"]
    assert 0 == kimbox("extend", "other", "--to", "36h")[0]
    assert not lifetime_of(other).from_spec
    assert "box-not-found" == error(kimbox("--json", "extend", "nobody")[1], "extend")["code"]


def test_a_crash_is_reported_once(machine: Machine, mails: Box) -> None:
    """A box that does not run although nobody halted it."""
    machine.write_record(attrs.evolve(machine.record(), ended=None))
    assert [["tiny"], []] == [end_at(0).crashed for _ in range(2)]
    assert ["crashed"] == mails.events


def test_a_mail_server_that_is_away(kimbox: Kimbox, machine: Machine, world: Path) -> None:
    """The save succeeds, the mail waits on disk, and arrives when the server is there again."""
    with mailserver.running() as gone:
        url = gone.url
    life = read_life(machine)
    attrs.evolve(life, notify=(attrs.evolve(life.notify[0], server=url),)).write(machine.folder)
    assert 0 == kimbox("save", "tiny", str(world / "store"))[0]
    (one,) = spool.waiting()
    assert [True] == [bool(done.reason) for done in spool.deliver(time.time() + 1e4)]
    with mailserver.running(int(url.rpartition(":")[2])) as back:
        assert [None] == [done.reason for done in spool.deliver(time.time() + 1e5)]
        assert ["saved"] == back.events
        assert f"<{one.message['id']}@kimbox.invalid>" == back.mails[0]["Message-ID"]


def test_stop_ends_a_lifetime(kimbox: Kimbox, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is saved: nothing remains to be done at the old end."""
    monkeypatch.setattr(stop, "halt", lambda *_, **__: State.HALTED)
    monkeypatch.setattr(afterwards, "start", lambda: None)
    assert 0 == kimbox("stop", "tiny")[0]
    assert lifetime_of(machine).ended_at
    assert [] == end_at(99 * HOUR_S).ended


def test_a_lifetime_that_changes_while_another_box_is_saved(
    machine: Machine, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save can take hours. A box that its user extends meanwhile is not ended."""
    other = makemachine.make_machine("zwei", ended=Ended.HALTED)
    read_life(machine).write(other.folder)

    def save(request: saving.SaveRequest) -> None:
        extended = lifetime_of(other).extended(3 * HOUR_S, time.time() + 2 * HOUR_S)
        attrs.evolve(read_life(other), lifetime=extended).write(other.folder)
        raise KimboxError("no route", code="store-failed")

    monkeypatch.setattr(saving, "save", save)
    assert [machine.name] == [end.name for end in end_at(2 * HOUR_S).ended]
    assert None is lifetime_of(other).ended_at


def test_a_start_while_a_box_is_saved_begins_another_lifetime(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, mails: Box
) -> None:
    """The result of the old one is not written into it, and nobody is told that the box has ended."""
    begun = Lifetime.begin(9 * HOUR_S, time.time(), from_spec=True)

    def save(request: saving.SaveRequest) -> None:
        attrs.evolve(read_life(machine), lifetime=begun).write(machine.folder)
        raise KimboxError("the box is booting", code="wrong-state")

    monkeypatch.setattr(saving, "save", save)
    end_at(2 * HOUR_S)
    assert begun == lifetime_of(machine)
    assert "expired" not in mails.events


def test_a_lifetime_that_begins_while_the_timer_is_removed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start has seen the timer and has not made it again: `kimbox expire` does."""
    before, calls = read_life(machine), []
    (machine.folder / "life.json").unlink()

    def remove() -> None:
        calls.append("remove")
        before.write(machine.folder)

    monkeypatch.setattr(timer, "remove", remove)
    monkeypatch.setattr(timer, "install", lambda: calls.append("install"))
    end_at(0)
    assert ["remove", "install"] == calls
