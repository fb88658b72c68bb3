"""Checks in a guest what the event `ready` promises (docs/how-it-works.md)."""

from __future__ import annotations

import re
from pathlib import Path

#: The shell script that checks.
PROMISE = Path(__file__).with_name("promise").read_text()


def promised(output: str) -> set[str]:
    """Returns the mount points in the output of the script. Fails if the output reports something missing."""
    assert re.fullmatch(r"mounts: (?:\S+ )+\n", output), output
    return set(output.split()[1:])


def step(file: str) -> str:
    """Returns a step of `provision` for a spec. It writes the output of the script to `file` in the guest.

    As the first step, it checks the earliest moment at which a step runs.
    """
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
