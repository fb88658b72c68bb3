"""kimbox validate: is this spec right?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.output import report
from kimbox.errors import Problem, SpecError, StateError
from kimbox.spec.load import find_box, load_box


def validate(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Specs to check, or names of shipped boxes. Default: ./kimbox.yaml",
            autocompletion=completers.specs_or_shipped,
        ),
    ] = None,
    file: target.File = None,
) -> None:
    """Check box specs, and say everything that is wrong with them, each fault with file, line and column.

    Nothing is fetched, built or started. The exit status is 3 if a spec does not hold, or if one of several is not
    there; 5 if the only one is not there.

    \b
    Examples:
      kimbox validate
      kimbox validate boxes/*.yaml
      kimbox validate openkim-dev
    """
    checked: list[dict[str, object]] = []
    lines: list[str] = []
    problems: list[Problem] = []
    wanted: list[tuple[str | None, Path | None]] = [(name, None) for name in files or []]
    if file or not wanted:
        wanted.append((None, file))
    for name, given in wanted:
        try:
            path = find_box(name, Path(), given)
            box = load_box(path)
        except SpecError as error:
            problems.extend(error.problems)
            continue
        except StateError as error:
            if len(wanted) == 1:
                raise
            problems.append(Problem(str(given or name), 1, 1, error.message, error.hint))
            continue
        checked.append(
            {"file": str(path), "name": box.name, "digest": box.digest, "layers": [str(p) for p in box.layers]}
        )
        lines.append(f"{path}: a valid spec of the box {box.name}")
    if problems:
        raise SpecError(problems)
    report("validate", {"specs": checked}, "\n".join(lines))
