"""kimbox validate: check box specs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import report
from kimbox.errors import Problem, SpecError, StateError
from kimbox.project.scripts import spec_problems
from kimbox.spec.load import find_box, load_box
from kimbox.spec.members import read_members


def validate(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Specs to check, or names of shipped boxes. Default: ./kimbox.yaml.",
            autocompletion=completers.specs_or_shipped,
        ),
    ] = None,
    file: target.File = None,
) -> None:
    """Check box specs. Show every fault with file, line and column.

    Also the syntax of the shell scripts is checked, and that a folder `setup` has an executable file `setup`. Nothing
    is run, downloaded, built or started. The exit status is 3 if a spec is invalid, or if one of several is missing.
    It is 5 if the only one is missing.

    \b
    Examples:
      kimbox validate
      kimbox validate boxes/*.yaml
      kimbox validate openkim-dev
    """
    checked: list[dict[str, object]] = []
    lines: list[str] = []
    problems: list[Problem] = []
    requested: list[tuple[str | None, Path | None]] = [(name, None) for name in files or []]
    if file or not requested:
        requested.append((None, file))
    for name, spec_file in requested:
        try:
            path = find_box(name, Path(), spec_file)
            members: list[str | None] = [member.name for member in read_members(path)]
        except SpecError as error:
            problems.extend(error.problems)
            continue
        except StateError as error:
            if len(requested) == 1:
                raise
            problems.append(Problem(str(spec_file or name), 1, 1, error.message, error.hint, code=error.code))
            continue
        for member in members or [None]:
            try:
                problems.extend(spec_problems(path, member))
                box = load_box(path, member=member)
            except SpecError as error:
                problems.extend(error.problems)
                continue
            checked.append(
                {"file": str(path), "name": box.name, "digest": box.digest, "layers": [str(p) for p in box.layers]}
            )
            lines.append(f"{path}: a valid spec of the box {box.name}")
    problems = list(dict.fromkeys(problems))  # boxes of one spec may share a layer
    if problems:
        raise SpecError(problems, code="bad-spec")
    report("validate", {"specs": checked}, "\n".join(lines))
