"""The program `kimbox` in a process of its own, and waits for real guests."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from kimbox import run
from kimbox.machine.folder import Machine

#: Timeout of a verb, in seconds. The longest is a build with all packages of openkim-dev.
VERB_TIMEOUT_S = 1800.0

#: Pause between two checks of a wait, in seconds: within the first FAST_PHASE_S seconds, and after them.
FAST_PAUSE_S, SLOW_PAUSE_S = 0.02, 0.25
FAST_PHASE_S = 5.0

#: Pause between two checks that start a program, because the program takes CPU time from the guests. `state_of` starts
#: no program.
PROGRAM_PAUSE_S = 2.0


def until(what: str, done: Callable[[], bool], *, limit_s: float = 600.0, every_s: float | None = None) -> None:
    """Waits until `done` returns true. At the timeout, fails with the name of the condition."""
    started = time.monotonic()
    pause = threading.Event()
    while not done():
        waited_s = time.monotonic() - started
        assert waited_s < limit_s, f"timeout after {limit_s:.0f} s: {what}"
        pause.wait(every_s or (FAST_PAUSE_S if waited_s < FAST_PHASE_S else SLOW_PAUSE_S))


@attrs.frozen
class Kimbox:
    """The program `kimbox` with a working directory and a KIMBOX_HOME."""

    home: Path
    folder: Path
    #: Words before the program, for example to start it in a namespace.
    within: tuple[str, ...] = ()
    #: Further variables of the program.
    variables: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the program, for a test that starts it in another way."""
        return {"KIMBOX_HOME": str(self.home), "PYTHONPATH": os.pathsep.join(sys.path), **self.variables}

    def __call__(
        self, *words: str | Path, check: bool = True, input: str | None = None, timeout_s: float = VERB_TIMEOUT_S
    ) -> run.Completed:
        """Runs a verb. With `check`, a failure raises AssertionError with the output."""
        done = run.run(
            [*self.within, sys.executable, "-m", "kimbox", *map(str, words)],
            check=False,
            cwd=self.folder,
            env=self.environment,
            input=input,
            timeout_s=timeout_s,
        )
        if check and not done.ok:
            raise AssertionError(
                f"kimbox {' '.join(map(str, words))} exited with {done.code}:\n{done.stdout}{done.stderr}"
            )
        return done

    def json(self, *words: str | Path, check: bool = True) -> dict[str, Any]:
        """Runs a verb with --json. Returns its result, or its error."""
        answer = json.loads(self("--json", *words, check=check).stdout)
        return dict(answer.get("result") or answer["error"])

    def sh(self, box: str, script: str, *, check: bool = True) -> str:
        """Runs a shell script in a box and returns its stdout."""
        return self("exec", box, "--", "sh", "-c", script, check=check).stdout

    def spec(self, name: str, text: str = "") -> Path:
        """Writes the spec of a small box into this folder and returns its path."""
        path = self.folder / "kimbox.yaml"
        path.write_text(f"kimbox: 1\nname: {name}\nbase: [minimal.yaml]\n{text}")
        return path

    def machine(self, name: str) -> Machine:
        """Returns a machine. Its paths are right while KIMBOX_HOME is this home."""
        return Machine(name)
