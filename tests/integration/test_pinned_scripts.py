"""`kimbox lock` refuses a commit of the setup repository whose `setup` cannot run, with the place in the spec."""

from __future__ import annotations

from pathlib import Path

import clirun
import makebox
import pytest
from clirun import Kimbox, error

kimbox, world = clirun.kimbox, clirun.world  # fixtures


@pytest.fixture
def code(world: Path) -> Path:
    """The repository `setup` of the spec in the current folder. It holds no file `setup` yet."""
    makebox.make_repository(world / "code", {"readme": "one\n"})
    digest = "0" * 64
    Path("kimbox.yaml").write_text(
        f"kimbox: 1\nname: tried\nimage: {{location: ./d.raw, digest: 'sha256:{digest}'}}\n"
        f"repositories:\n  setup:\n    url: file://{world}/code\n"
    )
    return world / "code"


def _fault(kimbox: Kimbox) -> tuple[int, int, str, str]:
    """Returns line, column, message and hint of the fault that `kimbox lock` reports. It writes no lock."""
    code, out, _ = kimbox("--json", "lock")
    assert (3, False) == (code, Path("kimbox.lock").exists())
    failed = error(out, "lock")
    assert "bad-script" == failed["code"]
    (problem,) = failed["problems"]
    assert "kimbox.yaml" == Path(problem["file"]).name
    return problem["line"], problem["column"], problem["message"], str(problem["hint"])


def test_a_missing_setup(kimbox: Kimbox, code: Path) -> None:
    """The file that was meant is in the hint."""
    makebox.commit(code, {"install.sh": "#!/bin/sh\n"})
    line, column, message, hint = _fault(kimbox)
    assert (6, 10) == (line, column)
    assert "no executable file named setup" in message
    assert "`git mv install.sh setup`" in hint


def test_faults_of_the_file(kimbox: Kimbox, code: Path) -> None:
    """Not executable; CR LF; a syntax error with the line in the file. Then the lock is written."""
    makebox.commit(code, {"setup": "echo\n"})
    assert "is not executable" in _fault(kimbox)[2]
    (code / "setup").write_bytes(b"#!/bin/sh\r\nexit\r\n")
    (code / "setup").chmod(0o755)
    makebox.git(code, "commit", "-qam", "crlf")
    assert "CR LF" in _fault(kimbox)[2]
    makebox.commit(code, {"setup": "#!/bin/sh\necho\nfi\n"})
    assert "(line 3) has a syntax error" in _fault(kimbox)[2]
    makebox.commit(code, {"setup": "#!/bin/sh\nexit 0\n"})
    assert 0 == kimbox("lock")[0]


def test_a_link(kimbox: Kimbox, code: Path) -> None:
    """It is followed inside of the commit. A link that leads nowhere is a missing file, one into the guest is not."""
    (code / "setup").symlink_to("bin/run")
    makebox.commit(code, {"bin/other": "#!/bin/sh\n"})
    assert "no executable file" in _fault(kimbox)[2]
    makebox.commit(code, {"bin/run": "#!/bin/sh\nfi\n"})
    assert "(line 2)" in _fault(kimbox)[2]
    (code / "setup").unlink()
    (code / "setup").symlink_to("/bin/true")
    makebox.git(code, "commit", "-qam", "guest")
    assert 0 == kimbox("lock")[0]


def test_a_pin_that_stands_is_not_checked_again(kimbox: Kimbox, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kimbox lock` checks, `up` does only if spec or commit changed: it may not slow down the start of a box."""
    makebox.commit(code, {"setup": "#!/bin/sh\nexit 0\n"})
    assert 0 == kimbox("lock")[0]
    calls: list[object] = []
    monkeypatch.setattr("kimbox.project.pins.check_scripts", lambda *_: calls.append(1))
    monkeypatch.setattr("kimbox.image.obtain.key_of", lambda *_: "e" * 64)
    kimbox("render", "--allow-local")
    assert [] == calls
    Path("kimbox.yaml").write_text(Path("kimbox.yaml").read_text() + "cpus: 1\n")
    kimbox("render", "--allow-local")
    assert [1] == calls


def test_all_repositories_at_once(kimbox: Kimbox, world: Path) -> None:
    """Each ref that does not exist, at its place and with the similar one. A server that fails keeps its own error."""
    makebox.make_repository(world / "code", {"setup": "#!/bin/sh\n"})
    spec = (
        f"kimbox: 1\nname: tried\nimage: {{location: ./d.raw, digest: 'sha256:{'0' * 64}'}}\nrepositories:\n"
        f"  one: {{url: 'file://{world}/code', ref: man}}\n  two:\n    url: file://{world}/code\n    ref: v1\n"
    )
    Path("kimbox.yaml").write_text(spec)
    code, out, _ = kimbox("--json", "lock")
    failed = error(out, "lock")
    assert (3, "ref-not-found") == (code, failed["code"])
    assert [5, 8] == [problem["line"] for problem in failed["problems"]]
    assert "did you mean main?" == failed["problems"][0]["hint"]
    Path("kimbox.yaml").write_text(f"{spec}  gone: {{url: 'file://{world}/gone'}}\n")
    code, _, err = kimbox("lock")
    assert 1 == code
    assert all(f"kimbox.yaml:{line}:" in err for line in (5, 8, 9))
    assert "does not appear to be a git repository" in err
