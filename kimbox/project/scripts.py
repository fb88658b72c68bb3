"""Finds faults of scripts before a box is built: those of the spec, and `setup` in the folder of the setup repository.

The guest would report them after the build and the boot. No script is run.
"""

from __future__ import annotations

import difflib
import os
import shlex
import stat
from pathlib import Path

import attrs

from kimbox.errors import KimboxError, Problem
from kimbox.files import read_bounded
from kimbox.project.shell import Deadline, SyntaxFault, syntax_fault
from kimbox.spec.layers import load_layers
from kimbox.spec.model import SETUP
from kimbox.spec.nodes import Mark, Node, Problems, shown

#: Time for the checks of all scripts of a spec together, in seconds.
CHECK_LIMIT_S = 30.0

#: Maximum size of a `setup` that is checked, in bytes. A larger file is a program.
MAX_SCRIPT_BYTES = 1 << 20

#: Names that other tools give to the script that kimbox calls `setup`.
OTHER_NAMES = ("setup.sh", "setup.bash", "install.sh", "install", "bootstrap.sh", "bootstrap", "provision.sh")

_CRLF_TEXT = "ends its lines with CR LF (Windows), so that its interpreter is not found"
_CRLF_HINT = "`sed -i 's/\\r$//' {path}` converts it; the line `setup text eol=lf` in .gitattributes keeps it so"


def spec_problems(source: Path, member: str | None = None) -> list[Problem]:
    """Faults of the scripts in a spec, its layers and the folder of its setup repository. Empty for invalid YAML.

    `member`: the box, if the spec has several.
    """
    merged = load_layers(source, Problems(), member=member)
    if merged is None:
        return []
    deadline, problems = Deadline(CHECK_LIMIT_S), Problems()
    for kind in ("provision", "probes"):
        listed = merged.tree.get(kind)
        for item in listed.items if listed else []:
            node = item.get("script")
            if node is not None and isinstance(node.value, str):
                _check_step(node, problems, deadline)
    url = merged.tree.get("repositories", SETUP, "url")
    if url is not None and isinstance(url.value, str) and "://" not in url.value:
        folder = Path(url.mark.file).parent / url.value
        if folder.is_dir() and folder.resolve().is_relative_to(source.parent.resolve()):
            _check_folder(folder, url.mark, problems, deadline)
    return problems.collected


def _check_step(node: Node, problems: Problems, deadline: Deadline) -> None:
    script = str(node.value)
    for fault in text_faults(script, deadline):
        problems.add(_place_in(node, fault.line), f"this script {fault.text}", fault.hint, code="bad-script")


def _place_in(node: Node, line: int) -> Mark:
    """The place of a line of a script in its file. Only in a literal block does each line have a line of its own."""
    if node.style != "|":
        return node.mark
    number, column = node.mark.line + line, 1
    try:
        text = read_bounded(Path(node.mark.file)).decode(errors="replace")
        content = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[number - 1]
        column = len(content) - len(content.lstrip(" ")) + 1
    except (OSError, KimboxError, IndexError):
        pass
    return Mark(node.mark.file, number, column)


def _check_folder(folder: Path, mark: Mark, problems: Problems, deadline: Deadline) -> None:
    path = folder / SETUP
    try:
        info = path.stat()
    except OSError:
        info = None
    where = f"the folder {shown(str(folder))}"
    if info is None or not stat.S_ISREG(info.st_mode):
        quoted = shlex.quote(f"{folder}/").replace("{", "{{").replace("}", "}}")
        report_missing(_listed(folder), mark, where, f"mv {quoted}{{old}} {quoted}{{new}}", problems)
        return
    here = Mark(str(path))
    if not info.st_mode & stat.S_IXUSR:
        problems.add(here, "this file is not executable", f"`chmod +x {shlex.quote(str(path))}`", code="bad-script")
    text = None
    if info.st_size <= MAX_SCRIPT_BYTES:
        try:
            text = script_text(read_bounded(path, limit_bytes=MAX_SCRIPT_BYTES))
        except (OSError, KimboxError):  # the lock reports what cannot be read
            return
    for fault in text_faults(text, deadline, str(path)):
        problems.add(Mark(str(path), max(fault.line, 1)), f"this script {fault.text}", fault.hint, code="bad-script")


def _listed(folder: Path) -> list[str]:
    """The names of the files in a folder, those of executable files first."""
    try:
        return sorted(os.listdir(folder), key=lambda name: (not os.access(folder / name, os.X_OK), name))  # noqa: PTH208
    except OSError:
        return []


def report_missing(names: list[str], mark: Mark, where: str, move: str, problems: Problems) -> None:
    """Reports that there is no `setup`. `names` are the files beside it, the likely ones first.

    `move` is the command that renames a file, with {old} and {new}.
    """
    known = {name.lower(): name for name in reversed(names)}
    meant = next((known[name] for name in OTHER_NAMES if name in known), None)
    if meant is None and (similar := difflib.get_close_matches(SETUP, known, n=1)):
        meant = known[similar[0]]
    hint = "kimbox runs the executable file `setup` of this repository"
    if meant:
        hint = f"did you mean {shown(meant)}? {hint}: `{move.format(old=shlex.quote(meant), new=SETUP)}`"
    problems.add(mark, f"{where} has no executable file named setup", hint, code="bad-script")


def text_faults(text: str | None, deadline: Deadline, path: str = SETUP) -> list[SyntaxFault]:
    """Faults in the text of a script; the texts follow its name. `path` is for the command that converts the file."""
    if text is None:
        return []
    if text.partition("\n")[0].endswith("\r"):
        return [SyntaxFault(1, _CRLF_TEXT, _CRLF_HINT.format(path=shlex.quote(path)))]
    fault = syntax_fault(text, deadline)
    return [attrs.evolve(fault, text=f"has a syntax error: {fault.text}")] if fault else []


def script_text(data: bytes) -> str | None:
    """The content of a script as text; None for a program (ELF) or other content that no shell reads."""
    return None if b"\0" in data else data.decode(errors="surrogateescape")
