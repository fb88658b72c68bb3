"""kimbox start: start a box that was stopped, here or from where it was saved."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from kimbox.cli import completers, target
from kimbox.cli.author_keys import public_keys
from kimbox.cli.create import Disk, Keys
from kimbox.cli.output import settings
from kimbox.errors import StateError, UsageError

Word = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME|URL]",
        help="Name of a box on this host, or the store of a save. Default: the spec of this folder.",
        autocompletion=completers.boxes,
    ),
]
NewName = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="With URL: name of the new box. Default: that of the saved one."),
]


def start(
    word: Word = None, file: target.File = None, name: NewName = None, key: Keys = None, disk: Disk = None
) -> None:
    """Start a box that was stopped: one of this host, or one that was saved in a store.

    With a URL it is `kimbox create --from URL` and `kimbox up`: the box comes as it was saved, with an identity of its
    own. A box that this host does not have is refused: `kimbox up` makes a new one from a spec.

    --disk makes the disk of the box larger, and stays with it, as `kimbox up --set disk.size=SIZE`.

    \b
    Examples:
      kimbox start study
      kimbox start study --disk 40GiB
      kimbox start sftp://example.org/saves/study
      kimbox start /srv/saves/study --name study-2
    """
    from kimbox.actions.up import UpRequest
    from kimbox.actions.watch import BOOT_TIMEOUT_S
    from kimbox.cli.up import bring_up
    from kimbox.transfer.stores.opening import is_url

    sizes = target.checked_settings([f"disk.size={disk}"] if disk is not None else [])
    if word is not None and is_url(word):
        from kimbox.actions.saves.restore import RestoreRequest, restore

        if file is not None:
            raise UsageError("a save has its spec: -f is for a box of this host", code="usage")
        named = target.check_name(name) if name is not None else None
        word = restore(RestoreRequest(word, named, keys=public_keys(key or []), settings=sizes)).machine.name
    elif name is not None or key:
        raise UsageError("--name and --key are for the URL of a save", code="usage")
    else:
        from kimbox.actions.saves.candidates import default_store, has_save

        machine = target.machine(word, file)
        if not machine.exists:
            saves = default_store(machine)
            saved = f"`kimbox start {shlex.quote(str(saves))}` creates it from its last save on this host; "
            raise StateError(
                f"box {machine.name} not found on this host",
                code="box-not-found",
                hint=f"{saved if has_save(machine) else ''}`kimbox create {machine.name} --from BOX` creates it from a "
                f"box, and --from URL from a save; `kimbox up {machine.name}` creates it from its spec and starts it",
                fields={"name": machine.name},
            )
    project = target.project(word, file, clones=True, settings=target.Settings(sizes))
    request = UpRequest(project, timeout_s=settings.timeout_s or BOOT_TIMEOUT_S)
    bring_up("start", target.for_clone(request, word, file))
