"""kimbox logs: what a box wrote."""

from __future__ import annotations

import codecs
import os
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from kimbox.cli import target
from kimbox.errors import StateError, UsageError
from kimbox.log import log

if TYPE_CHECKING:
    from kimbox.machine.folder import Machine

#: Read in pieces of this size.
PIECE_BYTES = 1 << 16

#: With -f, how often the file is looked at.
LOOK_S = 0.2


def logs(
    box: target.Name = None,
    file: target.LongFile = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    serial: Annotated[bool, typer.Option("--serial", help="The console of the guest.")] = False,
    events: Annotated[bool, typer.Option("--events", help="What the guest told, as JSON lines.")] = False,
    build: Annotated[bool, typer.Option("--build", help="How its image was built.")] = False,
    qemu: Annotated[bool, typer.Option("--qemu", help="What QEMU itself said.")] = False,
) -> None:
    """Show the output of a box's provisioning, or another of its logs.

    A box is provisioned when it is made; where this boot provisioned nothing, the output of the boot before is shown.
    --follow waits for what this boot and the next ones write.

    \b
    Examples:
      kimbox logs
      kimbox logs -f openkim-dev
      kimbox logs --serial openkim-dev
    """
    if serial + events + build + qemu > 1:
        raise UsageError("logs shows one log at a time")
    machine = target.machine(box, file)
    if build:
        path = _build_log(machine, box, file)
    else:
        machine.record()
        path = machine.provision_log if follow else _provision_log(machine)
    if serial:
        path = machine.serial_log
    elif events:
        path = machine.events_file
    elif qemu:
        path = machine.qemu_log
    if not path.exists():
        raise StateError(f"{machine.name} has no such log yet", hint=f"it would be {path}")
    _show(path, follow=follow)


def _provision_log(machine: Machine) -> Path:
    """The log of this boot, which began it anew; if that is empty, the log of the boot before, where there is one."""
    path = machine.provision_log
    before = path.with_name(path.name + ".1")
    if _size(path) or not _size(before):
        return path
    log.info(f"this boot of {machine.name} provisioned nothing; this is the log of the boot before")
    return before


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _build_log(machine: Machine, box: str | None, file: Path | None) -> Path:
    """The log of the machine's image; where the image could not be built, that of the last try."""
    from kimbox import paths

    if machine.exists:
        key = machine.record().image
    else:
        from kimbox.project.check import image_key

        key = image_key(target.project(box, file))
    made, failed = paths.images_dir() / key / "build.log", paths.images_dir() / f"{key}.failed.log"
    return failed if failed.exists() and not made.exists() else made


def _show(path: Path, *, follow: bool) -> None:
    """Copies a file to stdout. With `follow` what is written from then on too, also by a new file of that name."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    file = path.open("rb")
    try:
        _copy(file, decoder)
        while follow:
            time.sleep(LOOK_S)
            is_new = _is_new(path, file)  # looked at first: what the old one still got is not lost
            _copy(file, decoder)
            if is_new:
                file.close()
                decoder.reset()
                file = path.open("rb")
                _copy(file, decoder)
    finally:
        file.close()


def _is_new(path: Path, file: IO[bytes]) -> bool:
    """Whether another file has taken the name, or the same one begins anew: each start of a box does one of these."""
    try:
        now, then = path.stat(), os.fstat(file.fileno())
    except FileNotFoundError:  # for a moment, or for good
        return False
    return (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino) or now.st_size < file.tell()


def _copy(file: IO[bytes], decoder: codecs.IncrementalDecoder) -> None:
    """Copies what there is, made safe if stdout is a terminal."""
    while piece := file.read(PIECE_BYTES):
        if sys.stdout.isatty():
            sys.stdout.write(safe(decoder.decode(piece)))
        else:
            sys.stdout.buffer.write(piece)
    sys.stdout.flush()


def safe(text: str) -> str:
    """Text of a guest without what could steer a terminal; its line ends stay."""
    from kimbox.guest.events import printable

    return "\n".join(printable(line) for line in text.replace("\r", "").split("\n"))
