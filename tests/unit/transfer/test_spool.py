"""Notifications wait on disk, are sent again later, and one broken target stops no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ownhome import home as home

from kimbox import paths
from kimbox.errors import KimboxError
from kimbox.spec.occasions import Notify, Occasion
from kimbox.transfer.notices import base, spool
from kimbox.transfer.notices.base import Message

NOW_S = 1769860800.0
CHAT, MAIL = Notify(command="chat"), Notify(mail="someone@example.org")


def put(target: Notify, text: str = "tiny is ready", at_s: float = NOW_S) -> Message:
    """Puts a notification into the spool, and returns it."""
    message = spool.make_message(Occasion.READY, "tiny", "tiny", text, {"number": 3}, at_s)
    spool.put(message, target, at_s)
    return message


class Sender:
    """Notes what is sent. Fails for the targets in `broken`."""

    def __init__(self) -> None:
        self.broken: set[Notify] = set()
        self.calls: list[tuple[Notify, str]] = []

    def __call__(self, target: Notify, message: Message) -> None:
        self.calls.append((target, message["text"]))
        if target in self.broken:
            raise base.failed("it", "no route")


def test_what_is_sent_leaves_the_spool(home: Path) -> None:
    """In the order of its writing, once. The file is private."""
    sender = Sender()
    put(CHAT, "one"), put(MAIL, "two", NOW_S + 1)
    assert {0o600} == {path.stat().st_mode & 0o777 for path in spool.folder().iterdir()}
    assert spool.has_due(NOW_S)
    assert [None, None] == [one.reason for one in spool.deliver(NOW_S + 2, sender)]
    assert [(CHAT, "one"), (MAIL, "two")] == sender.calls
    assert ([], False) == (spool.deliver(NOW_S + 3, sender), spool.has_due(NOW_S + 3))


def test_a_broken_target_waits_longer_each_time(home: Path) -> None:
    """It is tried once a run, the others of it wait, too, and those to another target are sent."""
    sender = Sender()
    sender.broken = {CHAT}
    put(CHAT, "one"), put(CHAT, "two", NOW_S + 0.1), put(MAIL, "three", NOW_S + 0.2)
    spool.deliver(NOW_S + 1, sender)
    assert [(CHAT, "one"), (MAIL, "three")] == sender.calls
    at_s, attempts = NOW_S + 1, []
    for _ in range(4):
        sender.calls.clear()
        step_s = next(s for s in range(60, 100000, 60) if spool.has_due(at_s + s))
        at_s += step_s
        spool.deliver(at_s, sender)
        attempts.append((step_s, len(sender.calls)))
    assert [(60, 1), (300, 1), (900, 1), (3600, 1)] == attempts
    sender.broken = set()
    sender.calls.clear()
    spool.deliver(at_s + 86400, sender)
    assert 2 == len(sender.calls)


def test_an_old_notification_is_dropped(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a week, with a warning."""
    sender = Sender()
    sender.broken = {CHAT}
    put(CHAT)
    spool.deliver(NOW_S + spool.MAX_AGE_S, sender)
    assert 1 == len(list(spool.waiting()))
    spool.deliver(NOW_S + 2 * spool.MAX_AGE_S, sender)
    assert [] == list(spool.waiting())


def test_an_unexpected_error_of_a_library(home: Path) -> None:
    """It is the reason, and nothing else."""
    put(CHAT)

    def explode(target: Notify, message: Message) -> None:
        raise RuntimeError("of a plugin")

    assert ["RuntimeError('of a plugin')"] == [one.reason for one in spool.deliver(NOW_S, explode)]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"target": {"events": ["x"]}}), "x" * 100_000])
def test_a_damaged_file(home: Path, text: str) -> None:
    """It is removed, and hides no other."""
    put(CHAT)
    (spool.folder() / "000-damaged.json").write_text(text)
    sender = Sender()
    spool.deliver(NOW_S, sender)
    assert ([(CHAT, "tiny is ready")], []) == (sender.calls, list(spool.folder().iterdir()))


