"""kimbox user: accounts of people in a box that runs, besides those of its spec, and on each new root of it."""

from __future__ import annotations

import shlex

import attrs

from kimbox.actions.observe import reach
from kimbox.errors import GuestError, UsageError
from kimbox.guest.ssh import Guest
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.render.users import user_file
from kimbox.spec.model import User
from kimbox.spec.nodes import Fault
from kimbox.spec.users import group_name, user_name

#: The program of the guest.
PROGRAM = "/usr/lib/kimbox/users"

#: Timeout of it, in seconds: it waits until a provisioning has ended.
TIMEOUT_S = 660.0

#: Maximum number of accounts that are read from a guest.
MAX_LISTED = 1000


@attrs.frozen
class Account:
    """An account of a person in a box. `is_added`: `kimbox user add` made it, and it is not of the spec."""

    name: str
    sudo: bool
    groups: tuple[str, ...]
    is_added: bool


def add(machine: Machine, user: User) -> None:
    """Adds an account. Raises UsageError for a name that no account of a person can have, GuestError if it fails."""
    _check(user)
    with log.step(f"adding the account {user.name} to {machine.name}"):
        _call(machine, "add", user.name, stdin=user_file(user))


def remove(machine: Machine, name: str) -> None:
    """Removes an account that was added. Its files stay in the box. Raises UsageError, and GuestError if it fails."""
    _check(User(name))
    with log.step(f"removing the account {name} from {machine.name}"):
        _call(machine, "remove", name)


def accounts(machine: Machine) -> list[Account]:
    """Returns the accounts of people in a box. Raises GuestError (`unexpected-output`) for an invalid answer."""
    found = []
    for line in _call(machine, "list").splitlines()[:MAX_LISTED]:
        words = line.split(" ")
        try:
            name, sudo, groups, origin = words
            listed = () if groups == "-" else tuple(map(group_name, groups.split(",")))
            found.append(Account(user_name(name), sudo == "yes", listed, origin == "added"))
        except (ValueError, Fault):
            message = f"{machine.name} did not answer with a list of accounts"
            raise GuestError(message, code="unexpected-output", fields={"name": machine.name}) from None
    return found


def _check(user: User) -> None:
    try:
        user_name(user.name)
        for group in user.groups:
            group_name(group)
    except Fault as fault:
        raise UsageError(fault.message, code=fault.code, hint=fault.hint, fields={"user": user.name}) from None


def _call(machine: Machine, *words: str, stdin: bytes | None = None) -> str:
    """Runs the program of the guest. Returns its stdout. Raises GuestError (`command-failed`) with its message."""
    with Guest(reach(machine, "exec")) as guest:
        answer = guest.run(shlex.join(["sudo", "-n", PROGRAM, *words]), timeout_s=TIMEOUT_S, stdin=stdin)
    if answer.code != 0:
        reason = (answer.stderr.strip().splitlines() or [f"exit status {answer.code}"])[-1][:500]
        is_old = answer.code == 127 or "not found" in reason
        raise GuestError(
            f"cannot {words[0]} the account in {machine.name}: {reason}",
            code="box-outdated" if is_old else "command-failed",
            hint="its image was made by an older kimbox: `kimbox destroy` and `kimbox up` make a new one"
            if is_old
            else None,
            fields={"name": machine.name, "user": words[-1]},
        )
    return answer.stdout
