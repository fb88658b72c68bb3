"""Finds the box of a verb: by name, by the spec of this folder, or by -f FILE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from kimbox.cli import completers
from kimbox.errors import StateError, UsageError
from kimbox.settings import settings as app_settings
from kimbox.spec.model import BootMode

if TYPE_CHECKING:
    from kimbox.actions.up import UpRequest
    from kimbox.machine.bootmode import Choice
    from kimbox.machine.folder import Machine
    from kimbox.project.project import Project
    from kimbox.spec.members import Member
    from kimbox.spec.model import Box

_FILE_HELP = "Spec of the box, in place of ./kimbox.yaml."

#: The argument and the option that most verbs have.
Name = Annotated[
    str | None,
    typer.Argument(
        metavar="[BOX]",
        help="Name of the box. Default: the spec of this folder, or of the nearest one above.",
        autocompletion=completers.boxes,
    ),
]
File = Annotated[Path | None, typer.Option("--file", "-f", metavar="FILE", help=_FILE_HELP)]
#: The same option for a verb in which -f is another option.
LongFile = Annotated[Path | None, typer.Option("--file", metavar="FILE", help=_FILE_HELP)]

#: Options of the verbs that boot a box.
Boot = Annotated[
    BootMode | None,
    typer.Option("--boot", metavar="MODE", help="Boot mode: resnap, keep or maintain. Default: `boot` of the spec."),
]
Once = Annotated[
    bool, typer.Option("--once", help="With --boot: use the mode for one boot. Later boots use the mode of the spec.")
]
FromScratch = Annotated[
    bool,
    typer.Option(
        "--from-scratch",
        help="With the boot mode resnap: put back no kept root, and provision an empty snapshot, in this boot.",
    ),
]


Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value of the spec for this box, such as memory=4GiB. Later verbs use it, too. May be repeated.",
    ),
]
Unset = Annotated[
    list[str] | None,
    typer.Option("--unset", metavar="KEY", help="End an earlier --set of this key. May be repeated."),
]


def choice(boot: BootMode | None, once: bool, *, from_scratch: bool = False) -> Choice:
    """Returns the boot mode of the options. Raises UsageError for --once without --boot."""
    from kimbox.machine.bootmode import Choice

    if once and boot is None:
        raise UsageError(
            "--once requires --boot", code="usage", hint="write --boot MODE --once", fields={"option": "--once"}
        )
    return Choice(boot, once, from_scratch)


def project(
    name: str | None,
    file: Path | None,
    *,
    frozen: bool = False,
    offline: bool = False,
    clones: bool = False,
    settings: Settings | None = None,
) -> Project:
    """Returns the project of a box: by the name of a box or a machine, by `file`, or by the spec of this folder.

    The name of a machine stands for the spec that it was made from. Any other name stands for the spec of this folder,
    if that has the name, or for the shipped box. `clones`: the machine may be a clone. Raises StateError, with a
    similar name, if there is none of them, and if the machine has another purpose than to be its box.

    `settings`: the verb works on the machine, so the spec has the settings of its record, and new ones. None: the spec
    is used as it is.
    """
    from kimbox import paths
    from kimbox.project.project import Project
    from kimbox.spec.load import find_box, load_box

    path, shipped = _spec_path(name, file, clones=clones), None
    if path is None:
        path = find_box(_box_of(name) if clones else name, Path(), file)
        shipped = path.stem if path.parent.resolve() == paths.boxes_dir().resolve() else None
    from kimbox.project.siblings import with_gateways

    member = _member_of(path, name)
    box = load_box(path, member=member) if settings is None else _with_settings(path, name, settings, member)
    return Project(with_gateways(box), shipped, frozen=frozen, offline=offline)


def saved_or_box(name: str | None, file: Path | None, *, offline: bool = False) -> Project:
    """Returns the project of a saved box, if `name` is the URL of a store, else that of `project`."""
    from kimbox.transfer.stores.opening import is_url

    if name is None or not is_url(name):
        return project(name, file, offline=offline)
    if file is not None:
        raise UsageError("a save has its spec: -f is for a box of this host", code="usage")
    from kimbox.actions.saves import shared
    from kimbox.actions.saves.restore import RestoreRequest

    return shared.project(RestoreRequest(name, offline=offline))


@attrs.frozen
class Settings:
    """The options --set and --unset of a verb that works on a machine."""

    new: Sequence[str] = ()
    removed: Sequence[str] = ()


#: The options of a verb without --set: the machine has the settings of its record.
RECORDED = Settings()


def checked_settings(texts: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the values of --set, each key once. Raises UsageError for an invalid one."""
    return _combined((), Settings(texts or ()))


