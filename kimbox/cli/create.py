"""kimbox create: make a box of another box or of a save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli import target
from kimbox.cli.author_keys import public_keys
from kimbox.cli.output import report
from kimbox.errors import UsageError

Source = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="BOX|URL",
        help="A box, by its name, or the store of a save: a folder or a URL, as for kimbox save. "
        "Default: the box of that name.",
    ),
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
Cores = Annotated[
    int | None, typer.Option("--cores", metavar="N", min=1, max=256, help="Processors; default: `cpus` of the spec.")
]
Memory = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="Memory such as 4GiB, in place of `memory` of the spec.")
]
Disk = Annotated[
    str | None,
    typer.Option(
        "--disk",
        metavar="SIZE",
        help="Size of the disk, such as 40GiB. It grows at the next start, with its file systems.",
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        metavar="SIZE",
        help="Size of root, in place of `disk.volumes.root` of the spec: in an image of its own.",
    ),
]


def create(
    name: Name = None,
    source: Source = None,
    file: Spec = None,
    cores: Cores = None,
    memory: Memory = None,
    disk: Disk = None,
    image_size: ImageSize = None,
    number: Number = None,
    key: Keys = None,
    offline: Offline = False,
    set_values: target.Set = None,
) -> None:
    """Make a box of another box or of a save. It is halted; `kimbox start NAME` starts it.

    With --from BOX, or without --from, it is a new box of that spec, under the name NAME. Processors and memory of the
    command line stay with it. With --from URL, it has the content that was saved. A box that exists is refused. It has
    the lifetime of its spec, or 36 hours: then it is shut down and saved. See `kimbox extend`.

    From a save, kimbox fetches only the chunks that the image of this host does not have, and verifies each of them. If
    it is interrupted, the same command continues. The image comes from the store of images of this host; if it is
    missing, it is built from the spec and the lock in the save, or taken from a save with `--fat`.

    The new box has an identity of its own: keys, machine-id, ssh host key, address and ports of the host. Its spec and
    lock are those of the save, and `kimbox destroy` removes them with it. Under another name than that of the saved
    box, kimbox chooses the ports of its forwards.

    Folders beside the spec that are its repositories are in the save. A spec that needs other files beside it, such as
    keys, needs them at each start: pass it with -f. A save is as trustworthy as its store: its spec names scripts and
    images. With --key, only a save that one of the keys has signed is used.

    --set changes values of the spec for this box, as for `kimbox up`; --cores, --memory and --disk are short for
    `cpus`, `memory` and `disk.size`. Of the space that --disk adds, root, its snapshot and /persistent get a third
    each. With --image-size (`disk.volumes.root`), kimbox builds an image with such a root, and --disk is the size of
    that image. A box of a save has the image of the save, and at least its disk.

    The JSON has: name, box, image and ssh_port; from a save also url, number, saved_at and fetched_bytes.

    \b
    Examples:
      kimbox create study --from openkim-dev --cores 4 --memory 8GiB && kimbox start study
      kimbox create study --from minimal --disk 20GiB
      kimbox create --from /srv/saves/study && kimbox start study
      kimbox create study-2 --from file:///srv/saves/study --save 3
      kimbox create study --from /srv/saves/study --key ~/keys/author.pub
      kimbox create study-2 --from /srv/saves/study --set memory=8GiB
    """
    from kimbox.transfer.stores.opening import is_url

    named = target.check_name(name) if name is not None else None
    shape = {"cpus": cores, "memory": memory, "disk.size": disk, "disk.volumes.root": image_size}
    settings = _settings(shape, set_values)
    if source is not None and is_url(source):
        _of_save(source, named, file, number, public_keys(key or []), offline, settings)
        return
    if number is not None or key:
        raise UsageError("--save and --key are for the URL of a save", code="usage")
    _of_box(source, named, file, offline, settings)


def _settings(shape: dict[str, str | int | None], set_values: list[str] | None) -> tuple[str, ...]:
    """Returns the settings of the new machine: values of the options, by their key, and those of --set."""
    given = [f"{key}={value}" for key, value in shape.items() if value is not None]
    return target.checked_settings([*given, *(set_values or [])])


def _of_box(source: str | None, name: str | None, file: Path | None, offline: bool, settings: tuple[str, ...]) -> None:
    """Makes a box of another one, or of a spec, and prints the result."""
    from kimbox.actions.make import make

    project = target.project(source if source or file else name, file, offline=offline)
    machine = make(project, name or project.name, settings)
    record = machine.record()
    result = {"name": record.name, "box": record.box, "image": record.image, "ssh_port": record.ssh_port}
    report("create", result, f"{record.name} is made of the box {record.box}\n`kimbox start {record.name}` starts it")


def _of_save(
    url: str,
    name: str | None,
    file: Path | None,
    number: int | None,
    keys: tuple[str, ...],
    offline: bool,
    settings: tuple[str, ...],
) -> None:
    """Makes a box of a save, and prints the result."""
    from kimbox.actions.saves.restore import RestoreRequest, restore
    from kimbox.files import size_words

    made = restore(RestoreRequest(url, name, number, keys, offline, file, settings))
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
    report("create", result, f"{text}\n`kimbox start {record.name}` starts it")
