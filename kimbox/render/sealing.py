"""What a box is told when it takes a role: a few small files, which it keeps on /persistent. Pure; values, never logic.

    answers.env     KIMBOX_ROLE, KIMBOX_SITE, KIMBOX_USERNAME
    policy.env      KIMBOX_* of what the spec says of the role
    outbound        a line for each host that may be reached, the gateway first: host, port and protocol
    known_hosts     the gateway's host keys, under the name GATEWAY
    operator_keys   the keys that may log in as the operator

provisioners/secure has the scripts that read them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from kimbox.render.quote import assignments
from kimbox.spec.model import Outbound, Role, Secure
from kimbox.spec.sealing import is_address

#: The name by which ssh in the box knows the gateway, wherever it is.
GATEWAY = "kimbox-gateway"


def answers(role: Role, site: str, username: str) -> bytes:
    """The file answers.env."""
    return assignments({"KIMBOX_ROLE": role.name, "KIMBOX_SITE": site, "KIMBOX_USERNAME": username})


def username(name: str) -> bytes:
    """The file answers.env where new credentials are asked for: role and site stay."""
    return assignments({"KIMBOX_USERNAME": name})


def files(secure: Secure, role: Role) -> dict[str, bytes]:
    """The files that follow from the spec, by name."""
    gateway = role.gateway
    allowed = [*([Outbound(gateway.host, gateway.port)] if gateway else []), *role.outbound]
    values = {
        "KIMBOX_INBOUND": " ".join(map(str, role.inbound)),
        "KIMBOX_OPERATOR": "yes" if secure.keys else "",
        "KIMBOX_ACCOUNTS": " ".join(role.accounts),
        "KIMBOX_SERVICES": " ".join(role.services),
        "KIMBOX_DNS": "yes" if secure.dns else "",
        "KIMBOX_REMOVED": " ".join(secure.remove),
        "KIMBOX_DISABLED": " ".join(secure.disable),
        "KIMBOX_UPDATES": "yes" if secure.updates else "",
        "KIMBOX_GATEWAY_HOST": gateway.host if gateway else "",
        "KIMBOX_GATEWAY_PORT": str(gateway.port) if gateway else "",
    }
    return {
        "policy.env": assignments(values),
        "outbound": _lines(dict.fromkeys(f"{_as_nft(out.host)} {out.port} {out.protocol}" for out in allowed)),
        "known_hosts": _lines(f"{GATEWAY} {key}" for key in (gateway.host_keys if gateway else ())),
        "operator_keys": _lines(secure.keys),
    }


def _as_nft(host: str) -> str:
    """An address as nft(8) shows it, so that the two can be compared; a name as it is."""
    return str(ipaddress.ip_address(host)) if is_address(host) else host


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
