"""The names of machines in a hypervisor.

All of them begin with `kimbox-TAG-`. TAG is different for each folder $KIMBOX_HOME, so that kimbox never removes the
machines of another $KIMBOX_HOME.
"""

from __future__ import annotations

import hashlib
import os

from kimbox import paths


def prefix() -> str:
    """Returns the prefix of the names of machines of this $KIMBOX_HOME."""
    tag = hashlib.sha256(os.fsencode(paths.home())).hexdigest()[:8]
    return f"kimbox-{tag}-"


def domain(name: str) -> str:
    """Returns the name in the hypervisor of the machine `name`."""
    return f"{prefix()}{name}"
