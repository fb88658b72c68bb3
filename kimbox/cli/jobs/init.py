"""kimbox job init: write the folder of a job to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli.output import printable, report


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write. It must not exist.")],
    example: Annotated[
        str | None,
        typer.Option("--example", metavar="NAME", help="Copy an example: aluminium or source-extractor."),
    ] = None,
) -> None:
    """Write the folder of a job to start from: run-job, input/, output/ and job.yaml, with comments.

    job.yaml has the settings of the job: box, arguments, processors, memory, scratch space, timeout, network, and the
    size of the disk. Each fault in it is reported with its line when the job is packed or run.

    --example copies an example that ships with kimbox instead: README.md, the spec of a box, and a job in `job`.
    aluminium computes energies with interatomic models. source-extractor finds the sources in an astronomical image.

    \b
    Examples:
      kimbox job init study && kimbox job run study --box minimal
      kimbox job init al --example aluminium && cd al && kimbox job run job
    """
    from kimbox.jobs.template import copy_example, write_folder

    if example is not None:
        job = copy_example(example, folder)
        text = f"wrote {folder}: `cd {folder}`, then `kimbox job run {job.name}`"
        report("job", {"path": str(folder), "job": str(job)}, printable(text))
        return
    write_folder(folder)
    text = f"wrote {folder}: change run-job, then `kimbox job run {folder}`"
    report("job", {"path": str(folder)}, printable(text))
