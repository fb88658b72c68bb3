"""kimbox job init: write the folder of a job to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli.output import printable, report


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write. It must not exist.")],
) -> None:
    """Write the folder of a job to start from: run-job, input/, output/ and job.yaml, with comments.

    job.yaml has the settings of the job: box, arguments, processors, memory, scratch space, timeout, network, and the
    size of the disk. Each fault in it is reported with its line when the job is packed or run.

    \b
    Examples:
      kimbox job init study && kimbox job run study --box minimal
    """
    from kimbox.jobs.template import write_folder

    write_folder(folder)
    text = f"wrote {folder}: change run-job, then `kimbox job run {folder}`"
    report("job", {"path": str(folder)}, printable(text))
