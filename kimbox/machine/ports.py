"""Ports of the host for ssh and forwards, allotted so that no two machines get the same one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from kimbox import paths
from kimbox.errors import KimboxError, StateError
from kimbox.files import locked
from kimbox.machine.folder import Machine, machines

#: Ports that kimbox chooses come from here, below the range in which Linux chooses its own.
AUTO_PORTS = range(20022, 32000)

ADDRESS = "127.0.0.1"

LOCK_WAIT_S = 30.0


@contextlib.contextmanager
def allotting() -> Iterator[None]:
    """Keeps other machines from being given ports meanwhile."""
    lock = paths.machines_dir() / ".ports.lock"
    with locked(lock, wait_s=LOCK_WAIT_S, busy="another kimbox is choosing ports"):
        yield


def taken(except_for: Machine) -> dict[int, str]:
    """Ports that other machines have, and whose they are."""
    found: dict[int, str] = {}
    for machine in machines():
        if machine.name != except_for.name:
            with contextlib.suppress(KimboxError):
                record = machine.record()
                found |= dict.fromkeys([record.ssh_port, *record.forwards.values()], machine.name)
    return found


def is_free(port: int) -> bool:
    """Whether this user could listen on the port, because nobody does."""
    return trouble(port) is None


def trouble(port: int) -> str | None:
    """Why this user cannot listen on the port, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except PermissionError:
            return "may not be used without root"
        except OSError:
            return "is used by another program"
    return None


def choose(machine: Machine, wanted: dict[int, int | None], before: dict[int, int]) -> dict[int, int]:
    """A host port for each guest port of `wanted`; None lets kimbox choose, which prefers the port of `before`.

    Call inside `allotting()`. Raises StateError naming the owner if a port that the spec names is in use.
    """
    others = taken(machine)
    chosen: dict[int, int] = {}

    def usable(port: int) -> bool:
        return port not in others and port not in chosen.values() and is_free(port)

    for guest, host in wanted.items():
        if host is None:
            continue
        if not usable(host):
            why = f"belongs to the box {others[host]}" if host in others else trouble(host) or "is wanted twice"
            hint = f"take another, or `host: auto`, in the spec of {machine.name}"
            raise StateError(f"port {host} of this host, wanted for port {guest} of the guest, {why}", hint=hint)
        chosen[guest] = host
    for guest, host in wanted.items():
        if host is None:
            last = before.get(guest)
            free = last if last is not None and usable(last) else next(filter(usable, AUTO_PORTS), None)
            if free is None:
                raise StateError("no port is free on this host for the box", hint="see `kimbox list`")
            chosen[guest] = free
    return chosen
