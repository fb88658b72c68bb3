"""kimbox job extract: extract the files of a job's disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli.output import printable, report
from kimbox.errors import StateError, UsageError
from kimbox.log import log

if TYPE_CHECKING:
    from kimbox.jobs.disk.contents import Contents
    from kimbox.jobs.disk.extract import Extracted

#: The log of a job, the log of a job that could not be started, and the maximum size that is printed, in bytes.
LOGS, MAX_LOG_BYTES = (b"run-job.log", b"run-job-failure.log"), 64 << 20


#: Options of the action.
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="GLOB",
        help="Extract what matches, for example output or 'output/*.csv'. A folder includes what is in it. A name "
        "`**` matches any number of folders. May be given several times.",
    ),
]
Limit = Annotated[
    str | None,
    typer.Option(
        "--limit",
        metavar="SIZE",
        help="Maximum size of the extracted files, with their holes. Default: ten times the disk, at least 1G.",
    ),
]
SkipUnsafe = Annotated[
    bool, typer.Option("--skip-unsafe", help="Leave out devices and links that lead out, and extract the others.")
]


def extract(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Disk of a job.")],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder to write. It must not exist.", show_default=False)
    ] = None,
    list_files: Annotated[bool, typer.Option("--list", help="List the files, and write nothing.")] = False,
    show_log: Annotated[
        bool, typer.Option("--log", help="Print run-job.log (or run-job-failure.log), and write nothing.")
    ] = False,
    only: Only = None,
    limit: Limit = None,
    skip_unsafe: SkipUnsafe = False,
) -> None:
    """Extract the files of a job's disk into a new folder. Nothing is mounted, and no root is needed.

    Folders, links, permissions, times, holes and names of any bytes are kept; everything belongs to you. The bits for
    set-user-ID, set-group-ID and sticky are not kept. An absolute link below /mnt/user becomes a relative one. The
    folder lost+found is left out.

    The whole disk is checked before the first file is written: a damaged file system, blocks that two files share, and
    files larger than --limit are errors. So is a device, a socket, or a link that leads out of the disk, unless
    --skip-unsafe is given. After an error, OUT does not exist.

    The JSON has: path, files, size_bytes, skipped (path and reason of each file that was left out) and clean (whether
    the guest had unmounted the disk). With --list: files, each with path, mode, size_bytes and modified_s, and clean.
    With --log: log.

    \b
    Examples:
      kimbox job extract job.raw results
      kimbox job extract job.raw results --only output
      kimbox job extract job.raw --list
      kimbox job extract job.raw --log
    """
    from kimbox.jobs.disk import contents, pack
    from kimbox.jobs.disk import extract as extracting

    if [list_files, show_log, out is not None].count(True) != 1:
        raise UsageError("one of OUT, --list and --log is required", code="usage")
    limit_bytes = pack.parse_size(limit, "--limit") if limit is not None else None
    with contents.opened(image) as disk:
        if not disk.is_clean:
            log.warn(f"{image} was not unmounted: the last files may be incomplete")
        if show_log:
            _print_log(disk, image)
        elif out is None:
            _print_list(disk)
        else:
            done = extracting.extract(disk, out, only=only or (), skip_unsafe=skip_unsafe, limit_bytes=limit_bytes)
            _print_result(disk, done)


def _print_log(disk: Contents, image: Path) -> None:
    """Prints the log of the job. Raises StateError (`log-not-found`)."""
    text = next((text for name in LOGS if (text := disk.head(name, MAX_LOG_BYTES)) is not None), None)
    if text is None:
        raise StateError(f"{image} has no run-job.log: the job did not start", code="log-not-found")
    report("job", {"log": text.decode(errors="replace")}, text.decode(errors="surrogateescape"), is_file=True)


def _print_list(disk: Contents) -> None:
    """Prints the names on the disk."""
    from kimbox.image.disk.ext4.directories import shown
    from kimbox.jobs.disk.extract import listing

    rows = [
        {
            "path": shown(file.path),
            "mode": f"{file.inode.mode:06o}",
            "size_bytes": file.inode.size_bytes,
            "modified_s": file.modified_ns / 1e9,
        }
        for file in disk.files
    ]
    report("job", {"files": rows, "clean": disk.is_clean}, "\n".join(listing(disk)))


def _print_result(disk: Contents, done: Extracted) -> None:
    """Prints what was extracted, and what was left out."""
    from kimbox.files import size_words
    from kimbox.image.disk.ext4.directories import shown

    skipped = [{"path": shown(file.path), "reason": file.unsafe} for file in done.skipped]
    result = {
        "path": str(done.path), "files": done.files, "size_bytes": done.size_bytes, "skipped": skipped,
        "clean": disk.is_clean,
    }  # fmt: skip
    lines = [f"left out {row['path']}: {row['reason']}" for row in skipped]
    lines.append(printable(f"{done.path}: {done.files} files, {size_words(done.size_bytes)}"))
    report("job", result, "\n".join(lines))
