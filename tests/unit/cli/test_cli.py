"""The command line as a whole: arguments, output and exit codes. No action of a verb runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import clirun
import makemachine
import pytest
import typer
from clirun import Kimbox, environment, error, result

from kimbox.actions import observe
from kimbox.cli import app
from kimbox.cli.app import VERBS
from kimbox.cli.options import GLOBAL_OPTIONS, hoist
from kimbox.cli.output import report, settings
from kimbox.cli.verbs import GROUPS
from kimbox.errors import GuestError, KimboxError, SpecError
from kimbox.log import log
from kimbox.run import run as run_program
from kimbox.settings import Settings

kimbox, world = clirun.kimbox, clirun.world  # fixtures

#: Names that no box can have. Some of them are paths outside of the folder of machines.
STRANGE_NAMES = ["", "a b", "..", ".", "A", "a\nb", "a\0b", "x" * 64, "-", "a_b", "é", "\udcff", "*", "$(id)", "a.lock"]
STRANGE_PATHS = ["../x", "/etc/passwd", "a/../../b", "/", "//", "x.yaml", "machines/../../x"]

#: Verbs that act on one box.
BOX_VERBS = [
    "lock", "build", "up", "provision", "status", "ssh", "exec", "logs", "halt", "reload", "suspend", "resume",
    "destroy", "ssh-config", "shrink", "view", "publish", "unpublish",
]  # fmt: skip

Out = tuple[int, str, str]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(kimbox: Kimbox, verb: str) -> None:
    """--help and -h give the same text, with examples that begin with kimbox and the verb."""
    code, out, err = kimbox(verb, "--help")
    assert (0, "") == (code, err)
    examples = out.split("Examples:\n")[1].split("\n\n")[0]
    assert re.search(rf"kimbox {verb}\b", examples)
    assert f"Usage: kimbox {verb}" in out
    assert (0, out, "") == kimbox(verb, "-h")


def test_the_help_lists_every_verb(kimbox: Kimbox) -> None:
    """--help prints it on stdout. Without arguments it is on stderr, with the exit code of a wrong usage."""
    code, out, _ = kimbox("--help")
    assert 0 == code
    assert list(VERBS) == re.findall(r"(?m)^  ([a-z-]+)  ", out.partition(f"\n{next(iter(GROUPS))}:\n")[2])
    assert (2, "", out) == kimbox()
    assert 0 == kimbox("--version")[0]


def test_the_help_fits_a_terminal(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns each verb is one line of a group, with its whole summary."""
    monkeypatch.setenv("COLUMNS", "80")
    out = kimbox("--help")[1]
    assert [] == [line for line in out.splitlines() if len(line) > 80]
    groups = {title: out.partition(f"\n{title}:\n")[2].partition("\n\n")[0].splitlines() for title in GROUPS}
    assert groups == {
        title: [f"  {verb:<10}  {summary}" for verb, (_, summary) in verbs.items()] for title, verbs in GROUPS.items()
    }
    folder = Path(app.__file__).parent
    modules = {file.stem for file in folder.glob("*.py") if re.search(rf"(?m)^def {file.stem}\(", file.read_text())}
    assert modules == set(VERBS.values()), "every module with a verb is in a group"


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        (["--json", "status"], ["status", "--json"]),
        (["-q", "--timeout", "5m", "up", "a", "-f", "x"], ["up", "-q", "a", "--timeout", "5m", "-f", "x"]),
        (["--timeout=5m", "up"], ["up", "--timeout=5m"]),
        (["exec", "a", "--", "b", "--json", "-q"], ["exec", "a", "--", "b", "--json", "-q"]),
        (["-v", "exec", "--", "--json"], ["exec", "-v", "--", "--json"]),
        (["-v", "exec", "a", "b", "-q", "--json"], ["exec", "-v", "a", "b", "-q", "--json"]),
        (["-v", "logs", "a", "-f"], ["logs", "a", "-f", "-v"]),
        (["--", "--json"], ["--", "--json"]),
        ([], []),
    ],
)
def test_global_options_stand_anywhere(expected: list[str], given: list[str]) -> None:
    """Global options are accepted before and after the verb. Arguments of another program are not changed."""
    assert expected == hoist(given)


