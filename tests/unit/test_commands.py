"""script/up and script/test: the programs that they call, the order, and the exit status."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kimbox import run

ROOT = Path(__file__).resolve().parents[2]

#: Programs that script/test runs.
CHECKS = ["ruff", "mypy", "shellcheck", "lint-imports", "pytest"]


class Checkout:
    """A checkout with the two real scripts. All programs that they run are fakes that record their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        (folder / "script").mkdir()
        for name in ("up", "test"):
            shutil.copy(ROOT / "script" / name, folder / "script" / name)
        self.fake("script/bootstrap")
        for name in ["kimbox", *CHECKS]:
            self.fake(f".venv/bin/{name}")
        # The services of OpenStack are installed.
        self.services = folder / "openstack"
        for place in (folder / "tests/support/openstack-constraints.txt", self.services / "constraints.txt"):
            place.parent.mkdir(parents=True)
            place.touch()
        run.run(["git", "init", "--quiet", folder])

    def fake(self, place: str, status: int = 0) -> None:
        """Creates a program at `place` that records its arguments and ends with `status`."""
        program = self.folder / place
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "{program.name} $*" >>"{self.calls_file}"\nexit {status}\n')
        program.chmod(0o755)

    def run(self, *argv: str) -> run.Completed:
        """Runs a script of the checkout, with another working folder."""
        words = ["env", f"KIMBOX_OPENSTACK={self.services}", self.folder / argv[0], *argv[1:]]
        return run.run(words, cwd=Path("/"), check=False)

    @property
    def calls(self) -> list[str]:
        return [line.strip() for line in self.calls_file.read_text().splitlines()]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout in which every check passes."""
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("args", "called"),
    [
        ([], "kimbox up openkim-dev"),
        (["minimal"], "kimbox up minimal"),
        (["minimal", "--no-provision"], "kimbox up minimal --no-provision"),
        (["--no-provision"], "kimbox up openkim-dev --no-provision"),
    ],
)
def test_up_installs_and_then_starts_the_box(checkout: Checkout, args: list[str], called: str) -> None:
    """script/up runs script/bootstrap, passes its arguments to `kimbox up`, and prints commands for this box."""
    done = checkout.run("script/up", *args)
    assert ["bootstrap up", called] == checkout.calls
    box = called.split()[2]
    program = checkout.folder / ".venv/bin/kimbox"
    assert [] == [verb for verb in ("ssh", "exec", "halt", "destroy") if f"{program} {verb} {box}" not in done.stdout]


@pytest.mark.parametrize(
    "args", [["-f", "my.yaml"], ["--no-provision", "--file", "my.yaml"], ["--file=my.yaml"], ["-fmy.yaml"]]
)
def test_up_passes_no_box_if_it_has_a_file(checkout: Checkout, args: list[str]) -> None:
    """`kimbox up` accepts either a box or a file. The printed commands contain the file."""
    done = checkout.run("script/up", *args)
    assert ["bootstrap up", f"kimbox up {' '.join(args)}"] == checkout.calls
    assert f"{checkout.folder}/.venv/bin/kimbox ssh -f my.yaml " in done.stdout
    assert "openkim-dev" not in done.stdout


def test_up_has_the_exit_status_of_kimbox(checkout: Checkout) -> None:
    """If `kimbox up` fails, script/up fails with the same status and prints no commands."""
    checkout.fake(".venv/bin/kimbox", status=4)
    done = checkout.run("script/up", "minimal")
    assert (4, "") == (done.code, done.stdout)
    assert (4, "") == ((done := checkout.run("script/up", "-f", "x.yaml")).code, done.stdout)


def test_up_ends_if_the_installation_fails(checkout: Checkout) -> None:
    """Without its programs, kimbox is not started."""
    checkout.fake("script/bootstrap", status=6)
    assert 6 == checkout.run("script/up").code
    assert ["bootstrap up"] == checkout.calls


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (
            "all",
            "pytest tests/guest tests/integration tests/unit tests/fuzz -n 2 --dist loadfile --no-loadscope-reorder "
            "-k x",
        ),
        ("unit", "pytest tests/unit -n 2 -k x"),
        ("integration", "pytest tests/integration -n 2 -k x"),
        (
            "coverage",
            "pytest tests/integration tests/unit -n 2 -m not soak and not cpu_time "
            "-p coveredchildren --cov --cov-report=term-missing:skip-covered -k x",
        ),
        ("guest", "pytest tests/guest -n 2 --dist loadfile --no-loadscope-reorder -k x"),
    ],
)
def test_pytest_is_one_run_and_the_last(checkout: Checkout, what: str, expected: str) -> None:
    """In every mode, pytest runs once and last, with the remaining arguments."""
    checkout.run("script/test", what, "-k", "x")
    assert expected == checkout.calls[-1]
    assert 1 == sum(call.startswith("pytest") for call in checkout.calls)


def test_lint_runs_every_check(checkout: Checkout) -> None:
    """It runs each check once and no tests. It finds shell scripts by their first line."""
    (checkout.folder / "sourced").write_text("# shellcheck shell=sh\n")
    (checkout.folder / "other").write_text("#!/usr/bin/env python3\n")
    assert checkout.run("script/test", "lint").ok
    programs = [call.split()[0] for call in checkout.calls]
    assert ["bootstrap", "ruff", "ruff", "mypy", "shellcheck", "lint-imports"] == programs
    scripts = next(call for call in checkout.calls if call.startswith("shellcheck")).split()
    assert {"script/up", "script/test", "script/bootstrap", "sourced"} <= set(scripts)
    assert "other" not in scripts


@pytest.mark.parametrize("broken", CHECKS)
def test_one_failed_check_fails_the_run(checkout: Checkout, broken: str) -> None:
    """The other checks and the tests still run, and the exit status is 1."""
    checkout.fake(f".venv/bin/{broken}", status=1)
    done = checkout.run("script/test", "unit")
    assert 1 == done.code
    assert checkout.calls[-1].startswith("pytest")
