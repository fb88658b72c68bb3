"""The result of a check of this host: what was looked at, how it came out, and the command that repairs it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import attrs

from kimbox import run
from kimbox.errors import KimboxError


class Outcome(StrEnum):
    """How a check came out."""

    GOOD = "good"
    SLOW = "slow"  #: works, but could be better
    BAD = "bad"


@attrs.frozen
class HostCheck:
    """One check. `mend` is a command, or None."""

    what: str
    outcome: Outcome
    found: str
    mend: str | None = None


def attempt(what: str, look: Callable[[], HostCheck]) -> HostCheck:
    """The result of `look`; an error that it raises is a result, too."""
    try:
        return look()
    except KimboxError as error:
        return HostCheck(what, Outcome.BAD, error.message, error.hint)
    except OSError as error:
        return HostCheck(what, Outcome.BAD, str(error))


def program(name: str, purpose: str) -> HostCheck:
    """Whether a program is installed; `purpose` completes the sentence `it ...`."""
    if found := run.which(name):
        return HostCheck(name, Outcome.GOOD, found)
    return HostCheck(name, Outcome.BAD, f"not installed; it {purpose}", f"sudo apt-get install {run.PACKAGE_OF[name]}")
