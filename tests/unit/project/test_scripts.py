"""Faults of scripts that are reported before a build, with file, line and column; and that no script is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.errors import Problem
from kimbox.project import shell
from kimbox.project.scripts import spec_problems
from kimbox.project.shell import Deadline, interpreter, syntax_fault

SPEC = """\
kimbox: 1
name: web
repositories: {setup: {url: ./setup}}
provision:
  - name: literal
    script: |
      echo a
      if true; then
        echo b
  - name: folded
    script: >
      a=(1
      2)
  - name: comment
    script: |-  # a comment

      a=(1 2)
  - name: bash
    script: |
      #!/usr/bin/env -S bash -e
      a=(1 2); fi
  - {name: sound, script: "#!/bin/bash\\na=(1 2)"}
probes:
  - {description: quoted, script: "echo 'a"}
  - description: python
    script: |
      #!/usr/bin/env python3
      print("(")
"""


def found(problems: list[Problem]) -> list[tuple[str, int, int]]:
    """Returns the name of the file, the line and the column of each problem, sorted."""
    return sorted((Path(problem.file).name, problem.line, problem.column) for problem in problems)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A valid spec with a valid `setup`."""
    (tmp_path / "kimbox.yaml").write_text("kimbox: 1\nname: web\nrepositories: {setup: {url: ./setup}}\n")
    (tmp_path / "setup").mkdir()
    _script(tmp_path / "setup/setup", "#!/bin/sh\nexit 0\n")
    return tmp_path / "kimbox.yaml"


def _script(path: Path, text: str, mode: int = 0o755) -> None:
    path.write_text(text)
    path.chmod(mode)


def test_each_fault_at_its_line(spec: Path) -> None:
    """In a literal block at the line of the shell's message, elsewhere at the script. No other language is parsed."""
    assert [] == spec_problems(spec)
    spec.write_text(SPEC)
    problems = spec_problems(spec)
    expected = [("kimbox.yaml", *place) for place in ((9, 9), (11, 13), (17, 7), (21, 7), (24, 35))]
    assert expected == found(problems)
    assert {"bad-script"} == {problem.code for problem in problems}
    assert "expecting" in problems[0].message
    assert "bash accepts it" in str(problems[2].hint)


def test_crlf_does_not_matter_in_a_spec(spec: Path) -> None:
    """The line of a fault is the same. CR LF in the file is no CR in the script."""
    spec.write_text(SPEC.replace("\n", "\r\n"), newline="")
    assert 5 == len(spec_problems(spec))
    assert ("kimbox.yaml", 9, 9) == found(spec_problems(spec))[0]


def test_a_layer_has_its_own_lines(spec: Path) -> None:
    """The file of a fault is that of the layer."""
    (spec.parent / "layer.yaml").write_text("kimbox: 1\nprovision:\n  - name: a\n    script: |\n      fi\n")
    spec.write_text("kimbox: 1\nname: web\nbase: [layer.yaml]\n")
    assert [("layer.yaml", 5, 7)] == found(spec_problems(spec))


@pytest.mark.parametrize(
    ("name", "text", "mode", "place", "message", "hint"),
    [
        ("setup", "#!/bin/sh\r\nexit 0\r\n", 0o755, ("setup", 1, 1), "CR LF", "sed -i"),
        ("setup", "#!/bin/sh\n", 0o644, ("setup", 1, 1), "not executable", "chmod +x"),
        ("setup", "#!/bin/bash\necho\nfi\n", 0o755, ("setup", 3, 1), "syntax error", "None"),
        ("install.sh", "#!/bin/sh\n", 0o755, ("kimbox.yaml", 3, 29), "no executable file named setup", "install.sh"),
        ("Setup", "#!/bin/sh\n", 0o755, ("kimbox.yaml", 3, 29), "no executable file named setup", "Setup"),
        ("readme", "", 0o644, ("kimbox.yaml", 3, 29), "no executable file named setup", "kimbox runs"),
    ],
)
def test_setup(
    spec: Path, name: str, text: str, mode: int, place: tuple[str, int, int], message: str, hint: str
) -> None:
    """What is wrong with it, and the command that helps, with the file that was meant."""
    (spec.parent / "setup/setup").unlink()
    (spec.parent / "setup" / name).write_text(text, newline="")
    (spec.parent / "setup" / name).chmod(mode)
    (problem,) = spec_problems(spec)
    assert [place] == found([problem])
    assert message in problem.message
    assert hint in str(problem.hint)


def test_all_at_once(spec: Path) -> None:
    """A `setup` can have two faults, and the spec others."""
    spec.write_text(SPEC)
    (spec.parent / "setup/setup").write_text("#!/bin/sh\nfi\n")
    (spec.parent / "setup/setup").chmod(0o644)
    assert 7 == len(spec_problems(spec))


@pytest.mark.parametrize("content", [b"\x7fELF\0\0", b"#!/usr/bin/env python3\nfi\n", b"echo no first line\n", b""])
def test_other_programs_are_accepted(spec: Path, content: bytes) -> None:
    """A program, a script of another language, a script without a first line."""
    (spec.parent / "setup/setup").write_bytes(content)
    assert [] == spec_problems(spec)


def test_nothing_outside_of_the_spec_is_read(spec: Path, tmp_path: Path) -> None:
    """Neither through `..` nor through a link: the folder is refused elsewhere."""
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "setup/setup").write_text("fi\n")
    (inner / "link").symlink_to(tmp_path / "setup")
    for url in ("../setup", "./link"):
        (inner / "kimbox.yaml").write_text(f"kimbox: 1\nname: web\nrepositories: {{setup: {{url: {url}}}}}\n")
        assert [] == spec_problems(inner / "kimbox.yaml")


def test_a_hostile_name_is_quoted(spec: Path) -> None:
    """The hint can be pasted: a file name is one word of it."""
    (spec.parent / "setup/setup").unlink()
    (spec.parent / "setup/setup;id").touch()
    (problem,) = spec_problems(spec)
    assert "'setup;id'" in str(problem.hint)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("echo", "sh"),
        ("#!/bin/sh -e", "sh"),
        ("#! /bin/bash", "bash"),
        ("#!/usr/bin/env bash", "bash"),
        ("#!/usr/bin/env -S A=1 /opt/bash -e", "bash"),
        ("#!/usr/bin/python3", "python3"),
        ("#!", None),
        ("#!/usr/bin/env", None),
    ],
)
def test_the_interpreter(first: str, expected: str | None) -> None:
    """That of the first line; without one it is sh."""
    assert expected == interpreter(first + "\nexit\n")


@pytest.mark.parametrize(
    "script",
    ["touch ran", "#!/bin/bash\ntouch ran", "set +n\ntouch ran", "#!/bin/bash\nset +n; touch ran", ": $(touch ran)"],
)
def test_nothing_is_run(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that would write a file is parsed, and no file is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert None is syntax_fault(script, Deadline(60))
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["(" * 100_000, "a" * 1_000_000, "$(" * 50_000, "#!/bin/bash\n" + "${a[" * 50_000])
def test_hostile_scripts_end(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that crashes or takes long says nothing about the script, and the check goes on."""
    monkeypatch.setattr(shell, "PARSE_TIMEOUT_S", 2.0)
    assert syntax_fault(script, Deadline(2.0)) is None or not script.startswith("a")


def test_no_time_left() -> None:
    """A spec with thousands of scripts is checked for a limited time."""
    assert None is syntax_fault("fi\n", Deadline(-1))
