"""kimbox maintain: change the base of a box."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import target
from kimbox.cli.output import printable, report, settings
from kimbox.cli.package import formats_of, kept_lines
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.actions.maintain import Committed
    from kimbox.project.project import Project

#: Lines about changes that are shown; --json and the record have all.
MAX_LINES = 200

#: With --commit.
Folder = Annotated[Path | None, typer.Option("--package", metavar="FOLDER", help="Also write packages of it there.")]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", metavar="FORMAT", help="Of the packages, as of `kimbox package`; default: libvirt."),
]
Key = Annotated[Path | None, typer.Option("--sign", metavar="KEY", help="A key of ssh that signs their checksums.")]


def maintain(
    box: target.Name = None,
    file: target.File = None,
    commit: Annotated[str | None, typer.Option("--commit", metavar="NAME", help="Make an image called NAME.")] = None,
    discard: Annotated[bool, typer.Option("--discard", help="Throw away what was changed.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --commit: replace an added box of that name.")] = False,
    package: Folder = None,
    format: Formats = None,
    sign: Key = None,
) -> None:
    """Change the base of a box: boot the real root of its image, on a disk apart, and make a new image of it.

    The box itself is not touched. Its base runs as a machine of its own, BOX-maintain, for `kimbox ssh` and `exec`;
    nothing is provisioned there. Halted, it goes on with the same command.

    --commit configures what is half configured, makes every initramfs, the kernel's links and GRUB's entries anew,
    halts, removes what belongs to this one machine (identity, keys, logs, caches, /persistent), drops free space,
    looks for keys and identities that are left, which are an error, and adds the image under NAME: a spec then says
    `image: {box: NAME}`. What differs from the former image, packages and files, is shown and recorded for review.
    With --package the new image is handed on, too, as `kimbox package` does it: the record is in its kimbox.json, and
    its SBOM lists what is installed. Where something fails before the image is there, the machine stays as it is.

    In its JSON: name and state of the machine; with --commit: box, image, former (keys of the images), size_bytes,
    record (the file), files (of packages), and changes: packages (name, old, new), files (added, removed, changed) that
    belong to none of these, and package_files, how many do; kept_keys: keys that packages ship in their files.

    \b
    Examples:
      kimbox maintain openkim-dev
      kimbox exec openkim-dev-maintain -- sudo apt-get -y install gfortran
      kimbox maintain openkim-dev --commit openkim-dev-2
      kimbox maintain openkim-dev --commit openkim-dev-2 --package release --format libvirt --format ova
      kimbox maintain openkim-dev --discard
    """
    from kimbox.actions import maintain as maintaining
    from kimbox.actions.package import PackageRequest
    from kimbox.actions.watch import BOOT_TIMEOUT_S
    from kimbox.machine.folder import machine_of
    from kimbox.machine.record import Purpose

    if discard and commit is not None:
        raise UsageError("--commit keeps what was changed, --discard does not", hint="give one of them")
    _need("--commit NAME", commit, {"--force": force, "--package": package})
    _need("--package FOLDER", package, {"--format": format, "--sign": sign})
    project = target.project(box, file)
    request = PackageRequest(project, formats_of(format), package, key=sign) if package else None
    limit = settings.timeout_s or BOOT_TIMEOUT_S
    if discard:
        _discard(project)
    elif commit is None:
        _begin(project, limit)
    else:
        name = _checked(commit)
        done = maintaining.commit(project, name, force=force, timeout_s=limit, request=request)
        _committed(done, machine_of(project.name, Purpose.MAINTENANCE).name)


def _begin(project: Project, limit_s: float) -> None:
    from kimbox.actions import maintain as maintaining
    from kimbox.actions.observe import state
    from kimbox.machine.folder import machine_of
    from kimbox.machine.record import Purpose

    maintaining.begin(project, limit_s)
    machine = machine_of(project.name, Purpose.MAINTENANCE)
    text = (
        f"{machine.name} runs on the real root of {project.name}: change it with `kimbox ssh {machine.name}`;\n"
        f"`kimbox maintain {project.name} --commit NAME` makes an image of it, --discard throws it away"
    )
    report("maintain", {"name": machine.name, "state": str(state(machine))}, text)


def _discard(project: Project) -> None:
    from kimbox.actions import maintain as maintaining
    from kimbox.machine.folder import machine_of
    from kimbox.machine.record import Purpose

    there = maintaining.discard(project)
    name = machine_of(project.name, Purpose.MAINTENANCE).name
    text = f"what was changed in {name} is gone" if there else f"nothing of {project.name} was being maintained"
    report("maintain", {"name": name, "state": "absent"}, text)


def _need(option: str, given: object, dependent: Mapping[str, object]) -> None:
    """Raises UsageError for an option that means nothing without another."""
    for name, value in dependent.items():
        if value and given is None:
            raise UsageError(f"{name} belongs to {option}")


def _checked(name: str) -> str:
    """A name for an added box. Raises UsageError for what cannot be one."""
    from kimbox.spec.nodes import Fault
    from kimbox.spec.rules import vagrant_box

    try:
        return vagrant_box(name)
    except Fault as fault:
        raise UsageError(f"--commit: {fault.message}", hint=fault.hint) from None


def _committed(done: Committed, name: str) -> None:
    from kimbox.files import size_words

    lines = done.changes.lines()
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"... {len(lines) - MAX_LINES} more lines; the record has all"]
    lines += [
        f"recorded in {done.record}",
        f"{done.box.name} is an image of {size_words(done.size_bytes)}: `image: {{box: {done.box.name}}}` in a spec",
    ]
    lines += kept_lines(done.kept)
    lines += [f"wrote {file}" for file in done.packages]
    result = {
        "name": name, "state": "absent", "box": done.box.name, "image": done.box.image, "former": done.former,
        "size_bytes": done.size_bytes, "record": done.record, "files": [str(file) for file in done.packages],
        "changes": done.changes.as_json(), "kept_keys": [finding.as_json() for finding in done.kept],
    }  # fmt: skip
    report("maintain", result, "\n".join(map(printable, lines)))