def _combined(recorded: Sequence[str], settings: Settings) -> tuple[str, ...]:
    from kimbox.spec import settings as rules
    from kimbox.spec.nodes import Fault

    try:
        return rules.combine(recorded, settings.new, settings.removed)
    except Fault as fault:
        raise UsageError(fault.message, code="usage", hint=fault.hint, fields={"option": "--set"}) from None


def _member_of(path: Path, name: str | None) -> str | None:
    """Returns the name of the box in a spec with several; None if the spec has one.

    Raises UsageError if no name is given, StateError if the spec has no box of that name.
    """
    from kimbox.spec.members import read_members
    from kimbox.spec.schema import guess

    names = [member.name for member in read_members(path)]
    if not names:
        return None
    if name is None or _is_path(name):
        raise UsageError(
            f"{path} has several boxes, and the command takes one: {', '.join(names)}",
            code="several-boxes",
            hint=f"for example `kimbox {app_settings.verb or 'status'} {names[0]}`",
            fields={"path": str(path), "names": " ".join(names)},
        )
    member = _box_of(name)
    if member not in names:
        raise StateError(
            f"{path} has no box {member}",
            code="box-not-found",
            hint=guess(str(member), names),
            fields={"name": str(member), "path": str(path)},
        )
    return member


def _may_be_in(file: Path, name: str) -> bool:
    """Whether the box of a spec has this name, or the spec has several, in which `_member_of` looks for it."""
    from kimbox.spec.load import load_box
    from kimbox.spec.members import read_members

    return bool(read_members(file)) or load_box(file).name == name


def several(name: str | None, file: Path | None) -> tuple[Path, tuple[Member, ...]] | None:
    """Returns the spec of a verb and its boxes, if no box is named and the spec has several; else None."""
    if name is not None and not _is_path(name):
        return None
    from kimbox.spec.load import find_box
    from kimbox.spec.members import read_members

    path = find_box(name, Path(), file)
    members = read_members(path)
    return (path, members) if members else None


def _with_settings(path: Path, name: str | None, settings: Settings, member: str | None) -> Box:
    """Returns the box of a spec with the settings in the record of its machine, and those of the command line.

    The machine has the `name` of the command line, if that is one, else the name of the spec. Raises UsageError for an
    invalid setting, SpecError if the spec is invalid with it.
    """
    from kimbox.machine.folder import Machine
    from kimbox.spec.load import load_box

    box = None if name is not None and not _is_path(name) else load_box(path, member=member)
    machine = Machine(box.name if box else str(name))
    combined = _combined(machine.record().settings if machine.exists else (), settings)
    return box if box and not combined else load_box(path, combined, member)


def clone(name: str | None, file: Path | None) -> str | None:
    """Returns the name if it is that of a clone, else None."""
    from kimbox.machine.folder import Machine
    from kimbox.machine.record import Purpose

    if name is None or file is not None or _is_path(name):
        return None
    machine = Machine(check_name(name))
    return name if machine.exists and machine.record().purpose is Purpose.CLONE else None


def for_clone(request: UpRequest, name: str | None, file: Path | None) -> UpRequest:
    """Returns the request, for the clone of that name if it is one."""
    import attrs

    from kimbox.machine.record import Purpose

    named = clone(name, file)
    return attrs.evolve(request, clone=named, purpose=Purpose.CLONE) if named else request


def _box_of(name: str | None) -> str | None:
    """Returns the name of the box of a clone; any other name as it is."""
    from kimbox.machine.folder import Machine

    named = clone(name, None)
    return Machine(named).record().box if named else name


