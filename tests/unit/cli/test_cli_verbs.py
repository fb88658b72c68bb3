"""Single verbs of the command line: their arguments and their output."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clirun
import fakedriver
import makemachine
import pytest
import typer
from clirun import Kimbox, environment, error

from kimbox import paths
from kimbox.actions import observe, stop
from kimbox.actions import publish as publishing
from kimbox.cli import target
from kimbox.cli.app import run
from kimbox.cli.logs import safe
from kimbox.cli.verbs import VERBS
from kimbox.drivers.base import Features
from kimbox.guest.endpoint import ssh_command
from kimbox.image import obtain
from kimbox.machine.folder import Machine
from kimbox.machine.state import State
from kimbox.run import run as run_program

kimbox, world = clirun.kimbox, clirun.world  # fixtures


def test_ssh_passes_options_on(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words after `--` are passed to ssh(1), with and without a box. Two boxes are a usage error."""
    calls: list[Any] = []

    def attached(argv: list[str], **_: Any) -> int:
        calls.append(argv)
        return 0

    monkeypatch.setattr(target, "machine", lambda name, file: calls.append(name))
    monkeypatch.setattr(observe, "reach", lambda *_, **__: makemachine.make_endpoint())
    monkeypatch.setattr("kimbox.guest.shared.attached", attached)
    for name in (None, "box"):
        assert 0 == kimbox("ssh", *([name] if name else []), "--", "-L", "1:localhost:2")[0]
        assert [name, ["127.0.0.1", "-L", "1:localhost:2"]] == [calls[-2], calls[-1][-3:]]
        assert not any("Control" in word for word in calls[-1])  # a shared connection would forward the port longer
        assert 0 == kimbox("ssh", *([name] if name else []), "--", "uname", "-a")[0]
        assert [name, ["127.0.0.1", "uname", "-a"]] == [calls[-2], calls[-1][-3:]]
        assert "-oControlMaster=auto" in calls[-1]
    assert 2 == kimbox("ssh", "box", "box")[0]


@pytest.mark.parametrize("given", [["-L", "1111:localhost:2222"], ["-L", "1111:localhost:2222", "uname", "-a"]])
def test_ssh_reads_options_after_the_host(given: list[str]) -> None:
    """The real ssh accepts this order of arguments. With -G it does not connect."""
    configuration = run_program(
        ["ssh", "-G", *ssh_command(makemachine.make_endpoint(), options=given)[1:]]
    ).stdout.splitlines()
    assert {"hostname 127.0.0.1", "port 20022"} <= set(configuration)
    assert "localforward 1111 [localhost]:2222" in configuration


