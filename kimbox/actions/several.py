"""A verb for several boxes of one spec: each in a kimbox of its own, in the order of their needs, side by side.

The output of each has the name of its box before every line. Ctrl-C reaches all of them through the terminal, and each
ends as it does alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import attrs

from kimbox.errors import KimboxError
from kimbox.files import parse_json
from kimbox.jobs import capacity
from kimbox.log import log
from kimbox.run import CommandError, stream
from kimbox.spec.load import load_box
from kimbox.spec.members import Member

#: Runs the verb for a box: gets its name, and a function that shows a line. Returns the JSON that kimbox printed.
Runner = Callable[[str, Callable[[str], None]], dict[str, Any]]


@attrs.frozen
class Failure:
    """Why the verb failed for a box, as in the JSON of an error."""

    code: str
    message: str
    exit_code: int


class SeveralError(KimboxError):
    """The verb failed for at least one box. The exit code is that of the first one that failed."""

    code = "several-failed"

    def __init__(self, failures: Mapping[str, Failure], hint: str | None) -> None:
        texts = [f"{name}: {failure.message}" for name, failure in failures.items()]
        codes = {name: failure.code for name, failure in failures.items()}
        super().__init__("\n".join(texts), code=self.code, hint=hint, fields=codes)
        self.exit_code = next(iter(failures.values())).exit_code


def at_a_time(spec: Path, members: Sequence[Member]) -> int:
    """Returns the number of boxes that start side by side. Raises SpecError if the spec of one is invalid."""
    boxes = [load_box(spec, member=member.name) for member in members]
    return capacity.at_a_time(max(box.cpus for box in boxes), max(box.memory_bytes for box in boxes))


def reversed_needs(members: Sequence[Member]) -> tuple[Member, ...]:
    """Returns the boxes in the order for halt: each after all that need it."""
    needed_by = {m.name: tuple(other.name for other in members if m.name in other.needs) for m in members}
    return tuple(Member(member.name, needed_by[member.name]) for member in reversed(members))


def run_all(members: Sequence[Member], runner: Runner, *, workers: int) -> dict[str, dict[str, Any]]:
    """Runs a verb for each box, at most `workers` side by side. Returns the results by name, in the order of `members`.

    A box starts when all that it needs are done; if one of these has failed, it does not start. The others go on.
    Raises SeveralError at the end if one has failed.
    """
    results: dict[str, dict[str, Any]] = {}
    failures: dict[str, Failure] = {}
    skipped: dict[str, str] = {}
    waiting, running = list(members), dict[Future[dict[str, Any]], str]()
    width = max(len(member.name) for member in members)

    def start(name: str) -> Future[dict[str, Any]]:
        return pool.submit(runner, name, lambda line: log.info(f"{name.ljust(width)} | {line}"))

    with ThreadPoolExecutor(workers, thread_name_prefix="box") as pool:
        while waiting or running:
            for member in list(waiting):
                if failed := next((need for need in member.needs if need in failures or need in skipped), None):
                    skipped[member.name] = failed
                    waiting.remove(member)
                elif all(need in results for need in member.needs):
                    running[start(member.name)] = member.name
                    waiting.remove(member)
            for done in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                name, answer = running.pop(done), done.result()
                if "result" in answer:
                    results[name] = answer["result"]
                else:
                    failures[name] = _failure(answer)
    for name, failed in skipped.items():
        log.warn(f"{name} was left out, because {failed} failed")
    if failures:
        done_names = f"done: {', '.join(results)}; " if results else ""
        raise SeveralError(failures, f"{done_names}the same command does what is missing")
    return {member.name: results[member.name] for member in members}


def _failure(answer: dict[str, Any]) -> Failure:
    error = answer.get("error") or {}
    hint = f" ({error['hint']})" if error.get("hint") else ""
    message = f"{error.get('message', 'kimbox ended without a result')}{hint}"
    return Failure(str(error.get("code", "failed")), message, int(error.get("exit_code", 1)))


def runner_of(words: Sequence[str], options: Sequence[str], spec: Path) -> Runner:
    """Returns the function that runs `kimbox WORDS NAME --file SPEC OPTIONS` with --json."""

    def run(name: str, show: Callable[[str], None]) -> dict[str, Any]:
        # -P: a folder `kimbox` in the current folder is not the program.
        argv = [sys.executable, "-P", "-m", "kimbox", "--json", *words, name, "--file", str(spec), *options]
        answer = _Answer(show)
        try:
            stream(argv, on_line=answer.take, env=os.environ)
        except CommandError:
            if not answer.lines:
                raise
        return answer.value()

    return run


class _Answer:
    """Separates the JSON object at the end of the output of kimbox from the lines before it, which are shown."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show = show
        self.lines: list[str] = []

    def take(self, line: str) -> None:
        if line == "{" or (self.lines and self.lines[-1] != "}"):
            self.lines.append(line)
        elif line.strip():
            self.show(line)

    def value(self) -> dict[str, Any]:
        try:
            value = parse_json("\n".join(self.lines).encode())
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}
