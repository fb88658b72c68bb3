"""kimbox logs: show the output of provisioning, or another log of a box."""

from __future__ import annotations

import codecs
import os
import shutil
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

#: Maximum number of bytes that one read returns.
CHUNK_BYTES = 1 << 16

#: Interval at which --follow checks the file for new output, in seconds.
POLL_INTERVAL_S = 0.2


def logs(
    box: target.Name = None,
    file: target.LongFile = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show new output as it is written, until Ctrl-C.")
    ] = False,
    serial: Annotated[bool, typer.Option("--serial", help="Show the log of the guest's serial console.")] = False,
    events: Annotated[bool, typer.Option("--events", help="Show the events of the guest, as JSON lines.")] = False,
    build: Annotated[bool, typer.Option("--build", help="Show the log of the build of the image.")] = False,
    qemu: Annotated[bool, typer.Option("--qemu", help="Show the log of QEMU.")] = False,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Show how long each stage of the last start took, as bars.")
    ] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="With --timeline: write it to this file as a picture.")
    ] = None,
) -> None:
    """Show the output of provisioning, or another log of a box.

    If the current boot provisioned nothing, the output of the previous boot is shown. --follow also shows the output of
    later boots.

    --timeline has the stages from the start of QEMU until the box was ready: firmware, boot loader, kernel, initramfs,
    system, provisioning and its steps.

    \b
    Examples:
      kimbox logs
      kimbox logs -f openkim-dev
      kimbox logs --serial openkim-dev
      kimbox logs --timeline --svg start.svg openkim-dev
    """
    if serial + events + build + qemu + timeline > 1:
        raise UsageError("--serial, --events, --build, --qemu and --timeline exclude each other", code="usage")
    if svg and not timeline:
        raise UsageError("--svg requires --timeline", code="usage", hint="add --timeline")
    machine = target.machine(box, file)
    if timeline:
        _show_timeline(machine, svg)
        return
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
        raise StateError(
            f"{machine.name} has no such log yet",
            code="log-not-found",
            hint=f"kimbox expects it at {path}",
            fields={"name": machine.name, "path": str(path)},
        )
    _show(path, follow=follow)


def _show_timeline(machine: Machine, svg: Path | None) -> None:
    """Prints the timeline of the last start, and writes it to the file `svg`. Raises StateError if there is none."""
    from kimbox.cli.output import report
    from kimbox.files import write_atomic
    from kimbox.machine.timeline import Loading, timeline
    from kimbox.render.timeline import render_svg, render_text

    machine.record()
    start = timeline(machine.boot_events(), Loading.read(machine))
    if start is None:
        raise StateError(
            f"{machine.name} has reported no start yet",
            code="log-not-found",
            hint=f"`kimbox up {machine.name}` starts it; `kimbox logs --serial {machine.name}` shows its console",
            fields={"name": machine.name, "path": str(machine.events_file)},
        )
    if svg:
        write_atomic(svg, render_svg(start, is_file=True) + "\n")
    text = render_text(start, shutil.get_terminal_size().columns)
    report("logs", {"name": machine.name, "start": start, "svg": str(svg) if svg else None}, text)


def _provision_log(machine: Machine) -> Path:
    """Returns the log of the current boot; the log of the previous boot if only that has content."""
    path = machine.provision_log
    previous = path.with_name(path.name + ".1")
    if _size_bytes(path) or not _size_bytes(previous):
        return path
    log.info(f"the current boot of {machine.name} provisioned nothing; showing the log of the previous boot")
    return previous


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _build_log(machine: Machine, box: str | None, file: Path | None) -> Path:
    """Returns the log of the build of the machine's image; if the build failed, the log of the last attempt."""
    from kimbox import paths

    if machine.exists:
        key = machine.record().image
    else:
        from kimbox.project.check import image_key

        key = image_key(target.project(box, file))
    complete, failed = paths.images_dir() / key / "build.log", paths.images_dir() / f"{key}.failed.log"
    return failed if failed.exists() and not complete.exists() else complete


def _show(path: Path, *, follow: bool) -> None:
    """Copies a file to stdout. With `follow`, it also copies new output, and a new file of the same name."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    file = path.open("rb")
    try:
        _copy(file, decoder)
        while follow:
            time.sleep(POLL_INTERVAL_S)
            is_replaced = _is_replaced(path, file)  # checked before the copy, so that no output of the old file is lost
            _copy(file, decoder)
            if is_replaced:
                file.close()
                decoder.reset()
                file = path.open("rb")
                _copy(file, decoder)
    finally:
        file.close()


def _is_replaced(path: Path, file: IO[bytes]) -> bool:
    """Whether another file has the name now, or the file was truncated. Each start of a box does one of these."""
    try:
        current, opened = path.stat(), os.fstat(file.fileno())
    except FileNotFoundError:  # between the rename of the old file and the creation of the new one
        return False
    return (current.st_dev, current.st_ino) != (opened.st_dev, opened.st_ino) or current.st_size < file.tell()


def _copy(file: IO[bytes], decoder: codecs.IncrementalDecoder) -> None:
    """Copies the file to its end. If stdout is a terminal, control characters are replaced."""
    while chunk := file.read(CHUNK_BYTES):
        if sys.stdout.isatty():
            sys.stdout.write(safe(decoder.decode(chunk)))
        else:
            sys.stdout.buffer.write(chunk)
    sys.stdout.flush()


def safe(text: str) -> str:
    """Returns text of a guest without characters that control a terminal. Line ends are kept."""
    from kimbox.guest.events import printable

    return "\n".join(printable(line) for line in text.replace("\r", "").split("\n"))