def _spec_path(name: str | None, file: Path | None, *, clones: bool) -> Path | None:
    """Returns the spec of the machine or of the folder that has this name; None if `find_box` must find the spec."""
    from kimbox.actions.observe import refuse_purpose
    from kimbox.machine.folder import Machine
    from kimbox.machine.record import Purpose
    from kimbox.spec.load import find_box

    if name is None or file is not None or _is_path(name):
        if name is not None and file is not None and (_is_path(name) or not _may_be_in(file, name)):
            raise UsageError(f"{name} is not the name of the box in {file}", code="usage", hint="pass one of them")
        return None
    machine = Machine(check_name(name))
    if machine.exists:
        record = machine.record()
        source = Path(record.source)
        if record.shipped is None and not source.exists():
            if name in _names_of_spec():  # it may have been moved here; `check_owner` compares it
                return find_box(None, Path(), None)
            raise StateError(
                f"the spec of the box {name} was not found: {source}",
                code="spec-not-found",
                hint=f"restore the file, or change to the folder to which you moved it; `kimbox destroy {name}` works "
                "without it",
                fields={"name": name, "path": str(source)},
            )
        if not (clones and record.purpose is Purpose.CLONE):
            refuse_purpose(record)
        return source if record.shipped is None else None
    if name in _names_of_spec():
        return find_box(None, Path(), None)
    _check_shipped(name)
    return None


def machine(name: str | None, file: Path | None) -> Machine:
    """Returns the machine of a box, whether it exists or not. The spec is read only if no name is given.

    Raises StateError if the machine was made from another spec with the same name (a machine that is given by its name
    is not checked), and if there is no machine, spec or shipped box of that name.
    """
    from kimbox.machine.folder import Machine, machine_of

    if name is not None and file is None and not _is_path(name):
        named = Machine(check_name(name))
        if not (named.folder.exists() or named.unfinished.exists()) and name not in _names_of_spec():
            _check_shipped(name)
        return named
    from kimbox.actions.observe import check_owner

    box_project = project(name, file)
    box_machine = machine_of(box_project.name)
    check_owner(box_machine, box_project)
    return box_machine


def split(words: list[str], after: list[str] | None) -> tuple[str | None, list[str]]:
    """Returns the name of the box, if any, and the words after `--`.

    `words` are those of the parser, which removes the `--`. `after` are the words after `--`. If there is no `--`,
    `after` is None, and every word after the first is returned. Raises UsageError for two names.
    """
    if after is None:
        return (words[0] if words else None), words[1:]
    before = words[: len(words) - len(after)]
    if len(before) > 1:
        raise UsageError(
            f"{len(before)} names of boxes, and the verb takes one: {' '.join(before)}",
            code="usage",
            fields={"names": " ".join(before)},
        )
    return (before[0] if before else None), after


def _names_of_spec() -> set[str]:
    """Returns the name in the spec of this folder, or those of its boxes, valid or not. Empty if it has none."""
    from kimbox import paths
    from kimbox.spec.nodes import Problems
    from kimbox.spec.parse import Budget, read_tree

    path = paths.spec_file(Path())
    tree = read_tree(path, Problems(), Budget()) if path is not None and path.exists() else None
    node, boxes = (tree.get("name"), tree.get("boxes")) if tree else (None, None)
    return {*([str(node.value)] if node else []), *(boxes.mapping if boxes else [])}


def _check_shipped(name: str) -> None:
    """Raises StateError, with a similar name, if no shipped box has this name."""
    from kimbox import paths
    from kimbox.machine.folder import machines
    from kimbox.spec.schema import guess

    shipped = {path.stem for path in paths.boxes_dir().glob("*.yaml")}
    if name not in shipped:
        known = sorted(shipped | {machine.name for machine in machines()})
        similar = guess(name, known) or ""
        similar += "" if similar.endswith("?") else "."
        hint = f"{similar} `kimbox list` shows the boxes, `kimbox init --name {name}` writes a new spec"
        raise StateError(f"box {name} not found", code="box-not-found", hint=hint, fields={"name": name})


def is_box(word: str) -> bool:
    """Whether a word names a box: by the path of a spec, the machine of a box, the spec here, or a shipped box."""
    from kimbox import paths
    from kimbox.machine.folder import Machine
    from kimbox.machine.record import Purpose

    if _is_path(word):
        return True
    machine = Machine(check_name(word))
    if machine.exists:
        return machine.record().purpose is Purpose.BOX
    return word in _names_of_spec() or (paths.boxes_dir() / f"{word}.yaml").exists()


def _is_path(name: str) -> bool:
    """Whether a text is the path of a file and not the name of a box, as in `find_box`."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def check_name(name: str) -> str:
    """Returns a name that a spec may have. Raises UsageError for any other name, because names become folders."""
    from kimbox.spec.nodes import Fault
    from kimbox.spec.rules import box_name

    try:
        return box_name(name)
    except Fault as fault:
        raise UsageError(fault.message, code=fault.code, hint=fault.hint) from None
