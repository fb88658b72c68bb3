"""Steps of a box that ran under other commits than its manifest has: what the guest told of them, and how it is said.

A step that says which repositories it uses, or names their paths, runs again when these move. Any other is not run
again, because kimbox cannot know whether it may; it is stale then.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import attrs

from kimbox.guest.events import Event

#: A word of the event `box`: a step, and the repositories at whose commits it ran, where these are told.
_WORD = re.compile(
    r"(?P<step>[a-z0-9][a-z0-9._-]{0,62})"
    r"(?::(?P<pins>[a-z0-9][a-z0-9-]{0,62}@[0-9a-f]{40}(?:,[a-z0-9][a-z0-9-]{0,62}@[0-9a-f]{40})*))?"
)

#: Step -> repository -> the commit under which it ran.
Stale = Mapping[str, Mapping[str, str]]


def told_by(event: Event) -> dict[str, dict[str, str]] | None:
    """The stale steps of an event `box`; None where the guest is of an older kimbox, which does not know."""
    if "stale" not in event.fields:
        return None
    found: dict[str, dict[str, str]] = {}
    for word in event.text("stale").split():
        if match := _WORD.fullmatch(word):
            pairs = (pair.split("@") for pair in (match["pins"] or "").split(",") if pair)
            found.setdefault(match["step"], {}).update((name, commit) for name, commit in pairs)
    return found


@attrs.frozen
class Moved:
    """The commit of a repository under which a step ran, and the one that the box has, if it has and tells one."""

    old: str
    new: str | None


@attrs.frozen
class StaleStep:
    """A step that ran under other commits. `command` runs it again: alone, or in a sealed box with all others."""

    step: str
    repositories: Mapping[str, Moved]
    command: str

    def as_json(self) -> dict[str, Any]:
        """As --json has it."""
        return attrs.asdict(self)


def steps(name: str, provenance: Mapping[str, Any] | None, *, sealed: bool = False) -> list[StaleStep] | None:
    """The stale steps of the box `name`, from its `provenance` (`observe.provenance`); None where that is not known."""
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
    """A stale step and what helps, in one line, from its form in JSON."""
    moves = (f"{name} {_short(moved['old'])} -> {_short(moved['new'])}" for name, moved in step["repositories"].items())
    moved = ", ".join(moves) or "not all commits were told"
    return f"step {step['step']} ({moved}): `{step['command']}` runs it again"


def _short(commit: str | None) -> str:
    return commit[:12] if commit else "none"
