"""The command in the hint of a fault, run as it is written, gets on: it succeeds, or the fault is another one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import clirun
import makebox
import pytest
from clirun import Kimbox, error

kimbox, world = clirun.kimbox, clirun.world  # fixtures

#: The first command of kimbox in a hint.
COMMAND = re.compile(r"`kimbox ([^`]*)`")


@pytest.fixture
def spec(world: Path) -> Path:
    """The spec in the current folder: an image that is not built here, and a setup repository."""
    makebox.make_repository(world / "code", {"setup": "#!/bin/sh\n"})
    path = Path("kimbox.yaml")
    path.write_text(
        f"kimbox: 1\nname: tried\nimage: {{location: ./d.raw, digest: 'sha256:{'0' * 64}'}}\n"
        f"repositories:\n  setup: {{url: 'file://{world}/code'}}\n"
    )
    return path


def no_spec(_: Path) -> None:
    Path("kimbox.yaml").unlink()


def no_lock(_: Path) -> None:
    Path("kimbox.lock").unlink()


def other_spec(_: Path) -> None:
    spec = Path("kimbox.yaml")
    spec.write_text(spec.read_text() + "cpus: 3\n")


def other_ref(world: Path) -> None:
    spec = Path("kimbox.yaml")
    makebox.git(world / "code", "branch", "more")
    spec.write_text(spec.read_text().replace("/code'", "/code', ref: more"))


def nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "arguments", "code"),
    [
        (no_spec, ["validate"], "spec-not-found"),
        (no_spec, ["status"], "spec-not-found"),
        (no_lock, ["lock", "--check"], "lock-not-found"),
        (other_spec, ["lock", "--check"], "lock-disagrees"),
        (other_ref, ["lock", "--check"], "lock-disagrees"),
        (other_ref, ["render", "--allow-local"], "lock-disagrees"),
        (other_ref, ["up", "--locked"], "lock-disagrees"),
        (nothing, ["status", "nosuchbox"], "box-not-found"),
        (nothing, ["exec", "nosuchbox", "--", "true"], "box-not-found"),
        (nothing, ["box", "remove", "nosuchbox"], "box-not-found"),
        (nothing, ["snapshot", "restore", "none", "nosuchbox"], "box-not-found"),
        (nothing, ["destroy", "-y", "nosuchbox"], "box-not-found"),
    ],
)
def test_a_hint_is_followed(
    kimbox: Kimbox, world: Path, spec: Path, change: object, arguments: list[str], code: str
) -> None:
    """The error has a command, and that command succeeds or at least does not end with the same error."""
    assert spec.exists()
    assert 0 == kimbox("lock")[0]
    assert callable(change)
    change(world)
    _, out, _ = kimbox("--json", *arguments)
    failed = error(out, next(word for word in arguments if not word.startswith("-")))
    assert code == failed["code"], failed
    hints = [failed["hint"], *(problem["hint"] for problem in failed.get("problems", []))]
    command = next((match[1] for hint in hints if hint and (match := COMMAND.search(hint))), None)
    assert command, failed
    status, out, err = kimbox("--json", *shlex.split(command))
    assert 0 == status or code != error(out, command.split(" ", 1)[0])["code"], (command, out, err)
    if change is not nothing:
        _, out, _ = kimbox("--json", *arguments)
        assert '"error"' not in out or code != error(out, arguments[0])["code"], (command, out)
