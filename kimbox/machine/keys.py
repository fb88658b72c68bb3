"""The key pair of a box, and the host key it tells."""

from __future__ import annotations

import re
from pathlib import Path

from kimbox.errors import GuestError
from kimbox.files import write_atomic
from kimbox.machine.folder import Machine
from kimbox.run import run

#: An ed25519 public key as OpenSSH writes it; nothing else is taken from a guest.
_HOST_KEY = re.compile(r"(ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43})(?: .*)?")


def make_pair(key: Path, name: str) -> None:
    """Makes the key that may log in, and its public half beside it, for this one box."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"kimbox-{name}", "-f", key])


def pin_host_key(machine: Machine, told: str) -> None:
    """Believes the first host key a box tells through its port, which nobody else can write to; refuses another later.

    Raises GuestError if what it tells is no key, or not the one it had.
    """
    found = _HOST_KEY.fullmatch(told)
    if not found:
        raise GuestError(f"{machine.name} told a host key that is not one: {told[:80]!r}")
    line = f"{machine.alias} {found[1]}\n"
    if not machine.known_hosts.exists():
        write_atomic(machine.known_hosts, line, mode=0o600)
    elif machine.known_hosts.read_bytes() != line.encode():
        raise GuestError(
            f"the ssh host key of {machine.name} has changed",
            hint=f"if that was meant, remove {machine.known_hosts}; else somebody changed the box",
        )