@pytest.mark.parametrize("options", [["--json"], ["--timeout", "5m", "--json"], ["--json", "--timeout=5m"]])
def test_the_verb_of_an_error_is_the_verb(kimbox: Kimbox, options: list[str]) -> None:
    """The JSON of an error has the verb, also if options are before the verb and if the parser rejects an option."""
    for arguments in ([*options, "halt", "no"], ["halt", "no", *options], ["halt", "no", *options[:1], *options[1:]]):
        code, out, _ = kimbox(*arguments)
        assert (5, "StateError") == (code, error(out, "halt")["kind"])
    code, out, _ = kimbox(*options, "halt", "--no-such-option")
    assert (2, 2, "usage") == (code, error(out, "halt")["exit_code"], error(out, "halt")["code"])


def test_settings_of_one_run_do_not_reach_the_next(kimbox: Kimbox) -> None:
    """A second run() in one process starts with the default settings."""
    kimbox("--json", "--timeout", "90s", "list")
    assert (True, 90.0) == (settings.json, settings.timeout_s)
    kimbox("list")
    assert (False, None) == (settings.json, settings.timeout_s)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["list"], Settings(verb="list")),
        (["-qv", "list"], Settings(verb="list", quiet=True, verbose=True)),
        (["list", "--quiet", "--no-color"], Settings(verb="list", quiet=True, color=False)),
        (
            ["-v", "exec", "a", "--timeout=5m", "--", "b", "-q"],
            Settings(verb="exec", verbose=True, timeout_s=300.0, after=["b", "-q"]),
        ),
        (["up", "--timeout", "5m", "--timeout", "90s"], Settings(verb="up", timeout_s=90.0)),
        (["--", "list", "--json"], Settings(verb="list")),
        (["--version"], Settings()),
    ],
)
def test_settings_are_set_once(
    kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, given: list[str], expected: Settings
) -> None:
    """All options and the verb are set once, before the parser runs. The log reads the same object."""
    replaced: list[Settings] = []
    replace = Settings.replace

    def note(self: Settings, new: Settings) -> None:
        replaced.append(new)
        replace(self, new)

    monkeypatch.setattr(Settings, "replace", note)
    monkeypatch.setattr(app, "_call", lambda _: 0)
    kimbox(*given)
    assert [expected] == replaced
    assert expected == settings
    assert (log.quiet, log.verbose) == (expected.quiet, expected.verbose)


def test_json_after_the_dashes_is_the_programs_own(kimbox: Kimbox) -> None:
    """A --json after `--` belongs to the other program, so the error of kimbox is text."""
    code, out, err = kimbox("exec", "minimal", "--", "prog", "--json")
    assert (5, "") == (code, out)
    assert err.startswith("kimbox: error: cannot exec minimal: there is no box\n  hint: create it with `kimbox up ")


@pytest.mark.parametrize("bad", ["--timeout=x", "--timeout=", "--timeout=-1s", "--timeout=1y"])
def test_a_wrong_duration(kimbox: Kimbox, bad: str) -> None:
    """It is a usage error. Its hint shows the form of a duration."""
    code, out, _ = kimbox("--json", "list", bad)
    failed = error(out, "list")
    assert (2, {"option": "--timeout"}) == (code, failed["fields"])
    assert failed["code"] in ("bad-duration", "out-of-range")
    assert "90s, 5m or 2h" in failed["hint"]


