"""kimbox job pack: write the disk of a job from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli.output import printable, report
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.jobs.disk.pack import Room
    from kimbox.jobs.jobfile import JobFile


def pack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the job, with the program run-job.")],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="File to write. It must not exist.")],
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="SIZE",
            help="Size of the disk: a number and b, K, M, G, T, P or E, for example 1.5G. Default: what DIR needs, "
            "with --room.",
        ),
    ] = None,
    room: Annotated[
        str | None,
        typer.Option(
            "--room",
            metavar="ROOM",
            help="Room for results: a part of what DIR needs (25%) or a size (500M). Default: 10%, at least 1M.",
        ),
    ] = None,
) -> None:
    """Write the disk of a job from its folder: ext2, as HTCondor's VM universe takes it.

    No root, mount or virtual machine is needed. Everything on the disk belongs to root. Permissions, times, symbolic
    and hard links, and names of any bytes are kept; blocks of zeros become holes. Extended attributes are not kept, and
    a device, socket or FIFO is an error. An empty folder `output` is added. Equal folders give equal disks.

    `size` and `room` of job.yaml in DIR are used if neither option is given.

    The units of a size are binary: 1K is 1024 bytes. If the size is too small, the error names the smallest that is
    enough.

    The JSON has: path, size_bytes, used_bytes (what the folder takes), free_bytes, files, and digest (of the folder).

    \b
    Examples:
      kimbox job pack DIR job.raw
      kimbox job pack DIR job.raw --size 1.5G
      kimbox job pack DIR job.raw --room 500M
    """
    from kimbox.files import size_words
    from kimbox.jobs.disk import pack as packing
    from kimbox.jobs.jobfile import read_jobfile

    size_bytes, chosen = disk_size(read_jobfile(folder), size, room)
    packed = packing.pack(folder, image, size_bytes=size_bytes, room=chosen)
    result = {
        "path": str(packed.path),
        "size_bytes": packed.size_bytes,
        "used_bytes": packed.used_bytes,
        "free_bytes": packed.free_bytes,
        "files": packed.files,
        "digest": f"sha256:{packed.digest}",
    }
    text = f"{image}: {size_words(packed.size_bytes)}, {size_words(packed.free_bytes)} of it free, {packed.files} files"
    report("job", result, printable(text))


def disk_size(in_file: JobFile, size: str | None, room: str | None) -> tuple[int | None, Room | None]:
    """Returns size and room of the disk from the options, or, without them, from job.yaml. Raises UsageError."""
    from kimbox.jobs.disk import pack as packing

    if size is not None and room is not None:
        raise UsageError("--size and --room exclude each other", code="usage")
    if size is None and room is None:
        return in_file.size_bytes, in_file.room
    if size is not None:
        return packing.parse_size(size, "--size"), None
    return None, packing.Room.parse(room or "")
