"""Reports of an audit, as a guest writes them."""

from __future__ import annotations

import datetime
import json
from typing import Any

import makemachine

from kimbox.guest import audit
from kimbox.guest.audit import Check, Report

AT = "2026-05-01T10:00:00Z"
HEADER = {"audit": 1, "at": AT, "boot": makemachine.BOOT, "role": "worker", "site": "example.org"}


def check(name: str = "net.tcp", status: str = "pass", **more: Any) -> dict[str, Any]:
    """Returns the line of a check as a mapping."""
    usual = {"cis": "2.1.22", "severity": "high", "expected": "none", "found": "none", "remedy": "close it"}
    return {"id": name, "title": f"About {name}", "status": status} | usual | more


def lines(*checks: dict[str, Any], header: Any = HEADER, end: Any = None) -> bytes:
    """Returns a report as a guest writes it."""
    last = {"end": True, "checks": len(checks)} if end is None else end
    return "".join(json.dumps(line) + "\n" for line in (header, *checks, last)).encode()


def sent(*checks: dict[str, Any], ago_s: float = 60, **header: Any) -> bytes:
    """Returns a report that a box has made some time ago, by the clock of this host."""
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago_s)
    return lines(*checks, header=HEADER | {"at": then.strftime("%Y-%m-%dT%H:%M:%SZ")} | header)


def report(*checks: dict[str, Any]) -> Report:
    found = audit.newest(lines(*checks))
    assert found
    return found


def ids(checks: tuple[Check, ...]) -> list[str]:
    return [one.id for one in checks]
