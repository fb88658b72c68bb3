"""Allots ports of the host for ssh and forwards. No two machines get the same port."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from kimbox import paths
from kimbox.errors import KimboxError, StateError
from kimbox.files import locked
from kimbox.machine.folder import Machine, machines

#: Range of the ports that kimbox chooses, below the range from which Linux takes ports for outgoing connections.
AUTO_PORTS = range(20022, 32000)

ADDRESS = "127.0.0.1"

#: Maximum wait for another process that chooses ports.
LOCK_WAIT_S = 30.0


@contextlib.contextmanager
def allotting() -> Iterator[None]:
    """Keeps other processes from choosing ports while the block runs. It ends when the machine's record has the ports.

    Raises StateError if another process chooses ports for longer than LOCK_WAIT_S.
    """
    lock = paths.machines_dir() / ".ports.lock"
    with locked(lock, wait_s=LOCK_WAIT_S, busy="another kimbox is choosing ports"):
        yield


def taken(except_for: Machine) -> dict[int, str]:
    """The ports of all other machines, each with the name of its machine."""
    owners: dict[int, str] = {}
    for machine in machines():
        if machine.name != except_for.name:
            with contextlib.suppress(KimboxError):
                record = machine.record()
                owners |= dict.fromkeys([record.ssh_port, *record.forwards.values()], machine.name)
    return owners


def is_free(port: int) -> bool:
    """Whether this user can listen on the port."""
    return why_not_free(port) is None


def why_not_free(port: int) -> str | None:
    """Why this user cannot listen on the port, or None if that is possible."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except PermissionError:
            return "may not be used without root"
        except OSError:
            return "is used by another program"
    return None


def choose(machine: Machine, requested: dict[int, int | None], previous: dict[int, int]) -> dict[int, int]:
    """Chooses a host port for each guest port of a machine.

    `requested`: guest port -> the host port that the spec names, or None if kimbox chooses. `previous`: the host ports
    of the machine so far, which kimbox prefers. Call it inside `allotting()`. Raises StateError, which names the owner,
    if a port that the spec names is in use.
    """
    others = taken(machine)
    chosen: dict[int, int] = {}

    def usable(port: int) -> bool:
        return port not in others and port not in chosen.values() and is_free(port)

    for guest, host in requested.items():
        if host is None:
            continue
        if not usable(host):
            why = f"belongs to the box {others[host]}" if host in others else why_not_free(host) or "is wanted twice"
            hint = f"take another, or `host: auto`, in the spec of {machine.name}"
            raise StateError(f"port {host} of this host, wanted for port {guest} of the guest, {why}", hint=hint)
        chosen[guest] = host
    for guest, host in requested.items():
        if host is None:
            last = previous.get(guest)
            free = last if last is not None and usable(last) else next(filter(usable, AUTO_PORTS), None)
            if free is None:
                raise StateError("no port is free on this host for the box", hint="see `kimbox list`")
            chosen[guest] = free
    return chosen
