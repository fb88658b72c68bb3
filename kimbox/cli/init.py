"""kimbox init: write a spec to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kimbox import paths
from kimbox.cli import completers
from kimbox.cli.output import report
from kimbox.spec.start import start_spec

_SHIPPED = sorted(spec.stem for spec in paths.boxes_dir().glob("*.yaml"))


def init(
    box: Annotated[
        str,
        typer.Argument(
            help=f"Name of the shipped box to start from: {', '.join(_SHIPPED)}.",
            autocompletion=completers.shipped_boxes,
        ),
    ] = "minimal",
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the new box. Default: the name of this folder."),
    ] = None,
) -> None:
    """Write a kimbox.yaml with comments into this folder, based on a box that ships with kimbox.

    Existing files are not overwritten. If the box has a setup folder, kimbox copies it, so that you can change it.

    \b
    Examples:
      kimbox init
      kimbox init openkim-dev --name al-study
    """
    started = start_spec(box, Path(), name)
    text = f"wrote {started.spec}: the box {started.name}, based on {box}"
    for folder in started.folders:
        text += f"\nwrote {folder}/: its setup folder"
    result = {"file": str(started.spec), "name": started.name, "box": box, "folders": [str(f) for f in started.folders]}
    report("init", result, f"{text}\nnext: kimbox up")
