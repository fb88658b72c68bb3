"""kimbox maintain: change the base image of a box and make a new image of it."""

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

#: Maximum number of lines about changes that are printed. --json and the record have all changes.
MAX_LINES = 200

#: Options that require --commit.
Folder = Annotated[
    Path | None,
    typer.Option("--package", metavar="FOLDER", help="With --commit: also write packages of the new image to FOLDER."),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="With --package: a format, as for `kimbox package`. May be repeated. Default: libvirt.",
    ),
]
Key = Annotated[
    Path | None,
    typer.Option("--sign", metavar="KEY", help="With --package: the private ssh key that signs the checksums."),
]


Commit = Annotated[
    str | None, typer.Option("--commit", metavar="NAME", help="Make a new image and add it as the box NAME.")
]


def maintain(
    box: target.Name = None,
    file: target.File = None,
    commit: Commit = None,
    discard: Annotated[bool, typer.Option("--discard", help="Discard all changes.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --commit: replace an added box of that name.")] = False,
    package: Folder = None,
    format: Formats = None,
    sign: Key = None,
) -> None:
    """Change the base image of a box and make a new image of it. kimbox boots the real root of the image, on a separate
    disk.

    The box itself does not change. Its base image runs as another machine, BOX-maintain, for `kimbox ssh` and `exec`.
    kimbox does not provision that machine. If it is halted, the same command starts it again.

    --commit does these steps in this order. It configures packages that are only unpacked. It creates every initramfs,
    the links to the kernel and the entries of GRUB again. It halts the machine. It removes the data of this machine
    (identity, keys, logs, caches, /persistent) and the free space. It searches for remaining keys and identities; one
    that remains is an error. Then it adds the image as the box NAME, for `image: {box: NAME}` in a spec. It shows and
    records the differences from the former image: packages and files. If a step fails before the image exists, the
    machine stays as it is.

    With --package, kimbox also writes packages of the new image, as `kimbox package` does. Their kimbox.json has the
    record, and their SBOM lists the installed packages.

    The JSON has: name and state of the machine. With --commit also: box, image, former (keys of both images),
    size_bytes, record (its file), files (the packages that were written), kept_keys (keys that Debian packages ship in
    their files), and changes: packages (name, old, new), files (added, removed, changed) that belong to no changed
    package, and package_files (the number of changed files that do).

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
        raise UsageError("--commit and --discard exclude each other", code="usage", hint="pass one of them")
    _require("--commit NAME", commit, {"--force": force, "--package": package})
    _require("--package FOLDER", package, {"--format": format, "--sign": sign})
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
        f"{machine.name} runs on the real root of {project.name}. Change it with `kimbox ssh {machine.name}`.\n"
        f"`kimbox maintain {project.name} --commit NAME` makes an image of it, --discard discards the changes."
    )
    report("maintain", {"name": machine.name, "state": str(state(machine))}, text)


def _discard(project: Project) -> None:
    from kimbox.actions import maintain as maintaining
    from kimbox.machine.folder import machine_of
    from kimbox.machine.record import Purpose

    was_maintained = maintaining.discard(project)
    name = machine_of(project.name, Purpose.MAINTENANCE).name
    text = f"discarded the changes in {name}" if was_maintained else f"{project.name} has no maintenance to discard"
    report("maintain", {"name": name, "state": "absent"}, text)


def _require(option: str, given: object, dependent: Mapping[str, object]) -> None:
    """Raises UsageError if an option of `dependent` has a value, and the option that it requires has none."""
    for name, value in dependent.items():
        if value and given is None:
            raise UsageError(f"{name} requires {option}", code="usage", fields={"option": name, "requires": option})


def _checked(name: str) -> str:
    """Returns a name for an added box. Raises UsageError if it is not allowed."""
    from kimbox.spec.nodes import Fault
    from kimbox.spec.rules import vagrant_box

    try:
        return vagrant_box(name)
    except Fault as fault:
        raise UsageError(
            f"--commit: {fault.message}", code=fault.code, hint=fault.hint, fields={"option": "--commit"}
        ) from None


def _committed(committed: Committed, name: str) -> None:
    """Prints the new image and its differences from the former one. `name` is the machine of the maintenance."""
    from kimbox.files import size_words

    lines = committed.changes.lines()
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"... and {len(lines) - MAX_LINES} more lines, all of them in the record"]
    box, size = committed.box, size_words(committed.size_bytes)
    lines += [
        f"wrote the record {committed.record}",
        f"added the box {box.name} ({size}): `image: {{box: {box.name}}}` in a spec",
    ]
    lines += kept_lines(committed.kept)
    lines += [f"wrote {file}" for file in committed.packages]
    result = {
        "name": name,
        "state": "absent",
        "box": box.name,
        "image": box.image,
        "former": committed.former,
        "size_bytes": committed.size_bytes,
        "record": committed.record,
        "files": [str(file) for file in committed.packages],
        "changes": committed.changes.as_json(),
        "kept_keys": [finding.as_json() for finding in committed.kept],
    }
    report("maintain", result, "\n".join(map(printable, lines)))
