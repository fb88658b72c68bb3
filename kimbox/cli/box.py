"""kimbox box: add, list and remove boxes that were made elsewhere."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from kimbox.cli import completers
from kimbox.cli.author_keys import public_keys
from kimbox.cli.output import printable, report, table
from kimbox.errors import UsageError


class Action(StrEnum):
    """What `kimbox box` does."""

    ADD = "add"
    LIST = "list"
    REMOVE = "remove"
    PRUNE = "prune"


#: Arguments and options of the verb.
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME [FILE|URL|CATALOG]]",
        help="Name of the added box and, with add, the file, URL or catalog. remove takes several names.",
        autocompletion=completers.box_words,
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="With add: an ssh public key, or a file of public keys. One of them must have signed the box.",
    ),
]
Digest = Annotated[
    str | None, typer.Option("--digest", metavar="sha256:HEX", help="With add: the digest that the file must have.")
]
Version = Annotated[
    str | None,
    typer.Option("--version", metavar="VERSION", help="With add: the version in a catalog. Default: the newest."),
]
Unverified = Annotated[
    bool, typer.Option("--unverified", help="With add: accept a box from a catalog that has no checksum for it.")
]
AllowOlder = Annotated[bool, typer.Option("--allow-older", help="With add: replace a box by an older version of it.")]


def box(
    action: Annotated[Action, typer.Argument(metavar="add|list|remove|prune", help="What to do with added boxes.")],
    words: Words = None,
    digest: Digest = None,
    key: Keys = None,
    version: Version = None,
    unverified: Unverified = False,
    allow_older: AllowOlder = False,
    force: Annotated[bool, typer.Option("--force", help="With add: replace a box of that name.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With prune: show the boxes that would be removed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With prune: remove without a confirmation.")] = False,
) -> None:
    """Add, list and remove boxes that were made elsewhere: Vagrant's .box files for libvirt or VirtualBox, OVA, qcow2
    and raw disks. A spec uses an added box with `image: {box: NAME}`.

    add checks the digest, the checksums if kimbox made the box, and with --key the signature. The signature is in a
    box, or beside another file: NAME.SHA256SUMS or SHA256SUMS, and its .sig. add rejects an archive that is truncated,
    that has a path outside of its folder, or that exceeds a limit on its unpacked size, and a disk that is shorter than
    its header says. It converts a VMDK, and unpacks a file that is compressed with gzip, bzip2, xz or zstd. kimbox
    never runs the Vagrantfile of a box.

    From a Vagrant catalog (a path or URL that ends in .json), add takes the box of one version for amd64. The box must
    have the checksum of the catalog. If the catalog has none, add requires --digest, --key or --unverified. With --key,
    name, version and architecture that the author signed must be those of the catalog. An older version than that of
    the box that --force replaces requires --allow-older. A box for another architecture is rejected.

    Keep the user name and password of a server in ~/.netrc. In the URL of add they also work, but other users of this
    host can read the command line. kimbox never stores or prints them.

    list shows the added boxes, and unfinished downloads. remove takes names, and also removes disks that nothing else
    uses. prune removes every box that no machine was made from.

    \b
    Examples:
      kimbox box add openkim/dev ./openkim-dev-libvirt.box --key release.pub
      kimbox box add trixie https://example.org/trixie.box --digest sha256:9f86d0...
      kimbox box add study ./study.qcow2 --key release.pub
      kimbox box add study https://example.org/boxes/study.metadata.json --version 2026.1
      kimbox box list --json
      kimbox box remove trixie
      kimbox box prune --dry-run
    """
    names = [word.strip() for word in words or []]
    if action is not Action.ADD and (digest or key or force or version or unverified or allow_older):
        options = "--digest, --key, --version, --unverified, --allow-older and --force"
        raise UsageError(f"{options} require `kimbox box add`", code="usage")
    if action is not Action.PRUNE and (dry_run or yes):
        raise UsageError("--dry-run and --yes require `kimbox box prune`", code="usage")
    if action is Action.ADD:
        _add(names, digest, key or [], version, force=force, unverified=unverified, allow_older=allow_older)
    elif action is Action.REMOVE:
        _remove(names)
    elif names:
        raise UsageError(f"`kimbox box {action}` takes no names", code="usage")
    elif action is Action.LIST:
        _list()
    else:
        _prune(dry_run=dry_run, yes=yes)


def _add(
    words: list[str],
    digest: str | None,
    keys: list[str],
    version: str | None,
    *,
    force: bool,
    unverified: bool,
    allow_older: bool,
) -> None:
    from kimbox.actions import boxes
    from kimbox.image.sources import boxcatalog
    from kimbox.spec import rules
    from kimbox.spec.nodes import Fault

    if len(words) != 2:
        raise UsageError(
            "`kimbox box add` requires a name and a file or URL",
            code="usage",
            hint="kimbox box add NAME FILE|URL|CATALOG",
        )
    if version and not boxcatalog.is_catalog(words[1]):
        raise UsageError(
            "--version requires a catalog, whose name ends in .json", code="usage", fields={"option": "--version"}
        )
    try:
        name = rules.vagrant_box(words[0])
        expected = rules.digest(digest) if digest else None
    except Fault as fault:
        raise UsageError(fault.message, code=fault.code, hint=fault.hint) from None
    author_keys = public_keys(keys)
    added = boxes.add(
        name, words[1],
        digest=expected, keys=author_keys, force=force, version=version, is_unverified=unverified,
        is_older_allowed=allow_older,
    )  # fmt: skip
    signed = ", signed by one of the keys" if author_keys else ""
    report("box", {"added": added.as_json()}, f"added {added.name} ({added.digest}{signed})")


def _list() -> None:
    from kimbox.actions import prune
    from kimbox.errors import KimboxError
    from kimbox.image.store import names
    from kimbox.log import log

    def warn(error: KimboxError) -> None:
        log.warn(str(error) + (f" ({error.hint})" if error.hint else ""))

    added, downloads = list(names.every(warn)), prune.unused_downloads()
    rows = [["NAME", "VERSION", "FOR", "DIGEST", "FROM"]]
    rows += [[b.name, b.version or "-", b.provider or "any", b.digest[:19], printable(b.location)] for b in added]
    lines = [table(rows) if added else "there are no added boxes"]
    lines += [f"{printable(item.description)}: {item.size_bytes / 1e6:.0f} MB" for item in downloads]
    lines += ["the next attempt continues these downloads; `kimbox prune` removes them"] * bool(downloads)
    result = [{"path": str(item.path), "size_bytes": item.size_bytes} for item in downloads]
    report("box", {"boxes": [b.as_json() for b in added], "downloads": result}, "\n".join(lines))


def _remove(names: list[str]) -> None:
    from kimbox.actions import boxes
    from kimbox.spec import rules
    from kimbox.spec.nodes import Fault

    try:
        checked = [rules.vagrant_box(name) for name in names]
    except Fault as fault:
        raise UsageError(fault.message, code=fault.code, hint=fault.hint) from None
    if not checked:
        raise UsageError(
            "`kimbox box remove` requires a name", code="usage", hint="`kimbox box list` shows the added boxes"
        )
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
            raise UsageError(
                "prune needs a confirmation, and there is no terminal to prompt on", code="no-terminal", hint="add -y"
            )
        typer.echo("\n".join(names), err=True)
        is_confirmed = typer.confirm("Remove these boxes?", err=True)
    if is_confirmed:
        _remove(names)
    else:
        report("box", {"unused": names}, "\n".join(names) or "there is nothing to remove")