def test_results_as_json(kimbox: Kimbox, world: Path) -> None:
    """Every verb that reports a result and needs no guest prints one object on stdout, and nothing else."""
    assert {"boxes": [], "templates": []} == result(kimbox("--json", "list")[1], "list")
    absent = result(kimbox("status", "minimal", "--json")[1], "status")
    assert ("minimal", "absent", True) == (absent["name"], absent["state"], absent["spec"].endswith("/minimal.yaml"))
    assert {None} == {value for key, value in absent.items() if key not in ("name", "state", "spec")}
    assert "init" == json.loads(kimbox("init", "--json")[1])["verb"]
    assert 1 == len(result(kimbox("validate", "--json")[1], "validate")["specs"])
    assert "$schema" in result(kimbox("schema", "--json")[1], "schema")
    assert "script" in result(kimbox("completion", "fish", "--json")[1], "completion")
    machine = makemachine.make_machine()
    summary = result(kimbox("status", "tiny", "--json")[1], "status")
    keys = ("state", "ssh_port", "forwards", "pid")
    assert ("halted", 20022, {"8888": 20023}, None) == tuple(summary[key] for key in keys)
    assert sorted(absent) == sorted(summary)
    assert [summary] == result(kimbox("list", "--json")[1], "list")["boxes"]
    assert machine.alias == result(kimbox("ssh-config", "tiny", "--json")[1], "ssh-config")["host"]
    halted = {"name": "tiny", "state": "halted", "before": "halted"}
    assert halted == result(kimbox("halt", "tiny", "--json")[1], "halt")
    assert {"name": "tiny", "state": "absent"} == result(kimbox("destroy", "-y", "tiny", "--json")[1], "destroy")
    assert [] == result(kimbox("list", "--json")[1], "list")["boxes"]


@pytest.mark.parametrize("verb", BOX_VERBS)
def test_errors_of_every_verb_as_json(kimbox: Kimbox, verb: str, world: Path) -> None:
    """A folder without a spec gives 5. An invalid spec gives 3, with its problems. A wrong option gives 2."""
    after = ["--", "true"] if verb == "exec" else []
    code, out, _ = kimbox(verb, "--json", *after)
    assert (5, 5, "spec-not-found") == (code, error(out, verb)["exit_code"], error(out, verb)["code"])
    assert "kimbox init" in error(out, verb)["hint"]
    Path("kimbox.yaml").write_text("kimbox: 1\nname: x\nnonsense: 1\n")
    code, out, _ = kimbox(verb, "--json", *after)
    assert 3 == code
    problem = error(out, verb)["problems"][0]
    assert (3, "unknown-key") == (problem["line"], problem["code"])
    code, out, _ = kimbox(verb, "--json", "--nonsense", *after)
    assert (2, "UsageError", "usage") == (code, error(out, verb)["kind"], error(out, verb)["code"])
    assert verb in error(out, verb)["hint"]


@pytest.mark.parametrize("verb", BOX_VERBS)
def test_names_never_leave_the_folder_of_machines(kimbox: Kimbox, verb: str, world: Path) -> None:
    """Every verb refuses a name that no spec may have, before it creates or removes a file."""
    precious = world / "home/x"
    precious.mkdir(parents=True)
    (precious / "machine.json").write_text("{}")
    (world / "home/machines").mkdir()
    after = {"exec": ["--", "true"], "destroy": ["-y"]}.get(verb, [])
    before = sorted(world.rglob("*"))
    for name in STRANGE_NAMES:
        code, out, err = kimbox(verb, name, *after)
        assert (2, "") == (code, out), name
        assert "cannot be the name of a box" in err
    for name in STRANGE_PATHS:
        assert kimbox(verb, name, *after)[0] in (3, 5), name
    for name in ("-x", "--", "--x=y"):
        assert kimbox(verb, name, *after)[0] in (2, 5), name
    assert before == sorted(world.rglob("*"))


def test_a_name_and_a_file(kimbox: Kimbox) -> None:
    """The file must have a box of that name: units of systemd start boxes so."""
    Path("layer.yaml").write_text("kimbox: 1\nname: tiny\nbase: [minimal.yaml]\n")
    Path("kimbox.yaml").write_text("kimbox: 1\nbase: [layer.yaml]\n")
    found = []
    for name, file in (("other", "kimbox.yaml"), ("./kimbox.yaml", "kimbox.yaml"), ("tiny", "gone.yaml")):
        code, out, _ = kimbox("--json", "status", name, "-f", file)
        found.append((code, error(out, "status")["code"]))
    assert [(2, "usage"), (2, "usage"), (3, "bad-spec")] == found
    code, out, err = kimbox("--json", "status", "tiny", "-f", "kimbox.yaml")
    assert 0 == code, err