def test_a_full_spool(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not grow without a limit."""
    monkeypatch.setattr(spool, "MAX_WAITING", 3)
    for _ in range(5):
        put(CHAT)
    assert 3 == len(list(spool.waiting()))


def script(home: Path, text: str, name: str = "chat", mode: int = 0o755) -> None:
    """Writes a notifier of the user."""
    (home / "notifiers").mkdir(parents=True, exist_ok=True)
    path = home / "notifiers" / name
    path.write_text(text)
    path.chmod(mode)


def test_a_program_gets_json(home: Path, tmp_path: Path) -> None:
    """On stdin, and nothing on its command line."""
    script(home, f'#!/bin/sh\necho "$#" >{tmp_path}/count\ncat >{tmp_path}/got\n')
    message = put(CHAT)
    assert [None] == [one.reason for one in spool.deliver(NOW_S)]
    assert message == json.loads((tmp_path / "got").read_text())
    assert "0\n" == (tmp_path / "count").read_text()
    assert ("ready", "tiny", 3) == (message["event"], message["name"], message["details"]["number"])


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("#!/bin/sh\nexit 3\n", 0o755, "exit status 3"),
        ("#!/bin/sh\nsleep 4 &\nsleep 5\n", 0o755, "did not end within"),
        ("#!/bin/sh\n", 0o644, "not an executable file"),
        ("\0", 0o755, "Exec format error"),
        (None, 0, "not an executable file"),
    ],
)
def test_a_broken_program(
    home: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, mode: int, reason: str
) -> None:
    """Each way to fail is a reason, also a program that hangs."""
    monkeypatch.setattr("kimbox.transfer.notices.program.TIMEOUT_S", 1.0)
    if text is not None:
        script(home, text, mode=mode)
    put(CHAT)
    (done,) = spool.deliver(NOW_S)
    assert reason in (done.reason or "")
    assert 1 == len(list(spool.waiting()))


def test_sendmail(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mail is on the stdin of sendmail; a text cannot add a header."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sendmail").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/words\ncat >{tmp_path}/mail\n')
    (folder / "sendmail").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    message = put(MAIL, "tiny\nBcc: victim@example.org")
    assert [None] == [one.reason for one in spool.deliver(NOW_S)]
    head, _, text = (tmp_path / "mail").read_text().partition("\n\n")
    assert "-i -- someone@example.org\n" == (tmp_path / "words").read_text()
    assert not [line for line in head.splitlines() if line.startswith("Bcc")]
    assert f"Message-ID: <{message['id']}@kimbox.invalid>" in head
    assert {"box: tiny", "event: ready", "number: 3"} <= set(text.splitlines())


def test_no_sendmail(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint names the setting for a server."""
    monkeypatch.setattr("kimbox.run.SYSTEM_PATHS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KimboxError) as caught:
        spool.send(MAIL, put(MAIL))
    assert ("notification-failed", True) == (caught.value.code, "server: smtp" in (caught.value.hint or ""))


def test_apprise(home: Path, tmp_path: Path) -> None:
    """A real apprise writes to the place that the user's file names. A file that others may read is refused."""
    pytest.importorskip("apprise")
    target = Notify(apprise="room")
    script(home, "urls:\n  - json://127.0.0.1:1/x\n", "room.yaml", 0o644)
    with pytest.raises(KimboxError, match="other users may read it"):
        spool.send(target, put(target))
    (home / "notifiers/room.yaml").chmod(0o600)
    with pytest.raises(KimboxError, match="a service did not accept it"):
        spool.send(target, put(target))
    assert paths.home() == home


def test_only_a_delivery_removes_a_damaged_file(home: Path) -> None:
    """Other verbs only look. A notification of a newer kimbox stays for that one."""
    put(CHAT)
    (file,) = spool.folder().iterdir()
    value = json.loads(file.read_text())
    newer = file.with_name("newer.json")
    newer.write_text(json.dumps(value | {"format": spool.FORMAT + 1}))
    value["target"]["events"] = ["quota-low"]
    file.write_text(json.dumps(value))
    assert not spool.has_due(NOW_S)
    assert file.exists()
    assert [] == spool.deliver(NOW_S, Sender())
    assert [newer] == list(spool.folder().iterdir())
