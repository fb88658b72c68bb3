"""Single verbs of the command line: how they read their arguments and what they print."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clirun
import makemachine
import pytest
import typer
from clirun import Kimbox, environment

from kimbox import paths
from kimbox.actions import observe, stop
from kimbox.cli import target
from kimbox.cli.app import run
from kimbox.cli.logs import safe
from kimbox.guest.endpoint import Endpoint, ssh_command
from kimbox.image import obtain
from kimbox.machine.folder import Machine
from kimbox.machine.state import State
from kimbox.run import Completed
from kimbox.run import run as run_program

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ((None, ["a"]), ["--", "a"]),
        (("box", ["a", "-b"]), ["box", "--", "a", "-b"]),
        (("box", ["a", "b"]), ["box", "a", "b"]),
        ((None, ["a", "--", "b"]), ["--", "a", "--", "b"]),
        (("box", ["a", "--up", "-f"]), ["--up", "box", "--", "a", "--up", "-f"]),
        (("box", ["box"]), ["box", "--", "box"]),
        ((None, ["a  b", ""]), ["--", "a  b", ""]),
    ],
)
def test_exec_knows_box_from_command(
    kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, expected: tuple[str | None, list[str]], arguments: list[str]
) -> None:
    """With and without `--`; words stay words on their way into the guest's shell."""
    called: list[Any] = []

    def note(what: list[str], code: int) -> int:
        called.append(what)
        return code

    monkeypatch.setattr(target, "machine", lambda name, file: called.append(name))
    monkeypatch.setattr(target, "project", lambda *_: None)
    monkeypatch.setattr("kimbox.actions.up.up", lambda *_: called.append("up"))
    monkeypatch.setattr(observe, "reach", lambda *_: an_endpoint())
    monkeypatch.setattr("kimbox.guest.shared.attached", lambda argv, **_: note(shlex.split(argv[-1]), 42))
    assert 42 == kimbox("exec", *arguments)[0]
    assert [*expected] == [word for word in called if word != "up"]
    assert ("up" in called) is (arguments[0] == "--up")


@pytest.mark.parametrize(
    ("runs", "ssh_says", "expected"),
    [(False, 0, 4), (True, 255, 4), (True, 0, 255)],
    ids=["the box has stopped", "it does not answer", "it was the program"],
)
def test_exec_tells_a_lost_connection_from_a_program(
    kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, runs: bool, ssh_says: int, expected: int
) -> None:
    """ssh ends with 255 where the connection fails, and so may a program."""
    machine = makemachine.make_machine()
    monkeypatch.setattr(observe, "reach", lambda *_: an_endpoint())
    monkeypatch.setattr("kimbox.guest.shared.attached", lambda *_, **__: 255)
    monkeypatch.setattr("kimbox.run.run", lambda *_, **__: Completed(ssh_says, "", ""))
    with makemachine.running(machine) if runs else contextlib.nullcontext():
        code, _, err = kimbox("exec", "tiny", "--", "false")
    assert (expected, expected == 4) == (code, "the connection to tiny was lost" in err)


def an_endpoint() -> Endpoint:
    machine = Machine("tiny")
    machine.folder.mkdir(parents=True, exist_ok=True)
    return machine.endpoint(makemachine.RECORD)


@pytest.mark.parametrize("arguments", [[], ["--"], ["box"], ["box", "--"], ["a", "b", "--", "c"], ["box", "ls", "-v"]])
def test_exec_without_a_command(kimbox: Kimbox, arguments: list[str]) -> None:
    """Or with two boxes, or options of the program that we would take for ours: says how it is written."""
    code, _, err = kimbox("exec", *arguments)
    assert 2 == code
    assert "--" in err or "2 names" in err


