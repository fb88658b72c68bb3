"""What the event `ready` promises (docs/how-it-works.md), asked for inside of a guest."""

from __future__ import annotations

import re
from pathlib import Path

#: The shell script that asks.
PROMISE = Path(__file__).with_name("promise").read_text()


def promised(said: str) -> set[str]:
    """The mount points that the script has found; fails where anything was missing."""
    assert re.fullmatch(r"mounts: (?:\S+ )+\n", said), said
    return set(said.split()[1:])


def step(file: str) -> str:
    """A step of `provision`, for a spec, that asks in the first moment in which a step runs. `file`: what it found."""
    script = PROMISE.replace("\n", "\n      ").rstrip()
    return f"""
  - name: promise
    mode: user
    script: |
      sh -s <<'END' | sudo tee {file} >/dev/null
      {script}
      END
      sudo touch /boot/step
"""
