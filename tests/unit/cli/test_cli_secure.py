"""`kimbox secure`: its questions, where the answers come from, and what is refused. No guest runs."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import attrs
import clirun
import makemachine
import pytest
from clirun import Kimbox, error, result

from kimbox.actions import seal
from kimbox.actions.seal import Answers
from kimbox.machine.folder import Machine
from kimbox.machine.record import Sealed

kimbox, world = clirun.kimbox, clirun.world  # fixtures

KEY = makemachine.HOST_KEY
SPEC = f"""kimbox: 1
name: study
secure:
  site: a.org
  roles:
    worker: {{gateway: {{host: 10.0.2.2, host_keys: ["{KEY}"]}}}}
    director: {{inbound: [22]}}
"""


@pytest.fixture
def machine(world: Path) -> Machine:
    """A box that may take a role."""
    Path("kimbox.yaml").write_text(SPEC)
    return makemachine.make_machine("study", source=str(Path("kimbox.yaml").absolute()))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Answers]:
    """What boxes were told."""
    told: list[Answers] = []

    def take(_: Any, answers: Answers) -> Sealed:
        told.append(answers)
        return Sealed(answers.role.name, answers.site)

    monkeypatch.setattr(seal, "secure", take)
    return told


def typed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Somebody else's program writes into our stdin."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_answers_from_options(
    kimbox: Kimbox, machine: Machine, taken: list[Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password is the first line of stdin, and appears nowhere."""
    typed(monkeypatch, b"hunter2\r\nmore\n")
    code, out, err = kimbox("--json", "secure", "--role", "worker", "--username", "me", "--password-file", "-")
    assert {"name": "study", "role": "worker", "site": "a.org"} == result(out, "secure")
    (answers,) = taken
    assert ("worker", "a.org", "me", b"hunter2\n") == (
        answers.role.name, answers.site, answers.username, answers.secret.data,
    )  # fmt: skip
    assert (0, False) == (code, "hunter2" in out + err + repr(answers))


def test_the_four_questions(
    kimbox: Kimbox, machine: Machine, taken: list[Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal they are asked, in this order; the password alone is not shown, and the spec proposes the site."""
    asked: list[tuple[str, object, object]] = []

    def prompt(question: str, *, default: str | None = None, hide_input: bool = False, err: bool) -> str:
        asked.append((question, default, hide_input))
        return {"sitename": "b.org", "username": "me", "password": "hunter2"}.get(question, "director")

    monkeypatch.setattr("kimbox.cli.secure._is_terminal", lambda: True)
    monkeypatch.setattr("kimbox.cli.secure.typer.prompt", prompt)
    assert (0, "study is sealed, as director of b.org\n") == kimbox("secure")[:2]
    assert [
        ("role (worker, director)", None, False),
        ("sitename", "a.org", False),
        ("username", None, False),
        ("password", None, True),
    ] == asked
    assert [("me", b"hunter2\n")] == [(a.username, a.secret.data) for a in taken]


def test_answers_that_lack_are_named(kimbox: Kimbox, machine: Machine, taken: list[Answers]) -> None:
    """Where nobody is there to be asked."""
    code, out, _ = kimbox("--json", "secure")
    assert 2 == code
    said = error(out, "secure")["message"]
    assert "--role, --username, --password-file, --key-file or --netrc must be given" in said
    assert [] == taken


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--role", "wroker"], "there is no role wroker"),
        (["--role", "worker", "--site", "a b"], "`a b` cannot be the name of a site"),
        (["--role", "worker", "--username", "-oX"], "`-oX` cannot be a user name"),
        (["--role", "worker", "--netrc"], "exclude each other"),
        (["--rotate", "--unseal"], "exclude each other"),
        (["--rotate"], "study is not sealed"),
    ],
)
def test_wrong_answers(
    kimbox: Kimbox, machine: Machine, taken: list[Answers], tmp_path: Path, options: list[str], said: str
) -> None:
    """They are told, and no box is."""
    (tmp_path / "password").write_text("x\n")
    words = [] if "--username" in options else ["--username", "me"]
    code, out, _ = kimbox("--json", "secure", *options, *words, "--password-file", str(tmp_path / "password"))
    assert code in (2, 5)
    assert said in error(out, "secure")["message"]
    assert [] == taken


def test_netrc(
    kimbox: Kimbox, machine: Machine, taken: list[Answers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """User name and password by the gateway's host; a file that others may read is refused."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".netrc"
    file.write_text("machine 10.0.2.2 login me password hunter2\n")
    file.chmod(0o644)
    assert "may be read by others" in kimbox("secure", "--role", "worker", "--netrc")[2]
    file.chmod(0o600)
    assert 0 == kimbox("secure", "--role", "worker", "--netrc")[0]
    assert [("me", b"hunter2\n")] == [(a.username, a.secret.data) for a in taken]
    assert "no gateway" in kimbox("secure", "--role", "director", "--netrc")[2]


def test_a_private_key(kimbox: Kimbox, machine: Machine, taken: list[Answers], tmp_path: Path) -> None:
    """In place of a password; a public one is refused."""
    (tmp_path / "id.pub").write_text(KEY)
    words = ["secure", "--role", "worker", "--username", "me", "--key-file"]
    assert "holds no private key" in kimbox(*words, str(tmp_path / "id.pub"))[2]
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")
    assert 0 == kimbox(*words, str(tmp_path / "id"))[0]
    assert "id" == taken[-1].secret.kind


def test_a_sealed_box_says_what_it_is(kimbox: Kimbox, machine: Machine, taken: list[Answers]) -> None:
    """And verbs that would go in are refused, maintain mode with them."""
    machine.write_record(attrs.evolve(machine.record(), sealed=Sealed("worker", "a.org")))
    assert (0, "study is sealed already, as worker of a.org\n") == kimbox("secure")[:2]
    for words in (["ssh"], ["exec", "--", "true"], ["provision"]):
        code, out, _ = kimbox("--json", *words)
        assert 5 == code
        assert "sealed as worker of a.org" in error(out, words[0])["message"]
    code, out, _ = kimbox("--json", "reload", "--boot", "maintain")
    assert (5, True) == (code, "--unseal" in error(out, "reload")["hint"])


def test_a_spec_without_roles(kimbox: Kimbox, world: Path) -> None:
    """The error names the key."""
    kimbox("init", "--name", "study")
    makemachine.make_machine("study", source=str(Path("kimbox.yaml").absolute()))
    code, out, _ = kimbox("--json", "secure")
    assert (5, True) == (code, "`secure`" in error(out, "secure")["message"])
