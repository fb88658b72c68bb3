"""Packs kimbox/node and the modules of kimbox that it imports into one executable file, a zipapp (PEP 441).

A host needs Python 3.11 and QEMU to run it, and nothing of kimbox. Equal modules give equal bytes.
"""

from __future__ import annotations

import ast
import io
import zipfile
from pathlib import Path

import kimbox

#: The module that is run, and the packages of which it may not have any.
MAIN = "kimbox.node.__main__"

#: The interpreter: without the user's folders and variables, and without third-party packages.
SHEBANG = b"#!/usr/bin/env -S python3 -I -S\n"

#: The first module that is run. An older Python must be able to read it. Exit status 125: try another node.
FIRST = """\
import sys

if sys.version_info < (3, 11):
    sys.stderr.write("kimbox runner: Python 3.11 or newer is required, and this is %s\\n" % sys.version.split()[0])
    sys.exit(125)
import runpy

runpy.run_module("kimbox.node", run_name="__main__", alter_sys=True)
"""

#: Time of the files in the archive, the first that the format has.
_TIME = (1980, 1, 1, 0, 0, 0)


def runner() -> bytes:
    """Returns the content of the file."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, "__main__.py", FIRST.encode())
        for path, content in sorted(modules().items()):
            _add(archive, path, content)
    return SHEBANG + data.getvalue()


def modules() -> dict[str, bytes]:
    """Returns path and content of MAIN and of each module of kimbox that it imports, directly or not."""
    found: dict[str, bytes] = {}
    pending = [MAIN]
    while pending:
        name = pending.pop()
        file = _file(name)
        if file is None:
            raise ModuleNotFoundError(name)
        path = f"kimbox/{file.relative_to(_root()).as_posix()}"
        if path not in found:
            found[path] = file.read_bytes()
            pending += [parent] if (parent := name.rpartition(".")[0]) else []
            pending += [other for other in _imports(ast.parse(found[path])) if _is_own(other)]
    return found


def _imports(tree: ast.Module) -> set[str]:
    """Returns the modules that are imported when a module is loaded."""
    names: set[str] = set()
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                inner if _is_own(node.module) and _file(inner := f"{node.module}.{alias.name}") else node.module
                for alias in node.names
            }
        elif isinstance(node, ast.Try | ast.If) and not _is_for_types(node):
            pending += node.body
    return names


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_own(name: str) -> bool:
    return name.split(".")[0] == "kimbox"


def _root() -> Path:
    return Path(kimbox.__file__).parent


def _file(name: str) -> Path | None:
    """Returns the file of a module of kimbox; None if there is no such module."""
    place = _root().joinpath(*name.split(".")[1:])
    for file in (place / "__init__.py", place.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def _add(archive: zipfile.ZipFile, path: str, content: bytes) -> None:
    info = zipfile.ZipInfo(path, _TIME)
    info.external_attr = 0o644 << 16
    archive.writestr(info, content, zipfile.ZIP_DEFLATED)
