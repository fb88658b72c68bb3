"""How a box is reached, for `kimbox status`: ssh, forwarded ports, and the networks between boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kimbox.machine.folder import Machine
    from kimbox.machine.record import Record


def connections_of(machine: Machine, record: Record) -> dict[str, Any]:
    """Returns the keys `ssh_host`, `ssh_port`, `forwards`, `auto_forwards`, `display` and `networks` of a summary.

    `auto_forwards` has the forwards of now for `guest: auto`; None if the box does not ask for it.

    A network has `name`, `subnet`, `addresses` (name of each box -> its address), and `is_up`: whether the program that
    passes frames on runs now.
    """
    from kimbox.machine import forwarding
    from kimbox.machine.networks import is_up

    return {
        "ssh_host": record.ssh_host,
        "ssh_port": record.ssh_port,
        "forwards": {str(guest): host for guest, host in record.forwards.items()},
        "auto_forwards": forwarding.forwards_of(machine) if record.auto_forwards else None,
        "display": record.display and str(record.display),
        "networks": [
            {
                "name": network.name,
                "subnet": network.subnet,
                "addresses": dict(network.addresses),
                "is_up": is_up(machine, record, network),
            }
            for network in record.networks
        ],
    }


def lines(summary: dict[str, Any]) -> list[str]:
    """Returns the lines of the output."""
    listening = summary["auto_forwards"] or {}
    return [
        f"  ssh         {summary['ssh_host']}:{summary['ssh_port']}",
        *(f"  forward     127.0.0.1:{host} -> {guest}" for guest, host in summary["forwards"].items()),
        *(f"  forward     127.0.0.1:{host} -> {guest}, while it listens" for guest, host in listening.items()),
        *([f"  display     {summary['display']}: `kimbox view {summary['name']}`"] if summary["display"] else []),
        *(_network_line(network, summary) for network in summary["networks"]),
    ]


def _network_line(network: dict[str, Any], summary: dict[str, Any]) -> str:
    own = network["addresses"].get(summary["name"])
    others = ", ".join(f"{box} {address}" for box, address in network["addresses"].items() if box != summary["name"])
    return f"  network     {network['name']}: {own}, with {others or 'no other box'}"


def lost(machine: Machine, record: Record) -> list[tuple[str, str]]:
    """Returns the codes and details of problems: each network that the box has lost, and missing automatic forwards."""
    from kimbox.machine import forwarding
    from kimbox.machine.networks import is_up

    repair = f"`kimbox reload {machine.name}` connects it again"
    problems = [
        ("network-down", f"it is not connected to its network {network.name}: {repair}")
        for network in record.networks
        if not is_up(machine, record, network)
    ]
    if forwarding.is_down(machine, record):
        detail = f"no process forwards its ports (`guest: auto`): `kimbox up {machine.name}` starts it"
        problems.append(("forwards-down", detail))
    return problems