def test_destroy_needs_a_confirmation(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal it requires -y. If the user declines, the box does not change."""
    machine = makemachine.make_machine()
    code, _, err = kimbox("destroy", "tiny")
    assert (2, True) == (code, machine.exists)
    assert "hint: add -y" in err
    assert "no-terminal" == error(kimbox("--json", "destroy", "tiny")[1], "destroy")["code"]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: False)
    code, out, _ = kimbox("--json", "destroy", "tiny")
    assert (1, True) == (code, machine.exists)
    assert ("declined", {"name": "tiny"}) == (error(out, "destroy")["code"], error(out, "destroy")["fields"])
    assert (0, "tiny was removed\n", "") == kimbox("destroy", "tiny", "-y")
    code, out, _ = kimbox("--json", "destroy", "tiny", "-y")
    assert (5, "box-not-found") == (code, error(out, "destroy")["code"])


def test_destroy_removes_an_incomplete_machine(kimbox: Kimbox) -> None:
    """It removes the folder of a machine with a damaged record, and of a machine that was not completed."""
    for name in ("tiny", ".tmp-tiny"):
        folder = paths.machines_dir() / name
        folder.mkdir(parents=True)
        (folder / "machine.json").write_text("{")
        assert 0 == kimbox("destroy", "tiny", "-y")[0]
        assert not folder.exists()


def test_list(kimbox: Kimbox) -> None:
    """An empty list has a hint. A damaged machine does not hide the others, and --quiet does not hide the warning."""
    assert (0, "there are no boxes (`kimbox up minimal` creates one)\n", "") == kimbox("list")
    makemachine.make_machine("one")
    makemachine.make_machine("two").record_file.write_text("{")
    code, out, err = kimbox("list", "-q")
    assert (0, ["NAME", "one", "No"]) == (code, [line.split()[0] for line in out.splitlines()])
    assert "two/machine.json" in err
    assert "`kimbox destroy two`" in err
    assert 1 == kimbox("status", "two")[0]


def test_a_disk_that_the_driver_keeps(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """`list` and `status` show the name of the driver, because kimbox does not know the size of the disk."""
    fakedriver.install(monkeypatch, features=Features())
    machine = makemachine.make_machine()
    columns = kimbox("list")[1].splitlines()[1].split()
    assert ["tiny", "halted", "127.0.0.1:20022", "qemu"] == columns[:4]
    expected = f"  disk        managed by qemu; other files of the machine at {machine.folder}"
    assert expected in kimbox("status", "tiny")[1].splitlines()


def test_logs(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Each option prints its log, byte for byte into a pipe. A missing log and two options are errors."""
    assert 5 == run(["logs", "tiny"])
    machine = makemachine.make_machine()
    capsysbinary.readouterr()
    assert 5 == run(["--json", "logs", "tiny"])
    failed = error(capsysbinary.readouterr().out.decode(), "logs")
    assert ("log-not-found", str(machine.provision_log)) == (failed["code"], failed["fields"]["path"])
    assert str(machine.provision_log) in failed["hint"]
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
    """The log is shown although the machine does not exist."""
    monkeypatch.setattr(obtain, "key_of", lambda *_: "f" * 64)
    paths.images_dir().mkdir(parents=True)
    (paths.images_dir() / f"{'f' * 64}.failed.log").write_text("E: no such package\n")
    code, _, err = kimbox("logs", "--build", "minimal")
    assert (5, True) == (code, "minimal has no lock yet" in err)
    assert 0 == kimbox("lock", "minimal")[0]
    assert (0, "E: no such package\n") == kimbox("logs", "--build", "minimal")[:2]


def test_logs_f_means_follow(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """`logs -f` is --follow, so only --file names the spec. Ctrl-C ends it."""
    machine = makemachine.make_machine()
    machine.provision_log.write_text("one\n")
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) > 1:
            raise KeyboardInterrupt
        with machine.provision_log.open("a") as file:
            file.write("two\n")

    monkeypatch.setattr("kimbox.cli.logs.time.sleep", sleep)
    code, out, _ = kimbox("logs", "-f", "tiny")
    assert (130, "one\ntwo\n") == (code, out)
    assert 5 == kimbox("logs", "--file", "none.yaml")[0]


def test_validate_continues_after_a_missing_file(kimbox: Kimbox) -> None:
    """Every fault of several specs is reported, with exit code 3. If the only spec is missing, the code is 5."""
    Path("bad.yaml").write_text("kimbox: 1\nname: x\nnonsense: 1\n")
    code, _, err = kimbox("validate", "gone.yaml", "nobox", "minimal", "bad.yaml")
    assert 3 == code
    expected = ("file gone.yaml not found", "shipped box `nobox` not found", "bad.yaml:3:1")
    assert [] == [words for words in expected if words not in err]
    out = kimbox("--json", "validate", "gone.yaml", "nobox", "minimal", "bad.yaml")[1]
    problems = {problem["file"]: problem["code"] for problem in error(out, "validate")["problems"]}
    assert {"bad.yaml": "unknown-key", "gone.yaml": "spec-not-found", "nobox": "box-not-found"} == problems
    assert 5 == kimbox("validate", "gone.yaml")[0] == kimbox("validate", "-f", "gone.yaml")[0]
    assert 3 == kimbox("validate", "--file", "bad.yaml")[0] == kimbox("validate", "minimal", "-f", "bad.yaml")[0]


def test_logs_of_a_boot_that_provisioned_nothing(kimbox: Kimbox) -> None:
    """Each start begins an empty log. Then kimbox shows the log of the previous boot, and prints that it does."""
    machine = makemachine.make_machine()
    previous = machine.folder / "provision.log.1"
    assert 5 == kimbox("logs", "tiny")[0]
    previous.write_text("old\n")
    for has_empty_log in (False, True):
        if has_empty_log:
            machine.provision_log.touch()
        code, out, err = kimbox("logs", "tiny")
        assert (0, "old\n") == (code, out)
        assert "showing the log of the previous boot" in err
    machine.provision_log.write_text("new\n")
    assert (0, "new\n", "") == kimbox("logs", "tiny")


def test_following_continues_after_a_restart(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start renames or truncates the log. The last output of the old file is printed before the new file."""
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
    """The line end is the only control character that is printed. The CR LF of a console gives one line end."""
    assert "a\nb \ufffd[31m\n\nend" == safe("a\r\nb\t\x1b[31m\n\nend")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(kimbox: Kimbox, shell: str, world: Path) -> None:
    """The script has the name of kimbox and of the variable. The requests of the script give verbs and options."""
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
    """bash sources the script and calls the function that the script registers."""
    (world / "kimbox").write_text(f'#!/bin/sh\nexec {sys.executable} -m kimbox "$@"\n')
    (world / "kimbox").chmod(0o755)
    (world / "script").write_text(kimbox("completion", "bash")[1])
    code = 'source ../script; COMP_WORDS=(kimbox s); COMP_CWORD=1; _kimbox_completion kimbox; echo "${COMPREPLY[@]}"'
    done = run_program(["bash", "-c", code], env=environment(world, PATH=f"{world}:{os.environ['PATH']}"))
    assert sorted(verb for verb in VERBS if verb.startswith("s")) == sorted(done.stdout.split())


def test_halt_reports_what_it_did(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output says if the box was halted before. --timeout and --force are passed on."""
    makemachine.make_machine()
    assert (0, "tiny is halted, as it was\n") == kimbox("halt", "tiny")[:2]
    calls: list[dict[str, Any]] = []

    def halt(_: object, **options: Any) -> Any:
        calls.append(options)
        return State.READY

    monkeypatch.setattr(stop, "halt", halt)
    assert (0, "tiny is halted\n") == kimbox("halt", "tiny", "--force", "--timeout", "7s")[:2]
    assert [{"force": True, "timeout_s": 7.0}] == calls


#: Verbs that act on a machine, and the arguments that they require.
ACTING_VERBS = {
    "destroy": ["-y"], "halt": [], "reload": [], "suspend": [], "resume": [], "status": [], "logs": [], "ssh": [],
    "exec": ["--", "true"], "ssh-config": [], "provision": [], "up": [], "save": ["./store"],
}  # fmt: skip


@pytest.mark.parametrize("verb", ACTING_VERBS)
def test_a_spec_does_not_reach_the_machine_of_another(kimbox: Kimbox, world: Path, verb: str) -> None:
    """Two folders have specs with the same name. The spec that does not own the machine cannot act on it."""
    kimbox("init", "--name", "study")
    machine = makemachine.make_machine("study", source=str(world / "theirs/kimbox.yaml"))
    before = machine.record()
    for options in ([], ["-f" if verb != "logs" else "--file", "kimbox.yaml"]):
        code, out, err = kimbox(verb, *options, *ACTING_VERBS[verb])
        assert (5, "") == (code, out)
        assert f"the name study belongs to the spec {world}/theirs/kimbox.yaml, not to " in err
        assert before == machine.record()


def test_the_spec_and_the_name_reach_the_machine(kimbox: Kimbox, world: Path) -> None:
    """A machine is found from the folder of its spec, and by its name from any folder."""
    kimbox("init", "--name", "study")
    makemachine.make_machine("study", source=str(world / "work/kimbox.yaml"))
    assert (0, "study was removed\n") == kimbox("destroy", "-y")[:2]
    makemachine.make_machine("study")
    assert (0, "study was removed\n") == kimbox("destroy", "study", "-y")[:2]


def test_verbs_that_need_the_spec_report_a_missing_one(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """`resume` needs only the record. The other verbs report the missing file and the verb that works without it."""
    makemachine.make_machine()
    calls: list[Machine] = []
    monkeypatch.setattr("kimbox.actions.resume.resume", calls.append)
    assert 0 == kimbox("resume", "tiny")[0]
    assert [Machine("tiny")] == calls
    for verb in ("up", "reload", "provision", "lock", "build"):
        code, out, _ = kimbox("--json", verb, "tiny")
        failed = error(out, verb)
        assert (5, "spec-not-found") == (code, failed["code"]), verb
        assert {"name": "tiny", "path": "/nowhere/kimbox.yaml"} == failed["fields"]
        assert "`kimbox destroy tiny` works without it" in failed["hint"]


def test_publish_and_unpublish(kimbox: Kimbox, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They report whether the image was uploaded, and how many were removed."""
    (world / "kimbox.yaml").write_text("kimbox: 1\nname: tiny\nimage: {packages: []}\n")
    made = publishing.Published("a" * 64, "i1", True)
    monkeypatch.setattr(publishing, "publish", lambda project: made)
    monkeypatch.setattr(publishing, "unpublish", lambda project: 0)
    code, out, _ = kimbox("publish", "--json")
    expected = {"name": "tiny", "key": "a" * 64, "id": "i1", "uploaded": True}
    assert (0, expected) == (code, json.loads(out)["result"])
    assert "the cloud has no image of tiny" in kimbox("unpublish")[1]
