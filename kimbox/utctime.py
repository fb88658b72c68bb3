"""Times as text, in UTC: records, reports and audits have this one format of ISO 8601."""

from __future__ import annotations

import datetime
import time

#: Format of strftime(3) and strptime(3).
FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def text(time_s: float | None = None) -> str:
    """Returns a time in seconds since the epoch as text. Default: the present time.

    Raises ValueError or OverflowError if the year is not between 1 and 9999.
    """
    return datetime.datetime.fromtimestamp(time.time() if time_s is None else time_s, datetime.UTC).strftime(FORMAT)


def seconds(at: str) -> float:
    """Returns the seconds since the epoch of a text in FORMAT. Raises ValueError if it has another format."""
    return datetime.datetime.strptime(at, FORMAT).replace(tzinfo=datetime.UTC).timestamp()
