"""The rule for the name of a repository that a step uses. Apart from `rules`, as a guess takes the tools of schemas."""

from __future__ import annotations

from collections.abc import Sequence

from kimbox.spec.nodes import Fault, shown
from kimbox.spec.schema import guess

#: Names that a misspelled one is compared with, and that a hint lists: both stay quick and short in a large spec.
MAX_COMPARED_NAMES = 200
MAX_LISTED_NAMES = 20


def used_repository(text: str, *, known: Sequence[str]) -> str:
    """Name of a repository that a step uses: one of those in `known`."""
    if text in known:
        return text
    hint = guess(text, list(known[:MAX_COMPARED_NAMES]), list_all=len(known) <= MAX_LISTED_NAMES)
    raise Fault(f"the spec has no repository {shown(text)}", hint or "name it under `repositories`, or leave it out")
