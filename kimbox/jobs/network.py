"""What a job reaches: nothing, everything, or the servers that are named."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Self

import attrs

from kimbox.drivers.base import Reach
from kimbox.errors import KimboxError, UsageError
from kimbox.log import printable

#: The words for nothing and for everything.
NONE, OUTBOUND = "none", "outbound"

#: Maximum number of servers.
MAX_TARGETS = 32

#: The hint of an error.
SYNTAX = "write none, outbound, or servers: --network example.org:443,db=192.0.2.7:5432"

#: Names that every guest has itself.
_OWN_NAMES = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})

_TARGET = re.compile(r"(?:([A-Za-z0-9][A-Za-z0-9.-]{0,252})=)?([A-Za-z0-9][A-Za-z0-9.-]{0,252}):([0-9]{1,5})")


@attrs.frozen
class Target:
    """A server. `name`: that by which the guest reaches it; `host`: its name or IPv4 address for this host."""

    name: str
    host: str
    port: int

    def __str__(self) -> str:
        prefix = "" if self.name == self.host else f"{self.name}="
        return f"{prefix}{self.host}:{self.port}"


@attrs.frozen
class Network:
    """What a job reaches. Without targets: everything if `is_open`, else nothing."""

    is_open: bool = False
    targets: tuple[Target, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the network of `none`, `outbound` or `[NAME=]HOST:PORT,...`. Raises UsageError (`bad-value`)."""
        if text in (NONE, OUTBOUND):
            return cls(is_open=text == OUTBOUND)
        words = text.split(",")
        if len(words) > MAX_TARGETS:
            raise _bad(f"there are more than {MAX_TARGETS} servers")
        return cls(targets=tuple(dict.fromkeys(_target(word) for word in words)))

    def __str__(self) -> str:
        """The text that `parse` takes."""
        return ",".join(map(str, self.targets)) or (OUTBOUND if self.is_open else NONE)

    def resolve(self) -> tuple[Reach, ...]:
        """Returns the addresses of the servers, as this host resolves their names now.

        Raises KimboxError (`name-not-resolved`).
        """
        return tuple(Reach(target.name, _address(target), target.port) for target in self.targets)


def _target(word: str) -> Target:
    match = _TARGET.fullmatch(word)
    if not match or not 0 < int(match[3]) < 1 << 16:
        raise _bad(f"{word[:60]!r} is not HOST:PORT")
    name, host = (match[1] or match[2]).lower(), match[2].lower()
    if name in _OWN_NAMES or _is_address(name):
        raise _bad(f"the guest needs a name for {host}", f"--network name={host}:{match[3]}")
    return Target(name, host, int(match[3]))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return text.replace(".", "").isdigit()
    return True


def _address(target: Target) -> str:
    try:
        found = sorted(
            socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM),
            key=lambda info: info[0] is not socket.AF_INET,  # not every host has a route for IPv6
        )
    except (OSError, UnicodeError) as error:
        raise KimboxError(
            f"the name {target.host} of --network cannot be resolved: {error}",
            code="name-not-resolved",
            hint="check the name, or write NAME=ADDRESS:PORT",
            fields={"name": target.host},
        ) from None
    return str(found[0][4][0])


def _bad(problem: str, hint: str = SYNTAX) -> UsageError:
    return UsageError(f"--network: {printable(problem)}", code="bad-value", hint=hint, fields={"option": "--network"})
