"""kimbox create: make a box of a save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli import target
from kimbox.cli.author_keys import public_keys
from kimbox.cli.output import report

Source = Annotated[
    str, typer.Option("--from", metavar="URL", help="The store of the save: a folder or a URL, as for kimbox save.")
]
Name = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Name of the new box. Default: that of the saved box.")
]
Number = Annotated[
    int | None,
    typer.Option("--save", metavar="NUMBER", min=1, max=999_999, help="Number of the save. Default: the newest."),
]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="An ssh public key, or a file of public keys. One of them must have signed the save.",
    ),
]
Spec = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="Spec of the box, in place of the one in the save."),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Contact no other server: the image must be here, or in the save.")
]


def create(
    source: Source,
    name: Name = None,
    file: Spec = None,
    number: Number = None,
    key: Keys = None,
    offline: Offline = False,
    set_values: target.Set = None,
) -> None:
    """Make a box of a save. It is halted; `kimbox up NAME` starts it with the content that was saved.

    kimbox fetches only the chunks that the image of this host does not have, and verifies each of them. If it is
    interrupted, the same command continues. The image comes from the store of images of this host; if it is missing,
    it is built from the spec and the lock in the save, or taken from a save with `--fat`.

    The new box has an identity of its own: keys, machine-id, ssh host key, address and ports of the host. Its spec and
    lock are those of the save, and `kimbox destroy` removes them with it. Under another name than that of the saved
    box, kimbox chooses the ports of its forwards.

    Folders beside the spec that are its repositories are in the save. A spec that needs other files beside it, such as
    keys, needs them at each start: pass it with -f.

    A save is as trustworthy as its store: its spec names scripts and images. With --key, only a save that one of the
    keys has signed is used.

    --set changes values of the spec for this box, as for `kimbox up`: not its image and its disk, which are those of
    the save.

    The JSON has: name, box, url, number, saved_at, image, fetched_bytes and ssh_port.

    \b
    Examples:
      kimbox create --from /srv/saves/study && kimbox up study
      kimbox create study-2 --from file:///srv/saves/study --save 3
      kimbox create study --from /srv/saves/study --key ~/keys/author.pub
      kimbox create study-2 --from /srv/saves/study --set memory=8GiB
    """
    from kimbox.actions.saves.restore import RestoreRequest, restore
    from kimbox.files import size_words

    named = target.check_name(name) if name is not None else None
    settings = target.checked_settings(set_values)
    made = restore(RestoreRequest(source, named, number, public_keys(key or []), offline, file, settings))
    record, manifest = made.machine.record(), made.manifest
    result = {
        "name": record.name,
        "box": record.box,
        "url": made.url,
        "number": manifest.number,
        "saved_at": manifest.saved_at,
        "image": record.image,
        "fetched_bytes": made.fetched_bytes,
        "ssh_port": record.ssh_port,
    }
    fetched = size_words(made.fetched_bytes)
    text = f"{record.name} is made of save {manifest.number} ({manifest.saved_at}): {fetched} fetched"
    report("create", result, f"{text}\n`kimbox up {record.name}` starts it")
