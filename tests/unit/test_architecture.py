"""Rules of the whole tree that no single module can hold itself to."""

from __future__ import annotations

import ast
import functools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kimbox import run
from kimbox.drivers import registry

ROOT = Path(__file__).resolve().parents[2]

#: Longer than this, a module or function lacks a concept.
MODULE_LINES = 400
FUNCTION_LINES = 60

#: The first line of a shell script, or of one that others source.
SHELL = re.compile(rb"(#!.*[/ ]|# shellcheck shell=)(sh|bash|dash)( |$)")

#: Names of the machine itself, which any text may hold.
LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}

TOP_FOLDERS = ["boxes", "provisioners", "schemas", "kimbox", "bench", "script", "docs", "tests"]
TOP_FILES = ["Vagrantfile.j2", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "constraints.txt", ".ci/run"]


#: Where the programs of the Python that runs the tests are, be it on PATH or not.
BIN = Path(sys.executable).parent


def in_environment(program: Path, *args: str) -> run.Completed:
    """Runs a program in the checkout, with the programs of this Python on PATH."""
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return run.run([program, *args], cwd=ROOT, check=False, env=env)


@functools.cache
def tree() -> tuple[Path, ...]:
    """Every file of the checkout that git knows or would take."""
    listed = run.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
    ).stdout
    files = [ROOT / name for name in sorted(set(listed.split("\0"))) if name]
    return tuple(f for f in files if f.is_file())


def modules(*folders: str) -> list[Path]:
    """Python modules below these top folders."""
    return [f for f in tree() if f.suffix == ".py" and f.relative_to(ROOT).parts[0] in folders]


def functions(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module, methods and inner ones too."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported(module: Path) -> set[str]:
    """Top-level names of all that a module imports, lazily or not."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_the_layout_is_the_one_of_the_design() -> None:
    """The top folders and files that documents and the wheel rely on are there."""
    missing = [n for n in TOP_FOLDERS if not (ROOT / n).is_dir()] + [n for n in TOP_FILES if not (ROOT / n).is_file()]
    assert missing == []


def test_imports_point_down_only() -> None:
    """The contracts of pyproject.toml are kept."""
    done = in_environment(BIN / "lint-imports", "--no-cache")
    assert done.ok, done.stdout + done.stderr


def test_modules_are_short() -> None:
    """No module is longer than MODULE_LINES."""
    lengths = {str(m.relative_to(ROOT)): len(m.read_text().splitlines()) for m in modules("kimbox", "bench", "tests")}
    assert {name: n for name, n in lengths.items() if n > MODULE_LINES} == {}


def test_functions_are_short() -> None:
    """No function is longer than FUNCTION_LINES."""
    long = [
        f"{module.relative_to(ROOT)}:{f.lineno} {f.name}"
        for module in modules("kimbox", "bench", "tests")
        for f in functions(module)
        if (f.end_lineno or f.lineno) - f.lineno + 1 > FUNCTION_LINES
    ]
    assert long == []


def test_one_module_starts_processes() -> None:
    """Nothing but kimbox/run.py imports subprocess, not even inside a function."""
    assert ["kimbox/run.py"] == [
        str(m.relative_to(ROOT)) for m in modules("kimbox", "bench", "tests") if "subprocess" in imported(m)
    ]


def asks_for_a_driver(source: str) -> bool:
    """Whether anything is compared with the name of a driver."""
    compared: list[ast.AST] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            compared += [node.left, *node.comparators]
        elif isinstance(node, ast.match_case):
            compared.append(node.pattern)
    parts = [part for each in compared for part in ast.walk(each)]
    return any(
        part.value in registry.NAMES
        if isinstance(part, ast.Constant)
        else isinstance(part, ast.Attribute) and ast.unparse(part) in ("registry.NAMES", "registry.DEFAULT")
        for part in parts
    )


def test_features_are_asked_for_and_no_names() -> None:
    """Outside of drivers/ nothing compares with the name of a driver: what a driver can do is in its Features."""
    outside = [m for m in modules("kimbox") if "drivers" not in m.relative_to(ROOT).parts]
    assert [] == [str(m.relative_to(ROOT)) for m in outside if asks_for_a_driver(m.read_text())]


@pytest.mark.parametrize(
    "source",
    [
        'driver.name == "qemu"',
        'driver.name in ("vagrant", "x")',
        '"qemu" != name',
        "name == registry.NAMES[0]",
        'match name:\n    case "vagrant":\n        pass',
    ],
)
def test_a_question_for_a_name_is_found(source: str) -> None:
    """The rule above finds one, in each way to write it; a name that is only passed on is none."""
    assert asks_for_a_driver(source)
    assert not asks_for_a_driver('f("qemu"); driver = registry.DEFAULT; kind == "box"')


def test_shell_scripts_are_clean() -> None:
    """shellcheck finds nothing in any file whose first line names a shell."""
    scripts = [f.relative_to(ROOT) for f in tree() if SHELL.match(f.read_bytes()[:256].split(b"\n")[0])]
    assert {"up", "test", "bootstrap"} <= {f.name for f in scripts}
    done = run.run(["shellcheck", "--external-sources", "--", *scripts], cwd=ROOT, check=False)
    assert done.ok, done.stdout


def test_documents_are_up_to_date() -> None:
    """The spec reference and the man page are what schema and command line say."""
    done = in_environment(ROOT / "script/docs", "--check")
    assert done.ok, done.stdout + done.stderr


def apt_hosts() -> set[str]:
    """Hosts that this machine's apt is set up to use."""
    if not run.which("apt-get"):
        return set()
    listed = run.run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], check=False).stdout
    return {urlsplit(line).hostname or "" for line in listed.split()}


def pip_hosts() -> set[str]:
    """Hosts that this machine's pip is set up to use, or uses by itself."""
    env = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    listed = run.run([sys.executable, "-m", "pip", "config", "list"], env=env, check=False).stdout
    code = "from pip._internal.models.index import PyPI as p; print(p.netloc, p.file_storage_domain)"
    own = run.run([sys.executable, "-c", code], check=False).stdout
    return {urlsplit(url).hostname or "" for url in re.findall(r"https?://[^\s'\\]+", listed)} | set(own.split())


@pytest.mark.parametrize("hosts_of", [apt_hosts, pip_hosts])
def test_no_registry_is_named(hosts_of: object) -> None:
    """Where packages come from is the machine's own configuration: no file names such a host."""
    assert callable(hosts_of)
    hosts = {h.lower().encode() for h in hosts_of() if "." in h and h not in LOCAL_HOSTS}
    named = [str(f.relative_to(ROOT)) for f in tree() if any(h in f.read_bytes().lower() for h in hosts)]
    assert named == []
