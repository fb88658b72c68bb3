"""The result of a check of this host: what was checked, the outcome, and the command that repairs it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import attrs

from kimbox import run
from kimbox.errors import KimboxError


class Outcome(StrEnum):
    """The outcome of a check."""

    GOOD = "good"
    SLOW = "slow"  #: works, but slowly or not completely
    BAD = "bad"


@attrs.frozen
class HostCheck:
    """The result of one check. `result` describes it. `repair` is a command that repairs it, or None."""

    what: str
    outcome: Outcome
    result: str
    repair: str | None = None


def attempt(what: str, check: Callable[[], HostCheck]) -> HostCheck:
    """Returns the result of `check`. An error that it raises becomes a result, too."""
    try:
        return check()
    except KimboxError as error:
        return HostCheck(what, Outcome.BAD, error.message, error.hint)
    except OSError as error:
        return HostCheck(what, Outcome.BAD, str(error))


def program(name: str, purpose: str) -> HostCheck:
    """Checks that a program is installed. `purpose` completes the sentence `it ...`."""
    if path := run.which(name):
        return HostCheck(name, Outcome.GOOD, path)
    return HostCheck(name, Outcome.BAD, f"not installed; it {purpose}", f"sudo apt-get install {run.PACKAGE_OF[name]}")
