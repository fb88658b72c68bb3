"""kimbox job run: run a folder as a job in a machine of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from kimbox.cli import completers, target
from kimbox.cli.jobs.pack import disk_size
from kimbox.cli.output import printable, report, settings
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.actions.jobs.request import Done, RunRequest
    from kimbox.jobs.jobfile import JobFile
    from kimbox.spec.model import Scratch as Space


#: Arguments and options of the action.
Words = Annotated[list[str] | None, typer.Argument(metavar="-- ARG", help="Arguments of the program, after `--`.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", metavar="OUT", help="Folder for the results. Without --each it must not exist. Default: DIR.out."
    ),
]
BoxName = Annotated[
    str | None,
    typer.Option("--box", metavar="BOX|URL",
                 help="Name of the box, or URL of a save. Default: the spec of this folder.",
                 autocompletion=completers.boxes),
]  # fmt: skip
BoxNames = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        metavar="BOX|URL",
        help="Name of the box, or URL of a save. Default: the spec of this folder. Several: the job runs in each.",
        autocompletion=completers.boxes,
    ),
]
Cpus = Annotated[int | None, typer.Option("--cpus", min=1, max=256, metavar="N", help="Number of processors.")]
Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Memory, for example 4GiB.")]
Scratch = Annotated[
    str | None, typer.Option("--scratch", metavar="SIZE", help="Scratch space at /staging, for example 20GiB.")
]
Size = Annotated[
    str | None,
    typer.Option("--size", metavar="SIZE", help="Size of the disk of the job: a number and b, K, M, G, T, P or E."),
]
Room = Annotated[
    str | None,
    typer.Option("--room", metavar="ROOM", help="Room for results: a part of what DIR needs (25%) or a size (500M)."),
]
ChosenNetwork = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="NETWORK",
        help="none: the guest reaches nothing. outbound: it opens connections. HOST:PORT,...: by TCP, these servers "
        "only; NAME=ADDRESS:PORT gives one a name. Default: that of job.yaml, none.",
    ),
]
Cold = Annotated[
    bool, typer.Option("--cold", help="Boot and provision a new machine in place of a clone of the box's template.")
]
Sign = Annotated[
    Path | None,
    typer.Option("--sign", metavar="KEY", help="The private ssh key that signs the results and their provenance."),
]
Each = Annotated[
    str | None,
    typer.Option("--each", metavar="FILE", help="Run one job for each line of FILE, or of stdin with `-`."),
]
AtATime = Annotated[
    int | None,
    typer.Option("-j", "--jobs", min=1, max=1024, metavar="N", help="With --each: number of jobs at the same time."),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="With --each: do items again that were not ok.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="With --each: stop when an item is not ok.")]
Keep = Annotated[bool, typer.Option("--keep", help="Keep the machine, halted, if the job was not ok.")]


#: The help of the action, in the form of a docstring.
HELP = """Run a folder as a job in a machine of its own, and keep its results.

The folder becomes a disk. A clone of the box takes it, runs /mnt/user/run-job as root, and is removed. The first
job makes the template for that: the box, provisioned and saved with its memory. OUT then has `output`, run-job.log
and job.json. Output is shown while the program runs.

With --each, OUT has a folder for each line of FILE: the results of a job that has the line as its last argument,
as it is. Empty lines are left out. Several jobs run at the same time, as many as processors and memory of this
host bear, or N if that is less. results.jsonl has the job.json of each item in a line. The same command again does
what is missing; --retry-failed also does what was not ok. Ctrl-C ends the jobs that run, and keeps complete
results. The exit status is 0 if all items are ok, else 1.

With --box and the URL of a store, the job runs in clones of the newest save in it.

With --box more than once, the job runs in each box, one after the other. OUT has a folder for each, and a table
shows verdict, status, time, and the results that differ from those of the first box. The exit status is 0 if the job is
ok in all boxes, else 1.

Settings in job.yaml of DIR (see `kimbox job init --help`) are used where an option is not given.

The program has the variables PATH=/sbin:/usr/sbin:/bin:/usr/bin, USER=root, PWD=/ and LANG=en_US.UTF-8, and no
others. --timeout limits its duration. With --network none, the default, the job reaches nothing. The template is
provisioned with the network, as `kimbox up` does it; with --cold, the setting is also that of the provisioning.

A guest that dies or hangs is noticed, also without a time limit. The job is then started again, once. If kimbox
itself is killed, `kimbox job recover` writes the results.

The verdict in job.json is one of: ok; failed (another status than 0, or a signal); timeout; guest-died;
out-of-space; lost (its end is not known); host (the box is not ready); quarantined (see `vet` in job.yaml).

The exit status is that of the program, and 128 and the number of a signal that ended it. 119: quarantined. 121:
timeout. 122: guest-died. 123: out-of-space. 124: lost. 125: host. A program's own 119 and 121 to 125 become 120. A
program that cannot be run: 126. Ctrl-C ends the guest: 130, and OUT has what the job had written.

\b
Examples:
  kimbox job run DIR
  kimbox job run DIR --box openkim-dev --timeout 2h --output results -- --steps 1000
  kimbox job run DIR --box bookworm --box trixie
  kimbox job run DIR --box /srv/saves/study
  kimbox job run DIR --cpus 4 --memory 8GiB --room 2G --network example.org:443
  kimbox job run DIR --sign ~/.ssh/id_ed25519
  kimbox job run DIR --each items.txt -j 4 --output results
  seq 3.9 0.01 4.2 | kimbox job run DIR --each -
