"""The age of packages: the time since the newest index of the archives that they were chosen from. Pure."""

from __future__ import annotations

import time

from kimbox import utctime

#: Age from which a base is no longer up to date, in seconds: a week.
MAX_AGE_S = 7 * 86400


def age_s(as_of: str, now_s: float | None = None) -> float | None:
    """Returns the age of packages in seconds, from the date in their lock. None if that is not a date.

    `now_s`: seconds since the epoch; None: now. A date in the future has the age 0.
    """
    try:
        return max(0.0, (time.time() if now_s is None else now_s) - utctime.seconds(as_of))
    except ValueError:
        return None


def words(as_of: str, now_s: float | None = None) -> str:
    """Returns date and age as text: `2026-11-20, 8 days old`."""
    age = age_s(as_of, now_s)
    if age is None:
        return "an unknown date"
    days = int(age // 86400)
    return f"{as_of[:10]}, {days} {'day' if days == 1 else 'days'} old"


def is_older(as_of: str, limit_s: float, now_s: float | None = None) -> bool:
    """Whether packages are older than `limit_s`, or have no valid date."""
    age = age_s(as_of, now_s)
    return age is None or age > limit_s
