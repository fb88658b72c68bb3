"""Stale steps: steps of a box that ran at other commits than those of its manifest. Parses the guest's event.

A step that lists the repositories it uses (`uses`), or contains their paths, runs again when one of them moves. Other
steps do not run again, because kimbox cannot know whether that is safe. They become stale.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import attrs

from kimbox.guest.events import Event

#: A word of the event `box`: a step, and repositories with the commits at which it ran, if the guest reports them.
_WORD = re.compile(
    r"(?P<step>[a-z0-9][a-z0-9._-]{0,62})"
    r"(?::(?P<pins>[a-z0-9][a-z0-9-]{0,62}@[0-9a-f]{40}(?:,[a-z0-9][a-z0-9-]{0,62}@[0-9a-f]{40})*))?"
)

#: Step -> repository -> the commit at which it ran.
Stale = Mapping[str, Mapping[str, str]]


def from_event(event: Event) -> dict[str, dict[str, str]] | None:
    """The stale steps in an event `box`. None if the guest was made by an older kimbox, which does not report them."""
    if "stale" not in event.fields:
        return None
    stale: dict[str, dict[str, str]] = {}
    for word in event.text("stale").split():
        if match := _WORD.fullmatch(word):
            pairs = (pair.split("@") for pair in (match["pins"] or "").split(",") if pair)
            stale.setdefault(match["step"], {}).update((name, commit) for name, commit in pairs)
    return stale


@attrs.frozen
class Moved:
    """The commit of a repository at which a step ran, and the current commit of the box; None if it is not known."""

    old: str
    new: str | None


@attrs.frozen
class StaleStep:
    """A stale step. `command` runs it again: alone, or in a sealed box together with all other steps."""

    step: str
    repositories: Mapping[str, Moved]
    command: str

    def as_json(self) -> dict[str, Any]:
        """The step for `--json`."""
        return attrs.asdict(self)


def steps(name: str, provenance: Mapping[str, Any] | None, *, sealed: bool = False) -> list[StaleStep] | None:
    """The stale steps of the box `name`, from its `provenance`. None if the box does not report them."""
    if provenance is None or provenance.get("stale") is None:
        return None
    new = {repository: pin.get("commit") for repository, pin in provenance.get("repositories", {}).items()}
    if setup := provenance["provisioned"]["setup_commit"]:
        new["setup"] = setup
    return [
        StaleStep(
            step,
            {repository: Moved(commit, new.get(repository)) for repository, commit in pins.items()},
            f"kimbox reload --boot resnap {name}" if sealed else f"kimbox provision --only {shlex.quote(step)} {name}",
        )
        for step, pins in provenance["stale"].items()
    ]


def words(step: Mapping[str, Any]) -> str:
    """A stale step and the command that helps, as one line. `step` is its JSON form."""
    moves = (f"{name} {_short(moved['old'])} -> {_short(moved['new'])}" for name, moved in step["repositories"].items())
    moved = ", ".join(moves) or "some commits are not known"
    return f"step {step['step']} ({moved}): `{step['command']}` runs it again"


def _short(commit: str | None) -> str:
    return commit[:12] if commit else "none"
