"""Completion: the candidates that kimbox prints in the protocol of typer, and the scripts in real shells."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import clirun
import makemachine
import pytest
from clirun import Kimbox, environment

from kimbox import paths
from kimbox.run import run as run_program

kimbox, world = clirun.kimbox, clirun.world  # fixtures

SHELLS = ["bash", "zsh", "fish"]
SHIPPED = ["condor-worker", "minimal", "openkim-dev", "openkim-director", "openkim-worker"]

#: A candidate in the output for zsh, in front of its description.
ZSH_WORD = re.compile(r'(?:^_arguments \'\*: :\(\(|^)"([^"]*)"', re.MULTILINE)


Ask = Callable[..., tuple[int, str, str]]
Words = Callable[[str, str], list[str]]


@pytest.fixture
def ask(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Requests completions as the script of a shell does, with the cursor at the end of the line.

    Returns exit code, stdout and stderr.
    """

    def call(shell: str, line: str, *, action: str = "get-args") -> tuple[int, str, str]:
        position = len(line.split()) - (0 if line.endswith(" ") else 1)
        variables = {
            "_KIMBOX_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(position),
            "_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": action,
        }  # fmt: skip
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            return kimbox()
        finally:
            for name in variables:
                monkeypatch.delenv(name)

    return call


@pytest.fixture
def words(ask: Ask) -> Words:
    """Returns the candidates for the word at the end of the line. If there are none, the shell completes files."""

    def call(shell: str, line: str) -> list[str]:
        code, out, err = ask(shell, line)
        assert (0, "") == (code, err)
        if shell == "zsh":
            assert ("_files" == out.strip()) == (not ZSH_WORD.findall(out))
            return ZSH_WORD.findall(out)
        candidates = [candidate.split("\t")[0] for candidate in out.splitlines() if candidate]
        if shell == "fish":
            assert (0 if candidates else 1) == ask(shell, line, action="is-args")[0]
        return candidates

    return call


def make_snapshot(name: str, box: str) -> None:
    """Creates the files of a snapshot that completion reads."""
    folder = makemachine.Machine(box).snapshots / name
    folder.mkdir(parents=True)
    (folder / "machine.json").write_text("{}")


@pytest.fixture
def folder(kimbox: Kimbox, world: Path) -> Path:
    """A folder with the spec of the machine `study`, and another machine `tiny`. Both machines have snapshots."""
    kimbox("init", "--name", "study")
    makemachine.make_machine("study")
    makemachine.make_machine()
    make_snapshot("clean", "study")
    make_snapshot("before-upgrade", "study")
    make_snapshot("clean", "tiny")
    make_snapshot("other", "tiny")
    Path("director.yaml").touch()
    Path("old.lock").touch()
    Path("two words.yaml").touch()
    added = paths.boxes_file("openkim%2Fdev")
    added.parent.mkdir()
    added.write_text("{}")
    return world


@pytest.mark.parametrize("shell", SHELLS)
def test_boxes(words: Words, folder: Path, shell: str) -> None:
    """The spec of this folder is first, then machines, then boxes that ship. Options before and after do not matter."""
    expected = ["study", "tiny", *SHIPPED]
    for verb in ("up", "halt", "ssh", "exec", "snapshot list", "-q status", "up --json", "--timeout 5m up --locked"):
        assert expected == words(shell, f"kimbox {verb} "), verb
    assert ["openkim-dev", "openkim-director"] == words(shell, "kimbox up openkim-d")
    assert SHIPPED == words(shell, "kimbox init ")
    assert ["openkim/dev"] == words(shell, "kimbox box remove ")
    assert [] == words(shell, "kimbox exec tiny ")
    assert [] == words(shell, "kimbox ssh tiny -- ")


@pytest.mark.parametrize("shell", SHELLS)
def test_snapshots(words: Words, folder: Path, shell: str) -> None:
    """Snapshots of the box of the spec, then the boxes that have the snapshot. A name for `save` has no candidates."""
    assert ["before-upgrade", "clean"] == words(shell, "kimbox snapshot restore ")
    assert ["before-upgrade"] == words(shell, "kimbox snapshot delete b")
    assert ["study", "tiny"] == words(shell, "kimbox snapshot restore clean ")
    assert ["tiny"] == words(shell, "kimbox snapshot delete other ")
    assert ["study", "tiny", *SHIPPED] == words(shell, "kimbox snapshot save new ")
    Path("director.yaml").write_text('name: "tiny" # a comment\n')
    assert ["clean", "other"] == words(shell, "kimbox snapshot restore -f director.yaml ")
    for line in ("kimbox snapshot save ", "kimbox snapshot restore clean tiny ", "kimbox snapshot nonsense "):
        assert [] == words(shell, line), line
    Path("kimbox.yaml").unlink()
    assert ["before-upgrade", "clean", "other"] == words(shell, "kimbox snapshot restore ")


