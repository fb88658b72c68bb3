"""kimbox job submit: submit a job to a pool of HTCondor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import target
from kimbox.cli.jobs.run import (
    BoxName,
    ChosenNetwork,
    Cpus,
    Each,
    Memory,
    Output,
    Room,
    Scratch,
    Size,
    Words,
    build_request,
)
from kimbox.cli.output import printable, report
from kimbox.errors import UsageError
from kimbox.log import log

if TYPE_CHECKING:
    from kimbox.jobs.backends.htcondor.submission import Submission

#: Options of the action.
Write = Annotated[
    Path | None,
    typer.Option("--write", metavar="FOLDER", help="Write the files to a new folder, for condor_submit."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Have condor_submit check the files, and submit nothing.")]
Pool = Annotated[str, typer.Option("--pool", metavar="HOST", help="Collector of the pool. Default: HTCondor's own.")]
ScheddName = Annotated[
    str, typer.Option("--schedd", metavar="NAME", help="Name of a schedd that is not on this host. It gets the files.")
]
ImageUrl = Annotated[
    str,
    typer.Option("--image-url", metavar="URL", help="Where a node gets the image, once. Default: sent with each job."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A key of the submit description, or +ATTRIBUTE. Several times."),
]
Universe = Annotated[
    str,
    typer.Option("--universe", metavar="UNIVERSE", help="vanilla: the runner boots the box. vm: HTCondor does."),
]

#: The help of the action, in the form of a docstring.
HELP = """Submit a job to a pool of HTCondor. The folder, the box and the options are those of `kimbox job run DIR`.

A node needs QEMU and Python 3.11, and nothing of kimbox: it gets one file that packs the job, boots the box as
`kimbox job run DIR --cold` does, and extracts the results. If the infrastructure fails (exit status 121 to 125), the
job is run again up to twice, on another node, or after 10 minutes on the same one; a failure of the program is final.

With --each, the cluster has one job for each line of FILE. `kimbox job watch` shows the jobs, and `kimbox job
fetch` writes the results to OUT, as `kimbox job run DIR` does.

The image is sent with each job, unless --image-url names a copy of image.qcow2 that --write has written. Each node
then downloads it once, and keeps it in a cache with a bound.

With --universe vm, HTCondor boots the image itself, and the box runs the job. Its spec has `job: true`, and neither
repositories nor steps. Memory, processors and network are set; --timeout limits boot and program together.

--set passes a key on, such as accounting_group or requirements. A key that HTCondor does not know is an error.

The JSON has: id, cluster, jobs, path (the folder with the files), output.

\b
Examples:
  kimbox job submit DIR --box openkim-dev --timeout 2h
  kimbox job submit DIR --each items.txt --output results
  kimbox job submit DIR --write for-condor && cd for-condor && condor_submit job.sub
  kimbox job submit DIR --pool cm.example.org --schedd submit.example.org --set accounting_group=physics
"""


def submit(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the job, with the program run-job.")],
    words: Words = None,
    box: BoxName = None,
    file: target.File = None,
    output: Output = None,
    cpus: Cpus = None,
    memory: Memory = None,
    scratch: Scratch = None,
    size: Size = None,
    room: Room = None,
    network: ChosenNetwork = None,
    each: Each = None,
    write: Write = None,
    dry_run: DryRun = False,
    pool: Pool = "",
    schedd: ScheddName = "",
    image_url: ImageUrl = "",
    settings: Settings = None,
    universe: Universe = "vanilla",
) -> None:
    """Submits a job, or writes its files. HELP is what the user reads."""
    from kimbox.actions.jobs.pool import submit as submitting
    from kimbox.cli.jobs.sweeps import read_items
    from kimbox.jobs.backends.htcondor.bindings import Schedd
    from kimbox.jobs.backends.htcondor.description import parse_settings

    if write and dry_run:
        raise UsageError("--write and --dry-run exclude each other", code="usage")
    request = submitting.SubmitRequest(
        build_request(folder, words, box, file, output, cpus, memory, scratch, size, room, network),
        read_items(each) if each is not None else None,
        Schedd(pool, schedd),
        parse_settings(settings or []),
        image_url,
        _is_vm(universe),
    )
    if dry_run:
        for line in submitting.dry_run(request).splitlines():
            log.warn(line)
        report("job", {"checked": True}, "condor_submit accepts the job; nothing was submitted")
        return
    done = submitting.write(request, write) if write else submitting.submit(request)
    result = {
        "id": done.id, "cluster": done.cluster, "jobs": done.count, "path": str(done.folder),
        "output": str(done.output),
    }  # fmt: skip
    report("job", result, printable(_text(done)))


submit.__doc__ = HELP


def _is_vm(universe: str) -> bool:
    """Whether the universe is that of virtual machines. Raises UsageError (`bad-value`)."""
    if universe not in ("vanilla", "vm"):
        raise UsageError(
            f"--universe: {universe[:40]!r} is neither vanilla nor vm",
            code="bad-value",
            fields={"option": "--universe"},
        )
    return universe == "vm"


def _text(done: Submission) -> str:
    if done.cluster is None:
        return f"wrote {done.folder}: `cd {done.folder}`, then `condor_submit job.sub`"
    return f"cluster {done.cluster}: {done.count} jobs; `kimbox job watch {done.cluster}` shows them"
