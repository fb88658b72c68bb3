"""Rules for the whole source tree."""

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

#: Maximum lengths. A longer module or function has more than one purpose.
MODULE_LINES = 400
FUNCTION_LINES = 60

#: The first line of a shell script, or of a file that shell scripts source.
SHELL = re.compile(rb"(#!.*[/ ]|# shellcheck shell=)(sh|bash|dash)( |$)")

#: Names of the local host, which every text may contain.
LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}

TOP_FOLDERS = ["boxes", "provisioners", "schemas", "kimbox", "bench", "script", "docs", "tests"]
TOP_FILES = ["Vagrantfile.j2", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "constraints.txt", ".ci/run"]


#: Folder with the programs of the Python that runs the tests. It need not be on PATH.
BIN = Path(sys.executable).parent


def in_environment(program: Path, *args: str) -> run.Completed:
    """Runs a program in the checkout, with the programs of this Python on PATH."""
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return run.run([program, *args], cwd=ROOT, check=False, env=env)


@functools.cache
def tree() -> tuple[Path, ...]:
    """Returns every file of the checkout that git tracks or does not ignore."""
    listed = run.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
    ).stdout
    files = [ROOT / name for name in sorted(set(listed.split("\0"))) if name]
    return tuple(f for f in files if f.is_file())


def modules(*folders: str) -> list[Path]:
    """Returns the Python modules below these top folders."""
    return [f for f in tree() if f.suffix == ".py" and f.relative_to(ROOT).parts[0] in folders]


def functions(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yields every function of a module, including methods and inner functions."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported(module: Path) -> set[str]:
    """Returns the top-level names of all imports of a module, including those inside of functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_the_layout_is_the_one_of_the_design() -> None:
    """The top folders and files that documents and the wheel require exist."""
    missing = [n for n in TOP_FOLDERS if not (ROOT / n).is_dir()] + [n for n in TOP_FILES if not (ROOT / n).is_file()]
    assert missing == []


def test_imports_point_down_only() -> None:
    """import-linter finds no violation of the contracts in pyproject.toml."""
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
    """Only kimbox/run.py imports subprocess. This includes imports inside of functions."""
    assert ["kimbox/run.py"] == [
        str(m.relative_to(ROOT)) for m in modules("kimbox", "bench", "tests") if "subprocess" in imported(m)
    ]


def compares_with_a_driver(source: str) -> bool:
    """Whether the source compares any value with the name of a driver."""
    compared: list[ast.AST] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            compared += [node.left, *node.comparators]
        elif isinstance(node, ast.match_case):
            compared.append(node.pattern)
    parts = [part for expression in compared for part in ast.walk(expression)]
    return any(
        part.value in registry.NAMES
        if isinstance(part, ast.Constant)
        else isinstance(part, ast.Attribute) and ast.unparse(part) in ("registry.NAMES", "registry.DEFAULT")
        for part in parts
    )


def test_only_drivers_compare_names_of_drivers() -> None:
    """Outside of drivers/, code reads the Features of a driver and never compares its name."""
    outside = [m for m in modules("kimbox") if "drivers" not in m.relative_to(ROOT).parts]
    assert [] == [str(m.relative_to(ROOT)) for m in outside if compares_with_a_driver(m.read_text())]


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
def test_a_comparison_with_a_name_is_detected(source: str) -> None:
    """The rule detects a comparison in each syntax. A name that is only passed on is not a comparison."""
    assert compares_with_a_driver(source)
    assert not compares_with_a_driver('f("qemu"); driver = registry.DEFAULT; kind == "box"')


def test_shell_scripts_are_clean() -> None:
    """shellcheck finds nothing in any file whose first line names a shell."""
    scripts = [f.relative_to(ROOT) for f in tree() if SHELL.match(f.read_bytes()[:256].split(b"\n")[0])]
    assert {"up", "test", "bootstrap"} <= {f.name for f in scripts}
    done = run.run(["shellcheck", "--external-sources", "--", *scripts], cwd=ROOT, check=False)
    assert done.ok, done.stdout


def test_documents_are_up_to_date() -> None:
    """The generated documents match the schema, the error codes and the command line."""
    done = in_environment(ROOT / "script/docs", "--check")
    assert done.ok, done.stdout + done.stderr


def apt_hosts() -> set[str]:
    """Returns the hosts in the configuration of apt on this host."""
    if not run.which("apt-get"):
        return set()
    listed = run.run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], check=False).stdout
    return {urlsplit(line).hostname or "" for line in listed.split()}


def pip_hosts() -> set[str]:
    """Returns the hosts in the configuration of pip on this host, and the default hosts of pip."""
    env = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
    listed = run.run([sys.executable, "-m", "pip", "config", "list"], env=env, check=False).stdout
    code = "from pip._internal.models.index import PyPI as p; print(p.netloc, p.file_storage_domain)"
    own = run.run([sys.executable, "-c", code], check=False).stdout
    return {urlsplit(url).hostname or "" for url in re.findall(r"https?://[^\s'\\]+", listed)} | set(own.split())


@pytest.mark.parametrize("hosts_of", [apt_hosts, pip_hosts])
def test_no_registry_is_named(hosts_of: object) -> None:
    """No file names a package registry, because the configuration of the host selects it."""
    assert callable(hosts_of)
    hosts = {h.lower().encode() for h in hosts_of() if "." in h and h not in LOCAL_HOSTS}
    named = [str(f.relative_to(ROOT)) for f in tree() if any(h in f.read_bytes().lower() for h in hosts)]
    assert named == []
