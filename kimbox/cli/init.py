"""kimbox init: a spec to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli import completers
from kimbox.cli.output import report
from kimbox.spec.start import start_spec


def init(
    box: Annotated[
        str, typer.Argument(help="The shipped box to start from", autocompletion=completers.shipped_boxes)
    ] = "minimal",
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the new box. Default: the name of this folder")
    ] = None,
) -> None:
    """Write a commented kimbox.yaml into this folder, made from a box that ships with kimbox.

    Nothing that is there is overwritten. If the box has a setup folder of its own, that is copied too, so that you
    can change it.

    \b
    Examples:
      kimbox init
      kimbox init openkim-dev --name al-study
    """
    started = start_spec(box, Path(), name)
    text = f"wrote {started.spec}: the box {started.name}, made from {box}"
    for folder in started.folders:
        text += f"\nwrote {folder}/: what sets it up"
    result = {"file": str(started.spec), "name": started.name, "box": box, "folders": [str(f) for f in started.folders]}
    report("init", result, f"{text}\nnext: kimbox up")