def test_ssh_passes_options_on(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands after `--` goes to ssh(1), with and without a box; two boxes are too many."""
    called: list[Any] = []

    def note(what: list[str], code: int) -> int:
        called.append(what)
        return code

    monkeypatch.setattr(target, "machine", lambda name, file: called.append(name))
    monkeypatch.setattr(observe, "reach", lambda *_: an_endpoint())
    monkeypatch.setattr("kimbox.guest.shared.attached", lambda argv, **_: note(argv, 0))
    for name in (None, "box"):
        assert 0 == kimbox("ssh", *([name] if name else []), "--", "-L", "1:localhost:2")[0]
        assert [name, ["127.0.0.1", "-L", "1:localhost:2"]] == [called[-2], called[-1][-3:]]
        assert not any("Control" in word for word in called[-1])  # the port is forwarded as long as it runs
        assert 0 == kimbox("ssh", *([name] if name else []), "--", "uname", "-a")[0]
        assert [name, ["127.0.0.1", "uname", "-a"]] == [called[-2], called[-1][-3:]]
        assert "-oControlMaster=auto" in called[-1]
    assert 2 == kimbox("ssh", "box", "box")[0]


@pytest.mark.parametrize("given", [["-L", "1111:localhost:2222"], ["-L", "1111:localhost:2222", "uname", "-a"]])
def test_ssh_reads_options_after_the_host(given: list[str]) -> None:
    """As the real client understands the command line; it connects to nothing."""
    done = run_program(["ssh", "-G", *ssh_command(an_endpoint(), options=given)[1:]])
    told = done.stdout.splitlines()
    assert {"hostname 127.0.0.1", "port 20022"} <= set(told)
    assert "localforward 1111 [localhost]:2222" in told


def test_destroy_asks(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal it wants -y; a `no` leaves the box as it is."""
    machine = makemachine.make_machine()
    code, _, err = kimbox("destroy", "tiny")
    assert (2, True) == (code, machine.exists)
    assert "hint: add -y" in err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: False)
    code, _, err = kimbox("destroy", "tiny")
    assert (1, True) == (code, machine.exists)
    assert "stays as it is" in err
    assert (0, "tiny is gone\n", "") == kimbox("destroy", "tiny", "-y")
    assert 5 == kimbox("destroy", "tiny", "-y")[0]


def test_destroy_takes_what_is_left_of_a_box(kimbox: Kimbox) -> None:
    """A folder without a record, one with a damaged one, and one in the making."""
    for left in ("tiny", ".tmp-tiny"):
        folder = paths.machines_dir() / left
        folder.mkdir(parents=True)
        (folder / "machine.json").write_text("{")
        assert 0 == kimbox("destroy", "tiny", "-y")[0]
        assert not folder.exists()


def test_list(kimbox: Kimbox) -> None:
    """Nothing says so; a damaged box does not hide the others, and quiet does not hide the warning."""
    assert (0, "there are no boxes; `kimbox up minimal` makes one\n", "") == kimbox("list")
    makemachine.make_machine("one")
    makemachine.make_machine("two").record_file.write_text("{")
    code, out, err = kimbox("list", "-q")
    assert (0, ["NAME", "one"]) == (code, [line.split()[0] for line in out.splitlines()])
    assert "two/machine.json" in err
    assert "`kimbox destroy two`" in err
    assert 1 == kimbox("status", "two")[0]


