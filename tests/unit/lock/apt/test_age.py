"""The age of packages, from the date in a lock."""

from __future__ import annotations

import pytest

from kimbox import utctime
from kimbox.lock.apt import age

NOW_S = utctime.seconds("2026-11-28T12:00:00Z")


@pytest.mark.parametrize(
    ("as_of", "age_s", "text"),
    [
        ("2026-11-28T11:59:00Z", 60, "2026-11-28, 0 days old"),
        ("2026-11-27T12:00:00Z", 86400, "2026-11-27, 1 day old"),
        ("2026-11-20T00:00:00Z", 8.5 * 86400, "2026-11-20, 8 days old"),
        ("2027-01-01T00:00:00Z", 0, "2027-01-01, 0 days old"),
        ("yesterday", None, "an unknown date"),
    ],
)
def test_age(as_of: str, age_s: float | None, text: str) -> None:
    assert (age_s, text) == (age.age_s(as_of, NOW_S), age.words(as_of, NOW_S))


def test_a_base_is_old_after_the_limit() -> None:
    assert not age.is_older("2026-11-21T12:00:00Z", age.MAX_AGE_S, NOW_S)
    assert age.is_older("2026-11-21T11:59:59Z", age.MAX_AGE_S, NOW_S)
    assert age.is_older("", age.MAX_AGE_S, NOW_S)
