"""Builds the accounts of people of a spec."""

from __future__ import annotations

import re

from kimbox.spec import signing
from kimbox.spec.model import User
from kimbox.spec.nodes import Fault, Node, shown
from kimbox.spec.reader import Reader

#: Accounts that the image or a sealed box has, and that no spec can give to a person.
RESERVED = frozenset({
    "root", "vagrant", "operator", "nobody", "daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news",
    "uucp", "proxy", "www-data", "backup", "list", "irc", "sshd", "messagebus", "_apt",
})  # fmt: skip

#: Maximum number of accounts of a spec.
MAX_USERS = 100

#: As useradd(8) of Debian recommends. The guest checks the same (provisioners/provision, `users`).
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


def user_name(text: str) -> str:
    """The name of an account of a person."""
    if not _NAME.fullmatch(text):
        message = f"{shown(text)} cannot be the name of an account: use lower-case letters, digits, _ and -, at most 32"
        raise Fault(message, "a letter first", code="bad-name")
    if text in RESERVED or text.startswith("systemd-"):
        raise Fault(f"{shown(text)} is an account of the system", "choose another name", code="bad-name")
    return text


def group_name(text: str) -> str:
    """The name of a group of the guest."""
    if not _NAME.fullmatch(text):
        raise Fault(f"{shown(text)} cannot be the name of a group", "for example dialout", code="bad-name")
    return text


def ssh_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The keys, if each of them is one of ssh. Raises Fault for one of gpg."""
    if any(map(signing.is_gpg, keys)):
        raise Fault("a key of gpg cannot log in", "write an ssh public key", code="bad-public-key")
    return keys


def read_users(reader: Reader, node: Node | None) -> tuple[User, ...]:
    """Returns the accounts of a box, each name once."""
    users: list[User] = []
    names: list[tuple[Node, str]] = []
    for item in node.items if node else ():
        name_node, keys_node, groups = item.get("name"), item.get("keys"), item.get("groups")
        name = reader.text(name_node, user_name, "")
        if name_node:
            names.append((name_node, name))
        keys = reader.keys(keys_node)
        try:
            ssh_keys(keys)
        except Fault as fault:
            reader.fault(keys_node or item, fault.message, fault.hint, code=fault.code)
        found = [(one, reader.text(one, group_name, "")) for one in (groups.items if groups else ())]
        reader.refuse_duplicates(found, "group")
        users.append(User(name, keys, reader.switch(item.get("sudo")), tuple(group for _, group in found)))
    reader.refuse_duplicates(names, "user")
    return tuple(users)