@pytest.mark.parametrize("text", [None, b"\0", b"\xff\xfe\xfa", b"[", b"a: &x [*x]", b"", b"x" * (5 << 20)])
def test_a_spec_that_cannot_be_read(kimbox: Kimbox, text: bytes | None) -> None:
    """Whatever a file contains, the exit code is 3 or 5, with a message."""
    if text is not None:
        Path("bad.yaml").write_bytes(text)
    for arguments in (["validate", "bad.yaml"], ["up", "-f", "bad.yaml"], ["status", "--file=bad.yaml"]):
        code, _, err = kimbox(*arguments)
        assert code in (3, 5)
        assert err.startswith("kimbox: error: ")


@pytest.mark.parametrize("given", [["up", "--timeout"], ["up", "--timeout", "--json"], ["--timeout", "up"]])
def test_an_option_without_its_value(kimbox: Kimbox, given: list[str]) -> None:
    """The error names the option. The next word is not taken as its value."""
    code, out, err = kimbox(*given)
    assert 2 == code
    assert "--timeout lacks its value" in (error(out, "up")["message"] if "--json" in given else err)
    if "--json" in given:
        assert ("usage", {"option": "--timeout"}) == (error(out, "up")["code"], error(out, "up")["fields"])


def test_a_misspelled_verb(kimbox: Kimbox) -> None:
    """The hint has the most similar verb."""
    assert (
        2,
        "",
        "kimbox: error: unknown verb sttus\n  hint: did you mean status? See `kimbox --help`\n",
    ) == kimbox("sttus")
    failed = error(kimbox("--json", "sttus")[1], "sttus")
    assert ("usage", {"verb": "sttus"}) == (failed["code"], failed["fields"])


def test_the_current_folder_is_gone(kimbox: Kimbox, world: Path) -> None:
    """The error says that the folder was removed."""
    (world / "work").rmdir()
    for verb in ("status", "validate", "init"):
        code, out, _ = kimbox("--json", verb)
        failed = error(out, verb)
        assert (5, "file-not-found") == (code, failed["code"])
        assert "the current folder was removed" == failed["message"]


@pytest.mark.parametrize("arguments", ["list", "--version", "schema", "halt no --json", "--help"])
def test_a_stdout_that_takes_nothing(world: Path, arguments: str) -> None:
    """stdout is closed, or on a full disk: exit code 1 (or that of the error), one line, and no traceback."""
    for where in (">&-", ">/dev/full"):
        done = run_program(
            ["sh", "-c", f"{sys.executable} -m kimbox {arguments} {where}"], env=environment(world), check=False
        )
        assert done.code == (5 if "halt" in arguments and "full" in where else 1)
        assert re.fullmatch(r"kimbox: error: stdout .*\n", done.stderr)


def test_a_closed_stderr(world: Path) -> None:
    """A closed stderr does not change the exit code."""
    for arguments, code in {"list": 0, "sttus": 2, "list -v": 0}.items():
        argv = ["sh", "-c", f"{sys.executable} -m kimbox {arguments} 2>&-"]
        assert code == run_program(argv, env=environment(world), check=False).code


def test_unknown_words(kimbox: Kimbox) -> None:
    """An unknown verb, unknown options and too many arguments give a usage error with a hint."""
    for arguments in (["upp"], ["--nonsense"], ["up", "--nonsense"], ["up", "a", "b"], ["--quiet=x", "list"], ["-z"]):
        code, out, err = kimbox(*arguments)
        assert (2, "") == (code, out)
        assert re.match(r"kimbox: error: .*\n  hint: .*[sS]ee `kimbox.* --help`\n$", err)


def test_every_global_option_is_known() -> None:
    """The options that hoist moves are those of the parser."""
    names = {name for parameter in typer.main.get_command(app.app).params for name in parameter.opts}
    assert set(GLOBAL_OPTIONS) == names - {"--version", "--help", "-h"}