@pytest.mark.parametrize("shell", SHELLS)
def test_files(words: Words, folder: Path, shell: str) -> None:
    """The shell completes files if a word must be a file. If it may be both, kimbox offers boxes and matching files."""
    for line in ("up -f ", "up --file ", "audit --save ", "up ./", "box add name ", "validate sub/"):
        assert [] == words(shell, f"kimbox {line}"), line
    boxes = ["study", "tiny", *SHIPPED]
    assert [*boxes, "director.yaml", "kimbox.yaml"] == words(shell, "kimbox render ")
    assert ["director.yaml", "kimbox.yaml", *SHIPPED] == words(shell, "kimbox validate ")
    assert [*boxes, "old.lock"] == words(shell, "kimbox diff old.lock ")


@pytest.mark.parametrize("shell", SHELLS)
def test_options(words: Words, folder: Path, shell: str) -> None:
    """Options of the verb, global options that are not on the line yet, and the values of an option."""
    assert ["--boot", "--offline", "--provider", "--quiet"] == sorted(
        {*words(shell, "kimbox --json up -")} & {"--boot", "--offline", "--provider", "--json", "--quiet"}
    )
    assert ["resnap", "keep", "maintain"] == words(shell, "kimbox up --boot ")
    assert ["--verbose", "--version"] == sorted(words(shell, "kimbox --ver"))
    assert ["snapshot"] == words(shell, "kimbox -v sn")


@pytest.mark.parametrize("shell", SHELLS)
def test_errors_are_silent(ask: Ask, shell: str, world: Path) -> None:
    """No command line and no file content gives output on stderr."""
    Path("kimbox.yaml").write_bytes(b"\xff\0name: \xfe\nname: {[\n")
    (world / "home").write_text("a file where a folder should be")
    for line in ("no-such-verb ", "up --timeout ", "up 'x", '"', "", "box x ", "up ", "snapshot restore "):
        assert "" == ask(shell, f"kimbox {line}")[2], line
    assert (1, "", "") == ask(shell, "kimbox up --timeout ")


def test_an_unexpected_error_is_silent(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug, and a shell that typer does not support, give no output."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    assert (1, "", "") == ask("tcsh", "kimbox up ")
    monkeypatch.setattr("kimbox.cli.completers._shipped", fail)
    assert (1, "", "") == ask("bash", "kimbox up ")


def script(shell: str, kimbox: Kimbox, world: Path) -> dict[str, str]:
    """Writes the completion script to `../script`, and the program kimbox. Returns the environment of the shell."""
    program = world / "kimbox"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m kimbox "$@"\n')
    program.chmod(0o755)
    (world / "script").write_text(json.loads(kimbox("completion", shell, "--json")[1])["result"]["script"])
    return environment(world, PATH=f"{world}:{os.environ['PATH']}", HOME=str(world))


def skip_without(shell: str) -> None:
    """Skips the test if a shell is not installed."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")


def test_in_bash(kimbox: Kimbox, folder: Path) -> None:
    """The function that the script registers fills COMPREPLY with one word each."""
    env = script("bash", kimbox, folder)
    code = (
        ". ../script; COMP_WORDS=(LINE); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _kimbox_completion kimbox; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    lines = {"kimbox up ''": ["study", "tiny", *SHIPPED], "kimbox snapshot restore b": ["before-upgrade"]}
    for line, expected in lines.items():
        done = run_program(["bash", "-c", code.replace("LINE", line)], env=env)
        assert expected == done.stdout.splitlines()


def test_in_fish(kimbox: Kimbox, folder: Path) -> None:
    """fish prints the candidates with their descriptions. If there are none, it prints files."""
    skip_without("fish")
    env = script("fish", kimbox, folder)
    done = run_program(["fish", "-c", "source ../script; complete -C 'kimbox up t'"], env=env)
    assert "tiny\ta machine of this user\n" == done.stdout
    done = run_program(["fish", "-c", "source ../script; complete -C 'kimbox up -f dir'"], env=env)
    assert "director.yaml" == done.stdout.strip()


def test_in_zsh(kimbox: Kimbox, folder: Path) -> None:
    """zsh evaluates the output as a call of _arguments or _files. Here both are functions that print."""
    skip_without("zsh")
    env = script("zsh", kimbox, folder)
    code = (
        'compdef() { :; }; _arguments() { print -r -- "$1"; }; _files() { print files; }; . ../script; '
        "words=(kimbox up {word}); CURRENT=3; _kimbox_completion"
    )
    done = run_program(["zsh", "-fc", code.replace("{word}", "t")], env=env)
    assert '*: :(("tiny":"a machine of this user"))' == done.stdout.strip()
    assert "files" == run_program(["zsh", "-fc", code.replace("{word}", "./x")], env=env).stdout.strip()
