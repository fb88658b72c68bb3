"""Documents match the program and the files of the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kimbox import run
from kimbox.cli.app import VERBS

ROOT = Path(__file__).resolve().parents[2]

#: Code in a line of Markdown.
CODE = re.compile(r"`([^`\n]+)`")

#: A file or folder of the repository: a path from its top, or a document at its top.
PATH = re.compile(r"\.?[A-Za-z0-9_][\w.*-]*/[\w./*-]*|[\w-]+\.(md|toml|txt|j2)")

#: A word in a path that stands for any file or folder.
PLACEHOLDER = re.compile(r"(?<=/)[A-Z]+(?=[./]|$)")


@pytest.mark.parametrize("verb", VERBS)
def test_the_man_page_has_every_verb(verb: str) -> None:
    """Every verb has a section with examples."""
    manual = (ROOT / "docs" / "kimbox.1").read_text()
    section = manual.partition(f"\n.SS \\fBkimbox {verb.replace('-', chr(92) + '-')}\\fR")[2]
    assert "Examples:" in section.partition("\n.SS ")[0]


@pytest.mark.skipif(run.which("mandoc") is None, reason="mandoc is missing; script/bootstrap test installs it")
def test_the_man_page_is_valid() -> None:
    """mandoc has no complaint, also none about style."""
    assert "" == run.run(["mandoc", "-Tlint", ROOT / "docs" / "kimbox.1"], check=False).stdout


def test_the_synopses_of_the_man_page_are_balanced() -> None:
    """Every bracket is closed."""
    lines = re.findall(r"^\.SS .*", (ROOT / "docs" / "kimbox.1").read_text(), re.MULTILINE)
    assert [] == [line for line in lines if line.count("[") != line.count("]")]


def paths_in(text: str) -> set[str]:
    """Returns the paths of the repository that a document names as code. A placeholder in upper case becomes a `*`."""
    words = {word for word in CODE.findall(text) if PATH.fullmatch(word)}
    return {PLACEHOLDER.sub("*", word) for word in words}


def test_every_file_of_the_recipes_exists() -> None:
    """CONTRIBUTING.md names no file that was moved."""
    named = paths_in((ROOT / "CONTRIBUTING.md").read_text())
    assert {"kimbox/cli/verbs.py", "schemas/box.schema.json", "kimbox/actions/*.py", "README.md"} <= named
    assert [] == sorted(name for name in named if not list(ROOT.glob(name)))


def test_paths_are_detected() -> None:
    """Commands, files in a guest and other code are not paths of the repository. A placeholder means any file."""
    text = "`kimbox/cli/VERB.py` `kimbox/nowhere.py` `docs/` `GONE.md`"
    text += " `/persistent/x` `$HOME/x` `kimbox up` `--json` `a.service` `x.py`"
    assert {"kimbox/cli/*.py", "kimbox/nowhere.py", "docs/", "GONE.md"} == paths_in(text)