def test_errors_are_safe_and_hints_stand_apart(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text of a guest cannot control the terminal. Each line of a hint is indented."""
    raised: list[Exception] = []

    def fail(*_: object, **__: object) -> None:
        raise raised[-1]

    monkeypatch.setattr(observe, "observe", fail)
    raised.append(GuestError("one\n\x1b[2Jtwo\r\n", hint="do this:\nand that"))
    text = "kimbox: error: one\n\ufffd[2Jtwo\n  hint: do this:\n        and that\n"
    assert (4, "", text) == kimbox("status", "minimal")
    raised.append(SpecError.at("x.yaml", "no good", line=3))
    assert (3, "", "kimbox: error: x.yaml:3:1: no good\n") == kimbox("status", "minimal")
    raised.append(KimboxError("\udcff ünï", hint=None))
    assert 1 == kimbox("status", "minimal")[0]
    assert "\udcff ünï" == error(kimbox("status", "minimal", "--json")[1], "status")["message"]


def test_results_are_safe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No result controls the terminal, as text and as JSON. A file is only changed if it is shown on a terminal."""
    foreign = "a\x1b[2J\x9b2J\u202e\x7fb\tc\nd"
    report("list", {}, foreign)
    assert "a\ufffd[2J\ufffd2J\ufffd\ufffdb c\nd\n" == capsys.readouterr().out
    report("schema", {}, foreign, is_file=True)
    assert f"{foreign}\n" == capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    report("schema", {}, foreign, is_file=True)
    assert "a\ufffd[2J\ufffd2J\ufffd\ufffdb c\nd\n" == capsys.readouterr().out
    monkeypatch.setattr(settings, "json", True)
    report("list", {"text": foreign + "ünï\U000e0001"}, "")
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert "ünï" in out
    assert foreign + "ünï\U000e0001" == json.loads(out)["result"]["text"]


def test_interrupted(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C gives 130. The hint of `up` says that the box keeps running."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(observe, "observe", interrupt)
    monkeypatch.setattr("kimbox.actions.up.up", interrupt)
    assert (130, "", "kimbox: error: interrupted\n") == kimbox("status", "minimal")
    code, _, err = kimbox("up", "minimal")
    assert 130 == code
    assert "it keeps running" in err
    assert "Interrupted" == error(kimbox("status", "minimal", "--json")[1], "status")["kind"]


def test_a_bug_is_70_with_a_file(kimbox: Kimbox, monkeypatch: pytest.MonkeyPatch, world: Path) -> None:
    """The traceback is in a file that the hint names. A full disk is not a bug."""
    monkeypatch.setattr("tempfile.tempdir", str(world))

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(observe, "observe", fail)
    code, _, err = kimbox("status", "minimal")
    hint = re.search(r"hint: please report it with (\S+)\n", err)
    assert hint
    assert "ZeroDivisionError: oh" in Path(hint[1]).read_text()
    assert "a bug in kimbox: ZeroDivisionError('oh')" in err
    assert 70 == code == error(kimbox("status", "minimal", "--json")[1], "status")["exit_code"]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/x")

    monkeypatch.setattr(observe, "observe", full)
    code, _, err = kimbox("status", "minimal")
    assert (1, True) == (code, "error: /x: No space left on device\n  hint: free some space" in err)
    failed = error(kimbox("status", "minimal", "--json")[1], "status")
    assert ("no-space", {"path": "/x"}) == (failed["code"], failed["fields"])


def test_a_pipe_without_a_reader(world: Path) -> None:
    """`kimbox list | true` prints no error, whether the output is long or short."""
    for arguments in ("schema", "list", "--help", "up --no-such-option --json"):
        script = f"{{ {sys.executable} -m kimbox {arguments}; echo $? >code; }} | true"
        done = run_program(["sh", "-c", f"{script}; cat code"], env=environment(world))
        assert "" == done.stderr
        assert done.stdout.strip() in ("0", "1", "2")
