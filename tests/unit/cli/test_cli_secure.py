"""`kimbox secure`: its prompts, the sources of the answers, and its errors. No guest runs."""

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
    """A box whose spec has roles."""
    Path("kimbox.yaml").write_text(SPEC)
    return makemachine.make_machine("study", source=str(Path("kimbox.yaml").absolute()))


@pytest.fixture
def sealed_with(monkeypatch: pytest.MonkeyPatch) -> list[Answers]:
    """The answers with which boxes were sealed. Nothing else happens to a box."""
    all_answers: list[Answers] = []

    def secure(_: Any, answers: Answers) -> Sealed:
        all_answers.append(answers)
        return Sealed(answers.role.name, answers.site)

    monkeypatch.setattr(seal, "secure", secure)
    return all_answers


def pipe_to_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Replaces stdin by a pipe from another program."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_answers_from_options(
    kimbox: Kimbox, machine: Machine, sealed_with: list[Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password is the first line of stdin. It is not in the output."""
    pipe_to_stdin(monkeypatch, b"hunter2\r\nmore\n")
    code, out, err = kimbox("--json", "secure", "--role", "worker", "--username", "me", "--password-file", "-")
    assert {"name": "study", "role": "worker", "site": "a.org"} == result(out, "secure")
    (answers,) = sealed_with
    assert ("worker", "a.org", "me", b"hunter2\n") == (
        answers.role.name, answers.site, answers.username, answers.secret.data,
    )  # fmt: skip
    assert (0, False) == (code, "hunter2" in out + err + repr(answers))


def test_the_four_prompts(
    kimbox: Kimbox, machine: Machine, sealed_with: list[Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal, kimbox prompts in this order and hides only the password. The spec has the default of the site."""
    prompts: list[tuple[str, object, object]] = []

    def prompt(question: str, *, default: str | None = None, hide_input: bool = False, err: bool) -> str:
        prompts.append((question, default, hide_input))
        return {"sitename": "b.org", "username": "me", "password": "hunter2"}.get(question, "director")

    monkeypatch.setattr("kimbox.cli.secure._is_terminal", lambda: True)
    monkeypatch.setattr("kimbox.cli.secure.typer.prompt", prompt)
    assert (0, "study is sealed, as director of b.org\n") == kimbox("secure")[:2]
    assert [
        ("role (worker, director)", None, False),
        ("sitename", "a.org", False),
        ("username", None, False),
        ("password", None, True),
    ] == prompts
    assert [("me", b"hunter2\n")] == [(a.username, a.secret.data) for a in sealed_with]


def test_missing_answers_are_listed(kimbox: Kimbox, machine: Machine, sealed_with: list[Answers]) -> None:
    """Without a terminal, the error has every option that is missing."""
    code, out, _ = kimbox("--json", "secure")
    failed = error(out, "secure")
    missing = "--role, --username, --password-file, --key-file or --netrc"
    assert (2, "no-terminal", {"options": missing}) == (code, failed["code"], failed["fields"])
    assert f"pass {missing}" == failed["hint"]
    assert [] == sealed_with


def test_unseal_needs_a_confirmation(kimbox: Kimbox, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal and without --yes, the box stays sealed."""
    calls: list[Any] = []
    monkeypatch.setattr(seal, "unseal", calls.append)
    code, out, _ = kimbox("--json", "secure", "--unseal")
    assert (2, "no-terminal", []) == (code, error(out, "secure")["code"], calls)
    assert 0 == kimbox("secure", "--unseal", "--yes")[0]
    assert 1 == len(calls)


@pytest.mark.parametrize(
    ("options", "expected", "fields", "words"),
    [
        (["--role", "wroker"], "role-not-found", {"role": "wroker"}, "wroker"),
        (["--role", "worker", "--site", "a b"], "bad-name", {}, "`a b` cannot be the name of a site"),
        (["--role", "worker", "--username", "-oX"], "bad-name", {}, "`-oX` cannot be a user name"),
        (["--role", "worker", "--netrc"], "usage", {"option": "--password-file"}, "exclude each other"),
        (["--rotate", "--unseal"], "usage", {"option": "--rotate"}, "exclude each other"),
        (["--rotate"], "wrong-state", {"name": "study"}, "study is not sealed"),
    ],
)
def test_wrong_answers(
    kimbox: Kimbox, machine: Machine, sealed_with: list[Answers], tmp_path: Path, options: list[str], expected: str,
    fields: dict[str, str], words: str,
) -> None:  # fmt: skip
    """They are errors, and no box is sealed."""
    (tmp_path / "password").write_text("x\n")
    username = [] if "--username" in options else ["--username", "me"]
    code, out, _ = kimbox("--json", "secure", *options, *username, "--password-file", str(tmp_path / "password"))
    failed = error(out, "secure")
    assert (5 if expected == "wrong-state" else 2, expected, fields) == (code, failed["code"], failed["fields"])
    assert words in failed["message"]
    assert [] == sealed_with


def test_netrc(
    kimbox: Kimbox, machine: Machine, sealed_with: list[Answers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """User name and password are those of the gateway's host. A file that other users may read is refused."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".netrc"
    file.write_text("machine 10.0.2.2 login me password hunter2\n")
    file.chmod(0o644)
    failed = error(kimbox("--json", "secure", "--role", "worker", "--netrc")[1], "secure")
    assert ("file-not-private", {"path": str(file)}) == (failed["code"], failed["fields"])
    file.chmod(0o600)
    assert 0 == kimbox("secure", "--role", "worker", "--netrc")[0]
    assert [("me", b"hunter2\n")] == [(a.username, a.secret.data) for a in sealed_with]
    failed = error(kimbox("--json", "secure", "--role", "director", "--netrc")[1], "secure")
    assert ("usage", {"option": "--netrc"}) == (failed["code"], failed["fields"])
    file.write_text("machine another.example login me password hunter2\n")
    failed = error(kimbox("--json", "secure", "--role", "worker", "--netrc")[1], "secure")
    assert ("bad-credentials", {"path": str(file)}) == (failed["code"], failed["fields"])


def test_a_private_key(kimbox: Kimbox, machine: Machine, sealed_with: list[Answers], tmp_path: Path) -> None:
    """A private key takes the place of a password. A public key is refused."""
    (tmp_path / "id.pub").write_text(KEY)
    words = ["secure", "--role", "worker", "--username", "me", "--key-file"]
    failed = error(kimbox("--json", *words, str(tmp_path / "id.pub"))[1], "secure")
    assert ("bad-credentials", {"path": str(tmp_path / "id.pub")}) == (failed["code"], failed["fields"])
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")
    assert 0 == kimbox(*words, str(tmp_path / "id"))[0]
    assert "id" == sealed_with[-1].secret.kind


def test_a_sealed_box_is_not_sealed_again(kimbox: Kimbox, machine: Machine, sealed_with: list[Answers]) -> None:
    """`secure` prints its role. Verbs that need a login, and maintain mode, are refused."""
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
    failed = error(out, "secure")
    assert (5, "missing-key", {"name": "study", "key": "secure"}) == (code, failed["code"], failed["fields"])


def test_status_prints_the_host_key_of_a_sealed_box(kimbox: Kimbox, machine: Machine) -> None:
    """The workers of a director pin it. It is the key that kimbox itself pinned."""
    machine.known_hosts.write_text(f"{machine.alias} {KEY}\n")
    assert KEY not in kimbox("status", "study")[1]
    machine.write_record(attrs.evolve(machine.record(), sealed=Sealed("director", "a.org")))
    assert f"  host key    {KEY}\n" in kimbox("status", "study")[1]
    assert KEY == result(kimbox("--json", "status", "study")[1], "status")["host_key"]
