"""The key pair of a box for ssh, and the host key that its guest reports."""

from __future__ import annotations

import re
from pathlib import Path

from kimbox.errors import GuestError, KimboxError
from kimbox.files import read_bounded, write_atomic
from kimbox.machine.folder import Machine
from kimbox.run import run

#: An ed25519 public key as OpenSSH writes it. kimbox accepts nothing else from a guest.
_HOST_KEY = re.compile(r"(ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43})(?: .*)?")


def make_pair(key: Path, name: str) -> None:
    """Creates the key pair that gives access to the box `name`: the private key `key`, and `key`.pub."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"kimbox-{name}", "-f", key])


def public_key(machine: Machine) -> str:
    """Returns the public key of the pair, as one line. Raises GuestError (`file-unreadable`) if it cannot be read."""
    file, name = machine.key.with_suffix(".pub"), machine.name
    try:
        return read_bounded(file, limit_bytes=4096).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise GuestError(
            f"the public key of {name} cannot be read: {error}",
            code="file-unreadable",
            hint=f"`kimbox destroy {name}` and `kimbox up {name}` create a new machine",
            fields={"name": name, "path": str(file)},
        ) from None


def host_key(machine: Machine) -> str | None:
    """Returns the public host key that is pinned, as `ssh-ed25519 BASE64`; None before the guest has reported one."""
    try:
        text = read_bounded(machine.known_hosts, limit_bytes=4096).decode(errors="replace")
    except (OSError, KimboxError):
        return None
    match = _HOST_KEY.fullmatch(text.strip().partition(" ")[2])
    return match[1] if match else None


def pin_host_key(machine: Machine, reported_key: str) -> None:
    """Writes the first host key that a guest reports to known_hosts. Only the guest can send its events.

    Raises GuestError: `bad-public-key` if the text is not an ed25519 key, `host-key-mismatch` if known_hosts has
    another key.
    """
    match = _HOST_KEY.fullmatch(reported_key)
    if not match:
        raise GuestError(
            f"{machine.name} reported an ssh host key that is not valid: {reported_key[:80]!r}",
            code="bad-public-key",
            fields={"name": machine.name},
        )
    line = f"{machine.alias} {match[1]}\n"
    if not machine.known_hosts.exists():
        write_atomic(machine.known_hosts, line, mode=0o600)
    elif machine.known_hosts.read_bytes() != line.encode():
        raise GuestError(
            f"the ssh host key of {machine.name} has changed",
            code="host-key-mismatch",
            hint=f"if you changed the key, remove {machine.known_hosts}; else another program changed the box",
            fields={"name": machine.name, "path": str(machine.known_hosts)},
        )
