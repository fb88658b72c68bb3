"""The part `secure` of a spec: the roles of a box, and the connections that a sealed box allows."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

from kimbox.spec import rules, signing
from kimbox.spec.model import (
    HOST_ADDRESS,
    SSH_PORT,
    BoxImage,
    Gateway,
    Network,
    Outbound,
    PackageImage,
    RemoteImage,
    Role,
    Secure,
)
from kimbox.spec.nodes import Fault, Node, shown
from kimbox.spec.reader import Reader

#: Accounts that a role cannot have: every box has them, or a sealed box must not have them.
RESERVED_ACCOUNTS = frozenset({"root", "vagrant", "operator", "nobody"})

#: The role of a box that was not secured.
NO_ROLE = "dev"

#: The package that installs security updates automatically.
UPGRADER = "unattended-upgrades"

#: The package that sets the clock by NTP.
TIME_CLIENT = "systemd-timesyncd"

_ROLE = re.compile(r"[a-z][a-z0-9-]{0,30}")
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_LOGIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_UNIT = re.compile(r"[A-Za-z0-9@._:-]+\.(service|socket|timer|path|mount)")

#: Maximum length of the name of a host or site (RFC 1035).
MAX_HOST_CHARACTERS = 253

#: Maximum length of the name of a systemd unit here.
MAX_UNIT_CHARACTERS = 128


def secure(
    reader: Reader,
    node: Node | None,
    image: PackageImage | RemoteImage | BoxImage,
    networks: tuple[Network, ...] = (),
) -> Secure | None:
    """Returns the part `secure` of a box; None if the spec has none. `networks`: those that the box is in."""
    if node is None or not node.mapping:
        return None
    roles = node.get("roles")
    secure = Secure(
        site=reader.text(node.get("site"), site_name, None),
        roles=tuple(_role(reader, name, item, roles, networks) for name, item in roles.mapping.items())
        if roles
        else (),
        keys=_ssh_keys(reader, node.get("keys")),
        dns=_is_true(node.get("dns")),
        remove=texts(reader, node.get("remove"), rules.package, "package"),
        disable=texts(reader, node.get("disable"), unit_name, "unit"),
        updates=_is_true(node.get("updates")),
        time=texts(reader, node.get("time"), host, "host"),
        keep=_is_true(node.get("keep")),
    )
    if roles and not roles.mapping:
        reader.fault(roles, "`secure.roles` is empty", "add a role, such as `worker: {}`", code="empty-value")
    _check_names_can_be_resolved(reader, node, secure)
    for key, package in {"updates": UPGRADER, "time": TIME_CLIENT}.items():
        setting = node.get(key)
        if getattr(secure, key) and setting and isinstance(image, PackageImage) and package not in image.packages:
            hint = f"add it: `image: {{packages: [{package}]}}`"
            reader.fault(setting, f"`secure.{key}` needs {package} in the image", hint, code="conflicting-settings")
    return secure


def site_name(text: str) -> str:
    """The name of a site: a host name."""
    return _host_name(text, "site")


def login_name(text: str) -> str:
    """The name of a user at a site."""
    if not _LOGIN.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be a user name: use letters, digits and . _ @ - , at most 64, and no hyphen at the "
            "start",
            code="bad-name",
        )
    return text


def host(text: str) -> str:
    """A host name, or an IPv4 or IPv6 address."""
    return text if is_address(text) else _host_name(text, "host")


def is_address(text: str) -> bool:
    """Whether a host is an IPv4 or IPv6 address, and not a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def unit_name(text: str) -> str:
    """The name of a systemd unit."""
    if not _UNIT.fullmatch(text) or len(text) > MAX_UNIT_CHARACTERS:
        message = f"{shown(text)} is not the name of a systemd unit"
        raise Fault(message, "for example avahi-daemon.service", code="bad-name")
    return text


def _host_name(text: str, kind: str) -> str:
    if not _HOST.fullmatch(text) or len(text) > MAX_HOST_CHARACTERS:
        raise Fault(
            f"{shown(text)} cannot be the name of a {kind}: use letters, digits and hyphens, with dots between the "
            "parts",
            code="bad-name",
        )
    return text


def _role_name(text: str) -> str:
    if not _ROLE.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be the name of a role: use lower-case letters, digits and hyphens, at most 31, with "
            "a letter at the start",
            code="bad-name",
        )
    if text == NO_ROLE:
        message = f"{shown(text)} is the role of a box that was not secured"
        raise Fault(message, "choose another name", code="bad-name")
    return text


