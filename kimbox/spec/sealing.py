"""The part `secure` of a spec: roles, and what a sealed box lets in and out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Protocol, TypeVar

from kimbox.spec import rules, signing
from kimbox.spec.model import BoxImage, Gateway, Outbound, PackageImage, RemoteImage, Role, Secure
from kimbox.spec.nodes import Fault, Node, shown

T = TypeVar("T")

#: Accounts that every box has, or that a sealed one must not have.
RESERVED_ACCOUNTS = frozenset({"root", "vagrant", "operator", "nobody"})

#: What a box is that took no role.
NO_ROLE = "dev"

#: The package that installs security updates by itself.
UPGRADER = "unattended-upgrades"

_ROLE = re.compile(r"[a-z][a-z0-9-]{0,30}")
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_LOGIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_UNIT = re.compile(r"[A-Za-z0-9@._:-]+\.(service|socket|timer|path|mount)")

#: Longest name of a host or site (RFC 1035).
MAX_HOST = 253


class Reader(Protocol):
    """What builds a Box: takes values of nodes, and notes faults at their places."""

    def text(self, node: Node | None, rule: Callable[[str], T], otherwise: T) -> T: ...

    def number(self, node: Node | None) -> int: ...

    def fault(self, node: Node, message: str, hint: str | None = None) -> None: ...

    def twice(self, named: list[tuple[Node, str]], what: str) -> None: ...

    def keys(self, node: Node | None) -> tuple[str, ...]: ...


def secure(reader: Reader, node: Node | None, image: PackageImage | RemoteImage | BoxImage) -> Secure | None:
    """How the box is sealed, if it can be."""
    if node is None or not node.mapping:
        return None
    roles = node.get("roles")
    found = Secure(
        site=reader.text(node.get("site"), site_name, None),
        roles=tuple(_role(reader, name, item, roles) for name, item in roles.mapping.items()) if roles else (),
        keys=_ssh_keys(reader, node.get("keys")),
        dns=_is_true(node.get("dns")),
        remove=_texts(reader, node.get("remove"), rules.package, "the package"),
        disable=_texts(reader, node.get("disable"), unit_name, "the unit"),
        updates=_is_true(node.get("updates")),
    )
    if roles and not roles.mapping:
        reader.fault(roles, "there is no role", "name one, such as `worker: {}`")
    _must_be_resolved(reader, node, found)
    updates = node.get("updates")
    if found.updates and updates and isinstance(image, PackageImage) and UPGRADER not in image.packages:
        reader.fault(updates, f"updates need {UPGRADER} in the image", f"add it: `image: {{packages: [{UPGRADER}]}}`")
    return found


def site_name(text: str) -> str:
    """Name of a site: that of a host."""
    return _host(text, "site")


def login_name(text: str) -> str:
    """Name by which a site knows a user."""
    if not _LOGIN.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be a user name: letters, digits and . _ @ - , at most 64, no hyphen at its start"
        )
    return text


def host(text: str) -> str:
    """A host name, or an address of IPv4 or IPv6."""
    return text if is_address(text) else _host(text, "host")


def is_address(text: str) -> bool:
    """Whether a host is given by its address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def unit_name(text: str) -> str:
    """Name of a systemd unit."""
    if not _UNIT.fullmatch(text) or len(text) > 128:
        raise Fault(f"{shown(text)} is not the name of a systemd unit", "for example avahi-daemon.service")
    return text


def _host(text: str, what: str) -> str:
    if not _HOST.fullmatch(text) or len(text) > MAX_HOST:
        raise Fault(f"{shown(text)} cannot be the name of a {what}: letters, digits and hyphens, with dots between")
    return text


def _role_name(text: str) -> str:
    if not _ROLE.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be the name of a role: lower-case letters, digits and hyphens, starting with a "
            "letter, at most 31"
        )
    if text == NO_ROLE:
        raise Fault(f"{shown(text)} is what a box is that took no role", "choose another name")
    return text


def account_name(text: str) -> str:
    """Name of an account that a role may have."""
    if not _ACCOUNT.fullmatch(text):
        raise Fault(f"{shown(text)} cannot be the name of an account: lower-case letters, digits, _ and -")
    if text in RESERVED_ACCOUNTS:
        raise Fault(f"{shown(text)} is no account of a role's: kimbox decides about it", "choose another name")
    return text


def _role(reader: Reader, name: str, item: Node, roles: Node) -> Role:
    try:
        _role_name(name)
    except Fault as fault:
        reader.fault(Node(name, roles.keys[name]), fault.message, fault.hint)
    ports = item.get("inbound")
    inbound = [(node, reader.number(node)) for node in (ports.items if ports else ())]
    reader.twice([(node, str(port)) for node, port in inbound if port], "the port")
    outbound = item.get("outbound")
    return Role(
        name=name,
        gateway=_gateway(reader, item.get("gateway")),
        inbound=tuple(port for _, port in inbound),
        outbound=tuple(
            Outbound(
                reader.text(one.get("host"), host, ""), reader.number(one.get("port")),
                reader.text(one.get("protocol"), str, "tcp"),
            )
            for one in (outbound.items if outbound else ())
        ),
        accounts=_texts(reader, item.get("accounts"), account_name, "the account"),
        services=_texts(reader, item.get("services"), unit_name, "the service"),
    )  # fmt: skip


def _gateway(reader: Reader, node: Node | None) -> Gateway | None:
    if node is None or not node.mapping:
        return None
    keys = node.get("host_keys")
    if keys is not None and isinstance(keys.value, list) and not keys.items:
        reader.fault(
            keys,
            "without its host key no gateway can be told from another server",
            "`ssh-keyscan` prints the key; compare it with what the site says",
        )
    return Gateway(reader.text(node.get("host"), host, ""), reader.number(node.get("port")), _ssh_keys(reader, keys))


def _ssh_keys(reader: Reader, node: Node | None) -> tuple[str, ...]:
    """Public keys of ssh alone."""
    found = reader.keys(node)
    if node is not None and any(map(signing.is_gpg, found)):
        reader.fault(node, "a key of gpg is no key of ssh", "name an ssh public key (ssh-ed25519 AAAA...)")
    return found


def _texts(reader: Reader, node: Node | None, rule: Callable[[str], str], what: str) -> tuple[str, ...]:
    named = [(item, reader.text(item, rule, "")) for item in (node.items if node else ())]
    reader.twice(named, what)
    return tuple(text for _, text in named if text)


def _is_true(node: Node | None) -> bool:
    return node is not None and node.value is True


def _must_be_resolved(reader: Reader, node: Node, found: Secure) -> None:
    """Notes it where a role names hosts that a box without name servers cannot find."""
    roles = node.get("roles")
    for role in found.roles if roles and not found.dns else ():
        hosts = [*(out.host for out in role.outbound), *([role.gateway.host] if role.gateway else [])]
        named = next((name for name in hosts if name and not is_address(name)), None)
        place = roles.get(role.name) if roles else None
        if named and place:
            hint = "write `dns: true`, or give its address"
            reader.fault(place, f"{shown(named)} is a name, and this box may ask no name server", hint)
