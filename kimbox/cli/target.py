"""Which box a verb means: by name, by the spec of this folder, or by -f FILE."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import completers
from kimbox.errors import StateError, UsageError
from kimbox.spec.model import BootMode

if TYPE_CHECKING:
    from kimbox.machine.bootmode import Choice
    from kimbox.machine.folder import Machine
    from kimbox.project.project import Project

_FILE_HELP = "The spec, in place of ./kimbox.yaml"

#: The argument and the option that every verb has.
Name = Annotated[
    str | None,
    typer.Argument(
        metavar="[BOX]", help="Name of the box. Default: the spec of this folder", autocompletion=completers.boxes
    ),
]
File = Annotated[Path | None, typer.Option("--file", "-f", metavar="FILE", help=_FILE_HELP)]
#: The same where -f means something else.
LongFile = Annotated[Path | None, typer.Option("--file", metavar="FILE", help=_FILE_HELP)]

#: Options of the verbs that boot a box.
Boot = Annotated[
    BootMode | None,
    typer.Option("--boot", metavar="MODE", help="resnap, keep or maintain, in place of the spec's `boot`"),
]
Once = Annotated[bool, typer.Option("--once", help="With --boot: for one boot alone; later ones have the spec's mode")]


def choice(boot: BootMode | None, once: bool) -> Choice:
    """The mode that is asked for. Raises UsageError for --once alone."""
    from kimbox.machine.bootmode import Choice

    if once and boot is None:
        raise UsageError("--once says for how long, and --boot is missing", hint="write --boot MODE --once")
    return Choice(boot, once)


def project(name: str | None, file: Path | None, *, frozen: bool = False, offline: bool = False) -> Project:
    """The project that is meant: by the name of a box or a machine, by `file`, or the spec of this folder.

    The name of a machine means the spec it was made from. Any other name means this folder's spec if that has it, or
    the shipped box. Raises StateError, with what there is, if it is none of them, and for a machine that is not its
    box's own.
    """
    from kimbox import paths
    from kimbox.project.project import Project
    from kimbox.spec.load import find_box, load_box

    path, shipped = _spec_path(name, file), None
    if path is None:
        path = find_box(name, Path(), file)
        shipped = path.stem if path.parent.resolve() == paths.boxes_dir().resolve() else None
    return Project(load_box(path), shipped, frozen=frozen, offline=offline)


def _spec_path(name: str | None, file: Path | None) -> Path | None:
    """The spec of the machine or the folder that has this name; None where `find_box` is to find the spec."""
    from kimbox import paths
    from kimbox.actions.observe import refuse_purpose
    from kimbox.machine.folder import Machine

    if name is None or file is not None or _is_path(name):
        if name is not None and file is not None:
            raise UsageError(f"{name} and --file both say which box is meant", hint="give one of them")
        return None
    machine = Machine(_checked(name))
    if machine.exists:
        record = machine.record()
        source = Path(record.source)
        if record.shipped is None and not source.exists():
            hint = f"put it back; `kimbox destroy {name}` works without it"
            raise StateError(f"the spec of the box {name}, {source}, is gone", hint=hint)
        refuse_purpose(record)
        return source if record.shipped is None else None
    if _name_here() == name:
        return Path(paths.SPEC_NAME)
    _check_shipped(name)
    return None


def machine(name: str | None, file: Path | None) -> Machine:
    """The machine that is meant; it need not exist. Its spec is read only where no name is given.

    Raises StateError if another spec owns the machine of the name that a spec has; a machine that is named outright is
    not checked.
    """
    from kimbox.machine.folder import Machine, machine_of

    if name is not None and file is None and not _is_path(name):
        return Machine(_checked(name))
    from kimbox.actions.observe import check_owner

    meant = project(name, file)
    found = machine_of(meant.name)
    check_owner(found, meant)
    return found


def split(words: list[str], after: list[str] | None) -> tuple[str | None, list[str]]:
    """The box's name, if any, and what follows `--`, from the words that the parser gives: without the `--` itself.

    Where there is no `--` (`after` is None), all but the first word follow.
    """
    if after is None:
        return (words[0] if words else None), words[1:]
    before = words[: len(words) - len(after)]
    if len(before) > 1:
        raise UsageError(f"one box is meant, and there are {len(before)} names: {' '.join(before)}")
    return (before[0] if before else None), after


def _name_here() -> str | None:
    """The name that the spec of this folder gives, faulty or not; None if there is no spec or it has no name."""
    from kimbox import paths
    from kimbox.spec.nodes import Problems
    from kimbox.spec.parse import Budget, read_tree

    path = Path(paths.SPEC_NAME)
    tree = read_tree(path, Problems(), Budget()) if path.exists() else None
    node = tree.get("name") if tree else None
    return str(node.value) if node else None


def _check_shipped(name: str) -> None:
    """Raises StateError, with a name that may be meant, if no shipped box has this one."""
    from kimbox import paths
    from kimbox.machine.folder import machines
    from kimbox.spec.schema import guess

    shipped = {path.stem for path in paths.boxes_dir().glob("*.yaml")}
    if name not in shipped:
        known = sorted(shipped | {machine.name for machine in machines()})
        hint = f"{guess(name, known)}; `kimbox init --name {name}` writes a spec of that name"
        raise StateError(f"there is no box {name}", hint=hint)


def _is_path(name: str) -> bool:
    """Whether a name is that of a file, as in `find_box`."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def _checked(name: str) -> str:
    """A name as a spec may have it. Raises UsageError for any other: names become folders."""
    from kimbox.spec.nodes import Fault
    from kimbox.spec.rules import box_name

    try:
        return box_name(name)
    except Fault as fault:
        raise UsageError(fault.message, hint=fault.hint) from None
