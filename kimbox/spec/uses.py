"""The rule for the name of a repository that a step uses.

It is not in `rules`, because a suggestion needs kimbox.spec.schema, which imports jsonschema.
"""

from __future__ import annotations

from collections.abc import Sequence

from kimbox.spec.nodes import Fault, shown
from kimbox.spec.schema import guess

#: Maximum number of names that a misspelled name is compared with (each comparison takes time), and that a hint lists.
MAX_COMPARED_NAMES = 200
MAX_LISTED_NAMES = 20


def used_repository(text: str, *, known: Sequence[str]) -> str:
    """Returns the name of a repository unchanged. Raises Fault if it is not in `known`."""
    if text in known:
        return text
    hint = guess(text, list(known[:MAX_COMPARED_NAMES]), list_all=len(known) <= MAX_LISTED_NAMES)
    hint = hint or "add it under `repositories`, or remove it here"
    raise Fault(f"the spec has no repository {shown(text)}", hint, code="unknown-repository")
