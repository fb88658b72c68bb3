"""The tables of docs/coming-from.md: what users of other tools type, and what does the same here. Shells to type in."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from conftest import Kimbox

from kimbox import run
from kimbox.cli.verbs import VERBS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "coming-from.md"


class Guide:
    """The table of a tool, and the rows that were tried."""

    def __init__(self, kimbox: Kimbox, heading: str) -> None:
        self.kimbox = kimbox
        section = DOCUMENT.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        table = section.partition("|---|---|\n")[2].partition("\n\n")[0]
        self.rows = dict(cells(line) for line in table.splitlines())
        self.spec = "".join(line[4:] + "\n" for line in re.findall(r"^    .*$", section, re.MULTILINE))
        self.tried: set[str] = set()

    def row(self, theirs: str, *ours: str) -> None:
        """Marks a row as tried. `ours`: the commands that this test runs for it must be in the row's right cell."""
        missing = [command for command in ours if command not in self.rows[theirs]]
        assert not missing, (theirs, missing)
        self.tried.add(theirs)

    def check(self, elsewhere: Mapping[str, str]) -> None:
        """Checks that no row is left that has a verb, and is neither tried nor shown by another test."""
        assert [] == [name for name in elsewhere.values() if not (DOCUMENT.parents[1] / "tests" / name).is_file()]
        left = [theirs for theirs, ours in self.rows.items() if has_verb(ours) and theirs not in self.tried]
        assert sorted(elsewhere) == sorted(left)


def cells(line: str) -> tuple[str, str]:
    """The two cells of a row."""
    theirs, ours = (cell.strip() for cell in line.strip().strip("|").split(" | ", 1))
    return theirs, ours


def has_verb(cell: str) -> bool:
    """Whether a cell has a command of kimbox, or a key of the spec."""
    verbs = "|".join(map(re.escape, VERBS))
    return bool(re.search(rf"kimbox ({verbs})\b|`[a-z.]+: ?", cell))


def session(kimbox: Kimbox, line: str, *name: str) -> str:
    """Runs a line in a login shell of a box. Returns the last line of its output: a greeting is above it."""
    return kimbox("ssh", *name, input=f"{line}\n").stdout.splitlines()[-1]


def shell(kimbox: Kimbox, script: str) -> str:
    """Runs a script of bash, with the program kimbox, in the folder. Returns its stdout."""
    program = f'kimbox() {{ {sys.executable} -m kimbox "$@"; }}\n'
    return run.run(["bash", "-e"], input=program + script, cwd=kimbox.folder, env=kimbox.environment).stdout
