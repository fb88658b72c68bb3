"""`lifetime` and `notify` of a spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.errors import SpecError
from kimbox.spec.load import load_box
from kimbox.spec.model import Box
from kimbox.spec.occasions import Notify, Occasion


def load(folder: Path, text: str) -> Box:
    """Loads a spec with these keys."""
    spec = folder / "kimbox.yaml"
    spec.write_text(f"kimbox: 1\nname: x\nimage: {{packages: []}}\n{text}\n")
    return load_box(spec)


def test_values(tmp_path: Path) -> None:
    """Each kind of target, and the defaults: no lifetime, nobody is notified, and a target gets every event."""
    assert (None, ()) == ((box := load(tmp_path, "")).lifetime_s, box.notify)
    box = load(
        tmp_path,
        "lifetime: 10d\nnotify:\n"
        "  - {mail: a.b+c@example.org, server: 'smtps://mail.example.org:465', sender: x@example.org,\n"
        "     events: [saved]}\n"
        "  - {command: to-our-chat}\n  - {apprise: room}\n",
    )
    assert 10 * 86400 == box.lifetime_s
    mail = Notify("a.b+c@example.org", "smtps://mail.example.org:465", "x@example.org", events=(Occasion.SAVED,))
    assert (mail, Notify(command="to-our-chat"), Notify(apprise="room")) == box.notify
    assert tuple(Occasion) == box.notify[1].events


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("lifetime: 59s", "out-of-range"),
        ("lifetime: 367d", "out-of-range"),
        ("lifetime: soon", "bad-duration"),
        ("notify: [{}]", "conflicting-settings"),
        ("notify: [{mail: a@example.org, command: x}]", "conflicting-settings"),
        ("notify: [{command: x, server: 'smtp://example.org'}]", "conflicting-settings"),
        ("notify: [{command: ../x}]", "bad-name"),
        ("notify: [{command: /bin/sh}]", "bad-name"),
        ("notify: [{apprise: 'json://example.org'}]", "bad-name"),
        ("notify: [{mail: '-oQ/tmp@example.org'}]", "bad-value"),
        ('notify: [{mail: "a@example.org\\nBcc: b@example.org"}]', "bad-value"),
        ("notify: [{mail: a@example.org, server: 'http://example.org'}]", "bad-url"),
        ("notify: [{mail: a@example.org, server: 'smtp://example.org/x'}]", "bad-url"),
        ("notify: [{mail: a@example.org, server: 'smtp://me:secret@example.org'}]", "secret-in-url"),
        ("notify: [{command: x, events: [saved, saved]}]", "duplicate"),
        ("notify: [{command: x, events: [never]}]", "bad-value"),
    ],
)
def test_faults(tmp_path: Path, text: str, code: str) -> None:
    """A spec of somebody else can name no program by its path, and no password; each fault is in its line."""
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    assert [(4, code)] == [(one.line, one.code) for one in caught.value.problems]
    assert "secret@" not in str(caught.value)
