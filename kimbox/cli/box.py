"""kimbox box: boxes made elsewhere, by name."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kimbox.cli import completers
from kimbox.cli.output import printable, report, table
from kimbox.errors import UsageError


class Action(StrEnum):
    """What is done to the boxes of this machine."""

    ADD = "add"
    LIST = "list"
    REMOVE = "remove"
    PRUNE = "prune"


def box(
    action: Annotated[Action, typer.Argument(metavar="add|list|remove|prune")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME [FILE|URL|CATALOG]]", autocompletion=completers.box_words)
    ] = None,
    digest: Annotated[str | None, typer.Option("--digest", metavar="sha256:HEX", help="What the file must be.")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="KEY", help="An ssh public key, or a file of some, that must have signed it."),
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", metavar="VERSION", help="Of a catalog; default: the newest.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With add: replace a box of that name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With prune: only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With prune: do not ask.")] = False,
) -> None:
    """Add boxes made elsewhere: Vagrant's .box files for libvirt or VirtualBox, qcow2 and raw disks. A spec then says
    `image: {box: NAME}`.

    add checks the digest, the checksums of a box of kimbox's, and with --key its signature; archives that reach out of
    themselves, are cut off or unpack without end are refused. A VMDK is converted. A box's own Vagrantfile is never
    run. From a Vagrant catalog (a path or URL that ends in .json) comes the box of one version, which must have the
    checksum that stands there. list shows the boxes; remove takes names, and the disks that nothing else needs; prune
    removes every box that no machine was made from.

    \b
    Examples:
      kimbox box add openkim/dev ./openkim-dev-libvirt.box --key release.pub
      kimbox box add trixie https://example.org/trixie.box --digest sha256:9f86d0...
      kimbox box add study https://example.org/boxes/study.metadata.json --version 2026.1
      kimbox box list --json
      kimbox box remove trixie
      kimbox box prune --dry-run
    """
    names = [word.strip() for word in words or []]
    if action is not Action.ADD and (digest or key or force or version):
        raise UsageError("--digest, --key, --version and --force belong to `kimbox box add`")
    if action is not Action.PRUNE and (dry_run or yes):
        raise UsageError("--dry-run and --yes belong to `kimbox box prune`")
    if action is Action.ADD:
        _add(names, digest, key or [], version, force=force)
    elif action is Action.REMOVE:
        _remove(names)
    elif names:
        raise UsageError(f"`kimbox box {action}` takes no names")
    elif action is Action.LIST:
        _list()
    else:
        _prune(dry_run=dry_run, yes=yes)


def _add(words: list[str], digest: str | None, keys: list[str], version: str | None, *, force: bool) -> None:
    from kimbox.actions import boxes
    from kimbox.image.sources import boxcatalog
    from kimbox.spec import rules, signing
    from kimbox.spec.nodes import Fault

    if len(words) != 2:
        raise UsageError("a name and a file or URL are needed", hint="kimbox box add NAME FILE|URL|CATALOG")
    if version and not boxcatalog.is_catalog(words[1]):
        raise UsageError("--version is of a catalog, whose name ends in .json")
    try:
        name = rules.vagrant_box(words[0])
        expected = rules.digest(digest) if digest else None
        public = tuple(k for text in keys for k in _keys(text))
        if any(signing.is_gpg(key) for key in public):
            raise Fault("boxes are signed with keys of ssh", "name an ssh public key")
    except Fault as fault:
        raise UsageError(fault.message, hint=fault.hint) from None
    added = boxes.add(name, words[1], digest=expected, keys=public, force=force, version=version)
    signed = ", signed by one of the keys" if public else ""
    report("box", {"added": added.as_json()}, f"added {added.name} ({added.digest}{signed})")


def _keys(text: str) -> tuple[str, ...]:
    """The keys of one --key: the key itself, or all keys of a file."""
    from kimbox.spec import signing

    file = Path(text).absolute()
    if file.is_file():
        return signing.keys(file.name, file.parent, file.parent)
    return signing.keys(text, Path.cwd(), Path.cwd())


def _list() -> None:
    from kimbox.image.store import names

    found = list(names.every())
    rows = [["NAME", "VERSION", "FOR", "DIGEST", "FROM"]]
    rows += [[b.name, b.version or "-", b.provider or "any", b.digest[:19], printable(b.location)] for b in found]
    report("box", {"boxes": [b.as_json() for b in found]}, table(rows) if found else "there are no added boxes")


def _remove(names: list[str]) -> None:
    from kimbox.actions import boxes
    from kimbox.spec import rules
    from kimbox.spec.nodes import Fault

    try:
        checked = [rules.vagrant_box(name) for name in names]
    except Fault as fault:
        raise UsageError(fault.message, hint=fault.hint) from None
    if not checked:
        raise UsageError("which box?", hint="`kimbox box list` shows those there are")
    removed = boxes.remove(checked)
    result = [{"name": box.name, "freed_bytes": box.freed_bytes} for box in removed]
    lines = [f"removed {box.name} ({box.freed_bytes / 1e6:.0f} MB)" for box in removed]
    report("box", {"removed": result}, "\n".join(lines))


def _prune(*, dry_run: bool, yes: bool) -> None:
    from kimbox.actions import boxes

    names = [box.name for box in boxes.unused()]
    is_confirmed = bool(names) and not dry_run
    if is_confirmed and not yes:
        if not sys.stdin.isatty():
            raise UsageError("prune asks before it removes something, and there is no terminal", hint="add -y")
        typer.echo("\n".join(names), err=True)
        is_confirmed = typer.confirm("Remove these boxes?", err=True)
    if is_confirmed:
        _remove(names)
    else:
        report("box", {"unused": names}, "\n".join(names) or "there is nothing to remove")
