"""Gateways that are boxes of this host: their ports and host keys, from the records of their machines."""

from __future__ import annotations

import attrs

from kimbox.errors import StateError
from kimbox.machine import keys
from kimbox.machine.folder import Machine
from kimbox.spec.model import Box, Gateway, Role


def with_gateways(box: Box) -> Box:
    """Returns a box whose gateways have the port and the host key of their box, as far as that has reported one."""
    if box.secure is None or not any(role.gateway and role.gateway.box for role in box.secure.roles):
        return box
    roles = tuple(attrs.evolve(role, gateway=_found(role.gateway)) for role in box.secure.roles)
    return attrs.evolve(box, secure=attrs.evolve(box.secure, roles=roles))


def _found(gateway: Gateway | None) -> Gateway | None:
    if gateway is None or gateway.box is None:
        return gateway
    machine = Machine(gateway.box)
    key = keys.host_key(machine) if machine.exists else None
    port = gateway.port if gateway.is_on_network else machine.record().ssh_port
    return attrs.evolve(gateway, port=port, host_keys=(key,)) if key else gateway


def need_gateway(name: str, role: Role) -> None:
    """Raises StateError if the gateway of a role is a box that has not reported its host key."""
    gateway = role.gateway
    if gateway and gateway.box and not gateway.host_keys:
        raise StateError(
            f"the gateway of {name} is the box {gateway.box}, which has not reported its ssh host key",
            code="host-key-missing",
            hint=f"`kimbox up {gateway.box}` starts it; then secure it",
            fields={"name": name, "gateway": gateway.box},
        )
