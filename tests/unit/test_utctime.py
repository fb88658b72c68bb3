"""Times as text, in UTC."""

from __future__ import annotations

import time

import pytest

from kimbox import utctime


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_767_225_599.9, "2025-12-31T23:59:59Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
    ],
)
def test_a_time_has_one_text(monkeypatch: pytest.MonkeyPatch, time_s: float, text: str) -> None:
    """The text is in UTC in every time zone of the host, has whole seconds, and is parsed back."""
    monkeypatch.setenv("TZ", "Pacific/Chatham")
    time.tzset()
    try:
        assert (text, int(time_s)) == (utctime.text(time_s), int(utctime.seconds(text)))
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_default_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time, the text is the present time."""
    monkeypatch.setattr(time, "time", lambda: 86400.0)
    assert utctime.text() == "1970-01-02T00:00:00Z"


@pytest.mark.parametrize("text", ["", "2026-02-30T00:00:00Z", "2026-02-03 00:00:00", "2026-02-03T00:00:00+01:00"])
def test_another_text_is_no_time(text: str) -> None:
    """A text of another format, or of a day that does not exist, is refused."""
    with pytest.raises(ValueError, match=r"format|day"):
        utctime.seconds(text)