def account_name(text: str) -> str:
    """The name of an account that a role may have."""
    if not _ACCOUNT.fullmatch(text):
        raise Fault(
            f"{shown(text)} cannot be the name of an account: use lower-case letters, digits, _ and -", code="bad-name"
        )
    if text in RESERVED_ACCOUNTS:
        message = f"{shown(text)} cannot be an account of a role: kimbox manages it"
        raise Fault(message, "choose another name", code="bad-name")
    return text


def _role(reader: Reader, name: str, item: Node, roles: Node, networks: tuple[Network, ...]) -> Role:
    try:
        _role_name(name)
    except Fault as fault:
        reader.fault(Node(name, roles.keys[name]), fault.message, fault.hint, code=fault.code)
    ports = item.get("inbound")
    inbound = [(node, reader.number(node)) for node in (ports.items if ports else ())]
    reader.refuse_duplicates([(node, str(port)) for node, port in inbound if port], "port")
    outbound = item.get("outbound")
    return Role(
        name=name,
        gateway=_gateway(reader, item.get("gateway"), networks),
        inbound=tuple(port for _, port in inbound),
        outbound=tuple(_outbound(reader, target, networks) for target in (outbound.items if outbound else ())),
        accounts=texts(reader, item.get("accounts"), account_name, "account"),
        services=texts(reader, item.get("services"), unit_name, "service"),
    )


def _address_of(box: str, networks: tuple[Network, ...]) -> str | None:
    """Returns the address of a box of the same spec in the first network that both are in."""
    return next((address for network in networks if (address := network.address(box))), None)


def _outbound(reader: Reader, node: Node, networks: tuple[Network, ...]) -> Outbound:
    protocol = reader.text(node.get("protocol"), str, "tcp")
    name = reader.text(node.get("host"), host, "")
    return Outbound(_address_of(name, networks) or name, reader.number(node.get("port")), protocol)


def _gateway(reader: Reader, node: Node | None, networks: tuple[Network, ...]) -> Gateway | None:
    if node is None or not node.mapping:
        return None
    keys, box = node.get("host_keys"), node.get("box")
    if box is not None:
        for other in (node.get("host"), keys):
            if other is not None:
                message = "`box` has the address and the host key of that box"
                reader.fault(other, message, "remove this key, or `box`", code="conflicting-settings")
        name = reader.text(box, rules.box_name, "")
        if address := _address_of(name, networks):
            return Gateway(address, SSH_PORT, (), name)
        return Gateway(HOST_ADDRESS, 0, (), name)  # the port of that box on this host may change
    if keys is not None and isinstance(keys.value, list) and not keys.items:
        reader.fault(
            keys,
            "without a host key, another server could pretend to be the gateway",
            "`ssh-keyscan` prints the key; compare it with the key that the site publishes",
            code="empty-value",
        )
    return Gateway(reader.text(node.get("host"), host, ""), reader.number(node.get("port")), _ssh_keys(reader, keys))


def _ssh_keys(reader: Reader, node: Node | None) -> tuple[str, ...]:
    """Returns public keys. Reports a fault for a key of gpg."""
    keys = reader.keys(node)
    if node is not None and any(map(signing.is_gpg, keys)):
        message, hint = "a key of gpg cannot be used for ssh", "name an ssh public key (ssh-ed25519 AAAA...)"
        reader.fault(node, message, hint, code="bad-public-key")
    return keys


def texts(reader: Reader, node: Node | None, rule: Callable[[str], str], kind: str) -> tuple[str, ...]:
    """Returns the texts of a list, each checked by `rule` and allowed once. `kind` is for messages."""
    named = [(item, reader.text(item, rule, "")) for item in (node.items if node else ())]
    reader.refuse_duplicates(named, kind)
    return tuple(text for _, text in named if text)


def _is_true(node: Node | None) -> bool:
    return node is not None and node.value is True


def _check_names_can_be_resolved(reader: Reader, node: Node, secure: Secure) -> None:
    """Reports a role or a time server that is a host name although the sealed box cannot reach a name server."""
    roles = node.get("roles")
    for role in secure.roles if roles and not secure.dns else ():
        hosts = [*(out.host for out in role.outbound), *([role.gateway.host] if role.gateway else [])]
        role_node = roles.get(role.name) if roles else None
        _check_is_address(reader, role_node, hosts)
    if not secure.dns:
        _check_is_address(reader, node.get("time"), secure.time)


def _check_is_address(reader: Reader, node: Node | None, hosts: Iterable[str]) -> None:
    """Reports the first host that is a name, at `node`."""
    name = next((host for host in hosts if host and not is_address(host)), None)
    if name and node:
        message = f"{shown(name)} is a name, and the sealed box cannot reach a name server"
        hint = "write `dns: true`, or use the address of the host"
        reader.fault(node, message, hint, code="conflicting-settings")
