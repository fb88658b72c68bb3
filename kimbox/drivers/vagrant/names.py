"""Names that kimbox gives to its machines in a hypervisor.

All begin with `kimbox-TAG-`. TAG differs between two folders $KIMBOX_HOME, so that one never removes what belongs to
the other.
"""

from __future__ import annotations

import hashlib

from kimbox import paths


def prefix() -> str:
    """What the names of the machines of this $KIMBOX_HOME begin with."""
    tag = hashlib.sha256(str(paths.home()).encode()).hexdigest()[:8]
    return f"kimbox-{tag}-"


def domain(name: str) -> str:
    """The name in its hypervisor of the machine `name`."""
    return f"{prefix()}{name}"
