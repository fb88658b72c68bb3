"""Assigns ports of the host for ssh and forwards. No two machines get the same port."""

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
    with locked(lock, wait_s=LOCK_WAIT_S, busy="another kimbox process is choosing ports"):
        yield


def taken(except_for: Machine) -> dict[int, str]:
    """Returns the ports of all machines except `except_for`: port -> name of its machine."""
    owners: dict[int, str] = {}
    for machine in machines():
        if machine.name != except_for.name:
            with contextlib.suppress(KimboxError):
                record = machine.record()
                owners |= dict.fromkeys([record.ssh_port, *record.forwards.values()], machine.name)
    return owners


def is_free(port: int) -> bool:
    """Whether this user can listen on the port."""
    return _bind_error(port) is None


def _bind_error(port: int) -> OSError | None:
    """Returns the error of an attempt to listen on the port, or None if that is possible."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            return error
    return None


def choose(machine: Machine, requested: dict[int, int | None], previous: dict[int, int]) -> dict[int, int]:
    """Chooses a host port for each guest port of a machine.

    `requested`: guest port -> the host port that the spec names, or None if kimbox chooses. `previous`: the host ports
    of the machine so far, which kimbox prefers. Call it inside `allotting()`.

    Raises StateError: `port-in-use` (the field `owner` is the machine that has the port), `port-needs-root` or
    `duplicate` for a port that the spec names, `no-free-port` if all of AUTO_PORTS are in use.
    """
    others = taken(machine)
    chosen: dict[int, int] = {}

    def usable(port: int) -> bool:
        return port not in others and port not in chosen.values() and is_free(port)

    for guest, host in requested.items():
        if host is None:
            continue
        if not usable(host):
            raise _not_usable(machine, guest, host, others)
        chosen[guest] = host
    for guest, host in requested.items():
        if host is None:
            last = previous.get(guest)
            free = last if last is not None and usable(last) else next(filter(usable, AUTO_PORTS), None)
            if free is None:
                raise StateError(
                    f"no port is free on this host for {machine.name}",
                    code="no-free-port",
                    hint="`kimbox list` shows the machines; `kimbox destroy NAME` releases the ports of one",
                    fields={"name": machine.name},
                )
            chosen[guest] = free
    return chosen


def _not_usable(machine: Machine, guest: int, host: int, others: dict[int, str]) -> StateError:
    """Returns the error for a port of the spec that the machine cannot have. `others`: the ports of other machines."""
    bind_error = None if host in others else _bind_error(host)
    needs_root = isinstance(bind_error, PermissionError)
    is_in_use = host in others or (bind_error is not None and not needs_root)
    if host in others:
        why = f"belongs to the box {others[host]}"
    elif needs_root:
        why = "requires root"
    else:
        why = "is used by another program" if is_in_use else "is in the spec twice"
    return StateError(
        f"port {host} of this host, requested for port {guest} of the guest, {why}",
        code="port-in-use" if is_in_use else "port-needs-root" if needs_root else "duplicate",
        hint=f"use another port, or `host: auto`, in the spec of {machine.name}",
        fields={"name": machine.name, "host": str(host), "guest": str(guest), "owner": others.get(host, "")},
    )
