"""The wheel stands alone: installed away from the checkout it has its data, and its programs run."""

from __future__ import annotations

import json
import os
import stat
import sys
import zipfile
from pathlib import Path

import pytest

from kimbox import __version__, run

ROOT = Path(__file__).resolve().parents[2]

#: What the repository keeps at its top and the wheel under kimbox/_data.
DATA = ["boxes", "examples", "provisioners", "schemas", "Vagrantfile.j2", "report.html.j2"]

#: The man page in the wheel. pip installs it below the prefix, as share/man/man1/kimbox.1.
MAN_PAGE = f"kimbox-{__version__}.data/data/share/man/man1/kimbox.1"


def python(*args: str | Path, cwd: Path, env: dict[str, str] | None = None) -> run.Completed:
    """Runs the Python of the tests."""
    return run.run([sys.executable, *args], cwd=cwd, env=env, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout, built with what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    done = python("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    assert done.ok, done.stdout + done.stderr
    return next(folder.glob("kimbox-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    done = python("-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    assert done.ok, done.stderr
    return target


def kimbox(installed: Path, cwd: Path, *args: str) -> run.Completed:
    """Runs the installed kimbox in `cwd`, with a home of its own there."""
    env = {"PYTHONPATH": str(installed), "KIMBOX_HOME": str(cwd / "home")}
    return python("-m", "kimbox", *args, cwd=cwd, env=env)


def files_of_the_checkout() -> dict[str, bool]:
    """Path below kimbox/_data -> whether it may be executed, of every data file that git knows or would take."""
    git = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    names = [n for n in run.run([*git, *DATA], cwd=ROOT).stdout.split("\0") if n and (ROOT / n).is_file()]
    return {name: os.access(ROOT / name, os.X_OK) for name in names}


def test_the_installed_data_are_those_of_the_checkout(installed: Path) -> None:
    """Every data file arrives, and a script that could be executed still can. (What pip compiles is none of ours.)"""
    data = installed / "kimbox" / "_data"
    files = [f for f in data.rglob("*") if f.is_file() and f.parent.name != "__pycache__"]
    arrived = {str(f.relative_to(data)): bool(f.stat().st_mode & stat.S_IXUSR) for f in files}
    expected = files_of_the_checkout()
    assert set(DATA) == {Path(name).parts[0] for name in expected}
    assert expected == arrived


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    """No tests, caches or notes travel along."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"kimbox", f"kimbox-{__version__}.dist-info", f"kimbox-{__version__}.data"} == tops
    assert [MAN_PAGE] == [n for n in names if ".data/" in n]
    assert [] == [n for n in names if "__pycache__" in n]
    assert f"kimbox-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_man_page_is_that_of_the_checkout(wheel: Path) -> None:
    """The wheel installs it where man(1) looks. The metadata name an author."""
    with zipfile.ZipFile(wheel) as archive:
        assert (ROOT / "docs/kimbox.1").read_bytes() == archive.read(MAN_PAGE)
        metadata = archive.read(f"kimbox-{__version__}.dist-info/METADATA").decode()
    assert "\nAuthor: The kimbox authors\n" in metadata


def test_the_installed_one_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    """--version answers from the installed copy, which finds its data in itself."""
    done = kimbox(installed, tmp_path, "--version")
    assert (0, True) == (done.code, __version__ in done.stdout), done.stderr
    code = "from kimbox import paths; print(paths.data_dir())"
    where = python("-c", code, cwd=tmp_path, env={"PYTHONPATH": str(installed)}).stdout.strip()
    assert str(installed / "kimbox" / "_data") == where


def test_the_installed_schema_is_the_one_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    """`kimbox schema` prints the schema of a box."""
    done = kimbox(installed, tmp_path, "schema")
    assert done.ok, done.stderr
    assert json.loads((ROOT / "schemas" / "box.schema.json").read_text()) == json.loads(done.stdout)


def test_the_installed_boxes_are_found_and_hold(installed: Path, tmp_path: Path) -> None:
    """`kimbox init` finds a shipped box away from the checkout, and `kimbox validate` accepts what it wrote."""
    made = kimbox(installed, tmp_path, "init", "minimal")
    assert made.ok, made.stderr
    assert (tmp_path / "kimbox.yaml").is_file()
    checked = kimbox(installed, tmp_path, "validate")
    assert checked.ok, checked.stdout + checked.stderr


def test_the_program_is_on_path_after_installation(installed: Path, tmp_path: Path) -> None:
    """Installation makes a program `kimbox` that does what `python -m kimbox` does."""
    env = {"PYTHONPATH": str(installed), "KIMBOX_HOME": str(tmp_path / "home")}
    done = run.run([installed / "bin" / "kimbox", "--version"], env=env, cwd=tmp_path, check=False)
    assert (0, True) == (done.code, __version__ in done.stdout), done.stderr
