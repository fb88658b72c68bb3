"""Renders the files that `kimbox secure` sends to a box, which keeps them on /persistent. No input or output.

    answers.env     KIMBOX_ROLE, KIMBOX_SITE, KIMBOX_USERNAME
    policy.env      KIMBOX_* of the role in the spec
    outbound        a line for each host that the box may connect to, the gateway first and the time servers last: host,
                    port and protocol
    known_hosts     the gateway's host keys, under the name GATEWAY
    operator_keys   the keys that may log in as the operator

The scripts in provisioners/secure read them. At each start of a sealed box the host sends them again, because root in
the box can write to those on /persistent.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from kimbox.render.quote import assignments
from kimbox.spec.model import Outbound, Role, Secure
from kimbox.spec.sealing import is_address

#: The name of the gateway in known_hosts, whatever its address is.
GATEWAY = "kimbox-gateway"

#: The port of time servers (RFC 5905).
NTP_PORT = 123


def answers(role: Role, site: str, username: str) -> bytes:
    """Returns the file answers.env."""
    return assignments({"KIMBOX_ROLE": role.name, "KIMBOX_SITE": site, "KIMBOX_USERNAME": username})


def role_files(secure: Secure, role: Role, site: str) -> dict[str, bytes]:
    """Returns the files that a sealed box gets at each start: name -> content. The box itself adds its user name."""
    return files(secure, role) | {"answers.env": assignments({"KIMBOX_ROLE": role.name, "KIMBOX_SITE": site})}


def username(name: str) -> bytes:
    """Returns the file answers.env for new credentials: role and site do not change."""
    return assignments({"KIMBOX_USERNAME": name})


def files(secure: Secure, role: Role) -> dict[str, bytes]:
    """Returns the files that depend on the spec only: name -> content."""
    gateway = role.gateway
    allowed = [
        *([Outbound(gateway.host, gateway.port)] if gateway else []),
        *role.outbound,
        *(Outbound(host, NTP_PORT, "udp") for host in secure.time),
    ]
    values = {
        "KIMBOX_INBOUND": " ".join(map(str, role.inbound)),
        "KIMBOX_OPERATOR": "yes" if secure.keys else "",
        "KIMBOX_ACCOUNTS": " ".join(role.accounts),
        "KIMBOX_SERVICES": " ".join(role.services),
        "KIMBOX_DNS": "yes" if secure.dns else "",
        "KIMBOX_REMOVED": " ".join(secure.remove),
        "KIMBOX_DISABLED": " ".join(secure.disable),
        "KIMBOX_UPDATES": "yes" if secure.updates else "",
        "KIMBOX_TIME": " ".join(secure.time),
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
    """Returns an address as nft(8) prints it, because the audit compares the two; a name unchanged."""
    return str(ipaddress.ip_address(host)) if is_address(host) else host


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