"""


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the job, with the program run-job.")],
    words: Words = None,
    box: BoxNames = None,
    file: target.File = None,
    output: Output = None,
    cpus: Cpus = None,
    memory: Memory = None,
    scratch: Scratch = None,
    size: Size = None,
    room: Room = None,
    network: ChosenNetwork = None,
    cold: Cold = False,
    keep: Keep = False,
    sign: Sign = None,
    each: Each = None,
    jobs: AtATime = None,
    retry_failed: RetryFailed = False,
    fail_fast: FailFast = False,
) -> None:
    """Runs a job, or a sweep. HELP is what the user reads."""
    from kimbox.actions.jobs import run as running
    from kimbox.cli.jobs.boxes import run_on_boxes
    from kimbox.cli.jobs.sweeps import run_sweep

    if box and len(box) > 1 and (each is not None or file is not None or keep):
        raise UsageError("--each, --file and --keep are for one box", code="usage")
    name = box[0] if box else None
    request = build_request(folder, words, name, file, output, cpus, memory, scratch, size, room, network)
    request = attrs.evolve(request, keep=keep, is_cold=cold, sign_key=sign)
    if each is None:
        _refuse_without_each(jobs, retry_failed=retry_failed, fail_fast=fail_fast)
    if box and len(box) > 1:
        raise typer.Exit(run_on_boxes(request, box))
    if each is None:
        raise typer.Exit(_print(running.run(request)))
    if keep:
        raise UsageError("--keep is for one job, and --each runs many", code="usage")
    raise typer.Exit(run_sweep(request, each, at_a_time=jobs, retries_failed=retry_failed, fails_fast=fail_fast))


run.__doc__ = HELP


def build_request(
    folder: Path,
    words: list[str] | None,
    box: str | None,
    file: Path | None,
    output: Path | None,
    cpus: int | None,
    memory: str | None,
    scratch: str | None,
    size: str | None,
    room: str | None,
    network: str | None,
) -> RunRequest:
    """Returns the request for a job from the options, and, where one is not given, from job.yaml."""
    from kimbox.actions.jobs.request import RunRequest
    from kimbox.jobs.jobfile import read_jobfile
    from kimbox.jobs.network import Network

    in_file = read_jobfile(folder)
    size_bytes, chosen_room = disk_size(in_file, size, room)
    return RunRequest(
        target.saved_or_box(box or (in_file.box if file is None else None), file),
        folder,
        output or folder.resolve().with_name(f"{folder.resolve().name}.out"),
        _arguments(words or []) or in_file.arguments or (),
        cpus=cpus or in_file.cpus,
        memory_bytes=_bytes(memory, "--memory") or in_file.memory_bytes,
        scratch=_scratch(_bytes(scratch, "--scratch") or in_file.scratch_bytes),
        size_bytes=size_bytes,
        room=chosen_room,
        timeout_s=_timeout_s(in_file),
        network=Network.parse(network) if network is not None else in_file.network or Network(),
        vetting=in_file.vetting,
    )


def _refuse_without_each(jobs: int | None, *, retry_failed: bool, fail_fast: bool) -> None:
    """Raises UsageError if an option of a sweep is given without --each."""
    for option, is_given in {"-j": jobs is not None, "--retry-failed": retry_failed, "--fail-fast": fail_fast}.items():
        if is_given:
            raise UsageError(f"{option} needs --each", code="usage", hint="kimbox job run DIR --each FILE")


def _arguments(words: list[str]) -> tuple[str, ...]:
    """Returns the arguments of the program. Raises UsageError if a word of the parser is before `--`."""
    arguments = tuple(settings.after or ())
    if len(words) != len(arguments):
        raise UsageError("arguments of the program follow `--`", code="usage", hint="kimbox job run DIR -- ARG...")
    return arguments


def _timeout_s(in_file: JobFile) -> int | None:
    """Returns the limit on the program: --timeout, else that of job.yaml."""
    return in_file.timeout_s if settings.timeout_s is None else int(settings.timeout_s)


def _print(done: Done) -> int:
    """Prints the verdict, and where the results are. Returns the exit status."""
    report("job", {**done.record, "path": str(done.output)}, printed(done))
    return done.verdict.status


def printed(done: Done) -> str:
    """Returns the verdict, and where the results are, for the terminal."""
    reason = f": {done.verdict.reason}" if done.verdict.reason else ""
    text = f"{done.verdict.outcome}{reason}\nthe results are in {done.output}"
    return "\n".join(map(printable, text.split("\n")))


def _bytes(text: str | None, option: str) -> int | None:
    """Returns the bytes of a size as a spec has it. Raises UsageError (`bad-size`)."""
    from kimbox.spec.build import MIN_MEMORY_BYTES
    from kimbox.spec.nodes import Fault
    from kimbox.spec.units import MIB, size

    if text is None:
        return None
    try:
        return size(text, unit=MIB, least=MIN_MEMORY_BYTES)
    except Fault as fault:
        raise UsageError(
            f"{option}: {fault.message}", code=fault.code, hint=fault.hint, fields={"option": option}
        ) from None


def _scratch(size_bytes: int | None) -> Space | None:
    """Returns the scratch space of that size; None for that of the spec."""
    from kimbox.actions.jobs.request import SCRATCH_MOUNT
    from kimbox.spec.model import Scratch as Space

    return None if size_bytes is None else Space(size_bytes, SCRATCH_MOUNT)
