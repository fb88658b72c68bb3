"""kimbox user: accounts of people in a box."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from kimbox.cli import target
from kimbox.cli.author_keys import public_keys
from kimbox.cli.output import report, table
from kimbox.errors import UsageError

if TYPE_CHECKING:
    from kimbox.actions.users import Account


class Act(StrEnum):
    """What `kimbox user` does."""

    ADD = "add"
    REMOVE = "remove"
    LIST = "list"


Action = Annotated[Act, typer.Argument(metavar="add|remove|list", help="What to do with accounts.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME] [BOX]",
        help="Name of the account (not for list), and name of the box. Default: the box of this folder.",
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="An ssh public key that logs in, or a file of them. Default: the key of kimbox for this box.",
    ),
]
Sudo = Annotated[bool, typer.Option("--sudo", help="The account may run everything with sudo.")]
Groups = Annotated[
    str | None, typer.Option("--groups", metavar="GROUP,...", help="Groups of the box, besides its own.")
]


def user(
    act: Action,
    words: Words = None,
    file: target.File = None,
    key: Keys = None,
    sudo: Sudo = False,
    groups: Groups = None,
) -> None:
    """Add, remove and list accounts of people in a box that runs.

    An account gets its keys, a home and, with --sudo, all rights. It is there on every new root of this box, too, until
    it is removed. `users:` in the spec makes accounts in every box of the spec. If an account that was added is added
    again, its keys, rights and groups are replaced.

    A removed account is gone with its keys and rights, and its programs are ended. Its files stay in /home of the box,
    and belong to root.

    The JSON has: name (of the box) and accounts: name, sudo, groups and is_added of each.

    \b
    Examples:
      kimbox user add ada --key ~/keys/ada.pub --sudo
      kimbox user add ada openkim-dev --groups dialout,video
      kimbox user remove ada
      kimbox user list
    """
    from kimbox.actions import users
    from kimbox.spec.model import User
    from kimbox.spec.nodes import Fault
    from kimbox.spec.users import ssh_keys

    given = words or []
    names = 0 if act is Act.LIST else 1
    if not names <= len(given) <= names + 1:
        raise UsageError(f"kimbox user {act} takes {'' if names == 0 else 'NAME and '}at most one box", code="usage")
    if act is not Act.ADD and (key or sudo or groups):
        raise UsageError("--key, --sudo and --groups are for `kimbox user add`", code="usage")
    machine = target.machine(given[names] if len(given) > names else None, file)
    if act is Act.ADD:
        try:
            keys = ssh_keys(public_keys(key or []))
        except Fault as fault:
            raise UsageError(fault.message, code=fault.code, hint=fault.hint) from None
        users.add(machine, User(given[0], keys, sudo, tuple((groups or "").split(",")) if groups else ()))
    elif act is Act.REMOVE:
        users.remove(machine, given[0])
    _report(machine.name, users.accounts(machine))


def _report(name: str, found: list[Account]) -> None:
    """Prints the accounts of a box."""
    import attrs

    rows = [["ACCOUNT", "SUDO", "GROUPS", "FROM"]]
    rows += [
        [one.name, "yes" if one.sudo else "no", ",".join(one.groups), "user add" if one.is_added else "spec"]
        for one in found
    ]
    text = table(rows) if found else f"{name} has no accounts of people"
    report("user", {"name": name, "accounts": [attrs.asdict(one) for one in found]}, text)