def test_logs(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Each by its option, byte for byte into a pipe; a missing one, and two at once, are errors."""
    assert 5 == run(["logs", "tiny"])
    machine = makemachine.make_machine()
    capsysbinary.readouterr()
    assert 5 == run(["logs", "tiny"])
    assert b"has no such log yet\n  hint: it would be " in capsysbinary.readouterr().err
    build = paths.images_dir() / f"{'e' * 64}.failed.log"
    build.parent.mkdir(parents=True)
    logs = {
        (): machine.provision_log, ("--serial",): machine.serial_log, ("--events",): machine.events_file,
        ("--qemu",): machine.qemu_log, ("--build",): build,
    }  # fmt: skip
    for options, path in logs.items():
        path.write_bytes(b"\x1b[31m\xff\r\n" + path.name.encode())
        assert 0 == run(["logs", *options, "tiny"])
        assert path.read_bytes() == capsysbinary.readouterr().out
    assert 2 == run(["logs", "--serial", "--qemu", "tiny"])


def test_logs_of_a_build_that_failed_before_there_was_a_box(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is there to be looked at although the machine is not."""
    monkeypatch.setattr(obtain, "key_of", lambda *_: "f" * 64)
    paths.images_dir().mkdir(parents=True)
    (paths.images_dir() / f"{'f' * 64}.failed.log").write_text("E: no such package\n")
    code, _, err = kimbox("logs", "--build", "minimal")
    assert (5, True) == (code, "minimal has no lock yet" in err)
    assert 0 == kimbox("lock", "minimal")[0]
    assert (0, "E: no such package\n") == kimbox("logs", "--build", "minimal")[:2]


def test_logs_f_means_follow(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """-f belongs to --follow there; the spec is given with --file alone. Ctrl-C ends it."""
    machine = makemachine.make_machine()
    machine.provision_log.write_text("one\n")
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) > 1:
            raise KeyboardInterrupt
        with machine.provision_log.open("a") as file:
            file.write("two\n")

    monkeypatch.setattr("kimbox.cli.logs.time.sleep", sleep)
    code, out, _ = kimbox("logs", "-f", "tiny")
    assert (130, "one\ntwo\n") == (code, out)
    assert 5 == kimbox("logs", "--file", "none.yaml")[0]


def test_validate_goes_on_after_a_file_that_is_not_there(kimbox: Kimbox) -> None:
    """Of several specs every fault is told, and 3 is the end of it; the only one not being there is 5; -f names one."""
    Path("bad.yaml").write_text("kimbox: 1\nname: x\nnonsense: 1\n")
    code, _, err = kimbox("validate", "gone.yaml", "nobox", "minimal", "bad.yaml")
    assert 3 == code
    expected = ("file gone.yaml not found", "shipped box `nobox` not found", "bad.yaml:3:1")
    assert [] == [words for words in expected if words not in err]
    assert 5 == kimbox("validate", "gone.yaml")[0] == kimbox("validate", "-f", "gone.yaml")[0]
    assert 3 == kimbox("validate", "--file", "bad.yaml")[0] == kimbox("validate", "minimal", "-f", "bad.yaml")[0]


def test_logs_of_a_boot_that_provisioned_nothing(kimbox: Kimbox) -> None:
    """Each start begins the log anew: the one of the boot before is shown, and said to be that."""
    machine = makemachine.make_machine()
    before = machine.folder / "provision.log.1"
    assert 5 == kimbox("logs", "tiny")[0]
    before.write_text("old\n")
    for is_begun in (False, True):
        if is_begun:
            machine.provision_log.touch()
        code, out, err = kimbox("logs", "tiny")
        assert (0, "old\n") == (code, out)
        assert "the log of the boot before" in err
    machine.provision_log.write_text("new\n")
    assert (0, "new\n", "") == kimbox("logs", "tiny")


def test_following_goes_on_after_a_restart(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start moves the log away, or empties it: what the old file still got comes first, then the new one."""
    machine = makemachine.make_machine()
    path = machine.provision_log
    path.write_text("one\n")

    def rotate() -> None:
        with path.open("a") as file:
            file.write("last\n")
        path.replace(f"{path}.1")
        path.write_text("new\n")

    def interrupt() -> None:
        raise KeyboardInterrupt

    steps: Iterator[Callable[[], object]] = iter(
        [rotate, lambda: path.write_text("a\n"), lambda: path.rename(f"{path}.2"), interrupt]
    )
    monkeypatch.setattr("kimbox.cli.logs.time.sleep", lambda _: next(steps)())
    assert (130, "one\nlast\nnew\na\n") == kimbox("logs", "-f", "tiny")[:2]


def test_a_log_on_a_terminal_is_safe() -> None:
    """No control character but the line's end comes through, and line ends of a console are not doubled."""
    assert "a\nb \ufffd[31m\n\nend" == safe("a\r\nb\t\x1b[31m\n\nend")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(kimbox: Kimbox, shell: str, world: Path) -> None:
    """The script names kimbox and the variable, and what it then asks for answers with verbs and options."""
    code, out, _ = kimbox("completion", shell)
    assert (0, True, True) == (code, "kimbox" in out, "_KIMBOX_COMPLETE" in out)
    for words, expected in {"kimbox u": "up", "kimbox up --no": "--no-provision"}.items():
        env = environment(
            world, _KIMBOX_COMPLETE=f"complete_{shell}", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1),
            _TYPER_COMPLETE_ARGS=words, _TYPER_COMPLETE_FISH_ACTION="get-args",
        )  # fmt: skip
        done = run_program([sys.executable, "-m", "kimbox"], env=env)
        assert re.search(rf"(?<![\w-]){expected}\b", done.stdout)
        assert "status" not in done.stdout


def test_the_script_works_in_bash(kimbox: Kimbox, world: Path) -> None:
    """As a shell runs it: sourced, then the function that it has registered."""
    (world / "kimbox").write_text(f'#!/bin/sh\nexec {sys.executable} -m kimbox "$@"\n')
    (world / "kimbox").chmod(0o755)
    (world / "script").write_text(kimbox("completion", "bash")[1])
    ask = 'source ../script; COMP_WORDS=(kimbox s); COMP_CWORD=1; _kimbox_completion kimbox; echo "${COMPREPLY[@]}"'
    done = run_program(["bash", "-c", ask], env=environment(world, PATH=f"{world}:{os.environ['PATH']}"))
    verbs = ["schema", "secure", "shrink", "snapshot", "ssh", "ssh-config", "status", "suspend"]
    assert verbs == sorted(done.stdout.split())


def test_halt_reports_what_it_did(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box that was halted already is as it was; --timeout and --force reach it."""
    makemachine.make_machine()
    assert (0, "tiny is halted, as it was\n") == kimbox("halt", "tiny")[:2]
    called: list[dict[str, Any]] = []

    def halt(_: object, **options: Any) -> Any:
        called.append(options)
        return State.READY

    monkeypatch.setattr(stop, "halt", halt)
    assert (0, "tiny is halted\n") == kimbox("halt", "tiny", "--force", "--timeout", "7s")[:2]
    assert [{"force": True, "timeout_s": 7.0}] == called


#: Verbs that act on a box, and what they need to do so.
ACTING = {
    "destroy": ["-y"], "halt": [], "reload": [], "suspend": [], "resume": [], "status": [], "logs": [], "ssh": [],
    "exec": ["--", "true"], "ssh-config": [], "provision": [], "up": [],
}  # fmt: skip


@pytest.mark.parametrize("verb", ACTING)
def test_a_spec_does_not_reach_the_machine_of_another(kimbox: Kimbox, world: Path, verb: str) -> None:
    """Two folders with specs of one name: the one that does not own the machine is told whose it is."""
    kimbox("init", "--name", "study")
    machine = makemachine.make_machine("study", source=str(world / "theirs/kimbox.yaml"))
    before = machine.record()
    for given in ([], ["-f" if verb != "logs" else "--file", "kimbox.yaml"]):
        code, out, err = kimbox(verb, *given, *ACTING[verb])
        assert (5, "") == (code, out)
        assert f"the name study belongs to the spec {world}/theirs/kimbox.yaml, not to " in err
        assert before == machine.record()


def test_the_owner_and_who_names_the_machine_reach_it(kimbox: Kimbox, world: Path) -> None:
    """The folder of its spec, and any folder where its name is given."""
    kimbox("init", "--name", "study")
    makemachine.make_machine("study", source=str(world / "work/kimbox.yaml"))
    assert (0, "study is gone\n") == kimbox("destroy", "-y")[:2]
    makemachine.make_machine("study")
    assert (0, "study is gone\n") == kimbox("destroy", "study", "-y")[:2]


def test_resume_needs_no_spec_and_the_others_say_which_is_gone(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says what to start; what needs the spec names it, and the way out."""
    makemachine.make_machine()
    called: list[Machine] = []
    monkeypatch.setattr("kimbox.actions.resume.resume", called.append)
    assert 0 == kimbox("resume", "tiny")[0]
    assert [Machine("tiny")] == called
    for verb in ("up", "reload", "provision", "lock", "build"):
        code, _, err = kimbox(verb, "tiny")
        assert (5, True) == (code, "the spec of the box tiny, /nowhere/kimbox.yaml, is gone" in err), verb
        assert "`kimbox destroy tiny` works without it" in err
